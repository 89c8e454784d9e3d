//! A node that more than one blade names: one of them has the say there, and no other is taken for what that node shows.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

mod world;

use whetstone_model::action::Action;
use whetstone_model::lifecycle::{AfterDrain, Phase, PhaseName, QuarantineReason};
use whetstone_plan::*;
use world::*;

/// The node of both blades, last withheld for the one that is called so.
fn share(world: &mut World, label: Option<&str>, node: NodeView) {
    for number in 1..=2 {
        world.blade(number).node = Some(NodeView { our_label: label.map(str::to_owned), ..node.clone() });
    }
}

fn withheld(name: &str) -> NodeView {
    NodeView { unschedulable: true, our_cordon: true, ..node(name) }
}

/// It does nothing, and waits for a person to say whose the node is.
#[track_caller]
fn has_no_say(world: &World, number: usize, node: &str, rival: &str) {
    let plan = one(world, number);
    assert!(plan.steps.is_empty(), "{plan:?}");
    let what = format!("its node {node} is blade {rival}'s");
    assert_eq!(waits(world, number), WaitReason::BadSpec { what });
}

#[test]
fn of_two_that_name_a_node_one_has_the_say_and_the_other_waits() {
    let mut world = serving(2);
    // The faulty one names the node of the other by mistake.
    world.blade(2).phase = Phase::Quarantined { reason: QuarantineReason::BurnIn };
    let let_go = |name: &str| NodeView { our_taint: None, ..node(name) };
    share(&mut world, Some("b-001"), let_go("n-1"));
    assert_eq!(one(&world, 1).outcome, Outcome::Nothing, "it serves on");
    assert!(one(&world, 1).steps.is_empty());
    has_no_say(&world, 2, "n-1", "b-001");
    // The other way round, and whoever is called like the node comes first.
    for (label, name) in [("b-002", "n-1"), ("b-001", "b-002")] {
        share(&mut world, Some(label), let_go(name));
        assert!(matches!(one(&world, 2).steps[..], [Step::Withhold { .. }]));
        has_no_say(&world, 1, name, "b-002");
    }
    // Nothing tells whose it is: one of them all the same.
    share(&mut world, None, let_go("n-1"));
    let whole = plan(&world.site, world.now_ms);
    assert_eq!(lint(&world.site, &whole, world.now_ms), Vec::<String>::new());
    has_no_say(&world, 2, "n-1", "b-001");
    // Put right.
    world.blade(2).node = Some(let_go("n-2"));
    assert_eq!(waits(&world, 2).code(), "person");
    assert!(matches!(one(&world, 2).steps[..], [Step::Withhold { .. }]));
}

#[test]
fn who_names_anothers_node_falls_and_is_not_taken_for_drained() {
    let mut world = serving(2);
    world.blade(1).phase = Phase::Quarantined { reason: QuarantineReason::BurnIn };
    // Withheld and empty: that says nothing of the second one's.
    share(&mut world, Some("b-001"), withheld("n-1"));
    let now_ms = world.now_ms;
    world.blade(2).faults = vec![fault("xid-79", "gpu1", Action::PowerCycle, now_ms)];
    let draining = |reason| Phase::Draining { then: AfterDrain::Quarantine { reason } };
    assert_eq!(goes(&world, 2), draining(QuarantineReason::Fault));
    let steps = one(&world, 2).steps;
    assert!(matches!(steps[..], [Step::OpenCase { .. }, Step::Transition { .. }]), "{steps:?}");
    for phase in [draining(QuarantineReason::Fault), Phase::Draining { then: AfterDrain::Release }] {
        world.blade(2).phase = phase;
        has_no_say(&world, 2, "n-1", "b-001");
    }
    // A free one may have been let go at its own node.
    world.blade(2).faults.clear();
    world.blade(2).phase = Phase::Ready;
    has_no_say(&world, 2, "n-1", "b-001");
    world.blade(2).intent.quarantine = Some("look".into());
    assert_eq!(goes(&world, 2), draining(QuarantineReason::Person));
    // Put right, its own node is withheld and drained.
    world.blade(2).phase = draining(QuarantineReason::Person);
    world.blade(2).node = Some(NodeView { our_taint: None, pods_left: Some(1), ..node("n-2") });
    let steps = one(&world, 2).steps;
    assert!(matches!(steps[..], [Step::Withhold { .. }, Step::StartDrain { .. }]), "{steps:?}");
}

#[test]
fn who_names_anothers_node_takes_no_place_and_holds_up_nobody() {
    let mut world = joined(2, tranche("t-1", 1));
    share(&mut world, Some("b-002"), withheld("n-1"));
    settle(&mut world);
    assert_eq!(world.blade(2).phase.name(), PhaseName::BurningIn, "it is the second in the queue");
    has_no_say(&world, 1, "n-1", "b-002");
    pass_time(&mut world, 13 * MINUTE);
    assert_eq!(world.blade(2).phase, Phase::Ready, "the first one is not waited for");
}

#[test]
fn a_node_that_two_name_has_one_drain() {
    let mut world = serving(3);
    for number in 1..=3 {
        world.blade(number).phase = Phase::Draining { then: AfterDrain::Release };
    }
    world.site.limits.drains = 1;
    let full = |name: &str| NodeView { pods_left: Some(1), ..withheld(name) };
    share(&mut world, Some("b-002"), full("n-1"));
    world.blade(3).node = Some(full("n-3"));
    has_no_say(&world, 1, "n-1", "b-002");
    assert!(one(&world, 2).steps.contains(&Step::StartDrain { node: "n-1".into() }));
    assert_eq!(waits(&world, 3), WaitReason::DrainBudget { limit: 1 });
    let now_ms = world.now_ms;
    let going = NodeView { drain: DrainState::Going, drain_moved_ms: Some(now_ms), ..full("n-1") };
    share(&mut world, Some("b-002"), going);
    world.site.limits.drains = 2;
    assert!(one(&world, 3).steps.contains(&Step::StartDrain { node: "n-3".into() }));
    let whole = plan(&world.site, now_ms);
    assert_eq!(lint(&world.site, &whole, now_ms), Vec::<String>::new());
}
