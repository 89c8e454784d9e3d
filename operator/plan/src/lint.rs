//! Invariants of a plan, checked against the view that it was made of. Independent of how the plan came about: it counts
//! by itself.

use std::collections::{BTreeMap, BTreeSet};

use whetstone_model::ids::{RackName, Serial, TrancheName};
use whetstone_model::lifecycle::{AfterDrain, Owner, Phase, PhaseName, QuarantineReason};

use crate::decision::{BladePlan, Outcome, Plan, Step, WaitReason};
use crate::view::{BladeView, DrainState, NodeView, RunState, SiteView};

/// Each broken invariant, one sentence each; none = the plan is sound. `now_ms`: when it was made. For tests and examples: the
/// operator does not check itself.
pub fn lint(site: &SiteView, plan: &Plan, now_ms: i64) -> Vec<String> {
    let mut broken = Vec::new();
    let mut seen = BTreeSet::new();
    for one in &plan.blades {
        let Some(blade) = site.blades.get(&one.serial) else {
            broken.push(format!("{}: planned, but not of this site", one.serial));
            continue;
        };
        if !seen.insert(&one.serial) {
            broken.push(format!("{}: planned twice", one.serial));
        }
        for text in blade_rules(blade, one) {
            broken.push(format!("{}: {text}", blade.name));
        }
    }
    nodes(plan, &mut broken);
    burn_in_budgets(site, plan, &mut broken);
    drain_budget(site, plan, now_ms, &mut broken);
    breaker(site, plan, &mut broken);
    broken
}

fn blade_rules(blade: &BladeView, one: &BladePlan) -> Vec<String> {
    let mut broken = Vec::new();
    if one.sequence != blade.sequence {
        broken.push(format!("made for sequence {}, the blade is at {}", one.sequence, blade.sequence));
    }
    let moves = |step: &&Step| matches!(step, Step::Transition { .. } | Step::StartRun { .. });
    let transitions: Vec<&Step> = one.steps.iter().filter(moves).collect();
    match (&one.outcome, transitions.as_slice()) {
        (Outcome::Transition { to, .. }, [step]) => {
            let fits = match step {
                Step::Transition { to: step_to, .. } => step_to == to,
                Step::StartRun { .. } => to.name() == PhaseName::BurningIn,
                _ => false,
            };
            if !fits {
                broken.push("outcome and step go to different phases".to_owned());
            }
            transition(blade, to, &mut broken);
        }
        (Outcome::Transition { .. }, steps) => {
            broken.push(format!("{} transitions in one plan", steps.len()));
        }
        (_, []) => {}
        (_, _) => broken.push("a transition that the outcome does not tell of".to_owned()),
    }
    at_work(blade, one, &mut broken);
    let serves = matches!(blade.phase, Phase::InService { .. });
    if serves && one.outcome == Outcome::Nothing && !proven(blade) {
        broken.push("stays in service without a verdict newer than its last doubt".to_owned());
    }
    order(one, &mut broken);
    broken
}

/// A blade whose node pods may be on goes over a drain: one in service, or a free one whose node is not withheld.
fn at_work(blade: &BladeView, one: &BladePlan, broken: &mut Vec<String>) {
    let open = |node: &NodeView| node.our_taint.is_none() || !node.unschedulable;
    let at_work = match (&blade.phase, &blade.node) {
        (Phase::InService { .. }, Some(_)) => true,
        (Phase::Ready, Some(node)) => open(node),
        _ => false,
    };
    if let Outcome::Transition { to, .. } = &one.outcome
        && at_work
        && !matches!(to, Phase::InService { .. } | Phase::Draining { .. })
    {
        broken.push(format!("goes to {} undrained", to.name()));
    }
}

fn proven(blade: &BladeView) -> bool {
    match (blade.passed_ms, blade.doubted_ms) {
        (Some(passed), Some(doubted)) => passed > doubted,
        (passed, None) => passed.is_some(),
        (None, Some(_)) => false,
    }
}

fn transition(blade: &BladeView, to: &Phase, broken: &mut Vec<String>) {
    let (from, name) = (blade.phase.name(), to.name());
    if !from.may_become(name) {
        broken.push(format!("{from} may not become {name}"));
    }
    if let Phase::InService { owner } = to {
        if !proven(blade) {
            broken.push("into service without a verdict newer than its last doubt".to_owned());
        }
        if matches!(owner, Owner::Nobody | Owner::BurnIn | Owner::Repair) {
            broken.push(format!("into service with {owner}"));
        }
    }
    if name == PhaseName::Ready {
        let sound = blade.run.as_ref().is_some_and(|run| {
            matches!(run.state, RunState::Finished { outcome: whetstone_model::verdict::Outcome::Pass, .. })
                && blade.doubted_ms.is_none_or(|doubted| run.created_ms > doubted)
                && (blade.tranche.is_none() || run.cohort.is_some())
        });
        if !sound {
            broken.push("ready without a passed run newer than its last doubt".to_owned());
        }
    }
    let unfinished = |blade: &BladeView| {
        blade.run.as_ref().is_some_and(|run| matches!(run.state, RunState::Ordered | RunState::Running))
    };
    if name == PhaseName::BurningIn && (blade.agent.conflict.is_some() || blade.intent.quarantine.is_some()) {
        broken.push("burnt in although it is held".to_owned());
    }
    if name == PhaseName::BurningIn && from == PhaseName::BurningIn && unfinished(blade) {
        broken.push("a run is started while one goes on".to_owned());
    }
}

/// Withheld before it leaves service, released only after it has entered it; a case before its quarantine and before the note
/// that names it; a wish is ticked off only after it was acted on.
fn order(one: &BladePlan, broken: &mut Vec<String>) {
    let at = |what: fn(&Step) -> bool| one.steps.iter().position(what);
    let withheld = at(|step| matches!(step, Step::Withhold { .. }));
    let last_case = one.steps.iter().rposition(|step| matches!(step, Step::OpenCase { .. }));
    if withheld.zip(last_case).is_some_and(|(withheld, case)| case > withheld) {
        broken.push("withheld before its case is known".to_owned());
    }
    let moved = at(|step| matches!(step, Step::Transition { .. } | Step::StartRun { .. }));
    let Some(moved) = moved else { return };
    let before = [
        (at(|step| matches!(step, Step::Withhold { .. })), "withhold"),
        (at(|step| matches!(step, Step::EndRun { .. })), "end of the run"),
        (at(|step| matches!(step, Step::EndDrain { .. })), "end of the drain"),
        (at(|step| matches!(step, Step::OpenCase { .. })), "case"),
        (at(|step| matches!(step, Step::ClearFaults { .. })), "clearing of faults"),
    ];
    let after = [
        (at(|step| matches!(step, Step::Release { .. })), "release"),
        (at(|step| matches!(step, Step::Retested { .. })), "tick of the wish"),
    ];
    for (position, what) in before {
        if position.is_some_and(|position| position > moved) {
            broken.push(format!("{what} after the transition"));
        }
    }
    for (position, what) in after {
        if position.is_some_and(|position| position < moved) {
            broken.push(format!("{what} before the transition"));
        }
    }
}

/// Nobody works against another one at the same node.
fn nodes(plan: &Plan, broken: &mut Vec<String>) {
    let mut whose: BTreeMap<&str, &Serial> = BTreeMap::new();
    for (one, step) in plan.blades.iter().flat_map(|one| one.steps.iter().map(move |step| (one, step))) {
        let node = match step {
            Step::Withhold { node, .. }
            | Step::Release { node }
            | Step::StartDrain { node }
            | Step::EndDrain { node } => node,
            _ => continue,
        };
        let first = *whose.entry(node).or_insert(&one.serial);
        if *first != one.serial {
            broken.push(format!("{node}: steps of {first} and of {}", one.serial));
        }
    }
}

fn burn_in_budgets(site: &SiteView, plan: &Plan, broken: &mut Vec<String>) {
    let starts: Vec<&BladeView> = plan
        .blades
        .iter()
        .filter(|one| one.steps.iter().any(|step| matches!(step, Step::StartRun { .. })))
        .filter_map(|one| site.blades.get(&one.serial))
        .collect();
    if starts.is_empty() {
        return;
    }
    let burns = |blade: &&BladeView| {
        blade.run.as_ref().is_some_and(|run| matches!(run.state, RunState::Ordered | RunState::Running))
    };
    let mut by_tranche: BTreeMap<&TrancheName, usize> = BTreeMap::new();
    let mut by_rack: BTreeMap<&RackName, f64> = BTreeMap::new();
    for blade in site.blades.values().filter(burns).chain(starts.iter().copied()) {
        let tranche = blade.tranche.as_ref().and_then(|name| site.tranches.get(name));
        if let Some(tranche) = tranche {
            *by_tranche.entry(&tranche.name).or_default() += 1;
        }
        if let Some(rack) = &blade.rack {
            *by_rack.entry(rack).or_default() += tranche.map_or(0.0, |tranche| tranche.power.blade_watts);
        }
    }
    let mut told = BTreeSet::new();
    for tranche in starts.iter().filter_map(|blade| site.tranches.get(blade.tranche.as_ref()?)) {
        if !told.insert(&tranche.name) {
            continue;
        }
        let burning = by_tranche.get(&tranche.name).copied().unwrap_or(0);
        if burning > tranche.concurrency {
            broken.push(format!("{}: {burning} burn in, {} may", tranche.name, tranche.concurrency));
        }
        let watts = burning as f64 * tranche.power.blade_watts;
        if tranche.power.tranche_watts.is_some_and(|limit| watts > limit) {
            broken.push(format!("{}: burn-ins draw {watts} W", tranche.name));
        }
        if tranche.paused {
            broken.push(format!("{}: a run is started while it is paused", tranche.name));
        }
    }
    for blade in &starts {
        let limit = blade
            .tranche
            .as_ref()
            .and_then(|name| site.tranches.get(name))
            .and_then(|tranche| tranche.power.rack_watts);
        let drawn = blade.rack.as_ref().and_then(|rack| by_rack.get(rack)).copied();
        if let (Some(limit), Some(drawn)) = (limit, drawn)
            && drawn > limit
        {
            broken.push(format!("{}: burn-ins of its rack draw {drawn} W of {limit} W", blade.name));
        }
    }
}

/// Drains that have stood still for as long as a blade may be in `Draining` are left out.
fn drain_budget(site: &SiteView, plan: &Plan, now_ms: i64, broken: &mut Vec<String>) {
    let limit_ms = PhaseName::Draining.limit_ms().unwrap_or(i64::MAX);
    let gets_on = |node: &NodeView| match node.drain_moved_ms {
        Some(moved_ms) => now_ms - moved_ms <= limit_ms,
        None => node.blocked_by.is_none(),
    };
    let goes = |node: &&NodeView| node.drain == DrainState::Going && gets_on(node);
    let going = site.blades.values().filter_map(|blade| blade.node.as_ref()).filter(goes);
    // A drain is its node's, whoever else names that.
    let going: BTreeSet<&str> = going.map(|node| node.name.as_str()).collect();
    let starts = |one: &&BladePlan| one.steps.iter().any(|step| matches!(step, Step::StartDrain { .. }));
    let new = plan.blades.iter().filter(starts).count();
    let all = new + going.len();
    if new > 0 && all > site.limits.drains {
        broken.push(format!("{all} drains at once, {} may go on", site.limits.drains));
    }
}

/// Faults that take a blade out of service in this plan, with those of the window, stay within the breaker's limit; none do
/// once it has tripped. A blade with an open case was let through before.
fn breaker(site: &SiteView, plan: &Plan, broken: &mut Vec<String>) {
    let by_fault = |one: &&BladePlan| match &one.outcome {
        Outcome::Transition { to, .. } => {
            let before = site.blades.get(&one.serial).is_some_and(|blade| {
                let fault = AfterDrain::Quarantine { reason: QuarantineReason::Fault };
                blade.phase == Phase::Draining { then: fault } || !blade.cases.is_empty()
            });
            let fault = QuarantineReason::Fault;
            let fault_to = *to == Phase::Quarantined { reason: fault }
                || *to == Phase::Draining { then: AfterDrain::Quarantine { reason: fault } };
            fault_to && !before
        }
        _ => false,
    };
    let now = plan.blades.iter().filter(by_fault).count();
    let state = &plan.breaker;
    let limits = &site.limits;
    if now > 0 && limits.breaker_tripped && !limits.breaker_override {
        broken.push(format!("{now} withheld for faults although the breaker has tripped"));
    }
    if now > 0 && !limits.breaker_override && now + state.withheld > state.limit {
        broken.push(format!("{now} withheld for faults, {} before, {} may", state.withheld, state.limit));
    }
    let waits = |one: &BladePlan| matches!(one.outcome, Outcome::Wait { reason: WaitReason::Breaker { .. } });
    if !state.open && plan.blades.iter().any(waits) {
        broken.push("a blade waits for a breaker that is closed".to_owned());
    }
}
