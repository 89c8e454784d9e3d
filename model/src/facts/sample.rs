//! What is sampled while a test runs.

use serde::{Deserialize, Serialize};

use super::{ClockReason, GpuFacts};
use crate::device::DeviceId;
use crate::health::Counters;

/// One GPU at one time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuSample {
    pub uuid: DeviceId,
    /// Milliseconds since the Unix epoch, by the blade's clock.
    pub at_ms: i64,
    pub temperature_c: Option<i32>,
    pub memory_c: Option<i32>,
    pub margin_c: Option<i32>,
    pub power_w: Option<f64>,
    pub enforced_limit_w: Option<f64>,
    pub sm_mhz: Option<u32>,
    pub memory_mhz: Option<u32>,
    pub utilization_percent: Option<u32>,
    pub pstate: Option<u32>,
    pub event_reasons: Vec<ClockReason>,
    pub pcie_generation: Option<u32>,
    pub pcie_width: Option<u32>,
    /// ECC, remap, NVLink and replay counters as they stood then.
    pub counters: Counters,
}

impl GpuSample {
    pub fn of(gpu: &GpuFacts, at_ms: i64) -> Self {
        Self {
            uuid: gpu.uuid.clone(),
            at_ms,
            temperature_c: gpu.thermal.gpu_c,
            memory_c: gpu.thermal.memory_c,
            margin_c: gpu.thermal.margin_c,
            power_w: gpu.power.draw_w,
            enforced_limit_w: gpu.power.enforced_limit_w,
            sm_mhz: gpu.clocks.sm_mhz,
            memory_mhz: gpu.clocks.memory_mhz,
            utilization_percent: gpu.utilization.gpu_percent,
            pstate: gpu.clocks.pstate,
            event_reasons: gpu.clocks.event_reasons.clone(),
            pcie_generation: gpu.pcie.generation,
            pcie_width: gpu.pcie.width,
            counters: Counters::of_gpu(gpu),
        }
    }
}
