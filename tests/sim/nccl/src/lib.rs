//! `libnccl.so.2` without a GPU: NCCL's C interface over a simulated blade.
//!
//! Ranks are threads of one process (or one thread with a group); they meet in a [`world`], and the last one to come
//! does the work for all on the simulated device memory, which is host memory. Reductions go in rank order. Time is
//! virtual and passes in the stream of each rank, by the rate of the SKU's NVLinks and what is planted on them.
//!
//! | planted | what a program sees |
//! |---|---|
//! | NCCL flip | one bit of one element of what that GPU contributes to every n-th operation is inverted |
//! | slow link, link down | longer virtual time |
//! | hang (`nccl`, or a function's name) | the call never returns |
//! | GPU lost | `ncclUnhandledCudaError` |
//!
//! Not modelled: ranks in several processes, errors in the middle of an operation, stream order against later kernels
//! of other streams (an operation is complete when the call, or the end of its group, returns).
#![allow(unsafe_code)]
#![allow(non_snake_case)]
// The C interface: what each pointer must be is NVIDIA's documentation of the function of that name.
#![allow(clippy::missing_safety_doc)]

mod driver;
mod group;
mod numbers;
mod time;
mod world;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::AcqRel};

use whetstone_scenario::Sim;

use crate::group::Operation;
use crate::numbers::{Kind, Reduction};
use crate::world::{Transfer, World};

/// `ncclResult_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    Success = 0,
    UnhandledCudaError = 1,
    SystemError = 2,
    InvalidArgument = 4,
    InvalidUsage = 5,
}

pub type Result<T> = std::result::Result<T, Code>;

fn code(outcome: Result<()>) -> u32 {
    outcome.err().unwrap_or(Code::Success) as u32
}

/// NCCL 2.27.3: 10000·major + 100·minor + patch.
const VERSION: c_int = 22703;

/// What an `ncclComm_t` points to.
pub struct Communicator {
    pub world: Arc<World>,
    pub rank: usize,
    /// Place of its GPU in the blade.
    pub gpu: usize,
    /// Operations so far, for the order among ranks and for planted flips.
    pub operations: AtomicU64,
}

impl Communicator {
    /// Number of the next operation, from 1.
    fn next(&self) -> u64 {
        self.operations.fetch_add(1, AcqRel) + 1
    }
}

/// `ncclUniqueId`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UniqueId {
    pub internal: [u8; 128],
}

fn sim() -> Result<&'static Sim> {
    Sim::shared().map_err(|_| Code::SystemError)
}

/// One call about a communicator's GPU: planted faults first.
fn call(name: &str, comm: *mut Communicator, body: impl FnOnce(&Communicator) -> Result<()>) -> u32 {
    let outcome = sim().and_then(|sim| {
        if comm.is_null() {
            return Err(Code::InvalidArgument);
        }
        // SAFETY: not null; that it came from this library and was not ended is what the C interface asks.
        let comm = unsafe { &*comm };
        sim.tick();
        sim.hang_if_planted(Some(comm.gpu), "nccl", name);
        if sim.gpu(comm.gpu).is_none_or(|gpu| gpu.lost()) {
            return Err(Code::UnhandledCudaError);
        }
        body(comm)
    });
    code(outcome)
}

fn put<T>(to: *mut T, value: T) -> Result<()> {
    if to.is_null() {
        return Err(Code::InvalidArgument);
    }
    // SAFETY: not null; that it points to a `T` is what the C interface asks of the caller.
    unsafe { to.write(value) };
    Ok(())
}

fn number(value: c_int) -> Result<usize> {
    usize::try_from(value).map_err(|_| Code::InvalidArgument)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> u32 {
    code(put(version, VERSION))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> u32 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut internal = [0; 128];
    internal[..8].copy_from_slice(&(COUNT.fetch_add(1, AcqRel) + 1).to_le_bytes());
    internal[8..12].copy_from_slice(&std::process::id().to_le_bytes());
    code(sim().and_then(|_| put(id, UniqueId { internal })))
}

/// Waits until all ranks of `id` have come.
fn init_rank(
    comm: *mut *mut Communicator,
    ranks: c_int,
    id: UniqueId,
    rank: c_int,
    gpu: usize,
) -> Result<()> {
    let (ranks, rank) = (number(ranks)?, number(rank)?);
    if ranks == 0 || rank >= ranks || sim()?.gpu(gpu).is_none() {
        return Err(Code::InvalidArgument);
    }
    let world = World::join(id.internal, ranks, rank, gpu)?;
    let made = Communicator { world, rank, gpu, operations: AtomicU64::new(0) };
    put(comm, Box::into_raw(Box::new(made)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRank(
    comm: *mut *mut Communicator,
    ranks: c_int,
    id: UniqueId,
    rank: c_int,
) -> u32 {
    let outcome = driver::current_gpu().and_then(|gpu| {
        sim()?.hang_if_planted(Some(gpu), "nccl", "ncclCommInitRank");
        init_rank(comm, ranks, id, rank, gpu)
    });
    code(outcome)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitAll(
    comms: *mut *mut Communicator,
    count: c_int,
    devices: *const c_int,
) -> u32 {
    let outcome = number(count).and_then(|n| {
        if comms.is_null() || n == 0 {
            return Err(Code::InvalidArgument);
        }
        let gpu = |i: usize| -> Result<usize> {
            // SAFETY: a list of `count` devices, or null for 0, 1, 2, …
            if devices.is_null() { Ok(i) } else { number(unsafe { *devices.add(i) }) }
        };
        let gpus: Vec<usize> = (0..n).map(gpu).collect::<Result<_>>()?;
        let known = sim()?;
        if gpus.iter().any(|g| known.gpu(*g).is_none()) {
            return Err(Code::InvalidArgument);
        }
        let world = World::complete(&gpus);
        for (rank, gpu) in gpus.into_iter().enumerate() {
            let made = Communicator { world: world.clone(), rank, gpu, operations: AtomicU64::new(0) };
            // SAFETY: room for `count` communicators, as the C interface asks.
            put(unsafe { comms.add(rank) }, Box::into_raw(Box::new(made)))?;
        }
        Ok(())
    });
    code(outcome)
}

fn end(comm: *mut Communicator) -> u32 {
    if comm.is_null() {
        return Code::InvalidArgument as u32;
    }
    // SAFETY: made by `Box::into_raw` in this library, ended once, as the C interface asks.
    drop(unsafe { Box::from_raw(comm) });
    Code::Success as u32
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(comm: *mut Communicator) -> u32 {
    end(comm)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(comm: *mut Communicator) -> u32 {
    end(comm)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommFinalize(comm: *mut Communicator) -> u32 {
    call("ncclCommFinalize", comm, |_| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommCount(comm: *mut Communicator, count: *mut c_int) -> u32 {
    call("ncclCommCount", comm, |c| put(count, c.world.ranks() as c_int))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommCuDevice(comm: *mut Communicator, device: *mut c_int) -> u32 {
    call("ncclCommCuDevice", comm, |c| put(device, c.gpu as c_int))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommUserRank(comm: *mut Communicator, rank: *mut c_int) -> u32 {
    call("ncclCommUserRank", comm, |c| put(rank, c.rank as c_int))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(comm: *mut Communicator, error: *mut u32) -> u32 {
    call("ncclCommGetAsyncError", comm, |_| put(error, Code::Success as u32))
}

fn text(error: u32) -> &'static CStr {
    match error {
        0 => c"no error",
        1 => c"unhandled cuda error",
        2 => c"unhandled system error (simulated NCCL: no simulated blade)",
        4 => c"invalid argument",
        5 => c"invalid usage",
        7 => c"NCCL operation in progress",
        _ => c"unknown result code",
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetErrorString(error: u32) -> *const c_char {
    text(error).as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetLastError(_comm: *mut Communicator) -> *const c_char {
    c"".as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupStart() -> u32 {
    group::start();
    Code::Success as u32
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupEnd() -> u32 {
    code(group::end())
}

/// A collective of this rank: takes its place in the order of the communicator.
#[allow(clippy::too_many_arguments)]
fn collective(
    name: &str,
    comm: *mut Communicator,
    stream: *mut c_void,
    kind: Kind,
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    data: u32,
) -> u32 {
    call(name, comm, |c| {
        if let Kind::Broadcast { root } | Kind::Reduce { root, .. } = kind
            && root >= c.world.ranks()
        {
            return Err(Code::InvalidArgument);
        }
        let transfer = Transfer::new(c, kind, from, to, count, data, stream)?;
        group::submit(Operation::Collective { world: c.world.clone(), number: c.next(), transfer })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllReduce(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    data: u32,
    op: u32,
    comm: *mut Communicator,
    stream: *mut c_void,
) -> u32 {
    match Reduction::new(op) {
        Ok(op) => collective("ncclAllReduce", comm, stream, Kind::AllReduce(op), from, to, count, data),
        Err(error) => error as u32,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclReduce(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    data: u32,
    op: u32,
    root: c_int,
    comm: *mut Communicator,
    stream: *mut c_void,
) -> u32 {
    match (Reduction::new(op), number(root)) {
        (Ok(op), Ok(root)) => {
            collective("ncclReduce", comm, stream, Kind::Reduce { op, root }, from, to, count, data)
        }
        (Err(error), _) | (_, Err(error)) => error as u32,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclReduceScatter(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    data: u32,
    op: u32,
    comm: *mut Communicator,
    stream: *mut c_void,
) -> u32 {
    match Reduction::new(op) {
        Ok(op) => {
            collective("ncclReduceScatter", comm, stream, Kind::ReduceScatter(op), from, to, count, data)
        }
        Err(error) => error as u32,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllGather(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    data: u32,
    comm: *mut Communicator,
    stream: *mut c_void,
) -> u32 {
    collective("ncclAllGather", comm, stream, Kind::AllGather, from, to, count, data)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclBroadcast(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    data: u32,
    root: c_int,
    comm: *mut Communicator,
    stream: *mut c_void,
) -> u32 {
    match number(root) {
        Ok(root) => {
            collective("ncclBroadcast", comm, stream, Kind::Broadcast { root }, from, to, count, data)
        }
        Err(error) => error as u32,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclSend(
    from: *const c_void,
    count: usize,
    data: u32,
    peer: c_int,
    comm: *mut Communicator,
    stream: *mut c_void,
) -> u32 {
    call("ncclSend", comm, |c| {
        let peer = number(peer).ok().filter(|p| *p < c.world.ranks()).ok_or(Code::InvalidArgument)?;
        let transfer =
            Transfer::new(c, Kind::Send { peer }, from, std::ptr::null_mut(), count, data, stream)?;
        group::submit(Operation::Send { world: c.world.clone(), number: c.next(), transfer, peer })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclRecv(
    to: *mut c_void,
    count: usize,
    data: u32,
    peer: c_int,
    comm: *mut Communicator,
    stream: *mut c_void,
) -> u32 {
    call("ncclRecv", comm, |c| {
        let peer = number(peer).ok().filter(|p| *p < c.world.ranks()).ok_or(Code::InvalidArgument)?;
        let transfer = Transfer::new(c, Kind::Receive { peer }, std::ptr::null(), to, count, data, stream)?;
        group::submit(Operation::Receive { world: c.world.clone(), transfer, peer })
    })
}
