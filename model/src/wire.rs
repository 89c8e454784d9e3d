//! What an agent and the operator say to each other: JSON over HTTP with mutual TLS.
//!
//! | call | who | body → answer |
//! | --- | --- | --- |
//! | `POST /v1/join` | anybody with a token | [`JoinRequest`] → [`JoinAnswer`] |
//! | `POST /v1/renew` | an agent | [`RenewRequest`] → [`JoinAnswer`] |
//! | `POST /v1/report` | an agent | [`ReportRequest`] → [`ReportAnswer`] |
//! | `PUT /v1/runs/{run}/result` | an agent | [`RunResult`], zstd-compressed → 204 |
//!
//! An agent is who its certificate says; a serial in a body that is another one is refused. An error is
//! `{"error": {"code", "message"}}` ([`ErrorAnswer`]) with a 4xx or 5xx status; 503 and 429 carry
//! `Retry-After`.

use serde::{Deserialize, Serialize};

use crate::device::DeviceId;
use crate::evidence::{Finding, Reading};
use crate::ids::{BladeName, RunId, Serial};

/// Largest body of a join, renewal or report, bytes.
pub const MAX_BODY: usize = 1 << 20;
/// Largest result of a run, bytes as sent (zstd) and as unpacked.
pub const MAX_RESULT_SENT: usize = 16 << 20;
pub const MAX_RESULT: usize = 64 << 20;
/// Items of one report at most; the rest comes with the next.
pub const MAX_ITEMS: usize = 500;
/// The organisational unit (OU) in a certificate's subject that says what its holder may do.
pub const ROLE_AGENT: &str = "agent";
pub const ROLE_OPS: &str = "ops";

/// Asks for a certificate with a one-time token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    pub serial: Serial,
    pub token: String,
    /// PKCS#10, PEM. Only its public key is used; the operator writes the subject.
    pub csr_pem: String,
    /// Random, 32 hex digits, made with the agent's state directory: tells two machines apart that claim one serial.
    pub instance: String,
    /// The ed25519 public key that signs this agent's reports, 64 hex digits.
    pub report_key: String,
    pub facts: BladeFacts,
}

/// A certificate and what it is good for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JoinAnswer {
    pub blade: BladeName,
    /// The agent's certificate (leaf), PEM.
    pub certificate_pem: String,
    /// The site's CA, PEM; may hold several while it is being replaced.
    pub ca_pem: String,
    /// Milliseconds since the Unix epoch, by the operator's clock. An agent renews at two thirds of the way.
    pub not_before_ms: i64,
    pub not_after_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    pub csr_pem: String,
    pub instance: String,
}

/// What a blade is, in a few hundred bytes. All of it is the blade's word, none of it is trusted for more than display
/// and comparison with the manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BladeFacts {
    /// Serial as the firmware says it.
    pub serial: Option<String>,
    pub hostname: Option<String>,
    /// Id of the SKU profile that its GPUs fit.
    pub sku: Option<String>,
    pub gpus: Vec<GpuFacts>,
    pub driver: Option<String>,
    pub kernel: Option<String>,
    /// From the NVLink fabric: cluster UUID and clique.
    pub nvlink_cluster: Option<String>,
    /// Changes at each boot.
    pub boot_id: Option<String>,
    pub agent_version: String,
    /// True if any device said that it is simulated.
    pub simulated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuFacts {
    pub uuid: DeviceId,
    pub name: Option<String>,
    pub serial: Option<String>,
    pub pci: Option<String>,
}

/// GPUs of one blade at most.
pub const MAX_GPUS: usize = 128;

/// What an agent has to say since the last report. Also its sign of life: sent with no items too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportRequest {
    pub serial: Serial,
    pub instance: String,
    /// As the kernel gives it, new at each boot: tells two machines apart that have the same state directory, its keys and all.
    /// Older agents do not send it, nor does one whose kernel gives none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Milliseconds since the Unix epoch by the blade's clock, when this was sent. For the skew only.
    pub now_ms: i64,
    /// Random, 32 hex digits, made with the spool: `seq` counts within it.
    pub stream: String,
    /// Ascending `seq`, at most [`MAX_ITEMS`]. May repeat items that were sent before.
    pub items: Vec<Item>,
    /// Up to where the operator has said that it has this stream. Where its store knows less, it lost something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked: Option<u64>,
    /// Details (readings) that the spool had to drop so far, in all of this stream.
    pub dropped: u64,
    /// Items that wait in the spool, these included.
    pub spooled: u64,
    /// Sent after start and when something changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<BladeFacts>,
    /// The run that goes on, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunProgress>,
    /// The agent's own cost, for the fleet's metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<AgentUsage>,
}

/// The agent process about itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AgentUsage {
    pub resident_bytes: u64,
    /// Processor seconds since the process began.
    pub cpu_seconds: f64,
    pub up_seconds: f64,
}

/// One piece of evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Counts from 1 within the stream; never used twice.
    pub seq: u64,
    /// By the blade's clock.
    pub at_ms: i64,
    #[serde(flatten)]
    pub body: ItemBody,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ItemBody {
    /// Was not there at the look before, or its severity or action changed.
    Appeared { finding: Finding },
    /// Is not there any more.
    Cleared { finding: Finding },
    /// A line of the kernel log that is a fault; it does not clear by itself.
    Kernel { finding: Finding, line: String },
    /// A measured value. The first to be dropped when the spool is full.
    Reading { device: Option<DeviceId>, reading: Reading },
    /// Something about the agent itself: started, kernel log lost, run refused.
    Note { text: String },
}

impl ItemBody {
    /// Detail may be dropped (and is counted) when a spool is full; findings never are.
    pub fn is_detail(&self) -> bool {
        matches!(self, ItemBody::Reading { .. } | ItemBody::Note { .. })
    }
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunProgress {
    pub run: RunId,
    /// Name of the test that goes on.
    pub test: String,
    /// From 1.
    pub number: u32,
    pub of: u32,
    /// Part done of this test, 0 to 1.
    pub done: f64,
    /// What it is doing, one line.
    pub doing: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportAnswer {
    /// Highest `seq` up to which everything is stored; the spool may forget it.
    pub acked: u64,
    /// What the agent has to do. The same order comes until its run is reported as going on, refused, or done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// The operator does not have all that this agent was told to be stored: an older store was restored, or the blade's identity
    /// was reset. What stands has to be said again, and what the blade is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub say_again: bool,
    /// When the next report is wanted, milliseconds from now.
    pub next_report_ms: u64,
    /// The operator's clock.
    pub now_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    BurnIn(BurnInOrder),
    /// Ends the run; its result says that it was interrupted.
    CancelRun {
        run: RunId,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BurnInOrder {
    pub run: RunId,
    /// The blade's name, as it is to stand in the report.
    pub blade: BladeName,
    /// The suite, TOML.
    pub suite: String,
    pub seed: u64,
    /// SKU profile to hold the blade against; `None` = the one that its GPUs fit.
    pub sku: Option<String>,
}

/// The signed outcome of a run, byte for byte as the bundle has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunResult {
    pub run: RunId,
    pub serial: Serial,
    pub instance: String,
    /// `report.json` ([`crate::report::Report`]).
    pub report_json: String,
    /// `samples.jsonl`, for the fleet judge.
    pub samples_jsonl: String,
    /// `manifest.json` and `manifest.sig`: who signed what.
    pub manifest_json: String,
    pub signature: String,
}

/// An error's body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorAnswer {
    pub error: ErrorBody,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Stable, kebab-case: one of [`error_code`].
    pub code: String,
    /// One line for a person.
    pub message: String,
    /// Those of the serials asked for that are no blades of this site (ops API).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<Serial>,
}

/// The codes that an agent tells apart.
pub mod error_code {
    /// 403: token unknown, expired, or for another serial. A person has to issue a new one.
    pub const TOKEN_REFUSED: &str = "token-refused";
    /// 409: the token was used, or another machine speaks for this serial. Both are held until a person looks.
    pub const IDENTITY_CONFLICT: &str = "identity-conflict";
    /// 403: the certificate was revoked.
    pub const REVOKED: &str = "revoked";
    /// 403: the certificate has run out. It can still be renewed for a while (30 days): after that as `revoked`.
    pub const EXPIRED: &str = "expired";
    /// 401 or 403: no client certificate, or not one for this route.
    pub const UNAUTHENTICATED: &str = "unauthenticated";
    /// 403: the body is about another blade than the certificate.
    pub const WRONG_BLADE: &str = "wrong-blade";
    /// 404: no such run of this blade, or it is over.
    pub const NO_SUCH_RUN: &str = "no-such-run";
    /// 409: another result of this run is on record; the first one holds. Sending it again is no use.
    pub const RESULT_DIFFERS: &str = "result-differs";
    /// 404: nothing of that name (ops API).
    pub const NOT_FOUND: &str = "not-found";
    /// 400 or 413: cannot be understood; sending it again is no use.
    pub const BAD_REQUEST: &str = "bad-request";
    /// 503: not leading, database away. 429: more than is stored for one blade. Try again after `Retry-After`.
    pub const UNAVAILABLE: &str = "unavailable";
}
