//! What the planner answers: for each blade an outcome with its reason, and the steps to take now.

use serde::{Deserialize, Serialize};
use whetstone_model::action::Action;
use whetstone_model::ids::{CaseId, RunId, Serial, TrancheName};
use whetstone_model::lifecycle::{Phase, QuarantineReason};

/// A plan: data that can be printed, compared and stored. The executor makes no choices.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub blades: Vec<BladePlan>,
    pub tranches: Vec<TranchePlan>,
    pub breaker: Breaker,
}

/// What is decided for one blade. At most one transition; the next look decides on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BladePlan {
    pub serial: Serial,
    /// The sequence that the decision was made for; a step is void if it has moved on.
    pub sequence: i64,
    pub outcome: Outcome,
    pub steps: Vec<Step>,
    /// Past its phase's time limit: since when and by how much, for a person.
    pub stuck: Option<String>,
    /// Its agent joined once and is silent now, whatever the blade waits for.
    pub away: bool,
}

/// Why this blade is where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It stays, and waits for something.
    Wait { reason: WaitReason },
    /// It moves on now.
    Transition { to: Phase, why: String },
    /// It is where it is wanted.
    Nothing,
    /// It has left the site.
    Gone,
}

/// Everything that a blade can wait for. `whet explain` prints [`WaitReason::sentence`] and [`WaitReason::actor`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "wait", rename_all = "snake_case")]
pub enum WaitReason {
    /// Not delivered, not powered, or its agent does not run.
    Delivery {
        overdue: bool,
    },
    /// It has joined and was not heard of since.
    AgentAway {
        since_ms: i64,
    },
    TranchePaused,
    /// As many blades of the tranche burn in as may at once.
    Concurrency {
        limit: usize,
    },
    /// Its rack or its tranche draws as much as it may.
    Power {
        scope: PowerScope,
        watts: f64,
        limit_watts: f64,
    },
    /// Its run was ordered and the agent has not taken it up.
    RunPickup {
        run: RunId,
    },
    Run {
        run: RunId,
        progress: String,
    },
    /// Its run passed; the others of the tranche have to end before they are compared.
    Cohort {
        tranche: TrancheName,
        ended: usize,
        of: usize,
    },
    /// Passed, but its rack or domain has not.
    RackGate {
        rack: String,
        passed: usize,
        of: usize,
        percent: f64,
    },
    DomainGate {
        domain: String,
        passed: usize,
        of: usize,
    },
    /// A person has to act; what, and then what.
    Person {
        what: String,
        then: String,
    },
    /// Pods are being moved away.
    Drain {
        pods: usize,
        blocked_by: Option<String>,
        /// Its kubelet does not answer: somebody has to see to the machine.
        unreachable: bool,
        /// The apiserver's error, if it keeps the drain from going on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// Other drains come first.
    DrainBudget {
        limit: usize,
    },
    /// The circuit breaker holds back: too many blades faulted at once, `held` of them are not withheld.
    Breaker {
        held: usize,
        limit: usize,
    },
    /// A duplicate serial: it belongs to another tranche.
    Duplicate {
        tranche: TrancheName,
    },
    /// What describes it cannot be understood, is missing, or says what another blade's does.
    BadSpec {
        what: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerScope {
    Rack,
    Tranche,
}

/// Who has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// Whetstone goes on by itself.
    Whetstone,
    /// A person of the site's operations.
    Person,
    /// Who delivers.
    Supplier,
    /// Whoever runs the pod that blocks.
    Tenant,
}

/// One idempotent action. In the order in which they are to be taken; the first that fails ends the blade's turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// The phase is written to the store, with its history. Steps before it are done first.
    Transition {
        to: Phase,
        why: String,
    },
    /// A run is made in the store and offered to the agent; the blade goes to `BurningIn` with its number, in one
    /// transaction. The outcome is then `Transition` to `BurningIn { run: RunId(0) }`: the number is given by the store.
    StartRun {
        suite: String,
        why: String,
    },
    /// The run is over for us: it will not be waited for.
    EndRun {
        run: RunId,
        end: RunEnd,
    },
    /// Our taint and cordon, with this note, on the blade's node.
    Withhold {
        node: String,
        taint: String,
        note: Note,
    },
    /// Our taint and cordon off, if they are ours.
    Release {
        node: String,
    },
    StartDrain {
        node: String,
    },
    EndDrain {
        node: String,
    },
    OpenCase {
        code: String,
        device: Option<String>,
        detail: String,
        action: Action,
        reason: QuarantineReason,
    },
    CloseCase {
        case: CaseId,
        why: String,
    },
    /// The wish with this number was acted on.
    Retested {
        retest: i64,
    },
    /// Standing faults of which nothing was received since `before_ms` are forgotten: the run that was made then has proven
    /// the blade anew.
    ClearFaults {
        before_ms: i64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum RunEnd {
    Lost { why: String },
    Cancelled { why: String },
}

/// What our annotation on a node says: whose it is and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub serial: Serial,
    /// Phase, or the reason of the quarantine.
    pub reason: String,
    pub case: Option<CaseId>,
}

impl Note {
    /// As it stands in the annotation: `serial=… reason=… case=…`.
    pub fn text(&self) -> String {
        match self.case {
            Some(case) => format!("serial={} reason={} case={case}", self.serial, self.reason),
            None => format!("serial={} reason={}", self.serial, self.reason),
        }
    }
}

/// What is decided for a tranche.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TranchePlan {
    pub tranche: TrancheName,
    pub counts: Counts,
    /// The runs to compare now, with the finished ones of the whole tranche; empty = nothing to judge.
    pub judge: Vec<RunId>,
    /// Everything delivered is decided.
    pub stable: bool,
    /// Stable, and nothing is missing.
    pub complete: bool,
    /// One line: `12 of 16 ready, 4 quarantined`.
    pub summary: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub expected: usize,
    pub discovered: usize,
    pub burning_in: usize,
    pub ready: usize,
    pub in_service: usize,
    pub quarantined: usize,
    pub retired: usize,
    pub missing: usize,
    pub duplicates: usize,
    /// Any other phase.
    pub other: usize,
}

/// The circuit breaker's decision, for the record.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Breaker {
    /// It holds back. To be handed to the next plan as [`SiteLimits::breaker_tripped`](crate::SiteLimits::breaker_tripped).
    pub open: bool,
    /// Blades that are to be withheld for faults: within the window already, and now.
    pub withheld: usize,
    pub wanted: usize,
    pub limit: usize,
}
