//! What the loop knows and others may ask: terms of the tranches, and why each blade is where it is.

use std::collections::{BTreeMap, HashMap};
use std::sync::{PoisonError, RwLock};

use whetstone_model::ids::{Serial, TrancheName};
use whetstone_plan::{BladePlan, BladeView, Breaker, Plan, explain};

use super::memory::Memory;
use crate::clock::now_ms;
use crate::ops::{SiteInfo, TrancheTerms};

#[derive(Default)]
pub struct Known {
    tranches: RwLock<BTreeMap<TrancheName, TrancheTerms>>,
    blades: RwLock<HashMap<Serial, Box<(BladeView, BladePlan)>>>,
    breaker: RwLock<Breaker>,
}

impl Known {
    pub fn set_tranches(&self, terms: BTreeMap<TrancheName, TrancheTerms>) {
        *self.tranches.write().unwrap_or_else(PoisonError::into_inner) = terms;
    }

    /// What was decided last, for the blades of `plan` and by the breaker.
    pub fn decided(&self, memory: &Memory, plan: &Plan) {
        *self.breaker.write().unwrap_or_else(PoisonError::into_inner) = plan.breaker.clone();
        let mut blades = self.blades.write().unwrap_or_else(PoisonError::into_inner);
        for blade in &plan.blades {
            match memory.site.blades.get(&blade.serial) {
                Some(view) => {
                    let decided = Box::new((view.clone(), blade.clone()));
                    drop(blades.insert(blade.serial.clone(), decided));
                }
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
        let (view, plan) = &**blades.get(serial)?;
        Some(explain(view, plan, now_ms()))
    }

    fn breaker(&self) -> Breaker {
        self.breaker.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
