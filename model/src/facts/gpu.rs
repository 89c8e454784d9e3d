//! What NVML says about GPUs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::device::DeviceId;

/// The driver as NVML names it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuDriver {
    /// Driver release, such as `580.95.05`.
    pub version: Option<String>,
    /// NVML library release.
    pub nvml_version: Option<String>,
    /// Highest CUDA version that the driver serves, `major.minor`.
    pub cuda_version: Option<String>,
    /// GPUs that NVML counts, answering or not.
    pub device_count: Option<u32>,
    /// The driver version says `sim`.
    pub simulated: bool,
}

/// A GPU that NVML counts but that gave no facts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuGap {
    pub index: u32,
    /// What is known from an earlier look or from calls that still answered.
    #[serde(default)]
    pub uuid: Option<DeviceId>,
    #[serde(default)]
    pub pci: Option<String>,
    pub kind: GapKind,
    pub detail: String,
}

impl GpuGap {
    /// The best stable name there is.
    pub fn device(&self) -> Option<DeviceId> {
        self.uuid.clone().or_else(|| self.pci.as_ref().and_then(|pci| DeviceId::new(pci.clone()).ok()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapKind {
    /// NVML says that it is lost (fell off the bus, needs a reboot).
    Lost,
    /// NVML says that it needs a reset before it answers.
    ResetRequired,
    /// It did not answer in time.
    Timeout,
    /// Not allowed to look.
    NoPermission,
    Error,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuFacts {
    pub uuid: DeviceId,
    /// NVML's index at this look; for labels (`gpu5`) only.
    pub index: u32,
    #[serde(default)]
    pub name: Option<String>,
    /// The name ends in `(sim)` or the driver version says `sim`.
    #[serde(default)]
    pub simulated: bool,
    #[serde(default, flatten)]
    pub identity: GpuIdentity,
    #[serde(default)]
    pub memory: GpuMemory,
    #[serde(default)]
    pub ecc: Ecc,
    #[serde(default)]
    pub remapped_rows: Option<RemappedRows>,
    #[serde(default)]
    pub retired_pages: Option<RetiredPages>,
    #[serde(default)]
    pub thermal: Thermal,
    #[serde(default)]
    pub power: Power,
    #[serde(default)]
    pub clocks: Clocks,
    #[serde(default)]
    pub pcie: GpuPcie,
    /// One entry per link that the GPU has, by link number.
    #[serde(default)]
    pub nvlinks: Vec<NvLink>,
    #[serde(default)]
    pub fabric: Option<Fabric>,
    #[serde(default)]
    pub modes: Modes,
    #[serde(default)]
    pub utilization: Utilization,
    /// What the driver itself recommends now, where it says so.
    #[serde(default)]
    pub recovery_action: Option<RecoveryAction>,
    /// A repair of a memory channel or TPC waits for a reset.
    #[serde(default)]
    pub repair_pending: Option<RepairPending>,
    /// Checksums of the board's own data are right; asked only by a full look.
    #[serde(default)]
    pub inforom_valid: Option<bool>,
    /// At most [`MAX_PROCESSES`].
    #[serde(default)]
    pub processes: Vec<GpuProcess>,
    /// Calls that failed with something else than "not supported": `call: error`.
    #[serde(default)]
    pub unanswered: Vec<String>,
}

/// Processes listed of one GPU at most.
pub const MAX_PROCESSES: usize = 256;

impl GpuFacts {
    /// `gpu5`.
    pub fn label(&self) -> String {
        format!("gpu{}", self.index)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuIdentity {
    pub serial: Option<String>,
    pub board_part_number: Option<String>,
    pub vbios: Option<String>,
    pub inforom_image: Option<String>,
    /// `dddd:bb:dd.0`, lower case.
    pub pci: Option<String>,
    /// Vendor and device: `10de:2330`.
    pub pci_id: Option<String>,
    pub pci_subsystem_id: Option<String>,
    /// `hopper`, `blackwell`, …
    pub architecture: Option<String>,
    /// Compute capability, such as `9.0`.
    pub compute_capability: Option<String>,
    pub sm_count: Option<u32>,
    /// CUDA cores, as NVML counts them.
    pub core_count: Option<u32>,
    pub numa_node: Option<u32>,
    /// Place on the baseboard.
    pub module_id: Option<u32>,
    pub platform: Option<Platform>,
}

/// Where the GPU sits in a rack-scale machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    pub chassis_serial: Option<String>,
    pub slot: Option<u32>,
    pub tray: Option<u32>,
    pub host: Option<u32>,
    pub peer_type: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuMemory {
    pub total_mib: Option<u64>,
    pub free_mib: Option<u64>,
    pub used_mib: Option<u64>,
    /// Held back by driver and firmware.
    pub reserved_mib: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ecc {
    pub enabled: Option<bool>,
    /// Mode after the next reset.
    pub pending_enabled: Option<bool>,
    /// Since the driver was loaded or the GPU reset.
    pub volatile: EccCounters,
    /// Over the GPU's life.
    pub aggregate: EccCounters,
    /// The life-time count of uncorrectable SRAM errors is over NVIDIA's limit: the GPU is to be replaced.
    pub sram_threshold_exceeded: Option<bool>,
    /// Life-time uncorrectable SRAM errors by part: `l2`, `sm`, `pcie`, `mcu`, `other`.
    pub sram_uncorrected_by_part: BTreeMap<String, u64>,
    /// Errors in SRAM by how they were seen, life-time.
    pub sram_uncorrected_parity: Option<u64>,
    pub sram_uncorrected_secded: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EccCounters {
    pub sram: ErrorCount,
    pub dram: ErrorCount,
    /// All memories, as the library adds them up.
    pub total: ErrorCount,
    /// Where the library says more: `l1`, `l2`, `register_file`, `texture`, `shared`, `cbu`.
    pub by_location: BTreeMap<String, ErrorCount>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorCount {
    pub corrected: Option<u64>,
    pub uncorrected: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RemappedRows {
    pub corrected: u32,
    pub uncorrected: u32,
    /// A remap waits for a reset.
    pub pending: bool,
    /// A remap was not possible: no spare rows.
    pub failure: bool,
    pub histogram: Option<RemapHistogram>,
}

/// Banks by spare rows left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RemapHistogram {
    pub max: u32,
    pub high: u32,
    pub partial: u32,
    pub low: u32,
    pub none: u32,
}

/// Before Ampere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetiredPages {
    /// After several corrected errors in one page.
    pub single_bit: u32,
    pub double_bit: u32,
    /// Pages that will be retired at the next driver load.
    pub pending: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Thermal {
    pub gpu_c: Option<i32>,
    pub memory_c: Option<i32>,
    /// Degrees left until the T.Limit; at or below `slowdown_tlimit_c` the GPU slows down.
    pub margin_c: Option<i32>,
    /// T.Limit thresholds: margins (signed), not temperatures.
    pub shutdown_tlimit_c: Option<i32>,
    pub slowdown_tlimit_c: Option<i32>,
    pub memory_max_tlimit_c: Option<i32>,
    pub gpu_max_tlimit_c: Option<i32>,
    /// Thresholds as temperatures, where the GPU has those.
    pub shutdown_c: Option<i32>,
    pub slowdown_c: Option<i32>,
    pub memory_max_c: Option<i32>,
    pub gpu_max_c: Option<i32>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Power {
    pub draw_w: Option<f64>,
    /// What holds now, of all limits.
    pub enforced_limit_w: Option<f64>,
    pub default_limit_w: Option<f64>,
    pub min_limit_w: Option<f64>,
    pub max_limit_w: Option<f64>,
    /// Since the driver was loaded, joule.
    pub energy_j: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Clocks {
    pub sm_mhz: Option<u32>,
    pub memory_mhz: Option<u32>,
    pub graphics_mhz: Option<u32>,
    pub max_sm_mhz: Option<u32>,
    pub max_memory_mhz: Option<u32>,
    pub max_graphics_mhz: Option<u32>,
    /// 0 = fastest.
    pub pstate: Option<u32>,
    /// Why the clocks are not higher; empty = nothing holds them back.
    pub event_reasons: Vec<ClockReason>,
    /// The register as it was read.
    pub event_reasons_raw: Option<u64>,
}

/// Why clocks are where they are; the bits of `nvmlDeviceGetCurrentClocksEventReasons`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClockReason {
    GpuIdle,
    ApplicationClocks,
    SwPowerCap,
    HwSlowdown,
    SyncBoost,
    SwThermalSlowdown,
    HwThermalSlowdown,
    HwPowerBrake,
    DisplayClock,
}

impl ClockReason {
    pub const ALL: [(u64, ClockReason); 9] = [
        (0x1, ClockReason::GpuIdle),
        (0x2, ClockReason::ApplicationClocks),
        (0x4, ClockReason::SwPowerCap),
        (0x8, ClockReason::HwSlowdown),
        (0x10, ClockReason::SyncBoost),
        (0x20, ClockReason::SwThermalSlowdown),
        (0x40, ClockReason::HwThermalSlowdown),
        (0x80, ClockReason::HwPowerBrake),
        (0x100, ClockReason::DisplayClock),
    ];

    /// The reasons in a register; unknown bits are left in the raw value only.
    pub fn decode(raw: u64) -> Vec<ClockReason> {
        Self::ALL.iter().filter(|(bit, _)| raw & bit != 0).map(|(_, reason)| *reason).collect()
    }

    pub fn as_str(self) -> &'static str {
        match self {
            ClockReason::GpuIdle => "gpu_idle",
            ClockReason::ApplicationClocks => "application_clocks",
            ClockReason::SwPowerCap => "sw_power_cap",
            ClockReason::HwSlowdown => "hw_slowdown",
            ClockReason::SyncBoost => "sync_boost",
            ClockReason::SwThermalSlowdown => "sw_thermal_slowdown",
            ClockReason::HwThermalSlowdown => "hw_thermal_slowdown",
            ClockReason::HwPowerBrake => "hw_power_brake",
            ClockReason::DisplayClock => "display_clock",
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuPcie {
    pub generation: Option<u32>,
    pub width: Option<u32>,
    /// Highest that GPU and slot can do together.
    pub max_generation: Option<u32>,
    pub max_width: Option<u32>,
    /// Highest that the GPU itself can do.
    pub gpu_max_generation: Option<u32>,
    pub replays: Option<u64>,
    pub replay_rollovers: Option<u64>,
    /// Counters of the GPU's own PCIe port, where the library has them: `correctable`, `non_fatal`, `fatal`,
    /// `naks_received`, `naks_sent`, `bad_tlp`, `bad_dllp`, `receiver`, `lcrc`, `lane`, `l0_to_recovery`,
    /// `unsupported_requests`.
    pub counters: BTreeMap<String, u64>,
}

/// One NVLink of one GPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NvLink {
    pub link: u32,
    pub up: Option<bool>,
    /// NVLink generation as NVML numbers it.
    pub version: Option<u32>,
    /// Speed of one direction, MB/s.
    pub speed_mbps: Option<u64>,
    /// PCI address of the other end (GPU, NVSwitch), lower case.
    pub remote_pci: Option<String>,
    /// `gpu`, `switch`, `ibmnpu`, …
    pub remote_kind: Option<String>,
    /// Error counters since the link came up, by name: `crc_flit`, `crc_data`, `replay`, `recovery`, `ecc`,
    /// `malformed_packets`, `buffer_overruns`, `rcv_errors`, `rcv_remote_errors`, `rcv_general_errors`,
    /// `link_integrity`, `xmit_discards`, `recovery_successful`, `recovery_failed`, `recovery_events`,
    /// `effective_errors`, `symbol_errors`.
    pub errors: BTreeMap<String, u64>,
    /// Bit error rates, errors per bit.
    pub symbol_ber: Option<f64>,
    pub effective_ber: Option<f64>,
}

/// State of the GPU in its NVLink domain.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fabric {
    pub state: FabricState,
    /// NVML's code for how the registration ended; 0 = success. Means something only when `completed`.
    pub status: u32,
    pub clique_id: Option<u32>,
    /// `xxxxxxxx-xxxx-…`; `None` if all zero.
    pub cluster_uuid: Option<String>,
    pub health_mask: Option<u32>,
    pub health: Option<FabricHealth>,
    /// The library's own summary, where it gives one.
    pub summary: Option<FabricSummary>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FabricState {
    /// This GPU has no fabric to join.
    #[default]
    NotSupported,
    NotStarted,
    InProgress,
    Completed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FabricSummary {
    NotSupported,
    Healthy,
    Unhealthy,
    LimitedCapacity,
}

/// The health mask decoded; `None` = not said. `true` = the bad thing is so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FabricHealth {
    pub degraded_bandwidth: Option<bool>,
    pub route_recovery: Option<bool>,
    pub route_unhealthy: Option<bool>,
    pub access_timeout_recovery: Option<bool>,
    /// 0 = not said, 1 = none, others are NVML's codes for what is configured wrongly.
    pub incorrect_configuration: u32,
}

impl FabricHealth {
    /// Two bits each: 0 not supported, 1 true, 2 false; the configuration code from bit 8 has four
    /// (nvml.h, `NVML_GPU_FABRIC_HEALTH_MASK_*`). A healthy GPU says `0x1aa`, not 0.
    pub fn decode(mask: u32) -> FabricHealth {
        let flag = |shift: u32| match mask >> shift & 0x3 {
            1 => Some(true),
            2 => Some(false),
            _ => None,
        };
        FabricHealth {
            degraded_bandwidth: flag(0),
            route_recovery: flag(2),
            route_unhealthy: flag(4),
            access_timeout_recovery: flag(6),
            incorrect_configuration: mask >> 8 & 0xf,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Modes {
    pub mig: Option<bool>,
    pub mig_pending: Option<bool>,
    pub persistence: Option<bool>,
    /// `default`, `exclusive_process`, `prohibited`.
    pub compute: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Utilization {
    pub gpu_percent: Option<u32>,
    pub memory_percent: Option<u32>,
}

/// What the driver says is needed to recover (field 230, and Xid 154's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryAction {
    None,
    GpuReset,
    NodeReboot,
    DrainP2p,
    DrainAndReset,
}

impl RecoveryAction {
    pub fn decode(code: u64) -> Option<RecoveryAction> {
        Some(match code {
            0 => RecoveryAction::None,
            1 => RecoveryAction::GpuReset,
            2 => RecoveryAction::NodeReboot,
            3 => RecoveryAction::DrainP2p,
            4 => RecoveryAction::DrainAndReset,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RepairPending {
    pub channel: bool,
    pub tpc: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuProcess {
    pub pid: u32,
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub memory_mib: Option<u64>,
    /// `compute` or `graphics`.
    pub kind: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_healthy_fabric_mask_has_nothing_bad_in_it() {
        let health = FabricHealth::decode(0x1aa);
        assert_eq!(
            health,
            FabricHealth {
                degraded_bandwidth: Some(false),
                route_recovery: Some(false),
                route_unhealthy: Some(false),
                access_timeout_recovery: Some(false),
                incorrect_configuration: 1,
            }
        );
        assert_eq!(FabricHealth::decode(0x1a9).degraded_bandwidth, Some(true));
        assert_eq!(FabricHealth::decode(0x19a).route_unhealthy, Some(true));
        assert_eq!(FabricHealth::decode(0), FabricHealth::default());
    }

    #[test]
    fn clock_reasons_are_decoded_bit_by_bit() {
        assert_eq!(ClockReason::decode(0x48), vec![ClockReason::HwSlowdown, ClockReason::HwThermalSlowdown]);
        assert!(ClockReason::decode(1 << 40).is_empty());
    }

    #[test]
    fn a_gpu_reads_back_from_its_json_and_from_only_a_uuid() {
        let gpu: GpuFacts = serde_json::from_str(r#"{"uuid":"GPU-1","index":3,"serial":"165"}"#).unwrap();
        assert_eq!(gpu.identity.serial.as_deref(), Some("165"));
        let text = serde_json::to_string(&gpu).unwrap();
        assert!(text.contains(r#""uuid":"GPU-1""#) && text.contains(r#""serial":"165""#));
        assert_eq!(serde_json::from_str::<GpuFacts>(&text).unwrap(), gpu);
    }
}
