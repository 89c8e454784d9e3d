//! `docs/operator-metrics.md`, written from the catalogue.

use std::fmt::Write;

use whetstone_model::lifecycle::PhaseName;

use crate::catalogue::{METRICS, Source};

const HEAD: &str = "# Metrics of the operator and the agents

Written by `whetstone-dashboards generate` from `dashboards/src/catalogue.rs`; change that and run it again. What burn-in and probes
*measure* stands in [metrics.md](metrics.md); this page is about Whetstone itself. Dashboards: `dashboards/grafana`, alert rules:
`dashboards/alerts`, what to do: [playbooks](playbooks/README.md).

- Labels never carry a serial or a blade's name: the number of series does not grow with the site. `whet explain BLADE` has the single blade.
- *Leader*: only the value of the replica with `whetstone_leader` 1 counts.
- A histogram's greatest finite bucket is at least the value under *reach*: an alert or a panel has a limit there.
- *Values* that end in `…` are examples; others are complete.
";

/// The page.
pub fn page() -> String {
    let mut page = String::from(HEAD);
    for (source, title) in [
        (Source::Operator, "Operator (`/metrics` of its HTTP port)"),
        (Source::Agent, "Agent (with `--metrics ADDR`; off by default)"),
    ] {
        let _ = write!(
            page,
            "\n## {title}\n\n| Metric | Type | Unit | Labels and values | Meaning |\n|---|---|---|---|---|\n"
        );
        for metric in METRICS.iter().filter(|metric| metric.source == source) {
            let labels: Vec<String> = metric
                .labels
                .iter()
                .map(|label| {
                    // Eleven names that every reader knows.
                    let phases =
                        label.values.iter().copied().eq(PhaseName::ALL.iter().map(|phase| phase.as_str()));
                    let values = if phases { "a phase".into() } else { label.values.join(", ") };
                    format!("`{}`: {values}{}", label.name, if label.closed { "" } else { ", …" })
                })
                .collect();
            let reach = if metric.reach > 0.0 { format!(" Reach {}.", metric.reach) } else { String::new() };
            let leader = if metric.leader { " Leader." } else { "" };
            let _ = writeln!(
                page,
                "| `{}` | {} | {} | {} | {}{reach}{leader} |",
                metric.name,
                metric.kind.as_str(),
                metric.unit,
                labels.join("; "),
                metric.help
            );
        }
    }
    page
}
