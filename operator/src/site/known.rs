//! What the loop knows and others may ask: terms of the tranches, and why each blade is where it is.

use std::collections::{BTreeMap, HashMap};
use std::sync::{PoisonError, RwLock};

use whetstone_model::ids::{Serial, TrancheName};
use whetstone_plan::{BladePlan, BladeView, Plan, explain};

use super::memory::Memory;
use crate::clock::now_ms;
use crate::ops::{SiteInfo, TrancheTerms};

#[derive(Default)]
pub struct Known {
    tranches: RwLock<BTreeMap<TrancheName, TrancheTerms>>,
    blades: RwLock<HashMap<Serial, (BladeView, BladePlan)>>,
}

impl Known {
    pub fn set_tranches(&self, terms: BTreeMap<TrancheName, TrancheTerms>) {
        *self.tranches.write().unwrap_or_else(PoisonError::into_inner) = terms;
    }

    /// What was decided last for the blades of `plan`.
    pub fn decided(&self, memory: &Memory, plan: &Plan) {
        let mut blades = self.blades.write().unwrap_or_else(PoisonError::into_inner);
        for blade in &plan.blades {
            match memory.site.blades.get(&blade.serial) {
                Some(view) => drop(blades.insert(blade.serial.clone(), (view.clone(), blade.clone()))),
                None => drop(blades.remove(&blade.serial)),
            }
        }
    }
}

impl SiteInfo for Known {
    fn tranche(&self, name: &TrancheName) -> Option<TrancheTerms> {
        self.tranches.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn explain(&self, serial: &Serial) -> Option<String> {
        let blades = self.blades.read().unwrap_or_else(PoisonError::into_inner);
        blades.get(serial).map(|(view, plan)| explain(view, plan, now_ms()))
    }
}
