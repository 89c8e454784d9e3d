//! The check of plans, and plans as text.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

mod world;

use whetstone_model::ids::RunId;
use whetstone_model::lifecycle::{AfterDrain, Owner, Phase, QuarantineReason};
use whetstone_plan::*;
use world::*;

#[test]
fn lint_finds_what_is_wrong_with_a_plan() {
    let world = serving(2);
    let sound = plan(&world.site, world.now_ms);
    assert_eq!(lint(&world.site, &sound, world.now_ms), Vec::<String>::new());
    let broken = |what: fn(&mut BladePlan)| {
        let mut plan = sound.clone();
        what(&mut plan.blades[0]);
        lint(&world.site, &plan, world.now_ms).join("; ")
    };
    let go = |one: &mut BladePlan, to: Phase| {
        one.outcome = Outcome::Transition { to: to.clone(), why: String::new() };
        one.steps = vec![Step::Transition { to, why: String::new() }];
    };
    assert!(broken(|one| one.sequence -= 1).contains("made for sequence"));
    assert!(
        broken(|one| one.outcome = Outcome::Transition { to: Phase::Ready, why: String::new() })
            .contains("0 transitions")
    );
    let mut plan = sound.clone();
    go(&mut plan.blades[0], Phase::Ready);
    assert!(lint(&world.site, &plan, world.now_ms)[0].contains("InService may not become Ready"));
    let mut site = world.site.clone();
    let first = site.blades.get_mut(&serial(1)).unwrap();
    (first.phase, first.doubted_ms) = (Phase::Ready, Some(i64::MAX));
    go(&mut plan.blades[0], Phase::InService { owner: Owner::Nobody });
    let text = lint(&site, &plan, world.now_ms).join("; ");
    assert!(text.contains("newer than its last doubt") && text.contains("with nobody"), "{text}");
    let reason = QuarantineReason::Person;
    let mut plan = sound.clone();
    go(&mut plan.blades[0], Phase::Draining { then: AfterDrain::Quarantine { reason } });
    let note = Note { serial: serial(1), reason: "draining".into(), case: None };
    plan.blades[0].steps.push(Step::Withhold { node: "b-001".into(), taint: "draining".into(), note });
    assert!(lint(&world.site, &plan, world.now_ms)[0].contains("withhold after the transition"));
    plan.blades.push(plan.blades[1].clone());
    assert!(lint(&world.site, &plan, world.now_ms).iter().any(|text| text.contains("planned twice")));
    // Both are at one node.
    let mut plan = sound.clone();
    for one in &mut plan.blades {
        one.steps = vec![Step::Release { node: "n-1".into() }];
    }
    assert_eq!(lint(&world.site, &plan, world.now_ms), ["n-1: steps of SN00001 and of SN00002"]);
    // Both start where one may.
    let mut world = world;
    world.tranche("t-1").concurrency = 1;
    for number in 1..=2 {
        world.blade(number).phase = Phase::Ready;
    }
    let mut plan = sound;
    for one in &mut plan.blades {
        one.outcome = Outcome::Transition { to: Phase::BurningIn { run: RunId(0) }, why: String::new() };
        one.steps = vec![Step::StartRun { suite: "quick".into(), why: String::new() }];
    }
    assert_eq!(lint(&world.site, &plan, world.now_ms), ["t-1: 2 burn in, 1 may"]);
}

#[test]
fn lint_finds_undrained_work_and_a_breaker_that_lets_through() {
    let mut world = serving(1);
    world.blade(1).node = Some(NodeView { our_taint: None, ..node("b-001") });
    let mut plan = plan(&world.site, world.now_ms);
    let fault = Phase::Quarantined { reason: QuarantineReason::Fault };
    plan.blades[0].outcome = Outcome::Transition { to: fault.clone(), why: String::new() };
    plan.blades[0].steps = vec![Step::Transition { to: fault, why: String::new() }];
    world.site.limits.breaker_tripped = true;
    for phase in [Phase::InService { owner: Owner::Inference }, Phase::Ready] {
        world.blade(1).phase = phase;
        let text = lint(&world.site, &plan, world.now_ms).join("; ");
        assert!(text.contains("goes to Quarantined undrained") && text.contains("has tripped"), "{text}");
    }
}

#[test]
fn a_plan_goes_through_json_and_back() {
    let mut world = serving(3);
    world.blade(1).intent.quarantine = Some("look".into());
    world.blade(2).intent.retest = 1;
    let plan = plan(&world.site, world.now_ms);
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
}

#[test]
fn durations_are_short() {
    let texts = [0, 59 * SECOND, 9 * MINUTE, 125 * MINUTE, 2 * HOUR, 76 * HOUR].map(duration_text);
    assert_eq!(texts, ["0s", "59s", "9m", "2h 5m", "2h", "3d 4h"]);
}
