//! Does time run backwards between cores? Each in turn reads a clock and compares it with what the one before read.

use std::fmt;
use std::sync::Mutex;
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

use crate::host::bench::Bench;
use crate::host::cores::{self, Core};

/// Time that was earlier than time already seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warp {
    pub core: Core,
    /// `CLOCK_MONOTONIC` or the cycle counter.
    pub clock: &'static str,
    /// Whether it is the kernel's own clock, which promises not to.
    pub kernels: bool,
    /// Backwards by how much at most: nanoseconds or cycles.
    pub by: u64,
    pub times: u64,
}

impl fmt::Display for Warp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Warp { core, clock, kernels, by, times } = self;
        let unit = if *kernels { "ns" } else { "cycles" };
        write!(f, "{clock} on {core} was behind another core's {times} times, by up to {by} {unit}")
    }
}

type Clock = (&'static str, bool, fn() -> u64);

/// At most one entry for each core and clock.
pub fn look(bench: &Bench<'_>, cores: &[Core], until: Instant) -> Vec<Warp> {
    let clocks = clocks();
    let latest: Vec<Mutex<u64>> = clocks.iter().map(|_| Mutex::new(0)).collect();
    let doing = || format!("clock order over {} cores", cores.len());
    let found = cores::on_each(bench, cores, &doing, |_, core| {
        let mut mine: Vec<Warp> = clocks
            .iter()
            .map(|(clock, kernels, _)| Warp { core: core.clone(), clock, kernels: *kernels, by: 0, times: 0 })
            .collect();
        while Instant::now() < until {
            for _ in 0..64 {
                for ((warp, latest), (_, _, read)) in mine.iter_mut().zip(&latest).zip(&clocks) {
                    // The lock orders the readings: what is read under it later must not be earlier.
                    let Ok(mut latest) = latest.lock() else { continue };
                    let now = read();
                    if now < *latest {
                        warp.by = warp.by.max(*latest - now);
                        warp.times += 1;
                    }
                    *latest = now.max(*latest);
                }
            }
        }
        mine
    });
    found.into_iter().flatten().flatten().filter(|warp| warp.times > 0).collect()
}

fn clocks() -> Vec<Clock> {
    let monotonic: Clock = ("CLOCK_MONOTONIC", true, || {
        let now = clock_gettime(ClockId::Monotonic);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    });
    #[cfg(target_arch = "x86_64")]
    return vec![monotonic, ("cycle counter (tsc)", false, cycles)];
    #[cfg(not(target_arch = "x86_64"))]
    vec![monotonic]
}

#[cfg(target_arch = "x86_64")]
fn cycles() -> u64 {
    // SAFETY: both instructions are part of x86-64 and touch no memory. The fence keeps the reading inside the lock.
    unsafe {
        std::arch::x86_64::_mm_lfence();
        std::arch::x86_64::_rdtsc()
    }
}
