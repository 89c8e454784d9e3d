//! `report.json`: what one burn-in run found. Documented for readers in `docs/report-schema.md`.

use serde::{Deserialize, Serialize};

use crate::device::{Device, DeviceId};
use crate::evidence::{Finding, Reading};
use crate::unit::Unit;
use crate::verdict::{Outcome, Verdict};

/// Changes of meaning raise the number; added optional fields do not.
pub const SCHEMA: &str = "whetstone.report/1";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub schema: String,
    /// Unique per run: `<blade>-<start, UTC, seconds>-<4 hex>`.
    pub run: String,
    pub blade: Blade,
    /// True if any device said that it is simulated; then nothing here is a hardware result.
    pub simulated: bool,
    pub suite: SuiteRef,
    pub versions: Versions,
    /// Milliseconds since the Unix epoch.
    pub started_ms: i64,
    /// `None` while the run goes on, and for ever if it was cut off.
    pub ended_ms: Option<i64>,
    /// False while the run goes on and when it was cut off.
    pub complete: bool,
    /// Why it is not complete: `running`, `interrupted`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete_because: Option<String>,
    pub devices: Vec<Device>,
    /// The blade's own verdict; `devices` have theirs in `device_verdicts`.
    pub verdict: Verdict,
    pub device_verdicts: Vec<Verdict>,
    pub tests: Vec<TestResult>,
    /// Everything found by probes and tests, gravest first.
    pub findings: Vec<Finding>,
    /// Telemetry over the run (temperature, power, clocks), thinned to at most 2,000 points each.
    pub series: Vec<Series>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Blade {
    /// Name given by the operator of the site, or the host name.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Id of the SKU profile that it was held against, `None` if no profile fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sku: Option<String>,
    pub kernel: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SuiteRef {
    pub name: String,
    /// SHA-256 of the suite file, hex.
    pub sha256: String,
    pub seed: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Versions {
    pub whet: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nccl: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vbios: Option<String>,
    /// SHA-256 of the kernel images that the binary carries, hex; `None` if it carries none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels: Option<String>,
}

/// One test of the suite as it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestResult {
    /// Name in the suite, unique there.
    pub name: String,
    /// Kind of test, such as `gpu_gemm`.
    pub kind: String,
    pub outcome: TestOutcome,
    /// Why, in one line; empty for a plain pass.
    pub detail: String,
    /// How it went on each device, for tests that run on each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceOutcome>,
    pub started_ms: i64,
    pub ended_ms: i64,
    pub readings: Vec<DeviceReading>,
    pub findings: Vec<Finding>,
    pub matrices: Vec<Matrix>,
    pub profiles: Vec<Profile>,
    /// Results that must agree between devices; a record, not a judgement.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub digests: Vec<Digest>,
    pub notes: Vec<String>,
}

impl TestResult {
    /// A test that has just begun, at `started_ms`: nothing is known of it yet.
    pub fn empty(name: impl Into<String>, kind: impl Into<String>, started_ms: i64) -> Self {
        Self {
            name: name.into(),
            kind: kind.into(),
            outcome: TestOutcome::Inconclusive,
            detail: "not ended".to_owned(),
            devices: Vec::new(),
            started_ms,
            ended_ms: started_ms,
            readings: Vec::new(),
            findings: Vec::new(),
            matrices: Vec::new(),
            profiles: Vec::new(),
            digests: Vec::new(),
            notes: Vec::new(),
        }
    }
}

/// How a test of each device went on one of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceOutcome {
    pub device: DeviceId,
    pub outcome: TestOutcome,
    /// One line; empty for a plain pass.
    pub detail: String,
}

/// A result that must be the same wherever it is computed: devices of one model that disagree are suspects,
/// the minority first. A recorded digest never judges by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    pub device: DeviceId,
    /// What was computed: test, format, kernel path, shape, seed, chip. Equal keys are comparable.
    pub key: String,
    /// 64 bits, hex.
    pub value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TestOutcome {
    Pass,
    Fail,
    Inconclusive,
    /// Does not apply to this blade (no GPU, one GPU only); no gap in the verdict.
    NotApplicable,
}

impl TestOutcome {
    pub fn as_outcome(self) -> Option<Outcome> {
        match self {
            TestOutcome::Pass => Some(Outcome::Pass),
            TestOutcome::Fail => Some(Outcome::Fail),
            TestOutcome::Inconclusive => Some(Outcome::Inconclusive),
            TestOutcome::NotApplicable => None,
        }
    }
}

/// A reading about a device, or about the blade.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceReading {
    pub device: Option<DeviceId>,
    #[serde(flatten)]
    pub reading: Reading,
}

/// A table of device × device values, such as peer-to-peer bandwidth; drawn as a heat map.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Matrix {
    pub metric: String,
    pub unit: Unit,
    pub rows: Vec<String>,
    pub columns: Vec<String>,
    /// `values[row][column]`; `None` = not measured.
    pub values: Vec<Vec<Option<f64>>>,
}

/// One value per part of a device, such as throughput per SM (index = SM id) or per CPU core.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    pub device: Option<DeviceId>,
    pub metric: String,
    pub unit: Unit,
    /// What the index counts: `sm`, `core`.
    pub index: String,
    pub values: Vec<Option<f64>>,
}

/// Telemetry of one device: `points` are (milliseconds since the run's start, value).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    pub device: Option<DeviceId>,
    pub metric: String,
    pub unit: Unit,
    pub points: Vec<(u64, f64)>,
}
