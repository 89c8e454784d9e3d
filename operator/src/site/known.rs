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
            if let Some(view) = memory.site.blades.get(&blade.serial) {
                blades.insert(blade.serial.clone(), Box::new((view.clone(), blade.clone())));
            }
        }
        // Of one that is not in memory any more, as its row cannot be read, nobody knows whether the old answer still holds.
        if blades.len() > memory.site.blades.len() {
            blades.retain(|serial, _| memory.site.blades.contains_key(serial));
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

#[cfg(test)]
mod tests {
    use whetstone_model::lifecycle::Phase;
    use whetstone_plan::SiteLimits;

    use super::*;
    use crate::site::judge::tests::blade;

    #[test]
    fn a_blade_that_is_known_no_more_is_not_explained() {
        let (known, mut memory) = (Known::default(), Memory::new(SiteLimits::default()));
        let (stays, goes) = (blade("S1", Phase::Ready, 1), blade("S2", Phase::Ready, 2));
        let mut explained = |there: &[&BladeView]| {
            memory.site.blades = there.iter().map(|view| (view.serial.clone(), (*view).clone())).collect();
            memory.tranches_changed();
            known.decided(&memory, &memory.planner.plan(&memory.site, 0));
            [&stays, &goes].map(|view| known.explain(&view.serial).is_some())
        };
        assert_eq!(explained(&[&stays, &goes]), [true, true]);
        assert_eq!(explained(&[&stays]), [true, false]);
    }
}
