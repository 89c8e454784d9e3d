//! Out of service and off the free list: nodes withheld, drains, the circuit breaker.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

mod world;

use std::collections::BTreeSet;

use whetstone_model::action::Action;
use whetstone_model::ids::CaseId;
use whetstone_model::lifecycle::{AfterDrain, Phase, PhaseName, QuarantineReason};
use whetstone_plan::*;
use world::*;

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

/// The end of a drain is an event of its own blade alone: whoever waits for the place has to be named.
#[test]
fn the_place_of_a_drain_that_ended_is_given_without_a_whole_look() {
    let mut world = three_to_drain_one_at_once();
    settle(&mut world);
    let next = |world: &World| Planner::new(&world.site).next_drains(&world.site, world.now_ms);
    assert_eq!(next(&world), BTreeSet::new(), "the first has the only place");
    world.pass_time(MINUTE);
    assert_eq!(next(&world), BTreeSet::from([serial(2)]));
    let given = one(&world, 2).steps;
    assert!(matches!(given[..], [Step::StartDrain { .. }]), "{given:?}");
    assert_eq!(waits(&world, 3), WaitReason::DrainBudget { limit: 1 });
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
