//! Alert rules. Each says what a person would see, and leads to a page under docs/playbooks.

use serde::Serialize;

use crate::expr::{latest, led};

/// How fast a person has to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Now: tenants are at risk, or nothing is decided any more.
    Critical,
    /// This working day.
    Warning,
}

/// Where a rule's page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runbook {
    /// `<base>/<name>.md`
    Page(&'static str),
    /// One page per phase: `<base>/stuck-<phase>.md`, by the alert's label `phase`.
    Phase,
}

/// One rule.
#[derive(Debug, Clone)]
pub struct Alert {
    pub name: &'static str,
    pub group: &'static str,
    pub severity: Severity,
    pub expr: String,
    /// What the expression measures, without its limits: it has a value on every healthy site.
    pub signals: Vec<String>,
    /// Has to be true for as long.
    pub hold: &'static str,
    pub summary: &'static str,
    pub description: &'static str,
    pub runbook: Runbook,
}

/// The phase of a label in the form that file names have: `BurningIn` → `burning-in`.
const PHASE_SLUG: &str = r#"{{ reReplaceAll "([a-z])([A-Z])" "$1-$2" $labels.phase | toLower }}"#;

impl Alert {
    /// The page's address below `base`, as it stands in the rule (a template, for [`Runbook::Phase`]).
    pub fn runbook_url(&self, base: &str) -> String {
        let base = base.trim_end_matches('/');
        match self.runbook {
            Runbook::Page(name) => format!("{base}/{name}.md"),
            Runbook::Phase => format!("{base}/stuck-{PHASE_SLUG}.md"),
        }
    }
}

/// `signal op limit` with one signal.
fn over(signal: String, limit: &str) -> (String, Vec<String>) {
    (format!("{signal} {limit}"), vec![signal])
}

struct Text(&'static str, &'static str);

fn alert(
    (group, name, severity, hold): (&'static str, &'static str, Severity, &'static str),
    (expr, signals): (String, Vec<String>),
    Text(summary, description): Text,
    page: &'static str,
) -> Alert {
    Alert { name, group, severity, expr, signals, hold, summary, description, runbook: Runbook::Page(page) }
}

/// All of them.
pub fn all() -> Vec<Alert> {
    let mut alerts = blades();
    alerts.extend(evidence());
    alerts.extend(operator());
    alerts.extend(dependencies());
    alerts
}

use Severity::{Critical, Warning};

fn blades() -> Vec<Alert> {
    let state = |states: &str| {
        let series = format!(r#"whetstone_tranche_blades{{state=~"{states}"}}"#);
        format!("sum by (tranche) ({})", latest(&series, "tranche, state"))
    };
    let (waiting, burning) = (state("discovered|preparing"), state("burning_in"));
    let (failed, decided) = (state("quarantined"), state("ready|in_service|quarantined"));
    let moved = format!("sum by (tranche) ({})", led("changes(whetstone_tranche_blades[2h])"));
    let stuck = over(latest("whetstone_blades_stuck", "phase"), "> 0");
    let lost = r#"sum(increase(whetstone_runs_total{outcome="lost"}[1h]))"#;
    let ended = "sum(increase(whetstone_runs_total[1h]))";
    vec![
        Alert {
            runbook: Runbook::Phase,
            ..alert(
                ("blades", "WhetstoneBladesStuck", Warning, "5m"),
                stuck,
                Text(
                    "{{ $value }} blades stuck in {{ $labels.phase }}",
                    "They are past the phase's time limit. `whet explain BLADE` says what each waits for and who has to act.",
                ),
                "",
            )
        },
        alert(
            ("blades", "WhetstoneIdentityConflict", Critical, "0m"),
            over(latest("whetstone_identity_conflicts", ""), "> 0"),
            Text(
                "{{ $value }} serials are claimed by two machines each",
                "A cloned disk, a board that moved, or somebody who pretends. Both machines are held and give no verdict \
                 until a person says which one is right.",
            ),
            "identity-conflict",
        ),
        alert(
            ("blades", "WhetstoneBreakerOpen", Critical, "0m"),
            over(latest("whetstone_breaker_open", ""), "> 0"),
            Text(
                "The circuit breaker holds back further quarantines",
                "So many blades went bad at once that one common cause is likely. Blades that fault from now on stay in \
                 service until a person has looked.",
            ),
            "breaker-open",
        ),
        alert(
            ("blades", "WhetstoneUnexpectedBlades", Warning, "10m"),
            over(latest("whetstone_unexpected_blades", ""), "> 0"),
            Text(
                "{{ $value }} machines asked to join that stand on no manifest",
                "A manifest that lacks them, a serial with a slip, or a machine that does not belong here.",
            ),
            "unexpected-blades",
        ),
        alert(
            ("blades", "WhetstoneNodesWithoutBlade", Warning, "30m"),
            over(latest("whetstone_nodes_without_blade", ""), "> 0"),
            Text(
                "{{ $value }} nodes are withheld and are no Blade's",
                "They carry our taint and no Blade names them, so nothing will ever release them: a node that joined without \
                 a manifest (autoscaled), or a slip in a name.",
            ),
            "nodes-without-blade",
        ),
        alert(
            ("blades", "WhetstoneTrancheNotProgressing", Warning, "30m"),
            (
                format!("{waiting} > 0 unless ({burning} > 0) unless ({moved} > 0)"),
                vec![waiting.clone(), burning, moved],
            ),
            Text(
                "Tranche {{ $labels.tranche }} stands still with {{ $value }} blades waiting",
                "Blades have joined and wait, none burns in, and nothing changed for two hours: paused, or a budget that lets \
                 nothing through.",
            ),
            "tranche-not-progressing",
        ),
        alert(
            ("blades", "WhetstoneTrancheFailRate", Warning, "10m"),
            (format!("({failed} / {decided}) > 0.2 and {decided} >= 8"), vec![failed, decided.clone()]),
            Text(
                "{{ $value | humanizePercentage }} of tranche {{ $labels.tranche }} is quarantined",
                "More than a fifth of the blades that are decided. One cause (firmware, driver, cooling of a row) is \
                 likelier than so many bad blades.",
            ),
            "tranche-fail-rate",
        ),
        alert(
            ("blades", "WhetstoneRunsLost", Warning, "10m"),
            (format!("{lost} / clamp_min({ended}, 1) > 0.05 and {lost} >= 3"), vec![ended.to_owned()]),
            Text(
                "{{ $value | humanizePercentage }} of the burn-in runs of the last hour were lost",
                "Their agents were not heard of any more. The runs are tried again; the cause is agents, network or power, \
                 seldom the GPUs.",
            ),
            "runs-lost",
        ),
        alert(
            ("blades", "WhetstoneDrainsBlocked", Warning, "15m"),
            over(latest(r#"whetstone_drains{state="blocked"}"#, ""), "> 0"),
            Text(
                "{{ $value }} drains are blocked",
                "A pod cannot be moved away, mostly because of its PodDisruptionBudget. `whet explain BLADE` names the pod.",
            ),
            "drains-blocked",
        ),
        alert(
            ("blades", "WhetstoneWithholdSlow", Critical, "5m"),
            over(
                "histogram_quantile(0.99, sum by (le) (rate(whetstone_withhold_seconds_bucket[15m])))".into(),
                "> 20",
            ),
            Text(
                "It takes {{ $value | humanizeDuration }} from a fault to the taint",
                "Until then new pods can land on a bad blade.",
            ),
            "withhold-slow",
        ),
    ]
}

fn evidence() -> Vec<Alert> {
    let agents = format!("sum({})", latest("whetstone_agents", "state"));
    let away = latest(r#"whetstone_agents{state="away"}"#, "");
    vec![
        alert(
            ("evidence", "WhetstoneAgentsAway", Warning, "10m"),
            (format!("{away} / clamp_min({agents}, 1) > 0.02 and {away} >= 2"), vec![away, agents]),
            Text(
                "{{ $value | humanizePercentage }} of the agents are away",
                "They joined once and are silent now. Their faults are not seen and their burn-ins do not start. They keep \
                 their evidence and send it when they are back.",
            ),
            "agents-away",
        ),
        alert(
            ("evidence", "WhetstoneEvidenceRefused", Warning, "5m"),
            // A replica that does not lead refuses all, and the store's own troubles have their own alerts.
            over(
                r#"sum by (reason) (increase(whetstone_evidence_refused_total{reason!~"not-leading|store"}[15m]))"#.into(),
                "> 5",
            ),
            Text(
                "The intake refuses evidence: {{ $labels.reason }}",
                "{{ $value | humanize }} requests within 15 minutes. The audit in the store says who was refused.",
            ),
            "evidence-refused",
        ),
        alert(
            ("evidence", "WhetstoneEvidenceDropped", Warning, "5m"),
            over("sum(increase(whetstone_agent_dropped_items_total[30m]))".into(), "> 0"),
            Text(
                "Agents dropped {{ $value | humanize }} readings because their spools are full",
                "Findings are kept, so no verdict is at risk; the history of readings has a gap.",
            ),
            "evidence-dropped",
        ),
        alert(
            ("evidence", "WhetstoneFindingsLost", Critical, "0m"),
            over("sum(increase(whetstone_agent_spool_lost_findings_total[1h]))".into(), "> 0"),
            Text(
                "Agents lost {{ $value | humanize }} findings",
                "A spool was full of findings alone, or its disk failed. Faults may be unknown to the operator.",
            ),
            "evidence-dropped",
        ),
        alert(
            ("evidence", "WhetstoneClockSkew", Warning, "15m"),
            // The quantile 1 is the upper bound of the highest bucket that anything fell into: one blade is enough.
            over(
                "histogram_quantile(1, sum by (le) (increase(whetstone_agent_clock_skew_seconds_bucket[15m])))".into(),
                "> 10",
            ),
            Text(
                "A blade's clock is up to {{ $value | humanizeDuration }} off",
                "No verdict rests on blades' clocks, but certificates, tenants' jobs and every log do.",
            ),
            "clock-skew",
        ),
        alert(
            ("evidence", "WhetstoneAgentCertificateExpiring", Warning, "10m"),
            (
                "count(whetstone_agent_certificate_expires_seconds < 21600) > 0".into(),
                vec!["count(whetstone_agent_certificate_expires_seconds)".into()],
            ),
            Text(
                "{{ $value }} agents have less than 6 h left on their certificates",
                "They should have renewed with 8 h left. Without a valid certificate an agent is not heard.",
            ),
            "agent-certificate",
        ),
    ]
}

fn operator() -> Vec<Alert> {
    let memory =
        "max by (job, instance) (process_resident_memory_bytes and on (job, instance) whetstone_build_info)";
    let limit = "max by (job, instance) (whetstone_memory_limit_bytes)";
    let left = "min by (certificate) (whetstone_certificate_expires_seconds)";
    let left_of = |certificate: &str| {
        format!(
            r#"min by (certificate) (whetstone_certificate_expires_seconds{{certificate="{certificate}"}})"#
        )
    };
    vec![
        alert(
            ("operator", "WhetstoneOperatorAbsent", Critical, "5m"),
            ("absent(whetstone_build_info)".into(), vec!["whetstone_build_info".into()]),
            Text(
                "No operator is scraped",
                "None runs, or Prometheus does not find it. Nothing is decided and no evidence is taken in; agents keep theirs.",
            ),
            "operator-absent",
        ),
        alert(
            ("operator", "WhetstoneNoLeader", Critical, "2m"),
            over("sum(whetstone_leader)".into(), "== 0"),
            Text(
                "No operator leads",
                "Replicas run, none decides: no blade is burned in, withheld or released.",
            ),
            "no-leader",
        ),
        alert(
            ("operator", "WhetstoneTwoLeaders", Critical, "1m"),
            over("sum(whetstone_leader)".into(), "> 1"),
            Text(
                "{{ $value }} operators think that they lead",
                "Longer than a hand-over takes. The store lets only one of them write a blade's phase, but taints and runs \
                 may be ordered twice.",
            ),
            "two-leaders",
        ),
        alert(
            ("operator", "WhetstoneOperatorNotReady", Critical, "5m"),
            over(r#"min by (component, instance) (whetstone_ready{component!="leader"})"#.into(), "== 0"),
            Text(
                "Operator {{ $labels.instance }}: {{ $labels.component }} does not work",
                "`/readyz` of the operator says why. It keeps what it has and goes on by itself once this works again.",
            ),
            "operator-not-ready",
        ),
        alert(
            ("operator", "WhetstoneReconcileErrors", Warning, "15m"),
            over("sum by (category) (increase(whetstone_reconcile_errors_total[15m]))".into(), "> 5"),
            Text(
                "Errors in the operator's loop: {{ $labels.category }}",
                "{{ $value | humanize }} within 15 minutes. Other blades go on; the ones concerned wait.",
            ),
            "reconcile-errors",
        ),
        alert(
            ("operator", "WhetstoneReconcileSlow", Warning, "10m"),
            over(
                "histogram_quantile(0.99, sum by (le) (rate(whetstone_reconcile_seconds_bucket[10m])))"
                    .into(),
                "> 10",
            ),
            Text(
                "A turn of the operator's loop takes {{ $value | humanizeDuration }}",
                "Every decision waits for the loop.",
            ),
            "reconcile-slow",
        ),
        alert(
            ("operator", "WhetstoneReconcileStalled", Critical, "5m"),
            over(
                "sum(rate(whetstone_reconcile_seconds_count[5m]))".into(),
                "== 0 and on () (sum(whetstone_leader) > 0)",
            ),
            Text(
                "The operator leads and its loop does not turn",
                "A call that never comes back, most likely. Nothing is decided.",
            ),
            "reconcile-slow",
        ),
        alert(
            ("operator", "WhetstoneOperatorMemory", Warning, "15m"),
            // What it may use decides when it is killed; where that is much, it is still built for less than 5 GB.
            (
                format!("({memory} > 0.85 * {limit}) or ({memory} > 4e9)"),
                vec![memory.to_owned(), limit.to_owned()],
            ),
            Text(
                "Operator {{ $labels.instance }} uses {{ $value | humanize1024 }}B of memory",
                "That is more than 85 % of what its container may use, where it is killed, or more than 4 GB: it is built for \
                 less than 5 GB with 100,000 blades.",
            ),
            "operator-memory",
        ),
        alert(
            ("operator", "WhetstoneSiteCertificateExpiring", Warning, "1h"),
            (
                format!("({} < 7776000) or ({} < 1209600)", left_of("ca"), left_of("server")),
                vec![left.to_owned()],
            ),
            Text(
                "The site's {{ $labels.certificate }} certificate runs out in {{ $value | humanizeDuration }}",
                "The CA has less than 90 days left, or the operator did not renew its own certificate. When one has run out, \
                 no agent reaches the operator.",
            ),
            "site-certificate",
        ),
    ]
}

fn dependencies() -> Vec<Alert> {
    vec![
        alert(
            ("dependencies", "WhetstoneStoreErrors", Critical, "5m"),
            over("sum by (category) (increase(whetstone_store_errors_total[10m]))".into(), "> 3"),
            Text(
                "The database refuses: {{ $labels.category }}",
                "{{ $value | humanize }} failed calls within 10 minutes. Evidence waits in agents' spools; nothing is lost for a day.",
            ),
            "store-errors",
        ),
        alert(
            ("dependencies", "WhetstoneStoreSlow", Warning, "10m"),
            over(
                "histogram_quantile(0.99, sum by (le, op) (rate(whetstone_store_seconds_bucket[10m])))"
                    .into(),
                "> 2",
            ),
            Text(
                "Database call {{ $labels.op }} takes {{ $value | humanizeDuration }}",
                "99 % are faster than this. Intake and loop slow down with it.",
            ),
            "store-slow",
        ),
        alert(
            ("dependencies", "WhetstoneStoreLarge", Warning, "1h"),
            over("max(whetstone_store_bytes)".into(), "> 4e10"),
            Text(
                "The database has grown to {{ $value | humanize1024 }}B",
                "Raw evidence is thinned by age, verdicts and transitions are kept for ever. Check the retention and the disk.",
            ),
            "store-large",
        ),
        alert(
            ("dependencies", "WhetstoneKubeErrors", Warning, "10m"),
            over("sum by (category) (increase(whetstone_kube_errors_total[10m]))".into(), "> 10"),
            Text(
                "Calls to the Kubernetes API fail: {{ $labels.category }}",
                "{{ $value | humanize }} within 10 minutes. Taints, cordons and status are late.",
            ),
            "kube-errors",
        ),
    ]
}
