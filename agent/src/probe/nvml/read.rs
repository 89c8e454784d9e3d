//! Reads one GPU. A call that the library or the GPU does not support leaves `None`; a lost GPU ends the read.

use std::collections::BTreeMap;

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{
    Clock, ComputeMode, EccCounter, MemoryError, MemoryLocation, TemperatureSensor, TemperatureThreshold,
};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::{PciInfo, ProcessInfo};
use whetstone_model::device::DeviceId;
use whetstone_model::facts::*;

use super::field::{self, Fields};
use super::{link, raw};
use crate::probe::Depth;

const MIB: u64 = 1 << 20;

/// Why a read of a GPU ended early.
pub type Broken = (GapKind, String);

/// Takes answers, remembers failures: "not supported" in all its forms is nothing, a lost GPU is the end,
/// anything else is noted.
#[derive(Default)]
pub struct Asker {
    pub noted: Vec<String>,
    broken: Option<Broken>,
}

/// Notes kept of one GPU at most.
const MAX_NOTES: usize = 32;

impl Asker {
    pub fn get<T>(&mut self, call: &'static str, answer: Result<T, NvmlError>) -> Option<T> {
        let error = match answer {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        match &error {
            // Also what old libraries (no symbol), other struct versions (25), deprecated calls (26) and links
            // or sensors that are not there answer.
            NvmlError::NotSupported
            | NvmlError::FunctionNotFound
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::InvalidArg
            | NvmlError::NotFound
            | NvmlError::NoData
            | NvmlError::VgpuEccNotSupported
            | NvmlError::UnexpectedVariant(_)
            | NvmlError::IncorrectBits(_) => {}
            _ => match gap_kind(&error) {
                kind @ (GapKind::Lost | GapKind::ResetRequired | GapKind::Timeout) => {
                    self.broken.get_or_insert((kind, words(call, &error)));
                }
                _ if self.noted.len() < MAX_NOTES => self.noted.push(format!("{call}: {error}")),
                _ => {}
            },
        }
        None
    }

    /// Ends the read if the GPU has gone.
    pub fn check(&mut self) -> Result<(), Broken> {
        self.broken.take().map_or(Ok(()), Err)
    }
}

/// The error in a sentence for a person.
pub fn words(call: &str, error: &NvmlError) -> String {
    match error {
        NvmlError::GpuLost => format!("it fell off the bus or cannot be reached ({call})"),
        NvmlError::ResetRequired => format!("it needs a reset before it answers ({call})"),
        other => format!("{call}: {other}"),
    }
}

/// What an error says about the GPU as a whole.
pub fn gap_kind(error: &NvmlError) -> GapKind {
    match error {
        NvmlError::GpuLost => GapKind::Lost,
        NvmlError::ResetRequired => GapKind::ResetRequired,
        NvmlError::Timeout => GapKind::Timeout,
        NvmlError::NoPermission => GapKind::NoPermission,
        _ => GapKind::Error,
    }
}

/// `dddd:bb:dd.f` in lower case, from NVML's `dddddddd:BB:DD.F`.
pub fn pci_address(info: &PciInfo) -> String {
    format!("{:04x}:{:02x}:{:02x}.0", info.domain, info.bus, info.device)
}

/// Reads the GPU behind `device`. `before` is an earlier full look at the same GPU: a watching look starts from
/// it and asks only for what changes.
pub fn gpu(
    device: &Device<'_>,
    index: u32,
    uuid: DeviceId,
    driver_simulated: bool,
    depth: Depth,
    before: Option<GpuFacts>,
) -> Result<GpuFacts, Broken> {
    let mut ask = Asker::default();
    let (mut gpu, fresh) = match before.filter(|known| known.uuid == uuid && depth == Depth::Watch) {
        Some(known) => (known, false),
        None => (blank(uuid, index), true),
    };
    gpu.index = index;
    if fresh {
        gpu.name = ask.get("name", device.name());
        gpu.simulated = driver_simulated || gpu.name.as_deref().is_some_and(|name| name.ends_with("(sim)"));
        gpu.identity = identity(device, &mut ask);
        ask.check()?;
        limits(device, &mut ask, &mut gpu);
        gpu.nvlinks = link::list(device, &mut ask);
        gpu.inforom_valid = match device.validate_info_rom() {
            Ok(()) => Some(true),
            Err(NvmlError::CorruptedInfoROM) => Some(false),
            Err(error) => ask.get("validate_inforom", Err::<bool, _>(error)),
        };
        ask.check()?;
    }
    let fields = Fields::read(device, &mut ask, &gpu.nvlinks);
    memory_and_ecc(device, &mut ask, &mut gpu, &fields, fresh);
    ask.check()?;
    sensors(device, &mut ask, &mut gpu, &fields);
    pcie(device, &mut ask, &mut gpu, &fields, fresh);
    link::errors(device, &mut ask, &mut gpu.nvlinks, &fields);
    gpu.fabric =
        ask.get("fabric", raw::fabric(device)).filter(|fabric| fabric.state != FabricState::NotSupported);
    modes(device, &mut ask, &mut gpu);
    gpu.recovery_action = fields.get(field::RECOVERY_ACTION).and_then(RecoveryAction::decode);
    gpu.repair_pending = ask
        .get("repair_status", raw::repair_pending(device))
        .map(|(channel, tpc)| RepairPending { channel, tpc });
    gpu.processes = processes(device, &mut ask);
    ask.check()?;
    gpu.unanswered = ask.noted;
    Ok(gpu)
}

fn blank(uuid: DeviceId, index: u32) -> GpuFacts {
    GpuFacts {
        uuid,
        index,
        name: None,
        simulated: false,
        identity: GpuIdentity::default(),
        memory: GpuMemory::default(),
        ecc: Ecc::default(),
        remapped_rows: None,
        retired_pages: None,
        thermal: Thermal::default(),
        power: Power::default(),
        clocks: Clocks::default(),
        pcie: GpuPcie::default(),
        nvlinks: Vec::new(),
        fabric: None,
        modes: Modes::default(),
        utilization: Utilization::default(),
        recovery_action: None,
        repair_pending: None,
        inforom_valid: None,
        processes: Vec::new(),
        unanswered: Vec::new(),
    }
}

fn identity(device: &Device<'_>, ask: &mut Asker) -> GpuIdentity {
    let pci = ask.get("pci_info", device.pci_info());
    let capability = ask
        .get("compute_capability", device.cuda_compute_capability())
        .map(|capability| (capability.major, capability.minor));
    let cores = ask.get("num_cores", device.num_cores());
    // NVML packs device above vendor: 0x233010de.
    let pair = |packed: u32| format!("{:04x}:{:04x}", packed & 0xffff, packed >> 16);
    GpuIdentity {
        serial: ask.get("serial", device.serial()),
        board_part_number: ask.get("board_part_number", device.board_part_number()),
        vbios: ask.get("vbios_version", device.vbios_version()),
        inforom_image: ask.get("inforom_image", device.info_rom_image_version()),
        pci: pci.as_ref().map(pci_address),
        pci_id: pci.as_ref().map(|info| pair(info.pci_device_id)),
        pci_subsystem_id: pci.as_ref().and_then(|info| info.pci_sub_system_id).map(pair),
        architecture: ask
            .get("architecture", device.architecture())
            .map(|architecture| format!("{architecture:?}").to_ascii_lowercase())
            .filter(|name| name != "unknown"),
        compute_capability: capability.map(|(major, minor)| format!("{major}.{minor}")),
        sm_count: cores
            .zip(capability)
            .and_then(|(cores, (major, minor))| Some(cores / cores_per_sm(major, minor)?)),
        core_count: cores,
        numa_node: ask.get("numa_node", device.numa_node_id()),
        module_id: ask.get("module_id", raw::module_id(device)),
        platform: ask.get("platform_info", raw::platform(device)),
    }
}

/// CUDA cores (fp32 lanes) of one SM, by NVIDIA's white papers; NVML counts only cores.
fn cores_per_sm(major: i32, minor: i32) -> Option<u32> {
    match (major, minor) {
        (7, _) | (8, 0) => Some(64),
        (8..=12, _) => Some(128),
        _ => None,
    }
}

/// What changes seldom: limits, maxima, thresholds.
fn limits(device: &Device<'_>, ask: &mut Asker, gpu: &mut GpuFacts) {
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1000.0;
    gpu.power.default_limit_w = ask.get("power_default", device.power_management_limit_default()).map(watts);
    if let Some(range) = ask.get("power_constraints", device.power_management_limit_constraints()) {
        (gpu.power.min_limit_w, gpu.power.max_limit_w) =
            (Some(watts(range.min_limit)), Some(watts(range.max_limit)));
    }
    gpu.clocks.max_sm_mhz = ask.get("max_clock", device.max_clock_info(Clock::SM));
    gpu.clocks.max_memory_mhz = ask.get("max_clock", device.max_clock_info(Clock::Memory));
    gpu.clocks.max_graphics_mhz = ask.get("max_clock", device.max_clock_info(Clock::Graphics));
    gpu.pcie.max_generation = ask.get("max_pcie_generation", device.max_pcie_link_gen());
    gpu.pcie.max_width = ask.get("max_pcie_width", device.max_pcie_link_width());
    gpu.pcie.gpu_max_generation = ask.get("gpu_max_pcie_generation", raw::gpu_max_pcie_generation(device));
    let mut threshold = |which| {
        ask.get("temperature_threshold", device.temperature_threshold(which))
            .and_then(|degrees| i32::try_from(degrees).ok())
            .filter(|degrees| *degrees > 0)
    };
    gpu.thermal.shutdown_c = threshold(TemperatureThreshold::Shutdown);
    gpu.thermal.slowdown_c = threshold(TemperatureThreshold::Slowdown);
    gpu.thermal.memory_max_c = threshold(TemperatureThreshold::MemoryMax);
    gpu.thermal.gpu_max_c = threshold(TemperatureThreshold::GpuMax);
}

fn memory_and_ecc(device: &Device<'_>, ask: &mut Asker, gpu: &mut GpuFacts, fields: &Fields, fresh: bool) {
    if let Some(memory) = ask.get("memory_info", device.memory_info()) {
        gpu.memory = GpuMemory {
            total_mib: Some(memory.total / MIB),
            free_mib: Some(memory.free / MIB),
            used_mib: Some(memory.used / MIB),
            reserved_mib: Some(memory.reserved / MIB),
        };
    }
    if let Some(mode) = ask.get("ecc_mode", device.is_ecc_enabled()) {
        (gpu.ecc.enabled, gpu.ecc.pending_enabled) =
            (Some(mode.currently_enabled), Some(mode.pending_enabled));
    }
    ecc_counters(device, ask, &mut gpu.ecc.volatile, EccCounter::Volatile, fresh);
    ecc_counters(device, ask, &mut gpu.ecc.aggregate, EccCounter::Aggregate, fresh);
    if let Some(status) = ask.get("sram_ecc_status", raw::sram_status(device)) {
        gpu.ecc.sram_threshold_exceeded = Some(status.threshold_exceeded);
        gpu.ecc.sram_uncorrected_parity = Some(status.parity);
        gpu.ecc.sram_uncorrected_secded = Some(status.secded);
        gpu.ecc.sram_uncorrected_by_part =
            status.by_part.iter().map(|(part, count)| ((*part).to_owned(), *count)).collect();
    }
    gpu.remapped_rows = ask.get("remapped_rows", raw::remapped_rows(device)).map(
        |(corrected, uncorrected, pending, failure)| RemappedRows {
            corrected,
            uncorrected,
            pending,
            failure,
            histogram: None,
        },
    );
    if let Some(rows) = &mut gpu.remapped_rows {
        rows.histogram = ask.get("remap_histogram", raw::remap_histogram(device));
    }
    let count = |id| fields.get(id).and_then(|count| u32::try_from(count).ok());
    gpu.retired_pages = match (count(field::RETIRED_SBE), count(field::RETIRED_DBE)) {
        (None, None) => None,
        (single, double) => Some(RetiredPages {
            single_bit: single.unwrap_or(0),
            double_bit: double.unwrap_or(0),
            pending: fields.get(field::RETIRED_PENDING).map(|flag| flag != 0),
        }),
    };
}

const LOCATIONS: [(MemoryLocation, &str); 6] = [
    (MemoryLocation::L1Cache, "l1"),
    (MemoryLocation::L2Cache, "l2"),
    (MemoryLocation::RegisterFile, "register_file"),
    (MemoryLocation::Texture, "texture"),
    (MemoryLocation::Shared, "shared"),
    (MemoryLocation::Cbu, "cbu"),
];

fn ecc_counters(
    device: &Device<'_>,
    ask: &mut Asker,
    counters: &mut EccCounters,
    span: EccCounter,
    fresh: bool,
) {
    let mut at = |location: MemoryLocation| ErrorCount {
        corrected: ask
            .get("memory_error_counter", device.memory_error_counter(MemoryError::Corrected, span, location)),
        uncorrected: ask.get(
            "memory_error_counter",
            device.memory_error_counter(MemoryError::Uncorrected, span, location),
        ),
    };
    counters.dram = at(MemoryLocation::Device);
    counters.sram = at(MemoryLocation::SRAM);
    // The single places are asked for again only where the GPU answered before: on newer GPUs none does.
    for (location, name) in LOCATIONS {
        if fresh || counters.by_location.contains_key(name) {
            let count = at(location);
            if count != ErrorCount::default() {
                counters.by_location.insert(name.to_owned(), count);
            }
        }
    }
    counters.total = ErrorCount {
        corrected: ask.get("total_ecc_errors", device.total_ecc_errors(MemoryError::Corrected, span)),
        uncorrected: ask.get("total_ecc_errors", device.total_ecc_errors(MemoryError::Uncorrected, span)),
    };
}

/// What telemetry samples too: temperature, margin, power, clocks, reasons, utilization.
pub fn sensors(device: &Device<'_>, ask: &mut Asker, gpu: &mut GpuFacts, fields: &Fields) {
    gpu.thermal.gpu_c = ask
        .get("temperature", device.temperature(TemperatureSensor::Gpu))
        .and_then(|degrees| i32::try_from(degrees).ok());
    gpu.thermal.memory_c = fields.degrees(field::MEMORY_TEMP).filter(|degrees| *degrees > 0);
    gpu.thermal.margin_c = ask.get("margin_temperature", raw::margin_c(device));
    gpu.thermal.shutdown_tlimit_c = fields.degrees(field::SHUTDOWN_TLIMIT);
    gpu.thermal.slowdown_tlimit_c = fields.degrees(field::SLOWDOWN_TLIMIT);
    gpu.thermal.memory_max_tlimit_c = fields.degrees(field::MEM_MAX_TLIMIT);
    gpu.thermal.gpu_max_tlimit_c = fields.degrees(field::GPU_MAX_TLIMIT);
    gpu.power.draw_w = ask.get("power_usage", device.power_usage()).map(|mw| f64::from(mw) / 1000.0);
    gpu.power.enforced_limit_w =
        ask.get("enforced_power_limit", device.enforced_power_limit()).map(|mw| f64::from(mw) / 1000.0);
    gpu.power.energy_j = ask.get("energy", device.total_energy_consumption()).map(|mj| mj as f64 / 1000.0);
    gpu.clocks.sm_mhz = ask.get("clock", device.clock_info(Clock::SM));
    gpu.clocks.memory_mhz = ask.get("clock", device.clock_info(Clock::Memory));
    gpu.clocks.graphics_mhz = ask.get("clock", device.clock_info(Clock::Graphics));
    gpu.clocks.pstate = ask
        .get("performance_state", device.performance_state())
        .map(|state| state.as_c())
        .filter(|state| *state <= 15);
    gpu.clocks.event_reasons_raw = ask.get("clocks_event_reasons", raw::event_reasons(device));
    gpu.clocks.event_reasons = gpu.clocks.event_reasons_raw.map(ClockReason::decode).unwrap_or_default();
    let use_of = ask.get("utilization", device.utilization_rates());
    gpu.utilization = Utilization {
        gpu_percent: use_of.as_ref().map(|rates| rates.gpu),
        memory_percent: use_of.as_ref().map(|rates| rates.memory),
    };
}

fn pcie(device: &Device<'_>, ask: &mut Asker, gpu: &mut GpuFacts, fields: &Fields, fresh: bool) {
    gpu.pcie.generation = ask.get("pcie_generation", device.current_pcie_link_gen());
    gpu.pcie.width = ask.get("pcie_width", device.current_pcie_link_width());
    gpu.pcie.replays = fields
        .get(field::PCIE_REPLAY)
        .or_else(|| ask.get("pcie_replay_counter", device.pcie_replay_counter()).map(u64::from));
    gpu.pcie.replay_rollovers = fields.get(field::PCIE_REPLAY_ROLLOVER);
    if fresh {
        gpu.pcie.counters = BTreeMap::new();
    }
    for (id, name) in field::PCIE_COUNTERS {
        if let Some(value) = fields.get(id) {
            match gpu.pcie.counters.get_mut(name) {
                Some(slot) => *slot = value,
                None => {
                    gpu.pcie.counters.insert(name.to_owned(), value);
                }
            }
        }
    }
}

fn modes(device: &Device<'_>, ask: &mut Asker, gpu: &mut GpuFacts) {
    let mig = ask.get("mig_mode", device.mig_mode());
    gpu.modes.mig = mig.as_ref().map(|mode| mode.current == 1);
    gpu.modes.mig_pending = mig.as_ref().map(|mode| mode.pending == 1);
    gpu.modes.persistence = ask.get("persistence_mode", device.is_in_persistent_mode());
    gpu.modes.compute = ask.get("compute_mode", device.compute_mode()).map(|mode| {
        match mode {
            ComputeMode::Default => "default",
            ComputeMode::ExclusiveThread => "exclusive_thread",
            ComputeMode::Prohibited => "prohibited",
            ComputeMode::ExclusiveProcess => "exclusive_process",
        }
        .to_owned()
    });
}

fn processes(device: &Device<'_>, ask: &mut Asker) -> Vec<GpuProcess> {
    let compute = ask.get("compute_processes", device.running_compute_processes()).unwrap_or_default();
    let graphics = ask.get("graphics_processes", device.running_graphics_processes()).unwrap_or_default();
    let entry = |kind: &str, process: &ProcessInfo| GpuProcess {
        pid: process.pid,
        // A process that has just ended has no name any more; that is no failure of the library.
        name: device.nvml().sys_process_name(process.pid, 256).ok().filter(|name| !name.is_empty()),
        memory_mib: match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes / MIB),
            UsedGpuMemory::Unavailable => None,
        },
        kind: kind.to_owned(),
    };
    compute
        .iter()
        .map(|process| entry("compute", process))
        .chain(graphics.iter().map(|process| entry("graphics", process)))
        .take(MAX_PROCESSES)
        .collect()
}
