//! Nodes that a blade had and has not any more: `spec.nodeName` was put right, or the blade has another name. Nobody would ever
//! take our taint and cordon off them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use tracing::{info, warn};
use whetstone_api::node::{BLADE, CORDONED, NOTE, TAINT};

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
            Ok(_) => info!(node = name, "its blade has another node now: it is free"),
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
    decide(node, says, says.is_some_and(|other| seen.node(other).is_some()))
}

/// The blade whose mark it carries: by the note, else by the label.
fn owner<'a>(node: &Node, memory: &'a Memory) -> Option<&'a whetstone_model::ids::Serial> {
    let serial = node.annotations().get(NOTE).and_then(|note| note.strip_prefix("serial="));
    let serial = serial.and_then(|rest| rest.split(' ').next()).and_then(|text| text.parse().ok());
    let known = serial.and_then(|serial| memory.rows.get_key_value(&serial)).map(|(serial, _)| serial);
    known.or_else(|| memory.by_name(node.labels().get(BLADE)?).next())
}

/// `says`: the node that the blade names whose mark is on this one. `there`: whether that one is there: a name that was mistyped
/// must let nothing go.
fn decide(node: &Node, says: Option<&str>, there: bool) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let tainted = taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == TAINT));
    let ours = tainted || node.annotations().contains_key(CORDONED) || node.annotations().contains_key(NOTE);
    ours && there && !node::unmanaged(node) && says.is_some_and(|other| other != node.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use whetstone_api::node::UNMANAGED;

    use super::*;

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
    }
}
