//! A tranche as a whole: its counts, whether it is done, and what is to be judged.

use whetstone_model::lifecycle::PhaseName;

use crate::decide::{Look, to_judge};
use crate::decision::{Counts, TranchePlan};
use crate::explain::in_words;
use crate::index::TrancheTally;
use crate::view::TrancheView;

pub(crate) fn sum_up(look: &Look, tranche: &TrancheView) -> TranchePlan {
    let none = TrancheTally::default();
    let tally = look.index.tranches.get(&tranche.name).unwrap_or(&none);
    let of = |phase: PhaseName| tally.phases.get(&phase).copied().unwrap_or(0);
    let overdue = tranche.due_ms.is_some_and(|due| due < look.now_ms);
    let absent = of(PhaseName::Expected).saturating_sub(tally.arrived);
    let counts = Counts {
        expected: of(PhaseName::Expected),
        discovered: of(PhaseName::Discovered),
        burning_in: of(PhaseName::BurningIn),
        ready: of(PhaseName::Ready),
        in_service: of(PhaseName::InService),
        quarantined: of(PhaseName::Quarantined),
        retired: of(PhaseName::Retired),
        missing: if overdue { absent } else { 0 },
        duplicates: tranche.duplicates.len(),
        other: [PhaseName::Preparing, PhaseName::Draining, PhaseName::Repairing, PhaseName::Sanitising]
            .map(of)
            .iter()
            .sum(),
    };
    let members: usize = tally.phases.values().sum();
    let undecided =
        tally.arrived + of(PhaseName::Discovered) + of(PhaseName::Preparing) + of(PhaseName::BurningIn);
    let delivered = members - absent;
    let stable = delivered > 0 && undecided == 0;
    TranchePlan {
        tranche: tranche.name.clone(),
        judge: to_judge(look, tranche),
        stable,
        complete: stable && absent == 0,
        summary: summary(&counts, tally, members),
        counts,
    }
}

/// `12 of 16 ready (8 in service), 3 burning in, 1 missing`: whoever serves has been ready.
fn summary(counts: &Counts, tally: &TrancheTally, members: usize) -> String {
    let ready = counts.ready + counts.in_service;
    let mut text = format!("{ready} of {} ready", members - counts.retired);
    if counts.in_service > 0 {
        text.push_str(&format!(" ({} in service)", counts.in_service));
    }
    for phase in PhaseName::ALL {
        let number = match (phase, tally.phases.get(&phase)) {
            (PhaseName::Ready | PhaseName::InService, _) | (_, None | Some(0)) => continue,
            (PhaseName::Expected, Some(number)) => number - counts.missing,
            (_, Some(number)) => *number,
        };
        if number > 0 {
            text.push_str(&format!(", {number} {}", in_words(phase)));
        }
    }
    for (number, word) in [(counts.missing, "missing"), (counts.duplicates, "duplicate")] {
        if number > 0 {
            text.push_str(&format!(", {number} {word}"));
        }
    }
    text
}
