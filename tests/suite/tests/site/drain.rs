//! A blade leaves service over a drain, which a tenant's disruption budget may hold.

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use whetstone_api::{Blade, node};
use whetstone_model::lifecycle::PhaseName;
use whetstone_sim_fleet::End;

use crate::harness::{Site, listed, serial, until};

/// A tenant's work on the blade: one pod, running, and a budget that lets none of it go. There is no kubelet: its word that the pod
/// runs is given for it, and a pod without a grace period needs no word of its end.
fn work(site: &Site, node: &str) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "work", "namespace": "default", "labels": { "app": "work" } },
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "containers": [{ "name": "work", "image": "work" }],
        },
    });
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": { "name": "keep-work", "namespace": "default" },
        "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "work" } } },
    });
    let file = site.path("work.json");
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [pod, budget] });
    std::fs::write(&file, list.to_string()).unwrap();
    // The service account of the namespace comes a moment after the control plane.
    until(30, "a tenant's work", || site.cluster.try_kubectl(&["apply", "-f", file.to_str().unwrap()]));
    let running = json!({ "status": {
        "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }],
    } });
    let running = running.to_string();
    site.cluster.kubectl(&["patch", "pod", "work", "--subresource=status", "--type=merge", "-p", &running]);
}

#[test]
fn a_disruption_budget_holds_a_drain_and_the_pod_is_named() {
    let site = Site::up();
    site.node("d-1", json!({}));
    site.tranche("t-drain", &[listed("d-1", "r-1")], json!({ "owner": "kubernetes/default" }));
    let fleet = site.join(&[("d-1", &[End::Pass])]);
    site.wait_phases(40, &[("d-1", "InService")]);
    work(&site, "d-1");

    fleet.command(&[serial("d-1")], |command| command.fault = Some("xid79".into()));
    let wait = until(30, "the drain says what blocks it", || {
        let status = site.blade("d-1").status.unwrap();
        match status.wait {
            Some(wait) if wait.message.contains("default/work") => Ok(wait),
            other => Err((status.phase, other)),
        }
    });
    assert!(wait.message.contains("keep-work"), "the budget is not named: {}", wait.message);
    assert_eq!((wait.code.as_str(), wait.actor.as_str()), ("drain", "tenant"));
    let row = site.row("d-1").unwrap();
    assert_eq!(row.phase.name(), PhaseName::Draining, "work was on it, and it went on");
    let node = site.seen_node("d-1");
    assert!(node.taint.is_some() && node.cordoned && node.ours, "nothing more may land meanwhile: {node:?}");
    assert!(
        site.cluster.kubectl(&["get", "pod", "work", "-o", "name"]).contains("work"),
        "it was moved by force"
    );
    until(10, "a metric says so", || {
        match site.operators[0].metric("whetstone_drains", &["state=\"blocked\""]) {
            Ok(1.0) => Ok(()),
            other => Err(other),
        }
    });
    site.check();

    site.cluster.kubectl(&["delete", "pdb", "keep-work"]);
    site.wait_phases(30, &[("d-1", "Quarantined")]);
    let gone = site.cluster.try_kubectl(&["get", "pod", "work"]);
    assert!(gone.as_ref().is_err_and(|error| error.contains("NotFound")), "{gone:?}");
    let cases: Vec<i64> = site.list::<Blade>().unwrap()[0].status.clone().unwrap().cases;
    assert_eq!(cases.len(), 1);
    site.check();
}

/// Nobody's pods are moved for a blade that is not on their node any more, and its old node does not stay withheld.
#[test]
fn a_drain_ends_when_the_node_is_not_the_blades_any_more_and_the_node_is_freed() {
    let site = Site::up();
    // The metric of drains that go on, blocked ones too.
    let drains = || site.operators[0].metric("whetstone_drains", &[]);
    let until_drains = |count: f64| {
        until(20, "as many drains go on", || match drains() {
            Ok(now) if (now > 0.0) == (count > 0.0) => Ok(()),
            other => Err(other),
        });
    };
    let unmanaged = |value: serde_json::Value| {
        let patch = Patch::Merge(json!({ "metadata": { "labels": { node::UNMANAGED: value } } }));
        site.rt.block_on(site.api::<Node>().patch("m-a", &PatchParams::default(), &patch)).unwrap();
    };
    site.node("m-a", json!({}));
    site.node("m-b", json!({}));
    site.tranche("t-m", &[listed("m-1", "r-1")], json!({ "owner": "kubernetes/default" }));
    until(20, "the blade has an object", || {
        site.list::<Blade>()
            .map_err(|e| e.to_string())
            .and_then(|all| all.first().map(drop).ok_or("none".into()))
    });
    site.patch::<Blade>("m-1", json!({ "nodeName": "m-a" }));
    site.join(&[("m-1", &[End::Pass])]);
    site.wait_phases(40, &[("m-1", "InService")]);
    work(&site, "m-a");
    site.patch::<Blade>("m-1", json!({ "quarantine": { "reason": "look at it" } }));
    until_drains(1.0);

    unmanaged(json!("true"));
    until_drains(0.0);
    site.cluster.kubectl(&["delete", "pdb", "keep-work"]);
    // Whole looks go by; a drain that went on would have taken the pod within two seconds.
    let looks = || site.operators[0].metric("whetstone_reconcile_seconds_count", &[]).unwrap();
    let before = looks();
    until(30, "it is looked at again", || if looks() > before + 1.0 { Ok(()) } else { Err(looks()) });
    assert!(
        site.cluster.try_kubectl(&["get", "pod", "work"]).is_ok(),
        "evicted from a node that is not ours"
    );

    site.patch::<Blade>("m-1", json!({ "nodeName": "m-b" }));
    site.wait_phases(30, &[("m-1", "Quarantined")]);
    unmanaged(json!(null));
    until(30, "the node that it left is free, and is nobody's", || {
        let left = site.seen_node("m-a");
        if left.taint.is_none() && !left.cordoned && !left.ours && left.note.is_none() && left.blade.is_none()
        {
            Ok(())
        } else {
            Err(left)
        }
    });
    assert!(site.cluster.try_kubectl(&["get", "pod", "work"]).is_ok(), "its pod was moved");
    until(10, "the node that it has is withheld", || {
        let has = site.seen_node("m-b");
        if has.taint.as_deref() == Some("person") && has.cordoned { Ok(()) } else { Err(has) }
    });
    site.check();
}
