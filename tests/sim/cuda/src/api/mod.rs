//! The exported functions. Each counts time-bound faults, hangs if that is planted, and turns the result into a code.

mod collective;
mod context;
mod copy;
mod device;
mod event;
mod memory;
mod module;

use std::ffi::{c_char, c_int, c_void};

use crate::driver::{self, Driver};
use crate::error::{Error, Result, texts};

/// Runs one call about `device` (the current context's if `None`).
fn call(name: &str, device: Option<usize>, body: impl FnOnce(&'static Driver) -> Result<()>) -> u32 {
    let outcome = driver::get().and_then(|driver| {
        driver.sim.tick();
        driver.sim.hang_if_planted(device.or_else(driver::current), "cuda", name);
        body(driver)
    });
    code(outcome)
}

fn code(outcome: Result<()>) -> u32 {
    match outcome {
        Ok(()) => 0,
        Err(Error(code)) => code,
    }
}

/// Writes a result through the caller's pointer.
fn put<T>(to: *mut T, value: T) -> Result<()> {
    if to.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: not null; that it points to a `T` is what the C interface asks of the caller.
    unsafe { to.write(value) };
    Ok(())
}

/// Writes to a result that the caller may not want.
fn put_if<T>(to: *mut T, value: T) {
    if !to.is_null() {
        // SAFETY: as in `put`.
        unsafe { to.write(value) };
    }
}

fn index(device: c_int) -> usize {
    usize::try_from(device).unwrap_or(usize::MAX)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(flags: u32) -> u32 {
    if flags != 0 {
        return Error::INVALID_VALUE.0;
    }
    let outcome = driver::init().and_then(|()| driver::get()).map(|driver| {
        driver.sim.tick();
        driver.sim.hang_if_planted(None, "cuda", "cuInit");
    });
    code(outcome)
}

/// Works before `cuInit`, as with the real driver.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> u32 {
    let cuda = whetstone_scenario::Sim::shared().map(|sim| sim.blade().cuda);
    code(cuda.map_err(|_| Error::NO_DEVICE).and_then(|cuda| put(version, cuda)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: u32, text: *mut *const c_char) -> u32 {
    let found = texts(error).map(|(name, _)| name.as_ptr().cast());
    put_if(text, found.unwrap_or(std::ptr::null()));
    if found.is_some() { 0 } else { Error::INVALID_VALUE.0 }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: u32, text: *mut *const c_char) -> u32 {
    let found = texts(error).map(|(_, words)| words.as_ptr().cast());
    put_if(text, found.unwrap_or(std::ptr::null()));
    if found.is_some() { 0 } else { Error::INVALID_VALUE.0 }
}

/// NVRTC asks for it and crashes where it is missing; no table is known.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetExportTable(table: *mut *const c_void, _id: *const c_void) -> u32 {
    put_if(table, std::ptr::null());
    Error::NOT_FOUND.0
}

/// Symbols are found by the dynamic linker here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress_v2(
    _symbol: *const c_char,
    function: *mut *mut c_void,
    _version: c_int,
    _flags: u64,
    status: *mut c_int,
) -> u32 {
    const SYMBOL_NOT_FOUND: c_int = 1;
    put_if(function, std::ptr::null_mut());
    put_if(status, SYMBOL_NOT_FOUND);
    Error::NOT_FOUND.0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuProfilerStart() -> u32 {
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuProfilerStop() -> u32 {
    0
}
