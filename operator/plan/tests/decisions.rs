//! Single decisions, each with its reason.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

mod world;

use whetstone_model::action::Action;
use whetstone_model::ids::{RackName, RunId};
use whetstone_model::lifecycle::{AfterDrain, Owner, Phase, PhaseName, PrepareStep, QuarantineReason, Rung};
use whetstone_model::verdict::Outcome as Verdict;
use whetstone_plan::*;
use world::*;

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
