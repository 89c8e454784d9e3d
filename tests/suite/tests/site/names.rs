//! Names, lists and wishes that change or collide: what people wanted stays with the machine, and nothing goes missing silently.

use std::collections::BTreeMap;

use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use whetstone_api::{Blade, BurnIn, BurnInPhase, Tranche};
use whetstone_model::lifecycle::PhaseName;
use whetstone_sim_fleet::End;

use crate::harness::{Site, listed, serial, until};

fn delete<K>(site: &Site, name: &str)
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    site.rt.block_on(site.api::<K>().delete(name, &DeleteParams::default())).unwrap();
}

fn objects(site: &Site) -> BTreeMap<String, Blade> {
    let blades = site.list::<Blade>().unwrap();
    blades.into_iter().map(|blade| (blade.metadata.name.clone().unwrap(), blade)).collect()
}

/// The condition that says what is wrong with a delivery.
fn delivery(site: &Site, tranche: &str) -> Option<(String, String)> {
    let tranche: Tranche = site.rt.block_on(site.api::<Tranche>().get(tranche)).ok()?;
    let conditions = tranche.status?.conditions;
    conditions.into_iter().find(|c| c.type_ == "Degraded").map(|c| (c.reason, c.message))
}

/// An entry of a list with another name than the harness gives.
fn called(of: &str, name: &str) -> Value {
    let mut entry = listed(of, "r-1");
    entry["name"] = json!(name);
    entry
}

#[test]
fn what_people_wanted_stays_with_the_machine_whatever_it_is_called() {
    let mut site = Site::up();
    renamed(&site);
    moved(&site);
    collided(&site);
    made_by_hand(&site);
    wished(&site);
    named_a_node(&site);
    lost(&mut site);
    site.check();
}

/// The list calls a held blade otherwise: the hold goes with it, and its old object goes.
fn renamed(site: &Site) {
    site.tranche("t-names", &[listed("held", "r-1"), listed("free", "r-1")], json!({ "owner": "spare" }));
    site.join(&[("held", &[End::Pass]), ("free", &[End::Pass])]);
    site.wait_phases(40, &[("held", "InService"), ("free", "InService")]);
    let hold = json!({ "quarantine": { "reason": "smells of smoke", "by": "ada" } });
    site.patch::<Blade>("held", hold);
    site.wait_phases(20, &[("held", "Quarantined")]);
    site.patch::<Tranche>("t-names", json!({ "blades": [called("held", "slot-7"), listed("free", "r-1")] }));
    until(20, "it has one object, by its new name", || {
        let objects = objects(site);
        match (objects.get("slot-7"), objects.contains_key("held")) {
            (Some(blade), false) if blade.status.as_ref().is_some_and(|s| s.phase.is_some()) => Ok(()),
            (new, old) => Err(format!("{new:?} {old}")),
        }
    });
    let blade = site.blade("slot-7");
    assert_eq!(blade.spec.serial, serial("held").as_str());
    let held = blade.spec.quarantine.unwrap();
    assert!(held.reason.contains("smells of smoke"), "{held:?}");
    assert_eq!(blade.status.unwrap().phase.as_deref(), Some("Quarantined"));
    // The other one did not notice.
    site.wait_phases(1, &[("free", "InService")]);
}

/// A typo in a tranche's name: deleted and made again, it has its blades, with all that they have proven.
fn moved(site: &Site) {
    site.tranche("t-typo", &[listed("m-1", "r-2")], json!({ "owner": "spare" }));
    site.join(&[("m-1", &[End::Pass])]);
    site.wait_phases(30, &[("m-1", "InService")]);
    // As long as both list it, it is the elder's.
    site.tranche("t-right", &[listed("m-1", "r-2")], json!({ "owner": "spare" }));
    until(15, "a duplicate", || match delivery(site, "t-right") {
        Some((reason, _)) if reason == "DuplicateSerials" => Ok(()),
        other => Err(other),
    });
    delete::<Tranche>(site, "t-typo");
    until(15, "it is the other tranche's", || {
        let tranche = site.row("m-1").unwrap().tranche.map(|name| name.to_string());
        if tranche.as_deref() == Some("t-right") { Ok(()) } else { Err(tranche) }
    });
    until(15, "and no duplicate", || match delivery(site, "t-right") {
        Some((reason, _)) if reason == "AsListed" => Ok(()),
        other => Err(other),
    });
    assert_eq!(site.history("m-1").verdicts.len(), 1);
    assert_eq!(objects(site)["m-1"].spec.tranche.as_deref(), Some("t-right"));
    site.wait_phases(1, &[("m-1", "InService")]);
}

/// A line whose name another blade has is not dropped silently: the tranche is not complete without it.
fn collided(site: &Site) {
    site.tranche("t-clash", &[listed("c-1", "r-3"), called("c-2", "m-1")], json!({ "owner": "spare" }));
    site.join(&[("c-1", &[End::Pass])]);
    site.wait_phases(30, &[("c-1", "InService")]);
    let (_, message) = until(15, "its condition names the line", || match delivery(site, "t-clash") {
        Some(said) if said.0 == "NameTaken" => Ok(said),
        other => Err(other),
    });
    assert!(message.contains(serial("c-2").as_str()) && message.contains("m-1"), "{message}");
    let tranche = || -> Tranche { site.rt.block_on(site.api().get("t-clash")).unwrap() };
    assert_ne!(tranche().status.unwrap().phase.as_deref(), Some("Accepted"));
    site.patch::<Tranche>("t-clash", json!({ "blades": [listed("c-1", "r-3")] }));
    until(15, "without that line it is", || match tranche().status.unwrap().phase.as_deref() {
        Some("Accepted") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// An object for a blade that has one of another name already: it is not deleted, and says that it counts for nothing.
fn made_by_hand(site: &Site) {
    let object: Blade = serde_json::from_value(json!({
        "apiVersion": "whetstone.dev/v1alpha1", "kind": "Blade", "metadata": { "name": "by-hand" },
        "spec": { "serial": serial("free").as_str(), "quarantine": { "reason": "the fan is loud" } },
    }))
    .unwrap();
    site.rt.block_on(site.api::<Blade>().create(&PostParams::default(), &object)).unwrap();
    let message = until(15, "it says whose the serial is", || {
        let there = objects(site).remove("by-hand").ok_or("it is gone")?;
        let mut conditions = there.status.unwrap_or_default().conditions.into_iter();
        let valid = conditions.find(|c| c.type_ == "Valid" && c.status == "False");
        valid.map(|c| c.message).ok_or("nothing is said")
    });
    assert!(message.contains("blade free's"), "{message}");
    site.wait_phases(1, &[("free", "InService")]);
    delete::<Blade>(site, "by-hand");
}

/// The node that a person named stays the blade's when its object is lost: what work is there is there still.
fn named_a_node(site: &Site) {
    site.node("n-7", json!({}));
    site.tranche("t-node", &[listed("k-1", "r-4")], json!({ "owner": "spare" }));
    until(20, "it has an object", || objects(site).remove("k-1").ok_or("none"));
    site.patch::<Blade>("k-1", json!({ "nodeName": "n-7" }));
    site.join(&[("k-1", &[End::Pass])]);
    site.wait_phases(40, &[("k-1", "InService")]);
    delete::<Blade>(site, "k-1");
    until(20, "it has one again", || objects(site).remove("k-1").ok_or("none"));
    assert_eq!(site.blade("k-1").spec.node_name.as_deref(), Some("n-7"));
    site.patch::<Blade>("k-1", json!({ "quarantine": { "reason": "look" } }));
    site.wait_phases(20, &[("k-1", "Quarantined")]);
    until(10, "its node is withheld", || {
        let node = site.seen_node("n-7");
        if node.taint.as_deref() == Some("person") && node.cordoned { Ok(()) } else { Err(node) }
    });
    let phases: Vec<PhaseName> = site.history("k-1").transitions.iter().map(|t| t.to.name()).collect();
    assert!(phases.ends_with(&[PhaseName::Draining, PhaseName::Quarantined]), "{phases:?}");
}

/// Burn-ins that people ask for by an object: of the suite that it names, or with a word why not.
fn wished(site: &Site) {
    let ask = |name: &str, blade: &str, suite: &str| {
        let run: BurnIn = serde_json::from_value(json!({
            "apiVersion": "whetstone.dev/v1alpha1", "kind": "BurnIn", "metadata": { "name": name },
            "spec": { "blade": blade, "suite": suite },
        }))
        .unwrap();
        site.rt.block_on(site.api::<BurnIn>().create(&PostParams::default(), &run)).unwrap();
    };
    let status = |name: &str| site.rt.block_on(site.api::<BurnIn>().get(name)).unwrap().status;
    ask("no-such-suite", "free", "thorough");
    ask("no-such-blade", "ghost", "quick");
    ask("longer", "free", "standard");
    let why = until(15, "it is refused", || match status("no-such-suite") {
        Some(status) if status.phase == Some(BurnInPhase::Cancelled) => Ok(status.why.unwrap()),
        other => Err(other),
    });
    assert!(why.contains("thorough"), "{why}");
    let why = until(15, "it waits", || match status("no-such-blade") {
        Some(status) if status.phase == Some(BurnInPhase::Pending) => Ok(status.why.unwrap_or_default()),
        other => Err(other),
    });
    assert!(why.contains("no blade ghost"), "{why}");
    until(40, "it has passed", || match status("longer") {
        Some(status) if status.phase == Some(BurnInPhase::Passed) => Ok(()),
        other => Err(other),
    });
    let run = site.history("free").runs.into_iter().max_by_key(|run| run.run).unwrap();
    assert_eq!(run.suite, "standard", "its tranche's is quick");
    site.wait_phases(20, &[("free", "InService")]);
    assert_eq!(site.history("free").runs.len(), 2, "the refused one made a run");
}

/// Objects that are lost while nobody watches come back as they were wanted, where that can be told from the store.
fn lost(site: &mut Site) {
    site.patch::<Blade>("c-1", json!({ "retired": true }));
    site.wait_phases(20, &[("c-1", "Retired")]);
    site.operator().kill();
    for name in ["c-1", "slot-7", "free", "k-1"] {
        delete::<Blade>(site, name);
    }
    site.operator().start(&[]);
    site.operator().wait_leading();
    let site = &*site;
    until(20, "their objects are back", || {
        let objects = objects(site);
        let there = ["c-1", "slot-7", "free", "k-1"].map(|name| {
            objects.get(name).and_then(|blade| blade.status.as_ref()?.phase.clone()).unwrap_or_default()
        });
        if there == ["Retired", "Quarantined", "InService", "Quarantined"] { Ok(()) } else { Err(there) }
    });
    let objects = objects(site);
    assert!(objects["c-1"].spec.retired);
    assert!(objects["slot-7"].spec.quarantine.is_some());
    assert_eq!(objects["k-1"].spec.node_name.as_deref(), Some("n-7"), "its node tells");
    // A wish for a burn-in counts from where the last one was.
    let retested = site.row("free").unwrap().retested;
    assert_eq!(objects["free"].spec.retest, retested);
    site.patch::<Blade>("free", json!({ "retest": retested + 1 }));
    until(40, "it is burned in", || {
        let runs = site.history("free").runs.len();
        if runs == 3 { Ok(()) } else { Err(runs) }
    });
}
