//! What a GPU is: names, numbers, place.

use std::ffi::{c_char, c_int, c_uint};

use nvml_wrapper_sys::bindings::*;
use whetstone_scenario::{Fault, Gpu};

use crate::call::{INVALID_ARGUMENT, NOT_SUPPORTED, chars, export, put, text, version};
use crate::system::has;

fn pci(gpu: Gpu<'_>) -> nvmlPciInfo_t {
    let (domain, bus, device, function) = gpu.scenario.pci_numbers();
    nvmlPciInfo_t {
        busIdLegacy: chars(&format!("{domain:04X}:{bus:02X}:{device:02X}.{function:X}")),
        domain,
        bus,
        device,
        pciDeviceId: gpu.sku().pci_device << 16 | 0x10de,
        pciSubSystemId: gpu.sku().pci_subsystem << 16 | 0x10de,
        busId: chars(&format!("{domain:08X}:{bus:02X}:{device:02X}.{function:X}")),
    }
}

/// 64-bit fabric address: place in the rack, so that no two GPUs of a rack share it.
pub fn module(gpu: Gpu<'_>) -> u32 {
    gpu.scenario.slot as u32 + 1
}

export! {
    fn nvmlDeviceGetName(gpu, name: *mut c_char, length: c_uint) { text(name, length, &gpu.sku().name) }
    fn nvmlDeviceGetUUID(gpu, uuid: *mut c_char, length: c_uint) { text(uuid, length, &gpu.scenario.uuid) }
    fn nvmlDeviceGetSerial(gpu, serial: *mut c_char, length: c_uint) { text(serial, length, &gpu.scenario.serial) }
    fn nvmlDeviceGetBoardPartNumber(gpu, part: *mut c_char, length: c_uint) { text(part, length, &gpu.sku().board_part) }
    fn nvmlDeviceGetVbiosVersion(gpu, vbios: *mut c_char, length: c_uint) { text(vbios, length, &gpu.scenario.vbios) }
    fn nvmlDeviceGetInforomImageVersion(gpu, image: *mut c_char, length: c_uint) {
        text(image, length, &format!("SIM.{:04X}.00.01", gpu.sku().pci_device))
    }
    fn nvmlDeviceGetInforomVersion(gpu, object: c_uint, value: *mut c_char, length: c_uint) {
        let _ = gpu;
        // OEM, ECC, power.
        match object {
            0 => text(value, length, "2.1"),
            1 => text(value, length, "7.16"),
            _ => Err(NOT_SUPPORTED),
        }
    }
    fn nvmlDeviceValidateInforom(_gpu) { Ok(()) }
    fn nvmlDeviceGetGspFirmwareVersion(gpu, value: *mut c_char) { text(value, 80, &gpu.sim().blade().driver) }
    fn nvmlDeviceGetBrand(_gpu, brand: *mut c_uint) { put(brand, nvmlBrandType_enum_NVML_BRAND_NVIDIA) }
    fn nvmlDeviceGetArchitecture(gpu, architecture: *mut c_uint) { put(architecture, gpu.sku().architecture) }
    fn nvmlDeviceGetIndex(gpu, index: *mut c_uint) { put(index, gpu.index as c_uint) }
    fn nvmlDeviceGetMinorNumber(gpu, minor: *mut c_uint) { put(minor, gpu.index as c_uint) }
    fn nvmlDeviceGetModuleId(gpu, id: *mut c_uint) { put(id, module(gpu)) }
    fn nvmlDeviceGetBoardId(gpu, id: *mut c_uint) { put(id, 0x100 * (gpu.index as c_uint + 1)) }
    fn nvmlDeviceGetMultiGpuBoard(_gpu, multi: *mut c_uint) { put(multi, 0) }
    fn nvmlDeviceGetNumaNodeId(gpu, node: *mut c_uint) { put(node, gpu.scenario.numa) }
    fn nvmlDeviceGetBusType(_gpu, bus: *mut c_uint) { put(bus, 2) }
    fn nvmlDeviceGetNumGpuCores(gpu, cores: *mut c_uint) { put(cores, gpu.sku().sms * gpu.sku().cores_per_sm) }
    // As on hardware: these are answered for MIG instances only.
    fn nvmlDeviceGetAttributes_v2(_gpu, _attributes: *mut nvmlDeviceAttributes_t) { Err(NOT_SUPPORTED) }
    fn nvmlDeviceGetCudaComputeCapability(gpu, major: *mut c_int, minor: *mut c_int) {
        let (a, b) = gpu.sku().compute_capability;
        put(major, a as c_int)?;
        put(minor, b as c_int)
    }
    fn nvmlDeviceGetPciInfo_v3(gpu, info: *mut nvmlPciInfo_t) { put(info, pci(gpu)) }
    fn nvmlDeviceGetPciInfo_v2(gpu, info: *mut nvmlPciInfo_t) { put(info, pci(gpu)) }
    fn nvmlDeviceGetPciInfoExt(gpu, info: *mut nvmlPciInfoExt_v1_t) {
        version(info, 1)?;
        let plain = pci(gpu);
        put(info, nvmlPciInfoExt_v1_t {
            version: (*info).version,
            domain: plain.domain,
            bus: plain.bus,
            device: plain.device,
            pciDeviceId: plain.pciDeviceId,
            pciSubSystemId: plain.pciSubSystemId,
            baseClass: 0x03,
            subClass: 0x02,
            busId: plain.busId,
        })
    }
    fn nvmlDeviceGetPlatformInfo(gpu, info: *mut nvmlPlatformInfo_v2_t) {
        let fabric = gpu.sim().blade().fabric.as_ref().filter(|_| gpu.sku().rack_scale).ok_or(NOT_SUPPORTED)?;
        version(info, 2)?;
        let mut serial = [0; 16];
        for (to, from) in serial.iter_mut().take(15).zip(fabric.chassis_serial.bytes()) {
            *to = from;
        }
        put(info, nvmlPlatformInfo_v2_t {
            version: (*info).version,
            ibGuid: gpu.scenario.uuid_bytes(),
            chassisSerialNumber: serial,
            slotNumber: fabric.slot as u8,
            trayIndex: fabric.tray as u8,
            hostId: 1,
            // Switch-connected.
            peerType: 1,
            moduleId: module(gpu) as u8,
        })
    }
    fn nvmlDeviceGetC2cModeInfoV(gpu, info: *mut nvmlC2cModeInfo_v1_t) {
        if gpu.sku().rack_scale { put(info, nvmlC2cModeInfo_v1_t { isC2cEnabled: 1 }) } else { Err(NOT_SUPPORTED) }
    }
    fn nvmlDeviceGetPersistenceMode(gpu, mode: *mut c_uint) {
        put(mode, c_uint::from(!has(gpu, &Fault::PersistenceOff)))
    }
    fn nvmlDeviceGetComputeMode(_gpu, mode: *mut c_uint) { put(mode, 0) }
    fn nvmlDeviceGetDisplayMode(_gpu, mode: *mut c_uint) { put(mode, 0) }
    fn nvmlDeviceGetDisplayActive(_gpu, mode: *mut c_uint) { put(mode, 0) }
    fn nvmlDeviceGetMigMode(gpu, current: *mut c_uint, pending: *mut c_uint) {
        // Ada has none.
        if gpu.sku().architecture == 8 {
            return Err(NOT_SUPPORTED);
        }
        put(current, 0)?;
        put(pending, 0)
    }
    fn nvmlDeviceIsMigDeviceHandle(_gpu, mig: *mut c_uint) { put(mig, 0) }
    fn nvmlDeviceGetMaxMigDeviceCount(gpu, count: *mut c_uint) { put(count, if gpu.sku().architecture == 8 { 0 } else { 7 }) }
    fn nvmlDeviceOnSameBoard(_gpu, _other: nvmlDevice_t, same: *mut c_int) {
        if same.is_null() { Err(INVALID_ARGUMENT) } else { put(same, 0) }
    }
}
