//! From people's lists to the store: tranches and blades made by hand are entered as expected, and every blade of the store
//! has an object.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tracing::{info, warn};
use whetstone_api::{Blade, BladeSpec, FIELD_MANAGER, SpecError, Tranche};
use whetstone_model::ids::{Serial, TrancheName};
use whetstone_plan::TrancheView;
use whetstone_store::{ExpectedBlade, UpsertOutcome};

use super::memory::Memory;
use super::view::{self, NamedSuite};
use super::{Parts, SiteError};
use crate::cluster::{ClusterError, within};
use crate::ops::TrancheTerms;

/// Objects that are written at once.
const AT_ONCE: usize = 32;

/// What the lists say, parsed.
#[derive(Default)]
struct Lists {
    expected: Vec<ExpectedBlade>,
    tranches: BTreeMap<TrancheName, (Arc<Tranche>, NamedSuite)>,
    /// Objects that cannot be understood: `Tranche t-07`, why.
    bad: Vec<(String, String)>,
}

/// Compares the lists with the store and puts right what differs.
pub async fn sync(parts: &Parts, memory: &mut Memory, now_ms: i64) -> Result<(), SiteError> {
    let lists = read(parts);
    for (object, why) in &lists.bad {
        warn!(object, why, "cannot be understood; the others go on");
    }
    let outcomes = parts.store.upsert_expected(&lists.expected, now_ms).await?;
    let mut duplicates: BTreeMap<TrancheName, Vec<(Serial, TrancheName)>> = BTreeMap::new();
    let mut objects = Vec::new();
    for (blade, outcome) in lists.expected.iter().zip(&outcomes) {
        match outcome {
            UpsertOutcome::New => info!(blade = %blade.name, serial = %blade.serial, "expected"),
            UpsertOutcome::Duplicate { tranche: Some(other) } => {
                if let Some(tranche) = &blade.tranche
                    && tranche != other
                {
                    duplicates
                        .entry(tranche.clone())
                        .or_default()
                        .push((blade.serial.clone(), other.clone()));
                }
                continue;
            }
            UpsertOutcome::Duplicate { tranche: None } => continue,
            UpsertOutcome::NameTaken { by } => {
                warn!(blade = %blade.name, serial = %blade.serial, %by, "that name is another blade's");
                continue;
            }
            UpsertOutcome::Updated | UpsertOutcome::Same => {}
        }
        objects.push(blade);
    }
    tranches(parts, memory, &lists, &duplicates);
    write_objects(parts, &objects).await
}

fn read(parts: &Parts) -> Lists {
    let mut lists = Lists::default();
    let mut listed: BTreeSet<String> = BTreeSet::new();
    let mut tranches = parts.seen.tranches.state();
    // The elder keeps a serial that two of them list.
    tranches.sort_by_key(|guard| (guard.creation_timestamp().map(|t| t.0), guard.name_any()));
    for guard in tranches {
        let name = guard.name_any();
        let understood = guard.0.as_ref().map_err(|e| e.error.clone()).and_then(|tranche| {
            tranche_blades(tranche)
                .map(|(suite, blades)| (tranche.clone(), suite, blades))
                .map_err(|e| e.to_string())
        });
        match understood {
            Ok((tranche, suite, blades)) => {
                listed.extend(blades.iter().map(|blade| blade.serial.to_string()));
                lists.expected.extend(blades);
                if let Ok(name) = tranche.tranche_name() {
                    lists.tranches.insert(name, (Arc::new(tranche), suite));
                }
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

fn tranche_blades(tranche: &Tranche) -> Result<(NamedSuite, Vec<ExpectedBlade>), SpecError> {
    let name = tranche.tranche_name()?;
    let suite = view::suite(&tranche.spec.suite, tranche.spec.suite_text.as_deref())?;
    tranche.owner()?;
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
    Ok((suite, blades.collect::<Result<_, SpecError>>()?))
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

fn tranches(
    parts: &Parts,
    memory: &mut Memory,
    lists: &Lists,
    duplicates: &BTreeMap<TrancheName, Vec<(Serial, TrancheName)>>,
) {
    let (mut views, mut suites, mut terms) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (name, (object, suite)) in &lists.tranches {
        let twice = duplicates.get(name).cloned().unwrap_or_default();
        let view: TrancheView = match view::tranche(object, suite, twice) {
            Ok(view) => view,
            Err(error) => {
                warn!(tranche = %name, %error, "cannot be understood");
                continue;
            }
        };
        terms.insert(
            name.clone(),
            TrancheTerms {
                suite: Some(view.suite.clone()),
                fpr: view.fpr,
                duplicates: view.duplicates.clone(),
                due_ms: view.due_ms,
            },
        );
        views.insert(name.clone(), view);
        suites.insert(name.clone(), suite.clone());
    }
    parts.known.set_tranches(terms);
    memory.suites = suites;
    memory.site.tranches = views;
    memory.tranches_changed();
}

/// Every blade has an object, and its place is that of the list.
async fn write_objects(parts: &Parts, blades: &[&ExpectedBlade]) -> Result<(), SiteError> {
    let api: Api<Blade> = Api::all(parts.client.clone());
    let writes = blades.iter().filter_map(|blade| {
        let api = api.clone();
        match parts.seen.blade(blade.name.as_str()).as_deref().map(|guard| &guard.0) {
            None => Some(futures::future::Either::Left(create(api, blade))),
            Some(Ok(object)) if object.spec.serial != blade.serial.as_str() => {
                warn!(blade = %blade.name, serial = %blade.serial, object = object.spec.serial, "an object of that name is of another blade");
                None
            }
            Some(Ok(object)) => place(object, blade).map(|body| {
                futures::future::Either::Right(async move {
                    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..Default::default() };
                    let patch = Patch::Merge(&body);
                    within("patch blade", api.patch(blade.name.as_str(), &parameters, &patch)).await.map(drop)
                })
            }),
            Some(Err(_)) => None,
        }
    });
    let done: Vec<Result<(), ClusterError>> =
        futures::stream::iter(writes.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).collect().await;
    for result in done {
        result?;
    }
    Ok(())
}

async fn create(api: Api<Blade>, blade: &ExpectedBlade) -> Result<(), ClusterError> {
    let object = Blade::new(blade.name.as_str(), spec(blade));
    let parameters = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..Default::default() };
    match within("create blade", api.create(&parameters, &object)).await {
        Err(error) if error.code() == Some(409) => Ok(()),
        result => result.map(drop),
    }
}

fn spec(blade: &ExpectedBlade) -> BladeSpec {
    BladeSpec {
        serial: blade.serial.to_string(),
        sku: blade.sku.clone(),
        tranche: blade.tranche.as_ref().map(TrancheName::to_string),
        rack: blade.rack.as_ref().map(ToString::to_string),
        nvlink_domain: blade.domain.as_ref().map(ToString::to_string),
        ..BladeSpec::default()
    }
}

/// What of the list the object does not say yet. What only people set is left alone.
fn place(object: &Blade, blade: &ExpectedBlade) -> Option<serde_json::Value> {
    let wanted = spec(blade);
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
