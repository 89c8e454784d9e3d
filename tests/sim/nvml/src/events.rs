//! Event sets: XIDs as they are raised.

use std::ffi::{c_uint, c_ulonglong};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::*;

use crate::call::{Answer, INVALID_ARGUMENT, TIMEOUT, export, handle, put, system};

/// Event sets of one process at most; each lives until it is freed.
const MAX_SETS: usize = 1024;
const FIRST_SET: usize = 0x5e7_0001;
/// Between two looks at the shared state.
const LOOK: Duration = Duration::from_millis(20);
/// What a GPU can report here.
const SUPPORTED: u64 = nvmlEventTypeXidCriticalError as u64;

#[derive(Clone, Copy)]
struct Set {
    /// Bit i: GPU i is registered.
    gpus: u64,
    /// XIDs seen so far: number in the blade's list.
    next: u64,
}

/// Sets by number; a freed one is `None`. A poisoned lock cannot be: nothing panics while it is held.
static SETS: Mutex<Vec<Option<Set>>> = Mutex::new(Vec::new());

fn with<T>(set: nvmlEventSet_t, body: impl FnOnce(&mut Option<Set>) -> T) -> Result<T, nvmlReturn_t> {
    let mut sets = SETS.lock().map_err(|_| crate::call::UNKNOWN)?;
    let slot = set.addr().checked_sub(FIRST_SET).and_then(|i| sets.get_mut(i)).ok_or(INVALID_ARGUMENT)?;
    if slot.is_none() { Err(INVALID_ARGUMENT) } else { Ok(body(slot)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t {
    system("nvmlEventSetCreate", |sim| {
        let mut sets = SETS.lock().map_err(|_| crate::call::UNKNOWN)?;
        if sets.len() >= MAX_SETS {
            return Err(nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_RESOURCES);
        }
        let seen = sim.state().xid_count.load(std::sync::atomic::Ordering::Acquire);
        sets.push(Some(Set { gpus: 0, next: seen }));
        // SAFETY: the caller gives a writable handle.
        unsafe { put(set, std::ptr::without_provenance_mut(FIRST_SET + sets.len() - 1)) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    crate::call::code(with(set, |slot| *slot = None))
}

fn register(gpu: whetstone_scenario::Gpu<'_>, types: u64, set: nvmlEventSet_t) -> Answer {
    if types & !u64::from(nvmlEventTypeAll) != 0 {
        return Err(INVALID_ARGUMENT);
    }
    if types & !SUPPORTED != 0 && types & SUPPORTED == 0 {
        return Err(crate::call::NOT_SUPPORTED);
    }
    with(set, |slot| {
        if let Some(set) = slot {
            set.gpus |= 1 << gpu.index;
        }
    })
}

export! {
    fn nvmlDeviceGetSupportedEventTypes(_gpu, types: *mut c_ulonglong) { put(types, SUPPORTED) }
    fn nvmlDeviceRegisterEvents(gpu, types: c_ulonglong, set: nvmlEventSet_t) { register(gpu, types, set) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    system("nvmlEventSetWait_v2", |sim| {
        let until = Instant::now() + Duration::from_millis(timeout_ms.into());
        loop {
            sim.tick();
            let found = with(set, |slot| {
                let set = slot.as_mut()?;
                for (gpu, code) in sim.xids_from(set.next) {
                    set.next += 1;
                    if set.gpus & 1 << gpu != 0 {
                        return Some((gpu, code));
                    }
                }
                None
            })?;
            if let Some((gpu, code)) = found {
                let event = nvmlEventData_t {
                    device: handle(gpu),
                    eventType: SUPPORTED,
                    eventData: code.into(),
                    gpuInstanceId: u32::MAX,
                    computeInstanceId: u32::MAX,
                };
                // SAFETY: the caller gives a writable event.
                return unsafe { put(data, event) };
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TIMEOUT);
            }
            std::thread::sleep(left.min(LOOK));
        }
    })
}
