//! Says in the objects what is: status of blades and tranches, one `BurnIn` for each run.
//!
//! Behind the loop and slower than it: an apiserver that is slow or away holds up no quarantine. What waits to be written is
//! kept by object, the latest word alone. Progress of a run is written every few seconds, everything else at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::{debug, warn};
use whetstone_api::{
    Blade, BladeStatus, BurnIn, BurnInPhase, BurnInSpec, FIELD_MANAGER, RUN_LABEL, SpecError, Tranche,
};
use whetstone_model::lifecycle::{Phase, PhaseName};
use whetstone_plan::{BladePlan, Plan, Step};
use whetstone_store::{BladeRow, RunRow};

use super::memory::{Memory, fulfils, is_of};
use super::{Parts, SiteError, status, view};
use crate::clock::now_ms;
use crate::cluster::{ClusterError, within};

/// Writes at once.
const AT_ONCE: usize = 16;
/// Between two writes of mere progress of one object.
const PROGRESS: Duration = Duration::from_secs(5);
/// A write that failed is tried again after this.
const AGAIN: Duration = Duration::from_secs(2);
/// Objects of past runs that are kept for each blade; all runs are in the store.
const RUNS_KEPT: usize = 3;

/// One write.
#[derive(Debug, Clone)]
enum Write {
    Blade {
        row: Box<BladeRow>,
        status: Box<BladeStatus>,
        patch: Value,
    },
    BladeInvalid {
        patch: Value,
    },
    Run {
        blade: String,
        run: Box<RunRow>,
    },
    /// A person's `BurnIn` that nothing can come of, or not yet.
    Wish {
        patch: Value,
    },
    Tranche {
        patch: Value,
    },
}

struct Waiting {
    write: Write,
    due: Instant,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<HashMap<String, Waiting>>,
    wake: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct Projector {
    parts: Parts,
    shared: Arc<Shared>,
    /// When mere progress of an object was last handed on.
    progressed: HashMap<String, Instant>,
    said: HashMap<String, String>,
}

impl Projector {
    pub fn start(parts: Parts) -> Projector {
        let shared = Arc::<Shared>::default();
        let writer = Writer { parts: parts.clone(), shared: shared.clone() };
        parts.tasks.spawn(writer.run());
        Projector { parts, shared, progressed: HashMap::new(), said: HashMap::new() }
    }

    fn put(&self, key: String, write: Write, due: Instant) {
        self.shared.lock().insert(key, Waiting { write, due });
        self.shared.wake.notify_one();
    }

    /// At once, or, for mere progress, when the last one is old enough.
    fn when(&mut self, key: &str, urgent: bool) -> Instant {
        let now = Instant::now();
        let due = match self.progressed.get(key) {
            // One waits already: a newer word goes with it and does not put it off.
            Some(next) if !urgent && *next > now => *next,
            Some(last) if !urgent => (*last + PROGRESS).max(now),
            _ => now,
        };
        self.progressed.insert(key.to_owned(), due);
        due
    }

    /// The runs of the blades that were planned for, and the status of those that do not move on in this very turn.
    pub fn blades(&mut self, memory: &Memory, plan: &Plan) {
        let now = now_ms();
        for blade in &plan.blades {
            let Some(row) = memory.rows.get(&blade.serial) else { continue };
            // Also of a blade that moves on: the next look may know another run, and this one's object would stay as it is.
            if let Some(run) = row.run.as_ref().filter(|_| row.phase.name() != PhaseName::Expected) {
                self.run(row, run);
            }
            if moves(blade) {
                continue;
            }
            let Some(guard) = self.parts.seen.blade(row.name.as_str()) else { continue };
            let Ok(object) = &guard.0 else { continue };
            if object.spec.serial != row.serial.as_str() || memory.invalid.contains_key(&row.serial) {
                continue;
            }
            let node = memory.site.blades.get(&row.serial).and_then(|view| view.node.as_ref());
            let before = object.status.as_ref();
            let after = status::blade(
                row,
                blade,
                node.map(|node| node.name.as_str()),
                before,
                object.meta().generation,
                now,
            );
            if before == Some(&after) {
                continue;
            }
            let patch = match status::difference(before, &after) {
                Ok(Some(patch)) => patch,
                Ok(None) => continue,
                Err(error) => {
                    warn!(blade = %row.name, %error, "its status cannot be written");
                    continue;
                }
            };
            let urgent = before.is_none_or(|before| {
                (before.sequence, &before.phase, before.conditions.len())
                    != (after.sequence, &after.phase, after.conditions.len())
                    || before.verdict != after.verdict
            });
            let key = format!("blade/{}", row.name);
            let due = self.when(&key, urgent);
            let write = Write::Blade { row: Box::new(row.clone()), status: Box::new(after), patch };
            self.put(key, write, due);
        }
    }

    /// Says of people's `BurnIn`s for `blades` what is wrong with them: no such blade, no such suite.
    pub fn wishes(&mut self, memory: &Memory, blades: &BTreeSet<String>) {
        for name in blades {
            let row = memory.by_name(name).find_map(|serial| memory.rows.get(serial));
            let suite = row.and_then(|row| memory.suites.get(row.tranche.as_ref()?));
            for guard in self.parts.seen.runs_of(name) {
                let Some(burnin) = guard.0.as_ref().ok().filter(|burnin| status::is_wish(burnin)) else {
                    continue;
                };
                let wanted = match (row, view::suite_of_wish(&burnin.spec.suite, suite)) {
                    (_, Err(error)) => Some(status::burnin_refused(&error.to_string())),
                    (None, Ok(())) => Some(status::burnin_waits(&format!("there is no blade {name} (yet)"))),
                    // It was waited for, and has come.
                    (Some(_), Ok(())) => burnin.status.is_some().then(|| status::burnin_waits("")),
                };
                let Some(wanted) = wanted else { continue };
                if let Ok(Some(patch)) = status::difference(burnin.status.as_ref(), &wanted) {
                    self.put(format!("wish/{}", burnin.name_any()), Write::Wish { patch }, Instant::now());
                }
            }
        }
    }

    fn run(&mut self, row: &BladeRow, run: &RunRow) {
        let wanted = status::burnin(run);
        let key = format!("run/{}", run.run);
        let text = format!("{wanted:?}");
        if self.said.get(&key) == Some(&text) {
            return;
        }
        let over = !matches!(wanted.phase, Some(BurnInPhase::Pending | BurnInPhase::Running) | None);
        let due = self.when(&key, over);
        self.said.insert(key.clone(), text);
        if self.said.len() > 20_000 {
            // Said anew is no harm: the writer compares with what is there.
            self.said.clear();
        }
        self.put(key, Write::Run { blade: row.name.to_string(), run: Box::new(run.clone()) }, due);
    }

    pub fn tranches(&mut self, memory: &Memory, plan: &Plan, now_ms: i64) {
        for tranche in &plan.tranches {
            let Some(view) = memory.site.tranches.get(&tranche.tranche) else { continue };
            let Some(guard) = self.parts.seen.tranche(tranche.tranche.as_str()) else { continue };
            let Ok(object) = &guard.0 else { continue };
            let missing: Vec<_> = if tranche.counts.expected == 0 {
                Vec::new()
            } else {
                let of_it =
                    memory.site.blades.values().filter(|b| b.tranche.as_ref() == Some(&tranche.tranche));
                of_it.filter(|b| b.phase == Phase::Expected).map(|b| &b.serial).take(20).collect()
            };
            let before = object.status.as_ref();
            let after = status::tranche(
                tranche,
                &missing,
                &view.duplicates,
                memory.refused.get(&tranche.tranche).map_or(&[], Vec::as_slice),
                before,
                object.meta().generation,
                now_ms,
            );
            if let Ok(Some(patch)) = status::difference(before, &after) {
                let key = format!("tranche/{}", tranche.tranche);
                let due = self.when(&key, before.is_none_or(|before| before.phase != after.phase));
                self.put(key, Write::Tranche { patch }, due.min(Instant::now() + Duration::from_secs(1)));
            }
        }
    }

    /// Objects that cannot be understood get a condition that says so.
    pub fn invalid(&mut self, now_ms: i64) {
        let mut found: BTreeMap<String, (bool, Value, String, Option<i64>)> = BTreeMap::new();
        for guard in self.parts.seen.blades.state() {
            let why = match &guard.0 {
                Err(invalid) => Some(invalid.error.clone()),
                Ok(blade) => understood(blade).err().map(|e| e.to_string()),
            };
            if let Some(why) = why {
                let before = guard.0.as_ref().ok().and_then(|blade| blade.status.as_ref());
                let before = before.map(|status| status.conditions.clone()).unwrap_or_default();
                let conditions = status::invalid(&before, guard.meta().generation, &why, now_ms);
                let key = format!("blade/{}", guard.name_any());
                found.insert(key, (true, json!({ "conditions": conditions }), why, guard.meta().generation));
            }
        }
        for guard in self.parts.seen.tranches.state() {
            let why = match &guard.0 {
                Err(invalid) => Some(invalid.error.clone()),
                Ok(tranche) => view::suite(&tranche.spec.suite, tranche.spec.suite_text.as_deref())
                    .err()
                    .or_else(|| tranche.owner().err())
                    .map(|e| e.to_string()),
            };
            if let Some(why) = why {
                let before = guard.0.as_ref().ok().and_then(|tranche| tranche.status.as_ref());
                let before = before.map(|status| status.conditions.clone()).unwrap_or_default();
                let conditions = status::invalid(&before, guard.meta().generation, &why, now_ms);
                let key = format!("tranche/{}", guard.name_any());
                found.insert(key, (false, json!({ "conditions": conditions }), why, guard.meta().generation));
            }
        }
        for (key, (blade, patch, why, generation)) in found {
            let text = format!("invalid {generation:?} {why}");
            if self.said.insert(key.clone(), text.clone()).as_ref() != Some(&text) {
                warn!(object = key, why, "cannot be understood; its last wish stays");
                let write = if blade { Write::BladeInvalid { patch } } else { Write::Tranche { patch } };
                self.put(key, write, Instant::now());
            }
        }
    }
}

fn understood(blade: &Blade) -> Result<(), SpecError> {
    blade.serial()?;
    blade.owner()?;
    blade.tranche()?;
    blade.rack()?;
    blade.domain()?;
    Ok(())
}

/// A blade that moves on in this turn is shown by the next look.
fn moves(plan: &BladePlan) -> bool {
    plan.steps.iter().any(|step| matches!(step, Step::Transition { .. } | Step::StartRun { .. }))
}

/// Writes what waits.
struct Writer {
    parts: Parts,
    shared: Arc<Shared>,
}

impl Writer {
    async fn run(self) {
        loop {
            let (due, next) = self.take();
            if due.is_empty() {
                let pause = async {
                    match next {
                        Some(at) => tokio::time::sleep_until(at.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    // What is not written is known to the store: the next leader says it.
                    () = self.parts.stop.cancelled() => return,
                    () = self.shared.wake.notified() => {}
                    () = pause => {}
                }
                continue;
            }
            futures::stream::iter(due)
                .for_each_concurrent(AT_ONCE, |(key, write)| {
                    let writer = &self;
                    async move { writer.one(key, write).await }
                })
                .await;
        }
    }

    /// What is due, and when the next is.
    fn take(&self) -> (Vec<(String, Write)>, Option<Instant>) {
        let now = Instant::now();
        let mut waiting = self.shared.lock();
        let keys: Vec<String> =
            waiting.iter().filter(|(_, waiting)| waiting.due <= now).map(|(key, _)| key.clone()).collect();
        let due = keys.into_iter().filter_map(|key| waiting.remove_entry(&key));
        let due = due.map(|(key, waiting)| (key, waiting.write)).collect();
        (due, waiting.values().map(|waiting| waiting.due).min())
    }

    async fn one(&self, key: String, write: Write) {
        self.parts.precedence.after_nodes().await;
        let name = key.split_once('/').map_or("", |(_, name)| name);
        let result = match &write {
            Write::Blade { row, status, patch } => self.blade(name, row, status, patch).await,
            Write::BladeInvalid { patch } => self.status::<Blade>(name, patch).await.map_err(Into::into),
            Write::Tranche { patch } => self.status::<Tranche>(name, patch).await.map_err(Into::into),
            Write::Wish { patch } => self.status::<BurnIn>(name, patch).await.map_err(Into::into),
            Write::Run { blade, run } => self.burnin(blade, run).await,
        };
        let Err(error) = result else { return };
        self.parts.metrics.kube_errors.with_label_values(&[error.category()]).inc();
        if error.category() == "not_found" {
            return;
        }
        debug!(key, %error, "a status could not be written, it is tried again");
        // A newer word that has come meanwhile stands.
        let mut waiting = self.shared.lock();
        waiting.entry(key).or_insert(Waiting { write, due: Instant::now() + AGAIN });
    }

    async fn status<K>(&self, name: &str, patch: &Value) -> Result<(), ClusterError>
    where
        K: Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope> + DeserializeOwned,
    {
        let api: Api<K> = Api::all(self.parts.client.clone());
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..Default::default() };
        let body = json!({ "status": patch });
        within("patch status", api.patch_status(name, &parameters, &Patch::Merge(&body))).await.map(drop)
    }

    /// The schema lets no phase be left out that matters: after an outage the object goes through all that it missed. Where
    /// no way leads on from what it says, the store was restored from a backup: its word counts.
    async fn blade(
        &self,
        name: &str,
        row: &BladeRow,
        status: &BladeStatus,
        patch: &Value,
    ) -> Result<(), SiteError> {
        let refused = |error: &ClusterError| error.code() == Some(422);
        match self.status::<Blade>(name, patch).await {
            Err(error) if refused(&error) => {}
            result => return Ok(result?),
        }
        match self.missed(name, row).await {
            Err(SiteError::Cluster(error)) if refused(&error) => {}
            other => other?,
        }
        match self.rest(name, status).await {
            Err(SiteError::Cluster(error)) if refused(&error) => {}
            result => return result,
        }
        warn!(
            blade = name,
            phase = status.phase,
            "its object says what the store cannot follow: the store's word is written"
        );
        self.status::<Blade>(name, &json!({ "phase": null, "owner": null, "sequence": null })).await?;
        self.rest(name, status).await
    }

    /// The transitions that its object has not shown, one by one.
    async fn missed(&self, name: &str, row: &BladeRow) -> Result<(), SiteError> {
        let api: Api<Blade> = Api::all(self.parts.client.clone());
        let object = within("get blade", api.get(name)).await?;
        let at = object.status.as_ref().and_then(|status| status.sequence).unwrap_or(0);
        let history = self.parts.store.history(row.serial.as_str()).await?;
        for missed in history.iter().flat_map(|history| &history.transitions).filter(|t| t.sequence > at) {
            let owner = match &missed.to {
                Phase::InService { owner } => json!(owner.to_string()),
                _ => Value::Null,
            };
            let step =
                json!({ "phase": missed.to.name().as_str(), "sequence": missed.sequence, "owner": owner });
            self.status::<Blade>(name, &step).await?;
        }
        Ok(())
    }

    /// What its object does not say yet.
    async fn rest(&self, name: &str, status: &BladeStatus) -> Result<(), SiteError> {
        let api: Api<Blade> = Api::all(self.parts.client.clone());
        let now = within("get blade", api.get(name)).await?;
        match status::difference(now.status.as_ref(), status)? {
            Some(patch) => Ok(self.status::<Blade>(name, &patch).await?),
            None => Ok(()),
        }
    }

    async fn burnin(&self, blade: &str, run: &RunRow) -> Result<(), SiteError> {
        let api: Api<BurnIn> = Api::all(self.parts.client.clone());
        let mut of_blade: Vec<BurnIn> = self
            .parts
            .seen
            .runs_of(blade)
            .iter()
            .filter_map(|guard| guard.0.as_ref().ok())
            .cloned()
            .collect();
        let number = |burnin: &BurnIn| burnin.status.as_ref().and_then(|status| status.run);
        let own_name = format!("{blade}-{}", run.run);
        // A person's wish for a run becomes that run.
        let there = of_blade
            .iter()
            .find(|burnin| is_of(burnin, run) || burnin.name_any() == own_name)
            .or_else(|| of_blade.iter().find(|burnin| status::is_wish(burnin) && fulfils(run, burnin)));
        let (name, before) = match there {
            Some(burnin) => (burnin.name_any(), burnin.status.clone()),
            None => {
                self.create_run(&api, blade, &own_name, run).await?;
                (own_name, None)
            }
        };
        if let Some(patch) = status::difference(before.as_ref(), &status::burnin(run))? {
            self.status::<BurnIn>(&name, &patch).await?;
        }
        of_blade.retain(|burnin| number(burnin).is_some_and(|n| n < run.run.0));
        of_blade.sort_by_key(|burnin| std::cmp::Reverse(number(burnin)));
        for old in of_blade.iter().skip(RUNS_KEPT - 1) {
            match within("delete burnin", api.delete(&old.name_any(), &DeleteParams::default())).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    async fn create_run(
        &self,
        api: &Api<BurnIn>,
        blade: &str,
        name: &str,
        run: &RunRow,
    ) -> Result<(), SiteError> {
        let spec = BurnInSpec { blade: blade.to_owned(), suite: run.suite.clone(), reason: None };
        let mut object = BurnIn::new(name, spec);
        object.metadata.labels = Some([(RUN_LABEL.to_owned(), run.run.to_string())].into());
        // With its blade's object it goes, too.
        let owner = self.parts.seen.blade(blade);
        object.metadata.owner_references =
            owner.and_then(|guard| guard.0.as_ref().ok()?.controller_owner_ref(&())).map(|owner| vec![owner]);
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..Default::default() };
        match within("create burnin", api.create(&parameters, &object)).await {
            Err(error) if error.code() == Some(409) => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }
}
