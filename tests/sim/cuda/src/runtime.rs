//! The C++ side (`runtime/runtime.h`): finds kernels of the host build and runs blocks.

use std::ffi::{CString, c_char, c_void};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::handles::lock;

pub const FORMATS: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Dim {
    pub x: u32,
    pub y: u32,
    pub z: u32,
}

impl Dim {
    pub fn count(self) -> u64 {
        u64::from(self.x).saturating_mul(self.y.into()).saturating_mul(self.z.into())
    }
}

/// `WsFault`.
#[repr(C)]
pub struct Fault {
    pub sm: u32,
    pub thread: u32,
    pub element: u32,
    pub bit: u32,
    pub period: u32,
    pub tiles: *const AtomicU32,
}

/// `WsLaunch`.
#[repr(C)]
pub struct Launch {
    pub grid: Dim,
    pub block: Dim,
    pub sm_count: u32,
    pub fault_count: u32,
    pub faults: *const Fault,
    pub start_ns: u64,
    pub tick: f64,
    pub mma_rate: [f64; FORMATS],
    pub fma_rate: [f64; FORMATS],
    pub byte_rate: f64,
    pub sm_speed: *const f64,
    pub significand: [u32; FORMATS],
}

// SAFETY: the pointers are to arrays that outlive the launch (`run` borrows it) and are only read, but for the
// counters, which are atomics.
unsafe impl Sync for Launch {}

/// `WsCost`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Cost {
    pub mma_ops: [u64; FORMATS],
    pub fma_ops: [u64; FORMATS],
    pub bytes: u64,
    pub compute_ns: f64,
}

#[repr(C)]
pub struct Entry {
    opaque: [u8; 0],
}

#[repr(C)]
struct RawWorker {
    opaque: [u8; 0],
}

unsafe extern "C" {
    fn ws_worker_new() -> *mut RawWorker;
    fn ws_kernel_find(name: *const c_char) -> *const Entry;
    fn ws_kernel_parameters(kernel: *const Entry) -> u32;
    fn ws_block_run(
        worker: *mut RawWorker,
        kernel: *const Entry,
        parameters: *mut *mut c_void,
        launch: *const Launch,
        linear: u64,
        cost: *mut Cost,
    ) -> u32;
}

/// A kernel of the host build.
#[derive(Clone, Copy)]
pub struct Kernel {
    entry: *const Entry,
    pub parameters: u32,
}

// SAFETY: points to a static of the C++ side that is never written after the library was loaded.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// # Safety
    /// `worker` is live and held by this thread; what `arguments` and `launch` point to outlives the call.
    unsafe fn run_block(
        self,
        worker: &Worker,
        arguments: Arguments,
        launch: &Launch,
        block: u64,
    ) -> (u32, Cost) {
        let mut cost = Cost::default();
        // SAFETY: as the caller promises.
        let status = unsafe { ws_block_run(worker.0, self.entry, arguments.0, launch, block, &raw mut cost) };
        (status, cost)
    }
}

pub fn find(name: &str) -> Option<Kernel> {
    let name = CString::new(name).ok()?;
    // SAFETY: a NUL-terminated name.
    let entry = unsafe { ws_kernel_find(name.as_ptr()) };
    // SAFETY: a non-null result is a registered kernel.
    (!entry.is_null()).then(|| Kernel { entry, parameters: unsafe { ws_kernel_parameters(entry) } })
}

/// The stacks and shared memory for one block at a time.
struct Worker(*mut RawWorker);

// SAFETY: used by one thread at a time; the C++ side binds it to the thread only while a block runs.
unsafe impl Send for Worker {}

/// Idle workers; they keep their stacks.
static IDLE: Mutex<Vec<Worker>> = Mutex::new(Vec::new());

/// What went wrong with a launch on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Threads that wait for each other for ever, or a matrix instruction without all lanes.
    Kernel,
    NoMemory,
}

/// What all blocks did: operations, bytes, and ns of arithmetic by SM.
#[derive(Debug, Default)]
pub struct Total {
    pub ops: u64,
    pub bytes: u64,
    pub sm_ns: Vec<f64>,
}

/// Pointers to the kernel's arguments, as the caller of `cuLaunchKernel` gave them.
#[derive(Clone, Copy)]
pub struct Arguments(pub *mut *mut c_void);

// SAFETY: blocks only read through them, and the caller's arguments live until the (synchronous) launch returns.
unsafe impl Sync for Arguments {}

/// Runs all blocks, on as many threads as the host has processors. `alive` is called about every 50 ms.
pub fn run(
    kernel: Kernel,
    arguments: Arguments,
    launch: &Launch,
    alive: &(dyn Fn() + Sync),
) -> Result<Total, Broken> {
    let blocks = launch.grid.count();
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let total = Mutex::new(Total { sm_ns: vec![0.0; launch.sm_count as usize], ..Total::default() });
    let work = |reports: bool| -> Result<(), Broken> {
        let worker = lock(&IDLE).pop();
        // SAFETY: allocates; null is handled.
        let worker = worker.unwrap_or_else(|| Worker(unsafe { ws_worker_new() }));
        if worker.0.is_null() {
            failed.store(true, Relaxed);
            return Err(Broken::NoMemory);
        }
        let mut own = Total { sm_ns: vec![0.0; launch.sm_count as usize], ..Total::default() };
        let mut reported = std::time::Instant::now();
        let mut result = Ok(());
        while !failed.load(Relaxed) {
            let block = next.fetch_add(1, Relaxed);
            if block >= blocks {
                break;
            }
            let (kernel, arguments) = (&kernel, &arguments);
            // SAFETY: a live worker that only this thread holds; the launch and the arguments outlive the call.
            let (status, cost) = unsafe { kernel.run_block(&worker, *arguments, launch, block) };
            if status != 0 {
                failed.store(true, Relaxed);
                result = Err(if status == 2 { Broken::NoMemory } else { Broken::Kernel });
                break;
            }
            own.ops += cost.mma_ops.iter().chain(&cost.fma_ops).sum::<u64>();
            own.bytes += cost.bytes;
            own.sm_ns[(block % u64::from(launch.sm_count)) as usize] += cost.compute_ns;
            if reports && reported.elapsed().as_millis() > 50 {
                reported = std::time::Instant::now();
                alive();
            }
        }
        if result.is_ok() {
            lock(&IDLE).push(worker);
        }
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        total.ops += own.ops;
        total.bytes += own.bytes;
        total.sm_ns.iter_mut().zip(own.sm_ns).for_each(|(all, one)| *all += one);
        result
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(blocks).max(1);
    let results: Vec<Result<(), Broken>> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| work(false))).collect();
        let mut results = vec![work(true)];
        results.extend(others.into_iter().map(|t| t.join().unwrap_or(Err(Broken::Kernel))));
        results
    });
    results.into_iter().collect::<Result<(), Broken>>()?;
    Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner))
}
