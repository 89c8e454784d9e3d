//! What the apiserver has, kept up to date by watches. One object that cannot be understood stops nobody else.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

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

/// Objects as they were last seen.
#[derive(Clone)]
pub struct Seen {
    pub blades: Store<DeserializeGuard<Blade>>,
    pub tranches: Store<DeserializeGuard<Tranche>>,
    pub burnins: Store<DeserializeGuard<BurnIn>>,
    pub nodes: Store<Node>,
    /// When the last watch failed, ms; 0 = all is well.
    failed_ms: Arc<AtomicI64>,
}

/// What an event is about.
#[derive(Clone, Copy)]
enum About {
    Blade,
    Tranche,
    BurnIn,
    Node,
}

impl Seen {
    /// Starts the watches. They end with `stop`.
    pub fn start(client: &Client, dirty: &Dirty, tasks: &TaskTracker, stop: &CancellationToken) -> Seen {
        let failed_ms = Arc::new(AtomicI64::new(0));
        let watch = Watch { client, dirty, tasks, stop, failed_ms: &failed_ms };
        Seen {
            blades: watch.start(About::Blade),
            tranches: watch.start(About::Tranche),
            burnins: watch.start(About::BurnIn),
            nodes: watch.start(About::Node),
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
}

struct Watch<'a> {
    client: &'a Client,
    dirty: &'a Dirty,
    tasks: &'a TaskTracker,
    stop: &'a CancellationToken,
    failed_ms: &'a Arc<AtomicI64>,
}

impl Watch<'_> {
    fn start<K>(&self, about: About) -> Store<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
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
        self.tasks.spawn(async move {
            let events = watcher(api, watcher::Config::default()).default_backoff().reflect(writer);
            let mut events = std::pin::pin!(events);
            let mut generations = HashMap::new();
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
                        say(&dirty, about, &event, &mut generations);
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

/// `generations`: the spec of each object that was seen last. A status of our own making is no new wish, and must not set
/// off a comparison of all manifests.
fn say<K: Resource<DynamicType = ()>>(
    dirty: &Dirty,
    about: About,
    event: &watcher::Event<K>,
    generations: &mut HashMap<String, Option<i64>>,
) {
    let (name, new_wish) = match event {
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
            let (name, generation) = (object.name_any(), object.meta().generation);
            let before = generations.insert(name.clone(), generation);
            (name, before != Some(generation))
        }
        watcher::Event::Delete(object) => {
            let name = object.name_any();
            generations.remove(&name);
            (name, true)
        }
        watcher::Event::Init => return generations.clear(),
        watcher::Event::InitDone => {
            dirty.manifests();
            return dirty.all();
        }
    };
    match about {
        About::Node => dirty.node(&name),
        About::Tranche if new_wish => dirty.manifests(),
        About::Tranche => {}
        About::BurnIn => {
            // A run's object is called after its blade and the run's number.
            if let Some((blade, _)) = name.rsplit_once('-') {
                dirty.blade(blade);
            }
        }
        About::Blade => {
            dirty.blade(&name);
            if new_wish && !matches!(event, watcher::Event::InitApply(_)) {
                dirty.manifests();
            }
        }
    }
}
