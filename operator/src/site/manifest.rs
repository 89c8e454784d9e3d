//! From people's lists to the store: tranches and blades made by hand are entered as expected, and every blade of the store
//! has an object.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;
use tracing::{info, warn};
use whetstone_api::{Blade, BladeSpec, FIELD_MANAGER, QuarantineSpec, SpecError, Tranche};
use whetstone_model::ids::{Serial, TrancheName};
use whetstone_plan::{Intent, TrancheView};
use whetstone_store::{ExpectedBlade, UpsertOutcome};

use super::memory::Memory;
use super::view::{self, NamedSuite};
use super::{Parts, SiteError};
use crate::cluster::{ClusterError, Seen, within};
use crate::ops::{Refused, TrancheTerms};

/// Objects that are written at once.
const AT_ONCE: usize = 32;
/// Where some could not be written, the lists are compared anew after this.
const AGAIN: Duration = Duration::from_secs(20);
/// Calls that may hang before the rest is put off, and failures that are said each.
const HUNG: usize = 3;
const SAID: usize = 5;
/// Longest reason of a quarantine, characters; the schema's limit.
const QUARANTINE_REASON: usize = 300;

/// What the lists say, parsed.
#[derive(Default)]
struct Lists {
    expected: Vec<ExpectedBlade>,
    tranches: BTreeMap<TrancheName, (TrancheView, NamedSuite)>,
    /// Tranches that are there, those that cannot be understood too.
    there: BTreeSet<String>,
    /// Objects that cannot be understood: `Tranche t-07`, why.
    bad: Vec<(String, String)>,
}

/// Compares the lists with the store and puts right what differs. Answers the blades that are to have objects.
pub async fn sync(parts: &Parts, memory: &mut Memory, now_ms: i64) -> Result<Vec<ExpectedBlade>, SiteError> {
    let mut lists = read(parts);
    for (object, why) in &lists.bad {
        warn!(object, why, "cannot be understood; the others go on");
    }
    let outcomes = parts.store.upsert_moving(&lists.expected, &may_move(&lists), now_ms).await?;
    let mut refused: BTreeMap<TrancheName, Vec<Refused>> = BTreeMap::new();
    let mut objects = Vec::new();
    for (blade, outcome) in std::mem::take(&mut lists.expected).into_iter().zip(outcomes) {
        let ExpectedBlade { serial, name, tranche, .. } = &blade;
        match outcome {
            UpsertOutcome::New => info!(blade = %name, %serial, "expected"),
            UpsertOutcome::Duplicate { tranche: other } => {
                if let (Some(other), Some(tranche)) = (other, tranche)
                    && *tranche != other
                    && let Some((view, _)) = lists.tranches.get_mut(tranche)
                {
                    view.duplicates.push((serial.clone(), other));
                }
                continue;
            }
            UpsertOutcome::NameTaken { by } => {
                warn!(blade = %name, %serial, %by, "that name is another blade's");
                if let Some(tranche) = tranche {
                    refused.entry(tranche.clone()).or_default().push(Refused {
                        serial: serial.clone(),
                        name: name.clone(),
                        rack: blade.rack.clone(),
                        why: format!("the name {name} is blade {by}'s"),
                    });
                }
                continue;
            }
            UpsertOutcome::Updated | UpsertOutcome::Same => {}
        }
        objects.push(blade);
    }
    describe(parts, memory, lists, refused);
    Ok(objects)
}

/// Serials that one list has: whatever tranche had them before lists them no more. A list that cannot be read may have them.
fn may_move(lists: &Lists) -> BTreeSet<Serial> {
    let mut once = BTreeSet::new();
    if lists.bad.is_empty() {
        let mut all = BTreeSet::new();
        for blade in &lists.expected {
            if all.insert(&blade.serial) {
                once.insert(blade.serial.clone());
            } else {
                once.remove(&blade.serial);
            }
        }
    }
    once
}

fn read(parts: &Parts) -> Lists {
    let mut lists = Lists::default();
    let mut listed: BTreeSet<String> = BTreeSet::new();
    let mut tranches = parts.seen.tranches.state();
    // The elder keeps a serial that two of them list.
    tranches.sort_by_key(|guard| (guard.creation_timestamp().map(|t| t.0), guard.name_any()));
    for guard in tranches {
        let name = guard.name_any();
        lists.there.insert(name.clone());
        let understood = guard.0.as_ref().map_err(|e| e.error.clone());
        match understood.and_then(|tranche| tranche_terms(tranche).map_err(|e| e.to_string())) {
            Ok((view, suite, blades)) => {
                listed.extend(blades.iter().map(|blade| blade.serial.to_string()));
                lists.expected.extend(blades);
                lists.tranches.insert(view.name.clone(), (view, suite));
            }
            Err(why) => lists.bad.push((format!("Tranche {name}"), why)),
        }
    }
    for guard in parts.seen.blades.state() {
        // One that cannot be understood is said at its own place, see `project`.
        let Ok(blade) = &guard.0 else { continue };
        if listed.contains(&blade.spec.serial) {
            continue;
        }
        match by_hand(blade) {
            Ok(blade) => lists.expected.push(blade),
            Err(why) => lists.bad.push((format!("Blade {}", blade.name_any()), why.to_string())),
        }
    }
    lists
}

fn tranche_terms(tranche: &Tranche) -> Result<(TrancheView, NamedSuite, Vec<ExpectedBlade>), SpecError> {
    let name = tranche.tranche_name()?;
    let suite = view::suite(&tranche.spec.suite, tranche.spec.suite_text.as_deref())?;
    let terms = view::tranche(tranche, &suite, Vec::new())?;
    let blades = tranche.spec.blades.iter().map(|blade| {
        Ok(ExpectedBlade {
            serial: blade.serial()?,
            name: blade.blade_name()?,
            tranche: Some(name.clone()),
            rack: blade.rack()?,
            domain: blade.domain()?,
            sku: blade.sku.clone(),
        })
    });
    let blades = blades.collect::<Result<_, SpecError>>()?;
    Ok((terms, suite, blades))
}

fn by_hand(blade: &Blade) -> Result<ExpectedBlade, SpecError> {
    Ok(ExpectedBlade {
        serial: blade.serial()?,
        name: blade.blade_name()?,
        tranche: blade.tranche()?,
        rack: blade.rack()?,
        domain: blade.domain()?,
        sku: blade.spec.sku.clone(),
    })
}

/// Takes the tranches' terms over. One that cannot be understood any more keeps those that it had: its gates and budgets
/// must not open because of a slip.
fn describe(parts: &Parts, memory: &mut Memory, lists: Lists, refused: BTreeMap<TrancheName, Vec<Refused>>) {
    let understood: BTreeSet<TrancheName> = lists.tranches.keys().cloned().collect();
    let stays = |name: &TrancheName| lists.there.contains(name.as_str()) && !understood.contains(name);
    memory.site.tranches.retain(|name, _| stays(name));
    memory.suites.retain(|name, _| stays(name));
    memory.refused.retain(|name, _| stays(name));
    for (name, (view, suite)) in lists.tranches {
        memory.site.tranches.insert(name.clone(), view);
        memory.suites.insert(name, suite);
    }
    memory.refused.extend(refused);
    let terms = memory.site.tranches.values().map(|view| {
        let terms = TrancheTerms {
            suite: Some(view.suite.clone()),
            fpr: view.fpr,
            duplicates: view.duplicates.clone(),
            refused: memory.refused.get(&view.name).cloned().unwrap_or_default(),
            due_ms: view.due_ms,
        };
        (view.name.clone(), terms)
    });
    parts.known.set_tranches(terms.collect());
    memory.tranches_changed();
}

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

    /// True if lists are not to be compared now but when what is being written is done: every object that is written
    /// is news of the lists.
    pub fn put_off(&self) -> bool {
        let mut writing = self.lock();
        writing.again |= writing.going;
        writing.going
    }

    /// Every blade of `blades` gets an object, and its place is that of the list.
    pub fn write(&self, parts: &Parts, memory: &Memory, blades: &[ExpectedBlade]) {
        let writes = writes(&parts.seen, memory, blades);
        if writes.is_empty() {
            return;
        }
        self.lock().going = true;
        let (objects, parts) = (self.clone(), parts.clone());
        parts.tasks.clone().spawn(async move {
            let failed = write_all(&parts, writes).await;
            let again = {
                let mut writing = objects.lock();
                writing.going = false;
                std::mem::take(&mut writing.again)
            };
            if again {
                parts.dirty.manifests();
            } else if failed {
                tokio::select! {
                    () = parts.stop.cancelled() => {}
                    () = tokio::time::sleep(AGAIN) => parts.dirty.manifests(),
                }
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
}

fn writes(seen: &Seen, memory: &Memory, blades: &[ExpectedBlade]) -> Vec<Change> {
    let mut writes = Vec::new();
    // Serial → name, of those whose own object is there.
    let mut there: HashMap<&str, &str> = HashMap::new();
    for blade in blades {
        let name = blade.name.as_str();
        match seen.blade(name).as_deref().map(|guard| &guard.0) {
            None => {
                let intent = memory.site.blades.get(&blade.serial).map(|view| &view.intent);
                writes.push(Change::Create { name: name.to_owned(), spec: Box::new(spec(blade, intent)) });
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
        let name = object.name_any();
        if there.get(object.spec.serial.as_str()).is_some_and(|own| *own != name) {
            writes.push(Change::Delete { name, uid: object.metadata.uid.clone() });
        }
    }
    writes
}

impl Change {
    fn name(&self) -> &str {
        match self {
            Change::Create { name, .. } | Change::Place { name, .. } | Change::Delete { name, .. } => name,
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
        }
    }
}

/// The spec of a new object. What people wanted of a blade whose object is lost, or that has another name now, stays.
fn spec(blade: &ExpectedBlade, intent: Option<&Intent>) -> BladeSpec {
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
        ..wanted
    }
}

/// What of the list the object does not say yet. What only people set is left alone.
fn place(object: &Blade, blade: &ExpectedBlade) -> Option<serde_json::Value> {
    let wanted = spec(blade, None);
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
