//! Moves pods away from a node through the Eviction API, so that PodDisruptionBudgets hold.
//!
//! A drain is a task of its own: it evicts what it may, looks again, and says what is left and what blocks it. The planner
//! decides when one starts and ends, and how many go on at once. What blocks is a tenant's or a machine's; an apiserver that
//! cannot be asked is neither, and is said apart.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{EvictParams, ListParams};
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use whetstone_plan::{DrainState, NodeView};

use super::precedence::Precedence;
use super::{ClusterError, Fence, REQUEST_LIMIT};
use crate::clock::now_ms;
use crate::dirty::Dirty;

/// Evictions of one node at once. All nodes together are bounded by the planner's budget of drains.
const EVICTIONS: usize = 8;
/// Between two looks at a node that is being drained.
const LOOK: Duration = Duration::from_secs(2);
/// Pods of one node that are looked at: a kubelet takes 110 by default.
const MAX_PODS: u32 = 2000;
/// A pod that is there so long after its grace was over does not end by itself: kubelets take seconds.
const PAST_GRACE_MS: i64 = 60_000;

/// How far a drain is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DrainStatus {
    pub state: DrainState,
    pub pods_left: Option<usize>,
    /// `pod a/b: PodDisruptionBudget …`.
    pub blocked_by: Option<String>,
    /// A pod does not end although its grace is over.
    pub stranded: bool,
    /// Why the apiserver could not be asked, of the last look.
    pub error: Option<String>,
    /// When it began, or last had fewer pods.
    pub moved_ms: Option<i64>,
}

impl DrainStatus {
    /// Puts it into the node's view.
    pub fn show(self, view: &mut NodeView) {
        view.drain = self.state;
        view.pods_left = self.pods_left;
        view.drain_moved_ms = self.moved_ms;
        if self.state == DrainState::Going {
            view.blocked_by = self.blocked_by;
            view.unreachable |= self.stranded;
            view.drain_error = self.error;
        }
    }
}

/// What became of a pod in one look.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    Goes,
    Blocked(String),
    /// It was to go long ago.
    Stranded(String),
    Unasked(String),
}

/// All drains.
#[derive(Clone)]
pub struct Drains {
    client: Client,
    fence: Fence,
    dirty: Dirty,
    precedence: Precedence,
    tasks: TaskTracker,
    stop: CancellationToken,
    going: Arc<Mutex<HashMap<String, Going>>>,
}

struct Going {
    status: DrainStatus,
    stop: CancellationToken,
}

impl Drains {
    /// `client` is to ask once: that an eviction is refused is an answer.
    pub fn new(
        client: Client,
        fence: Fence,
        dirty: Dirty,
        precedence: Precedence,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Drains {
        Drains { client, fence, dirty, precedence, tasks, stop, going: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Going>> {
        self.going.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn status(&self, node: &str) -> DrainStatus {
        self.lock().get(node).map(|going| going.status.clone()).unwrap_or_default()
    }

    /// How many go on, and how many of them are blocked.
    pub fn counts(&self) -> (usize, usize) {
        let going = self.lock();
        let active = going.values().filter(|g| g.status.state == DrainState::Going);
        let blocked = active.clone().filter(|g| g.status.blocked_by.is_some()).count();
        (active.count(), blocked)
    }

    /// Starts a drain, if none of this node goes on. One that is done is begun anew: pods have come since.
    pub fn start(&self, node: &str) {
        let stop = self.stop.child_token();
        {
            let mut going = self.lock();
            if going.get(node).is_some_and(|drain| drain.status.state == DrainState::Going) {
                return;
            }
            let status =
                DrainStatus { state: DrainState::Going, moved_ms: Some(now_ms()), ..DrainStatus::default() };
            going.insert(node.to_owned(), Going { status, stop: stop.clone() });
        }
        info!(node, "drain begins");
        let (drains, node) = (self.clone(), node.to_owned());
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = drains.run(&node) => {}
            }
        });
    }

    /// Ends it, wherever it is: no further pod is evicted.
    pub fn end(&self, node: &str) {
        if let Some(going) = self.lock().remove(node) {
            going.stop.cancel();
            info!(node, "drain ended");
        }
        self.dirty.node(node);
    }

    /// Ends those of nodes that nobody wants drained any more: of a node that was taken out of our hands, or of a blade that is
    /// on another node by now.
    pub fn end_others(&self, wanted: impl Fn(&str) -> bool) {
        let others: Vec<String> = self.lock().keys().filter(|node| !wanted(node)).cloned().collect();
        for node in others {
            info!(node, "no blade that is being drained has this node any more");
            self.end(&node);
        }
    }

    async fn run(&self, node: &str) {
        while self.fence.holds() {
            // That no pod comes to a bad blade any more is more urgent than that those of another one leave.
            self.precedence.drain_after_nodes().await;
            let before = self.status(node);
            let status = match self.look(node).await {
                Ok(pods) => status(&before, &pods, now_ms()),
                Err(error) => DrainStatus { error: Some(error.to_string()), ..before.clone() },
            };
            if let Some(error) = status.error.as_ref().filter(|error| before.error.as_ref() != Some(*error)) {
                warn!(node, error, "a drain cannot go on, it is tried again");
            }
            let done = status.state == DrainState::Done;
            let changed = match self.lock().get_mut(node) {
                Some(going) => std::mem::replace(&mut going.status, status.clone()) != status,
                None => return,
            };
            if changed {
                self.dirty.node(node);
            }
            if done {
                info!(node, "drained");
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One look: evicts all that is there and says what became of each.
    async fn look(&self, node: &str) -> Result<Vec<Fate>, ClusterError> {
        let all: Api<Pod> = Api::all(self.client.clone());
        let on_node = ListParams::default().fields(&format!("spec.nodeName={node}")).limit(MAX_PODS);
        let listing = all.list(&on_node);
        let pods = self.fence.within(&format!("list pods of node {node}"), REQUEST_LIMIT, listing).await?;
        let evictions: Vec<_> = pods.into_iter().filter(has_to_go).map(|pod| self.evict(pod)).collect();
        Ok(futures::stream::iter(evictions).buffer_unordered(EVICTIONS).collect().await)
    }

    /// Asks for one eviction.
    async fn evict(&self, pod: Pod) -> Fate {
        if let Some(ends) = &pod.metadata.deletion_timestamp {
            return ending(&pod, ends.0.as_millisecond(), now_ms());
        }
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let (what, parameters) = (format!("evict pod {namespace}/{name}"), EvictParams::default());
        match self.fence.within(&what, REQUEST_LIMIT, api.evict(&name, &parameters)).await {
            Ok(_) => Fate::Goes,
            Err(error) => refused(&namespace, &name, &error),
        }
    }
}

/// Of a pod that was told to end by `ends_ms`, its grace.
fn ending(pod: &Pod, ends_ms: i64, now_ms: i64) -> Fate {
    if now_ms.saturating_sub(ends_ms) < PAST_GRACE_MS {
        return Fate::Goes;
    }
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    Fate::Stranded(format!("pod {namespace}/{name} does not end: its kubelet is silent?"))
}

/// What all of it comes to.
fn status(before: &DrainStatus, pods: &[Fate], now_ms: i64) -> DrainStatus {
    let state = if pods.is_empty() { DrainState::Done } else { DrainState::Going };
    let mut blocks: Vec<&str> = Vec::new();
    let (mut stranded, mut errors) = (false, Vec::new());
    for pod in pods {
        match pod {
            Fate::Goes => {}
            Fate::Blocked(what) => blocks.push(what),
            Fate::Stranded(what) => {
                stranded = true;
                blocks.push(what);
            }
            Fate::Unasked(what) => errors.push(what),
        }
    }
    blocks.sort_unstable();
    // One of them, and at every look the same.
    let error = errors.into_iter().min().cloned();
    let blocked_by = blocks.first().map(|first| match blocks.len() {
        1 => (*first).to_owned(),
        many => format!("{first} (and {} more)", many - 1),
    });
    let fewer = before.pods_left.is_some_and(|left| pods.len() < left);
    let moved_ms = if fewer || before.moved_ms.is_none() { Some(now_ms) } else { before.moved_ms };
    DrainStatus { state, pods_left: Some(pods.len()), blocked_by, stranded, error, moved_ms }
}

/// An eviction that was refused: by what the tenant or a policy says, or because the apiserver could not do it.
fn refused(namespace: &str, name: &str, error: &ClusterError) -> Fate {
    let ClusterError::Kube { error: source, .. } = error else { return Fate::Unasked(error.to_string()) };
    let kube::Error::Api(status) = source.as_ref() else { return Fate::Unasked(error.to_string()) };
    // The apiserver names the budget that forbids an eviction among the causes.
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    let cause = causes.iter().map(|cause| cause.message.as_str()).find(|text| !text.is_empty());
    let text = cause.unwrap_or(&status.message);
    match status.code {
        // It is gone, or somebody else is at it: the next look sees it.
        404 | 409 => Fate::Goes,
        // The code for budgets and for an apiserver that has too much to do, too.
        429 if cause.is_none() => Fate::Unasked(error.to_string()),
        // Two budgets of one pod are an error of the server's own.
        500.. if !text.contains("PodDisruptionBudget") => Fate::Unasked(error.to_string()),
        // We may not: that is not the tenant's doing. A webhook's refusal has the same code.
        401 => Fate::Unasked(error.to_string()),
        403 if text.contains("cannot create resource") => Fate::Unasked(error.to_string()),
        _ => Fate::Blocked(format!("pod {namespace}/{name}: {text}")),
    }
}

/// Pods of daemons come back at once, mirror pods belong to the kubelet, ended ones hold nothing.
fn has_to_go(pod: &Pod) -> bool {
    let mirror = pod.annotations().contains_key("kubernetes.io/config.mirror");
    let daemon = pod.owner_references().iter().any(|owner| owner.kind == "DaemonSet");
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !mirror && !daemon && !matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    #[test]
    fn daemons_mirrors_and_ended_pods_stay() {
        let pod = |metadata: serde_json::Value, phase: &str| -> Pod {
            serde_json::from_value(json!({"metadata": metadata, "status": {"phase": phase}})).unwrap()
        };
        let daemon = json!({"name": "d", "ownerReferences":
            [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "1"}]});
        assert!(has_to_go(&pod(json!({"name": "a"}), "Running")));
        assert!(has_to_go(&pod(json!({"name": "a"}), "Pending")));
        assert!(!has_to_go(&pod(json!({"name": "a"}), "Succeeded")));
        assert!(!has_to_go(&pod(daemon, "Running")));
        let mirror = json!({"name": "m", "annotations": {"kubernetes.io/config.mirror": "x"}});
        assert!(!has_to_go(&pod(mirror, "Running")));
    }

    fn pod(name: &str) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": name, "namespace": "ns" } })).unwrap()
    }

    #[test]
    fn a_pod_long_past_its_grace_is_what_blocks_and_is_named() {
        let at = |seconds: i64| ending(&pod("a"), 1_000_000, 1_000_000 + seconds * 1000);
        assert_eq!(at(-30), Fate::Goes, "its grace goes on");
        assert_eq!(at(59), Fate::Goes);
        let stranded = at(60);
        let Fate::Stranded(what) = &stranded else { panic!("{stranded:?}") };
        assert!(what.starts_with("pod ns/a does not end"), "{what}");
        let look = status(&DrainStatus::default(), &[Fate::Goes, stranded.clone()], 5);
        assert!(look.stranded && look.error.is_none());
        assert_eq!(look.blocked_by.as_ref(), Some(what));
    }

    #[test]
    fn a_drain_gets_on_when_pods_go_and_only_then() {
        let begun = DrainStatus { state: DrainState::Going, moved_ms: Some(1), ..DrainStatus::default() };
        let two = status(&begun, &[Fate::Goes, Fate::Goes], 2);
        assert_eq!((two.pods_left, two.moved_ms), (Some(2), Some(1)), "nothing has gone yet");
        let same = status(&two, &[Fate::Goes, Fate::Goes], 3);
        assert_eq!(same.moved_ms, Some(1));
        let one = status(&same, &[Fate::Goes], 4);
        assert_eq!((one.state, one.moved_ms), (DrainState::Going, Some(4)));
        assert_eq!(status(&one, &[], 5).state, DrainState::Done);
    }

    /// Whoever is told that they have to act must be able to.
    #[test]
    fn an_apiserver_that_cannot_do_it_is_no_tenants_block() {
        let refuse = |code: u16, message: &str, cause: Option<&str>| {
            let causes: Vec<_> = cause.iter().map(|message| json!({ "message": message })).collect();
            let answer = json!({
                "status": "Failure", "code": code, "message": message, "details": { "causes": causes },
            });
            let error = kube::Error::Api(serde_json::from_value(answer).unwrap());
            refused("ns", "a", &ClusterError::of("evict pod ns/a")(error))
        };
        let budget =
            refuse(429, "Cannot evict pod", Some("The disruption budget keep-a needs 1 healthy pods"));
        assert!(matches!(&budget, Fate::Blocked(what) if what.contains("ns/a") && what.contains("keep-a")));
        let two = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        assert!(matches!(refuse(500, two, None), Fate::Blocked(_)));
        let webhook = "admission webhook \"keep\" denied the request";
        assert!(matches!(refuse(403, webhook, None), Fate::Blocked(_)));
        assert_eq!(refuse(404, "not found", None), Fate::Goes);
        for (code, message) in [
            (429, "too many requests"),
            (500, "etcdserver: request timed out"),
            (503, "unavailable"),
            (403, "pods \"a\" is forbidden: User \"x\" cannot create resource \"pods/eviction\""),
        ] {
            let fate = refuse(code, message, None);
            assert!(matches!(&fate, Fate::Unasked(what) if what.contains("ns/a")), "{code}: {fate:?}");
        }
        let silence = ClusterError::Timeout { what: "evict pod ns/a".into(), seconds: 15 };
        let look = status(&DrainStatus::default(), &[refused("ns", "a", &silence), budget.clone()], 5);
        assert!(look.error.is_some_and(|error| error.contains("no answer")));
        assert!(look.blocked_by.is_some_and(|what| what.contains("keep-a")));
    }

    /// A blade that is bad and still open is worse than a pod that leaves a second later.
    #[tokio::test]
    async fn pods_leave_after_the_taints_that_are_on_their_way() {
        let asked = Arc::new(AtomicUsize::new(0));
        let empty = json!({ "apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": [] });
        let answer = {
            let asked = asked.clone();
            move |_: Request<Body>| {
                asked.fetch_add(1, Ordering::Relaxed);
                let body = Body::from(empty.to_string().into_bytes());
                async move { Ok::<_, std::convert::Infallible>(Response::new(body)) }
            }
        };
        let client = Client::new(tower::service_fn(answer), "default");
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (precedence, dirty) = (Precedence::default(), Dirty::default());
        let drains = Drains::new(client, Fence::open(), dirty, precedence.clone(), tasks.clone(), stop);
        let taint = precedence.first();
        drains.start("n-1");
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        assert_eq!(asked.load(Ordering::Relaxed), 0, "it did not wait for the taint");
        drop(taint);
        tasks.close();
        tasks.wait().await;
        assert_eq!((asked.load(Ordering::Relaxed), drains.status("n-1").state), (1, DrainState::Done));
    }

    #[tokio::test]
    async fn drains_of_nodes_that_nobody_has_any_more_end() {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = Client::try_from(config).unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let drains =
            Drains::new(client, Fence::open(), Dirty::default(), Precedence::default(), tasks.clone(), stop);
        drains.start("n-1");
        drains.start("n-2");
        drains.end_others(|node| node == "n-2");
        assert_eq!(drains.status("n-1").state, DrainState::None);
        assert_eq!(drains.status("n-2").state, DrainState::Going);
        drains.end("n-2");
        tasks.close();
        // Their tasks end, too.
        tasks.wait().await;
    }
}
