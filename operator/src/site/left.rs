//! Nodes that a blade had and has not any more: `spec.nodeName` was put right, or the blade has another name. Nobody would ever
//! take our taint and cordon off them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use tracing::{info, warn};
use whetstone_api::node::{BLADE, CORDONED, NOTE};
use whetstone_model::ids::Serial;
use whetstone_model::lifecycle::Phase;

use super::Parts;
use super::memory::Memory;
use crate::cluster::Seen;
use crate::cluster::node::{self, Wanted};

/// Nodes that are freed in one look: the turn must not take long for it.
const AT_ONCE: usize = 16;

/// Takes what is ours off the nodes that were left.
pub async fn free(parts: &Parts, memory: &Memory) {
    let nodes = parts.seen.nodes();
    let left = nodes.iter().filter(|node| is_left(node, memory, &parts.seen)).take(AT_ONCE);
    for node in left {
        let name = node.name_any();
        let result = parts.nodes.apply(&name, Some(node), &Wanted::Left).await;
        let word = match &result {
            Ok(true) => "changed",
            Ok(false) => "same",
            Err(error) => error.category(),
        };
        parts.metrics.node_patches.with_label_values(&["release", word]).inc();
        match result {
            Ok(true) => info!(node = name, "its blade has another node now: it is free"),
            Ok(false) => {}
            Err(error) => return warn!(%error, "a node that was left cannot be freed, it is tried again"),
        }
    }
}

fn is_left(node: &Arc<Node>, memory: &Memory, seen: &Seen) -> bool {
    let name = node.name_any();
    let Some(serial) = owner(node, memory).filter(|_| memory.by_node(&name).next().is_none()) else {
        return false;
    };
    // What its object says now. One that is lost says nothing, and its node stays as it is.
    let row = memory.rows.get(serial);
    let object = row.and_then(|row| seen.blade(row.name.as_str()));
    let object = object.as_ref().and_then(|guard| guard.0.as_ref().ok());
    let says = object.filter(|blade| blade.spec.serial == serial.as_str()).map(|blade| blade.node_name());
    decide(node, says, says.is_some_and(|other| has(serial, other, memory, seen)))
}

/// The node is there, and no other blade of the site names it.
fn has(serial: &Serial, node: &str, memory: &Memory, seen: &Seen) -> bool {
    let gone = |other: &Serial| memory.rows.get(other).is_some_and(|row| row.phase == Phase::Retired);
    let ours = seen.node(node).is_some_and(|node| !node::unmanaged(&node));
    ours && memory.by_node(node).all(|other| other == serial || gone(other))
}

/// The blade whose mark it carries: by the note, else by the label.
fn owner<'a>(node: &Node, memory: &'a Memory) -> Option<&'a Serial> {
    let noted = node::noted(node).and_then(|serial| memory.rows.get_key_value(&serial));
    noted.map(|(serial, _)| serial).or_else(|| memory.by_name(node.labels().get(BLADE)?).next())
}

/// `says`: the node that the blade names whose mark is on this one. `has`: whether that one is there, and nobody else's: a name that
/// was mistyped must let nothing go.
fn decide(node: &Node, says: Option<&str>, has: bool) -> bool {
    let noted = [CORDONED, NOTE].iter().any(|key| node.annotations().contains_key(*key));
    let ours = node::tainted(node) || noted || node.labels().contains_key(BLADE);
    ours && has && !node::unmanaged(node) && says.is_some_and(|other| other != node.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use whetstone_api::node::{TAINT, UNMANAGED};
    use whetstone_model::lifecycle::QuarantineReason;

    use super::*;
    use crate::site::testing::{memory, object, row, seen};

    fn old() -> Node {
        serde_json::from_value(json!({
            "metadata": { "name": "old", "labels": { BLADE: "b-1" }, "annotations": { NOTE: "serial=S1 reason=burn-in" } },
            "spec": { "taints": [{ "key": TAINT, "value": "burn-in", "effect": "NoSchedule" }], "unschedulable": true },
        }))
        .unwrap()
    }

    #[test]
    fn a_node_is_left_only_when_its_blade_says_another_one_that_is_there() {
        assert!(decide(&old(), Some("new"), true));
        assert!(!decide(&old(), Some("old"), true), "it is the blade's");
        assert!(!decide(&old(), Some("nwe"), false), "mistyped: the blade may well be faulty");
        assert!(!decide(&old(), None, false), "no blade names anything");
    }

    #[test]
    fn what_is_not_ours_to_touch_stays() {
        let mut unmanaged = old();
        unmanaged.labels_mut().insert(UNMANAGED.into(), "true".into());
        assert!(!decide(&unmanaged, Some("new"), true));
        let bare: Node = serde_json::from_value(json!({ "metadata": { "name": "old" } })).unwrap();
        assert!(!decide(&bare, Some("new"), true), "nothing is to be taken off");
        let labelled = json!({ "metadata": { "name": "old", "labels": { BLADE: "b-1" } } });
        let labelled: Node = serde_json::from_value(labelled).unwrap();
        assert!(decide(&labelled, Some("new"), true), "it was let go, and is the blade's no more");
    }

    #[tokio::test]
    async fn a_name_that_is_another_blades_node_lets_nothing_go() {
        let faulty = || row("S1", "b-1", Phase::Quarantined { reason: QuarantineReason::Fault });
        let unmanaged = json!({ "metadata": { "name": "head", "labels": { UNMANAGED: "true" } } });
        let nodes = [json!(old()), json!({ "metadata": { "name": "n-2" } }), unmanaged];
        let other = |phase| row("S2", "b-2", phase);
        for (names, rows, left) in [
            ("n-2", vec![faulty()], true),
            ("n-2", vec![faulty(), other(Phase::Ready)], false),
            ("n-2", vec![faulty(), other(Phase::Retired)], true),
            ("head", vec![faulty()], false),
            ("nowhere", vec![faulty()], false),
        ] {
            let blades = [
                object("b-1", "S1", json!({ "nodeName": names })),
                object("b-2", "S2", json!({ "nodeName": "n-2" })),
            ];
            let seen = seen(&blades, &nodes).await;
            let node = seen.node("old").unwrap();
            assert_eq!(is_left(&node, &memory(rows, &seen), &seen), left, "{names}");
        }
    }
}
