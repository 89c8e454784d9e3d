//! One delivery, or several: how far it is, what it yields, what holds it up.

use crate::expr::{latest, quantile, rate, total};
use crate::panel::{Dashboard, Draw, Panel, Row, Variable};

/// `tranche.json`.
pub fn dashboard() -> Dashboard {
    Dashboard {
        name: "tranche",
        title: "Whetstone / Tranche",
        description: "Acceptance of deliveries: progress, yield, what is missing, and how the burn-in runs go.",
        variables: vec![Variable {
            name: "tranche",
            title: "Tranche",
            description: "Deliveries to show",
            series: "whetstone_tranche_blades",
            label: "tranche",
        }],
        rows: vec![
            Row { title: "Progress", panels: progress() },
            Row { title: "Runs (all tranches)", panels: runs() },
        ],
    }
}

fn blades(states: &str, by: &str) -> String {
    latest(&format!(r#"whetstone_tranche_blades{{tranche=~"$tranche",state=~"{states}"}}"#), by)
}

fn sum(states: &str) -> String {
    format!("sum by (tranche) ({})", blades(states, "tranche, state"))
}

fn progress() -> Vec<Panel> {
    // Everything that was on the manifest, duplicates left out: they are another tranche's blades.
    let decided = sum("ready|in_service|quarantined|retired");
    let open = sum("expected|discovered|preparing|burning_in|comparing|other");
    let passed = sum("ready|in_service");
    vec![
        Panel::new(
            Draw::BarGauge,
            "Decided",
            "percentunit",
            "Part of the tranche's blades that have passed, are quarantined or went back. At 100 % the tranche is stable \
             and `whet tranche report` gives the acceptance report.",
        )
        .target("{{tranche}}", format!("{decided} / clamp_min({decided} + {open}, 1)"))
        .max(1.0)
        .height(6),
        Panel::new(
            Draw::BarGauge,
            "Yield",
            "percentunit",
            "Part of the decided blades that passed. Below 80 % with eight or more decided, an alert is raised: \
             docs/playbooks/tranche-fail-rate.md.",
        )
        .target("{{tranche}}", format!("{passed} / clamp_min({decided}, 1)"))
        .floor(0.8, 0.95)
        .max(1.0)
        .height(6),
        Panel::new(
            Draw::Stacked,
            "Blades by state",
            "short",
            "From expected through discovered, preparing (they wait for a place, power or a person), burning_in and \
             comparing (burnt in, they wait for the others) to ready or quarantined. Flat bands with blades in discovered \
             or preparing and none in burning_in mean that nothing moves: docs/playbooks/tranche-not-progressing.md.",
        )
        .target("{{tranche}} {{state}}", blades(".*", "tranche, state"))
        .width(24),
        Panel::new(
            Draw::Table,
            "Blades",
            "short",
            "Counts by tranche and state now, those that are not 0. `kubectl get tranches` shows the same.",
        )
        .target("{{tranche}} {{state}}", format!("{} > 0", blades(".*", "tranche, state"))),
        Panel::new(
            Draw::Timeseries,
            "Missing and duplicate serials",
            "short",
            "Missing: on the manifest, past the delivery date, never heard of. Duplicates: on two manifests. Both go back \
             to the supplier with the acceptance report.",
        )
        .target("{{tranche}} {{state}}", blades("missing|duplicate", "tranche, state")),
    ]
}

fn runs() -> Vec<Panel> {
    vec![
        Panel::new(
            Draw::Timeseries,
            "Runs going on",
            "short",
            "Ordered: given out, not taken up by the agent yet. Running: under test. What holds it down is the tranche's \
             concurrency or its power budget, see `whet explain`.",
        )
        .target("{{state}}", latest("whetstone_runs", "state")),
        Panel::new(
            Draw::BarGauge,
            "Runs that ended in the range shown",
            "short",
            "By suite and outcome. Lost ones were not heard of any more: docs/playbooks/runs-lost.md.",
        )
        .target("{{suite}} {{outcome}}", total("whetstone_runs_total", "suite, outcome")),
        Panel::new(
            Draw::Timeseries,
            "Time of a run",
            "s",
            "From start to result, by suite. Much longer than the suite's budget: blades are throttled, or results do not \
             get through.",
        )
        .target("{{suite}} p50", quantile(0.5, "whetstone_run_seconds", "", "suite"))
        .target("{{suite}} p95", quantile(0.95, "whetstone_run_seconds", "", "suite")),
        Panel::new(
            Draw::Timeseries,
            "Verdicts by hour",
            "short",
            "Verdicts an hour by outcome and reason. One reason that fills the picture is one cause.",
        )
        .target("{{outcome}} {{reason}}", format!("3600 * {}", rate("whetstone_verdicts_total", "outcome, reason"))),
    ]
}
