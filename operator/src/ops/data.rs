//! The acceptance report of a tranche as data: what `report.json` holds.

use serde::{Deserialize, Serialize};
use whetstone_burnin::judge::{Better, Scope};
use whetstone_model::action::Action;
use whetstone_model::ids::{BladeName, CaseId, DomainName, RackName, RunId, Serial, TrancheName};
use whetstone_model::lifecycle::PhaseName;
use whetstone_model::verdict::Outcome;

/// Changes of meaning raise the number; added optional fields do not.
pub const SCHEMA: &str = "whetstone.acceptance/1";

/// What a delivery is worth, blade by blade. Times are milliseconds since the epoch by the operator's clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AcceptanceReport {
    pub schema: String,
    pub tranche: TrancheName,
    pub made_ms: i64,
    /// When the manifest says that all is delivered.
    pub due_ms: Option<i64>,
    /// True if any device said that it is simulated; then nothing here is a hardware result.
    pub simulated: bool,
    pub counts: Counts,
    /// Accepted of what was delivered; `None` if nothing was.
    pub yield_percent: Option<f64>,
    /// By serial.
    pub blades: Vec<BladeLine>,
    pub racks: Vec<RackLine>,
    pub returns: Vec<ReturnLine>,
    pub missing: Vec<MissingLine>,
    pub duplicates: Vec<DuplicateLine>,
    /// Machines that tried to join and are on no manifest. Of the whole site: whose they are is not known.
    pub unexpected: Vec<UnexpectedLine>,
    /// The suite that the tranche asks for, and those that its runs had.
    pub suite: Option<String>,
    pub suites: Vec<SuiteLine>,
    pub versions: Vec<VersionsLine>,
    /// Probability with which the fleet judge accuses a healthy device.
    pub fpr: f64,
    pub distributions: Vec<Distribution>,
    /// What could not be read, one sentence each.
    pub notes: Vec<String>,
}

/// Every blade of the manifest counts once: `expected = accepted + returned + undecided + missing`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub expected: usize,
    /// `expected` less `missing`.
    pub delivered: usize,
    pub accepted: usize,
    pub returned: usize,
    pub undecided: usize,
    pub missing: usize,
    pub duplicates: usize,
    pub unexpected: usize,
}

/// Where a blade stands in the acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Its last run passed, its cohort does not object, and it is not withheld.
    Accepted,
    /// Withheld or gone.
    Returned,
    /// Not through yet.
    Undecided,
    /// Not heard of.
    Missing,
}

impl Standing {
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Accepted => "accepted",
            Standing::Returned => "returned",
            Standing::Undecided => "undecided",
            Standing::Missing => "missing",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BladeLine {
    pub serial: Serial,
    pub name: BladeName,
    pub rack: Option<RackName>,
    pub domain: Option<DomainName>,
    pub sku: Option<String>,
    pub phase: PhaseName,
    /// Why it is in this phase.
    pub phase_why: String,
    pub standing: Standing,
    pub run: Option<RunId>,
    /// Of the last run, if it has one.
    pub outcome: Option<Outcome>,
    pub code: Option<String>,
    pub why: Option<String>,
    pub action: Option<Action>,
    /// Label of the device that the verdict is about.
    pub device: Option<String>,
    /// What comparison with the cohort said.
    pub cohort: Option<CohortLine>,
    pub started_ms: Option<i64>,
    pub ended_ms: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CohortLine {
    pub outcome: Outcome,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RackLine {
    /// `None` = blades without a rack.
    pub rack: Option<RackName>,
    pub counts: Counts,
    pub yield_percent: Option<f64>,
}

/// A blade that goes back, with what it rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReturnLine {
    pub serial: Serial,
    pub name: BladeName,
    pub rack: Option<RackName>,
    pub code: String,
    pub device: Option<String>,
    /// Serial of the device as it says it, for the supplier.
    pub device_serial: Option<String>,
    pub why: String,
    pub action: Action,
    pub run: Option<RunId>,
    /// Id of the run in its own signed report, and who signed that.
    pub report: Option<String>,
    pub signer: Option<String>,
    /// SHA-256 of that `report.json`.
    pub report_sha256: Option<String>,
    /// In that report: `e-8812`.
    pub evidence: Vec<String>,
    pub findings: Vec<FindingLine>,
    pub cases: Vec<CaseLine>,
}

/// A fault of a returned blade's report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FindingLine {
    pub code: String,
    pub device: Option<String>,
    pub detail: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseLine {
    pub case: CaseId,
    pub code: String,
    pub device: Option<String>,
    pub detail: String,
    pub opened_ms: i64,
    pub closed_ms: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingLine {
    pub serial: Serial,
    pub name: BladeName,
    pub rack: Option<RackName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuplicateLine {
    pub serial: Serial,
    /// The tranche that has it.
    pub tranche: TrancheName,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnexpectedLine {
    pub serial: String,
    pub what: String,
    pub first_ms: i64,
    pub last_ms: i64,
    pub times: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SuiteLine {
    pub name: String,
    pub sha256: String,
    pub runs: usize,
}

/// Software that runs were made with, and how many.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VersionsLine {
    pub whet: String,
    pub driver: Option<String>,
    pub vbios: Option<String>,
    pub cuda: Option<String>,
    pub nccl: Option<String>,
    pub kernel: String,
    pub runs: usize,
}

/// One metric over like devices of the tranche.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    pub sku: Option<String>,
    pub test: String,
    pub metric: String,
    pub unit: String,
    pub better: Better,
    pub driver: Option<String>,
    pub firmware: Option<String>,
    pub n_blades: usize,
    pub median: f64,
    /// Robust standard deviation, in `unit`.
    pub spread: f64,
    /// False if no device could have been accused; `why_not` says why.
    pub judged: bool,
    pub why_not: Option<String>,
    /// Ascending.
    pub values: Vec<ValueLine>,
    pub outliers: Vec<OutlierLine>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ValueLine {
    pub blade: String,
    /// Label, such as `gpu5`; the blade's name for the blade as a whole.
    pub device: String,
    pub value: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutlierLine {
    pub blade: String,
    pub device: String,
    pub value: f64,
    pub scope: Scope,
    pub p: f64,
    pub percent_worse: Option<f64>,
    /// One sentence.
    pub reason: String,
}
