//! The cohort: a blade that passed is accepted only after it was compared with the others of its tranche, and they are
//! compared once all that were delivered have ended.

use whetstone_model::ids::RunId;
use whetstone_model::lifecycle::Phase;

use crate::admit;
use crate::decide::Look;
use crate::view::{BladeView, TrancheView};
use crate::wish::{Wish, run_of_phase};

/// What a blade is to the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Not delivered, withheld, gone, or waiting for a person.
    Out,
    /// Its run has not ended.
    Going,
    /// Its run has yet to start.
    ToCome,
    /// Passed and not compared.
    Passed(RunId),
    Ended,
}

pub(crate) fn part(blade: &BladeView, wish: Wish) -> Part {
    match (wish, &blade.phase) {
        (Wish::Run(_), Phase::Quarantined { .. } | Phase::Repairing { .. } | Phase::Sanitising) => Part::Out,
        (Wish::Run(_), Phase::Draining { .. }) => Part::Out,
        (Wish::Run(_) | Wish::Discover | Wish::Prepare, _) => Part::ToCome,
        (Wish::Follow, _) => Part::Going,
        (Wish::Compare, _) => run_of_phase(blade).map_or(Part::Out, |run| Part::Passed(run.run)),
        (Wish::Accept | Wish::Serve | Wish::Keep, _) => Part::Ended,
        _ => Part::Out,
    }
}

/// Nobody is waited for any more. A blade whose agent is away, that no budget will ever let start, or whose node is another's
/// holds up none of the others: it is compared with them when it comes. While nobody listened, none was away.
pub(crate) fn all_ended(look: &Look, tranche: &TrancheView) -> bool {
    let Some(tally) = look.index.tranches.get(&tranche.name) else { return true };
    tally.going == 0
        && !tally
            .to_come
            .iter()
            .filter_map(|serial| look.site.blades.get(serial))
            .filter(|blade| !look.is_away(blade) && look.contested(blade).is_none())
            .any(|blade| !admit::hopeless(look.site, look.index, blade, tranche))
}
