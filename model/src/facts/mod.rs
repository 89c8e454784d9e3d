//! Facts about a blade, as probes read them; thresholds and health rules judge them.
//!
//! `None` means that the source did not say (not supported, not readable, not there), never zero. Numbers carry
//! their unit in the field's name: `_c` degrees Celsius, `_w` watt, `_mib` MiB, `_mhz` MHz, `_gts` GT/s, `_ms`.
//! JSON form: the types as they are; fields are added over time, so readers ignore what they do not know.

mod gpu;
mod host;
mod io;
mod sample;

pub use gpu::*;
pub use host::*;
pub use io::*;
pub use sample::*;

use serde::{Deserialize, Serialize};

/// Everything that was read of one blade at one time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// When the probe began, milliseconds since the Unix epoch, by the blade's clock.
    pub at_ms: i64,
    pub host: Host,
    pub kernel: Kernel,
    pub cpu: Cpu,
    pub numa: Vec<NumaNode>,
    pub memory: Memory,
    pub dimms: Vec<Dimm>,
    pub edac: Vec<MemoryController>,
    pub cgroup: Cgroup,
    pub clock: ClockSync,
    /// GPUs, NVSwitches, NICs, NVMe drives and the ports above them.
    pub pci: Vec<PciDevice>,
    pub gpu_driver: Option<GpuDriver>,
    /// In NVML's order; a GPU that did not answer is in `gpu_gaps` instead.
    pub gpus: Vec<GpuFacts>,
    pub gpu_gaps: Vec<GpuGap>,
    pub ib_ports: Vec<IbPort>,
    pub nics: Vec<Nic>,
    pub nvme: Vec<NvmeDrive>,
    /// How each source went; nothing is left out in silence.
    pub sources: Vec<SourceStatus>,
}

impl Facts {
    /// True if any GPU or the driver says that it is simulated.
    pub fn simulated(&self) -> bool {
        self.gpus.iter().any(|gpu| gpu.simulated)
            || self.gpu_driver.as_ref().is_some_and(|driver| driver.simulated)
    }

    pub fn source(&self, name: &str) -> Option<&SourceStatus> {
        self.sources.iter().find(|source| source.name == name)
    }
}

/// How one source of facts went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// `nvml`, `pci`, `infiniband`, `net`, `nvme`, `cpu`, `memory`, `edac`, `host`, `kernel`, `cgroup`, `clock`.
    pub name: String,
    pub state: SourceState,
    /// Empty when there is nothing to say.
    #[serde(default)]
    pub detail: String,
    /// Code of the finding that follows, where the source knows a better one than `source-error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    pub took_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    Ok,
    /// This blade does not have it (no driver, no such bus): normal by itself.
    Absent,
    /// No answer within the time limit; says nothing about the hardware.
    Timeout,
    /// It is there and answered with an error; `detail` says which.
    Error,
}
