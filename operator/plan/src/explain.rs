//! Sentences for a person: where a blade is, what it waits for, who has to act.

use whetstone_model::action::Action;
use whetstone_model::ids::BladeName;
use whetstone_model::lifecycle::{AfterDrain, Phase, PhaseName, PrepareStep, QuarantineReason, Rung};
use whetstone_model::verdict::Outcome as RunOutcome;

use crate::cause::{Cause, gravest};
use crate::decision::{Actor, BladePlan, Outcome, PowerScope, WaitReason};
use crate::view::{BladeView, RunState};
use crate::wish::wrong_inventory;

impl WaitReason {
    /// Nobody describes the blade's tranche.
    pub(crate) fn undescribed(tranche: &str) -> WaitReason {
        WaitReason::BadSpec { what: format!("its tranche {tranche} is not described") }
    }

    /// The node that its object names is another blade's.
    pub(crate) fn contested(node: &str, rival: &BladeName) -> WaitReason {
        WaitReason::BadSpec { what: format!("its node {node} is blade {rival}'s") }
    }

    /// One sentence: what it waits for.
    pub fn sentence(&self) -> String {
        match self {
            WaitReason::Delivery { overdue: false } => {
                "Waits for: delivery, power, and its agent to join.".to_owned()
            }
            WaitReason::Delivery { overdue: true } => {
                "Waits for: delivery, which is overdue; or power, or its agent to join.".to_owned()
            }
            WaitReason::AgentAway { .. } => "Waits for: a sign of life from its agent.".to_owned(),
            WaitReason::TranchePaused => "Waits for: its tranche, which is paused.".to_owned(),
            WaitReason::Concurrency { limit: 0 } => {
                "Waits for: a free place, but its tranche allows no burn-in at all.".to_owned()
            }
            WaitReason::Concurrency { limit } => {
                format!("Waits for: a free place; {limit} of its tranche burn in at once.")
            }
            WaitReason::Power { scope, watts, limit_watts } => {
                let what = match scope {
                    PowerScope::Rack => "rack",
                    PowerScope::Tranche => "tranche",
                };
                if *watts > 0.0 {
                    format!(
                        "Waits for: power; burn-ins of its {what} draw {watts:.0} W of {limit_watts:.0} W."
                    )
                } else {
                    format!(
                        "Waits for: a greater limit; one blade draws more than the {limit_watts:.0} W of its {what}."
                    )
                }
            }
            WaitReason::RunPickup { run } => format!("Waits for: its agent to take up run {run}."),
            WaitReason::Run { run, progress } if progress.is_empty() => {
                format!("Waits for: run {run} to end.")
            }
            WaitReason::Run { run, progress } => format!("Waits for: run {run} to end ({progress})."),
            WaitReason::Cohort { tranche, ended, of } if ended < of => {
                format!(
                    "Waits for: the others of {tranche}, to be compared with them; {ended} of {of} have ended."
                )
            }
            WaitReason::Cohort { tranche, .. } => format!("Waits for: the comparison of {tranche}."),
            WaitReason::RackGate { rack, passed, of, percent } => {
                format!("Waits for: rack {rack}; {passed} of {of} have passed, {percent} % have to.")
            }
            WaitReason::DomainGate { domain, passed, of } => {
                format!("Waits for: NVLink domain {domain}; {passed} of {of} have passed, all have to.")
            }
            WaitReason::Person { what, then } => format!("Waits for: {what} (a person), then {then}."),
            WaitReason::Drain { pods, blocked_by, unreachable: true, .. } => {
                let what = blocked_by.clone();
                let what =
                    what.unwrap_or_else(|| format!("its kubelet does not answer, {pods} pods are left"));
                format!("Waits for: a look at the machine (a person); its drain does not go on: {what}.")
            }
            WaitReason::Drain { error: Some(error), .. } => {
                format!("Waits for: its drain, which the apiserver does not let go on: {error}.")
            }
            WaitReason::Drain { blocked_by: Some(what), .. } => {
                format!("Waits for: its drain, which is blocked by {what}.")
            }
            WaitReason::Drain { pods, .. } => format!("Waits for: its drain; {pods} pods are left."),
            WaitReason::DrainBudget { limit } => format!("Waits for: other drains; {limit} go on at once."),
            WaitReason::Breaker { held, limit } => format!(
                "Waits for: a person to look at the circuit breaker; more blades faulted at once than the {limit} that may be withheld; held back: {held}."
            ),
            WaitReason::Duplicate { tranche } => {
                format!(
                    "Waits for: a decision whose it is (a person); its serial is on tranche {tranche} as well."
                )
            }
            WaitReason::BadSpec { what } => {
                format!("Waits for: its description to be put right (a person); {what}.")
            }
        }
    }

    /// The same without counts of other blades: it changes only when what is waited for changes. For what is written into
    /// objects: a thousand of them would be written anew with every one that moves.
    pub fn settled_sentence(&self) -> String {
        match self {
            WaitReason::Power { scope, watts, limit_watts } if *watts > 0.0 => {
                let what = match scope {
                    PowerScope::Rack => "rack",
                    PowerScope::Tranche => "tranche",
                };
                format!("Waits for: power; burn-ins of its {what} may draw {limit_watts:.0} W.")
            }
            WaitReason::Cohort { tranche, .. } => {
                format!("Waits for: the others of {tranche}, and the comparison with them.")
            }
            WaitReason::Breaker { .. } => {
                "Waits for: a person to look at the circuit breaker; more blades faulted at once than may be withheld."
                    .to_owned()
            }
            _ => self.sentence(),
        }
    }

    /// Who has to act so that it goes on.
    pub fn actor(&self) -> Actor {
        match self {
            WaitReason::Delivery { .. } => Actor::Supplier,
            WaitReason::Drain { unreachable: true, .. } => Actor::Person,
            // It goes on by itself once the apiserver does.
            WaitReason::Drain { error: Some(_), .. } => Actor::Whetstone,
            WaitReason::Drain { blocked_by: Some(_), .. } => Actor::Tenant,
            // No budget will ever be enough.
            WaitReason::Concurrency { limit: 0 } => Actor::Person,
            WaitReason::Power { watts, .. } if *watts <= 0.0 => Actor::Person,
            WaitReason::AgentAway { .. }
            | WaitReason::TranchePaused
            | WaitReason::Person { .. }
            | WaitReason::Breaker { .. }
            | WaitReason::Duplicate { .. }
            | WaitReason::BadSpec { .. } => Actor::Person,
            WaitReason::Concurrency { .. }
            | WaitReason::Power { .. }
            | WaitReason::RunPickup { .. }
            | WaitReason::Run { .. }
            | WaitReason::Cohort { .. }
            | WaitReason::RackGate { .. }
            | WaitReason::DomainGate { .. }
            | WaitReason::Drain { .. }
            | WaitReason::DrainBudget { .. } => Actor::Whetstone,
        }
    }

    /// Stable, kebab-case: for labels, conditions and filters.
    pub fn code(&self) -> &'static str {
        match self {
            WaitReason::Delivery { .. } => "delivery",
            WaitReason::AgentAway { .. } => "agent-away",
            WaitReason::TranchePaused => "tranche-paused",
            WaitReason::Concurrency { .. } => "concurrency",
            WaitReason::Power { .. } => "power",
            WaitReason::RunPickup { .. } => "run-pickup",
            WaitReason::Run { .. } => "run",
            WaitReason::Cohort { .. } => "cohort",
            WaitReason::RackGate { .. } => "rack-gate",
            WaitReason::DomainGate { .. } => "domain-gate",
            WaitReason::Person { .. } => "person",
            WaitReason::Drain { .. } => "drain",
            WaitReason::DrainBudget { .. } => "drain-budget",
            WaitReason::Breaker { .. } => "breaker",
            WaitReason::Duplicate { .. } => "duplicate",
            WaitReason::BadSpec { .. } => "bad-spec",
        }
    }
}

impl Actor {
    /// The word for programs, as in a status.
    pub fn word(self) -> &'static str {
        match self {
            Actor::Whetstone => "whetstone",
            Actor::Person => "person",
            Actor::Supplier => "supplier",
            Actor::Tenant => "tenant",
        }
    }

    /// As it stands after "who acts".
    pub fn as_str(self) -> &'static str {
        match self {
            Actor::Whetstone => "whetstone",
            Actor::Person => "a person",
            Actor::Supplier => "the supplier",
            Actor::Tenant => "the tenant",
        }
    }
}

impl Outcome {
    /// One sentence: what comes next.
    pub fn sentence(&self) -> String {
        match self {
            Outcome::Wait { reason } => reason.sentence(),
            Outcome::Transition { to, why } => format!("Goes to {} now: {why}.", to.name()),
            Outcome::Nothing => "Is where it is wanted.".to_owned(),
            Outcome::Gone => "Has left the site.".to_owned(),
        }
    }
}

/// What a phase means, in a few words: `burning in, run 41`.
pub fn phase_sentence(phase: &Phase) -> String {
    match phase {
        Phase::Expected => "on a manifest, not heard of".to_owned(),
        Phase::Discovered => "its agent has joined".to_owned(),
        Phase::Preparing { step: PrepareStep::Identity } => "held against its manifest".to_owned(),
        Phase::BurningIn { run } => format!("burning in, run {run}"),
        Phase::Ready => "proven and free".to_owned(),
        Phase::InService { owner } => format!("in service with {owner}"),
        Phase::Draining { then: AfterDrain::Release } => "being drained, then burnt in".to_owned(),
        Phase::Draining { then: AfterDrain::Quarantine { reason } } => {
            format!("being drained, then withheld: {}", reason.as_str())
        }
        Phase::Draining { then: AfterDrain::Retire } => "being drained, then retired".to_owned(),
        Phase::Quarantined { reason } => format!("withheld: {}", reason.as_str()),
        Phase::Repairing { rung } => format!("being repaired: {}", rung_text(*rung)),
        Phase::Sanitising => "a tenant's traces are being removed".to_owned(),
        Phase::Retired => "gone for good".to_owned(),
    }
}

/// Where a blade is, since when, why, what it waits for and who has to act: the first line of `whet explain`.
pub fn explain(blade: &BladeView, plan: &BladePlan, now_ms: i64) -> String {
    let name = blade.phase.name();
    let time = duration_text(now_ms.saturating_sub(blade.since_ms));
    let why = match &blade.phase {
        Phase::Quarantined { reason } => format!(" by {}", quarantined_by(blade, *reason)),
        Phase::InService { owner } => format!(" with {owner}"),
        Phase::BurningIn { run } => format!(" in run {run}"),
        Phase::Draining { .. } | Phase::Repairing { .. } => format!(", {}", phase_sentence(&blade.phase)),
        _ => String::new(),
    };
    let actor = match &plan.outcome {
        // The sentence names the person already.
        Outcome::Wait { reason } => match reason {
            WaitReason::Person { .. }
            | WaitReason::Duplicate { .. }
            | WaitReason::BadSpec { .. }
            | WaitReason::Drain { unreachable: true, .. } => String::new(),
            other => format!(" Who acts: {}.", other.actor().as_str()),
        },
        _ => String::new(),
    };
    let stuck = plan.stuck.as_ref().map(|text| format!(" Stuck: {text}.")).unwrap_or_default();
    format!("{name} for {time}{why}. {}{actor}{stuck}", plan.outcome.sentence())
}

/// `42s`, `9m`, `2h 5m`, `3d 4h`.
pub fn duration_text(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |big: i64, unit: &str, small: i64, part: &str| match small {
        0 => format!("{big}{unit}"),
        small => format!("{big}{unit} {small}{part}"),
    };
    match () {
        () if minutes == 0 => format!("{seconds}s"),
        () if hours == 0 => format!("{minutes}m"),
        () if hours < 48 => two(hours, "h", minutes % 60, "m"),
        () => two(days, "d", hours % 24, "h"),
    }
}

/// Past its phase's limit: which, and what it waits for. A place in a queue that moves is no standstill: a large
/// tranche burns in for days, and those that it waits for have limits of their own.
pub(crate) fn stuck(blade: &BladeView, reason: &WaitReason, now_ms: i64) -> Option<String> {
    let queues = match reason {
        WaitReason::Concurrency { .. } | WaitReason::Power { .. } => reason.actor() == Actor::Whetstone,
        WaitReason::Cohort { .. } => true,
        _ => false,
    };
    if queues {
        return None;
    }
    let name = blade.phase.name();
    let limit_ms = name.limit_ms()?;
    let time_ms = now_ms.saturating_sub(blade.since_ms);
    // Without the time that it has been: the text stands in an object, and would be another one every minute.
    let text = || {
        let limit = duration_text(limit_ms);
        let sentence = reason.settled_sentence();
        let waits = sentence.trim_end_matches('.').replacen("Waits for", "waits for", 1);
        format!("longer in {name} than the limit of {limit}; {waits}")
    };
    (time_ms > limit_ms).then(text)
}

/// What a person has to do for a blade that is withheld or under repair.
pub(crate) fn person_wait(blade: &BladeView) -> WaitReason {
    let what = if let Some(why) = &blade.intent.quarantine {
        format!("release of its quarantine: {why}")
    } else if let Some(seen) = &blade.agent.conflict {
        format!("a decision which machine it is: {seen}")
    } else if let Some(wrong) = wrong_inventory(blade) {
        format!("the right blade or the right manifest: {wrong}")
    } else {
        match &blade.phase {
            Phase::Quarantined { reason } => work_for(blade, *reason).to_owned(),
            Phase::Repairing { rung } => rung_text(*rung).to_owned(),
            _ => "removal of a tenant's traces".to_owned(),
        }
    };
    WaitReason::Person { what, then: "burn-in".to_owned() }
}

fn failed_run(blade: &BladeView) -> Option<Action> {
    match blade.run.as_ref().map(|run| &run.state) {
        Some(RunState::Finished { outcome: RunOutcome::Fail, action, .. }) => Some(*action),
        _ => None,
    }
}

fn work_for(blade: &BladeView, reason: QuarantineReason) -> &'static str {
    let for_faults = || gravest(blade).first().map_or(Action::DrainAndTest, |fault| fault.action);
    match reason {
        QuarantineReason::BurnIn => work(failed_run(blade).unwrap_or_else(for_faults)),
        QuarantineReason::Fault => work(for_faults()),
        QuarantineReason::Untestable => "a look at why its burn-in does not end",
        QuarantineReason::Outlier => "a look at why it stands apart from its cohort",
        QuarantineReason::Person => "release of its quarantine",
        QuarantineReason::IdentityConflict => "a decision which machine it is",
        QuarantineReason::WrongInventory => "the right blade or the right manifest",
    }
}

fn work(action: Action) -> &'static str {
    match action {
        Action::None | Action::DrainAndTest => "a wish for a new burn-in",
        Action::RestartApp => "a restart of the application",
        Action::UpdateSoftware => "an update of driver or firmware",
        Action::ResetGpu => "a reset of the GPU",
        Action::Reboot => "a reboot",
        Action::PowerCycle => "a power cycle",
        Action::CheckLink => "a check of the link (reseat)",
        Action::ContactSupport => "an answer of the maker's support",
        Action::Replace => "replacement",
    }
}

fn rung_text(rung: Rung) -> &'static str {
    match rung {
        Rung::RestartApp => "restart of the application",
        Rung::ResetGpu => "reset of the GPU",
        Rung::Reboot => "reboot",
        Rung::PowerCycle => "power cycle",
        Rung::Replace => "replacement",
    }
}

fn quarantined_by(blade: &BladeView, reason: QuarantineReason) -> String {
    let cause = match reason {
        QuarantineReason::BurnIn if failed_run(blade).is_some() => Cause::BurnIn,
        QuarantineReason::BurnIn => Cause::FaultInBurnIn,
        QuarantineReason::Untestable => Cause::Untestable,
        QuarantineReason::Outlier => Cause::Outlier,
        QuarantineReason::Fault => return format!("a fault: {}", Cause::Fault.why(blade)),
        QuarantineReason::Person => {
            return match &blade.intent.quarantine {
                Some(why) => format!("a person: {why}"),
                None => "a person".to_owned(),
            };
        }
        QuarantineReason::IdentityConflict => {
            return match &blade.agent.conflict {
                Some(seen) => format!("a conflict of identities: {seen}"),
                None => "a conflict of identities, now cleared".to_owned(),
            };
        }
        QuarantineReason::WrongInventory => {
            return match wrong_inventory(blade) {
                Some(wrong) => format!("its inventory: {wrong}"),
                None => "its inventory, now right".to_owned(),
            };
        }
    };
    cause.why(blade)
}

/// Words for a table's or a summary's column.
pub(crate) fn in_words(name: PhaseName) -> &'static str {
    match name {
        PhaseName::Expected => "expected",
        PhaseName::Discovered => "discovered",
        PhaseName::Preparing => "preparing",
        PhaseName::BurningIn => "burning in",
        PhaseName::Ready => "ready",
        PhaseName::InService => "in service",
        PhaseName::Draining => "draining",
        PhaseName::Quarantined => "quarantined",
        PhaseName::Repairing => "in repair",
        PhaseName::Sanitising => "being sanitised",
        PhaseName::Retired => "retired",
    }
}
