//! Blades as a fleet: where they are held up, and why. A single blade is not in Prometheus: labels never carry a serial.

use crate::expr::{buckets, latest, quantile, rate, total};
use crate::panel::{Dashboard, Draw, Panel, Row, Variable};

const PHASES: &str = r#"phase=~"$phase""#;

/// `blade.json`.
pub fn dashboard() -> Dashboard {
    Dashboard {
        name: "blade",
        title: "Whetstone / Blades",
        description: "The lifecycle of blades over the whole fleet: phases, time in phase, transitions, cases, drains.",
        variables: vec![Variable {
            name: "phase",
            title: "Phase",
            description: "Phases to show",
            series: "whetstone_blades",
            label: "phase",
        }],
        rows: vec![
            Row { title: "One blade", panels: vec![one_blade()] },
            Row { title: "Phases", panels: phases() },
            Row { title: "Out of service", panels: out_of_service() },
        ],
    }
}

fn one_blade() -> Panel {
    Panel::text(
        "Where is one blade?",
        "How to find the single blade: its data is in the site's store, not in Prometheus.",
        "Metrics carry no serial and no blade name, so that their number does not grow with the site. The single blade is one \
         command away:\n\n\
         - `whet explain BLADE` says where it is, since when, what it waits for and who has to act, then its history\n\
         - `whet blades` lists blades with phase, reason and age; `kubectl get blades` does the same\n\
         - `kubectl describe blade BLADE` shows conditions and events\n",
    )
    .height(5)
}

fn phases() -> Vec<Panel> {
    vec![
        Panel::new(Draw::Stacked, "Blades in phase", "short", "Blades by phase over time.")
            .target("{{phase}}", latest(&format!("whetstone_blades{{{PHASES}}}"), "phase")),
        Panel::new(
            Draw::BarGauge,
            "Stuck in phase",
            "short",
            "Blades past their phase's time limit now. Each phase has its page under docs/playbooks/stuck-*.md.",
        )
        .target("{{phase}}", latest(&format!("whetstone_blades_stuck{{{PHASES}}}"), "phase"))
        .limits(1.0, 10.0),
        Panel::new(
            Draw::Timeseries,
            "Time in phase",
            "s",
            "How long blades were in a phase when they left it, 95th percentile. It shows a slow station before blades \
             there count as stuck.",
        )
        .target("{{phase}} p95", quantile(0.95, "whetstone_phase_seconds", PHASES, "phase")),
        Panel::new(
            Draw::Heatmap,
            "Spread of the time in phase",
            "s",
            "Blades that left the chosen phases, by the time that they had been there. Two bands mean two kinds of blade, \
             or a station that works in batches.",
        )
        .target("{{le}}", buckets("whetstone_phase_seconds", PHASES)),
        Panel::new(
            Draw::Table,
            "Transitions in the range shown",
            "short",
            "How many blades went from which phase to which. Loops (Quarantined → BurningIn → Quarantined) are repairs \
             that do not repair.",
        )
        .target("{{from}} → {{to}}", format!("{} > 0", total("whetstone_transitions_total", "from, to")))
        .width(24),
    ]
}

fn out_of_service() -> Vec<Panel> {
    vec![
        Panel::new(
            Draw::Timeseries,
            "Open cases by reason",
            "short",
            "Cases that are open, by the reason of the quarantine.",
        )
        .target("{{reason}}", latest("whetstone_cases_open", "reason")),
        Panel::new(
            Draw::Heatmap,
            "Fault to taint",
            "s",
            "Time from evidence of a fault received to taint and cordon on the node. Without blades that the circuit breaker held back.",
        )
        .target("{{le}}", buckets("whetstone_withhold_seconds", "")),
        Panel::new(
            Draw::Timeseries,
            "Taints and cordons",
            "reqps",
            "Changes to nodes a second. Errors: see docs/playbooks/kube-errors.md.",
        )
        .target("{{verb}} {{result}}", rate("whetstone_node_patches_total", "verb, result")),
        Panel::new(
            Draw::Timeseries,
            "Drains",
            "short",
            "Going: pods are being moved. Blocked: a pod or its disruption budget holds, \
             see docs/playbooks/drains-blocked.md.",
        )
        .target("{{state}}", latest("whetstone_drains", "state")),
    ]
}
