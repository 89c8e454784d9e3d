//! A tiny site: carries out plans on a view as the executor does, and plays agents, nodes and people.
#![allow(dead_code)] // each test binary uses its part of it

use std::collections::{BTreeMap, BTreeSet};

use whetstone_model::action::Action;
use whetstone_model::ids::{BladeName, CaseId, DomainName, RackName, RunId, Serial, TrancheName};
use whetstone_model::lifecycle::{AfterDrain, Owner, Phase, PhaseName, QuarantineReason};
use whetstone_model::verdict::Outcome as Verdict;
use whetstone_plan::*;

pub const SECOND: i64 = 1_000;
pub const MINUTE: i64 = 60 * SECOND;
pub const HOUR: i64 = 60 * MINUTE;

/// How a blade's next runs end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Play {
    Pass,
    Fail,
    Inconclusive,
    /// The comparison accuses it.
    Outlier,
}

pub struct World {
    pub site: SiteView,
    pub now_ms: i64,
    pub plays: BTreeMap<Serial, Play>,
    /// Agents that say nothing.
    pub silent: BTreeSet<Serial>,
    /// How long a run takes.
    pub run_ms: i64,
    pub started: usize,
    /// When which blade was taken out of service for a fault.
    pub faulted: Vec<(i64, Serial)>,
    next_run: i64,
    next_case: i64,
}

pub fn serial(number: usize) -> Serial {
    Serial::new(format!("SN{number:05}")).unwrap()
}

pub fn tranche_name(text: &str) -> TrancheName {
    TrancheName::new(text).unwrap()
}

pub fn tranche(name: &str, concurrency: usize) -> TrancheView {
    TrancheView {
        name: tranche_name(name),
        suite: "standard".into(),
        budget_ms: 20 * MINUTE,
        concurrency,
        power: Power::default(),
        gates: Gates { rack_percent: 0.0, whole_domain: false },
        retries: 1,
        fpr: 0.01,
        owner: None,
        paused: false,
        duplicates: Vec::new(),
        due_ms: None,
    }
}

pub fn blade(number: usize, tranche: Option<&str>) -> BladeView {
    BladeView {
        serial: serial(number),
        name: BladeName::new(format!("b-{number:03}")).unwrap(),
        tranche: tranche.map(tranche_name),
        rack: Some(RackName::new(format!("r-{}", number / 4)).unwrap()),
        domain: None,
        sku: Some("hgx-h100".into()),
        phase: Phase::Expected,
        since_ms: 0,
        sequence: 0,
        intent: Intent::default(),
        agent: AgentView::default(),
        run: None,
        passed_ms: None,
        doubted_ms: None,
        faults: Vec::new(),
        cases: Vec::new(),
        node: None,
        inconclusive: 0,
    }
}

pub fn domain(text: &str) -> Option<DomainName> {
    Some(DomainName::new(text).unwrap())
}

pub fn node(name: &str) -> NodeView {
    NodeView {
        name: name.into(),
        unschedulable: false,
        our_cordon: false,
        our_taint: Some("unproven".into()),
        our_note: None,
        our_label: None,
        pods_left: Some(0),
        blocked_by: None,
        unreachable: false,
        drain_moved_ms: None,
        drain_error: None,
        drain: DrainState::None,
    }
}

pub fn fault(code: &str, device: &str, action: Action, since_ms: i64) -> FaultView {
    FaultView {
        code: code.into(),
        device: Some(device.into()),
        detail: format!("{code} seen"),
        action,
        since_ms,
        last_ms: since_ms,
    }
}

impl World {
    pub fn new(tranches: Vec<TrancheView>, blades: Vec<BladeView>) -> World {
        World {
            site: SiteView {
                blades: blades.into_iter().map(|blade| (blade.serial.clone(), blade)).collect(),
                tranches: tranches.into_iter().map(|tranche| (tranche.name.clone(), tranche)).collect(),
                limits: SiteLimits::default(),
            },
            now_ms: 0,
            plays: BTreeMap::new(),
            silent: BTreeSet::new(),
            run_ms: 10 * MINUTE,
            started: 0,
            faulted: Vec::new(),
            next_run: 1,
            next_case: 1,
        }
    }

    pub fn blade(&mut self, number: usize) -> &mut BladeView {
        self.site.blades.get_mut(&serial(number)).unwrap()
    }

    pub fn tranche(&mut self, name: &str) -> &mut TrancheView {
        self.site.tranches.get_mut(&tranche_name(name)).unwrap()
    }

    pub fn join(&mut self, number: usize) {
        let now_ms = self.now_ms;
        let agent = &mut self.blade(number).agent;
        *agent = AgentView {
            joined: true,
            last_seen_ms: Some(now_ms),
            conflict: None,
            sku: agent.sku.take().or(Some("hgx-h100".into())),
            gpus: 8,
        };
    }

    /// Time goes on: agents report, runs go on and end, drains proceed, pods land where nothing keeps them off.
    pub fn pass_time(&mut self, ms: i64) {
        self.now_ms += ms;
        let (now_ms, run_ms) = (self.now_ms, self.run_ms);
        for blade in self.site.blades.values_mut() {
            if let Some(node) = &mut blade.node
                && node.drain == DrainState::Going
                && node.blocked_by.is_none()
                && !node.unreachable
            {
                node.pods_left = Some(0);
                node.drain = DrainState::Done;
                node.drain_moved_ms = Some(now_ms);
            }
            if !blade.agent.joined || self.silent.contains(&blade.serial) {
                continue;
            }
            blade.agent.last_seen_ms = Some(now_ms);
            let Some(run) = &mut blade.run else { continue };
            match run.state {
                RunState::Ordered => {
                    run.state = RunState::Running;
                    run.started_ms = Some(now_ms);
                    run.heard_ms = Some(now_ms);
                }
                RunState::Running if now_ms - run.started_ms.unwrap() < run_ms => run.heard_ms = Some(now_ms),
                RunState::Running => {
                    let play = self.plays.get(&blade.serial).copied().unwrap_or(Play::Pass);
                    finish(blade, play, now_ms);
                }
                _ => {}
            }
        }
    }

    /// Carries out a plan, at most `steps` steps of each blade (the executor died there).
    pub fn apply(&mut self, plan: &Plan, steps: usize) {
        for one in &plan.blades {
            for step in one.steps.iter().take(steps) {
                self.step(one, step);
            }
        }
        self.site.limits.breaker_tripped = plan.breaker.open;
        if steps == 0 {
            return;
        }
        let judged: Vec<RunId> = plan.tranches.iter().flat_map(|tranche| tranche.judge.clone()).collect();
        for blade in self.site.blades.values_mut() {
            let Some(run) = blade.run.as_mut().filter(|run| judged.contains(&run.run)) else { continue };
            let accused = self.plays.get(&blade.serial) == Some(&Play::Outlier);
            let (outcome, why) = match accused {
                true => (Verdict::Fail, "gemm-bf16 of gpu3 9 % below its cohort"),
                false => (Verdict::Pass, "within its cohort"),
            };
            run.cohort = Some(CohortResult { outcome, why: why.into(), at_ms: self.now_ms });
            if outcome == Verdict::Pass {
                blade.passed_ms = Some(self.now_ms);
            }
        }
    }

    fn step(&mut self, one: &BladePlan, step: &Step) {
        let now_ms = self.now_ms;
        let blade = self.site.blades.get_mut(&one.serial).unwrap();
        match step {
            Step::Transition { to, .. } => {
                assert_eq!(blade.sequence, one.sequence, "stale: {one:?}");
                if by_fault(to) && !by_fault(&blade.phase) {
                    // It was let through when its case was opened; the executor may have died in between.
                    let opened_ms = blade.cases.iter().map(|case| case.opened_ms).min();
                    self.faulted.push((opened_ms.unwrap_or(now_ms), blade.serial.clone()));
                }
                enter(blade, to.clone(), now_ms);
            }
            Step::StartRun { suite, .. } => {
                assert_eq!(blade.sequence, one.sequence, "stale: {one:?}");
                let run = RunId(self.next_run);
                self.next_run += 1;
                self.started += 1;
                if matches!(blade.phase, Phase::Quarantined { .. }) {
                    blade.inconclusive = 0;
                }
                blade.run = Some(RunView {
                    run,
                    suite: suite.clone(),
                    state: RunState::Ordered,
                    created_ms: now_ms,
                    started_ms: None,
                    heard_ms: None,
                    budget_ms: 20 * MINUTE,
                    cohort: None,
                    progress: String::new(),
                });
                enter(blade, Phase::BurningIn { run }, now_ms);
            }
            Step::EndRun { run, end } => {
                let view = blade.run.as_mut().filter(|view| view.run == *run).unwrap();
                view.state = match end {
                    RunEnd::Lost { why } => {
                        blade.inconclusive += 1;
                        RunState::Lost { why: why.clone() }
                    }
                    RunEnd::Cancelled { why } => RunState::Cancelled { why: why.clone() },
                };
            }
            Step::Withhold { taint, note, .. } => {
                let node = blade.node.as_mut().unwrap();
                node.our_taint = Some(taint.clone());
                // As the operator does it: the note names the first case that was opened on the way here.
                let opens = one.steps.iter().any(|step| matches!(step, Step::OpenCase { .. }));
                let opened = blade.cases.iter().map(|case| case.case).min().filter(|_| opens);
                node.our_note = Some(Note { case: note.case.or(opened), ..note.clone() }.text());
                if !node.unschedulable {
                    node.unschedulable = true;
                    node.our_cordon = true;
                }
            }
            Step::Release { .. } => {
                assert!(matches!(blade.phase, Phase::Ready | Phase::InService { .. }), "let go: {blade:?}");
                let node = blade.node.as_mut().unwrap();
                node.our_taint = None;
                node.our_note = None;
                if std::mem::take(&mut node.our_cordon) {
                    node.unschedulable = false;
                }
            }
            Step::StartDrain { .. } => {
                let node = blade.node.as_mut().unwrap();
                (node.drain, node.drain_moved_ms) = (DrainState::Going, Some(now_ms));
            }
            Step::EndDrain { .. } => blade.node.as_mut().unwrap().drain = DrainState::None,
            Step::OpenCase { code, device, .. } => {
                let same = |case: &CaseView| case.code == *code && case.device == *device;
                assert!(!blade.cases.iter().any(same), "opened twice: {code}");
                let case = CaseId(self.next_case);
                self.next_case += 1;
                blade.cases.push(CaseView {
                    case,
                    code: code.clone(),
                    device: device.clone(),
                    opened_ms: now_ms,
                });
            }
            Step::CloseCase { case, .. } => blade.cases.retain(|open| open.case != *case),
            Step::Retested { retest } => blade.intent.retested = *retest,
            Step::ClearFaults { before_ms } => blade.faults.retain(|fault| fault.last_ms >= *before_ms),
        }
    }
}

/// Withheld for a fault, or on the way there.
pub fn by_fault(phase: &Phase) -> bool {
    let reason = QuarantineReason::Fault;
    *phase == Phase::Quarantined { reason }
        || *phase == Phase::Draining { then: AfterDrain::Quarantine { reason } }
}

/// Pods may come to a blade in this phase, and have to be gone when it leaves it.
pub fn may_hold_pods(phase: &Phase) -> bool {
    matches!(phase.name(), PhaseName::Ready | PhaseName::InService | PhaseName::Draining)
}

fn enter(blade: &mut BladeView, to: Phase, now_ms: i64) {
    assert!(blade.phase.name().may_become(to.name()), "{} to {}", blade.phase.name(), to.name());
    // Nothing leaves service, or is tested, while pods may still land on it.
    if !matches!(to, Phase::Ready | Phase::InService { .. })
        && let Some(node) = &blade.node
    {
        assert!(node.our_taint.is_some() && node.unschedulable, "not withheld: {blade:?}");
        let drained = matches!(to, Phase::Draining { .. }) || !may_hold_pods(&blade.phase);
        assert!(drained || node.pods_left.is_none_or(|pods| pods == 0), "pods are on it: {blade:?}");
    }
    if matches!(
        to,
        Phase::Quarantined { .. }
            | Phase::Repairing { .. }
            | Phase::Draining { then: AfterDrain::Quarantine { .. } }
    ) {
        blade.doubted_ms = Some(now_ms);
    }
    blade.phase = to;
    blade.since_ms = now_ms;
    blade.sequence += 1;
}

pub fn finish(blade: &mut BladeView, play: Play, now_ms: i64) {
    let Some(run) = blade.run.as_mut() else { return };
    let (outcome, code, why, action) = match play {
        Play::Pass | Play::Outlier => (Verdict::Pass, "ok", "all tests passed", Action::None),
        Play::Fail => (Verdict::Fail, "sdc", "gpu5 computes wrong bits on SM 41", Action::Replace),
        Play::Inconclusive => (Verdict::Inconclusive, "no-memory", "gpu2 has no free memory", Action::Reboot),
    };
    run.state = RunState::Finished { outcome, code: code.into(), why: why.into(), action };
    match outcome {
        Verdict::Inconclusive => blade.inconclusive += 1,
        _ => blade.inconclusive = 0,
    }
    if outcome == Verdict::Pass && blade.tranche.is_none() {
        blade.passed_ms = Some(now_ms);
    }
}

/// One tranche with a blade per number from 1, all joined.
pub fn joined(blades: usize, tranche: TrancheView) -> World {
    let name = tranche.name.to_string();
    let mut world =
        World::new(vec![tranche], (1..=blades).map(|number| blade(number, Some(&name))).collect());
    (1..=blades).for_each(|number| world.join(number));
    world
}

pub fn settle(world: &mut World) {
    for _ in 0..20 {
        world.now_ms += 1;
        let plan = plan(&world.site, world.now_ms);
        assert_eq!(lint(&world.site, &plan, world.now_ms), Vec::<String>::new());
        world.apply(&plan, usize::MAX);
        let judges = plan.tranches.iter().any(|tranche| !tranche.judge.is_empty());
        if !judges && plan.blades.iter().all(|one| one.steps.is_empty()) {
            return;
        }
    }
    panic!("does not come to rest");
}

pub fn pass_time(world: &mut World, ms: i64) {
    for _ in 0..ms / MINUTE {
        world.pass_time(MINUTE);
        settle(world);
    }
}

/// All blades in service.
pub fn serving(blades: usize) -> World {
    let mut tranche = tranche("t-1", 100);
    tranche.owner = Some(Owner::Inference);
    let mut world = joined(blades, tranche);
    settle(&mut world);
    pass_time(&mut world, 13 * MINUTE);
    assert!(world.site.blades.values().all(|blade| blade.phase.name() == PhaseName::InService));
    world
}

/// The plan of one blade, with nobody else dirty.
pub fn one(world: &World, number: usize) -> BladePlan {
    let few = BTreeSet::from([serial(number)]);
    plan_some(&world.site, &few, world.now_ms).blades.remove(0)
}

pub fn waits(world: &World, number: usize) -> WaitReason {
    match one(world, number).outcome {
        Outcome::Wait { reason } => reason,
        other => panic!("{other:?}"),
    }
}

pub fn goes(world: &World, number: usize) -> Phase {
    match one(world, number).outcome {
        Outcome::Transition { to, .. } => to,
        other => panic!("{other:?}"),
    }
}
