//! Takes the steps of a plan. Makes no choices: each step is idempotent, says what it could not do, and is done before the next.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kube::Resource;
use tokio::sync::Semaphore;
use tracing::info;
use whetstone_model::ids::{CaseId, RunId, Serial, TrancheName};
use whetstone_model::lifecycle::{Phase, PhaseName, QuarantineReason};
use whetstone_plan::{BladePlan, BladeView, Note, RunEnd, RunState, Step};
use whetstone_store::{NewCase, NewRun, NewTransition, RunEndState, Stale};

use super::memory::Memory;
use super::together::Together;
use super::view::{self, NamedSuite};
use super::{Parts, SiteError};
use crate::clock::now_ms;
use crate::cluster::node::Wanted;

/// Writes to nodes at once. With so many a client reaches what an apiserver of 5,000 nodes takes on two cores, 500 to 700 a
/// second (docs/benchmarks/fleet.md).
const NODES_AT_ONCE: usize = 64;
/// Writes to the store at once that go one by one.
const STORE_AT_ONCE: usize = 16;

/// A run to be made, of which blade, and at which sequence.
type RunOf = (Serial, i64, NewRun);

pub struct Executor {
    parts: Parts,
    transitions: Together<NewTransition, Result<i64, Stale>>,
    runs: Together<RunOf, Result<(RunId, i64), Stale>>,
    cases: Together<NewCase, Option<CaseId>>,
    retested: Together<(Serial, i64), ()>,
    nodes: Semaphore,
    store: Semaphore,
}

/// How far one blade's steps are.
struct Taken {
    /// Where the blade is by the last of our own steps; a foreign one makes the rest void.
    sequence: i64,
    /// The first case that was opened on the way.
    case: Option<CaseId>,
}

impl Executor {
    pub fn new(parts: Parts) -> Executor {
        let (store, metrics) = (parts.store.clone(), parts.metrics.clone());
        let transitions = Together::start(&parts.tasks, move |transitions: Vec<NewTransition>| {
            let (store, metrics) = (store.clone(), metrics.clone());
            async move {
                let timer = metrics.store_seconds.with_label_values(&["transition"]).start_timer();
                let written = store.transition(&transitions).await;
                timer.observe_duration();
                written
            }
        });
        let store = parts.store.clone();
        let runs = Together::start(&parts.tasks, move |runs: Vec<RunOf>| {
            let store = store.clone();
            async move { store.start_runs(&runs, now_ms()).await }
        });
        let store = parts.store.clone();
        let cases = Together::start(&parts.tasks, move |cases: Vec<NewCase>| {
            let store = store.clone();
            async move { store.open_cases(&cases).await }
        });
        let store = parts.store.clone();
        let retested = Together::start(&parts.tasks, move |wishes: Vec<(Serial, i64)>| {
            let store = store.clone();
            async move { store.set_retested(&wishes).await.map(|_| vec![(); wishes.len()]) }
        });
        let (nodes, of_store) = (Semaphore::new(NODES_AT_ONCE), Semaphore::new(STORE_AT_ONCE));
        Executor { parts, transitions, runs, cases, retested, nodes, store: of_store }
    }

    /// All steps of one blade, in order.
    pub async fn take(&self, memory: &Memory, plan: &BladePlan) -> (Serial, Result<(), SiteError>) {
        (plan.serial.clone(), self.steps(memory, plan).await)
    }

    async fn steps(&self, memory: &Memory, plan: &BladePlan) -> Result<(), SiteError> {
        let Some(blade) = memory.site.blades.get(&plan.serial) else { return Ok(()) };
        let mut taken = Taken { sequence: plan.sequence, case: None };
        let mut failed = None;
        for step in &plan.steps {
            if !self.parts.fence.holds() {
                return Err(SiteError::Ending);
            }
            // A case that cannot be written holds up no taint; whatever comes after that waits.
            match (&failed, step) {
                (None, _) | (Some(_), Step::Withhold { .. }) => {}
                (Some(_), Step::OpenCase { .. }) => continue,
                (Some(_), _) => break,
            }
            match self.step(memory, blade, step, &mut taken).await {
                Ok(()) => self.count_step(),
                Err(error) if matches!(step, Step::OpenCase { .. }) => failed = Some(error),
                Err(error) => return Err(failed.unwrap_or(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// For the tests that kill the operator at every step.
    fn count_step(&self) {
        if self.parts.abort_after_steps.load(Ordering::Relaxed) > 0
            && self.parts.abort_after_steps.fetch_sub(1, Ordering::Relaxed) == 1
        {
            std::process::abort();
        }
    }

    async fn step(
        &self,
        memory: &Memory,
        blade: &BladeView,
        step: &Step,
        taken: &mut Taken,
    ) -> Result<(), SiteError> {
        let Parts { store, drains, .. } = &self.parts;
        let serial = &blade.serial;
        match step {
            Step::Transition { to, why } => {
                taken.sequence = self.transition(blade, to, why, taken).await?;
            }
            Step::StartRun { suite, why } => {
                let run = new_run(&memory.suites, blade, suite, why)?;
                let (run, next) = self.runs.write((serial.clone(), taken.sequence, run)).await??;
                self.moved(blade, &Phase::BurningIn { run }, why, next);
                taken.sequence = next;
                self.parts.intake.order_changed(serial);
            }
            Step::EndRun { run, end } => {
                let (end, word) = match end {
                    RunEnd::Lost { why } => (RunEndState::Lost { why: why.clone() }, "lost"),
                    RunEnd::Cancelled { why } => (RunEndState::Cancelled { why: why.clone() }, "cancelled"),
                };
                let _turn = self.store.acquire().await;
                if store.end_run(*run, &end, now_ms()).await? {
                    info!(blade = %blade.name, %run, ?end, "run ended");
                    let suite = blade.run.as_ref().map_or("", |run| run.suite.as_str());
                    self.parts.metrics.runs_total.with_label_values(&[suite_label(suite), word]).inc();
                }
                self.parts.intake.order_changed(serial);
            }
            Step::Withhold { node, taint, note } => {
                // The planner could not know the number of a case that was opened a step ago.
                let note = Note { case: note.case.or(taken.case), ..note.clone() };
                let wanted = Wanted::Withheld { blade: blade.name.to_string(), taint: taint.clone(), note };
                if self.node(node, &wanted, "withhold").await?
                    // Out of service it goes over a drain first.
                    && (taint == QuarantineReason::Fault.as_str()
                        || matches!(blade.phase.name(), PhaseName::InService | PhaseName::Ready))
                    // Once for each blade: that its note names a case later is another write.
                    && blade.node.as_ref().is_none_or(|node| node.our_taint.is_none())
                    && !memory.held_back.contains(&blade.serial)
                    && let Some(first) = blade.faults.iter().map(|fault| fault.since_ms).min()
                {
                    let seconds = Duration::from_millis(u64::try_from(now_ms() - first).unwrap_or(0));
                    self.parts.metrics.withhold_seconds.observe(seconds.as_secs_f64());
                }
            }
            Step::Release { node } => drop(self.node(node, &Wanted::Free, "release").await?),
            Step::StartDrain { node } => drains.start(node),
            Step::EndDrain { node } => drains.end(node),
            Step::OpenCase { code, device, detail, action, reason } => {
                let case = NewCase {
                    serial: serial.clone(),
                    code: code.clone(),
                    device: device.clone(),
                    reason: reason.as_str().to_owned(),
                    detail: detail.clone(),
                    action: *action,
                    at_ms: now_ms(),
                };
                // Without one its row is gone: whatever comes next says so.
                let Some(case) = self.cases.write(case).await? else { return Err(Stale::NoSuchBlade.into()) };
                taken.case.get_or_insert(case);
                info!(blade = %blade.name, %case, code, device, detail, "case");
            }
            Step::CloseCase { case, why } => {
                let _turn = self.store.acquire().await;
                if store.close_case(*case, why, now_ms()).await? {
                    info!(blade = %blade.name, %case, why, "case closed");
                }
            }
            Step::Retested { retest } => {
                // A run that was asked for by an object of its own uses up no number of the spec's.
                let object = self.parts.seen.blade(blade.name.as_str());
                let wished = object.and_then(|guard| guard.0.as_ref().ok().map(|blade| blade.spec.retest));
                let retest = wished.map_or(*retest, |wished| wished.min(*retest));
                self.retested.write((serial.clone(), retest)).await?;
            }
            Step::ClearFaults { before_ms } => {
                let _turn = self.store.acquire().await;
                store.clear_faults(serial, *before_ms).await?;
            }
        }
        Ok(())
    }

    async fn node(&self, name: &str, wanted: &Wanted, verb: &str) -> Result<bool, SiteError> {
        let _first = self.parts.precedence.first();
        let _turn = self.nodes.acquire().await;
        let known = self.parts.seen.node(name);
        let result = self.parts.nodes.apply(name, known.as_deref(), wanted).await;
        let word = match &result {
            Ok(true) => "changed",
            Ok(false) => "same",
            Err(error) => error.category(),
        };
        self.parts.metrics.node_patches.with_label_values(&[verb, word]).inc();
        Ok(result?)
    }

    async fn transition(
        &self,
        blade: &BladeView,
        to: &Phase,
        why: &str,
        taken: &Taken,
    ) -> Result<i64, SiteError> {
        let transition = NewTransition {
            serial: blade.serial.clone(),
            expect_sequence: taken.sequence,
            to: to.clone(),
            why: why.to_owned(),
            run: blade.run.as_ref().map(|run| run.run),
            case: blade.cases.first().map(|case| case.case).or(taken.case),
            at_ms: now_ms(),
        };
        let next = self.transitions.write(transition).await??;
        self.moved(blade, to, why, next);
        Ok(next)
    }

    /// One line and the counts for a transition that is written.
    fn moved(&self, blade: &BladeView, to: &Phase, why: &str, sequence: i64) {
        self.run_over(blade);
        let (from, to_name) = (blade.phase.name(), to.name());
        info!(blade = %blade.name, serial = %blade.serial, %from, to = %to_name, sequence, why, "transition");
        let object = self.parts.seen.blade(blade.name.as_str());
        if let Some(object) = object.as_ref().and_then(|guard| guard.0.as_ref().ok()) {
            let warning = matches!(to, Phase::Quarantined { .. } | Phase::Draining { .. });
            self.parts.events.say(object.object_ref(&()), warning, to_name.as_str(), why);
        }
        let metrics = &self.parts.metrics;
        metrics.transitions.with_label_values(&[from.as_str(), to_name.as_str()]).inc();
        let seconds = (now_ms() - blade.since_ms).max(0) as f64 / 1000.0;
        metrics.phase_seconds.with_label_values(&[from.as_str()]).observe(seconds);
        match to {
            Phase::Ready => metrics.verdicts.with_label_values(&["pass", "burn-in"]).inc(),
            Phase::Quarantined { reason } => {
                let outcome = if *reason == QuarantineReason::Untestable { "inconclusive" } else { "fail" };
                metrics.verdicts.with_label_values(&[outcome, reason.as_str()]).inc();
            }
            _ => {}
        }
    }

    /// A blade leaves `BurningIn` with a run that is over: it is counted here, once.
    fn run_over(&self, blade: &BladeView) {
        let (Phase::BurningIn { .. }, Some(run)) = (&blade.phase, &blade.run) else { return };
        let RunState::Finished { outcome, .. } = &run.state else { return };
        let suite = suite_label(&run.suite);
        self.parts.metrics.runs_total.with_label_values(&[suite, outcome.as_str()]).inc();
        if let (Some(started), Some(heard)) = (run.started_ms, run.heard_ms) {
            let seconds = (heard - started).max(0) as f64 / 1000.0;
            self.parts.metrics.run_seconds.with_label_values(&[suite]).observe(seconds);
        }
    }
}

/// Names of suites are people's: only the built-in ones are labels.
pub fn suite_label(suite: &str) -> &str {
    if matches!(suite, "quick" | "standard" | "soak") { suite } else { "other" }
}

/// The run that a blade is to have: its tranche's suite where that is meant, else a built-in one.
pub fn new_run(
    suites: &BTreeMap<TrancheName, NamedSuite>,
    blade: &BladeView,
    suite: &str,
    why: &str,
) -> Result<NewRun, SiteError> {
    let of_tranche = blade.tranche.as_ref().and_then(|name| suites.get(name)).filter(|s| s.name == suite);
    let NamedSuite { name, text, budget_ms } = match of_tranche {
        Some(suite) => suite.clone(),
        None => view::suite(suite, None)?,
    };
    Ok(NewRun {
        suite_name: name,
        suite_text: text,
        budget_ms,
        why: why.to_owned(),
        // Another one for every run: it stands in what the agent signs, so that the result of one run cannot pass for that of
        // another. Bits are compared between the devices of one blade only, in one run. 53 bits: a number that every reader
        // of JSON keeps.
        seed: rand::random::<u64>() >> 11,
        sku: blade.sku.clone(),
    })
}
