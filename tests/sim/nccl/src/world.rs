//! The place where the ranks of a communicator meet.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::c_void;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use whetstone_scenario::{Fault, Sim};

use crate::numbers::{Element, Kind, reduce};
use crate::{Code, Communicator, Result, driver};

/// One rank's part in an operation.
#[derive(Clone)]
pub struct Transfer {
    pub kind: Kind,
    pub rank: usize,
    /// Place of its GPU in the blade.
    pub gpu: usize,
    pub stream: *mut c_void,
    /// When it can start, in virtual ps: taken when the rank came, as waiting for the others is no work.
    pub start_ps: u64,
    from: *const u8,
    to: *mut u8,
    count: usize,
    element: Element,
}

// SAFETY: the pointers are simulated device memory of this process, which the caller leaves alone until the operation has
// ended; the thread that does the work is another one of the same process.
unsafe impl Send for Transfer {}

impl Transfer {
    pub fn new(
        comm: &Communicator,
        kind: Kind,
        from: *const c_void,
        to: *mut c_void,
        count: usize,
        data: u32,
        stream: *mut c_void,
    ) -> Result<Transfer> {
        let element = Element::new(data)?;
        let sends = !matches!(kind, Kind::Receive { .. });
        let receives = match kind {
            Kind::Send { .. } => false,
            Kind::Reduce { root, .. } => root == comm.rank,
            _ => true,
        };
        if (sends && from.is_null()) || (receives && to.is_null()) {
            return Err(Code::InvalidArgument);
        }
        let (rank, gpu) = (comm.rank, comm.gpu);
        let start_ps = driver::start(stream)?;
        Ok(Transfer { kind, rank, gpu, stream, start_ps, from: from.cast(), to: to.cast(), count, element })
    }

    /// Size of `count` elements.
    pub fn bytes(&self) -> usize {
        self.count * self.element.bytes()
    }

    /// What this rank contributes: `parts` times `count` elements, with the bit that is planted to flip in its `number`-th
    /// operation.
    fn contribution(&self, parts: usize, number: u64) -> Vec<u8> {
        let bytes = self.bytes() * parts;
        // SAFETY: the caller's buffer of that many bytes in simulated device memory.
        let mut data = unsafe { std::slice::from_raw_parts(self.from, bytes) }.to_vec();
        let faults = Sim::shared().ok().and_then(|sim| sim.gpu(self.gpu)).map_or(&[][..], |gpu| gpu.faults());
        for fault in faults {
            if let Fault::NcclFlip { bit, every_n } = fault
                && number.is_multiple_of(u64::from((*every_n).max(1)))
                && !data.is_empty()
            {
                let size = self.element.bytes();
                let at = data.len() / size / 2 * size + (*bit as usize / 8) % size;
                data[at] ^= 1 << (bit % 8);
            }
        }
        data
    }

    /// Writes into this rank's buffer.
    fn deliver(&self, data: &[u8]) {
        if !self.to.is_null() {
            // SAFETY: the caller's buffer of that many bytes; `data` is a copy of our own, so they do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.to, data.len()) };
        }
    }
}

/// Messages from one rank to another that were not taken yet.
#[derive(Default)]
struct Mail {
    waiting: VecDeque<(Element, Vec<u8>)>,
    offered: u64,
    taken: u64,
}

#[derive(Default)]
struct State {
    joined: usize,
    /// Parts that have come, by the number of the operation.
    collectives: BTreeMap<u64, Vec<Transfer>>,
    /// How a collective ended, and how many ranks have still to hear it.
    ended: BTreeMap<u64, (Result<()>, usize)>,
    mail: BTreeMap<(usize, usize), Mail>,
}

pub struct World {
    /// GPU of each rank.
    gpus: Mutex<Vec<usize>>,
    ranks: usize,
    state: Mutex<State>,
    news: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    fn new(gpus: Vec<usize>, joined: usize) -> Arc<World> {
        let state = State { joined, ..State::default() };
        let ranks = gpus.len();
        Arc::new(World { gpus: Mutex::new(gpus), ranks, state: Mutex::new(state), news: Condvar::new() })
    }

    /// A world whose ranks are all there.
    pub fn complete(gpus: &[usize]) -> Arc<World> {
        World::new(gpus.to_vec(), gpus.len())
    }

    /// Joins the world of `id` and waits until all its ranks have come.
    pub fn join(id: [u8; 128], ranks: usize, rank: usize, gpu: usize) -> Result<Arc<World>> {
        static WORLDS: OnceLock<Mutex<HashMap<[u8; 128], Arc<World>>>> = OnceLock::new();
        let worlds = WORLDS.get_or_init(Mutex::default);
        let world = lock(worlds).entry(id).or_insert_with(|| World::new(vec![0; ranks], 0)).clone();
        if world.ranks != ranks {
            return Err(Code::InvalidArgument);
        }
        lock(&world.gpus)[rank] = gpu;
        let mut state = lock(&world.state);
        state.joined += 1;
        world.news.notify_all();
        while state.joined < ranks {
            state = world.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        lock(worlds).remove(&id);
        Ok(world)
    }

    pub fn ranks(&self) -> usize {
        self.ranks
    }

    pub fn gpus(&self) -> Vec<usize> {
        lock(&self.gpus).clone()
    }

    /// A rank comes to its `number`-th operation; the last one does the work.
    pub fn arrive(&self, number: u64, transfer: &Transfer) {
        let mut state = lock(&self.state);
        let parts = state.collectives.entry(number).or_default();
        parts.push(transfer.clone());
        if parts.len() == self.ranks
            && let Some(mut parts) = state.collectives.remove(&number)
        {
            parts.sort_by_key(|p| p.rank);
            let outcome = carry_out(&parts, number);
            state.ended.insert(number, (outcome, self.ranks));
            self.news.notify_all();
        }
    }

    /// Waits for the end of the operation.
    pub fn wait(&self, number: u64) -> Result<()> {
        let mut state = lock(&self.state);
        loop {
            if let Some((outcome, left)) = state.ended.get_mut(&number) {
                let outcome = *outcome;
                *left -= 1;
                if *left == 0 {
                    state.ended.remove(&number);
                }
                return outcome;
            }
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts a message for `peer` into the mail.
    pub fn offer(&self, number: u64, transfer: &Transfer, peer: usize) {
        let message = (transfer.element, transfer.contribution(1, number));
        let mut state = lock(&self.state);
        let mail = state.mail.entry((transfer.rank, peer)).or_default();
        mail.waiting.push_back(message);
        mail.offered += 1;
        self.news.notify_all();
    }

    /// Takes the next message of `peer`.
    pub fn receive(&self, transfer: &Transfer, peer: usize) -> Result<()> {
        let mut state = lock(&self.state);
        loop {
            let mail = state.mail.entry((peer, transfer.rank)).or_default();
            if let Some((element, data)) = mail.waiting.pop_front() {
                mail.taken += 1;
                self.news.notify_all();
                if element != transfer.element || data.len() != transfer.bytes() {
                    return Err(Code::InvalidUsage);
                }
                transfer.deliver(&data);
                return Ok(());
            }
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until all that this rank has offered to `peer` is taken.
    pub fn wait_taken(&self, transfer: &Transfer, peer: usize) -> Result<()> {
        let mut state = lock(&self.state);
        loop {
            let mail = state.mail.entry((transfer.rank, peer)).or_default();
            if mail.taken == mail.offered {
                return Ok(());
            }
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The work of a collective, `parts` in the order of ranks.
fn carry_out(parts: &[Transfer], number: u64) -> Result<()> {
    let Some(first) = parts.first() else { return Err(Code::InvalidUsage) };
    let alike = |p: &Transfer| p.kind == first.kind && p.count == first.count && p.element == first.element;
    if !parts.iter().all(alike) {
        return Err(Code::InvalidUsage);
    }
    let (ranks, bytes) = (parts.len(), first.bytes());
    let each = if matches!(first.kind, Kind::ReduceScatter(_)) { ranks } else { 1 };
    // Copies first: buffers may be the same for input and output.
    let sent: Vec<Vec<u8>> = parts.iter().map(|p| p.contribution(each, number)).collect();
    let sum = |op| {
        let mut sum = sent[0].clone();
        sent[1..].iter().for_each(|other| reduce(&mut sum, other, first.element, op));
        sum
    };
    match first.kind {
        Kind::AllReduce(op) => {
            let sum = sum(op);
            parts.iter().for_each(|p| p.deliver(&sum));
        }
        Kind::Reduce { op, root } => parts[root].deliver(&sum(op)),
        Kind::ReduceScatter(op) => {
            let sum = sum(op);
            parts.iter().for_each(|p| p.deliver(&sum[p.rank * bytes..(p.rank + 1) * bytes]));
        }
        Kind::AllGather => {
            let all = sent.concat();
            parts.iter().for_each(|p| p.deliver(&all));
        }
        Kind::Broadcast { root } => parts.iter().for_each(|p| p.deliver(&sent[root])),
        Kind::Send { .. } | Kind::Receive { .. } => return Err(Code::InvalidUsage),
    }
    Ok(())
}
