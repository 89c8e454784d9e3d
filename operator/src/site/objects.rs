//! Every blade of the lists has an object: it is made, kept at the place that the list says, and goes with the blade's old name.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;
use tracing::{info, warn};
use whetstone_api::{Blade, BladeSpec, FIELD_MANAGER, QuarantineSpec};
use whetstone_model::ids::TrancheName;
use whetstone_plan::Intent;
use whetstone_store::ExpectedBlade;

use super::memory::Memory;
use super::{Parts, status};
use crate::clock::now_ms;
use crate::cluster::{ClusterError, Seen, within};

/// Objects that are written at once.
const AT_ONCE: usize = 32;
/// Where some could not be written, the lists are compared anew after this.
const AGAIN: Duration = Duration::from_secs(20);
/// Calls that may hang before the rest is put off, and failures that are said each.
const HUNG: usize = 3;
const SAID: usize = 5;
/// Longest reason of a quarantine, characters; the schema's limit.
const QUARANTINE_REASON: usize = 300;

/// Writes in the background what the objects of blades do not say yet: quarantines must not wait for a thousand objects,
/// nor all blades for one that the apiserver refuses.
#[derive(Clone, Default)]
pub struct Objects(Arc<Mutex<Writing>>);

#[derive(Default)]
struct Writing {
    going: bool,
    /// The lists are to be compared when it has ended.
    again: bool,
}

impl Objects {
    fn lock(&self) -> MutexGuard<'_, Writing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether lists of which there is news are compared now. While objects are being written it is put off until that is done:
    /// each of them is news of the lists.
    pub fn compare_now(&self, news: bool) -> bool {
        let mut writing = self.lock();
        writing.again |= news && writing.going;
        news && !writing.going
    }

    /// The writing has ended; answers when the lists are compared anew. What failed would fail again at once, news or not.
    fn ended(&self, failed: bool) -> Option<Duration> {
        let mut writing = self.lock();
        writing.going = false;
        match (failed, std::mem::take(&mut writing.again)) {
            (true, _) => Some(AGAIN),
            (false, true) => Some(Duration::ZERO),
            (false, false) => None,
        }
    }

    /// Every blade of `blades` gets an object, and its place is that of the list.
    pub fn write(&self, parts: &Parts, memory: &Memory, blades: &[ExpectedBlade]) {
        let writes = writes(&parts.seen, memory, blades, now_ms());
        if writes.is_empty() {
            return;
        }
        self.lock().going = true;
        let (objects, parts) = (self.clone(), parts.clone());
        parts.tasks.clone().spawn(async move {
            let failed = write_all(&parts, writes).await;
            let Some(wait) = objects.ended(failed) else { return };
            tokio::select! {
                () = parts.stop.cancelled() => {}
                () = tokio::time::sleep(wait) => parts.dirty.manifests(),
            }
        });
    }
}

/// True if some are not written. An apiserver that hangs is left alone after a few.
async fn write_all(parts: &Parts, writes: Vec<Change>) -> bool {
    let api: Api<Blade> = Api::all(parts.client.clone());
    let (failed, hung) = (AtomicUsize::new(0), AtomicUsize::new(0));
    futures::stream::iter(writes)
        .for_each_concurrent(AT_ONCE, |write| {
            let (api, failed, hung) = (api.clone(), &failed, &hung);
            async move {
                if hung.load(Relaxed) >= HUNG || parts.stop.is_cancelled() || !parts.fence.holds() {
                    failed.fetch_add(1, Relaxed);
                    return;
                }
                parts.precedence.after_nodes().await;
                let Err(error) = write.carry_out(&api).await else { return };
                parts.metrics.kube_errors.with_label_values(&[error.category()]).inc();
                if failed.fetch_add(1, Relaxed) < SAID {
                    warn!(blade = write.name(), %error, "its object cannot be written, it is tried again");
                }
                if matches!(error, ClusterError::Timeout { .. }) {
                    hung.fetch_add(1, Relaxed);
                }
            }
        })
        .await;
    failed.into_inner() > 0
}

/// A change of a blade's object.
#[derive(Debug, PartialEq)]
enum Change {
    Create {
        name: String,
        spec: Box<BladeSpec>,
    },
    Place {
        name: String,
        patch: serde_json::Value,
    },
    /// The blade is called otherwise now and has an object of that name.
    Delete {
        name: String,
        uid: Option<String>,
    },
    /// A person made it, for a blade that has an object of another name.
    Refuse {
        name: String,
        patch: serde_json::Value,
    },
}

fn writes(seen: &Seen, memory: &Memory, blades: &[ExpectedBlade], now_ms: i64) -> Vec<Change> {
    let mut writes = Vec::new();
    // Serial → name, of those whose own object is there.
    let mut there: HashMap<&str, &str> = HashMap::new();
    for blade in blades {
        let name = blade.name.as_str();
        match seen.blade(name).as_deref().map(|guard| &guard.0) {
            None => {
                let intent = memory.site.blades.get(&blade.serial).map(|view| &view.intent);
                let node = memory.node_of(&blade.serial).filter(|node| *node != name);
                let spec = Box::new(spec(blade, intent, node));
                writes.push(Change::Create { name: name.to_owned(), spec });
            }
            Some(Ok(object)) if object.spec.serial != blade.serial.as_str() => {
                warn!(blade = name, serial = %blade.serial, object = object.spec.serial, "an object of that name is of another blade");
            }
            Some(Ok(object)) => {
                there.insert(blade.serial.as_str(), name);
                if let Some(patch) = place(object, blade) {
                    writes.push(Change::Place { name: name.to_owned(), patch });
                }
            }
            Some(Err(_)) => {}
        }
    }
    for guard in seen.blades.state() {
        let Ok(object) = &guard.0 else { continue };
        if let Some(own) = there.get(object.spec.serial.as_str()) {
            writes.extend(misnamed(object, own, now_ms));
        }
    }
    writes
}

/// What becomes of an object of a blade that has one called `own`. One that was the blade's by its former name goes: it says where
/// the blade was. One that a person made stays, with what they want in it, and says why that counts for nothing.
fn misnamed(object: &Blade, own: &str, now_ms: i64) -> Option<Change> {
    let (name, said) = (object.name_any(), object.status.as_ref());
    if name == own {
        return None;
    }
    if said.is_some_and(|said| said.sequence.is_some()) {
        return Some(Change::Delete { name, uid: object.metadata.uid.clone() });
    }
    let before = said.map(|said| said.conditions.as_slice()).unwrap_or_default();
    let why = format!("serial {} is blade {own}'s: what is wanted of it stands there", object.spec.serial);
    let after = status::invalid(before, object.metadata.generation, &why, now_ms);
    (after != before).then(|| Change::Refuse { name, patch: json!({ "status": { "conditions": after } }) })
}

impl Change {
    fn name(&self) -> &str {
        match self {
            Change::Create { name, .. }
            | Change::Place { name, .. }
            | Change::Delete { name, .. }
            | Change::Refuse { name, .. } => name,
        }
    }

    async fn carry_out(&self, api: &Api<Blade>) -> Result<(), ClusterError> {
        match self {
            Change::Create { name, spec } => {
                let object = Blade::new(name, BladeSpec::clone(spec));
                let parameters =
                    PostParams { field_manager: Some(FIELD_MANAGER.into()), ..Default::default() };
                match within("create blade", api.create(&parameters, &object)).await {
                    Err(error) if error.code() == Some(409) => Ok(()),
                    result => result.map(drop),
                }
            }
            Change::Place { name, patch } => {
                let parameters =
                    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..Default::default() };
                within("patch blade", api.patch(name, &parameters, &Patch::Merge(patch))).await.map(drop)
            }
            Change::Delete { name, uid } => {
                info!(blade = name, "it has another name now: its old object goes");
                let preconditions = Preconditions { uid: uid.clone(), resource_version: None };
                let parameters = DeleteParams::default().preconditions(preconditions);
                match within("delete blade", api.delete(name, &parameters)).await {
                    Err(error) if error.is_not_found() || error.code() == Some(409) => Ok(()),
                    result => result.map(drop),
                }
            }
            Change::Refuse { name, patch } => {
                warn!(
                    blade = name,
                    "its serial has an object of another name: what is wanted here counts for nothing"
                );
                let parameters =
                    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..Default::default() };
                match within("patch status", api.patch_status(name, &parameters, &Patch::Merge(patch))).await
                {
                    Err(error) if error.is_not_found() => Ok(()),
                    result => result.map(drop),
                }
            }
        }
    }
}

/// The spec of a new object. What people wanted of a blade whose object is lost, or that has another name now, stays; so does its
/// node, if that is not called as the blade is.
fn spec(blade: &ExpectedBlade, intent: Option<&Intent>, node: Option<&str>) -> BladeSpec {
    let wanted = intent.map_or_else(BladeSpec::default, |intent| BladeSpec {
        owner: intent.owner.as_ref().map(ToString::to_string),
        quarantine: intent.quarantine.as_ref().map(|reason| QuarantineSpec {
            reason: reason.chars().take(QUARANTINE_REASON).collect(),
            by: None,
        }),
        // A wish that was carried out already is none.
        retest: intent.retest.max(intent.retested),
        retired: intent.retired,
        suite: None,
        ..BladeSpec::default()
    });
    BladeSpec {
        serial: blade.serial.to_string(),
        sku: blade.sku.clone(),
        tranche: blade.tranche.as_ref().map(TrancheName::to_string),
        rack: blade.rack.as_ref().map(ToString::to_string),
        nvlink_domain: blade.domain.as_ref().map(ToString::to_string),
        node_name: node.map(str::to_owned),
        ..wanted
    }
}

/// What of the list the object does not say yet. What only people set is left alone.
fn place(object: &Blade, blade: &ExpectedBlade) -> Option<serde_json::Value> {
    let wanted = spec(blade, None, None);
    let mut changes = json!({});
    for (key, old, new) in [
        ("sku", &object.spec.sku, &wanted.sku),
        ("tranche", &object.spec.tranche, &wanted.tranche),
        ("rack", &object.spec.rack, &wanted.rack),
        ("nvlinkDomain", &object.spec.nvlink_domain, &wanted.nvlink_domain),
    ] {
        if old != new {
            changes[key] = json!(new);
        }
    }
    changes.as_object().is_some_and(|c| !c.is_empty()).then(|| json!({ "spec": changes }))
}

#[cfg(test)]
mod tests {
    use whetstone_model::lifecycle::{Owner, Phase};

    use super::*;
    use crate::site::testing::{memory, object, row, seen};

    fn listed(serial: &str, name: &str) -> ExpectedBlade {
        let (serial, name) = (serial.parse().unwrap(), name.parse().unwrap());
        ExpectedBlade { serial, name, tranche: None, rack: None, domain: None, sku: None }
    }

    #[test]
    fn only_news_puts_a_comparison_off_and_what_failed_is_not_tried_again_at_once() {
        let objects = Objects::default();
        assert!(objects.compare_now(true) && !objects.compare_now(false));
        let ended = |news: bool, failed: bool| {
            objects.lock().going = true;
            assert!(!objects.compare_now(news));
            objects.ended(failed)
        };
        assert_eq!(ended(false, false), None, "nothing was put off");
        assert_eq!(ended(true, false), Some(Duration::ZERO));
        assert_eq!((ended(false, true), ended(true, true)), (Some(AGAIN), Some(AGAIN)));
        assert_eq!(ended(false, false), None, "what was put off is compared once");
    }

    #[tokio::test]
    async fn a_blade_whose_object_is_lost_gets_one_that_names_its_node() {
        let nodes = [json!({ "metadata": { "name": "n-7" } })];
        let named = seen(&[object("m-1", "S1", json!({ "nodeName": "n-7" }))], &nodes).await;
        let lost = seen(&[], &nodes).await;
        let rows = [("S1", "m-1"), ("S2", "m-2")];
        let rows = rows.map(|(serial, name)| row(serial, name, Phase::InService { owner: Owner::Spare }));
        let memory = memory(rows.to_vec(), &named);
        // By its old name, or by another one that its list gives it now.
        for (serial, name, node) in
            [("S1", "m-1", Some("n-7")), ("S1", "slot-7", Some("n-7")), ("S2", "m-2", None)]
        {
            let written = writes(&lost, &memory, &[listed(serial, name)], 0);
            let [Change::Create { name: made, spec }] = &written[..] else { panic!("{written:?}") };
            assert_eq!((made.as_str(), spec.node_name.as_deref()), (name, node));
        }
    }

    #[tokio::test]
    async fn an_object_that_a_person_made_for_a_blade_of_another_name_stays_and_says_so() {
        let mut former = object("former", "S1", json!({}));
        former["status"] = json!({ "sequence": 3 });
        let mut theirs = object("theirs", "S1", json!({ "quarantine": { "reason": "smells of smoke" } }));
        let own = object("b-1", "S1", json!({}));
        let blades = [listed("S1", "b-1")];
        let first = seen(&[own.clone(), former, theirs.clone()], &[]).await;
        let memory = memory(vec![row("S1", "b-1", Phase::Ready)], &first);
        let written = writes(&first, &memory, &blades, 5_000);
        let of = |name: &str| written.iter().find(|change| change.name() == name);
        assert_eq!(written.len(), 2, "{written:?}");
        assert_eq!(of("former"), Some(&Change::Delete { name: "former".into(), uid: Some("former".into()) }));
        let Some(Change::Refuse { patch, .. }) = of("theirs") else { panic!("{written:?}") };
        let said = &patch["status"]["conditions"][0];
        assert_eq!((&said["type"], &said["status"]), (&json!("Valid"), &json!("False")));
        assert!(said["message"].as_str().unwrap().contains("serial S1 is blade b-1's"), "{said}");
        // Once it says so, nothing is left to be done.
        theirs["status"] = patch["status"].clone();
        let second = seen(&[own, theirs], &[]).await;
        let written = writes(&second, &memory, &blades, 90_000);
        assert!(written.is_empty(), "{written:?}");
    }
}
