//! Evidence: time-stamped, typed readings and findings about one device.

use serde::{Deserialize, Serialize};

use crate::action::{Action, Severity};
use crate::device::DeviceId;
use crate::unit::Unit;

/// One measured number. `metric` is a dotted name such as `gemm.bf16.throughput`; thresholds and the
/// fleet judge look it up by that name (the list is in `docs/metrics.md`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    pub metric: String,
    pub value: f64,
    pub unit: Unit,
}

impl Reading {
    pub fn new(metric: impl Into<String>, value: f64, unit: Unit) -> Self {
        Self { metric: metric.into(), value, unit }
    }
}

/// Something that is wrong (or worth knowing) about a device or, with `device: None`, about the blade.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable, kebab-case: `pcie-width`, `ecc-uncorrectable`, `sdc`, `xid-79`, `source-timeout`.
    pub code: String,
    pub device: Option<DeviceId>,
    pub severity: Severity,
    pub action: Action,
    /// One line for a person: what was read and what was expected.
    pub detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading: Option<Reading>,
}

/// What one line of a run's `evidence.jsonl` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Counts from 1 within a run; a verdict refers to evidence by it.
    pub id: u64,
    /// Milliseconds since the Unix epoch, by the blade's clock.
    pub at_ms: i64,
    /// Test during which it was taken, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// Where it came from: `nvml`, `kmsg`, `sysfs`, `cuda`, `nccl`, `cpu`, `runner`.
    pub source: String,
    #[serde(flatten)]
    pub body: Body,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Body {
    Reading(Reading),
    Finding(Finding),
    /// A line of the kernel log that was understood as a fault.
    KernelLine {
        line: String,
    },
    Note {
        text: String,
    },
}
