//! The agents and the operator themselves.

use crate::expr::{buckets, latest, quantile, rate};
use crate::panel::{Dashboard, Draw, Panel, Row, Variable};

const OPERATOR: &str = r#"instance=~"$instance""#;

/// `health.json`.
pub fn dashboard() -> Dashboard {
    Dashboard {
        name: "health",
        title: "Whetstone / Agents and operator",
        description: "Whether Whetstone itself works: leader, loop, store, Kubernetes, intake, and the agents' cost.",
        variables: vec![Variable {
            name: "instance",
            title: "Operator",
            description: "Replicas of the operator to show",
            series: "whetstone_build_info",
            label: "instance",
        }],
        rows: vec![
            Row { title: "Operator", panels: operator() },
            Row { title: "Store and Kubernetes", panels: outside() },
            Row { title: "Intake", panels: intake() },
            Row { title: "Agents", panels: agents() },
            Row { title: "Agents about themselves (where they are scraped)", panels: scraped() },
        ],
    }
}

fn lines(title: &str, unit: &str, description: &str) -> Panel {
    Panel::new(Draw::Timeseries, title, unit, description).width(8)
}

/// A `process_*` series of the operator's replicas; every program has those names.
fn mine(series: &str) -> String {
    format!("max by (instance) ({series}{{{OPERATOR}}} and on (job, instance) whetstone_build_info)")
}

fn operator() -> Vec<Panel> {
    vec![
        lines("Leads", "short", "1 on the replica that leads. Exactly one line is at 1.")
            .target("{{instance}}", format!("max by (instance) (whetstone_leader{{{OPERATOR}}})")),
        lines("Ready", "short", "1 while a component works. `leader` is 0 on a replica that waits for its turn.")
            .target("{{instance}} {{component}}", format!("min by (instance, component) (whetstone_ready{{{OPERATOR}}})")),
        Panel::new(Draw::Table, "Versions", "short", "Version of each replica: two during an update only.")
            .target("{{instance}} {{version}}", format!("max by (instance, version) (whetstone_build_info{{{OPERATOR}}})"))
            .width(8),
        lines(
            "Turn of the loop",
            "s",
            "Look, plan, persist, apply. Every decision waits for it: docs/playbooks/reconcile-slow.md.",
        )
        .target("p50", quantile(0.5, "whetstone_reconcile_seconds", OPERATOR, ""))
        .target("p99", quantile(0.99, "whetstone_reconcile_seconds", OPERATOR, ""))
        .limits(10.0, 30.0),
        lines("Errors in the loop", "cps", "By category. The loop goes on; what failed is tried again at the next turn.")
            .target("{{category}}", rate(&format!("whetstone_reconcile_errors_total{{{OPERATOR}}}"), "category")),
        lines("Memory", "bytes", "Resident memory of each replica, and what it may use at most: there it is killed; docs/playbooks/operator-memory.md.")
            .target(
                "{{instance}}",
                mine("process_resident_memory_bytes"),
            )
            .target("{{instance}} may use", mine("whetstone_memory_limit_bytes"))
            .limits(3e9, 4e9),
        lines("Certificates of the site", "s", "Shortest time to the end of the CA and of the operator's own certificate, which is made anew with 30 days left: docs/playbooks/site-certificate.md.")
            .target("{{certificate}}", "min by (certificate) (whetstone_certificate_expires_seconds)"),
        lines("Up since", "dateTimeAsIso", "When each replica started. Replicas that start again and again: docs/playbooks/operator-absent.md.")
            .target("{{instance}}", format!("1000 * {}", mine("process_start_time_seconds"))),
        lines("Open files", "short", "File descriptors of each replica: connections of agents, mostly. Its limit has to be above the number of blades.")
            .target("{{instance}}", mine("process_open_fds")),
        lines("Processor", "percentunit", "Cores in use by each replica; 100 % is one core.").target(
            "{{instance}}",
            format!(
                "sum by (instance) (rate(process_cpu_seconds_total{{{OPERATOR}}}[$__rate_interval]) and on (job, instance) whetstone_build_info)"
            ),
        ),
    ]
}

fn outside() -> Vec<Panel> {
    vec![
        lines("Database calls", "s", "99th percentile by call: docs/playbooks/store-slow.md.")
            .target("{{op}} p99", quantile(0.99, "whetstone_store_seconds", "", "op"))
            .limits(1.0, 5.0),
        lines("Database errors", "cps", "By category: docs/playbooks/store-errors.md.")
            .target("{{category}}", rate("whetstone_store_errors_total", "category")),
        lines(
            "Database size",
            "bytes",
            "Raw evidence is thinned, verdicts and transitions stay: docs/playbooks/store-large.md.",
        )
        .target("size", "max(whetstone_store_bytes)")
        .limits(2e10, 4e10),
        lines(
            "Kubernetes errors",
            "cps",
            "Failed calls to the API by category: docs/playbooks/kube-errors.md.",
        )
        .target("{{category}}", rate("whetstone_kube_errors_total", "category")),
        lines("Changes to nodes", "reqps", "Taints and cordons set or taken off, by result.")
            .target("{{verb}} {{result}}", rate("whetstone_node_patches_total", "verb, result")),
    ]
}

fn intake() -> Vec<Panel> {
    vec![
        lines(
            "Requests",
            "reqps",
            "By route and HTTP status. 503 comes from a replica that does not lead, or a store that is away.",
        )
        .target("{{route}} {{code}}", rate("whetstone_intake_requests_total", "route, code")),
        lines("Time to answer", "s", "99th percentile by route.")
            .target("{{route}} p99", quantile(0.99, "whetstone_intake_request_seconds", "", "route")),
        lines("Waiting for the database", "short", "Reports in the intake's queue, and how many go into one transaction. A queue that stays is a store too slow: docs/playbooks/store-slow.md.")
            .target("queue", "max(whetstone_intake_queue_requests)")
            .target("batch p95", quantile(0.95, "whetstone_intake_batch_requests", "", "")),
        lines("Connections", "short", "Connections that agents hold open: about one for each live agent.")
            .target("{{instance}}", "max by (instance) (whetstone_intake_connections)"),
        lines("Evidence stored", "cps", "Items a second by kind, each counted once.")
            .target("{{kind}}", rate("whetstone_evidence_items_total", "kind")),
        lines(
            "Evidence sent again",
            "cps",
            "Items that were there already. A burst after an outage is normal.",
        )
        .target("duplicates", rate("whetstone_evidence_duplicates_total", "")),
        lines("Refused", "cps", "Requests refused by error code: docs/playbooks/evidence-refused.md.")
            .target("{{reason}}", rate("whetstone_evidence_refused_total", "reason")),
        lines("Handshakes failed", "cps", "TLS handshakes that failed, by cause, and refusals that were too many to audit one by one.")
            .target("{{cause}}", rate("whetstone_intake_handshakes_failed_total", "cause"))
            .target("not audited", rate("whetstone_audit_dropped_total", "")),
        lines("Joins", "cps", "Requests to join by result. Refused ones: wrong, old or unknown tokens.")
            .target("{{result}}", rate("whetstone_joins_total", "result")),
    ]
}

fn agents() -> Vec<Panel> {
    vec![
        Panel::new(Draw::Stacked, "Agents", "short", "Live, away (silent for too long), in conflict: docs/playbooks/agents-away.md.")
            .target("{{state}}", latest("whetstone_agents", "state"))
            .width(8),
        lines("Clock skew", "s", "Distance of agents' clocks from the operator's: docs/playbooks/clock-skew.md.")
            .target("p99", quantile(0.99, "whetstone_agent_clock_skew_seconds", "", ""))
            .target("largest", quantile(1.0, "whetstone_agent_clock_skew_seconds", "", ""))
            .limits(5.0, 10.0),
        lines("Details dropped", "cps", "Readings and notes lost to full spools; findings never are: docs/playbooks/evidence-dropped.md.")
            .target("dropped", rate("whetstone_agent_dropped_items_total", "")),
        lines("Resident memory of agents", "bytes", "The limit that agents are built for is 30 MiB.")
            .target("p50", quantile(0.5, "whetstone_agent_resident_bytes", "", ""))
            .target("p99", quantile(0.99, "whetstone_agent_resident_bytes", "", ""))
            .limits(31_457_280.0, 41_943_040.0),
        lines("Processor time of agents", "percentunit", "Part of one core. The limit that agents are built for is 0.3 %.")
            .target("p50", quantile(0.5, "whetstone_agent_cpu_ratio", "", ""))
            .target("p99", quantile(0.99, "whetstone_agent_cpu_ratio", "", ""))
            .limits(0.003, 0.01),
        Panel::new(Draw::Heatmap, "Spools", "short", "Items that waited in agents' spools at each report. A rising band: reports do not get through fast enough.")
            .target("{{le}}", buckets("whetstone_agent_spool_items", ""))
            .width(8),
    ]
}

fn scraped() -> Vec<Panel> {
    vec![
        lines("Reports", "reqps", "Reports of the scraped agents by result.")
            .target("{{result}}", rate("whetstone_agent_reports_total", "result")),
        lines("Time since the last report", "s", "The longest of all scraped agents.")
            .target("longest", "max(whetstone_agent_last_report_seconds)"),
        lines("Certificates", "s", "Shortest time to a certificate's end; agents renew with 8 h left: docs/playbooks/agent-certificate.md.")
            .target("shortest", "min(whetstone_agent_certificate_expires_seconds)"),
        lines("Findings that stand", "short", "Sum over the scraped agents by severity.")
            .target("{{severity}}", "sum by (severity) (whetstone_agent_findings)"),
        lines("Spool on disk", "bytes", "The fullest of all scraped agents.").target("fullest", "max(whetstone_agent_spool_bytes)"),
        lines("Items in spool", "short", "The fullest of all scraped agents; in memory only where its disk cannot be written.")
            .target("fullest", "max(whetstone_agent_spool_items)")
            .target("in memory", "max(whetstone_agent_spool_memory_items)"),
        lines("Spool drops", "cps", "Details dropped, findings lost (never, on a healthy disk: docs/playbooks/evidence-dropped.md), over the scraped agents.")
            .target("details", rate("whetstone_agent_spool_dropped_total", ""))
            .target("findings", rate("whetstone_agent_spool_lost_findings_total", "")),
        lines("Torn records", "binBps", "Bytes of spool records that a crash or a full disk cut off.")
            .target("torn", rate("whetstone_agent_spool_torn_bytes_total", "")),
        lines("Runs on scraped agents", "short", "Agents that have a burn-in run going on.")
            .target("running", "sum(whetstone_agent_run_active)"),
        lines("Largest scraped agent", "bytes", "Resident memory of the largest of the scraped agents; built for 30 MiB.")
            .target("largest", "max(whetstone_agent_resident_bytes)")
            .limits(31_457_280.0, 41_943_040.0),
        lines("Busiest scraped agent", "percentunit", "Part of a core of the busiest of the scraped agents; built for 0.3 %.")
            .target("busiest", "max(rate(whetstone_agent_cpu_seconds_total[$__rate_interval]))"),
        lines("Time of a look", "s", "Slowest look at all devices of a blade; a driver that hangs shows here first.")
            .target("slowest", "max(whetstone_agent_look_seconds)"),
        lines("Youngest agent", "s", "Time since the agent that started last did. A saw tooth is a restart loop.")
            .target("youngest", "min(whetstone_agent_up_seconds)"),
    ]
}
