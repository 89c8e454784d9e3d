//! Copies and fills. All are done when the call returns; the forms without a stream also wait in virtual time.

use std::ffi::c_void;
use std::sync::atomic::Ordering::Acquire;

use super::call;
use crate::driver::{Driver, context_device};
use crate::error::{Error, Result};
use crate::launch::{Place, copy, set};

/// Copies in `stream`; a null `stream` with `wait` is the synchronous form.
fn go(driver: &Driver, stream: *mut c_void, wait: bool, to: Place, from: Place, bytes: usize) -> Result<()> {
    let stream = driver.stream(stream)?;
    copy(driver, &stream, to, from, bytes as u64)?;
    if wait {
        driver.timeline.wait(stream.done_ps.load(Acquire));
    }
    Ok(())
}

const NULL: *mut c_void = std::ptr::null_mut();

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> u32 {
    call("cuMemcpyHtoD_v2", None, |d| {
        go(d, NULL, true, Place::Device(to), Place::Host(from.cast_mut().cast()), bytes)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    stream: *mut c_void,
) -> u32 {
    call("cuMemcpyHtoDAsync_v2", None, |d| {
        go(d, stream, false, Place::Device(to), Place::Host(from.cast_mut().cast()), bytes)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> u32 {
    call("cuMemcpyDtoH_v2", None, |d| go(d, NULL, true, Place::Host(to.cast()), Place::Device(from), bytes))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    bytes: usize,
    stream: *mut c_void,
) -> u32 {
    call("cuMemcpyDtoHAsync_v2", None, |d| {
        go(d, stream, false, Place::Host(to.cast()), Place::Device(from), bytes)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> u32 {
    call("cuMemcpyDtoD_v2", None, |d| go(d, NULL, true, Place::Device(to), Place::Device(from), bytes))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: *mut c_void) -> u32 {
    call("cuMemcpyDtoDAsync_v2", None, |d| {
        go(d, stream, false, Place::Device(to), Place::Device(from), bytes)
    })
}

/// An address of any kind: device memory if a GPU owns it.
fn place(driver: &Driver, address: u64) -> Place {
    match driver.owner(address) {
        Some(_) => Place::Device(address),
        None => Place::Host(std::ptr::with_exposed_provenance_mut(address as usize)),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy(to: u64, from: u64, bytes: usize) -> u32 {
    call("cuMemcpy", None, |d| go(d, NULL, true, place(d, to), place(d, from), bytes))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: *mut c_void) -> u32 {
    call("cuMemcpyAsync", None, |d| go(d, stream, false, place(d, to), place(d, from), bytes))
}

/// The contexts must be those of the addresses.
fn peer(
    driver: &Driver,
    stream: *mut c_void,
    wait: bool,
    (to, to_context): (u64, *mut c_void),
    (from, from_context): (u64, *mut c_void),
    bytes: usize,
) -> Result<()> {
    for (address, context) in [(to, to_context), (from, from_context)] {
        let owner = driver.owner(address).ok_or(Error::INVALID_VALUE)?.index;
        if context_device(driver, context)? != Some(owner) {
            return Err(Error::INVALID_CONTEXT);
        }
    }
    go(driver, stream, wait, Place::Device(to), Place::Device(from), bytes)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyPeer(
    to: u64,
    to_context: *mut c_void,
    from: u64,
    from_context: *mut c_void,
    bytes: usize,
) -> u32 {
    call("cuMemcpyPeer", None, |d| peer(d, NULL, true, (to, to_context), (from, from_context), bytes))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyPeerAsync(
    to: u64,
    to_context: *mut c_void,
    from: u64,
    from_context: *mut c_void,
    bytes: usize,
    stream: *mut c_void,
) -> u32 {
    call("cuMemcpyPeerAsync", None, |d| peer(d, stream, false, (to, to_context), (from, from_context), bytes))
}

fn fill(
    driver: &Driver,
    stream: *mut c_void,
    wait: bool,
    to: u64,
    value: u32,
    size: u64,
    count: usize,
) -> Result<()> {
    let stream = driver.stream(stream)?;
    driver.device(stream.device)?;
    set(driver, &stream, to, value, size, count as u64)?;
    if wait {
        driver.timeline.wait(stream.done_ps.load(Acquire));
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8_v2(to: u64, value: u8, count: usize) -> u32 {
    call("cuMemsetD8_v2", None, |d| fill(d, NULL, true, to, value.into(), 1, count))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD16_v2(to: u64, value: u16, count: usize) -> u32 {
    call("cuMemsetD16_v2", None, |d| fill(d, NULL, true, to, value.into(), 2, count))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD32_v2(to: u64, value: u32, count: usize) -> u32 {
    call("cuMemsetD32_v2", None, |d| fill(d, NULL, true, to, value, 4, count))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: *mut c_void) -> u32 {
    call("cuMemsetD8Async", None, |d| fill(d, stream, false, to, value.into(), 1, count))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: *mut c_void) -> u32 {
    call("cuMemsetD16Async", None, |d| fill(d, stream, false, to, value.into(), 2, count))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: *mut c_void) -> u32 {
    call("cuMemsetD32Async", None, |d| fill(d, stream, false, to, value, 4, count))
}
