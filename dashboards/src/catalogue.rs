//! Every metric that the operator and the agents export: name, type, unit, labels, meaning. Panels, alerts and
//! `docs/operator-metrics.md` are held against this table, and so is what a running process exports
//! ([`compare`](crate::exposition::compare)).

/// What Prometheus calls the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    /// As it stands in a `# TYPE` line.
    pub fn as_str(self) -> &'static str {
        match self {
            Counter => "counter",
            Gauge => "gauge",
            Histogram => "histogram",
        }
    }
}

/// The process that exports a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// `whetstone-operator`, always.
    Operator,
    /// `whetstone-agent` with `--metrics ADDR`.
    Agent,
}

impl Source {
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Operator => "operator",
            Source::Agent => "agent",
        }
    }
}

/// A label and the values that it takes.
#[derive(Debug, Clone, Copy)]
pub struct Label {
    pub name: &'static str,
    /// All values if `closed`, else some that do occur.
    pub values: &'static [&'static str],
    /// No other value is right.
    pub closed: bool,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// Unit of the value in words: `blades`, `seconds`, `1` for a flag or a ratio.
    pub unit: &'static str,
    pub labels: &'static [Label],
    pub source: Source,
    pub help: &'static str,
    /// A histogram's greatest finite bound has to be at least this: an alert has its limit there, and no quantile is ever
    /// above the greatest bound.
    pub reach: f64,
    /// Only the leader's value counts; another replica may export none or an old one.
    pub leader: bool,
}

const fn closed(name: &'static str, values: &'static [&'static str]) -> Label {
    Label { name, values, closed: true }
}

const fn open(name: &'static str, values: &'static [&'static str]) -> Label {
    Label { name, values, closed: false }
}

const fn metric(
    name: &'static str,
    kind: Kind,
    unit: &'static str,
    labels: &'static [Label],
    help: &'static str,
) -> Metric {
    Metric { name, kind, unit, labels, source: Source::Operator, help, reach: 0.0, leader: false }
}

impl Metric {
    /// Exported from the start. The others appear with the first event, tranche or SKU that they are about.
    pub fn from_the_start(&self) -> bool {
        self.labels.is_empty() || self.kind == Gauge && self.labels.iter().all(|label| label.closed)
    }

    const fn leader(self) -> Metric {
        Metric { leader: true, ..self }
    }
    const fn agent(self) -> Metric {
        Metric { source: Source::Agent, ..self }
    }
    const fn reach(self, reach: f64) -> Metric {
        Metric { reach, ..self }
    }
}

const PHASES: [&str; 11] = [
    "Expected",
    "Discovered",
    "Preparing",
    "BurningIn",
    "Ready",
    "InService",
    "Draining",
    "Quarantined",
    "Repairing",
    "Sanitising",
    "Retired",
];
const PHASE: Label = closed("phase", &PHASES);
const REASONS: &[&str] =
    &["burn-in", "untestable", "outlier", "fault", "person", "identity-conflict", "wrong-inventory"];
/// Why the intake does not serve a request.
const REFUSED: &[&str] = &[
    "no-certificate",
    "wrong-role",
    "expired",
    "revoked",
    "unknown-blade",
    "wrong-blade",
    "identity-conflict",
    "token",
    "bad-body",
    "too-large",
    "slow",
    "no-such-run",
    "result-differs",
    "signature",
    "not-found",
    "busy",
    "over-budget",
    "queue-full",
    "store",
    "not-leading",
    "internal",
];
/// A case keeps its reason for ever, also one that this version does not know any more.
const CASE_REASONS: &[&str] =
    &["burn-in", "untestable", "outlier", "fault", "person", "identity-conflict", "wrong-inventory", "other"];
/// What `operator/src/site/tally.rs` counts a tranche's blades by.
const TRANCHE_STATE: Label = closed(
    "state",
    &[
        "expected",
        "discovered",
        "preparing",
        "burning_in",
        "comparing",
        "ready",
        "in_service",
        "quarantined",
        "retired",
        "missing",
        "duplicate",
        "other",
    ],
);
/// What the agent leaves samples of for the comparison of blades, by what it ends in.
#[cfg(test)]
const SAMPLED: [&str; 4] = [".throughput", ".bandwidth", ".busbw", ".latency"];
const OUTCOME: Label = closed("outcome", &["pass", "fail", "inconclusive"]);
const SUITE: Label = open("suite", &["quick", "standard", "soak"]);

use Kind::{Counter, Gauge, Histogram};

/// All of them, in the order of the page.
#[rustfmt::skip]
pub const METRICS: &[Metric] = &[
    // Blades and tranches.
    metric("whetstone_blades", Gauge, "blades", &[PHASE], "Blades in each phase.").leader(),
    metric("whetstone_blades_stuck", Gauge, "blades", &[PHASE], "Blades that are past their phase's time limit.").leader(),
    metric(
        "whetstone_tranche_blades", Gauge, "blades",
        &[open("tranche", &["t-07", "t-08"]), TRANCHE_STATE],
        "Blades of each tranche by state; `preparing` would burn in and wait for a place, power or a person, `comparing` are burnt in and wait for the others' runs, `missing` are past the delivery date, `duplicate` are serials that another tranche has already.",
    ).leader(),
    metric("whetstone_phase_seconds", Histogram, "seconds", &[PHASE], "Time that a blade was in a phase, counted when it leaves it.").reach(172_800.0),
    metric("whetstone_transitions_total", Counter, "transitions", &[closed("from", &PHASES), closed("to", &PHASES)], "Changes of phase, written to the store."),
    metric("whetstone_cases_open", Gauge, "cases", &[open("reason", CASE_REASONS)], "Open cases by the reason that the blade is withheld for.").leader(),
    metric("whetstone_unexpected_blades", Gauge, "blades", &[], "Machines that asked to join and stand on no manifest.").leader(),
    metric("whetstone_identity_conflicts", Gauge, "blades", &[], "Serials that two machines claim; both are held.").leader(),
    metric("whetstone_nodes_without_blade", Gauge, "nodes", &[], "Nodes that carry our taint and that no Blade names (and nobody has labelled `whetstone.dev/unmanaged`): nothing will ever release them.").leader(),
    metric("whetstone_joins_total", Counter, "requests", &[open("result", &["joined", "refused", "conflict", "unavailable", "bad", "renewed", "renewal-refused"])], "Requests to join, and renewals, by what became of them."),
    // Evidence.
    metric("whetstone_evidence_items_total", Counter, "items", &[open("kind", &["appeared", "cleared", "kernel", "reading", "note", "mixed"])], "Evidence stored for the first time; `mixed` came in a batch that was partly known already."),
    metric("whetstone_evidence_duplicates_total", Counter, "items", &[], "Evidence that was there already: sent again after a lost answer, or replayed. It changes nothing."),
    metric("whetstone_evidence_refused_total", Counter, "requests", &[open("reason", REFUSED)], "Requests of agents that were not served, by reason."),
    metric("whetstone_intake_requests_total", Counter, "requests", &[open("route", &["join", "renew", "report", "result"]), open("code", &["200", "204", "403", "429", "503"])], "Requests that the intake answered, by HTTP status."),
    metric("whetstone_intake_request_seconds", Histogram, "seconds", &[open("route", &["join", "renew", "report", "result"])], "Time to answer a request of an agent.").reach(1.0),
    metric("whetstone_intake_connections", Gauge, "connections", &[], "Connections that agents hold open."),
    metric("whetstone_intake_handshakes_failed_total", Counter, "handshakes", &[open("cause", &["refused", "slow", "crowded"])], "TLS handshakes that failed, by cause."),
    metric("whetstone_intake_queue_requests", Gauge, "requests", &[], "Reports that wait for the database."),
    metric("whetstone_intake_batch_requests", Histogram, "requests", &[], "Reports that were stored in one transaction."),
    metric("whetstone_audit_dropped_total", Counter, "entries", &[], "Refusals that were not audited one by one: too many of one peer, or at once."),
    // Agents, as the operator sees them.
    metric("whetstone_agents", Gauge, "agents", &[closed("state", &["live", "away", "conflict"])], "Agents that have joined: heard of lately, silent for too long, or two under one serial.").leader(),
    metric("whetstone_agent_clock_skew_seconds", Histogram, "seconds", &[], "Distance between an agent's clock and the operator's, either way, at each report.").reach(60.0),
    metric("whetstone_agent_dropped_items_total", Counter, "items", &[], "Details (readings, notes) that agents dropped because their spool was full. Findings are kept."),
    metric("whetstone_agent_spool_items", Histogram, "items", &[], "Items that waited in an agent's spool at each report."),
    metric("whetstone_agent_resident_bytes", Histogram, "bytes", &[], "Resident memory of an agent at each report.").reach(33_554_432.0),
    metric("whetstone_agent_cpu_ratio", Histogram, "1", &[], "Part of one processor core that an agent uses, at each report.").reach(0.01),
    // Burn-in.
    metric("whetstone_runs", Gauge, "runs", &[open("state", &["ordered", "running"])], "Burn-in runs that are not over.").leader(),
    metric("whetstone_runs_total", Counter, "runs", &[SUITE, open("outcome", &["pass", "fail", "inconclusive", "lost", "cancelled"])], "Burn-in runs that are over. `lost`: nothing was heard of it any more."),
    metric("whetstone_run_seconds", Histogram, "seconds", &[SUITE], "Time from a run's start on its blade to its result; not the time that it waited for its agent.").reach(86_400.0),
    metric("whetstone_verdicts_total", Counter, "verdicts", &[OUTCOME, closed("reason", REASONS)], "Verdicts on blades, with the reason of the quarantine that follows (`burn-in` for a pass)."),
    metric(
        "whetstone_burnin_metric", Gauge, "of the metric",
        &[open("sku", &["hgx-h100", "hgx-h200"]), open("tranche", &["t-07"]), open("test", &["gemm", "bandwidth"]), open("metric", &["gemm.bf16.throughput", "gemm.fp64.throughput", "hbm.bandwidth", "pcie.h2d.bandwidth", "p2p.bandwidth", "nccl.all_reduce.busbw", "dram.bandwidth"]), closed("quantile", &["0", "0.05", "0.5", "0.95", "1"])],
        "Distribution over the devices of a SKU in the latest comparison of a tranche, of the sixteen tranches that were compared last; units in docs/metrics.md.",
    ).leader(),
    // The loop, nodes and drains.
    metric("whetstone_reconcile_seconds", Histogram, "seconds", &[], "Time of one turn of the loop: look, plan, persist, apply.").reach(30.0),
    metric("whetstone_reconcile_errors_total", Counter, "errors", &[open("category", &["away", "locked", "full", "conflict", "forbidden", "spec", "stale", "bug"])], "Errors in the loop, by category. One bad object never stops the others."),
    metric("whetstone_withhold_seconds", Histogram, "seconds", &[], "Time from evidence of a fault received to taint and cordon on the node. Without blades that the circuit breaker held back.").reach(30.0),
    metric("whetstone_node_patches_total", Counter, "requests", &[closed("verb", &["withhold", "release"]), open("result", &["changed", "same", "away", "conflict", "forbidden"])], "Taints and cordons that were set or taken off; `same`: nothing had to be changed; else the error's category."),
    metric("whetstone_drains", Gauge, "drains", &[closed("state", &["going", "blocked"])], "Drains of ours: pods are being moved, or something blocks them.").leader(),
    metric("whetstone_breaker_open", Gauge, "1", &[], "1 while the circuit breaker holds back further quarantines.").leader(),
    metric("whetstone_breaker_withheld", Gauge, "blades", &[], "Blades that were withheld for faults within the breaker's window.").leader(),
    // The operator itself.
    metric("whetstone_leader", Gauge, "1", &[], "1 while this process leads (always, without leader election), else 0."),
    metric("whetstone_ready", Gauge, "1", &[closed("component", &["store", "kube", "disk", "leader"])], "1 while the component works; `leader` is 0 on a replica that waits."),
    metric("whetstone_store_seconds", Histogram, "seconds", &[open("op", &["load_site", "transition", "store_reports", "store_result"])], "Time of a call to the database.").reach(5.0),
    metric("whetstone_store_errors_total", Counter, "errors", &[open("category", &["locked", "full", "away", "corrupt", "schema", "conflict", "bug"])], "Failed calls to the database, by category."),
    metric("whetstone_store_bytes", Gauge, "bytes", &[], "Size of the database."),
    metric("whetstone_kube_errors_total", Counter, "errors", &[open("category", &["away", "server", "conflict", "forbidden", "throttled", "invalid", "not_found"])], "Failed calls to the Kubernetes API, by category."),
    metric("whetstone_certificate_expires_seconds", Gauge, "seconds", &[closed("certificate", &["ca", "server"])], "Time until a certificate of the site runs out: the first of the trusted CAs, and the operator's own, which it makes anew with 30 days left at the next connection."),
    metric("whetstone_memory_limit_bytes", Gauge, "bytes", &[], "Memory that the operator may use at most: its container's limit, or what the machine has."),
    metric("whetstone_build_info", Gauge, "1", &[open("version", &["0.1.0"])], "Always 1; the version is its label."),
    metric("process_resident_memory_bytes", Gauge, "bytes", &[], "Resident memory of the operator."),
    metric("process_cpu_seconds_total", Counter, "seconds", &[], "Processor time that the operator has used."),
    metric("process_open_fds", Gauge, "files", &[], "Open file descriptors of the operator."),
    metric("process_start_time_seconds", Gauge, "seconds", &[], "When the operator started, since the Unix epoch."),
    // Agents about themselves.
    metric("whetstone_agent_up_seconds", Gauge, "seconds", &[], "Time since the agent started.").agent(),
    // The same name as the operator's histogram, which has no series of just this name.
    metric("whetstone_agent_spool_items", Gauge, "items", &[], "Items that wait in the spool.").agent(),
    metric("whetstone_agent_spool_memory_items", Gauge, "items", &[], "Items of the spool that are in memory only, because the disk cannot be written.").agent(),
    metric("whetstone_agent_spool_bytes", Gauge, "bytes", &[], "Size of the spool on disk.").agent(),
    metric("whetstone_agent_spool_dropped_total", Counter, "items", &[], "Details that the spool dropped because it was full.").agent(),
    metric("whetstone_agent_spool_lost_findings_total", Counter, "items", &[], "Findings that the spool lost: no detail was left to drop and the disk was full. It never should.").agent(),
    metric("whetstone_agent_spool_torn_bytes_total", Counter, "bytes", &[], "Bytes of records that a crash or a full disk cut off.").agent(),
    metric("whetstone_agent_run_active", Gauge, "1", &[], "1 while a burn-in run goes on.").agent(),
    metric("whetstone_agent_reports_total", Counter, "reports", &[open("result", &["ok", "not_reached", "timeout", "untrusted", "unavailable", "refused", "certificate_refused", "garbled", "material"])], "Reports to the operator by what became of them.").agent(),
    metric("whetstone_agent_last_report_seconds", Gauge, "seconds", &[], "Time since the last report that the operator took.").agent(),
    metric("whetstone_agent_certificate_expires_seconds", Gauge, "seconds", &[], "Time until the agent's certificate expires; below 0 it has.").agent(),
    metric("whetstone_agent_findings", Gauge, "findings", &[closed("severity", &["info", "warning", "fault"])], "Findings that stand now.").agent(),
    metric("whetstone_agent_look_seconds", Gauge, "seconds", &[], "Time that the latest look at all devices took.").agent(),
    // This one too has the name of one of the operator's histograms.
    metric("whetstone_agent_resident_bytes", Gauge, "bytes", &[], "Resident memory of the agent.").agent(),
    metric("whetstone_agent_cpu_seconds_total", Counter, "seconds", &[], "Processor time that the agent has used.").agent(),
];

/// The metric that a series of this name belongs to. A histogram has no series of its own name, only of its parts
/// (`…_bucket`, `…_sum`, `…_count`).
pub fn series(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| match metric.kind {
        Counter | Gauge => metric.name == name,
        Histogram => {
            name.strip_prefix(metric.name).is_some_and(|part| matches!(part, "_bucket" | "_sum" | "_count"))
        }
    })
}

/// The metric of this name that `source` exports.
pub fn exported(name: &str, source: Source) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name && metric.source == source)
}

#[cfg(test)]
mod tests {
    use whetstone_model::lifecycle::{PhaseName, QuarantineReason};

    use super::*;

    #[test]
    fn names_follow_the_rule_and_stand_once_per_source() {
        let mut seen = std::collections::BTreeSet::new();
        for metric in METRICS {
            assert!(seen.insert((metric.name, metric.source)), "{} stands twice", metric.name);
            assert!(
                metric.name.starts_with("whetstone_") || metric.name.starts_with("process_"),
                "{}",
                metric.name
            );
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.') && metric.help.len() > 10, "{}: say what it is", metric.name);
            assert!(!metric.unit.is_empty(), "{}", metric.name);
            assert!(metric.reach == 0.0 || metric.kind == Histogram, "{}", metric.name);
            for label in metric.labels {
                assert!(!label.values.is_empty(), "{}: {}", metric.name, label.name);
                assert!(
                    !["serial", "blade", "node", "instance", "job"].contains(&label.name),
                    "{}",
                    metric.name
                );
            }
        }
    }

    #[test]
    fn metrics_of_burn_in_are_ones_that_agents_leave_samples_of() {
        let burnin = exported("whetstone_burnin_metric", Source::Operator).unwrap();
        let label = burnin.labels.iter().find(|label| label.name == "metric").unwrap();
        for name in label.values {
            assert!(
                whetstone_model::threshold::metric::find(name).is_some(),
                "{name} is measured by nothing"
            );
            assert!(SAMPLED.iter().any(|end| name.ends_with(end)), "no agent leaves samples of {name}");
        }
    }

    #[test]
    fn phases_and_reasons_are_those_of_the_model() {
        assert!(PHASES.iter().copied().eq(PhaseName::ALL.iter().map(|phase| phase.as_str())));
        assert!(REASONS.iter().copied().eq(QuarantineReason::ALL.iter().map(|reason| reason.as_str())));
    }

    #[test]
    fn a_series_is_found_by_the_name_that_prometheus_stores() {
        assert_eq!(series("whetstone_run_seconds_bucket").map(|m| m.kind), Some(Histogram));
        assert!(series("whetstone_run_seconds").is_none());
        assert_eq!(series("whetstone_agent_spool_items").map(|m| m.source), Some(Source::Agent));
        assert_eq!(series("whetstone_agent_spool_items_sum").map(|m| m.source), Some(Source::Operator));
        assert!(series("whetstone_blades_total").is_none());
    }
}
