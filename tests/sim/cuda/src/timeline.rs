//! Virtual time, in picoseconds: simulated launches are short, and a slow GPU is a few percent of them. One clock for the process; each GPU has engines that do one thing at a time.
//!
//! An operation starts when the host has issued it, its stream is free and its engines are free; it lasts as long as
//! its work would on the SKU. So copies in both directions overlap, and two kernels do not.

use std::sync::Mutex;

use whetstone_scenario::state::MAX_GPUS;

use crate::handles::lock;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Compute,
    /// Copies from the host, to the host, to and from another GPU.
    FromHost,
    ToHost,
    ToPeer,
    FromPeer,
}

const ENGINES: usize = 5;

struct Times {
    /// What the host has waited for so far.
    host: u64,
    free_at: [[u64; ENGINES]; MAX_GPUS],
}

pub struct Timeline(Mutex<Times>);

impl Timeline {
    pub fn starting_at(ps: u64) -> Timeline {
        Timeline(Mutex::new(Times { host: ps, free_at: [[0; ENGINES]; MAX_GPUS] }))
    }

    pub fn host(&self) -> u64 {
        lock(&self.0).host
    }

    /// When all engines of a GPU are free.
    pub fn last(&self, gpu: usize) -> u64 {
        lock(&self.0).free_at[gpu].iter().copied().max().unwrap_or(0)
    }

    /// The host has waited until then.
    pub fn wait(&self, until: u64) {
        let mut times = lock(&self.0);
        times.host = times.host.max(until);
    }

    /// When an operation could start that needs these engines (GPU, engine) and may not begin before `ready`.
    pub fn earliest(&self, engines: &[(usize, Engine)], ready: u64) -> u64 {
        let times = lock(&self.0);
        let free = engines.iter().map(|(gpu, engine)| times.free_at[*gpu][*engine as usize]);
        free.fold(times.host.max(ready), u64::max)
    }

    /// The engines are busy until then.
    pub fn occupy(&self, engines: &[(usize, Engine)], until: u64) {
        let mut times = lock(&self.0);
        for (gpu, engine) in engines {
            let at = &mut times.free_at[*gpu][*engine as usize];
            *at = (*at).max(until);
        }
    }
}
