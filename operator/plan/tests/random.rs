//! Random sites: whatever happens in whatever order, and wherever the executor dies, the invariants hold, the site comes
//! to rest, and a healthy tranche becomes ready.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

mod world;

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use whetstone_model::action::Action;
use whetstone_model::ids::Serial;
use whetstone_model::lifecycle::{Owner, Phase, PhaseName, QuarantineReason};
use whetstone_plan::*;
use world::*;

const BLADES: usize = 14;
const BREAKER_LEAST: usize = 3;
const DRAINS: usize = 2;

#[derive(Debug, Clone)]
enum Event {
    Join(usize),
    Silent(usize, bool),
    Play(usize, Play),
    /// The run ends now.
    Finish(usize, Play),
    Fault(usize),
    Faults(usize, usize),
    FaultGone(usize),
    Conflict(usize, bool),
    Revoked(usize),
    WrongSku(usize, bool),
    Quarantine(usize, bool),
    Retest(usize),
    Retire(usize, bool),
    Owner(usize, Option<Owner>),
    Node(usize, bool),
    Pods(usize, usize, bool),
    /// Its kubelet is gone, or back.
    Unreachable(usize, bool),
    HumanCordon(usize, bool),
    /// Somebody takes our taint off.
    TaintGone(usize),
    NoDomain(usize),
    Paused(bool),
    Override(bool),
    Time(i64),
    /// The operator carries out only so many steps of each blade.
    Dies(usize),
}

fn play() -> impl Strategy<Value = Play> {
    prop_oneof![4 => Just(Play::Pass), 1 => Just(Play::Fail), 1 => Just(Play::Inconclusive), 1 => Just(Play::Outlier)]
}

fn event() -> impl Strategy<Value = Event> {
    let b = || 1..=BLADES;
    let owner = prop_oneof![
        Just(None),
        Just(Some(Owner::Nobody)),
        Just(Some(Owner::Inference)),
        Just(Some(Owner::Slurm("s-1".into()))),
        Just(Some(Owner::Repair)),
    ];
    prop_oneof![
        6 => b().prop_map(Event::Join),
        2 => (b(), any::<bool>()).prop_map(|(b, on)| Event::Silent(b, on)),
        2 => (b(), play()).prop_map(|(b, play)| Event::Play(b, play)),
        6 => (b(), play()).prop_map(|(b, play)| Event::Finish(b, play)),
        3 => b().prop_map(Event::Fault),
        1 => (b(), b()).prop_map(|(from, number)| Event::Faults(from, number)),
        1 => b().prop_map(Event::FaultGone),
        2 => (b(), any::<bool>()).prop_map(|(b, on)| Event::Conflict(b, on)),
        1 => b().prop_map(Event::Revoked),
        1 => (b(), any::<bool>()).prop_map(|(b, on)| Event::WrongSku(b, on)),
        2 => (b(), any::<bool>()).prop_map(|(b, on)| Event::Quarantine(b, on)),
        3 => b().prop_map(Event::Retest),
        1 => (b(), any::<bool>()).prop_map(|(b, on)| Event::Retire(b, on)),
        2 => (b(), owner).prop_map(|(b, owner)| Event::Owner(b, owner)),
        2 => (b(), any::<bool>()).prop_map(|(b, on)| Event::Node(b, on)),
        2 => (b(), 0..4usize, any::<bool>()).prop_map(|(b, pods, blocked)| Event::Pods(b, pods, blocked)),
        1 => (b(), any::<bool>()).prop_map(|(b, on)| Event::Unreachable(b, on)),
        1 => (b(), any::<bool>()).prop_map(|(b, on)| Event::HumanCordon(b, on)),
        1 => b().prop_map(Event::TaintGone),
        1 => b().prop_map(Event::NoDomain),
        1 => any::<bool>().prop_map(Event::Paused),
        1 => any::<bool>().prop_map(Event::Override),
        8 => (1..40 * MINUTE).prop_map(Event::Time),
        1 => Just(Event::Time(30 * HOUR)),
        3 => (0..4usize).prop_map(Event::Dies),
    ]
}

fn site() -> World {
    let mut with_power = tranche("t-1", 4);
    with_power.power = Power { blade_watts: 10.0, rack_watts: Some(20.0), tranche_watts: Some(30.0) };
    with_power.gates = Gates { rack_percent: 50.0, whole_domain: true };
    with_power.owner = Some(Owner::Kubernetes("default".into()));
    let mut plain = tranche("t-2", 2);
    plain.power = Power { blade_watts: 8.0, rack_watts: Some(25.0), tranche_watts: None };
    let blades = (1..=BLADES).map(|number| {
        let mut one = blade(number, [Some("t-1"), Some("t-2"), None][(number * 2 / BLADES).min(2)]);
        one.rack = blade(number * 3 % 8, None).rack;
        if number <= 4 {
            one.domain = domain(["d-1", "d-2"][number % 2]);
        }
        one
    });
    let mut world = World::new(vec![with_power, plain], blades.collect());
    world.site.limits.breaker_least = BREAKER_LEAST;
    world.site.limits.drains = DRAINS;
    world
}

struct Run {
    world: World,
    planner: Planner,
    planned_on: SiteView,
    cordoned: BTreeSet<Serial>,
    overridden: bool,
}

impl Run {
    fn new() -> Run {
        let world = site();
        let planner = Planner::new(&world.site);
        Run { planned_on: world.site.clone(), world, planner, cordoned: BTreeSet::new(), overridden: false }
    }

    fn happen(&mut self, event: &Event) {
        let now_ms = self.world.now_ms;
        match event {
            Event::Join(number) => self.world.join(*number),
            Event::Silent(number, true) => _ = self.world.silent.insert(serial(*number)),
            Event::Silent(number, false) => _ = self.world.silent.remove(&serial(*number)),
            Event::Play(number, play) => _ = self.world.plays.insert(serial(*number), *play),
            Event::Finish(number, play) => {
                let blade = self.world.blade(*number);
                if blade
                    .run
                    .as_ref()
                    .is_some_and(|run| matches!(run.state, RunState::Running | RunState::Ordered))
                {
                    finish(blade, *play, now_ms);
                }
            }
            Event::Fault(number) => self.fault(*number),
            Event::Faults(from, count) => {
                (*from..(from + count).min(BLADES + 1)).for_each(|number| self.fault(number));
            }
            Event::FaultGone(number) => self.world.blade(*number).faults.clear(),
            Event::Conflict(number, on) => {
                self.world.blade(*number).agent.conflict = on.then(|| "two instances".to_owned());
            }
            Event::Revoked(number) => self.world.blade(*number).agent.joined = false,
            Event::WrongSku(number, wrong) => {
                self.world.blade(*number).agent.sku =
                    Some(if *wrong { "hgx-b200" } else { "hgx-h100" }.to_owned());
            }
            Event::Quarantine(number, on) => {
                self.world.blade(*number).intent.quarantine = on.then(|| "to look at".to_owned());
            }
            Event::Retest(number) => self.world.blade(*number).intent.retest += 1,
            Event::Retire(number, on) => self.world.blade(*number).intent.retired = *on,
            Event::Owner(number, owner) => self.world.blade(*number).intent.owner = owner.clone(),
            Event::Node(number, on) => {
                let blade = self.world.blade(*number);
                let name = blade.name.to_string();
                blade.node = on.then(|| node(&name));
                self.cordoned.remove(&serial(*number));
            }
            Event::Pods(number, pods, blocked) => {
                // Pods land only where nothing keeps them off; those of a blade that was never let go are not told of.
                let blade = self.world.blade(*number);
                if let Some(node) = &mut blade.node
                    && node.our_taint.is_none()
                    && may_hold_pods(&blade.phase)
                {
                    node.pods_left = Some(*pods);
                    node.blocked_by = (*blocked && *pods > 0).then(|| "pod a/b".to_owned());
                }
            }
            Event::Unreachable(number, on) => {
                if let Some(node) = &mut self.world.blade(*number).node {
                    node.unreachable = *on;
                }
            }
            Event::HumanCordon(number, on) => {
                let serial = serial(*number);
                if let Some(node) = &mut self.world.blade(*number).node {
                    (node.unschedulable, node.our_cordon) = (*on, false);
                    if *on {
                        self.cordoned.insert(serial);
                    } else {
                        self.cordoned.remove(&serial);
                    }
                }
            }
            Event::TaintGone(number) => {
                if let Some(node) = &mut self.world.blade(*number).node {
                    node.our_taint = None;
                }
            }
            Event::NoDomain(number) => self.world.blade(*number).domain = None,
            Event::Paused(on) => self.world.tranche("t-1").paused = *on,
            Event::Override(on) => {
                self.world.site.limits.breaker_override = *on;
                self.overridden |= *on;
            }
            Event::Time(ms) => self.world.pass_time(*ms),
            Event::Dies(steps) => {
                self.look(*steps);
                // Whoever comes after it has not seen the breaker trip.
                self.world.site.limits.breaker_tripped = false;
            }
        }
    }

    fn fault(&mut self, number: usize) {
        let now_ms = self.world.now_ms;
        let blade = self.world.blade(number);
        if blade.faults.is_empty() {
            blade.faults.push(fault("xid-79", "gpu1", Action::PowerCycle, now_ms));
        }
    }

    /// Plans, and carries out a part.
    fn look(&mut self, steps: usize) {
        self.plan_and_apply(steps);
    }

    fn plan_and_apply(&mut self, steps: usize) -> Plan {
        let whole = self.plan();
        self.world.apply(&whole, steps);
        self.always();
        whole
    }

    /// Plans in all ways, and checks that they agree.
    fn plan(&mut self) -> Plan {
        self.world.now_ms += 1;
        let site = &self.world.site;
        let now_ms = self.world.now_ms;
        let whole = plan(site, now_ms);
        assert_eq!(lint(site, &whole, now_ms), Vec::<String>::new());
        assert_eq!(whole.blades.len(), site.blades.len());
        let changed: BTreeSet<Serial> = site
            .blades
            .iter()
            .filter(|(serial, blade)| self.planned_on.blades.get(*serial) != Some(*blade))
            .map(|(serial, _)| serial.clone())
            .collect();
        self.planner.refresh(site, &changed);
        assert_eq!(self.planner.plan(site, now_ms), whole, "counts that were kept");
        // The same for a few, all of one kind.
        let few: BTreeSet<Serial> =
            site.blades.keys().skip(now_ms as usize % 3).step_by(3).cloned().collect();
        let some = plan_some(site, &few, now_ms);
        assert_eq!(some, self.planner.plan_some(site, &few, now_ms));
        let wanted: Vec<&BladePlan> = whole.blades.iter().filter(|one| few.contains(&one.serial)).collect();
        assert_eq!(some.blades.iter().collect::<Vec<_>>(), wanted);
        assert!(some.tranches.iter().all(|tranche| whole.tranches.contains(tranche)));
        self.planned_on = site.clone();
        whole
    }

    /// What holds at every moment, wherever the executor stopped.
    fn always(&self) {
        let site = &self.world.site;
        let running = |blade: &&BladeView| {
            blade.run.as_ref().is_some_and(|run| matches!(run.state, RunState::Ordered | RunState::Running))
        };
        for tranche in site.tranches.values() {
            let of = |blade: &&BladeView| blade.tranche.as_ref() == Some(&tranche.name);
            let burning = site.blades.values().filter(running).filter(of).count();
            assert!(burning <= tranche.concurrency, "{burning} in {}", tranche.name);
            let watts = burning as f64 * tranche.power.blade_watts;
            assert!(tranche.power.tranche_watts.is_none_or(|limit| watts <= limit));
        }
        for rack in site.blades.values().filter_map(|blade| blade.rack.clone()).collect::<BTreeSet<_>>() {
            let here: Vec<&BladeView> =
                site.blades.values().filter(|blade| blade.rack.as_ref() == Some(&rack)).collect();
            let power = |blade: &&BladeView| {
                blade.tranche.as_ref().map(|name| site.tranches[name].power).unwrap_or_default()
            };
            let watts: f64 =
                here.iter().filter(|blade| running(blade)).map(|blade| power(blade).blade_watts).sum();
            for blade in &here {
                assert!(power(blade).rack_watts.is_none_or(|limit| watts <= limit), "{watts} W in {rack}");
            }
        }
        for blade in site.blades.values() {
            if matches!(blade.phase, Phase::InService { .. }) {
                let doubted = blade.doubted_ms.unwrap_or(i64::MIN);
                assert!(blade.passed_ms.unwrap() > doubted, "{blade:?}");
                assert!(blade.run.as_ref().unwrap().created_ms > doubted, "{blade:?}");
            }
            if let Some(node) = &blade.node {
                let empty = node.pods_left.is_none_or(|pods| pods == 0);
                assert!(may_hold_pods(&blade.phase) || empty, "pods are on it: {blade:?}");
                let serves = matches!(blade.phase, Phase::InService { .. } | Phase::Ready);
                let human = self.cordoned.contains(&blade.serial);
                assert!(!human || node.unschedulable, "a person's cordon is gone: {blade:?}");
                assert!(serves || !human || !node.our_cordon, "took over a person's cordon: {blade:?}");
            }
        }
        let still_ms = PhaseName::Draining.limit_ms().unwrap();
        let going = |blade: &&BladeView| {
            let gets_on = |node: &NodeView| self.world.now_ms - node.drain_moved_ms.unwrap() <= still_ms;
            blade.node.as_ref().is_some_and(|node| node.drain == DrainState::Going && gets_on(node))
        };
        let drains = site.blades.values().filter(going).count();
        assert!(drains <= DRAINS, "{drains} drains");
        if !self.overridden {
            let from_ms = self.world.now_ms - site.limits.breaker_window_ms;
            let withheld = self
                .world
                .faulted
                .iter()
                .filter(|(at_ms, serial)| *at_ms > from_ms && by_fault(&site.blades[serial].phase));
            let withheld: BTreeSet<&Serial> = withheld.map(|(_, serial)| serial).collect();
            assert!(withheld.len() <= BREAKER_LEAST, "{withheld:?}");
        }
    }

    /// Until nothing is left to do, and what holds then.
    fn settle(&mut self) {
        for _ in 0..60 {
            let plan = self.plan_and_apply(usize::MAX);
            let judges = plan.tranches.iter().any(|tranche| !tranche.judge.is_empty());
            if !judges && plan.blades.iter().all(|one| one.steps.is_empty()) {
                self.at_rest(&plan);
                return;
            }
        }
        panic!("does not come to rest");
    }

    fn at_rest(&self, plan: &Plan) {
        for one in &plan.blades {
            let blade = &self.world.site.blades[&one.serial];
            let breaker = matches!(one.outcome, Outcome::Wait { reason: WaitReason::Breaker { .. } });
            assert!(!matches!(one.outcome, Outcome::Transition { .. }), "{one:?}");
            if let Some(node) = &blade.node {
                match blade.phase.name() {
                    _ if breaker => {}
                    PhaseName::InService => assert!(node.our_taint.is_none() && !node.our_cordon, "{one:?}"),
                    PhaseName::Ready => assert_eq!(node.our_taint.is_some(), gated(&one.outcome), "{one:?}"),
                    _ => assert!(node.our_taint.is_some() && node.unschedulable, "{blade:?}"),
                }
                // Withheld for ever: only with a case, a wait, or a person's wish.
                let reasoned = matches!(one.outcome, Outcome::Wait { .. } | Outcome::Gone);
                assert!(node.our_taint.is_none() || reasoned, "{one:?}");
            }
            if let Phase::Quarantined { reason } = blade.phase {
                let person = reason == QuarantineReason::Person;
                let cased = !blade.cases.is_empty();
                assert!(person || cased, "no case: {blade:?}");
                assert!(matches!(one.outcome, Outcome::Wait { .. }), "{one:?}");
            }
            if let Outcome::Wait { reason } = &one.outcome {
                assert!(reason.sentence().starts_with("Waits for: ") && reason.sentence().ends_with('.'));
                let text = explain(blade, one, self.world.now_ms);
                assert!(text.starts_with(blade.phase.name().as_str()) && !text.contains('\n'), "{text}");
            }
        }
    }

    /// All is well again: agents live, runs pass, people withdraw their holds and ask for burn-ins.
    fn heal(&mut self) {
        self.world.silent.clear();
        self.world.plays.clear();
        self.world.site.limits.breaker_override = true;
        self.overridden = true;
        self.world.tranche("t-1").paused = false;
        for number in 1..=BLADES {
            self.world.join(number);
            let blade = self.world.blade(number);
            blade.agent.sku = blade.sku.clone();
            blade.faults.clear();
            blade.intent.quarantine = None;
            blade.intent.retired = false;
            blade.intent.owner = None;
            blade.intent.retest += 1;
            if let Some(node) = &mut blade.node {
                node.blocked_by = None;
                node.unreachable = false;
            }
        }
    }
}

fn gated(outcome: &Outcome) -> bool {
    let reason = match outcome {
        Outcome::Wait { reason } => reason,
        _ => return false,
    };
    // Anything but a spec that names no owner who can serve: the gates are open then.
    !matches!(reason, WaitReason::BadSpec { .. })
}

/// Proven, and nothing more is asked of it.
fn home(blade: &BladeView) -> bool {
    matches!(blade.phase, Phase::Ready | Phase::InService { .. })
        && blade.intent.retest == blade.intent.retested
}

/// The same events each time; other ones with `PROPTEST_RNG_SEED`, more with `PROPTEST_CASES`.
fn config() -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 96;
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(0x57_4e_e7);
    }
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_happens(events in prop::collection::vec(event(), 1..80)) {
        let mut run = Run::new();
        for event in &events {
            run.happen(event);
            run.look(usize::MAX);
        }
        run.settle();
        run.heal();
        // Four rounds of burn-in of everything, two at a time, at 10 minutes each, plus retries.
        for _ in 0..150 {
            if run.world.site.blades.values().all(home) {
                break;
            }
            run.world.pass_time(5 * MINUTE);
            run.settle();
            // What was out of service only now is asked to be burnt in now.
            for blade in run.world.site.blades.values_mut() {
                if matches!(blade.phase, Phase::Quarantined { .. }) && blade.intent.retest == blade.intent.retested {
                    blade.intent.retest += 1;
                }
            }
        }
        for blade in run.world.site.blades.values() {
            prop_assert!(home(blade), "{:?}", blade);
            prop_assert!(blade.cases.is_empty(), "{:?}", blade);
        }
    }

    /// Blades come to name each other's nodes, wherever they are by then: no two of them work at one node.
    #[test]
    fn a_node_is_one_blades_alone(
        events in prop::collection::vec(event(), 1..40),
        names in prop::collection::vec((1..=BLADES, 1..=BLADES), 1..12),
    ) {
        let mut run = Run::new();
        for event in &events {
            run.happen(event);
            run.look(usize::MAX);
        }
        for (number, of) in names {
            let name = run.world.blade(of).name.to_string();
            let its = run.world.blade(of).node.get_or_insert_with(|| node(&name)).clone();
            run.world.blade(number).node = Some(its);
            run.plan();
        }
    }

    /// A healthy tranche becomes ready in as many rounds as its budgets allow for.
    #[test]
    fn a_healthy_tranche_becomes_ready(blades in 1..40usize, at_once in 1..10usize, retries in 0..3u32) {
        let mut tranche = tranche("t-1", at_once);
        tranche.retries = retries;
        let members = (1..=blades).map(|number| blade(number, Some("t-1"))).collect();
        let mut run = Run::new();
        run.world = World::new(vec![tranche], members);
        run.planner = Planner::new(&run.world.site);
        run.planned_on = run.world.site.clone();
        (1..=blades).for_each(|number| run.world.join(number));
        run.settle();
        // Each batch: taken up at the first tick, over at the third.
        for _ in 0..blades.div_ceil(at_once) * 3 {
            run.world.pass_time(5 * MINUTE);
            run.settle();
        }
        prop_assert!(run.world.site.blades.values().all(|blade| blade.phase == Phase::Ready));
        prop_assert_eq!(run.world.started, blades);
    }
}
