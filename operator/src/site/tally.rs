//! Counts the site for the metrics.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use tracing::warn;
use whetstone_model::ids::TrancheName;
use whetstone_model::lifecycle::{PhaseName, QuarantineReason};
use whetstone_plan::{BladePlan, BladeView, Breaker, Plan, RunState};

use super::Parts;
use super::memory::Memory;
use crate::cluster::node::{tainted, unmanaged};
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

/// How many blades there are of what, by the metrics' labels. What there is none of is 0, not absent.
struct Counts {
    phases: BTreeMap<PhaseName, i64>,
    stuck: BTreeMap<PhaseName, i64>,
    agents: BTreeMap<&'static str, i64>,
    runs: BTreeMap<&'static str, i64>,
    cases: BTreeMap<&'static str, i64>,
}

fn add<K: Ord>(counts: &mut BTreeMap<K, i64>, one: K) {
    *counts.entry(one).or_default() += 1;
}

impl Counts {
    fn none() -> Counts {
        let phases: BTreeMap<PhaseName, i64> = PhaseName::ALL.into_iter().map(|phase| (phase, 0)).collect();
        Counts {
            stuck: phases.clone(),
            phases,
            agents: BTreeMap::from([("live", 0), ("away", 0), ("conflict", 0)]),
            runs: BTreeMap::from([("ordered", 0), ("running", 0)]),
            cases: QuarantineReason::ALL.into_iter().map(|reason| (reason.as_str(), 0)).collect(),
        }
    }

    fn of(memory: &Memory, plan: &Plan) -> Counts {
        let mut counts = Counts::none();
        for plan in &plan.blades {
            if let Some(view) = memory.site.blades.get(&plan.serial) {
                counts.blade(view, plan);
            }
        }
        for case in memory.rows.values().flat_map(|row| &row.cases) {
            let reason = QuarantineReason::ALL.into_iter().find(|reason| reason.as_str() == case.reason);
            add(&mut counts.cases, reason.map_or("other", QuarantineReason::as_str));
        }
        counts
    }

    fn blade(&mut self, view: &BladeView, plan: &BladePlan) {
        let phase = view.phase.name();
        add(&mut self.phases, phase);
        if plan.stuck.is_some() {
            add(&mut self.stuck, phase);
        }
        if view.agent.conflict.is_some() {
            add(&mut self.agents, "conflict");
        } else if view.agent.joined {
            add(&mut self.agents, if plan.away { "away" } else { "live" });
        }
        match view.run.as_ref().map(|run| &run.state) {
            Some(RunState::Ordered) => add(&mut self.runs, "ordered"),
            Some(RunState::Running) => add(&mut self.runs, "running"),
            _ => {}
        }
    }

    fn set(&self, metrics: &Metrics) {
        for (phase, count) in &self.phases {
            metrics.blades.with_label_values(&[phase.as_str()]).set(*count);
        }
        for (phase, count) in &self.stuck {
            metrics.blades_stuck.with_label_values(&[phase.as_str()]).set(*count);
        }
        for (gauge, counts) in
            [(&metrics.agents, &self.agents), (&metrics.runs, &self.runs), (&metrics.cases_open, &self.cases)]
        {
            for (label, count) in counts {
                gauge.with_label_values(&[label]).set(*count);
            }
        }
        metrics.identity_conflicts.set(self.agents.get("conflict").copied().unwrap_or(0));
    }
}

/// Counts everything; called with each whole plan.
pub async fn site(parts: &Parts, memory: &Memory, plan: &Plan) {
    let metrics = &parts.metrics;
    Counts::of(memory, plan).set(metrics);
    tranches(metrics, memory, plan);
    nodes(parts, memory);
    let (going, blocked) = parts.drains.counts();
    metrics.drains.with_label_values(&["going"]).set(n(going));
    metrics.drains.with_label_values(&["blocked"]).set(n(blocked));
    match parts.store.list_unexpected(10_000).await {
        Ok(unexpected) => metrics.unexpected.set(n(unexpected.len())),
        Err(error) => metrics.store_errors.with_label_values(&[error.category()]).inc(),
    }
}

fn tranches(metrics: &Metrics, memory: &Memory, plan: &Plan) {
    // A tranche that is gone is not counted for ever.
    metrics.tranche_blades.reset();
    metrics.burnin_metric.keep(|name| memory.site.tranches.keys().any(|tranche| tranche.as_str() == name));
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
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use whetstone_api::node::TAINT;
    use whetstone_model::action::Action;
    use whetstone_model::lifecycle::Phase;
    use whetstone_model::verdict::Outcome;
    use whetstone_plan::SiteLimits;

    use super::*;
    use crate::site::judge::tests::blade;

    /// Also one that was never heard of: as the planner counts it, silence begins when somebody listens.
    #[test]
    fn agents_are_live_or_away_as_the_planner_says() {
        let mut memory = Memory::new(SiteLimits { listening_since_ms: 1_000, ..SiteLimits::default() });
        for (serial, seen_ms, conflict) in
            [("S1", None, None), ("S2", Some(50_000), None), ("S3", None, Some("two machines".to_owned()))]
        {
            let mut view = blade(serial, Phase::Ready, 1);
            view.agent.joined = true;
            (view.agent.last_seen_ms, view.agent.conflict) = (seen_ms, conflict);
            memory.site.blades.insert(view.serial.clone(), view);
        }
        let absent = blade("S4", Phase::Expected, 1);
        memory.site.blades.insert(absent.serial.clone(), absent);
        memory.tranches_changed();
        let agents = |now_ms: i64| Counts::of(&memory, &memory.planner.plan(&memory.site, now_ms)).agents;
        let away_ms = memory.site.limits.agent_away_ms;
        let counts = |live, away| BTreeMap::from([("live", live), ("away", away), ("conflict", 1)]);
        assert_eq!(agents(1_000 + away_ms), counts(2, 0));
        assert_eq!(agents(1_001 + away_ms), counts(1, 1));
    }

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
