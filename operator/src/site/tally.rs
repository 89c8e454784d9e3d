//! Counts the site for the metrics.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use tracing::warn;
use whetstone_api::node::TAINT;
use whetstone_model::ids::TrancheName;
use whetstone_model::lifecycle::{PhaseName, QuarantineReason};
use whetstone_plan::{Breaker, Plan, RunState};

use super::Parts;
use super::memory::Memory;
use crate::cluster::node::unmanaged;
use crate::metrics::Metrics;

/// Names in one line of the log.
const NAMED: usize = 5;

pub fn breaker(metrics: &Metrics, breaker: &Breaker) {
    metrics.breaker_open.set(i64::from(breaker.open));
    metrics.breaker_withheld.set(i64::try_from(breaker.withheld).unwrap_or(i64::MAX));
}

fn n(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// What a tranche's phases alone do not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Waiting {
    /// Would burn in, and waits for a place, for power or for a person.
    preparing: usize,
    /// Burnt in, and waits to be compared with the tranche's other blades.
    comparing: usize,
}

/// By tranche; of each blade its tranche, its phase and the state of its run.
fn waiting<'a>(
    blades: impl Iterator<Item = (&'a TrancheName, PhaseName, Option<&'a RunState>)>,
) -> HashMap<&'a TrancheName, Waiting> {
    let mut tranches: HashMap<&TrancheName, Waiting> = HashMap::new();
    for (tranche, phase, run) in blades {
        let ended = matches!(run, Some(RunState::Finished { .. }));
        match phase {
            PhaseName::Preparing => tranches.entry(tranche).or_default().preparing += 1,
            PhaseName::BurningIn if ended => tranches.entry(tranche).or_default().comparing += 1,
            _ => {}
        }
    }
    tranches
}

/// Names of the nodes that carry our taint and that nobody will ever take it off: no blade is called so. A person may have
/// taken a node out of our hands.
fn without_blade(nodes: &[Arc<Node>], is_blade: impl Fn(&str) -> bool) -> Vec<String> {
    let tainted = |node: &Node| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == TAINT))
    };
    let stray = nodes.iter().filter(|node| tainted(node) && !unmanaged(node));
    stray.map(|node| node.name_any()).filter(|name| !is_blade(name)).collect()
}

fn nodes(parts: &Parts, memory: &Memory) {
    // An object that cannot be understood is a blade too: it is told of elsewhere.
    let is_blade = |name: &str| memory.by_node(name).next().is_some() || parts.seen.blade(name).is_some();
    let stray = without_blade(&parts.seen.nodes(), is_blade);
    let before = parts.metrics.nodes_without_blade.get();
    parts.metrics.nodes_without_blade.set(n(stray.len()));
    if n(stray.len()) > before {
        let some = stray.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        warn!(nodes = stray.len(), some, "nodes are withheld and are no blade of any tranche");
    }
}

/// Counts everything; called with each whole plan.
pub async fn site(parts: &Parts, memory: &Memory, plan: &Plan, now_ms: i64) {
    let metrics = &parts.metrics;
    let mut phases: BTreeMap<PhaseName, i64> = PhaseName::ALL.into_iter().map(|phase| (phase, 0)).collect();
    let mut stuck = phases.clone();
    let mut agents = BTreeMap::from([("live", 0), ("away", 0), ("conflict", 0)]);
    let mut runs = BTreeMap::from([("ordered", 0), ("running", 0)]);
    let mut cases: BTreeMap<&str, i64> = QuarantineReason::ALL.into_iter().map(|r| (r.as_str(), 0)).collect();
    for blade in memory.site.blades.values() {
        *phases.entry(blade.phase.name()).or_default() += 1;
        if blade.agent.conflict.is_some() {
            *agents.entry("conflict").or_default() += 1;
        } else if blade.agent.joined {
            let limits = &memory.site.limits;
            // Silence counts from when there was somebody to listen.
            let heard_ms = blade.agent.last_seen_ms.map(|seen| seen.max(limits.listening_since_ms));
            let live = heard_ms.is_some_and(|heard_ms| now_ms - heard_ms <= limits.agent_away_ms);
            *agents.entry(if live { "live" } else { "away" }).or_default() += 1;
        }
        match blade.run.as_ref().map(|run| &run.state) {
            Some(RunState::Ordered) => *runs.entry("ordered").or_default() += 1,
            Some(RunState::Running) => *runs.entry("running").or_default() += 1,
            _ => {}
        }
    }
    for row in memory.rows.values() {
        for case in &row.cases {
            let reason = QuarantineReason::ALL.into_iter().find(|reason| reason.as_str() == case.reason);
            *cases.entry(reason.map_or("other", QuarantineReason::as_str)).or_default() += 1;
        }
    }
    for blade in plan.blades.iter().filter(|blade| blade.stuck.is_some()) {
        if let Some(view) = memory.site.blades.get(&blade.serial) {
            *stuck.entry(view.phase.name()).or_default() += 1;
        }
    }
    for (phase, count) in phases {
        metrics.blades.with_label_values(&[phase.as_str()]).set(count);
    }
    for (phase, count) in stuck {
        metrics.blades_stuck.with_label_values(&[phase.as_str()]).set(count);
    }
    for (state, count) in &agents {
        metrics.agents.with_label_values(&[state]).set(*count);
    }
    metrics.identity_conflicts.set(agents.get("conflict").copied().unwrap_or(0));
    for (state, count) in runs {
        metrics.runs.with_label_values(&[state]).set(count);
    }
    for (reason, count) in cases {
        metrics.cases_open.with_label_values(&[reason]).set(count);
    }
    // A tranche that is gone is not counted for ever.
    metrics.tranche_blades.reset();
    metrics.burnin_metric.keep(|name| memory.site.tranches.keys().any(|tranche| tranche.as_str() == name));
    nodes(parts, memory);
    let waiting = waiting(memory.site.blades.values().filter_map(|blade| {
        let run = blade.run.as_ref().map(|run| &run.state);
        Some((blade.tranche.as_ref()?, blade.phase.name(), run))
    }));
    for tranche in &plan.tranches {
        let counts = &tranche.counts;
        let Waiting { preparing, comparing } = waiting.get(&tranche.tranche).copied().unwrap_or_default();
        for (state, count) in [
            ("expected", counts.expected),
            ("discovered", counts.discovered),
            ("preparing", preparing),
            ("burning_in", counts.burning_in.saturating_sub(comparing)),
            ("comparing", comparing),
            ("ready", counts.ready),
            ("in_service", counts.in_service),
            ("quarantined", counts.quarantined),
            ("retired", counts.retired),
            ("missing", counts.missing),
            ("duplicate", counts.duplicates),
            ("other", counts.other.saturating_sub(preparing)),
        ] {
            metrics.tranche_blades.with_label_values(&[tranche.tranche.as_str(), state]).set(n(count));
        }
    }
    let (going, blocked) = parts.drains.counts();
    metrics.drains.with_label_values(&["going"]).set(n(going));
    metrics.drains.with_label_values(&["blocked"]).set(n(blocked));
    match parts.store.list_unexpected(10_000).await {
        Ok(unexpected) => metrics.unexpected.set(n(unexpected.len())),
        Err(error) => metrics.store_errors.with_label_values(&[error.category()]).inc(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use whetstone_model::action::Action;
    use whetstone_model::verdict::Outcome;

    use super::*;

    #[test]
    fn what_waits_before_a_burn_in_and_after_it_is_told_apart() {
        let (a, b) = (TrancheName::new("a").unwrap(), TrancheName::new("b").unwrap());
        let (code, why) = (String::new(), String::new());
        let ended = RunState::Finished { outcome: Outcome::Pass, code, why, action: Action::None };
        let blades = [
            (&a, PhaseName::Preparing, None),
            // Its last run is an old one.
            (&a, PhaseName::Preparing, Some(&ended)),
            (&a, PhaseName::BurningIn, Some(&RunState::Running)),
            (&a, PhaseName::BurningIn, Some(&ended)),
            (&b, PhaseName::Ready, Some(&ended)),
        ];
        let waiting = waiting(blades.into_iter());
        assert_eq!(waiting.get(&a), Some(&Waiting { preparing: 2, comparing: 1 }));
        assert_eq!(waiting.get(&b), None);
    }

    #[test]
    fn a_withheld_node_that_is_no_blade_is_found() {
        let node = |name: &str, taint: &str, labels: serde_json::Value| -> Arc<Node> {
            let node = json!({
                "metadata": {"name": name, "labels": labels},
                "spec": {"taints": [{"key": taint, "value": "unproven", "effect": "NoSchedule"}]},
            });
            Arc::new(serde_json::from_value(node).unwrap())
        };
        let nodes = [
            node("b-1", TAINT, json!({})),
            node("b-l", TAINT, json!({})),
            node("autoscaled", TAINT, json!({})),
            node("head", "node.kubernetes.io/unschedulable", json!({})),
            node("spare", TAINT, json!({"whetstone.dev/unmanaged": "true"})),
        ];
        assert_eq!(without_blade(&nodes, |name| name == "b-1"), ["b-l", "autoscaled"]);
        assert_eq!(without_blade(&nodes, |_| true), [] as [String; 0]);
    }
}
