//! Drains: when one is over, and how many at once.

use whetstone_model::ids::Serial;
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

/// If its drain goes on: when that last got on.
pub(crate) fn moved_ms(blade: &BladeView) -> Option<i64> {
    let node = blade.node.as_ref().filter(|node| node.drain == DrainState::Going)?;
    let unknown_ms = if node.blocked_by.is_some() { blade.since_ms } else { i64::MAX };
    Some(node.drain_moved_ms.unwrap_or(unknown_ms))
}

/// Drains that count. One that gets on with nothing for as long as a drain may take holds up no other, blocked or not: else a
/// few pods that must not be moved, or dead kubelets, would stop all drains.
pub(crate) fn going(look: &Look) -> usize {
    let limit_ms = PhaseName::Draining.limit_ms().unwrap_or(i64::MAX);
    let from_ms = look.now_ms.saturating_sub(limit_ms);
    look.index.drains.iter().rev().take_while(|(moved_ms, _)| *moved_ms >= from_ms).count()
}

/// Its drain has to be started (again).
pub(crate) fn wanted(blade: &BladeView) -> bool {
    matches!(blade.phase, Phase::Draining { .. })
        && !over(blade)
        && blade.node.as_ref().is_some_and(|node| node.drain != DrainState::Going)
}

/// Blades whose drain may start now.
pub(crate) fn next<'l>(look: &'l Look<'_>) -> impl Iterator<Item = &'l Serial> {
    let free = look.site.limits.drains.saturating_sub(going(look));
    look.index.drains_wanted.iter().take(free).map(|(_, serial)| serial)
}

/// What a draining blade waits for, and whether its drain starts now.
pub(crate) fn step(look: &Look, blade: &BladeView, node: &NodeView) -> (WaitReason, bool) {
    let moving = WaitReason::Drain {
        pods: node.pods_left.unwrap_or(0),
        blocked_by: node.blocked_by.clone(),
        unreachable: node.unreachable,
        error: node.drain_error.clone(),
    };
    if !wanted(blade) {
        return (moving, false);
    }
    if next(look).any(|serial| *serial == blade.serial) {
        (moving, true)
    } else {
        (WaitReason::DrainBudget { limit: look.site.limits.drains }, false)
    }
}
