//! The planner: a view of the site and the time in, a plan out. Pure: no clock, no IO, no randomness.
//!
//! How a decision comes about, one module each:
//! - `wish`: what a blade wants next, from itself and its tranche alone;
//! - `index`: counts over all blades, kept up to date blade by blade;
//! - `admit` (concurrency, watts), `breaker`, `drain`, `gate`, `cohort`: what the others leave room for;
//! - `decide`: the outcome and the steps, with `cause` (quarantines and their cases) and `node` (taint and cordon);
//! - `tranche`: the counts and what is to be judged; `explain`: sentences; `lint`: invariants of a plan.

mod admit;
mod breaker;
mod cause;
mod cohort;
mod decide;
mod decision;
mod drain;
mod explain;
mod gate;
mod index;
mod lint;
mod node;
mod tranche;
mod view;
mod wish;

use std::collections::BTreeSet;

use whetstone_model::ids::{Serial, TrancheName};

pub use decision::*;
pub use explain::{duration_text, explain, phase_sentence};
pub use lint::lint;
pub use view::*;

use decide::Look;
use index::Index;

/// Plans for every blade and every tranche. For tests and examples: reads the whole site each time. The operator keeps a
/// [`Planner`].
pub fn plan(site: &SiteView, now_ms: i64) -> Plan {
    Planner::new(site).plan(site, now_ms)
}

/// Plans for the named blades and their tranches: the same decisions as [`plan`]. Budgets count over the whole site.
/// Names that the site does not know are left out. As [`plan`], for tests and examples.
pub fn plan_some(site: &SiteView, dirty: &BTreeSet<Serial>, now_ms: i64) -> Plan {
    Planner::new(site).plan_some(site, dirty, now_ms)
}

/// Counts over a site that are kept between looks, so that a look at few blades costs those few.
///
/// Whoever changes the view says which blades changed ([`Planner::refresh`]); limits may change at any time; after a
/// change of a tranche a new one is made.
#[derive(Debug, Clone)]
pub struct Planner {
    index: Index,
}

impl Planner {
    pub fn new(site: &SiteView) -> Planner {
        Planner { index: Index::build(site) }
    }

    /// These blades changed, came or went.
    pub fn refresh(&mut self, site: &SiteView, changed: &BTreeSet<Serial>) {
        for serial in changed {
            self.index.refresh(site, serial);
        }
    }

    /// Blades whose drain may start now. The end of another one is no event of theirs, so nobody says that they are dirty.
    pub fn next_drains(&self, site: &SiteView, now_ms: i64) -> BTreeSet<Serial> {
        drain::next(&Look::new(site, &self.index, now_ms)).cloned().collect()
    }

    /// As [`plan`].
    pub fn plan(&self, site: &SiteView, now_ms: i64) -> Plan {
        let look = Look::new(site, &self.index, now_ms);
        Plan {
            blades: site.blades.values().filter_map(|blade| look.decide(blade)).collect(),
            tranches: site.tranches.values().map(|tranche| tranche::sum_up(&look, tranche)).collect(),
            breaker: look.breaker().report(),
        }
    }

    /// As [`plan_some`].
    pub fn plan_some(&self, site: &SiteView, dirty: &BTreeSet<Serial>, now_ms: i64) -> Plan {
        let look = Look::new(site, &self.index, now_ms);
        let blades: Vec<&BladeView> = dirty.iter().filter_map(|serial| site.blades.get(serial)).collect();
        let names: BTreeSet<&TrancheName> =
            blades.iter().filter_map(|blade| blade.tranche.as_ref()).collect();
        Plan {
            blades: blades.iter().filter_map(|blade| look.decide(blade)).collect(),
            tranches: names
                .iter()
                .filter_map(|name| site.tranches.get(name))
                .map(|tranche| tranche::sum_up(&look, tranche))
                .collect(),
            breaker: look.breaker().report(),
        }
    }
}
