//! Allocations, on the device and pinned on the host.

use std::alloc::Layout;
use std::ffi::{c_int, c_void};

use super::{call, put, put_if};
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::handles::lock;

/// Pinned memory comes in pages.
const PAGE: usize = 4096;

fn allocate(driver: &Driver, address: *mut u64, bytes: usize) -> Result<()> {
    let device = driver.current()?;
    let new = lock(device.memory()?).allocate(bytes as u64)?;
    let length = lock(device.memory()?).range(new)?.1;
    device.count_held(driver.gpu(device.index)?, length, true);
    put(address, new)
}

fn free(driver: &Driver, address: u64) -> Result<()> {
    if address == 0 {
        return Ok(());
    }
    let device = driver.owner(address).ok_or(Error::INVALID_VALUE)?;
    let length = lock(device.memory()?).free(address)?;
    device.count_held(driver.gpu(device.index)?, length, false);
    // A GPU that has failed says so here too.
    driver.device(device.index).map(|_| ())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> u32 {
    call("cuMemAlloc_v2", None, |driver| allocate(driver, address, bytes))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, bytes: usize, _stream: *mut c_void) -> u32 {
    call("cuMemAllocAsync", None, |driver| allocate(driver, address, bytes))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(address: u64) -> u32 {
    call("cuMemFree_v2", None, |driver| free(driver, address))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeAsync(address: u64, _stream: *mut c_void) -> u32 {
    call("cuMemFreeAsync", None, |driver| free(driver, address))
}

/// Total is the SKU's memory; free is what is backed by host memory and not allocated in this process. The rest
/// counts as in use.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    call("cuMemGetInfo_v2", None, |driver| {
        let device = driver.current()?;
        put_if(free, lock(device.memory()?).free_bytes() as usize);
        put_if(total, (driver.gpu(device.index)?.sku().hbm_mib << 20) as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetAddressRange_v2(base: *mut u64, bytes: *mut usize, address: u64) -> u32 {
    call("cuMemGetAddressRange_v2", None, |driver| {
        let device = driver.owner(address).ok_or(Error::NOT_FOUND)?;
        let (start, length) = lock(device.memory()?).range(address)?;
        put_if(base, start);
        put_if(bytes, length as usize);
        Ok(())
    })
}

fn pinned(driver: &Driver, pointer: *mut *mut c_void, bytes: usize) -> Result<()> {
    driver.current()?;
    if bytes == 0 {
        return Err(Error::INVALID_VALUE);
    }
    let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| Error::OUT_OF_MEMORY)?;
    // SAFETY: the layout is not empty.
    let new = unsafe { std::alloc::alloc_zeroed(layout) };
    if new.is_null() {
        return Err(Error::OUT_OF_MEMORY);
    }
    lock(&driver.pinned).insert(new.addr(), layout);
    put(pointer, new.cast())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, _flags: u32) -> u32 {
    call("cuMemHostAlloc", None, |driver| pinned(driver, pointer, bytes))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize) -> u32 {
    call("cuMemAllocHost_v2", None, |driver| pinned(driver, pointer, bytes))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(pointer: *mut c_void) -> u32 {
    call("cuMemFreeHost", None, |driver| {
        let layout = lock(&driver.pinned).remove(&pointer.addr()).ok_or(Error::INVALID_VALUE)?;
        // SAFETY: came from `alloc_zeroed` with this layout, and its entry is gone, so it is freed once.
        unsafe { std::alloc::dealloc(pointer.cast(), layout) };
        Ok(())
    })
}

/// All host memory can be copied from here; nothing needs to be registered.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostRegister_v2(pointer: *mut c_void, bytes: usize, _flags: u32) -> u32 {
    call("cuMemHostRegister_v2", None, |driver| {
        driver.current()?;
        if pointer.is_null() || bytes == 0 { Err(Error::INVALID_VALUE) } else { Ok(()) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostUnregister(pointer: *mut c_void) -> u32 {
    call("cuMemHostUnregister", None, |_| if pointer.is_null() { Err(Error::INVALID_VALUE) } else { Ok(()) })
}

/// 9 = device ordinal, 2 = memory type (1 host, 2 device): what code that takes any pointer asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuPointerGetAttribute(data: *mut c_void, which: c_int, address: u64) -> u32 {
    call("cuPointerGetAttribute", None, |driver| {
        let owner = driver.owner(address).ok_or(Error::INVALID_VALUE)?;
        match which {
            2 => put(data.cast::<u32>(), 2),
            9 => put(data.cast::<c_int>(), owner.index as c_int),
            _ => Err(Error::NOT_SUPPORTED),
        }
    })
}
