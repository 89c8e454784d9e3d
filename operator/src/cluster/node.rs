//! Our taint, cordon and note on a blade's node: what is there, what the patch is, the patch itself.
//!
//! Only what is ours is ever taken away: the taint with our key, and a cordon that carries our mark. With a cordon goes the taint
//! that Kubernetes' own controller would set a moment later: a burst of cordons would keep that one busy for as long as us.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use whetstone_api::node::{BLADE, CORDONED, NOTE, TAINT, UNMANAGED};
use whetstone_model::ids::Serial;
use whetstone_plan::{DrainState, NodeView, Note};

use super::{ClusterError, Fence, Reach};

/// Set by the node lifecycle controller.
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// What the node shows of us. The drain is filled in by whoever runs it.
pub fn view(node: &Node) -> NodeView {
    let spec = node.spec.clone().unwrap_or_default();
    let taints = spec.taints.unwrap_or_default();
    NodeView {
        name: node.name_any(),
        unschedulable: spec.unschedulable.unwrap_or(false),
        our_cordon: spec.unschedulable.unwrap_or(false) && marked(node),
        // Kubernetes' own word that nothing is heard of the kubelet.
        unreachable: taints.iter().any(|taint| taint.key == UNREACHABLE),
        our_taint: taints.into_iter().find(|taint| taint.key == TAINT).map(|taint| {
            // Another effect than ours has to be put right too.
            if taint.effect == "NoSchedule" {
                taint.value.unwrap_or_default()
            } else {
                format!("?{}", taint.effect)
            }
        }),
        our_note: node.annotations().get(NOTE).cloned(),
        our_label: node.labels().get(BLADE).cloned(),
        pods_left: None,
        blocked_by: None,
        drain_error: None,
        drain_moved_ms: None,
        drain: DrainState::None,
    }
}

/// True for a node that a person has taken out of our hands.
pub fn unmanaged(node: &Node) -> bool {
    node.labels().get(UNMANAGED).is_some_and(|value| value == "true")
}

/// It carries our taint.
pub fn tainted(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == TAINT))
}

/// The blade that our note names.
pub fn noted(node: &Node) -> Option<Serial> {
    let rest = node.annotations().get(NOTE)?.strip_prefix("serial=")?;
    rest.split(' ').next()?.parse().ok()
}

fn marked(node: &Node) -> bool {
    node.annotations().get(CORDONED).is_some_and(|value| value == "true")
}

/// What a node is to show.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    Withheld {
        blade: String,
        taint: String,
        note: Note,
    },
    Free,
    /// It was a blade's and is not any more: free, and without the blade's name.
    Left,
}

/// Kubernetes' own taint on a cordoned node, kept by its node lifecycle controller.
fn cordon_taint() -> Taint {
    let key = "node.kubernetes.io/unschedulable".to_owned();
    Taint { key, value: None, effect: "NoSchedule".to_owned(), time_added: None }
}

fn is_cordon_taint(taint: &Taint) -> bool {
    let cordon = cordon_taint();
    taint.key == cordon.key && taint.effect == cordon.effect
}

/// The merge patch that brings `node` there; `None` if nothing is to do. It carries the node's resource version: a list of
/// taints can only be replaced as a whole, and somebody else's must not get lost.
pub fn patch(node: &Node, wanted: &Wanted) -> Option<Value> {
    let spec = node.spec.clone().unwrap_or_default();
    let taints = spec.taints.clone().unwrap_or_default();
    let mut wanted_taints: Vec<Taint> = taints.iter().filter(|taint| taint.key != TAINT).cloned().collect();
    let unschedulable = spec.unschedulable.unwrap_or(false);
    let (mut changes, mut annotations, mut labels) = (json!({}), json!({}), json!({}));
    match wanted {
        Wanted::Withheld { blade, taint, note } => {
            let ours = Taint {
                key: TAINT.to_owned(),
                value: Some(taint.clone()),
                effect: "NoSchedule".to_owned(),
                time_added: None,
            };
            let there: Vec<&Taint> = taints.iter().filter(|taint| taint.key == TAINT).collect();
            let right = |t: &Taint| t.value == ours.value && t.effect == ours.effect;
            let right = matches!(there[..], [only] if right(only));
            let cordon = !unschedulable && !taints.iter().any(is_cordon_taint);
            if !right || cordon {
                wanted_taints.push(ours);
                wanted_taints.extend(cordon.then(cordon_taint));
                changes["taints"] = json!(wanted_taints);
            }
            if !unschedulable {
                changes["unschedulable"] = json!(true);
                annotations[CORDONED] = json!("true");
            }
            if node.annotations().get(NOTE) != Some(&note.text()) {
                annotations[NOTE] = json!(note.text());
            }
            if node.labels().get(BLADE) != Some(blade) {
                labels[BLADE] = json!(blade);
            }
        }
        Wanted::Free | Wanted::Left => {
            if *wanted == Wanted::Left && node.labels().contains_key(BLADE) {
                labels[BLADE] = Value::Null;
            }
            if marked(node) {
                wanted_taints.retain(|taint| !is_cordon_taint(taint));
            }
            if wanted_taints.len() != taints.len() {
                changes["taints"] = json!(wanted_taints);
            }
            if marked(node) {
                annotations[CORDONED] = Value::Null;
                if unschedulable {
                    changes["unschedulable"] = Value::Null;
                }
            }
            if node.annotations().contains_key(NOTE) {
                annotations[NOTE] = Value::Null;
            }
        }
    }
    let empty = |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
    if empty(&changes) && empty(&annotations) && empty(&labels) {
        return None;
    }
    let mut patch = json!({ "metadata": { "resourceVersion": node.resource_version() } });
    if !empty(&changes) {
        patch["spec"] = changes;
    }
    if !empty(&annotations) {
        patch["metadata"]["annotations"] = annotations;
    }
    if !empty(&labels) {
        patch["metadata"]["labels"] = labels;
    }
    Some(patch)
}

/// Tries against somebody else's writes; a kubelet writes a node every few seconds at most.
const TRIES: u32 = 6;
/// How long one call may take. An apiserver under load takes a fraction of a second; one that says nothing holds up all blades.
const CALL: Duration = Duration::from_secs(5);

/// The way to nodes of one that leads. Cheap to clone.
#[derive(Clone)]
pub struct Nodes {
    client: Client,
    fence: Fence,
    reach: Reach,
    /// Longest that one call may take.
    limit: Duration,
}

impl Nodes {
    pub fn new(client: Client, fence: Fence, reach: Reach) -> Nodes {
        Nodes { client, fence, reach, limit: CALL }
    }

    /// Brings the node to what is wanted. `known` saves the first read. True if it was changed; a node that is gone is no error.
    /// Before each try it is asked whether this process still leads: the wish may be an old one.
    pub async fn apply(
        &self,
        name: &str,
        known: Option<&Node>,
        wanted: &Wanted,
    ) -> Result<bool, ClusterError> {
        let api: Api<Node> = Api::all(self.client.clone());
        let mut fetched = None;
        for attempt in 0..TRIES {
            let node = match (attempt, known) {
                (0, Some(node)) => node,
                _ => match self.call(&format!("get node {name}"), api.get_opt(name)).await? {
                    Some(node) => fetched.insert(node),
                    None => return Ok(false),
                },
            };
            if unmanaged(node) {
                return Ok(false);
            }
            let Some(body) = patch(node, wanted).map(Patch::Merge) else { return Ok(false) };
            let parameters = PatchParams {
                field_manager: Some(whetstone_api::FIELD_MANAGER.into()),
                ..Default::default()
            };
            // The answer is not read: a node with its images is some ten KiB.
            let patching = api.patch_metadata(name, &parameters, &body);
            match self.call(&format!("patch node {name}"), patching).await {
                Ok(_) => return Ok(true),
                Err(error) if error.code() == Some(409) => {}
                Err(error) if error.is_not_found() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Err(ClusterError::Conflict { what: format!("patch node {name}"), tries: TRIES })
    }

    async fn call<T>(
        &self,
        what: &str,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ClusterError> {
        self.reach.ask(what)?;
        let result = self.fence.within(what, self.limit, request).await;
        self.reach.ended(&result);
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::http::{Method, StatusCode};
    use axum::response::IntoResponse as _;
    use futures::StreamExt as _;
    use whetstone_model::ids::CaseId;

    use super::*;

    /// The way to an apiserver that answers as told; a node is always the one of [`node`].
    async fn nodes<F>(fence: &Fence, answer: impl Fn(Method) -> F + Clone + Send + Sync + 'static) -> Nodes
    where
        F: Future<Output = axum::response::Response> + Send,
    {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = kube::Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
        let router = Router::new().fallback(move |method: Method| answer(method));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Nodes::new(Client::try_from(config).unwrap(), fence.clone(), Reach::default())
    }

    /// Another one wrote the node and leads by now: a wish from before must not be tried again on what it did.
    #[tokio::test]
    async fn who_lost_the_lead_does_not_try_again() {
        for leads_on in [true, false] {
            let (fence, calls) = (Fence::open(), Arc::new(AtomicUsize::new(0)));
            let (lost, counted) = (fence.clone(), calls.clone());
            let nodes = nodes(&fence, move |method| {
                counted.fetch_add(1, Ordering::Relaxed);
                if !leads_on {
                    lost.close();
                }
                async move {
                    if method == Method::GET {
                        return axum::Json(node(json!({"unschedulable": true}), json!({}))).into_response();
                    }
                    let status = json!({ "status": "Failure", "reason": "Conflict", "code": 409 });
                    (StatusCode::CONFLICT, axum::Json(status)).into_response()
                }
            });
            let (nodes, known) = (nodes.await, node(json!({}), json!({})));
            let failed = nodes.apply("n", Some(&known), &withheld()).await.unwrap_err();
            let calls = calls.load(Ordering::Relaxed);
            if leads_on {
                assert!(matches!(failed, ClusterError::Conflict { .. }), "{failed}");
                assert_eq!(calls, 11, "six patches, and five looks between them");
            } else {
                assert!(matches!(failed, ClusterError::NotLeading { .. }), "{failed}");
                assert_eq!(calls, 1);
            }
        }
    }

    /// A burst of writes against an apiserver that takes calls and says nothing: it costs some time limits, not one for each.
    #[tokio::test]
    async fn a_burst_does_not_wait_for_an_apiserver_that_says_nothing() {
        let (fence, calls) = (Fence::open(), Arc::new(AtomicUsize::new(0)));
        let counted = calls.clone();
        let mut nodes = nodes(&fence, move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            std::future::pending()
        })
        .await;
        nodes.limit = Duration::from_millis(100);
        let known = node(json!({}), json!({}));
        let wanted = withheld();
        let names: Vec<String> = (0..1000).map(|n| format!("n-{n}")).collect();
        let writes = names.iter().map(|name| nodes.apply(name, Some(&known), &wanted));
        let results: Vec<_> = futures::stream::iter(writes).buffer_unordered(8).collect().await;
        let count = |is: fn(&ClusterError) -> bool| {
            results.iter().flat_map(|r| r.as_ref().err()).filter(|e| is(e)).count()
        };
        let silent = count(|error| matches!(error, ClusterError::Silent { .. }));
        let waited = count(|error| matches!(error, ClusterError::Timeout { .. }));
        assert_eq!(silent + waited, 1000);
        assert!(waited <= 16 && calls.load(Ordering::Relaxed) <= 16, "{waited} have waited");
        // It answers again, to somebody.
        nodes.reach.answered();
        let again = nodes.apply("n-1", Some(&known), &wanted).await.unwrap_err();
        assert!(matches!(again, ClusterError::Timeout { .. }), "it is asked again: {again}");
    }

    #[test]
    fn a_node_that_was_left_loses_the_blades_name_too() {
        let before = node(json!({"taints": [{"key": "x", "effect": "NoExecute"}]}), json!({"a": "b"}));
        let held = patched(&before, &withheld());
        assert!(held.labels().contains_key(BLADE));
        let mut left = patched(&held, &Wanted::Left);
        assert_eq!(left.metadata.labels.take(), Some(std::collections::BTreeMap::new()));
        assert_eq!(left, before);
    }

    #[test]
    fn a_node_that_kubernetes_hears_nothing_of_is_said() {
        let taint = |key: &str| json!({"taints": [{"key": key, "effect": "NoExecute"}]});
        assert!(view(&node(taint("node.kubernetes.io/unreachable"), json!({}))).unreachable);
        assert!(!view(&node(taint("node.kubernetes.io/not-ready"), json!({}))).unreachable);
    }

    fn node(spec: Value, annotations: Value) -> Node {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "n", "resourceVersion": "7", "annotations": annotations},
            "spec": spec,
        }))
        .unwrap()
    }

    /// The node after a merge patch, as far as lists and plain values go.
    fn patched(node: &Node, wanted: &Wanted) -> Node {
        fn merge(into: &mut Value, patch: &Value) {
            let (Some(into), Some(patch)) = (into.as_object_mut(), patch.as_object()) else { return };
            for (key, value) in patch {
                match value {
                    Value::Null => drop(into.remove(key)),
                    Value::Object(_) => merge(into.entry(key.clone()).or_insert(json!({})), value),
                    value => drop(into.insert(key.clone(), value.clone())),
                }
            }
        }
        let mut value = serde_json::to_value(node).unwrap();
        if let Some(patch) = patch(node, wanted) {
            assert_eq!(patch["metadata"]["resourceVersion"], "7");
            merge(&mut value, &patch);
        }
        serde_json::from_value(value).unwrap()
    }

    fn withheld() -> Wanted {
        let note =
            Note { serial: Serial::new("S1").unwrap(), reason: "burn-in".into(), case: Some(CaseId(3)) };
        Wanted::Withheld { blade: "b-1".into(), taint: "burn-in".into(), note }
    }

    #[test]
    fn what_is_put_on_is_taken_off_and_the_rest_stays() {
        let foreign = json!({"taints": [{"key": "x", "effect": "NoExecute"}], "podCIDR": "1.2.3.0/24"});
        let before = node(foreign, json!({"a": "b"}));
        let held = patched(&before, &withheld());
        let seen = view(&held);
        assert_eq!(
            (seen.unschedulable, seen.our_cordon, seen.our_taint.as_deref()),
            (true, true, Some("burn-in"))
        );
        assert_eq!(seen.our_note.as_deref(), Some("serial=S1 reason=burn-in case=3"));
        assert!(tainted(&held) && !tainted(&before));
        assert_eq!((noted(&held), noted(&before)), (Serial::new("S1").ok(), None));
        assert_eq!(patch(&held, &withheld()), None, "a second time changes nothing");
        let mut free = patched(&held, &Wanted::Free);
        assert_eq!(view(&free).our_label.as_deref(), Some("b-1"), "it tells whose it was");
        free.metadata.labels = None;
        assert_eq!(free, before);
        assert_eq!(patch(&free, &Wanted::Free), None);
    }

    #[test]
    fn a_persons_cordon_survives() {
        let held = patched(&node(json!({"unschedulable": true}), json!({})), &withheld());
        assert!(!view(&held).our_cordon);
        let free = patched(&held, &Wanted::Free).spec.unwrap();
        assert_eq!(free.unschedulable, Some(true));
        assert_eq!(free.taints, Some(Vec::new()), "what mirrors their cordon is the node controller's");
    }

    #[test]
    fn a_person_who_uncordons_is_cordoned_again_while_the_blade_is_withheld() {
        let mut held = patched(&node(json!({}), json!({})), &withheld());
        held.spec.as_mut().unwrap().unschedulable = None;
        let again = patched(&held, &withheld());
        assert!(view(&again).our_cordon);
        assert_eq!(again.spec.unwrap().taints.unwrap().len(), 2, "ours, and that of the cordon");
    }

    #[test]
    fn a_taint_with_another_effect_is_put_right() {
        let odd = node(
            json!({"taints": [{"key": TAINT, "value": "burn-in", "effect": "PreferNoSchedule"}]}),
            json!({}),
        );
        assert_eq!(view(&odd).our_taint.as_deref(), Some("?PreferNoSchedule"));
        assert_eq!(view(&patched(&odd, &withheld())).our_taint.as_deref(), Some("burn-in"));
    }
}
