//! The whole site on one page: is capacity coming in, is anything on fire.

use crate::expr::{latest, quantile, rate, total};
use crate::panel::{Dashboard, Draw, Panel, Row};

/// `site.json`.
pub fn dashboard() -> Dashboard {
    Dashboard {
        name: "site",
        title: "Whetstone / Site overview",
        description: "Where the blades of this site are, what holds them up, and whether anything needs a person now.",
        variables: vec![],
        rows: vec![
            Row { title: "Now", panels: now() },
            Row { title: "Blades", panels: blades() },
            Row { title: "Faults", panels: faults() },
        ],
    }
}

fn stat(title: &str, unit: &str, description: &str) -> Panel {
    Panel::new(Draw::Stat, title, unit, description)
}

fn now() -> Vec<Panel> {
    vec![
        stat("Blades in service", "short", "Blades that an owner has: they passed burn-in after their last doubt.")
            .target("in service", latest(r#"whetstone_blades{phase="InService"}"#, "")),
        stat("Blades ready", "short", "Proven and free: capacity that can be given out now.")
            .target("ready", latest(r#"whetstone_blades{phase="Ready"}"#, "")),
        stat("Blades burning in", "short", "Blades under test now.")
            .target("burning in", latest(r#"whetstone_blades{phase="BurningIn"}"#, "")),
        stat(
            "Blades quarantined",
            "short",
            "Withheld from service. Each has an open case and an exit; the reasons stand under Faults.",
        )
        .target("quarantined", latest(r#"whetstone_blades{phase="Quarantined"}"#, "")),
        stat(
            "Blades stuck",
            "short",
            "Past their phase's time limit: a person has to act. `whet explain BLADE` says who and what. \
             Playbooks: docs/playbooks/stuck-*.md.",
        )
        .target("stuck", "sum(".to_owned() + &latest("whetstone_blades_stuck", "phase") + ")")
        .limits(1.0, 10.0),
        stat(
            "Circuit breaker",
            "bool_on_off",
            "On: so many blades went bad at once that no further one is withheld until a person has looked. \
             Playbook: docs/playbooks/breaker-open.md.",
        )
        .target("breaker", latest("whetstone_breaker_open", ""))
        .limits(1.0, 1.0),
        stat("Agents live", "percentunit", "Part of the joined agents that were heard of lately.")
            .target(
                "live",
                format!(
                    "{} / clamp_min(sum({}), 1)",
                    latest(r#"whetstone_agents{state="live"}"#, ""),
                    latest("whetstone_agents", "state")
                ),
            )
            .floor(0.9, 0.98),
        stat(
            "Identity conflicts",
            "short",
            "Serials that two machines claim; both are held. Playbook: docs/playbooks/identity-conflict.md.",
        )
        .target("conflicts", latest("whetstone_identity_conflicts", ""))
        .limits(1.0, 1.0),
        stat(
            "Unexpected blades",
            "short",
            "Machines that asked to join and stand on no manifest. Playbook: docs/playbooks/unexpected-blades.md.",
        )
        .target("unexpected", latest("whetstone_unexpected_blades", ""))
        .limits(1.0, 10.0),
        stat(
            "Nodes without a blade",
            "short",
            "Nodes that carry our taint and that no Blade names: nothing will release them. \
             Playbook: docs/playbooks/nodes-without-blade.md.",
        )
        .target("nodes", latest("whetstone_nodes_without_blade", ""))
        .limits(1.0, 10.0),
        stat("Open cases", "short", "Faults that are not yet proven fixed under load.")
            .target("cases", "sum(".to_owned() + &latest("whetstone_cases_open", "reason") + ")"),
        stat(
            "Leaders",
            "short",
            "Operators that lead: exactly one. None: nothing is decided. Two: see docs/playbooks/two-leaders.md.",
        )
        .target("leaders", "sum(whetstone_leader)")
        .floor(1.0, 1.0),
        stat("Ready components", "percentunit", "Part of the operator's parts (store, Kubernetes, disk) that work now.")
            .target("ready", r#"sum(whetstone_ready{component!="leader"}) / count(whetstone_ready{component!="leader"})"#)
            .floor(1.0, 1.0),
    ]
}

fn blades() -> Vec<Panel> {
    vec![
        Panel::new(
            Draw::Stacked,
            "Blades by phase",
            "short",
            "All blades that stand on a manifest. A delivery moves from Expected through BurningIn to Ready; \
             a growing Quarantined band under a flat Ready band is a bad delivery.",
        )
        .target("{{phase}}", latest("whetstone_blades", "phase")),
        Panel::new(
            Draw::Timeseries,
            "Blades stuck by phase",
            "short",
            "Past the phase's time limit. Any that stays is a call to a person; each phase has its playbook.",
        )
        .target("{{phase}}", latest("whetstone_blades_stuck", "phase")),
        Panel::new(
            Draw::Timeseries,
            "Transitions",
            "cpm",
            "Changes of phase a minute by the phase that is entered: the pulse of the site.",
        )
        .target("to {{to}}", format!("60 * {}", rate("whetstone_transitions_total", "to"))),
        Panel::new(
            Draw::Table,
            "Tranches",
            "short",
            "Blades of each delivery by state now. `missing` are past the delivery date; `duplicate` belong to another \
             tranche already. Details: the tranche dashboard, and `whet tranche`.",
        )
        .target("{{tranche}} {{state}}", format!("{} > 0", latest("whetstone_tranche_blades", "tranche, state"))),
    ]
}

fn faults() -> Vec<Panel> {
    vec![
        Panel::new(
            Draw::BarGauge,
            "Open cases by reason",
            "short",
            "Why blades are withheld. `untestable` and `wrong-inventory` are work for the site, not for the supplier.",
        )
        .target("{{reason}}", latest("whetstone_cases_open", "reason")),
        Panel::new(
            Draw::BarGauge,
            "Verdicts in the range shown",
            "short",
            "Verdicts of burn-in by outcome. Inconclusive is never a pass and never a fail: it is tried again.",
        )
        .target("{{outcome}}", total("whetstone_verdicts_total", "outcome")),
        Panel::new(
            Draw::Timeseries,
            "Fault to taint",
            "s",
            "Time from evidence of a fault received to taint and cordon on the node. While it is high, new pods can \
             still land on bad blades. Playbook: docs/playbooks/withhold-slow.md.",
        )
        .target("p50", quantile(0.5, "whetstone_withhold_seconds", "", ""))
        .target("p99", quantile(0.99, "whetstone_withhold_seconds", "", ""))
        .limits(10.0, 30.0),
        Panel::new(
            Draw::Timeseries,
            "Withheld within the breaker's window",
            "short",
            "Blades that were withheld for faults lately. A step to the limit opens the breaker: look for one cause \
             (driver, firmware, fabric) before blaming the blades.",
        )
        .target("withheld", latest("whetstone_breaker_withheld", "")),
    ]
}
