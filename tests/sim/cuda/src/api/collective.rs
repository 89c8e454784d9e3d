//! For the simulated NCCL only: its work takes virtual time in a stream, which this library keeps.

use std::ffi::c_void;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

use super::call;
use crate::timeline::Engine;

/// The stream's GPU is busy sending and receiving for `ns`, after all that is in the stream already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn whetstone_sim_collective(stream: *mut c_void, ns: u64) -> u32 {
    call("whetstone_sim_collective", None, |driver| {
        let stream = driver.stream(stream)?;
        let engines = [(stream.device, Engine::ToPeer), (stream.device, Engine::FromPeer)];
        let end = driver.timeline.earliest(&engines, stream.done_ps.load(Acquire)) + ns * 1000;
        driver.timeline.occupy(&engines, end);
        stream.done_ps.fetch_max(end, AcqRel);
        Ok(())
    })
}
