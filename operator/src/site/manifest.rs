//! From people's lists to the store: tranches and blades made by hand are entered as expected.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use tracing::{info, warn};
use whetstone_api::{Blade, SpecError, Tranche};
use whetstone_model::ids::{Serial, TrancheName};
use whetstone_plan::TrancheView;
use whetstone_store::{ExpectedBlade, UpsertOutcome};

use super::memory::Memory;
use super::view::{self, NamedSuite};
use super::{Parts, SiteError};
use crate::ops::{Refused, TrancheTerms};

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
    let mut blades = parts.seen.blades.state();
    // The elder is the blade, of two that were made with one serial.
    blades.sort_by_cached_key(|guard| (guard.creation_timestamp().map(|t| t.0), guard.name_any()));
    for guard in blades {
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
