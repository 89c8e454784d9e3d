//! Devices and what they are.

use std::ffi::{c_char, c_int};

use whetstone_scenario::{Fault, Gpu};

use super::{call, index, put};
use crate::driver::Driver;
use crate::error::{Error, Result};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> u32 {
    call("cuDeviceGetCount", None, |driver| put(count, driver.devices.len() as c_int))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> u32 {
    call("cuDeviceGet", Some(index(ordinal)), |driver| {
        driver.gpu(index(ordinal))?;
        put(device, ordinal)
    })
}

/// Writes `text` and a NUL into `length` bytes, cut where it does not fit.
fn put_text(to: *mut c_char, length: c_int, text: &str) -> Result<()> {
    let room = usize::try_from(length).unwrap_or(0).checked_sub(1).ok_or(Error::INVALID_VALUE)?;
    if to.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    let bytes = &text.as_bytes()[..text.len().min(room)];
    // SAFETY: at most `length` bytes of the caller's buffer.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast::<u8>(), bytes.len());
        to.add(bytes.len()).write(0);
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> u32 {
    call("cuDeviceGetName", Some(index(device)), |driver| {
        put_text(name, length, &driver.gpu(index(device))?.sku().name)
    })
}

fn uuid(driver: &Driver, to: *mut [u8; 16], device: c_int) -> Result<()> {
    put(to, driver.gpu(index(device))?.scenario.uuid_bytes())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid(to: *mut [u8; 16], device: c_int) -> u32 {
    call("cuDeviceGetUuid", Some(index(device)), |driver| uuid(driver, to, device))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(to: *mut [u8; 16], device: c_int) -> u32 {
    call("cuDeviceGetUuid_v2", Some(index(device)), |driver| uuid(driver, to, device))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> u32 {
    call("cuDeviceTotalMem_v2", Some(index(device)), |driver| {
        put(bytes, (driver.gpu(index(device))?.sku().hbm_mib << 20) as usize)
    })
}

/// `dddd:bb:dd.f` in NVIDIA's form: upper case, function 0 said.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetPCIBusId(text: *mut c_char, length: c_int, device: c_int) -> u32 {
    call("cuDeviceGetPCIBusId", Some(index(device)), |driver| {
        put_text(text, length, &driver.gpu(index(device))?.scenario.pci.to_ascii_uppercase())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetByPCIBusId(device: *mut c_int, text: *const c_char) -> u32 {
    call("cuDeviceGetByPCIBusId", None, |driver| {
        if text.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: a NUL-terminated string, as the interface asks.
        let wanted = unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().to_ascii_lowercase();
        let same =
            |gpu: &Gpu<'_>| gpu.scenario.pci == wanted || gpu.scenario.pci.split('.').next() == Some(&wanted);
        let found = driver.sim.gpus().find(same).ok_or(Error::INVALID_DEVICE)?;
        put(device, found.index as c_int)
    })
}

/// `CUdevice_attribute`, those that a test or cudarc may ask; others are 0.
fn attribute(gpu: Gpu<'_>, which: u32) -> c_int {
    let sku = gpu.sku();
    let (domain, bus, slot, _) = gpu.scenario.pci_numbers();
    let value: u64 = match which {
        1 => 1024,                                               // threads per block
        2 | 3 => 1024,                                           // block dimensions x, y
        4 => 64,                                                 // z
        5 => (1 << 31) - 1,                                      // grid dimensions x
        6 | 7 => 65_535,                                         // y, z
        8 => 48 * 1024,                                          // shared memory per block
        9 => 64 * 1024,                                          // constant memory
        10 => 32,                                                // warp size
        12 => 65_536,                                            // registers per block
        13 => u64::from(sku.max_sm_clock_mhz) * 1000,            // clock, kHz
        15 | 31 => 1,                                            // overlap of copies, concurrent kernels
        16 => sku.sms.into(),                                    // multiprocessors
        19 => 1,                                                 // can map host memory
        32 => u64::from(!gpu.faults().contains(&Fault::EccOff)), // ECC
        33 => bus.into(),
        34 => slot.into(),
        36 => u64::from(sku.memory_clock_mhz) * 1000, // memory clock, kHz
        37 => sku.memory_bus_bits.into(),
        38 => 50 << 20, // L2 cache, H100's size for all
        39 => 2048,     // threads per multiprocessor
        40 => 3,        // copy engines
        41 => 1,        // unified addressing
        50 => domain.into(),
        75 => sku.compute_capability.0.into(),
        76 => sku.compute_capability.1.into(),
        81 => 228 * 1024, // shared memory per multiprocessor
        82 => 65_536,     // registers per multiprocessor
        97 => 227 * 1024, // shared memory per block, opted in
        _ => 0,
    };
    c_int::try_from(value).unwrap_or(c_int::MAX)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, which: u32, device: c_int) -> u32 {
    call("cuDeviceGetAttribute", Some(index(device)), |driver| {
        put(value, attribute(driver.gpu(index(device))?, which))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceComputeCapability(
    major: *mut c_int,
    minor: *mut c_int,
    device: c_int,
) -> u32 {
    call("cuDeviceComputeCapability", Some(index(device)), |driver| {
        let gpu = driver.gpu(index(device))?;
        put(major, attribute(gpu, 75))?;
        put(minor, attribute(gpu, 76))
    })
}

fn pair(driver: &Driver, device: c_int, peer: c_int) -> Result<bool> {
    let (gpu, other) = (driver.gpu(index(device))?, driver.gpu(index(peer))?);
    Ok(gpu.index != other.index && !gpu.lost() && !other.lost())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int) -> u32 {
    call("cuDeviceCanAccessPeer", Some(index(device)), |driver| put(can, pair(driver, device, peer)?.into()))
}

/// 1 performance rank, 2 access, 3 native atomics, 4 array access.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetP2PAttribute(
    value: *mut c_int,
    which: u32,
    device: c_int,
    peer: c_int,
) -> u32 {
    call("cuDeviceGetP2PAttribute", Some(index(device)), |driver| {
        let linked = pair(driver, device, peer)?;
        let nvlink =
            linked && driver.gpu(index(device))?.links_up() > 0 && driver.gpu(index(peer))?.links_up() > 0;
        let answer = match which {
            1 => c_int::from(!nvlink),
            2 | 4 => linked.into(),
            3 => nvlink.into(),
            _ => return Err(Error::INVALID_VALUE),
        };
        put(value, answer)
    })
}
