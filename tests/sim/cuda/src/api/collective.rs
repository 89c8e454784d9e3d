//! For the simulated NCCL only: its work takes virtual time in a stream, which this library keeps.

use std::ffi::c_void;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

use super::{call, put};
use crate::timeline::Engine;

/// When an operation that is put into the stream now can start, ps.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn whetstone_sim_collective_start(stream: *mut c_void, start_ps: *mut u64) -> u32 {
    call("whetstone_sim_collective_start", None, |driver| {
        let stream = driver.stream(stream)?;
        let engines = [(stream.device, Engine::ToPeer), (stream.device, Engine::FromPeer)];
        put(start_ps, driver.timeline.earliest(&engines, stream.done_ps.load(Acquire)))
    })
}

/// The stream's GPU is busy sending and receiving until then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn whetstone_sim_collective_end(stream: *mut c_void, end_ps: u64) -> u32 {
    call("whetstone_sim_collective_end", None, |driver| {
        let stream = driver.stream(stream)?;
        let engines = [(stream.device, Engine::ToPeer), (stream.device, Engine::FromPeer)];
        driver.timeline.occupy(&engines, end_ps);
        stream.done_ps.fetch_max(end_ps, AcqRel);
        Ok(())
    })
}
