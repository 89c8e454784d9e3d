//! Why a blade goes to quarantine: the reason, the sentence for its history, and the cases to open.

use whetstone_model::action::Action;
use whetstone_model::lifecycle::QuarantineReason;

use crate::decision::Step;
use crate::view::{BladeView, FaultView, RunState};
use crate::wish::wrong_inventory;

/// Cases opened at once for one blade at most; the gravest first. The rest stands in the evidence.
const MAX_CASES: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    BurnIn,
    /// The run passed, but a fault showed while it went on or after it.
    FaultInBurnIn,
    Untestable,
    Outlier,
    Fault,
    Person,
    Conflict,
    Inventory,
    /// Its drain is over; it was decided before it.
    Drained(QuarantineReason),
}

impl Cause {
    pub(crate) fn reason(self) -> QuarantineReason {
        match self {
            Cause::BurnIn | Cause::FaultInBurnIn => QuarantineReason::BurnIn,
            Cause::Untestable => QuarantineReason::Untestable,
            Cause::Outlier => QuarantineReason::Outlier,
            Cause::Fault => QuarantineReason::Fault,
            Cause::Person => QuarantineReason::Person,
            Cause::Conflict => QuarantineReason::IdentityConflict,
            Cause::Inventory => QuarantineReason::WrongInventory,
            Cause::Drained(reason) => reason,
        }
    }

    /// One line for the history.
    pub(crate) fn why(self, blade: &BladeView) -> String {
        match self {
            Cause::FaultInBurnIn => format!("fault during burn-in: {}", detail(self, blade)),
            Cause::Person => detail(self, blade),
            Cause::Drained(_) => format!("drained, {}", detail(self, blade)),
            _ => detail(self, blade),
        }
    }

    /// The cases to open with it. A person's quarantine has none: the wish stands in the blade's object.
    pub(crate) fn cases(self, blade: &BladeView) -> Vec<Step> {
        let reason = self.reason();
        let one = |code: &str, action: Action| vec![(code.to_owned(), None, detail(self, blade), action)];
        let wanted = match self {
            Cause::BurnIn => match blade.run.as_ref().map(|run| &run.state) {
                Some(RunState::Finished { code, action, .. }) => one(code, *action),
                _ => one("burn-in", Action::DrainAndTest),
            },
            Cause::Untestable => one("untestable", Action::ContactSupport),
            Cause::Outlier => one("outlier", Action::ContactSupport),
            Cause::Conflict | Cause::Drained(QuarantineReason::IdentityConflict) => {
                one("identity-conflict", Action::ContactSupport)
            }
            Cause::Inventory => one("wrong-inventory", Action::ContactSupport),
            Cause::Fault | Cause::FaultInBurnIn | Cause::Drained(QuarantineReason::Fault) => {
                let faults = gravest(blade);
                if faults.is_empty() && self == Cause::Fault {
                    one("in-doubt", Action::DrainAndTest)
                } else {
                    let case = |f: &FaultView| (f.code.clone(), f.device.clone(), f.detail.clone(), f.action);
                    faults.into_iter().take(MAX_CASES).map(case).collect()
                }
            }
            Cause::Person | Cause::Drained(_) => Vec::new(),
        };
        let is_open = |code: &str, device: &Option<String>| {
            blade.cases.iter().any(|case| case.code == code && case.device == *device)
        };
        let fresh = wanted.into_iter().filter(|(code, device, ..)| !is_open(code, device));
        fresh
            .map(|(code, device, detail, action)| Step::OpenCase { code, device, detail, action, reason })
            .collect()
    }
}

/// The standing faults, the gravest first; in a fixed order.
pub(crate) fn gravest(blade: &BladeView) -> Vec<&FaultView> {
    let mut faults: Vec<&FaultView> = blade.faults.iter().collect();
    faults.sort_by(|a, b| {
        (b.action, a.since_ms, &a.code, &a.device).cmp(&(a.action, b.since_ms, &b.code, &b.device))
    });
    faults
}

fn fault_text(blade: &BladeView) -> Option<String> {
    let faults = gravest(blade);
    let first = faults.first()?;
    let device = first.device.as_deref().map(|device| format!("{device} ")).unwrap_or_default();
    let more = match faults.len() {
        1 => String::new(),
        n => format!(" (and {} more)", n - 1),
    };
    Some(format!("{device}{}: {}{more}", first.code, first.detail))
}

fn detail(cause: Cause, blade: &BladeView) -> String {
    let run = blade.run.as_ref();
    let number = run.map(|run| format!(" run {}", run.run)).unwrap_or_default();
    match cause {
        Cause::BurnIn => match run.map(|run| &run.state) {
            Some(RunState::Finished { why, .. }) => format!("burn-in{number}: {why}"),
            _ => format!("burn-in{number} failed"),
        },
        Cause::Untestable => {
            let last = match run.map(|run| &run.state) {
                Some(RunState::Finished { why, .. } | RunState::Lost { why }) => format!(", the last: {why}"),
                _ => String::new(),
            };
            format!("{} burn-ins without a result{last}", blade.inconclusive)
        }
        Cause::Outlier => match run.and_then(|run| run.cohort.as_ref()) {
            Some(judged) => format!("burn-in{number}, outlier of its cohort: {}", judged.why),
            None => format!("burn-in{number}, outlier of its cohort"),
        },
        Cause::Fault | Cause::FaultInBurnIn => {
            fault_text(blade).unwrap_or_else(|| "in doubt since its last burn-in".to_owned())
        }
        Cause::Person => match &blade.intent.quarantine {
            Some(why) => format!("asked for by a person: {why}"),
            None => "asked for by a person".to_owned(),
        },
        Cause::Conflict => match &blade.agent.conflict {
            Some(seen) => format!("two machines claim this serial: {seen}"),
            None => "two machines claim this serial".to_owned(),
        },
        Cause::Inventory => wrong_inventory(blade).unwrap_or_else(|| "not what the manifest says".to_owned()),
        // What it was drained for still stands, or is at least remembered by its name.
        Cause::Drained(QuarantineReason::Fault) => {
            fault_text(blade).unwrap_or_else(|| QuarantineReason::Fault.as_str().to_owned())
        }
        Cause::Drained(QuarantineReason::Person) => detail(Cause::Person, blade),
        Cause::Drained(QuarantineReason::IdentityConflict) => detail(Cause::Conflict, blade),
        Cause::Drained(reason) => reason.as_str().to_owned(),
    }
}
