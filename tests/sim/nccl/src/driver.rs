//! The simulated `libcuda.so.1` of this process: which GPU is current, and virtual time in a stream.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use libloading::Library;

use crate::{Code, Result};

fn library() -> Result<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    // SAFETY: the library that the program has loaded already, by its soname; its constructors have run.
    let opened = LIBRARY.get_or_init(|| unsafe { Library::new("libcuda.so.1") }.ok());
    opened.as_ref().ok_or(Code::UnhandledCudaError)
}

/// Place in the blade of the calling thread's current GPU.
pub fn current_gpu() -> Result<usize> {
    type GetDevice = unsafe extern "C" fn(*mut c_int) -> u32;
    let mut device: c_int = -1;
    // SAFETY: the driver's documented signature.
    let call = unsafe { library()?.get::<GetDevice>(b"cuCtxGetDevice\0") };
    let call = call.map_err(|_| Code::UnhandledCudaError)?;
    // SAFETY: a valid place for the answer.
    match unsafe { call(&mut device) } {
        0 => usize::try_from(device).map_err(|_| Code::UnhandledCudaError),
        _ => Err(Code::UnhandledCudaError),
    }
}

// Both are in `tests/sim/cuda/src/api/collective.rs`.
type Start = unsafe extern "C" fn(*mut c_void, *mut u64) -> u32;
type End = unsafe extern "C" fn(*mut c_void, u64) -> u32;

/// When an operation that is put into the stream now can start, in virtual ps.
pub fn start(stream: *mut c_void) -> Result<u64> {
    let mut start_ps = 0;
    // SAFETY: the function's own signature.
    let call = unsafe { library()?.get::<Start>(b"whetstone_sim_collective_start\0") };
    let call = call.map_err(|_| Code::UnhandledCudaError)?;
    // SAFETY: a stream handle of the caller's, which the driver checks, and a valid place for the answer.
    if unsafe { call(stream, &mut start_ps) } == 0 { Ok(start_ps) } else { Err(Code::UnhandledCudaError) }
}

/// The stream is busy until then.
pub fn busy_until(stream: *mut c_void, end_ps: u64) -> Result<()> {
    // SAFETY: the function's own signature.
    let call = unsafe { library()?.get::<End>(b"whetstone_sim_collective_end\0") };
    let call = call.map_err(|_| Code::UnhandledCudaError)?;
    // SAFETY: a stream handle of the caller's, which the driver checks.
    if unsafe { call(stream, end_ps) } == 0 { Ok(()) } else { Err(Code::UnhandledCudaError) }
}
