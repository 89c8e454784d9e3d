//! Takes the steps of a plan. Makes no choices: each step is idempotent, says what it could not do, and is done before the next.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kube::Resource;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use tracing::info;
use whetstone_model::ids::Serial;
use whetstone_model::lifecycle::{Phase, PhaseName, QuarantineReason};
use whetstone_plan::{BladePlan, BladeView, RunEnd, RunState, Step};
use whetstone_store::{NewCase, NewRun, NewTransition, RunEndState, Stale, StoreError};

use super::memory::Memory;
use super::view::{self, NamedSuite};
use super::{Parts, SiteError};
use crate::clock::now_ms;
use crate::cluster::node::{self, Wanted};

/// Transitions that are written in one transaction at most.
const BATCH: usize = 500;

/// A batch fails as a whole: all who wait for it share the error.
type Answer = Result<Result<i64, Stale>, Arc<StoreError>>;

pub struct Executor {
    parts: Parts,
    transitions: mpsc::Sender<(NewTransition, oneshot::Sender<Answer>)>,
}

impl Executor {
    pub fn new(parts: Parts) -> Executor {
        let (transitions, queue) = mpsc::channel(BATCH);
        parts.tasks.spawn(write_transitions(parts.clone(), queue));
        Executor { parts, transitions }
    }

    /// All steps of one blade, in order.
    pub async fn take(&self, memory: &Memory, plan: &BladePlan) -> (Serial, Result<(), SiteError>) {
        (plan.serial.clone(), self.steps(memory, plan).await)
    }

    async fn steps(&self, memory: &Memory, plan: &BladePlan) -> Result<(), SiteError> {
        let Some(blade) = memory.site.blades.get(&plan.serial) else { return Ok(()) };
        // Where the blade is by the last of our own steps; a foreign one makes the rest void.
        let mut sequence = plan.sequence;
        for step in &plan.steps {
            self.step(memory, blade, step, &mut sequence).await?;
            self.count_step();
        }
        Ok(())
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
        sequence: &mut i64,
    ) -> Result<(), SiteError> {
        let Parts { store, drains, .. } = &self.parts;
        let serial = &blade.serial;
        match step {
            Step::Transition { to, why } => {
                *sequence = self.transition(blade, to, why, *sequence).await?;
            }
            Step::StartRun { suite, why } => {
                let run = new_run(memory, blade, suite, why)?;
                let (run, next) = store.start_run(serial, *sequence, &run, now_ms()).await??;
                self.moved(blade, &Phase::BurningIn { run }, why, next);
                *sequence = next;
                self.parts.intake.order_changed(serial);
            }
            Step::EndRun { run, end } => {
                let (end, word) = match end {
                    RunEnd::Lost { why } => (RunEndState::Lost { why: why.clone() }, "lost"),
                    RunEnd::Cancelled { why } => (RunEndState::Cancelled { why: why.clone() }, "cancelled"),
                };
                if store.end_run(*run, &end, now_ms()).await? {
                    info!(blade = %blade.name, %run, ?end, "run ended");
                    let suite = blade.run.as_ref().map_or("", |run| run.suite.as_str());
                    self.parts.metrics.runs_total.with_label_values(&[suite_label(suite), word]).inc();
                }
                self.parts.intake.order_changed(serial);
            }
            Step::Withhold { node, taint, note } => {
                let wanted = Wanted::Withheld {
                    blade: blade.name.to_string(),
                    taint: taint.clone(),
                    note: note.clone(),
                };
                if self.node(node, &wanted, "withhold").await?
                    // Out of service it goes over a drain first.
                    && (taint == QuarantineReason::Fault.as_str() || blade.phase.name() == PhaseName::InService)
                    // Once for each blade: that its note names a case later is another write.
                    && blade.node.as_ref().is_none_or(|node| node.our_taint.is_none())
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
                let case = store.open_case(&case).await?;
                info!(blade = %blade.name, %case, code, device, detail, "case");
            }
            Step::CloseCase { case, why } => {
                if store.close_case(*case, why, now_ms()).await? {
                    info!(blade = %blade.name, %case, why, "case closed");
                }
            }
            Step::Retested { retest } => {
                // A run that was asked for by an object of its own uses up no number of the spec's.
                let object = self.parts.seen.blade(blade.name.as_str());
                let wished = object.and_then(|guard| guard.0.as_ref().ok().map(|blade| blade.spec.retest));
                let retest = wished.map_or(*retest, |wished| wished.min(*retest));
                store.set_retested(&[(serial.clone(), retest)]).await?;
            }
            Step::ClearFaults => drop(store.clear_faults(serial).await?),
        }
        Ok(())
    }

    async fn node(&self, name: &str, wanted: &Wanted, verb: &str) -> Result<bool, SiteError> {
        let known = self.parts.seen.node(name);
        let result = node::apply(&self.parts.client, name, known.as_deref(), wanted).await;
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
        sequence: i64,
    ) -> Result<i64, SiteError> {
        let transition = NewTransition {
            serial: blade.serial.clone(),
            expect_sequence: sequence,
            to: to.clone(),
            why: why.to_owned(),
            run: blade.run.as_ref().map(|run| run.run),
            case: blade.cases.first().map(|case| case.case),
            at_ms: now_ms(),
        };
        let (answer, answered) = oneshot::channel();
        self.transitions.send((transition, answer)).await.map_err(|_| SiteError::Ending)?;
        let next = answered.await.map_err(|_| SiteError::Ending)???;
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
fn new_run(memory: &Memory, blade: &BladeView, suite: &str, why: &str) -> Result<NewRun, SiteError> {
    let of_tranche =
        blade.tranche.as_ref().and_then(|name| memory.suites.get(name)).filter(|s| s.name == suite);
    let NamedSuite { name, text, budget_ms } = match of_tranche {
        Some(suite) => suite.clone(),
        None => view::suite(suite, None)?,
    };
    // Devices of one tranche are compared with each other: they compute the same.
    let seed = Sha256::digest(blade.tranche.as_ref().map_or("", |tranche| tranche.as_str()).as_bytes());
    let seed = seed.iter().take(4).fold(0_u64, |seed, byte| seed << 8 | u64::from(*byte));
    Ok(NewRun {
        suite_name: name,
        suite_text: text,
        budget_ms,
        why: why.to_owned(),
        seed,
        sku: blade.sku.clone(),
    })
}

/// Writes what comes together in one transaction.
async fn write_transitions(
    parts: Parts,
    mut queue: mpsc::Receiver<(NewTransition, oneshot::Sender<Answer>)>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let (transitions, answers): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
        let timer = parts.metrics.store_seconds.with_label_values(&["transition"]).start_timer();
        let written = parts.store.transition(&transitions).await;
        timer.observe_duration();
        match written {
            Ok(results) => {
                for (answer, result) in answers.into_iter().zip(results) {
                    // Who asked is gone: the process ends.
                    let _ = answer.send(Ok(result));
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for answer in answers {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }
}
