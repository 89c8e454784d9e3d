//! What a blade wants next, from itself and its tranche alone: without the time and without the other blades, so that it
//! can be kept in the index.

use whetstone_model::ids::RunId;
use whetstone_model::lifecycle::{AfterDrain, Owner, Phase, QuarantineReason};
use whetstone_model::verdict::Outcome;

use crate::cause::Cause;
use crate::view::{BladeView, RunState, RunView, TrancheView};
use crate::{drain, node};

/// Further tries of a blade without a tranche.
const RETRIES_ALONE: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Expected: wait for it.
    Deliver,
    /// Expected, and its agent has joined.
    Discover,
    /// Hold it against its manifest.
    Prepare,
    /// Its agent has to join again.
    Rejoin,
    /// Listed by its tranche, but it is another's.
    Duplicate,
    /// A burn-in.
    Run(RunWish),
    /// A run goes on.
    Follow,
    /// Passed; wait for the comparison with the cohort.
    Compare,
    /// Passed for good.
    Accept,
    /// Into quarantine, whatever the breaker says.
    Withhold(Cause),
    /// Into quarantine for a fault, if the breaker lets it.
    Fault,
    /// Proven: to its owner, if one is wanted.
    Serve,
    /// In service, and rightly so.
    Keep,
    /// Out of service without blame.
    Drain(Away),
    /// Work is being moved away.
    AwaitDrain,
    /// A person has to do something.
    Person,
    Retire,
    /// Retired, and wanted back.
    Return,
    Gone,
}

/// Why a blade is taken out of service, or its node from those that may use a free one, without blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Away {
    Release,
    Retest,
    Doubt,
    Retire,
}

/// Order of admission: first tries and what people ask for come before retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    First,
    Retry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunWish {
    First,
    /// A person asked.
    Retest,
    /// The quarantine by a person, or the conflict of identities, is over.
    Released,
    /// Its owner gave it back.
    Returned,
    /// The verdict that it has is older than the last doubt.
    Doubted,
    /// The run before was lost or inconclusive, taken back, or is not known any more.
    Again,
}

impl RunWish {
    pub(crate) fn class(self) -> Class {
        match self {
            RunWish::First | RunWish::Retest | RunWish::Released | RunWish::Returned => Class::First,
            RunWish::Doubted | RunWish::Again => Class::Retry,
        }
    }
}

/// What the manifest and the blade itself say does not fit.
pub(crate) fn wrong_inventory(blade: &BladeView) -> Option<String> {
    let wanted = blade.sku.as_deref()?;
    match blade.agent.sku.as_deref() {
        Some(found) if found != wanted => Some(format!("the manifest says {wanted}, the blade says {found}")),
        _ if blade.agent.gpus == 0 => Some(format!("the manifest says {wanted}, the blade shows no GPU")),
        _ => None,
    }
}

/// The run that its phase names, if that is the latest.
pub(crate) fn run_of_phase(blade: &BladeView) -> Option<&RunView> {
    match blade.phase {
        Phase::BurningIn { run } => blade.run.as_ref().filter(|latest| latest.run == run),
        _ => None,
    }
}

/// A run that is neither finished nor given up.
pub(crate) fn unfinished(blade: &BladeView) -> Option<RunId> {
    let run = blade.run.as_ref()?;
    matches!(run.state, RunState::Ordered | RunState::Running).then_some(run.run)
}

/// A run proves nothing about what came after it began.
pub(crate) fn after_doubt(blade: &BladeView, run: &RunView) -> bool {
    blade.doubted_ms.is_none_or(|doubted| run.created_ms > doubted)
}

/// Proven since it was last in doubt.
pub(crate) fn proven(blade: &BladeView) -> bool {
    blade.passed_ms.is_some_and(|passed| blade.doubted_ms.is_none_or(|doubted| passed > doubted))
        && blade.run.as_ref().is_none_or(|run| after_doubt(blade, run))
}

pub(crate) fn retest_asked(blade: &BladeView) -> bool {
    blade.intent.retest > blade.intent.retested
}

pub(crate) fn retries(tranche: Option<&TrancheView>) -> u32 {
    tranche.map_or(RETRIES_ALONE, |tranche| tranche.retries)
}

/// `tranche`: the one that the blade names, if it is described.
pub(crate) fn wish(blade: &BladeView, tranche: Option<&TrancheView>) -> Wish {
    let intent = &blade.intent;
    match &blade.phase {
        Phase::Expected => match (intent.retired, blade.agent.joined) {
            (true, _) => Wish::Retire,
            (false, true) => Wish::Discover,
            (false, false) => Wish::Deliver,
        },
        Phase::Retired if intent.retired => Wish::Gone,
        Phase::Retired => Wish::Return,
        Phase::InService { owner } => in_service(blade, owner),
        Phase::Draining { then } => draining(blade, then),
        Phase::Quarantined { reason } => quarantined(blade, *reason),
        Phase::Ready if intent.retired && node::may_carry_work(blade) => Wish::Drain(Away::Retire),
        _ if intent.retired => Wish::Retire,
        _ if blade.agent.conflict.is_some() => Wish::Withhold(Cause::Conflict),
        _ if intent.quarantine.is_some() => Wish::Withhold(Cause::Person),
        Phase::Discovered if !blade.agent.joined => Wish::Rejoin,
        Phase::Discovered => Wish::Prepare,
        Phase::Preparing { .. } => match tranche {
            Some(tranche) if tranche.duplicates.iter().any(|(serial, _)| *serial == blade.serial) => {
                Wish::Duplicate
            }
            _ => run(blade, RunWish::First),
        },
        Phase::BurningIn { .. } => burning_in(blade, tranche),
        Phase::Ready if !blade.faults.is_empty() => Wish::Fault,
        Phase::Ready if retest_asked(blade) => run_once_empty(blade, RunWish::Retest, Away::Retest),
        Phase::Ready if !proven(blade) => run_once_empty(blade, RunWish::Doubted, Away::Doubt),
        Phase::Ready => Wish::Serve,
        Phase::Repairing { .. } | Phase::Sanitising if retest_asked(blade) => run(blade, RunWish::Retest),
        Phase::Repairing { .. } | Phase::Sanitising => Wish::Person,
    }
}

/// Whatever brings a blade to a burn-in: it has to be the blade that was ordered.
fn run(blade: &BladeView, why: RunWish) -> Wish {
    if wrong_inventory(blade).is_some() { Wish::Withhold(Cause::Inventory) } else { Wish::Run(why) }
}

/// A burn-in of a free blade; its node is drained first if pods may be on it.
fn run_once_empty(blade: &BladeView, why: RunWish, away: Away) -> Wish {
    match run(blade, why) {
        Wish::Run(_) if node::may_carry_work(blade) => Wish::Drain(away),
        wish => wish,
    }
}

fn burning_in(blade: &BladeView, tranche: Option<&TrancheView>) -> Wish {
    let Some(latest) = run_of_phase(blade) else { return run(blade, RunWish::Again) };
    match &latest.state {
        RunState::Ordered | RunState::Running => Wish::Follow,
        RunState::Cancelled { .. } => run(blade, RunWish::Again),
        RunState::Finished { outcome: Outcome::Fail, .. } => Wish::Withhold(Cause::BurnIn),
        RunState::Lost { .. } | RunState::Finished { outcome: Outcome::Inconclusive, .. } => {
            // A person's wish for a burn-in gives it one more try.
            if retest_asked(blade) {
                run(blade, RunWish::Retest)
            } else if blade.inconclusive > retries(tranche) {
                Wish::Withhold(Cause::Untestable)
            } else {
                run(blade, RunWish::Again)
            }
        }
        RunState::Finished { outcome: Outcome::Pass, .. } => {
            if blade.faults.iter().any(|fault| fault.last_ms >= latest.created_ms) {
                Wish::Withhold(Cause::FaultInBurnIn)
            } else if retest_asked(blade) {
                run(blade, RunWish::Retest)
            } else if !after_doubt(blade, latest) {
                run(blade, RunWish::Doubted)
            } else {
                match &latest.cohort {
                    Some(judged) if judged.outcome == Outcome::Fail => Wish::Withhold(Cause::Outlier),
                    None if blade.tranche.is_some() => Wish::Compare,
                    _ => Wish::Accept,
                }
            }
        }
    }
}

fn in_service(blade: &BladeView, owner: &Owner) -> Wish {
    if blade.intent.retired {
        Wish::Drain(Away::Retire)
    } else if blade.agent.conflict.is_some() {
        Wish::Withhold(Cause::Conflict)
    } else if blade.intent.quarantine.is_some() {
        Wish::Withhold(Cause::Person)
    } else if !blade.faults.is_empty() || !proven(blade) {
        Wish::Fault
    } else if blade.intent.owner.as_ref().is_some_and(|wanted| wanted != owner) {
        Wish::Drain(Away::Release)
    } else if retest_asked(blade) {
        Wish::Drain(Away::Retest)
    } else {
        Wish::Keep
    }
}

fn draining(blade: &BladeView, then: &AfterDrain) -> Wish {
    if !drain::over(blade) {
        return Wish::AwaitDrain;
    }
    if blade.intent.retired {
        return Wish::Retire;
    }
    match then {
        AfterDrain::Quarantine { reason } => Wish::Withhold(Cause::Drained(*reason)),
        _ if blade.agent.conflict.is_some() => Wish::Withhold(Cause::Conflict),
        _ if blade.intent.quarantine.is_some() => Wish::Withhold(Cause::Person),
        _ if !blade.faults.is_empty() => Wish::Fault,
        // A wish to retire that was taken back: it goes on as if it had been given back.
        AfterDrain::Release | AfterDrain::Retire if retest_asked(blade) => run(blade, RunWish::Retest),
        AfterDrain::Release | AfterDrain::Retire if !proven(blade) => run(blade, RunWish::Doubted),
        AfterDrain::Release | AfterDrain::Retire => run(blade, RunWish::Returned),
    }
}

fn quarantined(blade: &BladeView, reason: QuarantineReason) -> Wish {
    let wanted = if blade.intent.retired {
        return Wish::Retire;
    } else if blade.agent.conflict.is_some() || blade.intent.quarantine.is_some() {
        None
    } else if retest_asked(blade) {
        Some(RunWish::Retest)
    } else {
        match reason {
            QuarantineReason::Person | QuarantineReason::IdentityConflict => Some(RunWish::Released),
            QuarantineReason::BurnIn
            | QuarantineReason::Untestable
            | QuarantineReason::Outlier
            | QuarantineReason::Fault
            | QuarantineReason::WrongInventory => None,
        }
    };
    match wanted {
        // It is in quarantine already; the wish stands until the blade is the right one.
        Some(why) if wrong_inventory(blade).is_none() => Wish::Run(why),
        _ => Wish::Person,
    }
}
