//! What every host test works with: where events go, how much time is left, and the boundary at which a test of
//! ours may spoil a result.

use std::path::Path;
use std::time::{Duration, Instant};

use whetstone_burnin::protocol::{Event, Sink};
use whetstone_model::action::{Action, Severity};
use whetstone_model::device::DeviceId;
use whetstone_model::evidence::{Finding, Reading};
use whetstone_model::report::{DeviceReading, Matrix, Profile};
use whetstone_model::unit::Unit;

use crate::{Context, Done};

/// Findings that one test writes out; the rest are counted. A broken part can produce millions.
pub const MAX_FINDINGS: usize = 32;

/// The place between a part's answer and the check of it. The shipped one, [`Silicon`], does nothing; tests put
/// one here that flips bits, to prove that the check sees them.
pub trait Tap: Sync {
    /// `unit` has just produced `bytes`, which are checked next.
    fn produced(&self, unit: &str, bytes: &mut [u8]);
}

/// The real part, nothing added.
pub struct Silicon;

impl Tap for Silicon {
    fn produced(&self, _unit: &str, _bytes: &mut [u8]) {}
}

/// One test at work. Concrete and not generic, so that its loops are compiled in this crate, optimised.
pub struct Bench<'a> {
    pub sink: &'a dyn Sink,
    pub tap: &'a dyn Tap,
    pub started: Instant,
    pub deadline: Instant,
    pub seed: u64,
    pub scratch: &'a Path,
}

impl<'a> Bench<'a> {
    pub fn new<S: Sink>(context: &'a Context<'a, S>) -> Self {
        Self {
            sink: context.sink,
            tap: &Silicon,
            started: Instant::now(),
            deadline: context.deadline,
            seed: context.seed,
            scratch: context.scratch,
        }
    }

    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    pub fn expired(&self) -> bool {
        self.left().is_zero()
    }

    /// When work stops, so that what is left to say is said by the deadline.
    pub fn stop(&self) -> Instant {
        self.until(0.98)
    }

    /// The instant at which `part` (0 to 1) of the whole budget is used.
    pub fn until(&self, part: f64) -> Instant {
        let whole = self.deadline.saturating_duration_since(self.started);
        self.started + whole.mul_f64(part.clamp(0.0, 1.0))
    }

    /// Progress by the clock: the part of the budget that is used.
    pub fn tick(&self, doing: &str) {
        let whole = self.deadline.saturating_duration_since(self.started).as_secs_f64();
        let done = if whole > 0.0 { self.started.elapsed().as_secs_f64() / whole } else { 1.0 };
        self.sink.progress(done.min(1.0), doing);
    }

    pub fn note(&self, text: impl Into<String>) {
        self.sink.emit(Event::Note { text: text.into() });
    }

    pub fn reading(&self, device: Option<DeviceId>, metric: &str, value: f64, unit: Unit) {
        if value.is_finite() {
            let reading = Reading::new(metric, value, unit);
            self.sink.emit(Event::Reading(DeviceReading { device, reading }));
        }
    }

    pub fn matrix(&self, matrix: Matrix) {
        self.sink.emit(Event::Matrix(matrix));
    }

    pub fn profile(&self, profile: Profile) {
        self.sink.emit(Event::Profile(profile));
    }

    pub fn fault(&self, code: &str, device: Option<DeviceId>, action: Action, detail: impl Into<String>) {
        self.finding(code, device, Severity::Fault, action, detail.into(), None);
    }

    pub fn finding(
        &self,
        code: &str,
        device: Option<DeviceId>,
        severity: Severity,
        action: Action,
        detail: String,
        reading: Option<Reading>,
    ) {
        self.sink.emit(Event::Finding(Finding {
            code: code.to_owned(),
            device,
            severity,
            action,
            detail,
            reading,
        }));
    }
}

/// `Pass`, or `Fail` with the number of wrong results and the first of them.
pub fn judge(wrong: u64, what: &str, first: Option<&str>) -> Done {
    match first {
        None if wrong == 0 => Done::pass(),
        _ => Done::fail(format!("{wrong} {what}: {}", first.unwrap_or("see the findings"))),
    }
}

#[cfg(test)]
pub mod testing {
    //! A bench without a runner: events are kept, and a seeded tap flips bits.

    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use whetstone_burnin::protocol::{Event, Sink};

    use super::*;
    use crate::host::stream::Stream;

    #[derive(Default)]
    pub struct Kept(pub Mutex<Vec<Event>>);

    impl Sink for Kept {
        fn emit(&self, event: Event) {
            self.0.lock().unwrap().push(event);
        }
    }

    pub struct Rig {
        pub sink: Kept,
        pub seed: u64,
        pub budget: Duration,
        pub scratch: tempfile::TempDir,
    }

    impl Rig {
        pub fn new(seed: u64, budget: Duration) -> Self {
            Self { sink: Kept::default(), seed, budget, scratch: tempfile::tempdir().unwrap() }
        }

        pub fn bench(&self) -> Bench<'_> {
            self.tapped(&Silicon)
        }

        pub fn tapped<'a>(&'a self, tap: &'a dyn Tap) -> Bench<'a> {
            let started = Instant::now();
            let (sink, scratch) = (&self.sink, self.scratch.path());
            Bench { sink, tap, started, deadline: started + self.budget, seed: self.seed, scratch }
        }

        pub fn findings(&self) -> Vec<Finding> {
            let keep = |event: &Event| if let Event::Finding(f) = event { Some(f.clone()) } else { None };
            self.sink.0.lock().unwrap().iter().filter_map(keep).collect()
        }

        pub fn readings(&self) -> Vec<DeviceReading> {
            let keep = |event: &Event| if let Event::Reading(r) = event { Some(r.clone()) } else { None };
            self.sink.0.lock().unwrap().iter().filter_map(keep).collect()
        }

        pub fn notes(&self) -> Vec<String> {
            let keep =
                |event: &Event| if let Event::Note { text } = event { Some(text.clone()) } else { None };
            self.sink.0.lock().unwrap().iter().filter_map(keep).collect()
        }
    }

    /// Flips one bit, chosen by a seed, of the `nth` result of `unit` (a part of its name).
    pub struct FlipOne {
        pub unit: &'static str,
        pub nth: u64,
        pub seed: u64,
        pub seen: AtomicU64,
    }

    impl FlipOne {
        pub fn new(unit: &'static str, nth: u64, seed: u64) -> Self {
            Self { unit, nth, seed, seen: AtomicU64::new(0) }
        }

        pub fn flipped(&self) -> bool {
            self.seen.load(Ordering::SeqCst) > self.nth
        }
    }

    impl Tap for FlipOne {
        fn produced(&self, unit: &str, bytes: &mut [u8]) {
            if unit.contains(self.unit)
                && self.seen.fetch_add(1, Ordering::SeqCst) == self.nth
                && !bytes.is_empty()
            {
                let bit = Stream::new(self.seed).below(bytes.len() as u64 * 8) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}
