//! What every call does first and last: is the library initialised, which GPU, does the call hang, where to write.

use std::ffi::{c_char, c_uint};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use nvml_wrapper_sys::bindings::*;
use whetstone_scenario::{Fault, Gpu, Sim};

/// The error side holds an NVML code.
pub type Answer = Result<(), nvmlReturn_t>;

pub const SUCCESS: nvmlReturn_t = nvmlReturn_enum_NVML_SUCCESS;
pub const UNINITIALIZED: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_UNINITIALIZED;
pub const INVALID_ARGUMENT: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
pub const NOT_SUPPORTED: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED;
pub const NOT_FOUND: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_NOT_FOUND;
pub const INSUFFICIENT_SIZE: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;
pub const TIMEOUT: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_TIMEOUT;
pub const GPU_IS_LOST: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST;
pub const VERSION_MISMATCH: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
pub const UNKNOWN: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_UNKNOWN;

/// Successful inits not yet shut down.
static USERS: AtomicUsize = AtomicUsize::new(0);

/// Handles are numbers, not addresses: a caller that passes anything else gets an error, not a crash.
const FIRST_HANDLE: usize = 0x5157_0100;

pub fn handle(index: usize) -> nvmlDevice_t {
    std::ptr::without_provenance_mut(FIRST_HANDLE + index)
}

pub fn code(answer: Answer) -> nvmlReturn_t {
    answer.err().unwrap_or(SUCCESS)
}

/// Opens the blade and counts one more user.
pub fn init(call: &str) -> nvmlReturn_t {
    let Ok(sim) = Sim::shared() else { return UNKNOWN };
    sim.tick();
    sim.hang_if_planted(None, "nvml", call);
    if sim.blade().faults.contains(&Fault::NvmlVersionMismatch) {
        return nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    }
    USERS.fetch_add(1, SeqCst);
    SUCCESS
}

pub fn shutdown() -> nvmlReturn_t {
    match USERS.fetch_update(SeqCst, SeqCst, |users| users.checked_sub(1)) {
        Ok(_) => SUCCESS,
        Err(_) => UNINITIALIZED,
    }
}

/// A call about the whole blade.
pub fn system(call: &str, body: impl FnOnce(&'static Sim) -> Answer) -> nvmlReturn_t {
    let Ok(sim) = Sim::shared() else { return UNKNOWN };
    if USERS.load(SeqCst) == 0 {
        return UNINITIALIZED;
    }
    sim.tick();
    sim.hang_if_planted(None, "nvml", call);
    code(body(sim))
}

/// A call about one GPU.
pub fn device(device: nvmlDevice_t, call: &str, body: impl FnOnce(Gpu<'static>) -> Answer) -> nvmlReturn_t {
    system(call, |sim| {
        let gpu = gpu(sim, device)?;
        present(gpu, call)?;
        body(gpu)
    })
}

pub fn gpu(sim: &'static Sim, device: nvmlDevice_t) -> Result<Gpu<'static>, nvmlReturn_t> {
    device.addr().checked_sub(FIRST_HANDLE).and_then(|index| sim.gpu(index)).ok_or(INVALID_ARGUMENT)
}

/// Hangs if that is planted; fails if the GPU has fallen off the bus.
pub fn present(gpu: Gpu<'_>, call: &str) -> Answer {
    gpu.sim().hang_if_planted(Some(gpu.index), "nvml", call);
    if gpu.lost() { Err(GPU_IS_LOST) } else { Ok(()) }
}

/// Writes `value` where the caller wants it.
///
/// # Safety
/// `to` is null or valid for a write of `T`, as nvml.h asks of the caller.
pub unsafe fn put<T>(to: *mut T, value: T) -> Answer {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and valid for a write by this function's contract.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// Writes a C string of at most `length` bytes, its end included.
///
/// # Safety
/// `to` is null or valid for writes of `length` bytes.
pub unsafe fn text(to: *mut c_char, length: c_uint, text: &str) -> Answer {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: `to` holds `length` bytes by this function's contract, and the text with its end is no longer.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}

/// Checks the version word at the head of a versioned struct: `sizeof | version << 24`.
///
/// # Safety
/// `at` is null or points to a readable `u32`.
pub unsafe fn version<T>(at: *const T, version: u32) -> Answer {
    if at.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and every versioned struct begins with its version word.
    let told = unsafe { at.cast::<u32>().read_unaligned() };
    if told == size_of::<T>() as u32 | version << 24 { Ok(()) } else { Err(VERSION_MISMATCH) }
}

/// Copies ASCII into a fixed array of C characters, ended by a zero.
pub fn chars<const N: usize>(text: &str) -> [c_char; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().take(N.saturating_sub(1)).zip(text.bytes()) {
        *to = from as c_char;
    }
    out
}

/// Exports functions about one GPU: `fn nvmlDeviceGetX(gpu, argument: type, ...) { body }`, where the body is an
/// [`Answer`] and runs with the GPU present.
macro_rules! export {
    ($(fn $name:ident($gpu:ident $(, $arg:ident: $type:ty)*) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(device: nvml_wrapper_sys::bindings::nvmlDevice_t $(, $arg: $type)*)
            -> nvml_wrapper_sys::bindings::nvmlReturn_t {
            $crate::call::device(device, stringify!($name), |$gpu| {
                // SAFETY: the body writes where the caller's pointers say, and those are valid as nvml.h asks.
                unsafe { $body }
            })
        }
    )*};
}
pub(crate) use export;
