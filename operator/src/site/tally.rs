//! Counts the site for the metrics.

use std::collections::BTreeMap;

use whetstone_model::lifecycle::{PhaseName, QuarantineReason};
use whetstone_plan::{Breaker, Plan, RunState};

use super::Parts;
use super::memory::Memory;
use crate::metrics::Metrics;

pub fn breaker(metrics: &Metrics, breaker: &Breaker) {
    metrics.breaker_open.set(i64::from(breaker.open));
    metrics.breaker_withheld.set(i64::try_from(breaker.withheld).unwrap_or(i64::MAX));
}

fn n(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
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
            let away = memory.site.limits.agent_away_ms;
            let live = blade.agent.last_seen_ms.is_some_and(|seen| now_ms - seen <= away);
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
    for tranche in &plan.tranches {
        let counts = &tranche.counts;
        for (state, count) in [
            ("expected", counts.expected),
            ("discovered", counts.discovered),
            ("burning_in", counts.burning_in),
            ("ready", counts.ready),
            ("in_service", counts.in_service),
            ("quarantined", counts.quarantined),
            ("retired", counts.retired),
            ("missing", counts.missing),
            ("duplicate", counts.duplicates),
            ("other", counts.other),
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
