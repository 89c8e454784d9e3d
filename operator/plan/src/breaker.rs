//! The circuit breaker: how many blades faults may take out of service within a while.

use std::collections::BTreeSet;

use whetstone_model::ids::Serial;
use whetstone_model::lifecycle::{AfterDrain, Phase, QuarantineReason};

use crate::decision::{Breaker, WaitReason};
use crate::index::Index;
use crate::view::{BladeView, SiteView};

pub(crate) struct Decision<'a> {
    /// Withheld within the window already.
    withheld: usize,
    wanted: usize,
    limit: usize,
    /// Those that may be withheld now: the oldest faults first.
    through: BTreeSet<&'a Serial>,
}

/// Withheld for a fault, or on the way there.
pub(crate) fn withheld_since(blade: &BladeView) -> Option<i64> {
    let reason = match &blade.phase {
        Phase::Quarantined { reason } | Phase::Draining { then: AfterDrain::Quarantine { reason } } => reason,
        _ => return None,
    };
    (*reason == QuarantineReason::Fault).then_some(blade.since_ms)
}

impl<'a> Decision<'a> {
    pub(crate) fn new(site: &SiteView, index: &'a Index, now_ms: i64) -> Self {
        let limits = &site.limits;
        let from_ms = now_ms.saturating_sub(limits.breaker_window_ms);
        let withheld = index.faulted.iter().rev().take_while(|(since_ms, _)| *since_ms > from_ms).count();
        // Those that were just withheld are part of what served.
        let base = index.serving + withheld;
        let share = (base as f64 * limits.breaker_percent.clamp(0.0, 100.0) / 100.0).floor() as usize;
        let limit = share.max(limits.breaker_least);
        let room = if limits.breaker_override { usize::MAX } else { limit.saturating_sub(withheld) };
        let through = index.fault_wanted.iter().take(room).map(|(_, _, serial)| serial).collect();
        Decision { withheld, wanted: index.fault_wanted.len(), limit, through }
    }

    pub(crate) fn lets(&self, serial: &Serial) -> bool {
        self.through.contains(serial)
    }

    pub(crate) fn wait(&self) -> WaitReason {
        WaitReason::Breaker { faulted: self.withheld + self.wanted, limit: self.limit }
    }

    pub(crate) fn report(&self) -> Breaker {
        Breaker {
            open: self.through.len() < self.wanted,
            withheld: self.withheld,
            wanted: self.wanted,
            limit: self.limit,
        }
    }
}
