//! Admission to burn-in: blades at once and watts, per tranche and per rack.
//!
//! The whole queue is walked in its order, so that a look at a few blades decides as a look at all would. Most often the
//! walk is not needed: a budget that is used up by what burns already refuses without it.

use std::collections::{BTreeMap, BTreeSet};

use whetstone_model::ids::{RackName, Serial, TrancheName};

use crate::decide::Look;
use crate::decision::{PowerScope, WaitReason};
use crate::index::Index;
use crate::view::{BladeView, SiteView, TrancheView};

/// Who may start now, and why the others of the queue may not although there was room before it was walked.
#[derive(Debug, Default)]
pub(crate) struct Admission<'a> {
    admitted: BTreeSet<&'a Serial>,
    refused: BTreeMap<&'a Serial, WaitReason>,
}

/// Runs that were admitted in this walk.
#[derive(Debug, Default)]
struct Taken<'a> {
    tranches: BTreeMap<&'a TrancheName, usize>,
    racks: BTreeMap<(&'a RackName, Option<&'a TrancheName>), usize>,
}

impl<'a> Admission<'a> {
    pub(crate) fn walk(look: &Look<'a>) -> Admission<'a> {
        let mut admission = Admission::default();
        let mut taken = Taken::default();
        for (_, _, serial) in &look.index.queue {
            let Some(blade) = look.site.blades.get(serial) else { continue };
            if look.no_room(blade).is_some() {
                continue;
            }
            if let Some(reason) = refuse(look.site, look.index, blade, &taken) {
                admission.refused.insert(serial, reason);
                continue;
            }
            admission.admitted.insert(serial);
            if let Some(name) = &blade.tranche {
                *taken.tranches.entry(name).or_default() += 1;
            }
            if let Some(rack) = &blade.rack {
                *taken.racks.entry((rack, blade.tranche.as_ref())).or_default() += 1;
            }
        }
        admission
    }

    pub(crate) fn refusal(&self, serial: &Serial) -> Option<&WaitReason> {
        self.refused.get(serial)
    }

    pub(crate) fn admits(&self, serial: &Serial) -> bool {
        self.admitted.contains(serial)
    }
}

/// What may not start with what burns already, whoever else is in the queue.
pub(crate) fn full(site: &SiteView, index: &Index, blade: &BladeView) -> Option<WaitReason> {
    refuse(site, index, blade, &Taken::default())
}

/// It could not start if it were alone: a person has set a budget below one blade.
pub(crate) fn hopeless(site: &SiteView, index: &Index, blade: &BladeView, tranche: &TrancheView) -> bool {
    let own = watts(site, index, blade);
    let over = |limit: Option<f64>| limit.is_some_and(|limit| own > limit);
    tranche.concurrency == 0
        || over(tranche.power.tranche_watts)
        || over(blade.rack.as_ref().and_then(|rack| rack_limit(site, index, rack)))
}

fn refuse(site: &SiteView, index: &Index, blade: &BladeView, taken: &Taken) -> Option<WaitReason> {
    let own = watts(site, index, blade);
    if let Some(tranche) = blade.tranche.as_ref().and_then(|name| site.tranches.get(name)) {
        let burning = index.tranches.get(&tranche.name).map_or(0, |tally| tally.burning)
            + taken.tranches.get(&tranche.name).copied().unwrap_or(0);
        if burning >= tranche.concurrency {
            return Some(WaitReason::Concurrency { limit: tranche.concurrency });
        }
        let watts = burning as f64 * tranche.power.blade_watts;
        if let Some(limit_watts) = tranche.power.tranche_watts
            && watts + own > limit_watts
        {
            return Some(WaitReason::Power { scope: PowerScope::Tranche, watts, limit_watts });
        }
    }
    let rack = blade.rack.as_ref()?;
    let limit_watts = rack_limit(site, index, rack)?;
    let extra = |tranche| taken.racks.get(&(rack, tranche)).copied().unwrap_or(0);
    let watts = rack_watts(site, index, rack, extra);
    (watts + own > limit_watts).then_some(WaitReason::Power { scope: PowerScope::Rack, watts, limit_watts })
}

/// What the burn-ins of a rack draw: those that go on, and `extra` ones of each tranche.
pub(crate) fn rack_watts<'a>(
    site: &SiteView,
    index: &'a Index,
    rack: &RackName,
    extra: impl Fn(Option<&'a TrancheName>) -> usize,
) -> f64 {
    let part_watts = |(tranche, burning): (Option<&TrancheName>, usize)| {
        burning as f64 * blade_watts(site, index, Some(rack), tranche)
    };
    index.rack(rack).map(|(tranche, part)| part_watts((tranche, part.burning + extra(tranche)))).sum()
}

/// A rack has one limit: the least of those that its tranches state.
pub(crate) fn rack_limit(site: &SiteView, index: &Index, rack: &RackName) -> Option<f64> {
    let limits = index.rack(rack).filter_map(|(tranche, _)| site.tranches.get(tranche?)?.power.rack_watts);
    limits.reduce(f64::min)
}

fn watts(site: &SiteView, index: &Index, blade: &BladeView) -> f64 {
    blade_watts(site, index, blade.rack.as_ref(), blade.tranche.as_ref())
}

/// What one blade draws. Nobody has said it for a blade without a tranche: it counts as the most that a blade of its rack
/// draws.
fn blade_watts(
    site: &SiteView,
    index: &Index,
    rack: Option<&RackName>,
    tranche: Option<&TrancheName>,
) -> f64 {
    let said = |name: &TrancheName| site.tranches.get(name).map(|tranche| tranche.power.blade_watts);
    tranche.and_then(said).unwrap_or_else(|| {
        let others = rack.into_iter().flat_map(|rack| index.rack(rack));
        others.filter_map(|(name, _)| said(name?)).fold(0.0, f64::max)
    })
}
