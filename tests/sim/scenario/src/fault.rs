//! What can be wrong with a simulated blade.

use serde::{Deserialize, Serialize};

use crate::format::Format;

/// One planted fault, with its data. In a scenario file: `[[fault]]`, `kind`, `gpu` where it is about one.
///
/// Times (`at_s`) count in real seconds from the first time that any simulated library opened the blade.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    // --- wrong results (CUDA driver) ---
    /// A bad HBM cell: bit `bit` (0..64) of the 64-bit word `word` of the memory that is backed.
    HbmFlip {
        word: u64,
        bit: u32,
        #[serde(default)]
        mode: FlipMode,
    },
    /// SM `sm` inverts bit `bit` of an accumulator in every `every_n`th tile that it computes.
    SmFlip {
        sm: u32,
        bit: u32,
        /// Only in this format; all formats if absent.
        #[serde(default)]
        format: Option<Format>,
        #[serde(default = "one")]
        every_n: u32,
    },
    /// Every `every_n`th copy in this direction arrives with bit `bit` of its middle byte inverted.
    CopyFlip {
        direction: Direction,
        bit: u32,
        every_n: u64,
    },
    /// The `nth` kernel launch (from 1, in each process) and all later calls answer CUDA error `code`.
    LaunchError {
        code: u32,
        nth: u64,
    },
    // --- wrong results (NCCL) ---
    /// What this GPU contributes to every `every_n`th collective has bit `bit` of one element inverted.
    NcclFlip {
        bit: u32,
        #[serde(default = "one")]
        every_n: u32,
    },
    // --- slow ---
    /// SM `sm` takes `percent` longer.
    SlowSm {
        sm: u32,
        percent: f64,
    },
    /// All arithmetic (or that of one format) is `percent` slower.
    SlowGpu {
        percent: f64,
        #[serde(default)]
        format: Option<Format>,
    },
    /// HBM is `percent` slower.
    SlowHbm {
        percent: f64,
    },
    /// NVLink traffic with the GPU in slot `peer` is `percent` slower.
    SlowLink {
        peer: usize,
        percent: f64,
    },
    // --- heat and power ---
    /// After `after_s` seconds under load the GPU slows down thermally (clocks to 60 %, margin to 0).
    ThermalThrottle {
        after_s: f64,
    },
    /// Runs this much hotter than its sisters, in degrees C under load.
    Hot {
        degrees: f64,
    },
    /// The enforced power limit is lower than the SKU's, in watts.
    PowerCap {
        watts: f64,
    },
    // --- links ---
    NvlinkDown {
        link: u32,
    },
    /// CRC errors per second under load on one NVLink.
    NvlinkErrors {
        link: u32,
        per_s: f64,
    },
    /// PCIe lanes now.
    PcieWidth {
        now: u32,
    },
    /// PCIe generation now.
    PcieGen {
        now: u32,
    },
    /// PCIe replays per second under load.
    PcieReplays {
        per_s: f64,
    },
    /// The NVLink fabric's health mask says degraded bandwidth.
    FabricDegraded,
    /// Registration with the fabric never completes.
    FabricIncomplete,
    // --- memory errors as the driver counts them ---
    /// Correctable HBM errors per second under load; none while idle.
    EccStorm {
        per_s: f64,
    },
    /// Uncorrectable HBM errors, with the driver's XID 94 in the kernel log.
    EccUncorrectable {
        count: u64,
        #[serde(default)]
        at_s: f64,
    },
    /// So many uncorrectable SRAM errors over the GPU's life that NVIDIA's own limit is exceeded.
    SramThreshold,
    RemapPending,
    RemapFailed,
    // --- gone, stuck, broken ---
    /// An XID in the kernel log and as an NVML event. An empty `text` gets the driver's usual words.
    Xid {
        code: u32,
        #[serde(default)]
        text: String,
        at_s: f64,
        /// `at_s` counts the GPU's own seconds under load, not those since the blade was opened.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        under_load: bool,
    },
    /// The GPU falls off the bus (XID 79).
    GpuLost {
        at_s: f64,
    },
    /// A call never returns: a symbol's name, or `nvml` or `cuda` for all calls about this GPU.
    Hang {
        call: String,
        #[serde(default)]
        at_s: f64,
    },
    /// The GPU is not there at all: neither on PCI nor in NVML.
    GpuMissing,
    /// HBM held by some other program, MiB.
    MemoryBusy {
        mib: u64,
    },
    EccOff,
    PersistenceOff,
    /// A VBIOS that differs from its sisters'.
    OddVbios,
    // --- the blade (no `gpu`) ---
    /// `nvmlInit` answers that library and kernel module differ in version.
    NvmlVersionMismatch,
    IbDown {
        port: u32,
    },
    /// Symbol errors already counted on an InfiniBand port.
    IbErrors {
        port: u32,
        symbol_errors: u64,
    },
    /// A correctable or uncorrectable count of one DIMM in EDAC.
    DimmErrors {
        dimm: u32,
        #[serde(default)]
        correctable: u64,
        #[serde(default)]
        uncorrectable: u64,
    },
    /// Any line in the kernel log, at a time.
    KernelLine {
        text: String,
        at_s: f64,
    },
}

fn one() -> u32 {
    1
}

/// How a memory cell is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlipMode {
    /// Stuck at 1: whatever is written, the bit reads as 1.
    #[default]
    Sticky,
    /// Inverted once, after the first kernel that ran with the word allocated.
    Transient,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    HostToDevice,
    DeviceToHost,
    /// From this GPU to another one.
    Peer,
}

/// What a fault is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    Gpu,
    Blade,
    /// One GPU, or with no `gpu` the whole blade.
    Either,
}

impl Fault {
    /// The name in scenario files.
    pub fn kind(&self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|v| v.get("kind")?.as_str().map(str::to_owned))
            .unwrap_or_default()
    }

    pub fn about(&self) -> About {
        match self {
            Fault::NvmlVersionMismatch
            | Fault::IbDown { .. }
            | Fault::IbErrors { .. }
            | Fault::DimmErrors { .. }
            | Fault::KernelLine { .. } => About::Blade,
            Fault::Hang { .. } => About::Either,
            _ => About::Gpu,
        }
    }

    /// Seconds from the start at which it happens by itself; `None` if it is there from the start or comes with load.
    pub fn at_s(&self) -> Option<f64> {
        match self {
            Fault::EccUncorrectable { at_s, .. }
            | Fault::Xid { at_s, .. }
            | Fault::GpuLost { at_s }
            | Fault::Hang { at_s, .. }
            | Fault::KernelLine { at_s, .. } => Some(*at_s),
            _ => None,
        }
    }
}
