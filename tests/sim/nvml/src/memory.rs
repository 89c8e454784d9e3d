//! HBM, its errors and repairs, SRAM errors, processes.

use std::ffi::{c_uint, c_ulonglong};
use std::sync::atomic::Ordering::Relaxed;

use nvml_wrapper_sys::bindings::*;
use whetstone_scenario::{Fault, Gpu};

use crate::call::{Answer, INSUFFICIENT_SIZE, INVALID_ARGUMENT, NOT_SUPPORTED, export, put, version};
use crate::system::has;

/// The program that holds memory where [`Fault::MemoryBusy`] is planted.
pub const OTHER_PID: c_uint = 4711;
/// Held back by driver and firmware, MiB.
const RESERVED_MIB: u64 = 640;
/// Life-time errors before this boot: parts that were tested in a factory have seen some.
const OLD_CORRECTABLE: u64 = 2;
/// SRAM errors of a GPU over NVIDIA's own limit (more than four distinct ones per part).
const SRAM_ERRORS: u64 = 9;

fn memory(gpu: Gpu<'_>) -> nvmlMemory_v2_t {
    let total = gpu.sku().hbm_mib << 20;
    let reserved = RESERVED_MIB << 20;
    // The backed memory is what can be had; the rest counts as used.
    let free =
        gpu.backed_bytes().saturating_sub(gpu.state().allocated_bytes.load(Relaxed)).min(total - reserved);
    nvmlMemory_v2_t { version: 0, total, reserved, free, used: total - reserved - free }
}

pub fn ecc_on(gpu: Gpu<'_>) -> Answer {
    if has(gpu, &Fault::EccOff) { Err(NOT_SUPPORTED) } else { Ok(()) }
}

/// (corrected, uncorrected) in HBM.
pub fn dram_errors(gpu: Gpu<'_>, aggregate: bool) -> (u64, u64) {
    let old = if aggregate { OLD_CORRECTABLE } else { 0 };
    (gpu.ecc_correctable() + old, gpu.ecc_uncorrectable())
}

fn sram_errors(gpu: Gpu<'_>, aggregate: bool) -> u64 {
    if aggregate && has(gpu, &Fault::SramThreshold) { SRAM_ERRORS } else { 0 }
}

/// (corrected, uncorrected, pending, failure)
pub fn remapped(gpu: Gpu<'_>) -> (u32, u32, bool, bool) {
    let (pending, failure) = (has(gpu, &Fault::RemapPending), has(gpu, &Fault::RemapFailed));
    (0, u32::from(pending || failure), pending, failure)
}

fn pick(corrected: u64, uncorrected: u64, kind: c_uint) -> Result<u64, nvmlReturn_t> {
    match kind {
        nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_CORRECTED => Ok(corrected),
        nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED => Ok(uncorrected),
        _ => Err(INVALID_ARGUMENT),
    }
}

fn aggregate(counter: c_uint) -> Result<bool, nvmlReturn_t> {
    match counter {
        nvmlEccCounterType_enum_NVML_VOLATILE_ECC => Ok(false),
        nvmlEccCounterType_enum_NVML_AGGREGATE_ECC => Ok(true),
        _ => Err(INVALID_ARGUMENT),
    }
}

unsafe fn processes(gpu: Gpu<'_>, count: *mut c_uint, infos: *mut nvmlProcessInfo_t) -> Answer {
    if count.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    let held: u64 =
        gpu.faults().iter().map(|f| if let Fault::MemoryBusy { mib } = f { *mib << 20 } else { 0 }).sum();
    let here = c_uint::from(held > 0);
    // SAFETY: not null; the caller says in it how many entries `infos` holds.
    let room = unsafe { count.replace(here) };
    if here > room {
        return Err(INSUFFICIENT_SIZE);
    }
    if here == 0 {
        return Ok(());
    }
    let info = nvmlProcessInfo_t {
        pid: OTHER_PID,
        usedGpuMemory: held,
        gpuInstanceId: u32::MAX,
        computeInstanceId: u32::MAX,
    };
    // SAFETY: room for one entry at least.
    unsafe { put(infos, info) }
}

export! {
    fn nvmlDeviceGetMemoryInfo(gpu, info: *mut nvmlMemory_t) {
        let m = memory(gpu);
        put(info, nvmlMemory_t { total: m.total, free: m.free, used: m.used + m.reserved })
    }
    fn nvmlDeviceGetMemoryInfo_v2(gpu, info: *mut nvmlMemory_v2_t) {
        version(info, 2)?;
        put(info, nvmlMemory_v2_t { version: (*info).version, ..memory(gpu) })
    }
    fn nvmlDeviceGetBAR1MemoryInfo(gpu, info: *mut nvmlBAR1Memory_t) {
        let total = gpu.sku().bar1_mib << 20;
        put(info, nvmlBAR1Memory_t { bar1Total: total, bar1Free: total - (1 << 20), bar1Used: 1 << 20 })
    }
    fn nvmlDeviceGetMemoryBusWidth(gpu, bits: *mut c_uint) { put(bits, gpu.sku().memory_bus_bits) }
    fn nvmlDeviceGetEccMode(gpu, current: *mut c_uint, pending: *mut c_uint) {
        let on = c_uint::from(ecc_on(gpu).is_ok());
        put(current, on)?;
        put(pending, on)
    }
    fn nvmlDeviceGetDefaultEccMode(_gpu, mode: *mut c_uint) { put(mode, 1) }
    fn nvmlDeviceGetTotalEccErrors(gpu, kind: c_uint, counter: c_uint, count: *mut c_ulonglong) {
        ecc_on(gpu)?;
        let all = aggregate(counter)?;
        let (corrected, uncorrected) = dram_errors(gpu, all);
        put(count, pick(corrected, uncorrected + sram_errors(gpu, all), kind)?)
    }
    fn nvmlDeviceGetMemoryErrorCounter(gpu, kind: c_uint, counter: c_uint, location: c_uint, count: *mut c_ulonglong) {
        ecc_on(gpu)?;
        let all = aggregate(counter)?;
        let (corrected, uncorrected) = match location {
            nvmlMemoryLocation_enum_NVML_MEMORY_LOCATION_DRAM => dram_errors(gpu, all),
            nvmlMemoryLocation_enum_NVML_MEMORY_LOCATION_SRAM => (0, sram_errors(gpu, all)),
            // Since Ampere only these two are told.
            _ => return Err(NOT_SUPPORTED),
        };
        put(count, pick(corrected, uncorrected, kind)?)
    }
    fn nvmlDeviceGetSramEccErrorStatus(gpu, status: *mut nvmlEccSramErrorStatus_v1_t) {
        ecc_on(gpu)?;
        version(status, 1)?;
        let errors = sram_errors(gpu, true);
        put(status, nvmlEccSramErrorStatus_v1_t {
            version: (*status).version,
            aggregateUncParity: 0,
            aggregateUncSecDed: errors,
            aggregateCor: 0,
            volatileUncParity: 0,
            volatileUncSecDed: 0,
            volatileCor: 0,
            aggregateUncBucketL2: errors,
            aggregateUncBucketSm: 0,
            aggregateUncBucketPcie: 0,
            aggregateUncBucketMcu: 0,
            aggregateUncBucketOther: 0,
            bThresholdExceeded: c_uint::from(errors > 0),
        })
    }
    fn nvmlDeviceGetRemappedRows(
        gpu, corrected: *mut c_uint, uncorrected: *mut c_uint, is_pending: *mut c_uint, failed: *mut c_uint
    ) {
        let rows = remapped(gpu);
        put(corrected, rows.0)?;
        put(uncorrected, rows.1)?;
        put(is_pending, c_uint::from(rows.2))?;
        put(failed, c_uint::from(rows.3))
    }
    fn nvmlDeviceGetRowRemapperHistogram(gpu, values: *mut nvmlRowRemapperHistogramValues_t) {
        // Banks: one less with all its spare rows for a remap, none left in it for a failed one.
        let (.., pending, failed) = remapped(gpu);
        let banks = 640;
        put(values, nvmlRowRemapperHistogramValues_t {
            max: banks - u32::from(pending || failed),
            high: u32::from(pending && !failed),
            partial: 0,
            low: 0,
            none: u32::from(failed),
        })
    }
    // Pages were retired before Ampere; rows are remapped since.
    fn nvmlDeviceGetRetiredPages_v2(
        _gpu, _cause: c_uint, _count: *mut c_uint, _addresses: *mut c_ulonglong, _times: *mut c_ulonglong
    ) { Err(NOT_SUPPORTED) }
    fn nvmlDeviceGetRetiredPages(_gpu, _cause: c_uint, _count: *mut c_uint, _addresses: *mut c_ulonglong) { Err(NOT_SUPPORTED) }
    fn nvmlDeviceGetRetiredPagesPendingStatus(_gpu, _pending: *mut c_uint) { Err(NOT_SUPPORTED) }
    fn nvmlDeviceGetRepairStatus(gpu, status: *mut nvmlRepairStatus_t) {
        if gpu.sku().architecture < 9 {
            return Err(NOT_SUPPORTED);
        }
        version(status, 1)?;
        put(status, nvmlRepairStatus_t { version: (*status).version, bChannelRepairPending: 0, bTpcRepairPending: 0 })
    }
    fn nvmlDeviceGetComputeRunningProcesses_v3(gpu, count: *mut c_uint, infos: *mut nvmlProcessInfo_t) {
        processes(gpu, count, infos)
    }
    fn nvmlDeviceGetGraphicsRunningProcesses_v3(_gpu, count: *mut c_uint, _infos: *mut nvmlProcessInfo_t) { put(count, 0) }
    fn nvmlDeviceGetMPSComputeRunningProcesses_v3(_gpu, count: *mut c_uint, _infos: *mut nvmlProcessInfo_t) { put(count, 0) }
}
