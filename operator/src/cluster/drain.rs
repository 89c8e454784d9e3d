//! Moves pods away from a node through the Eviction API, so that PodDisruptionBudgets hold.
//!
//! A drain is a task of its own: it evicts what it may, looks again, and says what is left and what blocks it. The planner
//! decides when one starts and ends, and how many go on at once.

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
use whetstone_plan::DrainState;

use super::{ClusterError, within};
use crate::dirty::Dirty;

/// Evictions of one node at once. All nodes together are bounded by the planner's budget of drains.
const EVICTIONS: usize = 8;
/// Between two looks at a node that is being drained.
const LOOK: Duration = Duration::from_secs(2);
/// Pods of one node that are looked at: a kubelet takes 110 by default.
const MAX_PODS: u32 = 2000;

/// How far a drain is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DrainStatus {
    pub state: DrainState,
    pub pods_left: Option<usize>,
    /// `pod a/b: PodDisruptionBudget …`.
    pub blocked_by: Option<String>,
}

/// All drains.
#[derive(Clone)]
pub struct Drains {
    client: Client,
    dirty: Dirty,
    tasks: TaskTracker,
    stop: CancellationToken,
    going: Arc<Mutex<HashMap<String, Going>>>,
}

struct Going {
    status: DrainStatus,
    stop: CancellationToken,
}

impl Drains {
    pub fn new(client: Client, dirty: Dirty, tasks: TaskTracker, stop: CancellationToken) -> Drains {
        Drains { client, dirty, tasks, stop, going: Arc::default() }
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

    /// Starts a drain, if none of this node goes on.
    pub fn start(&self, node: &str) {
        let stop = self.stop.child_token();
        {
            let mut going = self.lock();
            if going.contains_key(node) {
                return;
            }
            let status = DrainStatus { state: DrainState::Going, ..DrainStatus::default() };
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

    async fn run(&self, node: &str) {
        loop {
            let status = match self.look(node).await {
                Ok(status) => status,
                Err(error) => {
                    warn!(node, %error, "drain: the apiserver does not answer, it goes on");
                    let before = self.status(node);
                    DrainStatus { blocked_by: Some(error.to_string()), ..before }
                }
            };
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

    /// One look: evicts all that is there and says what is left.
    async fn look(&self, node: &str) -> Result<DrainStatus, ClusterError> {
        let all: Api<Pod> = Api::all(self.client.clone());
        let on_node = ListParams::default().fields(&format!("spec.nodeName={node}")).limit(MAX_PODS);
        let pods = within("list pods", all.list(&on_node)).await?;
        let going: Vec<Pod> = pods.into_iter().filter(has_to_go).collect();
        let left = going.len();
        let evictions: Vec<_> = going.into_iter().map(|pod| self.evict(pod)).collect();
        let blocks: Vec<Option<String>> =
            futures::stream::iter(evictions).buffer_unordered(EVICTIONS).collect().await;
        let state = if left == 0 { DrainState::Done } else { DrainState::Going };
        let mut blocks: Vec<String> = blocks.into_iter().flatten().collect();
        blocks.sort();
        let blocked_by = blocks.first().map(|first| match blocks.len() {
            1 => first.clone(),
            many => format!("{first} (and {} more)", many - 1),
        });
        Ok(DrainStatus { state, pods_left: Some(left), blocked_by })
    }

    /// Asks for one eviction; answers what blocks it.
    async fn evict(&self, pod: Pod) -> Option<String> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        if pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        match within("evict", api.evict(&name, &EvictParams::default())).await {
            Ok(_) => None,
            Err(error) if error.is_not_found() => None,
            Err(error) => Some(format!("pod {namespace}/{name}: {}", reason(&error))),
        }
    }
}

/// The apiserver names the budget that forbids an eviction among the causes.
fn reason(error: &ClusterError) -> String {
    if let ClusterError::Kube { source, .. } = error
        && let kube::Error::Api(status) = source.as_ref()
    {
        let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
        let cause = causes.iter().map(|cause| cause.message.as_str()).find(|text| !text.is_empty());
        return cause.unwrap_or(&status.message).to_owned();
    }
    error.to_string()
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
}
