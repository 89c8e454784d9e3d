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

/// Lets `ns` of virtual time pass in a stream of the calling thread's current GPU.
pub fn busy(stream: *mut c_void, ns: u64) -> Result<()> {
    type Busy = unsafe extern "C" fn(*mut c_void, u64) -> u32;
    // SAFETY: the signature is that of `tests/sim/cuda/src/api/collective.rs`.
    let call = unsafe { library()?.get::<Busy>(b"whetstone_sim_collective\0") };
    let call = call.map_err(|_| Code::UnhandledCudaError)?;
    // SAFETY: a stream handle of the caller's, which the driver checks.
    if unsafe { call(stream, ns) } == 0 { Ok(()) } else { Err(Code::UnhandledCudaError) }
}
