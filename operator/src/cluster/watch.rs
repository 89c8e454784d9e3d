//! What the apiserver has, kept up to date by watches. One object that cannot be understood stops nobody else.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

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

use super::failing::Failing;
use super::runs::Runs;
use crate::clock::now_ms;
use crate::dirty::Dirty;

/// How long is waited for what.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// Between a watch that failed and the next one, doubled each time up to the limit.
    again: Duration,
    again_most: Duration,
    /// Longest that a list may be silent.
    list: Duration,
    /// Of a kind that is silent for so long everything is listed again: a connection that is dead and has not ended is silent, too.
    quiet: Duration,
}

const TIMES: Times = Times {
    again: Duration::from_millis(800),
    again_most: Duration::from_secs(30),
    list: Duration::from_secs(30),
    quiet: Duration::from_secs(15 * 60),
};

/// Objects as they were last seen, without what nobody here reads.
#[derive(Clone)]
pub struct Seen {
    pub blades: Store<DeserializeGuard<Blade>>,
    pub tranches: Store<DeserializeGuard<Tranche>>,
    burnins: Store<DeserializeGuard<BurnIn>>,
    nodes: Store<Node>,
    runs: Arc<Runs>,
    failing: Arc<Failing>,
}

impl Seen {
    /// Starts the watches. They end with `stop`.
    pub fn start(client: &Client, dirty: &Dirty, tasks: &TaskTracker, stop: &CancellationToken) -> Seen {
        let (failing, runs) = (Arc::default(), Arc::default());
        let watch = Watch { client, dirty, tasks, stop, failing: &failing, runs: &runs };
        Seen {
            blades: watch.start(),
            tranches: watch.start(),
            burnins: watch.start(),
            nodes: watch.start(),
            runs: runs.clone(),
            failing: failing.clone(),
        }
    }

    /// Waits until everything was listed once.
    pub async fn ready(&self) -> Result<(), reflector::store::WriterDropped> {
        self.blades.wait_until_ready().await?;
        self.tranches.wait_until_ready().await?;
        self.burnins.wait_until_ready().await?;
        self.nodes.wait_until_ready().await
    }

    /// The kind whose watch fails longest, and for how many milliseconds; `None` while all of them work.
    pub fn failing(&self) -> Option<(String, i64)> {
        self.failing.oldest().map(|(kind, since_ms)| (kind, now_ms() - since_ms))
    }

    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.state()
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

    /// Names of the blades that have objects of runs or of wishes for one.
    pub fn blades_of_runs(&self) -> BTreeSet<String> {
        self.runs.blades()
    }

    /// The objects of a blade's runs, those of people's wishes too, in the order of their names.
    pub fn runs_of(&self, blade: &str) -> Vec<Arc<DeserializeGuard<BurnIn>>> {
        let names = self.runs.of(blade);
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
    failing: &'a Arc<Failing>,
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
        let (blade, name) = (&burnin.spec.blade, self.name_any());
        if there { runs.insert(blade, name) } else { runs.remove(blade, &name) }
    }
    fn prune(listed: &HashMap<String, u64>, runs: &Runs) {
        runs.keep(|name| listed.contains_key(name));
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
        let follow = Follow {
            kind: K::kind(&()).into_owned(),
            dirty: self.dirty.clone(),
            failing: self.failing.clone(),
            runs: self.runs.clone(),
            times: TIMES,
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let events = || watcher(api.clone(), watcher::Config::default()).modify(Watched::slim);
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow.run(writer, events) => {}
            }
        });
        store
    }
}

/// Keeps one kind up to date.
struct Follow {
    kind: String,
    dirty: Dirty,
    failing: Arc<Failing>,
    runs: Arc<Runs>,
    times: Times,
}

impl Follow {
    /// A watch that failed is begun anew with a list, not taken up where it was: of a kind of which nothing changes nobody would
    /// hear whether it works again.
    async fn run<K, E, S>(&self, mut writer: reflector::store::Writer<K>, mut begin: impl FnMut() -> S)
    where
        K: Watched + Clone,
        E: std::fmt::Display,
        S: futures::Stream<Item = Result<watcher::Event<K>, E>>,
    {
        let mut wait = self.times.again;
        loop {
            let mut events = std::pin::pin!(begin());
            let mut manifests = HashMap::new();
            let mut listed = false;
            let why = loop {
                let patience = if listed { self.times.quiet } else { self.times.list };
                let event = match tokio::time::timeout(patience, events.next()).await {
                    Ok(Some(Ok(event))) => event,
                    Ok(Some(Err(error))) => break Some(error.to_string()),
                    Ok(None) => break Some("it ended".to_owned()),
                    // It may well be that nothing has changed. Or that nobody is there any more.
                    Err(_) if listed => break None,
                    Err(_) => break Some(format!("no answer within {} s", patience.as_secs())),
                };
                writer.apply_watcher_event(&event);
                if matches!(event, watcher::Event::InitDone) {
                    (listed, wait) = (true, self.times.again);
                    self.failing.works(&self.kind);
                }
                heard(&self.dirty, &event, &self.runs, &mut manifests);
            };
            let Some(why) = why else { continue };
            self.failing.failed(&self.kind, now_ms());
            warn!(kind = self.kind, why, "watch failed, it begins anew");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(self.times.again_most);
        }
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

    type Event = Result<watcher::Event<DeserializeGuard<Blade>>, String>;

    /// A watch that is asked for again and again, and what the streams of it say in turn; the last one stays open.
    async fn followed(
        streams: Vec<Vec<Event>>,
        mut until: impl FnMut(&Failing, usize) -> bool,
    ) -> Arc<Failing> {
        let ms = Duration::from_millis;
        let (_store, writer) = reflector::store();
        let failing = Arc::<Failing>::default();
        let follow = Follow {
            kind: "Blade".into(),
            dirty: Dirty::default(),
            failing: failing.clone(),
            runs: Arc::default(),
            times: Times { again: ms(5), again_most: ms(10), list: ms(50), quiet: ms(50) },
        };
        let (mut streams, begun) = (streams.into_iter(), std::cell::Cell::new(0));
        let begin = || {
            begun.set(begun.get() + 1);
            futures::stream::iter(streams.next().unwrap_or_default()).chain(futures::stream::pending())
        };
        let done = async {
            while !until(&failing, begun.get()) {
                tokio::time::sleep(ms(1)).await;
            }
        };
        tokio::select! {
            () = follow.run(writer, begin) => unreachable!("it goes on for ever"),
            () = done => {}
        }
        failing
    }

    fn fails() -> Vec<Event> {
        vec![Ok(watcher::Event::Init), Err("connection refused".into())]
    }

    /// Also a kind of which nothing ever changes: its list is what says so.
    #[tokio::test]
    async fn a_watch_works_again_when_its_list_has_come() {
        let lists = || vec![Ok(watcher::Event::Init), Ok(watcher::Event::InitDone)];
        let mut was = false;
        let failing = followed(vec![lists(), fails(), fails(), lists()], |failing, begun| {
            was |= failing.oldest().is_some();
            // The first one is left only because it is silent for long.
            begun == 4 && failing.oldest().is_none()
        })
        .await;
        assert!(was, "it was said to fail meanwhile");
        assert_eq!(failing.oldest(), None);
    }

    #[tokio::test]
    async fn a_watch_that_only_begins_does_not_work() {
        let failing = followed(vec![fails(); 3], |_, begun| begun == 4).await;
        assert!(failing.oldest().is_some());
        // An apiserver that takes the request and says nothing.
        let failing = followed(vec![Vec::new()], |_, begun| begun == 2).await;
        assert!(failing.oldest().is_some());
    }

    #[test]
    fn runs_are_found_by_their_blade_whatever_they_are_called() {
        let (dirty, runs) = (Dirty::default(), Runs::default());
        let spec = BurnInSpec { blade: "b-1".into(), suite: "quick".into(), reason: None };
        let run = DeserializeGuard(Ok(BurnIn::new("please", spec)));
        heard(&dirty, &watcher::Event::Apply(run.clone()), &runs, &mut HashMap::new());
        assert!(runs.of("b-1").contains("please"));
        assert!(dirty.take().blades.contains("b-1"), "the wish has to be looked at");
        heard(&dirty, &watcher::Event::Delete(run.clone()), &runs, &mut HashMap::new());
        assert!(runs.blades().is_empty());
        // One that went while nobody watched.
        heard(&dirty, &watcher::Event::Apply(run), &runs, &mut HashMap::new());
        let all = watcher::Event::<DeserializeGuard<BurnIn>>::InitDone;
        heard(&dirty, &all, &runs, &mut HashMap::new());
        assert!(runs.blades().is_empty());
    }
}
