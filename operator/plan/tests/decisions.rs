//! Single decisions, each with its reason.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

mod world;

use std::collections::BTreeSet;

use whetstone_model::action::Action;
use whetstone_model::ids::{CaseId, RackName, RunId};
use whetstone_model::lifecycle::{AfterDrain, Owner, Phase, PhaseName, PrepareStep, QuarantineReason, Rung};
use whetstone_model::verdict::Outcome as Verdict;
use whetstone_plan::*;
use world::*;

fn one(world: &World, number: usize) -> BladePlan {
    let few = BTreeSet::from([serial(number)]);
    plan_some(&world.site, &few, world.now_ms).blades.remove(0)
}

fn waits(world: &World, number: usize) -> WaitReason {
    match one(world, number).outcome {
        Outcome::Wait { reason } => reason,
        other => panic!("{other:?}"),
    }
}

fn goes(world: &World, number: usize) -> Phase {
    match one(world, number).outcome {
        Outcome::Transition { to, .. } => to,
        other => panic!("{other:?}"),
    }
}

#[test]
fn silence_while_nobody_listened_loses_no_run() {
    let mut world = joined(1, tranche("t-1", 1));
    settle(&mut world);
    world.pass_time(MINUTE);
    settle(&mut world);
    world.now_ms += 24 * HOUR;
    world.site.limits.listening_since_ms = world.now_ms - MINUTE;
    assert!(one(&world, 1).steps.is_empty(), "the operator was away for a day, not the agent");
    world.site.limits.listening_since_ms = world.now_ms - 31 * MINUTE;
    let steps = one(&world, 1).steps;
    assert!(matches!(steps[..], [Step::EndRun { run: RunId(1), end: RunEnd::Lost { .. } }]), "{steps:?}");
}

#[test]
fn a_run_that_nobody_takes_up_or_that_never_ends_is_lost() {
    let mut world = joined(1, tranche("t-1", 1));
    settle(&mut world);
    world.now_ms += 31 * MINUTE;
    let steps = one(&world, 1).steps;
    assert!(
        matches!(&steps[..], [Step::EndRun { end: RunEnd::Lost { why }, .. }] if why.contains("not taken up"))
    );

    let mut world = joined(1, tranche("t-1", 1));
    world.run_ms = i64::MAX;
    settle(&mut world);
    // The suite takes 20 minutes: twice that and the time of silence may pass.
    for _ in 0..71 {
        world.pass_time(MINUTE);
        assert!(one(&world, 1).steps.is_empty());
    }
    world.pass_time(MINUTE);
    let steps = one(&world, 1).steps;
    assert!(
        matches!(&steps[..], [Step::EndRun { end: RunEnd::Lost { why }, .. }] if why.contains("goes on"))
    );
}

#[test]
fn racks_are_shared_between_tranches() {
    let power =
        |blade_watts, rack_watts| Power { blade_watts, rack_watts: Some(rack_watts), tranche_watts: None };
    let (mut a, mut b) = (tranche("t-a", 10), tranche("t-b", 10));
    a.power = power(10.0, 100.0);
    b.power = power(6.0, 25.0);
    let mut blades: Vec<BladeView> =
        (1..=6).map(|number| blade(number, [Some("t-a"), Some("t-b"), None][number % 3])).collect();
    for blade in &mut blades {
        blade.rack = Some(RackName::new("r").unwrap());
    }
    let mut world = World::new(vec![a, b], blades);
    (1..=6).for_each(|number| world.join(number));
    settle(&mut world);
    // b-001 draws 6 W, b-002 has no tranche and counts as 10 W; with b-003's 10 W it would be 26 of the least limit.
    let burning = |world: &World| -> Vec<String> {
        let burns = |blade: &&BladeView| blade.phase.name() == PhaseName::BurningIn;
        world.site.blades.values().filter(burns).map(|blade| blade.name.to_string()).collect()
    };
    assert_eq!(burning(&world), ["b-001", "b-002", "b-004"]);
    let full = WaitReason::Power { scope: PowerScope::Rack, watts: 22.0, limit_watts: 25.0 };
    assert_eq!(waits(&world, 3), full);
    assert_eq!(full.actor(), Actor::Whetstone);
}

#[test]
fn a_budget_below_one_blade_is_a_persons_and_holds_up_nobody() {
    let mut tranche = tranche("t-1", 10);
    tranche.power = Power { blade_watts: 10.0, rack_watts: Some(15.0), tranche_watts: None };
    let mut world = joined(2, tranche);
    world.blade(2).rack = Some(RackName::new("other").unwrap());
    let mut low = world::tranche("t-2", 1);
    low.power = Power { blade_watts: 1.0, rack_watts: Some(5.0), tranche_watts: None };
    world.site.tranches.insert(low.name.clone(), low);
    let mut third = blade(3, Some("t-2"));
    third.rack = world.blade(2).rack.clone();
    world.site.blades.insert(third.serial.clone(), third);
    settle(&mut world);
    let reason = waits(&world, 2);
    assert_eq!(reason, WaitReason::Power { scope: PowerScope::Rack, watts: 0.0, limit_watts: 5.0 });
    assert_eq!(reason.actor(), Actor::Person);
    pass_time(&mut world, 12 * MINUTE);
    assert_eq!(world.blade(1).phase, Phase::Ready, "the other is not waited for");
}

#[test]
fn a_verdict_older_than_the_doubt_is_none() {
    let mut world = joined(1, tranche("t-1", 1));
    settle(&mut world);
    world.pass_time(MINUTE);
    let created_ms = world.blade(1).run.as_ref().unwrap().created_ms;
    world.blade(1).doubted_ms = Some(created_ms);
    let now_ms = world.now_ms;
    finish(world.blade(1), Play::Pass, now_ms);
    let run = world.blade(1).run.as_mut().unwrap();
    run.cohort = Some(CohortResult { outcome: Verdict::Pass, why: String::new(), at_ms: now_ms });
    world.blade(1).passed_ms = Some(now_ms);
    assert_eq!(goes(&world, 1), Phase::BurningIn { run: RunId(0) });
    world.blade(1).doubted_ms = Some(created_ms - 1);
    assert_eq!(goes(&world, 1), Phase::Ready);
    // The same for a blade that stands in Ready, whatever brought it there.
    world.blade(1).phase = Phase::Ready;
    world.blade(1).intent.owner = Some(Owner::Inference);
    assert_eq!(goes(&world, 1).name(), PhaseName::InService);
    world.blade(1).passed_ms = None;
    assert_eq!(goes(&world, 1).name(), PhaseName::BurningIn);
}

#[test]
fn a_fault_while_a_run_goes_on_outweighs_its_pass() {
    let mut world = joined(1, tranche("t-1", 1));
    settle(&mut world);
    world.pass_time(MINUTE);
    let now_ms = world.now_ms;
    world.blade(1).faults = vec![fault("xid-79", "gpu1", Action::PowerCycle, now_ms)];
    pass_time(&mut world, 12 * MINUTE);
    assert_eq!(world.blade(1).phase, Phase::Quarantined { reason: QuarantineReason::BurnIn });
    assert_eq!(world.blade(1).cases.len(), 1);
    let WaitReason::Person { what, .. } = waits(&world, 1) else { panic!() };
    assert_eq!(what, "a power cycle");
    // An older fault is what the next burn-in answers.
    world.blade(1).intent.retest += 1;
    pass_time(&mut world, 13 * MINUTE);
    assert_eq!(world.blade(1).phase, Phase::Ready);
    assert!(world.blade(1).faults.is_empty() && world.blade(1).cases.is_empty());
}

#[test]
fn leaving_service_without_blame_goes_through_a_burn_in() {
    for wish in 0..3 {
        let mut world = serving(1);
        let before = world.started;
        match wish {
            0 => world.blade(1).intent.owner = Some(Owner::Nobody),
            1 => world.blade(1).intent.owner = Some(Owner::Slurm("s".into())),
            _ => world.blade(1).intent.retest = 1,
        }
        assert_eq!(goes(&world, 1), Phase::Draining { then: AfterDrain::Release });
        pass_time(&mut world, 13 * MINUTE);
        assert_eq!(world.started, before + 1);
        let wanted = match wish {
            0 => Phase::Ready,
            1 => Phase::InService { owner: Owner::Slurm("s".into()) },
            _ => Phase::InService { owner: Owner::Inference },
        };
        assert_eq!(world.blade(1).phase, wanted);
        let intent = world.blade(1).intent.clone();
        assert_eq!(intent.retest, intent.retested);
    }
}

#[test]
fn a_new_owner_of_the_tranche_takes_nothing_from_the_old() {
    let mut world = serving(1);
    world.tranche("t-1").owner = Some(Owner::Slurm("s".into()));
    assert_eq!(one(&world, 1).outcome, Outcome::Nothing);
}

#[test]
fn a_wish_survives_the_operators_death_between_run_and_tick() {
    let mut world = serving(1);
    let now_ms = world.now_ms;
    world.blade(1).faults = vec![fault("xid-79", "gpu1", Action::PowerCycle, now_ms)];
    settle(&mut world);
    world.blade(1).intent.retest = 7;
    let plan_now = plan(&world.site, world.now_ms);
    let before = world.started;
    world.now_ms += 1;
    world.apply(&plan_now, 1);
    assert_eq!((world.started, world.blade(1).intent.retested), (before + 1, 0));
    settle(&mut world);
    assert_eq!((world.started, world.blade(1).intent.retested), (before + 1, 7), "one run, ticked off");
}

#[test]
fn a_retest_may_name_its_suite() {
    let mut world = serving(1);
    world.blade(1).phase = Phase::Repairing { rung: Rung::Replace };
    world.blade(1).intent.suite = Some("soak".into());
    assert_eq!(waits(&world, 1).code(), "person");
    world.blade(1).intent.retest = 1;
    let steps = one(&world, 1).steps;
    assert!(matches!(&steps[0], Step::StartRun { suite, .. } if suite == "soak"), "{steps:?}");
    assert_eq!(steps[1], Step::Retested { retest: 1 });
}

#[test]
fn retirement_waits_for_the_drain() {
    let mut world = serving(1);
    world.blade(1).node = Some(NodeView { our_taint: None, pods_left: Some(2), ..node("b-001") });
    world.blade(1).intent.retired = true;
    settle(&mut world);
    assert_eq!(world.blade(1).phase, Phase::Draining { then: AfterDrain::Retire });
    pass_time(&mut world, 2 * MINUTE);
    assert_eq!(world.blade(1).phase, Phase::Retired);
    assert_eq!(one(&world, 1).outcome, Outcome::Gone);
    assert!(world.blade(1).node.as_ref().unwrap().our_taint.is_some(), "and it stays withheld");
    world.blade(1).intent.retired = false;
    pass_time(&mut world, 13 * MINUTE);
    assert_eq!(world.blade(1).phase.name(), PhaseName::InService, "it came back, through a burn-in");
}

#[test]
fn no_pods_means_nothing_before_the_taint() {
    let mut world = serving(1);
    // Counted before we withheld it: a pod may have come since.
    world.blade(1).node = Some(NodeView { our_taint: None, pods_left: Some(0), ..node("b-001") });
    world.blade(1).intent.quarantine = Some("look".into());
    let first = one(&world, 1);
    assert!(matches!(first.steps[0], Step::Withhold { .. }), "{first:?}");
    assert_eq!(
        goes(&world, 1),
        Phase::Draining { then: AfterDrain::Quarantine { reason: QuarantineReason::Person } }
    );
}

#[test]
fn a_cordon_alone_does_not_withhold() {
    // A person's cordon on a blade in service, and somebody took our taint off a draining one.
    let mut world = serving(2);
    let bare = NodeView { our_taint: None, unschedulable: true, pods_left: Some(0), ..node("b-001") };
    world.blade(1).node = Some(bare.clone());
    world.blade(1).intent.quarantine = Some("look".into());
    assert!(matches!(one(&world, 1).steps[..], [Step::Withhold { .. }, Step::Transition { .. }]));
    world.blade(2).node = Some(NodeView { name: "b-002".into(), ..bare });
    world.blade(2).phase = Phase::Draining { then: AfterDrain::Release };
    assert_eq!(waits(&world, 2).code(), "drain");
    assert!(matches!(one(&world, 2).steps[..], [Step::Withhold { .. }, Step::StartDrain { .. }]));
}

/// Three blades with work on their nodes that a person wants out, and room for one drain.
fn three_to_drain_one_at_once() -> World {
    let mut world = serving(3);
    world.site.limits.drains = 1;
    for number in 1..=3 {
        let name = world.blade(number).name.to_string();
        let blade = world.blade(number);
        blade.node = Some(NodeView { our_taint: None, pods_left: Some(1), ..node(&name) });
        blade.intent.quarantine = Some("look".into());
    }
    world
}

#[test]
fn drains_that_are_blocked_for_long_hold_up_no_other() {
    let mut world = three_to_drain_one_at_once();
    world.blade(1).node.as_mut().unwrap().blocked_by = Some("pod a/b".into());
    settle(&mut world);
    pass_time(&mut world, HOUR);
    assert_eq!(waits(&world, 2), WaitReason::DrainBudget { limit: 1 });
    assert_eq!(waits(&world, 1).actor(), Actor::Tenant);
    pass_time(&mut world, HOUR + 5 * MINUTE);
    assert!(one(&world, 1).stuck.unwrap().contains("pod a/b"));
    for number in 2..=3 {
        assert_eq!(world.blade(number).phase.name(), PhaseName::Quarantined);
    }
}

#[test]
fn a_queue_is_no_standstill_but_an_absent_agent_is() {
    let mut world = joined(2, tranche("t-1", 1));
    world.run_ms = i64::MAX;
    settle(&mut world);
    assert_eq!(waits(&world, 2), WaitReason::Concurrency { limit: 1 });
    world.now_ms += 2 * HOUR;
    let now_ms = world.now_ms;
    world.blade(2).agent.last_seen_ms = Some(now_ms);
    assert_eq!(one(&world, 2).stuck, None);
    world.now_ms += 2 * MINUTE;
    assert_eq!(waits(&world, 2), WaitReason::AgentAway { since_ms: now_ms });
    let stuck = one(&world, 2).stuck.unwrap();
    assert_eq!(stuck, "longer in Preparing than the limit of 1h; waits for: a sign of life from its agent");
}

#[test]
fn a_description_that_cannot_be_followed_is_said() {
    let mut world = joined(1, tranche("t-1", 1));
    settle(&mut world);
    pass_time(&mut world, 12 * MINUTE);
    world.blade(1).intent.owner = Some(Owner::Repair);
    assert_eq!(waits(&world, 1).code(), "bad-spec");
    let mut world = World::new(Vec::new(), vec![blade(1, Some("t-9"))]);
    world.join(1);
    settle(&mut world);
    assert_eq!(world.blade(1).phase, Phase::Preparing { step: PrepareStep::Identity });
    let WaitReason::BadSpec { what } = waits(&world, 1) else { panic!() };
    assert_eq!(what, "its tranche t-9 is not described");
}

#[test]
fn a_domain_serves_as_a_whole_or_not_at_all() {
    let mut tranche = tranche("t-1", 1);
    tranche.owner = Some(Owner::Inference);
    tranche.gates.whole_domain = true;
    let mut world = joined(2, tranche);
    for number in 1..=2 {
        world.blade(number).domain = domain("d");
    }
    // Of another tranche, or of none: a member all the same.
    let mut third = blade(3, None);
    third.domain = domain("d");
    world.site.blades.insert(third.serial.clone(), third);
    settle(&mut world);
    pass_time(&mut world, 40 * MINUTE);
    assert_eq!(waits(&world, 1), WaitReason::DomainGate { domain: "d".into(), passed: 2, of: 3 });
    world.join(3);
    pass_time(&mut world, 13 * MINUTE);
    assert!((1..=2).all(|number| world.blade(number).phase.name() == PhaseName::InService));
    assert_eq!(world.blade(3).phase, Phase::Ready, "without an owner it stays free");
}

#[test]
fn an_agent_that_is_away_holds_up_no_cohort_but_a_live_one_does() {
    let mut world = joined(3, tranche("t-1", 1));
    world.silent.insert(serial(3));
    world.blade(3).agent.last_seen_ms = None;
    settle(&mut world);
    pass_time(&mut world, 12 * MINUTE);
    let cohort = WaitReason::Cohort { tranche: tranche_name("t-1"), ended: 1, of: 3 };
    assert_eq!(waits(&world, 1), cohort);
    let whole = plan(&world.site, world.now_ms);
    assert_eq!((whole.tranches[0].judge.len(), whole.tranches[0].stable), (0, false));
    pass_time(&mut world, 12 * MINUTE);
    assert_eq!(world.blade(1).phase, Phase::Ready);
    assert_eq!(world.blade(2).phase, Phase::Ready);
    assert_eq!(waits(&world, 3).code(), "agent-away");
}

#[test]
fn conflict_ends_the_run_and_nothing_is_started() {
    let mut world = joined(1, tranche("t-1", 1));
    settle(&mut world);
    world.pass_time(MINUTE);
    world.blade(1).agent.conflict = Some("two".into());
    world.blade(1).intent.retest = 1;
    let steps = one(&world, 1).steps;
    assert!(
        matches!(
            &steps[..],
            [
                Step::OpenCase { .. },
                Step::EndRun { end: RunEnd::Cancelled { .. }, .. },
                Step::Transition { .. }
            ]
        ),
        "{steps:?}"
    );
    settle(&mut world);
    pass_time(&mut world, 5 * MINUTE);
    assert_eq!(world.blade(1).phase, Phase::Quarantined { reason: QuarantineReason::IdentityConflict });
    assert_eq!(world.started, 1);
    world.blade(1).agent.conflict = None;
    pass_time(&mut world, 13 * MINUTE);
    assert_eq!(world.blade(1).phase, Phase::Ready);
}

#[test]
fn the_breaker_counts_a_share_of_what_serves() {
    let mut world = serving(100);
    world.site.limits.breaker_least = 1;
    world.site.limits.breaker_percent = 5.0;
    for number in 1..=50 {
        let at_ms = world.now_ms - number as i64;
        world.blade(number).faults = vec![fault("xid-79", "gpu1", Action::PowerCycle, at_ms)];
    }
    let before = plan(&world.site, world.now_ms).breaker;
    assert_eq!(before, Breaker { open: true, withheld: 0, wanted: 50, limit: 5 });
    // People are not held back, and burn no part of it.
    world.blade(60).intent.quarantine = Some("look".into());
    settle(&mut world);
    let out: Vec<usize> =
        (1..=100).filter(|n| world.blade(*n).phase.name() == PhaseName::Quarantined).collect();
    assert_eq!(out, [46, 47, 48, 49, 50, 60], "the oldest faults first");
    assert!(matches!(waits(&world, 1), WaitReason::Breaker { held: 45, .. }));
}

/// The operator ended between case and taint, and the fault cleared: the case must not stand for ever on a sound blade.
#[test]
fn a_case_of_a_fault_that_went_before_the_blade_was_withheld_is_closed() {
    let mut world = joined(1, tranche("t-1", 1));
    settle(&mut world);
    pass_time(&mut world, 12 * MINUTE);
    assert_eq!(world.blade(1).phase, Phase::Ready);
    world.blade(1).cases.push(CaseView { case: CaseId(7), code: "xid79".into(), device: None, opened_ms: 0 });
    let steps = one(&world, 1).steps;
    assert!(matches!(&steps[..], [Step::CloseCase { case: CaseId(7), .. }]), "{steps:?}");
}

/// Pods are on a free blade whose node was let go.
fn free_with_pods(blades: usize) -> World {
    let mut world = joined(blades, tranche("t-1", 100));
    settle(&mut world);
    pass_time(&mut world, 13 * MINUTE);
    for number in 1..=blades {
        let name = world.blade(number).name.to_string();
        world.blade(number).node = Some(NodeView { our_taint: None, pods_left: Some(2), ..node(&name) });
        assert_eq!(world.blade(number).phase, Phase::Ready);
    }
    settle(&mut world);
    world
}

#[test]
fn a_free_blade_whose_node_was_let_go_is_drained_first() {
    let quarantine = |reason| Phase::Draining { then: AfterDrain::Quarantine { reason } };
    type Change = fn(&mut BladeView, i64);
    let cases: [(Change, Phase, PhaseName); 6] = [
        (
            |blade, now_ms| blade.faults = vec![fault("xid-79", "gpu1", Action::PowerCycle, now_ms)],
            quarantine(QuarantineReason::Fault),
            PhaseName::Quarantined,
        ),
        (
            |blade, _| blade.intent.quarantine = Some("look".into()),
            quarantine(QuarantineReason::Person),
            PhaseName::Quarantined,
        ),
        (
            |blade, _| blade.agent.conflict = Some("two".into()),
            quarantine(QuarantineReason::IdentityConflict),
            PhaseName::Quarantined,
        ),
        (
            |blade, _| blade.intent.retest = 1,
            Phase::Draining { then: AfterDrain::Release },
            PhaseName::BurningIn,
        ),
        (
            |blade, _| blade.passed_ms = None,
            Phase::Draining { then: AfterDrain::Release },
            PhaseName::BurningIn,
        ),
        (
            |blade, _| blade.intent.retired = true,
            Phase::Draining { then: AfterDrain::Retire },
            PhaseName::Retired,
        ),
    ];
    for (change, first, then) in cases {
        let mut world = free_with_pods(1);
        let now_ms = world.now_ms;
        change(world.blade(1), now_ms);
        let plan_now = one(&world, 1);
        // Pods are kept off with the first step, as fast as ever.
        let steps: Vec<&Step> =
            plan_now.steps.iter().filter(|step| !matches!(step, Step::OpenCase { .. })).collect();
        assert!(matches!(steps[..], [Step::Withhold { .. }, Step::Transition { .. }]), "{plan_now:?}");
        assert_eq!(goes(&world, 1), first);
        settle(&mut world);
        assert_eq!(world.blade(1).phase, first);
        assert!(matches!(waits(&world, 1), WaitReason::Drain { pods: 2, .. }));
        world.pass_time(MINUTE);
        settle(&mut world);
        assert_eq!(world.blade(1).phase.name(), then);
    }
}

#[test]
fn a_free_blade_that_was_withheld_and_not_moved_on_is_drained_all_the_same() {
    let mut world = free_with_pods(1);
    world.blade(1).intent.quarantine = Some("look".into());
    let first = plan(&world.site, world.now_ms);
    // The operator ends once the node is withheld.
    world.apply(&first, 1);
    assert_eq!(world.blade(1).phase, Phase::Ready);
    assert!(world.blade(1).node.as_ref().unwrap().our_taint.is_some());
    assert_eq!(goes(&world, 1).name(), PhaseName::Draining);
}

#[test]
fn a_free_blade_that_was_never_let_go_is_not_drained() {
    let mut tranche = tranche("t-1", 2);
    tranche.gates.whole_domain = true;
    let mut world = joined(2, tranche);
    for number in 1..=2 {
        let name = world.blade(number).name.to_string();
        world.blade(number).domain = domain("d");
        world.blade(number).node = Some(node(&name));
    }
    world.plays.insert(serial(2), Play::Fail);
    settle(&mut world);
    pass_time(&mut world, 13 * MINUTE);
    assert_eq!(waits(&world, 1).code(), "domain-gate");
    world.blade(1).intent.retest = 1;
    assert_eq!(goes(&world, 1).name(), PhaseName::BurningIn);
    world.blade(1).intent.quarantine = Some("look".into());
    assert_eq!(goes(&world, 1).name(), PhaseName::Quarantined);
    // Its gate opens and closes again: what came in between is still there.
    world.blade(1).intent = Intent::default();
    world.plays.clear();
    world.blade(2).intent.retest = 1;
    pass_time(&mut world, 13 * MINUTE);
    assert_eq!(world.blade(1).node.as_ref().unwrap().our_taint, None);
    world.blade(1).node.as_mut().unwrap().pods_left = Some(1);
    world.blade(2).intent.quarantine = Some("look".into());
    settle(&mut world);
    assert_eq!(world.blade(1).node.as_ref().unwrap().our_taint.as_deref(), Some("gated"));
    world.blade(1).intent.retest = 1;
    assert_eq!(goes(&world, 1), Phase::Draining { then: AfterDrain::Release });
}

fn all_fault(world: &mut World, blades: std::ops::RangeInclusive<usize>) {
    for number in blades {
        let now_ms = world.now_ms;
        world.blade(number).faults = vec![fault("xid-79", "gpu1", Action::PowerCycle, now_ms)];
    }
}

fn in_phase(world: &World, name: PhaseName) -> usize {
    world.site.blades.values().filter(|blade| blade.phase.name() == name).count()
}

#[test]
fn the_breaker_stays_open_until_a_person_or_nobody_is_held_back() {
    let mut world = serving(10);
    world.site.limits.breaker_least = 3;
    all_fault(&mut world, 1..=8);
    settle(&mut world);
    assert_eq!(in_phase(&world, PhaseName::Quarantined), 3);
    // Window after window: nobody more.
    pass_time(&mut world, 2 * HOUR);
    assert_eq!(in_phase(&world, PhaseName::Quarantined), 3);
    let breaker = plan(&world.site, world.now_ms).breaker;
    assert_eq!(breaker, Breaker { open: true, withheld: 0, wanted: 5, limit: 3 });
    // One of them more or less makes no difference, until none is left.
    world.blade(8).faults.clear();
    settle(&mut world);
    assert_eq!((in_phase(&world, PhaseName::Quarantined), world.site.limits.breaker_tripped), (3, true));
    (4..=7).for_each(|number| world.blade(number).faults.clear());
    settle(&mut world);
    assert!(!world.site.limits.breaker_tripped);
    all_fault(&mut world, 4..=4);
    settle(&mut world);
    assert_eq!(in_phase(&world, PhaseName::Quarantined), 4, "it counts afresh");
    // A person's word lets all through; once that is taken back it counts afresh.
    all_fault(&mut world, 5..=8);
    settle(&mut world);
    assert_eq!(in_phase(&world, PhaseName::Quarantined), 6);
    world.site.limits.breaker_override = true;
    settle(&mut world);
    assert_eq!(in_phase(&world, PhaseName::Quarantined), 8);
    world.site.limits.breaker_override = false;
    pass_time(&mut world, 11 * MINUTE);
    all_fault(&mut world, 9..=9);
    settle(&mut world);
    assert_eq!(in_phase(&world, PhaseName::Quarantined), 9);
}

#[test]
fn what_the_breaker_let_through_is_carried_out_after_it_has_tripped() {
    let mut world = serving(4);
    world.site.limits.breaker_least = 1;
    all_fault(&mut world, 1..=3);
    // The operator ends once the case is open.
    let first = plan(&world.site, world.now_ms);
    world.apply(&first, 1);
    assert!(world.site.limits.breaker_tripped);
    assert_eq!((world.blade(1).cases.len(), in_phase(&world, PhaseName::InService)), (1, 4));
    settle(&mut world);
    assert_eq!(world.blade(1).phase.name(), PhaseName::Quarantined);
    assert_eq!(in_phase(&world, PhaseName::InService), 3);
}

#[test]
fn the_end_of_a_drain_is_no_new_fault_for_the_breaker() {
    let mut world = serving(6);
    world.site.limits.breaker_least = 2;
    for number in 1..=2 {
        let name = world.blade(number).name.to_string();
        let node = NodeView { our_taint: None, pods_left: Some(1), ..node(&name) };
        world.blade(number).node = Some(NodeView { blocked_by: Some("pod a/b".into()), ..node });
    }
    all_fault(&mut world, 1..=2);
    settle(&mut world);
    assert_eq!(plan(&world.site, world.now_ms).breaker.withheld, 2);
    pass_time(&mut world, HOUR);
    (1..=2).for_each(|number| world.blade(number).node.as_mut().unwrap().blocked_by = None);
    pass_time(&mut world, MINUTE);
    assert_eq!(in_phase(&world, PhaseName::Quarantined), 2);
    assert_eq!(plan(&world.site, world.now_ms).breaker.withheld, 0, "withheld an hour ago");
    all_fault(&mut world, 3..=4);
    settle(&mut world);
    assert_eq!(in_phase(&world, PhaseName::Quarantined), 4);
}

#[test]
fn a_fault_that_came_again_or_late_is_not_forgotten() {
    let mut world = joined(1, tranche("t-1", 1));
    // It stood before the run was made, and showed again while it went on.
    world.blade(1).faults = vec![fault("xid-79", "gpu1", Action::PowerCycle, -5)];
    settle(&mut world);
    world.pass_time(MINUTE);
    let now_ms = world.now_ms;
    world.blade(1).faults[0].last_ms = now_ms;
    pass_time(&mut world, 12 * MINUTE);
    assert_eq!(world.blade(1).phase, Phase::Quarantined { reason: QuarantineReason::BurnIn });
    assert_eq!(world.blade(1).faults.len(), 1);
    // Accepted: only what is older than the run is forgotten, also of what is received in that moment.
    world.blade(1).intent.retest = 1;
    settle(&mut world);
    for _ in 0..12 {
        world.pass_time(MINUTE);
        let judged = plan(&world.site, world.now_ms);
        world.apply(&judged, usize::MAX);
        if goes_to_ready(&world) {
            break;
        }
    }
    let created_ms = world.blade(1).run.as_ref().unwrap().created_ms;
    let accept = plan(&world.site, world.now_ms);
    let clear = Step::ClearFaults { before_ms: created_ms };
    assert!(accept.blades[0].steps.contains(&clear), "{accept:?}");
    world.blade(1).faults.push(fault("xid-48", "gpu2", Action::ResetGpu, created_ms));
    world.apply(&accept, usize::MAX);
    assert_eq!(world.blade(1).phase, Phase::Ready);
    let left: Vec<&str> = world.blade(1).faults.iter().map(|fault| fault.code.as_str()).collect::<Vec<_>>();
    assert_eq!(left, ["xid-48"]);
}

fn goes_to_ready(world: &World) -> bool {
    matches!(one(world, 1).outcome, Outcome::Transition { to: Phase::Ready, .. })
}

#[test]
fn the_gates_of_a_tranche_that_is_not_described_stay_as_they_are() {
    let mut tranche = tranche("t-1", 4);
    tranche.gates.rack_percent = 100.0;
    let mut world = joined(4, tranche);
    world.plays.insert(serial(2), Play::Fail);
    for number in 1..=4 {
        let name = world.blade(number).name.to_string();
        world.blade(number).rack = Some(RackName::new(if number <= 2 { "closed" } else { "open" }).unwrap());
        world.blade(number).node = Some(node(&name));
    }
    world.blade(4).intent.owner = Some(Owner::Inference);
    settle(&mut world);
    pass_time(&mut world, 13 * MINUTE);
    assert_eq!(waits(&world, 1).code(), "rack-gate");
    let nodes = |world: &World| -> Vec<Option<NodeView>> {
        world.site.blades.values().map(|blade| blade.node.clone()).collect()
    };
    let before = nodes(&world);
    let taints: Vec<bool> = before.iter().map(|node| node.as_ref().unwrap().our_taint.is_some()).collect();
    assert_eq!(taints, [true, true, false, false]);
    world.site.tranches.clear();
    settle(&mut world);
    for number in [1, 3] {
        let WaitReason::BadSpec { what } = waits(&world, number) else { panic!() };
        assert_eq!(what, "its tranche t-1 is not described");
    }
    assert_eq!(one(&world, 4).outcome, Outcome::Nothing, "what serves goes on");
    assert_eq!(nodes(&world), before);
    // Also a wish for an owner is for after it.
    world.blade(3).intent.owner = Some(Owner::Inference);
    assert_eq!(waits(&world, 3).code(), "bad-spec");
}

#[test]
fn after_an_outage_of_the_operator_no_agent_counts_as_away_at_once() {
    let mut world = joined(3, tranche("t-1", 1));
    settle(&mut world);
    world.pass_time(MINUTE);
    // The run of the first ends; then the operator is away for an hour.
    world.now_ms += 11 * MINUTE;
    let now_ms = world.now_ms;
    finish(world.blade(1), Play::Pass, now_ms);
    world.now_ms += HOUR;
    world.site.limits.listening_since_ms = world.now_ms;
    let judged = |world: &World| plan(&world.site, world.now_ms).tranches[0].judge.len();
    assert_eq!(judged(&world), 0, "the others are waited for");
    // A run is started only where the agent was heard of.
    assert_eq!(waits(&world, 2).code(), "agent-away");
    world.now_ms += world.site.limits.agent_away_ms;
    assert_eq!(judged(&world), 0);
    world.now_ms += 1;
    assert_eq!(judged(&world), 1, "now they are away");
}

#[test]
fn drains_that_stand_still_hold_up_no_other_blocked_or_not() {
    let mut world = three_to_drain_one_at_once();
    // A dead kubelet: its pod was told to end, and nothing blocks that.
    world.blade(1).node.as_mut().unwrap().unreachable = true;
    settle(&mut world);
    let waiting = waits(&world, 1);
    assert_eq!(waiting.actor(), Actor::Person);
    assert!(waiting.sentence().contains("its kubelet does not answer"), "{}", waiting.sentence());
    pass_time(&mut world, HOUR);
    assert_eq!(waits(&world, 2), WaitReason::DrainBudget { limit: 1 });
    pass_time(&mut world, HOUR + 5 * MINUTE);
    for number in 2..=3 {
        assert_eq!(world.blade(number).phase.name(), PhaseName::Quarantined);
    }
    assert_eq!(world.blade(1).phase.name(), PhaseName::Draining);
    assert!(one(&world, 1).stuck.is_some());
}

/// A drain that began only after a long wait for its turn counts from then.
#[test]
fn a_drain_that_waited_long_for_its_turn_counts_all_the_same() {
    let mut world = serving(3);
    world.site.limits.drains = 1;
    for number in 1..=3 {
        let name = world.blade(number).name.to_string();
        let blade = world.blade(number);
        let node = NodeView { our_taint: None, pods_left: Some(1), ..node(&name) };
        blade.node = Some(NodeView { unreachable: number < 3, ..node });
        blade.intent.quarantine = Some("look".into());
    }
    settle(&mut world);
    pass_time(&mut world, 3 * HOUR);
    assert_eq!(waits(&world, 2).code(), "drain");
    assert_eq!(waits(&world, 3), WaitReason::DrainBudget { limit: 1 });
    pass_time(&mut world, 2 * HOUR);
    assert_eq!(world.blade(3).phase.name(), PhaseName::Quarantined);
}

#[test]
fn who_has_left_or_never_came_touches_no_node_of_another() {
    let mut world = serving(1);
    let mut gone = blade(2, None);
    (gone.phase, gone.intent.retired) = (Phase::Retired, true);
    let stale = blade(3, None);
    for other in [gone, stale] {
        world.site.blades.insert(other.serial.clone(), other);
    }
    let shared = |world: &mut World, view: NodeView| {
        world.site.blades.values_mut().for_each(|blade| blade.node = Some(view.clone()));
    };
    let steps = |world: &World| -> Vec<usize> {
        plan(&world.site, world.now_ms).blades.iter().map(|one| one.steps.len()).collect()
    };
    shared(&mut world, NodeView { our_taint: None, ..node("n-1") });
    assert_eq!(steps(&world), [0, 0, 0]);
    // Nor do they end its drain, and it is one drain.
    world.site.limits.drains = 2;
    world.blade(1).phase = Phase::Draining { then: AfterDrain::Release };
    let note = Note { serial: serial(1), reason: "draining".into(), case: None }.text();
    let withheld = NodeView { unschedulable: true, our_taint: Some("draining".into()), ..node("n-1") };
    let going = NodeView { drain: DrainState::Going, pods_left: Some(1), our_note: Some(note), ..withheld };
    shared(&mut world, going);
    assert_eq!(steps(&world), [0, 0, 0]);
    let mut other = blade(4, None);
    other.phase = Phase::Draining { then: AfterDrain::Release };
    let withheld = NodeView { unschedulable: true, our_taint: Some("draining".into()), ..node("n-4") };
    other.node = Some(NodeView { pods_left: Some(1), ..withheld });
    world.site.blades.insert(other.serial.clone(), other);
    assert!(one(&world, 4).steps.contains(&Step::StartDrain { node: "n-4".into() }));
    world.site.blades.remove(&serial(4));
    // One that retires takes its own name off, and nothing else.
    world.blade(3).intent.retired = true;
    let retire = one(&world, 3).steps;
    assert!(matches!(retire[..], [Step::Transition { to: Phase::Retired, .. }]), "{retire:?}");
    // Of those that are not there the one that is expected keeps the node withheld, and no two do.
    world.site.blades.remove(&serial(1));
    world.blade(3).intent.retired = false;
    shared(&mut world, NodeView { our_taint: None, ..node("n-1") });
    assert!(one(&world, 2).steps.is_empty());
    assert!(matches!(one(&world, 3).steps[..], [Step::Withhold { .. }]));
    world.site.blades.remove(&serial(3));
    assert!(matches!(one(&world, 2).steps[..], [Step::Withhold { .. }]), "its own node stays withheld");
}
