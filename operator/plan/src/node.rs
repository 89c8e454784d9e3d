//! The blade's node: our taint and cordon on it, or off it. A cordon that is a person's is left as it is.

use whetstone_model::lifecycle::{AfterDrain, Phase, PhaseName};

use crate::decision::{Note, Step};
use crate::view::{BladeView, NodeView};

/// The taint's value on the node of a free blade that was let go and is withheld again: pods may have stayed on it.
const GATED: &str = "gated";
const DRAINING: &str = "draining";

/// The taint's value: why the blade is withheld.
pub(crate) fn taint(phase: &Phase) -> &'static str {
    match phase {
        Phase::Quarantined { reason } => reason.as_str(),
        other => match other.name() {
            PhaseName::Expected => "expected",
            PhaseName::Discovered => "discovered",
            PhaseName::Preparing => "preparing",
            PhaseName::BurningIn => "burning-in",
            PhaseName::Ready => "ready",
            PhaseName::InService => "in-service",
            PhaseName::Draining => DRAINING,
            PhaseName::Quarantined => "quarantined",
            PhaseName::Repairing => "repairing",
            PhaseName::Sanitising => "sanitising",
            PhaseName::Retired => "retired",
        },
    }
}

pub(crate) fn is_withheld(node: &NodeView) -> bool {
    node.our_taint.is_some() && node.unschedulable
}

/// Withheld without a break since it was burnt in, as far as our taint tells. `draining`: it was to leave `Ready` or service
/// already, and that was not written.
fn never_let_go(node: &NodeView) -> bool {
    is_withheld(node) && node.our_taint.as_deref().is_some_and(|taint| taint != GATED && taint != DRAINING)
}

/// Its node may carry work: it has to be drained before anything else is done with the blade.
pub(crate) fn may_carry_work(blade: &BladeView) -> bool {
    let Some(node) = &blade.node else { return false };
    match blade.phase.name() {
        PhaseName::InService => true,
        PhaseName::Ready => !never_let_go(node),
        _ => false,
    }
}

/// Our taint and cordon for this phase, if they are not there just so.
pub(crate) fn withhold(blade: &BladeView, node: &NodeView, phase: &Phase) -> Option<Step> {
    let taint = if *phase == Phase::Ready && !never_let_go(node) { GATED } else { taint(phase) };
    let for_a_case =
        matches!(phase, Phase::Quarantined { .. } | Phase::Draining { then: AfterDrain::Quarantine { .. } });
    // The oldest one: the case that the withholding began with.
    let case = blade.cases.iter().map(|case| case.case).min().filter(|_| for_a_case);
    let note = Note { serial: blade.serial.clone(), reason: taint.to_owned(), case };
    let there = is_withheld(node)
        && node.our_taint.as_deref() == Some(taint)
        && node.our_note.as_deref() == Some(note.text().as_str());
    (!there).then(|| Step::Withhold { node: node.name.clone(), taint: taint.to_owned(), note })
}

pub(crate) fn release(node: &NodeView) -> Option<Step> {
    (node.our_taint.is_some() || node.our_cordon).then(|| Step::Release { node: node.name.clone() })
}
