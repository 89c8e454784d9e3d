//! What the runner asks of a device-test process and what that process answers.
//!
//! The runner writes one [`Request`] as one line of JSON to the child's standard input and keeps that open; the child writes one [`Event`] per
//! line to standard output, the last one [`Event::Done`]. A child that ends without `Done` has crashed; one that
//! is silent for longer than [`SILENCE_LIMIT_S`] hangs. Either is *inconclusive*, never a failure by itself.

use serde::{Deserialize, Serialize};
use whetstone_model::device::DeviceId;
use whetstone_model::evidence::Finding;
pub use whetstone_model::report::Digest;
use whetstone_model::report::{DeviceReading, Matrix, Profile, TestOutcome};

use crate::suite::TestKind;

/// A test says something (progress at the least) more often than this, in seconds.
pub const SILENCE_LIMIT_S: u64 = 20;

/// Longest event line that the runner reads; a longer one is cut and counted as a broken child.
pub const MAX_EVENT_BYTES: usize = 4 << 20;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The test's name in the suite.
    pub name: String,
    pub kind: TestKind,
    /// Seed of all patterns; the same seed and suite give the same operands.
    pub seed: u64,
    /// The test ends itself by then, in seconds from its start, with what it has.
    pub budget_s: u64,
    /// A directory of the test's own; it removes what it puts there.
    pub scratch: std::path::PathBuf,
    /// The GPUs to test: one for a test of single GPUs, all for one between GPUs, none for host tests.
    pub gpus: Vec<GpuTarget>,
}

/// A GPU as both NVML and CUDA know it. The CUDA device is found by `uuid`, never by `index`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuTarget {
    pub uuid: DeviceId,
    /// `gpu5`: for texts only.
    pub label: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// `done` is the part done, 0 to 1; `doing` is one short phrase.
    Progress {
        done: f64,
        doing: String,
    },
    Reading(DeviceReading),
    Finding(Finding),
    Matrix(Matrix),
    Profile(Profile),
    Digest(Digest),
    Note {
        text: String,
    },
    /// Version of the NCCL library that the test loaded.
    NcclVersion {
        version: String,
    },
    /// The end. `detail` is one line, empty for a plain pass.
    Done {
        outcome: TestOutcome,
        detail: String,
    },
}

/// Where a test's events go.
pub trait Sink: Sync {
    fn emit(&self, event: Event);

    fn progress(&self, done: f64, doing: &str) {
        self.emit(Event::Progress { done: done.clamp(0.0, 1.0), doing: doing.to_owned() });
    }

    fn note(&self, text: impl Into<String>)
    where
        Self: Sized,
    {
        self.emit(Event::Note { text: text.into() });
    }
}
