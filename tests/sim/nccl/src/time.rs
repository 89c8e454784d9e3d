//! How long operations take on the simulated blade.

use std::collections::BTreeMap;
use std::ffi::c_void;

use whetstone_scenario::{Gpu, Sim, Work};

use crate::group::Operation;
use crate::numbers::Kind;
use crate::world::{Transfer, World};
use crate::{Code, Result, driver};

/// Start of an operation, ns. A real one takes some microseconds; this is less, so that the small buffers of a
/// simulated run already show the rate of the links.
const LATENCY_NS: f64 = 500.0;

/// Bytes that each rank sends to the next one of a ring, over all steps of the operation.
fn ring_bytes(transfer: &Transfer, ranks: usize) -> u64 {
    let part = transfer.bytes() as u64;
    let steps = ranks as u64 - 1;
    match transfer.kind {
        Kind::AllReduce(_) | Kind::Reduce { .. } => 2 * steps * part / ranks as u64,
        // The size of one segment is given.
        Kind::AllGather | Kind::ReduceScatter(_) => steps * part,
        Kind::Broadcast { .. } | Kind::Send { .. } | Kind::Receive { .. } => part,
    }
}

/// Seconds that the world's slowest link needs for a ring with this traffic per hop.
fn ring_seconds(sim: &Sim, world: &World, bytes: u64) -> f64 {
    let gpus: Vec<Gpu<'_>> = world.gpus().iter().filter_map(|g| sim.gpu(*g)).collect();
    let hops = (0..gpus.len()).map(|i| gpus[i].peer_bytes_per_s(gpus[(i + 1) % gpus.len()]));
    bytes as f64 / hops.fold(f64::INFINITY, f64::min)
}

/// The sends and receives of one GPU in one group.
struct Both {
    sending_s: f64,
    receiving_s: f64,
    bytes: u64,
    at: (*mut c_void, u64),
}

impl Both {
    fn new(at: (*mut c_void, u64)) -> Both {
        Both { sending_s: 0.0, receiving_s: 0.0, bytes: 0, at }
    }
}

/// Lets the time of what a thread has done pass in the streams that it was put into, and books the traffic.
pub fn pass(operations: &[Operation]) -> Result<()> {
    let sim = Sim::shared().map_err(|_| Code::SystemError)?;
    let mut point_to_point: BTreeMap<usize, Both> = BTreeMap::new();
    for operation in operations {
        match operation {
            Operation::Collective { world, transfer, .. } => {
                let ranks = world.ranks();
                let bytes = ring_bytes(transfer, ranks);
                let seconds = if ranks > 1 { ring_seconds(sim, world, bytes) } else { 0.0 };
                book(sim, transfer.gpu, seconds, bytes, (transfer.stream, transfer.start_ps))?;
            }
            Operation::Send { world, transfer, peer, .. } | Operation::Receive { world, transfer, peer } => {
                let other = world.gpus().get(*peer).copied().unwrap_or(transfer.gpu);
                let bytes = transfer.bytes() as u64;
                let seconds = match (sim.gpu(transfer.gpu), sim.gpu(other)) {
                    // To itself: a copy in its own memory.
                    (Some(own), _) if other == transfer.gpu => 2.0 * bytes as f64 / own.hbm_bytes_per_s(),
                    (Some(own), Some(other)) => bytes as f64 / own.peer_bytes_per_s(other),
                    _ => return Err(Code::InvalidArgument),
                };
                let both = point_to_point
                    .entry(transfer.gpu)
                    .or_insert(Both::new((transfer.stream, transfer.start_ps)));
                // Sending and receiving go at once, several sends share the links.
                if matches!(operation, Operation::Send { .. }) {
                    both.sending_s += seconds;
                    both.bytes += bytes;
                } else {
                    both.receiving_s += seconds;
                }
            }
        }
    }
    for (gpu, both) in point_to_point {
        book(sim, gpu, both.sending_s.max(both.receiving_s), both.bytes, both.at)?;
    }
    Ok(())
}

/// Books work of `seconds` in a stream, from a time (ps) on.
fn book(
    sim: &Sim,
    gpu: usize,
    seconds: f64,
    bytes: u64,
    (stream, start_ps): (*mut c_void, u64),
) -> Result<()> {
    let virtual_ns = (LATENCY_NS + seconds * 1e9) as u64;
    if let Some(gpu) = sim.gpu(gpu) {
        gpu.work(Work { virtual_ns, intensity: 0.35, nvlink_bytes: bytes, ..Work::default() });
    }
    driver::busy_until(stream, start_ps + virtual_ns * 1000)
}
