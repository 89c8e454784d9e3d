//! The circuit breaker: how many blades faults may take out of service within a while. It latches: once faults want more, no
//! further blade is withheld for them, however much time passes, until a person says that it is right or none is held back.

use std::collections::BTreeSet;

use whetstone_model::ids::Serial;
use whetstone_model::lifecycle::{AfterDrain, Phase, QuarantineReason};

use crate::decision::{Breaker, WaitReason};
use crate::index::Index;
use crate::view::{BladeView, SiteView};
use crate::wish::Wish;

pub(crate) struct Decision<'a> {
    /// Withheld within the window already.
    withheld: usize,
    wanted: usize,
    limit: usize,
    /// Those that may be withheld now: the oldest faults first.
    through: BTreeSet<&'a Serial>,
}

/// Let through before: its case is open, but not all that comes with it was carried out.
pub(crate) fn begun(blade: &BladeView, wish: Wish) -> bool {
    wish == Wish::Fault && !blade.cases.is_empty()
}

/// Withheld for a fault, or on the way there; since the first case was opened for it, so that the end of a long drain is not
/// counted as another one.
pub(crate) fn withheld_since(blade: &BladeView, wish: Wish) -> Option<i64> {
    let withheld = match &blade.phase {
        Phase::Quarantined { reason } | Phase::Draining { then: AfterDrain::Quarantine { reason } } => {
            *reason == QuarantineReason::Fault
        }
        _ => begun(blade, wish),
    };
    let opened_ms = blade.cases.iter().map(|case| case.opened_ms).min();
    withheld.then(|| opened_ms.unwrap_or(blade.since_ms))
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
        let room = match (limits.breaker_override, limits.breaker_tripped) {
            (true, _) => usize::MAX,
            (false, true) => 0,
            (false, false) => limit.saturating_sub(withheld),
        };
        let through = index.fault_wanted.iter().take(room).map(|(_, _, serial)| serial).collect();
        Decision { withheld, wanted: index.fault_wanted.len(), limit, through }
    }

    pub(crate) fn lets(&self, serial: &Serial) -> bool {
        self.through.contains(serial)
    }

    pub(crate) fn wait(&self) -> WaitReason {
        WaitReason::Breaker { held: self.wanted.saturating_sub(self.through.len()), limit: self.limit }
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
