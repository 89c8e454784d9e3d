//! The library itself, the list of GPUs.

use std::ffi::{CStr, c_char, c_int, c_uint};

use nvml_wrapper_sys::bindings::*;
use whetstone_scenario::Fault;

use crate::call::{self, INVALID_ARGUMENT, NOT_FOUND, handle, present, put, system, text};

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    call::init("nvmlInit_v2")
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit() -> nvmlReturn_t {
    call::init("nvmlInit_v2")
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> nvmlReturn_t {
    call::init("nvmlInitWithFlags")
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    call::shutdown()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    let text: &CStr = match result {
        call::SUCCESS => c"Success",
        call::UNINITIALIZED => c"Uninitialized",
        INVALID_ARGUMENT => c"Invalid Argument",
        call::NOT_SUPPORTED => c"Not Supported",
        NOT_FOUND => c"Not Found",
        call::INSUFFICIENT_SIZE => c"Insufficient Size",
        call::TIMEOUT => c"Timeout",
        call::GPU_IS_LOST => c"GPU is lost",
        nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH => c"Driver/library version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: the caller gives `length` writable bytes.
    system("nvmlSystemGetDriverVersion", |sim| unsafe { text(version, length, &sim.blade().driver) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: the caller gives `length` writable bytes.
    system("nvmlSystemGetNVMLVersion", |sim| unsafe {
        text(version, length, &format!("{}.{}", sim.blade().cuda / 1000, sim.blade().driver))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion(version: *mut c_int) -> nvmlReturn_t {
    // SAFETY: the caller gives a writable int.
    system("nvmlSystemGetCudaDriverVersion", |sim| unsafe { put(version, sim.blade().cuda) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> nvmlReturn_t {
    // SAFETY: the caller gives a writable int.
    system("nvmlSystemGetCudaDriverVersion_v2", |sim| unsafe { put(version, sim.blade().cuda) })
}

/// Names only the process that [`Fault::MemoryBusy`] stands for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetProcessName(
    pid: c_uint,
    name: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    system("nvmlSystemGetProcessName", |_| {
        if pid != crate::memory::OTHER_PID {
            return Err(NOT_FOUND);
        }
        // SAFETY: the caller gives `length` writable bytes.
        unsafe { text(name, length, "python3") }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    // SAFETY: the caller gives a writable unsigned int.
    system("nvmlDeviceGetCount_v2", |sim| unsafe { put(count, sim.blade().gpus.len() as c_uint) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount(count: *mut c_uint) -> nvmlReturn_t {
    // SAFETY: handed through.
    unsafe { nvmlDeviceGetCount_v2(count) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    const CALL: &str = "nvmlDeviceGetHandleByIndex_v2";
    system(CALL, |sim| {
        present(sim.gpu(index as usize).ok_or(INVALID_ARGUMENT)?, CALL)?;
        // SAFETY: the caller gives a writable handle.
        unsafe { put(device, handle(index as usize)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex(
    index: c_uint,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // SAFETY: handed through.
    unsafe { nvmlDeviceGetHandleByIndex_v2(index, device) }
}

/// The handle of the GPU whose UUID, serial or PCI address `matches`.
unsafe fn find(
    call: &'static str,
    name: *const c_char,
    device: *mut nvmlDevice_t,
    matches: fn(&whetstone_scenario::GpuScenario, &str) -> bool,
) -> nvmlReturn_t {
    system(call, |sim| {
        if name.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: not null, and the caller gives a string that ends in a zero.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| INVALID_ARGUMENT)?;
        let gpu = sim.gpus().find(|gpu| matches(gpu.scenario, name)).ok_or(NOT_FOUND)?;
        present(gpu, call)?;
        // SAFETY: the caller gives a writable handle.
        unsafe { put(device, handle(gpu.index)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // SAFETY: handed through.
    unsafe {
        find("nvmlDeviceGetHandleByUUID", uuid, device, |gpu, name| gpu.uuid.eq_ignore_ascii_case(name))
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleBySerial(
    serial: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // SAFETY: handed through.
    unsafe { find("nvmlDeviceGetHandleBySerial", serial, device, |gpu, name| gpu.serial == name) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(
    bus_id: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // A domain may have four or eight digits.
    let matches = |gpu: &whetstone_scenario::GpuScenario, name: &str| {
        let name = name.to_ascii_lowercase();
        name.trim_start_matches('0') == gpu.pci.trim_start_matches('0')
    };
    // SAFETY: handed through.
    unsafe { find("nvmlDeviceGetHandleByPciBusId_v2", bus_id, device, matches) }
}

/// Both directions work over NVLink or PCIe, unless the pair has lost all its NVLinks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetP2PStatus(
    one: nvmlDevice_t,
    other: nvmlDevice_t,
    _index: c_uint,
    status: *mut c_uint,
) -> nvmlReturn_t {
    const CALL: &str = "nvmlDeviceGetP2PStatus";
    system(CALL, |sim| {
        let (one, other) = (call::gpu(sim, one)?, call::gpu(sim, other)?);
        present(one, CALL)?;
        present(other, CALL)?;
        // SAFETY: the caller gives a writable status. 0 = NVML_P2P_STATUS_OK.
        unsafe { put(status, 0) }
    })
}

/// 10 = same board or PCIe switch, 40 = same socket, 50 = across sockets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTopologyCommonAncestor(
    one: nvmlDevice_t,
    other: nvmlDevice_t,
    level: *mut c_uint,
) -> nvmlReturn_t {
    const CALL: &str = "nvmlDeviceGetTopologyCommonAncestor";
    system(CALL, |sim| {
        let (one, other) = (call::gpu(sim, one)?, call::gpu(sim, other)?);
        present(one, CALL)?;
        present(other, CALL)?;
        let same = one.scenario.numa == other.scenario.numa;
        // SAFETY: the caller gives a writable level.
        unsafe { put(level, if same { 40 } else { 50 }) }
    })
}

/// True if the GPU has `fault` planted.
pub fn has(gpu: whetstone_scenario::Gpu<'_>, fault: &Fault) -> bool {
    gpu.faults().contains(fault)
}
