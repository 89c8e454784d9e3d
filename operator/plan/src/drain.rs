//! Drains: when one is over, and how many at once.

use whetstone_model::lifecycle::{Phase, PhaseName};

use crate::decide::Look;
use crate::decision::WaitReason;
use crate::view::{BladeView, DrainState, NodeView};

/// Nothing is left to move away. A count of no pods holds only once our taint is on the node: before it a pod may come
/// at any time.
pub(crate) fn over(blade: &BladeView) -> bool {
    let Some(node) = &blade.node else { return true };
    node.our_taint.is_some()
        && match node.drain {
            DrainState::Done => node.pods_left.is_none_or(|pods| pods == 0),
            DrainState::None => node.pods_left == Some(0),
            DrainState::Going => false,
        }
}

/// Whether its drain goes on, and whether something blocks it.
pub(crate) fn state(blade: &BladeView) -> (bool, bool) {
    let node = blade.node.as_ref().filter(|node| node.drain == DrainState::Going);
    (node.is_some(), node.is_some_and(|node| node.blocked_by.is_some()))
}

/// Drains that count. One that is blocked beyond the time limit of its phase moves nothing and holds up no other: else a
/// few pods that must not be moved would stop all drains.
pub(crate) fn going(look: &Look) -> usize {
    let limit_ms = PhaseName::Draining.limit_ms().unwrap_or(i64::MAX);
    let from_ms = look.now_ms.saturating_sub(limit_ms);
    let blocked = look.index.drains_blocked.iter().rev();
    look.index.drains + blocked.take_while(|(since_ms, _)| *since_ms >= from_ms).count()
}

/// Its drain has to be started (again).
pub(crate) fn wanted(blade: &BladeView) -> bool {
    matches!(blade.phase, Phase::Draining { .. })
        && !over(blade)
        && blade.node.as_ref().is_some_and(|node| node.drain != DrainState::Going)
}

/// What a draining blade waits for, and whether its drain starts now.
pub(crate) fn step(look: &Look, blade: &BladeView, node: &NodeView) -> (WaitReason, bool) {
    let moving = WaitReason::Drain { pods: node.pods_left.unwrap_or(0), blocked_by: node.blocked_by.clone() };
    if !wanted(blade) {
        return (moving, false);
    }
    let limit = look.site.limits.drains;
    let free = limit.saturating_sub(going(look));
    let mine = |(_, serial): &(_, _)| *serial == blade.serial;
    if look.index.drains_wanted.iter().take(free).any(mine) {
        (moving, true)
    } else {
        (WaitReason::DrainBudget { limit }, false)
    }
}
