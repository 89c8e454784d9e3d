//! The writer: many reports in one transaction, signs of life and progress every few seconds.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use whetstone_model::ids::Serial;
use whetstone_model::wire::RunProgress;
use whetstone_store::{NewReport, NotStored, Seen, StoreError, Stored, all_or_each};

use super::refusal::{Reason, Refusal};
use super::{Metrics, Shared, What};
use crate::clock::now_ms;

/// Reports in one transaction at most.
const MAX_REPORTS: usize = 500;
/// Items in one transaction at most, give or take one report: some 200 ms of SQLite's time.
const MAX_ITEMS: usize = 64 * 1024;
/// Signs of life that wait at once; a site has 100,000 blades.
const MAX_SEEN: usize = 200_000;

/// What a report leaves to be written.
pub(super) struct Job {
    pub report: NewReport,
    pub facts: Option<Seen>,
    /// First word of a run: has to be on record before the agent is answered.
    pub picked_up: Option<RunProgress>,
    pub answer: oneshot::Sender<Result<Stored, Refusal>>,
}

/// The way in.
pub(super) struct Queue {
    jobs: mpsc::Sender<Job>,
    /// The latest of each blade.
    waiting: std::sync::Mutex<Waiting>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Waiting {
    seen: HashMap<Serial, Seen>,
    progress: HashMap<Serial, RunProgress>,
}

impl Queue {
    pub fn new(length: usize, metrics: Arc<Metrics>) -> (Queue, mpsc::Receiver<Job>) {
        let (jobs, waiting) = mpsc::channel(length);
        (Queue { jobs, waiting: std::sync::Mutex::default(), metrics }, waiting)
    }

    /// At once or not at all: a queue that is full says so to the agent, who has a spool for that.
    pub fn put(&self, job: Job) -> Result<(), Refusal> {
        let length = self.jobs.max_capacity() - self.jobs.capacity();
        self.metrics.queued(length);
        self.jobs.try_send(job).map_err(|_| {
            Refusal::unavailable(Reason::QueueFull, "more reports wait for the database than can be held")
        })
    }

    /// Written with the next flush.
    pub fn seen(&self, serial: &Serial, seen: Seen, progress: Option<RunProgress>) {
        let mut waiting = self.lock();
        if waiting.seen.len() < MAX_SEEN || waiting.seen.contains_key(serial) {
            waiting.seen.insert(serial.clone(), seen);
            if let Some(progress) = progress {
                waiting.progress.insert(serial.clone(), progress);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Writes until `cancel`, then what is left.
pub(super) async fn run(shared: Arc<Shared>, mut jobs: mpsc::Receiver<Job>, cancel: CancellationToken) {
    let mut flush = tokio::time::interval(shared.config.flush);
    flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut batch = Vec::with_capacity(MAX_REPORTS);
    loop {
        tokio::select! {
            job = jobs.recv() => match job {
                Some(first) => {
                    fill(&mut batch, first, &mut jobs);
                    write(&shared, &mut batch).await;
                }
                None => break,
            },
            _ = flush.tick() => write_seen(&shared).await,
            () = cancel.cancelled() => break,
        }
    }
    jobs.close();
    while let Some(first) = jobs.recv().await {
        fill(&mut batch, first, &mut jobs);
        write(&shared, &mut batch).await;
    }
    write_seen(&shared).await;
}

fn fill(batch: &mut Vec<Job>, first: Job, jobs: &mut mpsc::Receiver<Job>) {
    let mut items = first.report.items.len();
    batch.push(first);
    while batch.len() < MAX_REPORTS && items < MAX_ITEMS {
        let Ok(job) = jobs.try_recv() else { break };
        items += job.report.items.len();
        batch.push(job);
    }
}

/// What of a job is left when its report is taken out.
struct Rest {
    facts: Option<Seen>,
    picked_up: Option<RunProgress>,
    answer: oneshot::Sender<Result<Stored, Refusal>>,
}

/// One transaction for the evidence; facts and first words of runs after it, before anybody is answered.
async fn write(shared: &Arc<Shared>, batch: &mut Vec<Job>) {
    shared.metrics.batch(batch.len());
    let mut reports = Vec::with_capacity(batch.len());
    let mut rests = Vec::with_capacity(batch.len());
    for Job { report, facts, picked_up, answer } in batch.drain(..) {
        reports.push(report);
        rests.push(Rest { facts, picked_up, answer });
    }
    let outcomes = store(shared, &reports).await;
    // Told whatever comes next: a repeated report would say that nothing has changed.
    for (report, outcome) in reports.iter().zip(&outcomes) {
        if let Ok(stored) = outcome {
            let bodies = report.items.iter().map(|i| &i.body);
            shared.metrics.stored(bodies, stored.new as u64, report.items.len() as u64);
            if stored.faults_changed {
                shared.tell(&report.serial, What::Faults, report.at_ms);
            }
        }
    }
    let others = store_rest(shared, &reports, &rests).await;
    for ((report, rest), outcome) in reports.iter().zip(rests).zip(outcomes) {
        let needs_others = rest.facts.is_some() || rest.picked_up.is_some();
        let answer = match &others {
            Err(refusal) if needs_others => Err(refusal.clone()),
            _ => outcome,
        };
        if answer.is_ok() {
            if rest.facts.is_some() {
                shared.tell(&report.serial, What::Facts, report.at_ms);
            }
            if let Some(progress) = &rest.picked_up {
                shared.tell(&report.serial, What::PickedUp(progress.run), report.at_ms);
            }
        }
        // The agent may have gone; what is stored is stored.
        let _ = rest.answer.send(answer);
    }
}

fn failed(error: &StoreError, reports: usize) -> Refusal {
    tracing::warn!(%error, category = error.category(), reports, "reports were not stored");
    Refusal::store(error)
}

/// One outcome for each report.
async fn store(shared: &Arc<Shared>, reports: &[NewReport]) -> Vec<Result<Stored, Refusal>> {
    let store = &shared.store;
    let alone = |index: usize| store.store_reports(&reports[index..=index]);
    let stored = all_or_each((0..reports.len()).collect(), store.store_reports(reports), alone).await;
    let of_store = stored.into_iter().map(|stored| stored.map_err(|error| Refusal::store(&error)));
    of_store.map(|stored| stored.and_then(|outcome| outcome.map_err(refused))).collect()
}

fn refused(not: NotStored) -> Refusal {
    match not {
        NotStored::NoSuchBlade => Refusal::unknown_blade(),
        NotStored::BadSeq(_) => Refusal::bad(not.to_string()),
    }
}

async fn store_rest(shared: &Arc<Shared>, reports: &[NewReport], rests: &[Rest]) -> Result<(), Refusal> {
    let facts: Vec<Seen> = rests.iter().filter_map(|rest| rest.facts.clone()).collect();
    if !facts.is_empty() {
        shared.store.seen(&facts).await.map_err(|e| failed(&e, facts.len()))?;
    }
    let picked_up: Vec<(Serial, RunProgress)> = reports
        .iter()
        .zip(rests)
        .filter_map(|(report, rest)| Some((report.serial.clone(), rest.picked_up.clone()?)))
        .collect();
    if !picked_up.is_empty() {
        shared.store.run_progress(&picked_up, now_ms()).await.map_err(|e| failed(&e, picked_up.len()))?;
    }
    Ok(())
}

/// Signs of life and progress since the last time. On failure they wait on, unless there are newer ones.
async fn write_seen(shared: &Arc<Shared>) {
    let Waiting { seen, progress } = std::mem::take(&mut *shared.queue.lock());
    if !seen.is_empty() {
        let rows: Vec<Seen> = seen.into_values().collect();
        if let Err(error) = shared.store.seen(&rows).await {
            tracing::warn!(%error, "signs of life wait for the database");
            let mut waiting = shared.queue.lock();
            for row in rows {
                waiting.seen.entry(row.serial.clone()).or_insert(row);
            }
        }
    }
    if !progress.is_empty() {
        let rows: Vec<(Serial, RunProgress)> = progress.into_iter().collect();
        match shared.store.run_progress(&rows, now_ms()).await {
            Ok(()) => {
                for (serial, progress) in &rows {
                    shared.tell(serial, What::Progress(progress.run), now_ms());
                }
            }
            Err(error) => {
                tracing::warn!(%error, "progress of runs waits for the database");
                let mut waiting = shared.queue.lock();
                for (serial, progress) in rows {
                    waiting.progress.entry(serial).or_insert(progress);
                }
            }
        }
    }
}
