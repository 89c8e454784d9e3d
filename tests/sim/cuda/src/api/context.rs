//! Contexts and streams. A device has one context, its primary one.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire};

use super::{call, index, put, put_if};
use crate::driver::{self, Driver, Stream, context_device, context_handle};
use crate::error::{Error, Result};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, device: c_int) -> u32 {
    call("cuDevicePrimaryCtxRetain", Some(index(device)), |driver| {
        driver.open(index(device))?;
        put(context, context_handle(Some(index(device))))
    })
}

/// The memory stays as it is until the process ends: other holders of the context may still use it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> u32 {
    call("cuDevicePrimaryCtxRelease_v2", Some(index(device)), |driver| driver.gpu(index(device)).map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxSetFlags_v2(device: c_int, _flags: u32) -> u32 {
    call("cuDevicePrimaryCtxSetFlags_v2", Some(index(device)), |driver| driver.gpu(index(device)).map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxGetState(
    device: c_int,
    flags: *mut u32,
    active: *mut c_int,
) -> u32 {
    call("cuDevicePrimaryCtxGetState", Some(index(device)), |driver| {
        driver.gpu(index(device))?;
        put_if(flags, 0);
        put_if(active, driver.devices[index(device)].opened.load(Acquire).into());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> u32 {
    call("cuCtxSetCurrent", None, |driver| {
        driver::set_current(context_device(driver, context)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut *mut c_void) -> u32 {
    call("cuCtxGetCurrent", None, |_| put(context, context_handle(driver::current())))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(device: *mut c_int) -> u32 {
    call("cuCtxGetDevice", None, |driver| put(device, driver.current()?.index as c_int))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetApiVersion(_context: *mut c_void, version: *mut u32) -> u32 {
    call("cuCtxGetApiVersion", None, |_| put(version, 3020))
}

/// All streams of the device are done: their virtual time has passed for the host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSynchronize() -> u32 {
    call("cuCtxSynchronize", None, |driver| {
        let device = driver.current()?;
        driver.timeline.wait(driver.timeline.last(device.index));
        Ok(())
    })
}

/// Ways of waiting, cache preferences, limits: nothing here depends on them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetFlags(_flags: u32) -> u32 {
    call("cuCtxSetFlags", None, |driver| driver.current().map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetLimit(_limit: u32, _value: usize) -> u32 {
    call("cuCtxSetLimit", None, |driver| driver.current().map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> u32 {
    call("cuCtxGetStreamPriorityRange", None, |driver| {
        driver.current()?;
        put_if(least, 0);
        put_if(greatest, 0);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxEnablePeerAccess(peer: *mut c_void, flags: u32) -> u32 {
    call("cuCtxEnablePeerAccess", None, |driver| {
        let device = driver.current()?;
        let peer = context_device(driver, peer)?.ok_or(Error::INVALID_CONTEXT)?;
        driver.device(peer)?;
        if flags != 0 {
            return Err(Error::INVALID_VALUE);
        }
        if peer == device.index {
            return Err(Error::INVALID_DEVICE);
        }
        let before = device.peers.fetch_or(1 << peer, AcqRel);
        if before >> peer & 1 == 1 { Err(Error::PEER_ACCESS_ALREADY_ENABLED) } else { Ok(()) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxDisablePeerAccess(peer: *mut c_void) -> u32 {
    call("cuCtxDisablePeerAccess", None, |driver| {
        let device = driver.current()?;
        let peer = context_device(driver, peer)?.ok_or(Error::INVALID_CONTEXT)?;
        let before = device.peers.fetch_and(!(1 << peer), AcqRel);
        if before >> peer & 1 == 1 { Ok(()) } else { Err(Error::PEER_ACCESS_NOT_ENABLED) }
    })
}

fn new_stream(driver: &Driver, stream: *mut *mut c_void) -> Result<()> {
    let device = driver.current()?.index;
    put(stream, driver.streams.add(Stream { device, done_ps: AtomicU64::new(0) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut *mut c_void, _flags: u32) -> u32 {
    call("cuStreamCreate", None, |driver| new_stream(driver, stream))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(
    stream: *mut *mut c_void,
    _flags: u32,
    _priority: c_int,
) -> u32 {
    call("cuStreamCreateWithPriority", None, |driver| new_stream(driver, stream))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: *mut c_void) -> u32 {
    call("cuStreamDestroy_v2", None, |driver| driver.streams.remove(stream).map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(stream: *mut c_void) -> u32 {
    let device = driver::get().ok().and_then(|d| d.stream(stream).ok().map(|s| s.device));
    call("cuStreamSynchronize", device, |driver| {
        let stream = driver.stream(stream)?;
        driver.device(stream.device)?;
        driver.timeline.wait(stream.done_ps.load(Acquire));
        Ok(())
    })
}

/// Work runs when it is issued, so a stream is always done.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamQuery(stream: *mut c_void) -> u32 {
    call("cuStreamQuery", None, |driver| {
        let stream = driver.stream(stream)?;
        driver.device(stream.device).map(|_| ())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitEvent(stream: *mut c_void, event: *mut c_void, _flags: u32) -> u32 {
    call("cuStreamWaitEvent", None, |driver| {
        let stream = driver.stream(stream)?;
        driver.device(stream.device)?;
        stream.done_ps.fetch_max(driver.events.get(event)?.at_ps.load(Acquire), AcqRel);
        Ok(())
    })
}
