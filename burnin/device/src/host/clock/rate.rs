//! One look at all clocks at once, and what the kernel says about how it keeps them.

use std::fmt;
use std::io;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Readings of three clocks at one moment, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The hardware's own rate, never adjusted.
    pub raw: i128,
    /// The same, adjusted in rate by a clock daemon, never set.
    pub monotonic: i128,
    /// The time of day.
    pub real: i128,
}

impl Sample {
    pub fn since(&self, earlier: &Sample) -> Duration {
        Duration::from_nanos(u64::try_from(self.monotonic - earlier.monotonic).unwrap_or(0))
    }

    /// How much the time of day moved apart from the monotonic clock since then.
    pub fn step_since(&self, earlier: &Sample) -> Duration {
        let moved = (self.real - self.monotonic) - (earlier.real - earlier.monotonic);
        Duration::from_nanos(u64::try_from(moved.unsigned_abs()).unwrap_or(u64::MAX))
    }
}

fn now(clock: ClockId) -> i128 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
    i128::from(tv_sec) * 1_000_000_000 + i128::from(tv_nsec)
}

/// Of several looks the one that took least: the thread was not interrupted between the clocks.
pub fn sample() -> Sample {
    const LOOKS: usize = 16;
    let look = || {
        let before = now(ClockId::MonotonicRaw);
        let monotonic = now(ClockId::Monotonic);
        let real = now(ClockId::Realtime);
        let after = now(ClockId::MonotonicRaw);
        (after - before, Sample { raw: before + (after - before) / 2, monotonic, real })
    };
    let mut best = look();
    for _ in 1..LOOKS {
        let one = look();
        if one.0 < best.0 {
            best = one;
        }
    }
    best.1
}

/// The kernel's clock discipline (`adjtimex(2)`, read only).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Discipline {
    pub synchronised: bool,
    pub frequency_ppm: f64,
    pub max_error_us: i64,
}

impl fmt::Display for Discipline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Discipline { synchronised, frequency_ppm, max_error_us } = self;
        if *synchronised {
            write!(
                f,
                "clock disciplined: rate corrected by {frequency_ppm:.3} ppm, error at most {max_error_us} us"
            )
        } else {
            write!(
                f,
                "clock not disciplined by any daemon that tells the kernel: drift against true time is not known"
            )
        }
    }
}

pub fn discipline() -> io::Result<Discipline> {
    // SAFETY: `timex` is plain numbers, for which zero is a value; no mode bit set means that nothing is changed.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live `timex`, which the call only fills.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Discipline {
        synchronised: state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0,
        // Parts per million with 16 binary places (the man page's "scaled ppm").
        frequency_ppm: timex.freq as f64 / 65_536.0,
        max_error_us: timex.maxerror as i64,
    })
}
