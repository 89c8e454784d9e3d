//! Virtual time, in picoseconds: simulated launches are short, and a slow GPU is a few percent of them. One clock for the process; each GPU has engines that do one thing at a time.
//!
//! An operation starts when the host has issued it, its stream is free and its engines are free; it lasts as long as
//! its work would on the SKU. So copies in both directions overlap, and two kernels do not.
//!
//! A host thread sees the clock move when it waits, not when another thread does: what it does between two waits takes
//! no virtual time, also where the machine lets it pause there while others go on.

use std::cell::Cell;
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

thread_local! {
    /// The clock when this thread waited last; 0 = it never did.
    static SEEN: Cell<u64> = const { Cell::new(0) };
}

struct Times {
    /// What the host has waited for so far, all threads together.
    host: u64,
    free_at: [[u64; ENGINES]; MAX_GPUS],
}

pub struct Timeline(Mutex<Times>);

impl Timeline {
    pub fn starting_at(ps: u64) -> Timeline {
        Timeline(Mutex::new(Times { host: ps, free_at: [[0; ENGINES]; MAX_GPUS] }))
    }

    /// The clock as this thread sees it.
    pub fn host(&self) -> u64 {
        if SEEN.get() == 0 {
            SEEN.set(lock(&self.0).host);
        }
        SEEN.get()
    }

    /// When all engines of a GPU are free.
    pub fn last(&self, gpu: usize) -> u64 {
        lock(&self.0).free_at[gpu].iter().copied().max().unwrap_or(0)
    }

    /// This thread has waited until then.
    pub fn wait(&self, until: u64) {
        let mut times = lock(&self.0);
        times.host = times.host.max(until);
        SEEN.set(times.host);
    }

    /// When an operation could start that needs these engines (GPU, engine) and may not begin before `ready`.
    pub fn earliest(&self, engines: &[(usize, Engine)], ready: u64) -> u64 {
        let host = self.host();
        let times = lock(&self.0);
        let free = engines.iter().map(|(gpu, engine)| times.free_at[*gpu][*engine as usize]);
        free.fold(host.max(ready), u64::max)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_pauses_does_not_see_what_others_wait_for() {
        let timeline = Timeline::starting_at(1_000);
        timeline.wait(1_000);
        let mark = timeline.host();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(timeline.earliest(&[(1, Engine::ToPeer)], 0), 1_000);
                timeline.occupy(&[(1, Engine::ToPeer)], 5_000);
                timeline.wait(5_000);
                assert_eq!(timeline.host(), 5_000);
            });
        });
        // Its operation follows its mark at once, however late the machine let it go on.
        assert_eq!(timeline.earliest(&[(0, Engine::ToPeer)], 0), mark);
        // An engine that is taken is taken for all; and after a wait of its own it is as late for it as for all.
        assert_eq!(timeline.earliest(&[(1, Engine::ToPeer)], 0), 5_000);
        timeline.wait(mark);
        assert_eq!(timeline.host(), 5_000);
    }
}
