//! The loop of the site: look at what changed, plan, take the steps, say in the objects what is.
//!
//! Only the leader runs it, and nobody else writes phases. It takes no hint from what woke it but the name of the blade: all
//! about that blade is looked up anew. A step that fails ends that blade's turn; it comes again, later each time.

mod execute;
mod judge;
mod known;
mod left;
mod manifest;
mod memory;
mod objects;
mod project;
pub mod status;
mod tally;
#[cfg(test)]
mod testing;
mod together;
pub mod view;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};
use whetstone_model::ids::Serial;
use whetstone_plan::{BladePlan, Outcome, Plan, SiteLimits, Step, WaitReason};
use whetstone_store::{SiteRows, Store, StoreError};

use crate::clock::now_ms;
use crate::cluster::drain::Drains;
use crate::cluster::events::Events;
use crate::cluster::node::Nodes;
use crate::cluster::precedence::Precedence;
use crate::cluster::{ClusterError, Fence, Seen};
use crate::dirty::{Dirty, Work};
use crate::intake::Intake;
use crate::metrics::Metrics;
use execute::Executor;
use memory::Memory;

/// Everything is looked at again so often: time passes without an event, and a place that one blade leaves is another's. Where a
/// look takes long, less often, so that it takes a twentieth of the time; but silence has to be told from an old look.
const FULL: Duration = Duration::from_secs(5);
const FULL_MOST: Duration = Duration::from_secs(15);
const FULL_SHARE: u32 = 20;
/// Events are gathered for so long: one look for a burst of them.
const GATHER: Duration = Duration::from_millis(10);
/// Blades whose steps are taken at once: what they write to the store goes together. Nodes have a bound of their own.
const AT_ONCE: usize = 1024;
/// A blade whose turn failed waits this long, doubled each time up to the limit.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);
/// One whose step was not even tried, as the apiserver answers nobody, comes again after this.
const SILENT: Duration = Duration::from_secs(2);

/// What a turn of the loop needs. All of it is shared with other parts of the operator.
#[derive(Clone)]
pub struct Parts {
    pub limits: SiteLimits,
    pub store: Store,
    pub client: Client,
    /// Whether this process may still act.
    pub fence: Fence,
    pub nodes: Nodes,
    pub seen: Seen,
    pub drains: Drains,
    pub events: Events,
    pub precedence: Precedence,
    pub dirty: Dirty,
    pub intake: Intake,
    pub metrics: Arc<Metrics>,
    /// A person's word that a mass quarantine is right.
    pub breaker_override: watch::Receiver<bool>,
    pub known: Arc<Known>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
    /// Ends the process after so many steps: tests kill the operator at every one. 0 = never.
    pub abort_after_steps: Arc<AtomicI64>,
}

pub use execute::new_run;
pub use known::Known;

#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The same for all that were written together.
    #[error("store: {0}")]
    Batch(#[from] Arc<StoreError>),
    #[error("the operator is ending")]
    Ending,
    #[error("kubernetes: {0}")]
    Cluster(#[from] ClusterError),
    #[error("{0}")]
    Spec(#[from] whetstone_api::SpecError),
    #[error("cannot be written: {0}")]
    Json(#[from] serde_json::Error),
    /// Somebody else moved the blade: the next look sees it.
    #[error("{0}")]
    Stale(#[from] whetstone_store::Stale),
}

impl SiteError {
    /// A bounded label for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            SiteError::Store(error) => error.category(),
            SiteError::Batch(error) => error.category(),
            SiteError::Ending => "ending",
            SiteError::Cluster(error) => error.category(),
            SiteError::Spec(_) => "spec",
            SiteError::Json(_) => "bug",
            SiteError::Stale(_) => "stale",
        }
    }
}

/// The loop.
pub struct Site {
    parts: Parts,
    memory: Memory,
    executor: Executor,
    projector: project::Projector,
    objects: objects::Objects,
    /// Blades whose turn failed: tries so far, and when the next is due.
    later: BTreeMap<Serial, (u32, Instant)>,
    /// When everything is looked at again.
    full: Instant,
}

impl Site {
    /// Its first turn reads everything. The watches have to be ready.
    pub fn new(parts: Parts) -> Site {
        let limits = SiteLimits { listening_since_ms: now_ms(), ..parts.limits.clone() };
        let memory = Memory::new(limits);
        let executor = Executor::new(parts.clone());
        let projector = project::Projector::start(parts.clone());
        parts.dirty.manifests();
        parts.dirty.all();
        let objects = objects::Objects::default();
        Site { parts, memory, executor, projector, objects, later: BTreeMap::new(), full: Instant::now() }
    }

    /// Runs until `stop`. A turn that fails as a whole (database away) is said and tried again.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut failures: u32 = 0;
        let mut breaker = self.parts.breaker_override.clone();
        loop {
            let due = self.later.values().map(|(_, due)| *due).min();
            let retry = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            let mut whole = false;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.parts.dirty.wait() => tokio::time::sleep(GATHER).await,
                () = retry => {}
                // Its sender lives as long as the ops API; without one nobody can change it.
                Ok(()) = breaker.changed() => whole = true,
                () = tokio::time::sleep_until(self.full.into()) => {}
            }
            let mut work = self.parts.dirty.take();
            work.manifests = self.objects.compare_now(work.manifests);
            // Due also where events never cease.
            work.all |= whole || self.full <= Instant::now();
            let started = Instant::now();
            match self.turn(&work).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    self.fail("turn", &error);
                    warn!(%error, "the site could not be looked at, it is tried again");
                    // Nothing of what was said may be forgotten.
                    self.parts.dirty.serials(work.serials);
                    work.blades.iter().for_each(|name| self.parts.dirty.blade(name));
                    work.nodes.iter().for_each(|name| self.parts.dirty.node(name));
                    if work.manifests {
                        self.parts.dirty.manifests();
                    }
                    if work.all {
                        self.parts.dirty.all();
                    }
                    failures = (failures + 1).min(6);
                    // After an outage silence is the operator's own, not the agents'.
                    self.memory.site.limits.listening_since_ms = now_ms();
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(RETRY * 2_u32.pow(failures - 1)) => {}
                    }
                }
            }
            self.parts.metrics.reconcile_seconds.observe(started.elapsed().as_secs_f64());
        }
    }

    fn fail(&self, what: &str, error: &SiteError) {
        self.parts.metrics.reconcile_errors.with_label_values(&[error.category()]).inc();
        match error {
            SiteError::Store(e) => self.parts.metrics.store_errors.with_label_values(&[e.category()]).inc(),
            SiteError::Batch(e) => self.parts.metrics.store_errors.with_label_values(&[e.category()]).inc(),
            SiteError::Cluster(e) => self.parts.metrics.kube_errors.with_label_values(&[e.category()]).inc(),
            SiteError::Json(_) => error!(what, %error, "a defect of the operator"),
            _ => {}
        }
    }

    /// One look and what follows from it.
    async fn turn(&mut self, work: &Work) -> Result<(), SiteError> {
        let parts = self.parts.clone();
        if !parts.fence.holds() {
            return Err(SiteError::Ending);
        }
        let mut listed = None;
        if work.manifests || self.memory.rows.is_empty() {
            listed = Some(manifest::sync(&parts, &mut self.memory, now_ms()).await?);
        }
        self.memory.site.limits.breaker_override = *parts.breaker_override.borrow();
        let begun = Instant::now();
        let mut dirty = self.look(work).await?;
        parts.drains.end_others(|node| self.memory.drains(node));
        let now = now_ms();
        dirty.extend(self.memory.planner.next_drains(&self.memory.site, now));
        if dirty.is_empty() && !work.all && !work.manifests {
            self.projector.wishes(&self.memory, &work.blades);
            return Ok(());
        }
        let plan = if work.all || work.manifests {
            let plan = self.memory.planner.plan(&self.memory.site, now);
            if work.all {
                self.full = Instant::now() + (begun.elapsed() * FULL_SHARE).clamp(FULL, FULL_MOST);
            }
            plan
        } else {
            self.memory.planner.plan_some(&self.memory.site, &dirty, now)
        };
        // It stays so until a person has spoken or nobody is held back, whatever time passes.
        self.memory.site.limits.breaker_tripped = plan.breaker.open;
        self.note_held_back(&plan);
        // What has nothing left to be done, or is gone, is due no more.
        let busy: BTreeSet<&Serial> =
            plan.blades.iter().filter(|blade| !blade.steps.is_empty()).map(|blade| &blade.serial).collect();
        self.later.retain(|serial, (_, due)| *due > begun || busy.contains(serial));
        self.take_steps(&plan).await;
        if let Some(listed) = listed {
            self.objects.write(&parts, &self.memory, &listed);
        }
        judge::start(&parts, &self.memory, &plan);
        parts.known.decided(&self.memory, &plan);
        self.projector.blades(&self.memory, &plan);
        self.projector.tranches(&self.memory, &plan, now);
        tally::breaker(&parts.metrics, &plan.breaker);
        self.projector.wishes(&self.memory, &work.blades);
        if work.manifests {
            self.projector.invalid(now);
            self.projector.wishes(&self.memory, &parts.seen.blades_of_runs());
        }
        if work.all {
            left::free(&parts, &self.memory).await;
            tally::site(&parts, &self.memory, &plan).await;
        }
        Ok(())
    }

    /// Until their nodes are withheld.
    fn note_held_back(&mut self, plan: &Plan) {
        let held_back = &mut self.memory.held_back;
        for blade in &plan.blades {
            let withholds = blade.steps.iter().any(|step| matches!(step, Step::Withhold { .. }));
            if matches!(blade.outcome, Outcome::Wait { reason: WaitReason::Breaker { .. } }) {
                held_back.insert(blade.serial.clone());
            } else if !withholds {
                held_back.remove(&blade.serial);
            }
        }
    }

    /// Looks up what was named, and answers whom to plan for. The rows are read anew where the store may have changed; of a
    /// blade whose object or node changed only those are.
    async fn look(&mut self, work: &Work) -> Result<BTreeSet<Serial>, SiteError> {
        let now = Instant::now();
        let mut changed = work.serials.clone();
        changed
            .extend(self.later.iter().filter(|(_, (_, due))| *due <= now).map(|(serial, _)| serial.clone()));
        let mut shown = BTreeSet::new();
        shown.extend(work.blades.iter().flat_map(|name| self.memory.by_name(name)).cloned());
        shown.extend(work.nodes.iter().flat_map(|name| self.memory.by_node(name)).cloned());
        let timer = || self.parts.metrics.store_seconds.with_label_values(&["load"]).start_timer();
        let rows = if work.all || work.manifests {
            let _timed = timer();
            let rows = self.parts.store.load_site().await?;
            changed = self.memory.rows.keys().cloned().collect();
            changed.extend(rows.blades.iter().map(|row| row.serial.clone()));
            rows
        } else if changed.is_empty() {
            SiteRows::default()
        } else {
            let _timed = timer();
            let asked: Vec<Serial> = changed.iter().cloned().collect();
            self.parts.store.load_blades(&asked).await?
        };
        for (serial, why) in &rows.unreadable {
            error!(serial, why, "a blade's row cannot be understood; the others go on");
        }
        shown.retain(|serial| !changed.contains(serial));
        self.memory.update(&changed, rows.blades, &self.parts.seen, &self.parts.drains);
        self.memory.show(&shown, &self.parts.seen, &self.parts.drains);
        changed.extend(shown);
        Ok(changed)
    }

    /// Takes each blade's steps in order, many blades at once.
    async fn take_steps(&mut self, plan: &Plan) {
        let executor = &self.executor;
        let memory = &self.memory;
        let now = Instant::now();
        let ready = |serial: &Serial| self.later.get(serial).is_none_or(|(_, due)| *due <= now);
        let mut turns = Vec::new();
        for blade in plan.blades.iter().filter(|blade| !blade.steps.is_empty() && ready(&blade.serial)) {
            turns.push(executor.take(memory, blade));
        }
        let only_node = |blade: &&BladePlan| {
            blade.steps.iter().all(|step| matches!(step, Step::Withhold { .. } | Step::Release { .. }))
        };
        let nodes_alone: BTreeSet<&Serial> =
            plan.blades.iter().filter(only_node).map(|blade| &blade.serial).collect();
        let done: Vec<_> = futures::stream::iter(turns).buffer_unordered(AT_ONCE).collect().await;
        for (serial, result) in done {
            match result {
                Ok(()) => {
                    self.later.remove(&serial);
                    // A change of a node alone comes back as the node's own event. Before that the view is still the old one,
                    // and the same step would be taken again and again while the watch is behind.
                    if !nodes_alone.contains(&serial) {
                        self.parts.dirty.serial(&serial);
                    }
                }
                Err(SiteError::Stale(why)) => {
                    debug!(%serial, %why, "moved meanwhile, it is looked at again");
                    self.parts.dirty.serial(&serial);
                }
                // Whoever leads next takes it.
                Err(SiteError::Cluster(ClusterError::NotLeading { .. })) => {}
                Err(SiteError::Ending) if self.parts.stop.is_cancelled() || !self.parts.fence.holds() => {}
                Err(SiteError::Cluster(ClusterError::Silent { .. })) => {
                    let tries = self.later.get(&serial).map_or(0, |(tries, _)| *tries);
                    self.later.insert(serial, (tries, Instant::now() + SILENT));
                }
                Err(error) => {
                    self.fail("blade", &error);
                    let tries = self.later.get(&serial).map_or(0, |(tries, _)| *tries).saturating_add(1);
                    let wait = (RETRY * 2_u32.pow(tries.min(6) - 1)).min(RETRY_MOST);
                    if tries == 1 {
                        warn!(%serial, %error, "a step failed, it is tried again");
                    }
                    self.later.insert(serial, (tries, Instant::now() + wait));
                }
            }
        }
    }
}
