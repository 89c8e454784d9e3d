//! Events: points of virtual time.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};

use super::{call, put};
use crate::driver::{Driver, Event};
use crate::error::{Error, Result};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut *mut c_void, _flags: u32) -> u32 {
    call("cuEventCreate", None, |driver| {
        let device = driver.current()?.index;
        put(event, driver.events.add(Event { device, at_ps: AtomicU64::new(0) }))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: *mut c_void) -> u32 {
    call("cuEventDestroy_v2", None, |driver| driver.events.remove(event).map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: *mut c_void, stream: *mut c_void) -> u32 {
    call("cuEventRecord", None, |driver| {
        let (event, stream) = (driver.events.get(event)?, driver.stream(stream)?);
        driver.device(stream.device)?;
        if event.device != stream.device {
            return Err(Error::INVALID_HANDLE);
        }
        // What was put into the stream is done then, but not before the host came to record.
        event.at_ps.store(stream.done_ps.load(Acquire).max(driver.timeline.host()), Release);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(event: *mut c_void) -> u32 {
    call("cuEventSynchronize", None, |driver| {
        let event = driver.events.get(event)?;
        driver.device(event.device)?;
        driver.timeline.wait(event.at_ps.load(Acquire));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(event: *mut c_void) -> u32 {
    call("cuEventQuery", None, |driver| {
        let event = driver.events.get(event)?;
        driver.device(event.device).map(|_| ())
    })
}

fn elapsed(driver: &Driver, ms: *mut f32, start: *mut c_void, end: *mut c_void) -> Result<()> {
    let (start, end) = (driver.events.get(start)?, driver.events.get(end)?);
    driver.device(start.device)?;
    let (start, end) = (start.at_ps.load(Acquire), end.at_ps.load(Acquire));
    if start == 0 || end == 0 {
        return Err(Error::INVALID_HANDLE);
    }
    put(ms, ((end as f64 - start as f64) / 1e9) as f32)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(ms: *mut f32, start: *mut c_void, end: *mut c_void) -> u32 {
    call("cuEventElapsedTime", None, |driver| elapsed(driver, ms, start, end))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(ms: *mut f32, start: *mut c_void, end: *mut c_void) -> u32 {
    call("cuEventElapsedTime_v2", None, |driver| elapsed(driver, ms, start, end))
}
