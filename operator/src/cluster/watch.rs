//! What the apiserver has, kept up to date by watches. One object that cannot be understood stops nobody else.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;
use whetstone_api::{Blade, BurnIn, Tranche};

use crate::clock::now_ms;
use crate::dirty::Dirty;

/// Objects as they were last seen, without what nobody here reads.
#[derive(Clone)]
pub struct Seen {
    pub blades: Store<DeserializeGuard<Blade>>,
    pub tranches: Store<DeserializeGuard<Tranche>>,
    burnins: Store<DeserializeGuard<BurnIn>>,
    nodes: Store<Node>,
    runs: Arc<Runs>,
    /// When the last watch failed, ms; 0 = all is well.
    failed_ms: Arc<AtomicI64>,
}

/// Names of the runs' objects, by blade.
type Runs = Mutex<HashMap<String, BTreeSet<String>>>;

// A panic elsewhere cannot leave a map half changed.
fn lock(runs: &Runs) -> MutexGuard<'_, HashMap<String, BTreeSet<String>>> {
    runs.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seen {
    /// Starts the watches. They end with `stop`.
    pub fn start(client: &Client, dirty: &Dirty, tasks: &TaskTracker, stop: &CancellationToken) -> Seen {
        let (failed_ms, runs) = (Arc::new(AtomicI64::new(0)), Arc::default());
        let watch = Watch { client, dirty, tasks, stop, failed_ms: &failed_ms, runs: &runs };
        Seen {
            blades: watch.start(),
            tranches: watch.start(),
            burnins: watch.start(),
            nodes: watch.start(),
            runs: runs.clone(),
            failed_ms: failed_ms.clone(),
        }
    }

    /// Waits until everything was listed once.
    pub async fn ready(&self) -> Result<(), reflector::store::WriterDropped> {
        self.blades.wait_until_ready().await?;
        self.tranches.wait_until_ready().await?;
        self.burnins.wait_until_ready().await?;
        self.nodes.wait_until_ready().await
    }

    /// Milliseconds since the watches began to fail; `None` while they work.
    pub fn failing_for_ms(&self) -> Option<i64> {
        let since = self.failed_ms.load(Ordering::Relaxed);
        (since != 0).then(|| now_ms() - since)
    }

    pub fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.get(&ObjectRef::new(name))
    }

    /// A blade's object, if it can be understood.
    pub fn blade(&self, name: &str) -> Option<Arc<DeserializeGuard<Blade>>> {
        self.blades.get(&ObjectRef::new(name))
    }

    pub fn tranche(&self, name: &str) -> Option<Arc<DeserializeGuard<Tranche>>> {
        self.tranches.get(&ObjectRef::new(name))
    }

    /// The objects of a blade's runs, those of people's wishes too, in the order of their names.
    pub fn runs_of(&self, blade: &str) -> Vec<Arc<DeserializeGuard<BurnIn>>> {
        let names = lock(&self.runs).get(blade).cloned().unwrap_or_default();
        let objects = names.iter().filter_map(|name| self.burnins.get(&ObjectRef::new(name)));
        // The name may be another's by now.
        objects.filter(|guard| guard.0.as_ref().is_ok_and(|burnin| burnin.spec.blade == blade)).collect()
    }
}

struct Watch<'a> {
    client: &'a Client,
    dirty: &'a Dirty,
    tasks: &'a TaskTracker,
    stop: &'a CancellationToken,
    failed_ms: &'a Arc<AtomicI64>,
    runs: &'a Arc<Runs>,
}

/// A kind of object that is watched.
trait Watched: Resource<DynamicType = ()> {
    /// Drops what nobody here reads: it would be most of the memory.
    fn slim(&mut self) {
        self.meta_mut().managed_fields = None;
    }
    /// Changes with what the manifests are compared by: neither a status of our own making nor a wish that concerns this
    /// object alone may set off a comparison of all.
    fn manifest(&self) -> u64 {
        0
    }
    /// Says what has to be looked at. `listed`: what the manifests are compared by has changed.
    fn say(&self, dirty: &Dirty, listed: bool);
    /// Keeps by which other name it is looked up.
    fn index(&self, _there: bool, _runs: &Runs) {}
    /// All were listed: drops from the index whatever is none of them.
    fn prune(_listed: &HashMap<String, u64>, _runs: &Runs) {}
}

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

impl Watched for DeserializeGuard<Blade> {
    fn manifest(&self) -> u64 {
        match &self.0 {
            Ok(blade) => {
                let spec = &blade.spec;
                let place = (&spec.serial, &spec.sku, &spec.tranche, &spec.rack, &spec.nvlink_domain);
                // One that cannot be understood any more, or again, is said with the manifests.
                hash((place, blade.owner().err().map(|e| e.to_string())))
            }
            Err(invalid) => hash((&invalid.error, self.meta().generation)),
        }
    }
    fn say(&self, dirty: &Dirty, listed: bool) {
        dirty.blade(&self.name_any());
        if listed {
            dirty.manifests();
        }
    }
}

impl Watched for DeserializeGuard<Tranche> {
    fn manifest(&self) -> u64 {
        hash(self.meta().generation)
    }
    fn say(&self, dirty: &Dirty, listed: bool) {
        if listed {
            dirty.manifests();
        }
    }
}

impl Watched for DeserializeGuard<BurnIn> {
    fn say(&self, dirty: &Dirty, _listed: bool) {
        if let Ok(burnin) = &self.0 {
            dirty.blade(&burnin.spec.blade);
        }
    }
    fn index(&self, there: bool, runs: &Runs) {
        let Ok(burnin) = &self.0 else { return };
        let (mut runs, blade) = (lock(runs), &burnin.spec.blade);
        if there {
            runs.entry(blade.clone()).or_default().insert(self.name_any());
        } else if let Some(names) = runs.get_mut(blade) {
            names.remove(&self.name_any());
            if names.is_empty() {
                runs.remove(blade);
            }
        }
    }
    fn prune(listed: &HashMap<String, u64>, runs: &Runs) {
        lock(runs).retain(|_, names| {
            names.retain(|name| listed.contains_key(name));
            !names.is_empty()
        });
    }
}

impl Watched for Node {
    fn slim(&mut self) {
        self.metadata.managed_fields = None;
        self.status = None;
    }
    fn say(&self, dirty: &Dirty, _listed: bool) {
        dirty.node(&self.name_any());
    }
}

impl Watch<'_> {
    fn start<K>(&self) -> Store<K>
    where
        K: Watched
            + Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
            + DeserializeOwned
            + Clone
            + Debug
            + Send
            + Sync
            + 'static,
    {
        let (store, writer) = reflector::store::<K>();
        let api: Api<K> = Api::all(self.client.clone());
        let (dirty, stop, failed_ms) = (self.dirty.clone(), self.stop.clone(), self.failed_ms.clone());
        let runs = self.runs.clone();
        self.tasks.spawn(async move {
            let events = watcher(api, watcher::Config::default());
            let events = events.default_backoff().modify(Watched::slim).reflect(writer);
            let mut events = std::pin::pin!(events);
            let mut manifests = HashMap::new();
            loop {
                let event = tokio::select! {
                    () = stop.cancelled() => return,
                    event = events.next() => event,
                };
                match event {
                    Some(Ok(event)) => {
                        if failed_ms.swap(0, Ordering::Relaxed) != 0 {
                            dirty.all();
                        }
                        heard(&dirty, &event, &runs, &mut manifests);
                    }
                    Some(Err(error)) => {
                        let _ = failed_ms.compare_exchange(0, now_ms(), Ordering::Relaxed, Ordering::Relaxed);
                        warn!(kind = %K::kind(&()), %error, "watch failed, it begins anew");
                    }
                    None => return,
                }
            }
        });
        store
    }
}

/// `manifests`: what of each object the manifests were last compared by.
fn heard<K: Watched>(
    dirty: &Dirty,
    event: &watcher::Event<K>,
    runs: &Runs,
    manifests: &mut HashMap<String, u64>,
) {
    match event {
        watcher::Event::Apply(object) => {
            object.index(true, runs);
            let now = object.manifest();
            let listed = manifests.insert(object.name_any(), now) != Some(now);
            object.say(dirty, listed);
        }
        watcher::Event::Delete(object) => {
            object.index(false, runs);
            manifests.remove(&object.name_any());
            object.say(dirty, true);
        }
        watcher::Event::InitApply(object) => {
            object.index(true, runs);
            manifests.insert(object.name_any(), object.manifest());
        }
        watcher::Event::Init => manifests.clear(),
        watcher::Event::InitDone => {
            K::prune(manifests, runs);
            dirty.manifests();
            dirty.all();
        }
    }
}

#[cfg(test)]
mod tests {
    use whetstone_api::{BladeSpec, BurnInSpec};

    use super::*;

    fn blade(change: impl FnOnce(&mut Blade)) -> DeserializeGuard<Blade> {
        let mut blade = Blade::new("b-1", BladeSpec { serial: "S1".into(), ..BladeSpec::default() });
        change(&mut blade);
        DeserializeGuard(Ok(blade))
    }

    #[test]
    fn a_wish_of_one_blade_sets_off_no_comparison_of_manifests() {
        let (dirty, runs, mut manifests) = (Dirty::default(), Runs::default(), HashMap::new());
        let mut hear = |object| {
            heard(&dirty, &watcher::Event::Apply(object), &runs, &mut manifests);
            dirty.take()
        };
        assert!(hear(blade(|_| ())).manifests, "it is new");
        let work = hear(blade(|blade| blade.spec.retest = 1));
        assert!(!work.manifests && work.blades.contains("b-1"), "{work:?}");
        assert!(hear(blade(|blade| blade.spec.rack = Some("r-2".into()))).manifests, "it has moved");
        assert!(hear(blade(|blade| blade.spec.owner = Some("me".into()))).manifests, "not understood");
    }

    #[test]
    fn runs_are_found_by_their_blade_whatever_they_are_called() {
        let (dirty, runs) = (Dirty::default(), Runs::default());
        let spec = BurnInSpec { blade: "b-1".into(), suite: "quick".into(), reason: None };
        let run = DeserializeGuard(Ok(BurnIn::new("please", spec)));
        heard(&dirty, &watcher::Event::Apply(run.clone()), &runs, &mut HashMap::new());
        assert!(lock(&runs)["b-1"].contains("please"));
        assert!(dirty.take().blades.contains("b-1"), "the wish has to be looked at");
        heard(&dirty, &watcher::Event::Delete(run.clone()), &runs, &mut HashMap::new());
        assert!(lock(&runs).is_empty());
        // One that went while nobody watched.
        heard(&dirty, &watcher::Event::Apply(run), &runs, &mut HashMap::new());
        let all = watcher::Event::<DeserializeGuard<BurnIn>>::InitDone;
        heard(&dirty, &all, &runs, &mut HashMap::new());
        assert!(lock(&runs).is_empty());
    }
}
