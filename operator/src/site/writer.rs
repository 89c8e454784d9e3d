//! Writes to the objects what the projector says of them: the latest word of each, tried again until it is there.
//!
//! Only while this process leads, asked before each request. What is not written then is known to the store: the next leader
//! says it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use whetstone_api::{Blade, BladeStatus, BurnIn, BurnInSpec, FIELD_MANAGER, RUN_LABEL, Tranche};
use whetstone_model::lifecycle::Phase;
use whetstone_store::{BladeRow, RunRow, Store};

use super::memory::{fulfils, is_of};
use super::{Parts, SiteError, status};
use crate::cluster::precedence::Precedence;
use crate::cluster::{ClusterError, Fence, REQUEST_LIMIT, Seen};
use crate::metrics::Metrics;

/// Writes at once.
const AT_ONCE: usize = 16;
/// A write that failed is tried again after this.
const AGAIN: Duration = Duration::from_secs(2);
/// Objects of past runs that are kept for each blade; all runs are in the store.
const RUNS_KEPT: usize = 3;

/// One write.
#[derive(Debug, Clone)]
pub enum Write {
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

/// What waits to be written, by kind and name of the object: `blade/b-1`.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<HashMap<String, Waiting>>,
    wake: Notify,
}

impl Queue {
    // A panic elsewhere cannot leave a map half changed.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A word that waits already gives way to this one.
    pub fn put(&self, key: String, write: Write, due: Instant) {
        self.lock().insert(key, Waiting { write, due });
        self.wake.notify_one();
    }
}

/// Writes what waits.
pub struct Writer {
    client: Client,
    store: Store,
    seen: Seen,
    fence: Fence,
    precedence: Precedence,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    queue: Arc<Queue>,
}

impl Writer {
    /// Starts it in the background, and answers what it writes from.
    pub fn start(parts: &Parts) -> Arc<Queue> {
        let queue = Arc::<Queue>::default();
        let Parts { client, store, seen, fence, precedence, metrics, tasks, stop, .. } = parts.clone();
        let writer = Writer { client, store, seen, fence, precedence, metrics, stop, queue: queue.clone() };
        tasks.spawn(writer.run());
        queue
    }

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
                    () = self.stop.cancelled() => return,
                    () = self.queue.wake.notified() => {}
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
        let mut waiting = self.queue.lock();
        let keys: Vec<String> =
            waiting.iter().filter(|(_, waiting)| waiting.due <= now).map(|(key, _)| key.clone()).collect();
        let due = keys.into_iter().filter_map(|key| waiting.remove_entry(&key));
        let due = due.map(|(key, waiting)| (key, waiting.write)).collect();
        (due, waiting.values().map(|waiting| waiting.due).min())
    }

    async fn one(&self, key: String, write: Write) {
        // Shut as soon as the operator ends, too: thousands may be due, and the lease is given back after the last of them.
        if !self.fence.holds() {
            return;
        }
        self.precedence.after_nodes().await;
        let name = key.split_once('/').map_or("", |(_, name)| name);
        let result = match &write {
            Write::Blade { row, status, patch } => self.blade(name, row, status, patch).await,
            Write::BladeInvalid { patch } => self.status::<Blade>(name, patch).await.map_err(Into::into),
            Write::Tranche { patch } => self.status::<Tranche>(name, patch).await.map_err(Into::into),
            Write::Wish { patch } => self.status::<BurnIn>(name, patch).await.map_err(Into::into),
            Write::Run { blade, run } => self.burnin(blade, run).await,
        };
        let error = match result {
            Ok(()) | Err(SiteError::Cluster(ClusterError::NotLeading { .. })) => return,
            Err(error) => error,
        };
        self.metrics.kube_errors.with_label_values(&[error.category()]).inc();
        if error.category() == "not_found" {
            return;
        }
        debug!(key, %error, "a status could not be written, it is tried again");
        // A newer word that has come meanwhile stands.
        let mut waiting = self.queue.lock();
        waiting.entry(key).or_insert(Waiting { write, due: Instant::now() + AGAIN });
    }

    /// One request. A status of long ago must not be written over what the next leader says.
    async fn ask<T>(
        &self,
        what: &str,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ClusterError> {
        self.fence.within(what, REQUEST_LIMIT, request).await
    }

    async fn status<K>(&self, name: &str, patch: &Value) -> Result<(), ClusterError>
    where
        K: Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope> + DeserializeOwned,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..Default::default() };
        let body = json!({ "status": patch });
        self.ask("patch status", api.patch_status(name, &parameters, &Patch::Merge(&body))).await.map(drop)
    }

    /// The schema lets no phase be left out that matters: after an outage the object goes through all that it missed. Where
    /// no way leads on from what it says, the store was restored from a backup: its word counts. (Or this word is older than
    /// what the next leader wrote. Then this process leads no more, and no further request is sent.)
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
        let api: Api<Blade> = Api::all(self.client.clone());
        let object = self.ask("get blade", api.get(name)).await?;
        let at = object.status.as_ref().and_then(|status| status.sequence).unwrap_or(0);
        let history = self.store.history(row.serial.as_str()).await?;
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
        let api: Api<Blade> = Api::all(self.client.clone());
        let now = self.ask("get blade", api.get(name)).await?;
        match status::difference(now.status.as_ref(), status)? {
            Some(patch) => Ok(self.status::<Blade>(name, &patch).await?),
            None => Ok(()),
        }
    }

    async fn burnin(&self, blade: &str, run: &RunRow) -> Result<(), SiteError> {
        let api: Api<BurnIn> = Api::all(self.client.clone());
        let runs = self.seen.runs_of(blade);
        let mut of_blade: Vec<BurnIn> =
            runs.iter().filter_map(|guard| guard.0.as_ref().ok()).cloned().collect();
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
            match self.ask("delete burnin", api.delete(&old.name_any(), &DeleteParams::default())).await {
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
        let owner = self.seen.blade(blade);
        object.metadata.owner_references =
            owner.and_then(|guard| guard.0.as_ref().ok()?.controller_owner_ref(&())).map(|owner| vec![owner]);
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..Default::default() };
        match self.ask("create burnin", api.create(&parameters, &object)).await {
            Err(error) if error.code() == Some(409) => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use axum::extract::{Request, State};
    use axum::http::{Method, StatusCode};
    use axum::response::{IntoResponse, Response};
    use prometheus::Registry;
    use tokio_util::task::TaskTracker;
    use whetstone_model::ids::{BladeName, Serial};
    use whetstone_store::ExpectedBlade;

    use super::*;
    use crate::dirty::Dirty;

    /// An apiserver with a blade that is further than what is written, and says so until its phase is taken off it.
    #[derive(Default)]
    struct Ahead {
        patches: Mutex<Vec<Value>>,
        /// Closed with the first refusal.
        fence: Option<Fence>,
    }

    fn resets(patch: &Value) -> bool {
        patch.get("phase") == Some(&Value::Null)
    }

    async fn answer(State(server): State<Arc<Ahead>>, request: Request) -> Response {
        let (method, body) = (request.method().clone(), request.into_body());
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let mut patches = server.patches.lock().unwrap();
        if method == Method::PATCH {
            let body: Value = serde_json::from_slice(&body).unwrap();
            patches.push(body["status"].clone());
            if !patches.iter().any(resets) {
                server.fence.iter().for_each(Fence::close);
                let status = json!({ "status": "Failure", "reason": "Invalid", "code": 422 });
                return (StatusCode::UNPROCESSABLE_ENTITY, axum::Json(status)).into_response();
            }
        }
        let blade = json!({
            "apiVersion": "whetstone.dev/v1alpha1", "kind": "Blade", "metadata": { "name": "b-1" },
            "spec": { "serial": "S1" }, "status": { "phase": "Ready", "sequence": 9 },
        });
        axum::Json(blade).into_response()
    }

    fn client(url: &str) -> Client {
        let mut config = kube::Config::new(url.parse().unwrap());
        config.default_retry = false;
        Client::try_from(config).unwrap()
    }

    /// What is sent of an expected blade's status. `closes`: the lead is lost with the first refusal.
    async fn sent(fence: Fence, closes: bool) -> Vec<Value> {
        let server = Arc::new(Ahead { fence: closes.then(|| fence.clone()), ..Ahead::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(axum::routing::any(answer)).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let store = Store::open(&format!("sqlite:{}?mode=rwc", path.display())).await.unwrap();
        let (serial, name) = (Serial::new("S1").unwrap(), BladeName::new("b-1").unwrap());
        let blade = ExpectedBlade { serial, name, tranche: None, rack: None, domain: None, sku: None };
        store.upsert_moving(&[blade], &BTreeSet::new(), 1).await.unwrap();
        let row = store.load_site().await.unwrap().blades.remove(0);
        let stop = CancellationToken::new();
        // Its watches are not needed.
        stop.cancel();
        let seen = Seen::start(&client("http://127.0.0.1:1"), &Dirty::default(), &TaskTracker::new(), &stop);
        let writer = Writer {
            client: client(&url),
            store,
            seen,
            fence,
            precedence: Precedence::default(),
            metrics: Arc::new(Metrics::new(&Registry::new()).unwrap()),
            stop,
            queue: Arc::default(),
        };
        let (phase, sequence) = (Some("Expected".to_owned()), Some(row.sequence));
        let status = BladeStatus { phase, sequence, ..BladeStatus::default() };
        let patch = json!({ "phase": "Expected", "sequence": row.sequence });
        let write = Write::Blade { row: Box::new(row), status: Box::new(status), patch };
        writer.one("blade/b-1".to_owned(), write).await;
        server.patches.lock().unwrap().clone()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_leads_no_more_forces_no_old_word_on_an_object() {
        let restored = sent(Fence::open(), false).await;
        assert_eq!(restored.iter().filter(|patch| resets(patch)).count(), 1, "{restored:?}");
        assert_eq!(restored.last().unwrap()["phase"], "Expected");
        let stale = sent(Fence::open(), true).await;
        assert_eq!(stale.len(), 1, "{stale:?}");
        assert_eq!(sent(Fence::shut(), false).await, [] as [Value; 0]);
    }
}
