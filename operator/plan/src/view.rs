//! What the planner sees: everything that is known of the site at one moment, as plain values.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use whetstone_model::action::Action;
use whetstone_model::ids::{BladeName, CaseId, DomainName, RackName, RunId, Serial, TrancheName};
use whetstone_model::lifecycle::{Owner, Phase};
use whetstone_model::verdict::Outcome;

/// The site. Times are milliseconds since the Unix epoch by the operator's clock, everywhere in this crate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SiteView {
    pub blades: BTreeMap<Serial, BladeView>,
    pub tranches: BTreeMap<TrancheName, TrancheView>,
    pub limits: SiteLimits,
}

/// Limits of the whole site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteLimits {
    /// An agent that was silent for longer is away, ms.
    pub agent_away_ms: i64,
    /// A run whose agent has said nothing of it for longer is lost, ms.
    pub run_lost_ms: i64,
    /// Since when this operator takes reports without a gap (started, took the lead, database came back). Silence before
    /// it was ours: no run counts as lost for it.
    pub listening_since_ms: i64,
    /// Circuit breaker: blades that may be taken out of `Ready` and `InService` by faults within `breaker_window_ms`; the
    /// greater of the two applies. Beyond it no further blade is withheld, in later windows neither, and a person has to
    /// look: a fault of the software (a driver, this program) looks like a thousand faults of blades.
    pub breaker_percent: f64,
    pub breaker_least: usize,
    pub breaker_window_ms: i64,
    /// True when a person has said that this mass quarantine is right: the breaker lets all through.
    pub breaker_override: bool,
    /// The last plan's [`Breaker::open`](crate::Breaker::open), kept by whoever asks for plans: faults wanted more than the
    /// limit, and nothing more is withheld for them until a person overrides or nobody is held back any more.
    pub breaker_tripped: bool,
    /// Blades drained at once.
    pub drains: usize,
}

impl Default for SiteLimits {
    fn default() -> Self {
        SiteLimits {
            agent_away_ms: 90_000,
            run_lost_ms: 30 * 60_000,
            listening_since_ms: 0,
            breaker_percent: 5.0,
            breaker_least: 8,
            breaker_window_ms: 10 * 60_000,
            breaker_override: false,
            breaker_tripped: false,
            drains: 32,
        }
    }
}

/// One blade.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BladeView {
    pub serial: Serial,
    pub name: BladeName,
    pub tranche: Option<TrancheName>,
    pub rack: Option<RackName>,
    pub domain: Option<DomainName>,
    /// From the manifest.
    pub sku: Option<String>,
    pub phase: Phase,
    pub since_ms: i64,
    /// Counts the transitions; the next one is written only if it still holds.
    pub sequence: i64,
    pub intent: Intent,
    pub agent: AgentView,
    /// The latest run, if there ever was one.
    pub run: Option<RunView>,
    /// When the last verdict `pass` over a loaded test was given (cohort judgement included), and when the blade was last
    /// in doubt (fault, repair, quarantine). In service only with `passed_ms > doubted_ms`.
    pub passed_ms: Option<i64>,
    pub doubted_ms: Option<i64>,
    /// Faults that stand now: from probes and kernel log, severity `fault`.
    pub faults: Vec<FaultView>,
    /// Open cases.
    pub cases: Vec<CaseView>,
    pub node: Option<NodeView>,
    /// Times that this blade was burned in without a conclusive result in a row (the run that goes on not counted).
    pub inconclusive: u32,
}

/// What people want of a blade: from its object's spec.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// Quarantine asked for, and why.
    pub quarantine: Option<String>,
    /// The owner that is to have it once it is proven.
    pub owner: Option<Owner>,
    /// Raised by a person to ask for a burn-in: after a repair, or because of doubt. Acted on when above `retested`.
    pub retest: i64,
    /// The value of `retest` that was last acted on.
    pub retested: i64,
    pub retired: bool,
    /// Suite for burn-ins outside a tranche; also where a retest names one.
    pub suite: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentView {
    /// It has joined and has a certificate that is not revoked.
    pub joined: bool,
    pub last_seen_ms: Option<i64>,
    /// Two machines claim the serial: what was seen.
    pub conflict: Option<String>,
    /// SKU profile by its own facts.
    pub sku: Option<String>,
    pub gpus: usize,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    pub run: RunId,
    pub suite: String,
    pub state: RunState,
    pub created_ms: i64,
    pub started_ms: Option<i64>,
    /// When its agent last spoke of it.
    pub heard_ms: Option<i64>,
    /// Sum of the suite's test budgets, ms: how long it may take.
    pub budget_ms: i64,
    /// What the fleet judge said of it; `None` = not judged yet.
    pub cohort: Option<CohortResult>,
    /// One line of progress: `gemm-bf16 3/9 41 %`.
    pub progress: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RunState {
    /// Made; the agent has not confirmed it.
    Ordered,
    Running,
    Finished {
        outcome: Outcome,
        code: String,
        /// One line for a person: `gpu5 sdc: wrong bits on SM 41`.
        why: String,
        action: Action,
    },
    /// Nothing was heard of it for too long, or its agent does not know it any more.
    Lost {
        why: String,
    },
    /// Taken back by us.
    Cancelled {
        why: String,
    },
}

/// What comparison with the cohort says of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CohortResult {
    /// `Pass`, `Fail` (an outlier) or `Inconclusive` (no cohort that is large enough: no objection).
    pub outcome: Outcome,
    pub why: String,
    pub at_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaultView {
    pub code: String,
    /// Label or id of the device.
    pub device: Option<String>,
    pub detail: String,
    pub action: Action,
    /// When it began to stand.
    pub since_ms: i64,
    /// When the newest evidence of it was received.
    pub last_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseView {
    pub case: CaseId,
    pub code: String,
    pub device: Option<String>,
    pub opened_ms: i64,
}

/// The blade's Kubernetes node as it was last seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    pub name: String,
    pub unschedulable: bool,
    /// The cordon is ours (our annotation is on it).
    pub our_cordon: bool,
    /// Value of our taint, if it is on the node.
    pub our_taint: Option<String>,
    /// What our annotation on the node says now, as written; compared with what should be there.
    pub our_note: Option<String>,
    /// Name of the blade that it was last withheld for, by our label: it stays when the node is let go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub our_label: Option<String>,
    /// Pods that a drain would have to move; `None` = not counted.
    pub pods_left: Option<usize>,
    /// What blocks the drain, if something does: `pod a/b: PodDisruptionBudget c`.
    pub blocked_by: Option<String>,
    /// Its kubelet does not answer: pods on it do not end, whoever asks for it, until somebody sees to the machine.
    pub unreachable: bool,
    /// Why the drain cannot go on: an error of the apiserver, nobody's block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_error: Option<String>,
    /// A drain of ours goes on or has ended.
    pub drain: DrainState,
    /// When that drain began, or last moved a pod away; `None` = not known.
    pub drain_moved_ms: Option<i64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainState {
    #[default]
    None,
    Going,
    Done,
}

/// A tranche.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrancheView {
    pub name: TrancheName,
    pub suite: String,
    pub budget_ms: i64,
    /// Blades burned in at once at most.
    pub concurrency: usize,
    pub power: Power,
    pub gates: Gates,
    /// Further tries where a run was inconclusive.
    pub retries: u32,
    /// Probability that the judge accuses a healthy device.
    pub fpr: f64,
    /// Given to blades that pass and whose gates are open.
    pub owner: Option<Owner>,
    /// Work stops: no new run is started.
    pub paused: bool,
    /// Serials that were already in another tranche: (serial, that tranche).
    pub duplicates: Vec<(Serial, TrancheName)>,
    /// When the manifest says that all is delivered; missing blades count as missing after it.
    pub due_ms: Option<i64>,
}

/// Watts: what a blade draws under burn-in, and what may be drawn by burn-ins at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Power {
    pub blade_watts: f64,
    pub rack_watts: Option<f64>,
    pub tranche_watts: Option<f64>,
}

/// What has to be proven before anything of a rack or domain serves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Gates {
    /// Blades of a rack (of those in this tranche) that have to have passed, percent. 0 = no gate.
    pub rack_percent: f64,
    /// Every member of an NVLink domain has to have passed.
    pub whole_domain: bool,
}

impl Default for Gates {
    fn default() -> Self {
        Gates { rack_percent: 0.0, whole_domain: true }
    }
}
