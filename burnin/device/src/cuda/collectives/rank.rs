//! One rank: a thread with its GPU and its communicator.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use cudarc::nccl::{result as nccl, sys};
use whetstone_burnin::protocol::GpuTarget;
use whetstone_burnin::suite::Collective;

use super::data::{Data, WrongElement};
use crate::cuda::driver::{Buffer, Gpu};
use crate::cuda::errors::CudaError;

/// What all ranks have in common.
pub struct Plan {
    pub ranks: usize,
    pub id: sys::ncclUniqueId,
    pub operations: Vec<Collective>,
    pub repeats: u32,
    pub data: Arc<Data>,
    pub deadline: Instant,
    pub barrier: Barrier,
    /// Set by rank 0 before a barrier, read by all after it: no rank may go on where another one stops.
    pub stop: AtomicBool,
}

/// What a rank says.
pub enum Report {
    Doing(String),
    Finished {
        operation: Collective,
        seconds: Vec<f64>,
        wrong: Vec<WrongElement>,
        wrong_elements: u64,
        /// Results that were compared.
        checked: u32,
    },
    Ended,
    Failed(Failure),
}

pub enum Failure {
    Cuda(CudaError),
    Nccl { what: String, error: String },
}

impl From<CudaError> for Failure {
    fn from(error: CudaError) -> Failure {
        Failure::Cuda(error)
    }
}

/// A communicator. Ended without a word: cudarc's own would panic in `drop` if NCCL reports an error.
struct Communicator(sys::ncclComm_t);

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: made by ncclCommInitRank, ended once; errors at the end of a test change nothing.
        let _ = unsafe { nccl::comm_abort(self.0) };
    }
}

pub fn run(plan: &Plan, rank: usize, target: &GpuTarget, to: &Sender<(usize, Report)>) {
    let say = |report| {
        // The listener is gone only when the test has already ended.
        let _ = to.send((rank, report));
    };
    match Rank::start(plan, rank, target, &say).and_then(|r| r.all(&say)) {
        Ok(()) => say(Report::Ended),
        Err(failure) => say(Report::Failed(failure)),
    }
}

struct Rank<'p> {
    plan: &'p Plan,
    rank: usize,
    // The communicator goes before the GPU that it uses.
    communicator: Communicator,
    send: Buffer,
    receive: Buffer,
    gpu: Gpu,
}

fn check(what: &str, result: Result<nccl::NcclStatus, nccl::NcclError>) -> Result<(), Failure> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::Nccl { what: what.to_owned(), error: format!("{:?}", error.0) }),
    }
}

impl<'p> Rank<'p> {
    fn start(
        plan: &'p Plan,
        rank: usize,
        target: &GpuTarget,
        say: &dyn Fn(Report),
    ) -> Result<Rank<'p>, Failure> {
        say(Report::Doing("opening".to_owned()));
        let gpu = Gpu::open(target)?;
        let send = Buffer::from(&gpu, &plan.data.send(rank))?;
        let receive = Buffer::zeros(&gpu, plan.data.bytes())?;
        say(Report::Doing("making the communicator".to_owned()));
        let mut communicator = std::ptr::null_mut();
        gpu.check("bind context", gpu.context.bind_to_thread())?;
        // SAFETY: a valid place for the handle; this thread's current context is the rank's GPU.
        let made =
            unsafe { nccl::comm_init_rank(&mut communicator, plan.ranks as i32, plan.id, rank as i32) };
        check("ncclCommInitRank", made)?;
        Ok(Rank { plan, rank, communicator: Communicator(communicator), send, receive, gpu })
    }

    fn all(&self, say: &dyn Fn(Report)) -> Result<(), Failure> {
        for operation in self.plan.operations.iter().copied() {
            say(Report::Doing(operation.as_str().to_owned()));
            let (mut seconds, mut wrong, mut wrong_elements, mut checked) = (Vec::new(), Vec::new(), 0, 0);
            // The first repeat warms up: it is checked and not timed, unless it is the only one.
            for repeat in 0..=self.plan.repeats {
                if self.rank == 0 && Instant::now() >= self.plan.deadline {
                    self.plan.stop.store(true, Ordering::Release);
                }
                self.plan.barrier.wait();
                if self.plan.stop.load(Ordering::Acquire) {
                    break;
                }
                self.receive.clear(&self.gpu)?;
                // All start at once: waiting for a rank that is still clearing is not the collective's time.
                self.plan.barrier.wait();
                let before = self.gpu.mark()?;
                self.operation(operation)?;
                let after = self.gpu.mark()?;
                self.gpu.wait(operation.as_str())?;
                // None fetches its result while another one still works: that traffic would count as the collective's.
                self.plan.barrier.wait();
                if repeat > 0 {
                    seconds.push(self.gpu.seconds(&before, &after)?);
                }
                let got = self.receive.download(&self.gpu, 0, self.plan.data.received(operation))?;
                let (found, count) = self.plan.data.check(operation, self.rank, &got);
                wrong.extend(found);
                wrong_elements += count;
                checked += 1;
                say(Report::Doing(operation.as_str().to_owned()));
            }
            wrong.truncate(4 * super::data::MAX_REPORTED);
            say(Report::Finished { operation, seconds, wrong, wrong_elements, checked });
        }
        Ok(())
    }

    /// Puts one collective into the stream.
    fn operation(&self, operation: Collective) -> Result<(), Failure> {
        let data = &self.plan.data;
        let (n, segment) = (self.plan.ranks, data.segment());
        let comm = self.communicator.0;
        let stream: sys::cudaStream_t = self.gpu.stream.cu_stream().cast();
        let float = sys::ncclDataType_t::ncclFloat32;
        let add = sys::ncclRedOp_t::ncclSum;
        let from = |element: usize| (self.send.pointer() + 4 * element as u64) as *const std::ffi::c_void;
        let to = |element: usize| (self.receive.pointer() + 4 * element as u64) as *mut std::ffi::c_void;
        let peer = |rank: usize| rank as i32;
        // SAFETY (all calls): both buffers have `elements` floats, segments lie inside, and they live until the stream
        // has ended (waited for by the caller); the communicator and the stream belong to this rank's GPU.
        match operation {
            Collective::AllReduce => {
                // SAFETY: see above.
                let done =
                    unsafe { nccl::all_reduce(from(0), to(0), data.elements(), float, add, comm, stream) };
                check("ncclAllReduce", done)
            }
            Collective::AllGather => {
                // SAFETY: see above.
                let done = unsafe { nccl::all_gather(from(0), to(0), segment, float, comm, stream) };
                check("ncclAllGather", done)
            }
            Collective::ReduceScatter => {
                // SAFETY: see above.
                let done = unsafe { nccl::reduce_scatter(from(0), to(0), segment, float, add, comm, stream) };
                check("ncclReduceScatter", done)
            }
            Collective::AllToAll => {
                check("ncclGroupStart", nccl::group_start())?;
                for other in 0..n {
                    // SAFETY: see above.
                    let sent = unsafe {
                        nccl::send(from(other * segment), segment, float, peer(other), comm, stream)
                    };
                    check("ncclSend", sent)?;
                    // SAFETY: see above.
                    let received =
                        unsafe { nccl::recv(to(other * segment), segment, float, peer(other), comm, stream) };
                    check("ncclRecv", received)?;
                }
                check("ncclGroupEnd", nccl::group_end())
            }
            Collective::SendRecvRing => {
                let (next, before) = ((self.rank + 1) % n, (self.rank + n - 1) % n);
                check("ncclGroupStart", nccl::group_start())?;
                // SAFETY: see above.
                let sent = unsafe { nccl::send(from(0), data.elements(), float, peer(next), comm, stream) };
                check("ncclSend", sent)?;
                // SAFETY: see above.
                let received =
                    unsafe { nccl::recv(to(0), data.elements(), float, peer(before), comm, stream) };
                check("ncclRecv", received)?;
                check("ncclGroupEnd", nccl::group_end())
            }
        }
    }
}
