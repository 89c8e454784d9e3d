//! PCIe, NVLink, the NVLink fabric.

use std::ffi::{c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::*;
use whetstone_scenario::{Fault, Gpu};

use crate::call::{Answer, INVALID_ARGUMENT, NOT_SUPPORTED, VERSION_MISMATCH, chars, export, put};
use crate::system::has;

/// First PCI bus of the NVSwitches, as in the blade's sysfs tree.
const SWITCH_BUS: u32 = 0xf0;
/// Healthy: no flag raised, no configuration error. Each flag has two bits: 1 = true, 2 = false.
const HEALTHY: u32 = 0x1aa;

/// The link exists on this GPU.
fn link(gpu: Gpu<'_>, link: c_uint) -> Answer {
    match gpu.sku().nvlinks {
        0 => Err(NOT_SUPPORTED),
        links if link >= links => Err(INVALID_ARGUMENT),
        _ => Ok(()),
    }
}

fn fabric(gpu: Gpu<'_>) -> nvmlGpuFabricInfo_v3_t {
    let mut info = nvmlGpuFabricInfo_v3_t {
        version: 0,
        clusterUuid: [0; 16],
        status: 0,
        cliqueId: 0,
        state: NVML_GPU_FABRIC_STATE_NOT_SUPPORTED as u8,
        healthMask: 0,
        healthSummary: NVML_GPU_FABRIC_HEALTH_SUMMARY_NOT_SUPPORTED as u8,
    };
    // Registration with the fabric came with Hopper, health with NVLink 5.
    let (version, Some(domain)) = (gpu.sku().nvlink_version, &gpu.sim().blade().fabric) else { return info };
    if version < 4 {
        return info;
    }
    let degraded = has(gpu, &Fault::FabricDegraded);
    if version >= 5 {
        info.healthMask = if degraded { HEALTHY & !0b11 | 0b01 } else { HEALTHY };
        let summary = if degraded {
            NVML_GPU_FABRIC_HEALTH_SUMMARY_UNHEALTHY
        } else {
            NVML_GPU_FABRIC_HEALTH_SUMMARY_HEALTHY
        };
        info.healthSummary = summary as u8;
    } else if degraded {
        info.healthMask = 0b01;
        info.healthSummary = NVML_GPU_FABRIC_HEALTH_SUMMARY_UNHEALTHY as u8;
    }
    if has(gpu, &Fault::FabricIncomplete) {
        info.state = NVML_GPU_FABRIC_STATE_IN_PROGRESS as u8;
        return info;
    }
    info.state = NVML_GPU_FABRIC_STATE_COMPLETED as u8;
    if gpu.sku().rack_scale {
        info.cliqueId = domain.clique;
        let hex: Vec<u32> = domain.cluster_uuid.chars().filter_map(|c| c.to_digit(16)).collect();
        for (byte, pair) in info.clusterUuid.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = (pair[0] << 4 | pair[1]) as u8;
        }
    }
    info
}

/// MB/s of one PCIe lane, as NVML prints a link's speed.
fn lane_mbps(generation: u32) -> c_uint {
    match generation {
        1 => 2_500,
        2 => 5_000,
        3 => 8_000,
        4 => 16_000,
        5 => 32_000,
        _ => 64_000,
    }
}

export! {
    fn nvmlDeviceGetCurrPcieLinkGeneration(gpu, generation: *mut c_uint) { put(generation, gpu.pcie_now().0) }
    fn nvmlDeviceGetCurrPcieLinkWidth(gpu, width: *mut c_uint) { put(width, gpu.pcie_now().1) }
    fn nvmlDeviceGetMaxPcieLinkGeneration(gpu, generation: *mut c_uint) { put(generation, gpu.sku().pcie_gen) }
    fn nvmlDeviceGetGpuMaxPcieLinkGeneration(gpu, generation: *mut c_uint) { put(generation, gpu.sku().pcie_gen) }
    fn nvmlDeviceGetMaxPcieLinkWidth(gpu, width: *mut c_uint) { put(width, gpu.sku().pcie_width) }
    fn nvmlDeviceGetPcieReplayCounter(gpu, replays: *mut c_uint) { put(replays, gpu.pcie_replays() as c_uint) }
    fn nvmlDeviceGetPcieSpeed(gpu, speed: *mut c_uint) { put(speed, lane_mbps(gpu.pcie_now().0)) }
    // An enumeration of its own: 2500, 5000, ... MT/s per lane.
    fn nvmlDeviceGetPcieLinkMaxSpeed(gpu, speed: *mut c_uint) { put(speed, lane_mbps(gpu.sku().pcie_gen)) }
    fn nvmlDeviceGetPcieThroughput(gpu, counter: c_uint, kib_per_s: *mut c_uint) {
        if counter > 1 {
            return Err(INVALID_ARGUMENT);
        }
        put(kib_per_s, if gpu.health().loaded { 1_000_000 } else { 0 })
    }
    fn nvmlDeviceGetNvLinkState(gpu, number: c_uint, active: *mut c_uint) {
        link(gpu, number)?;
        put(active, c_uint::from(gpu.link_up(number)))
    }
    fn nvmlDeviceGetNvLinkVersion(gpu, number: c_uint, value: *mut c_uint) {
        link(gpu, number)?;
        put(value, gpu.sku().nvlink_version)
    }
    fn nvmlDeviceGetNvLinkCapability(gpu, number: c_uint, capability: c_uint, result: *mut c_uint) {
        link(gpu, number)?;
        // P2P, system memory access, P2P atomics, system memory atomics; no SLI bridge; valid.
        match capability {
            0..=3 | 5 => put(result, 1),
            4 => put(result, 0),
            _ => Err(INVALID_ARGUMENT),
        }
    }
    fn nvmlDeviceGetNvLinkRemoteDeviceType(gpu, number: c_uint, kind: *mut c_uint) {
        link(gpu, number)?;
        let up = gpu.link_up(number);
        put(kind, if up { nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH } else { nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_UNKNOWN })
    }
    fn nvmlDeviceGetNvLinkRemotePciInfo_v2(gpu, number: c_uint, pci: *mut nvmlPciInfo_t) {
        link(gpu, number)?;
        // A rack's switches are not on this blade's bus.
        let switches = gpu.sku().nvswitches;
        if switches == 0 || !gpu.link_up(number) {
            return Err(NOT_SUPPORTED);
        }
        let bus = SWITCH_BUS + number % switches;
        put(pci, nvmlPciInfo_t {
            busIdLegacy: chars(&format!("0000:{bus:02X}:00.0")),
            domain: 0,
            bus,
            device: 0,
            pciDeviceId: 0x22a3_10de,
            pciSubSystemId: 0,
            busId: chars(&format!("00000000:{bus:02X}:00.0")),
        })
    }
    fn nvmlDeviceGetNvLinkErrorCounter(gpu, number: c_uint, counter: c_uint, count: *mut c_ulonglong) {
        link(gpu, number)?;
        // NVLink 5 counts otherwise: see the field values.
        if gpu.sku().nvlink_version >= 5 {
            return Err(NOT_SUPPORTED);
        }
        match counter {
            nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_DL_CRC_FLIT => put(count, gpu.nvlink_errors(number)),
            // Every flit with a wrong checksum is sent again.
            nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_DL_REPLAY => put(count, gpu.nvlink_errors(number)),
            nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_DL_RECOVERY | nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_DL_CRC_DATA => put(count, 0),
            _ => Err(NOT_SUPPORTED),
        }
    }
    fn nvmlDeviceResetNvLinkErrorCounters(gpu, number: c_uint) { link(gpu, number).and(Err(NOT_SUPPORTED)) }
    fn nvmlDeviceGetGpuFabricInfo(gpu, info: *mut nvmlGpuFabricInfo_t) {
        let all = fabric(gpu);
        put(info, nvmlGpuFabricInfo_t { clusterUuid: all.clusterUuid, status: all.status, cliqueId: all.cliqueId, state: all.state })
    }
    fn nvmlDeviceGetGpuFabricInfoV(gpu, info: *mut nvmlGpuFabricInfo_v3_t) {
        if info.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        let (told, all) = (info.cast::<u32>().read_unaligned(), fabric(gpu));
        if told == size_of::<nvmlGpuFabricInfo_v3_t>() as u32 | 3 << 24 {
            put(info, nvmlGpuFabricInfo_v3_t { version: told, ..all })
        } else if told == size_of::<nvmlGpuFabricInfo_v2_t>() as u32 | 2 << 24 {
            put(info.cast(), nvmlGpuFabricInfo_v2_t {
                version: told,
                clusterUuid: all.clusterUuid,
                status: all.status,
                cliqueId: all.cliqueId,
                state: all.state,
                healthMask: all.healthMask,
            })
        } else {
            Err(VERSION_MISMATCH)
        }
    }
}
