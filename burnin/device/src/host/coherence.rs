//! Cores against each other: atomics, cache lines passed to and fro, memory order, neighbours on one line.

mod lines;
mod litmus;
mod pairs;
mod sums;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::CpuCoherenceParams;
use whetstone_model::action::Action;

use super::bench::{Bench, MAX_FINDINGS, judge};
use super::cores::{self, Core};
use crate::{Context, Done};

/// Code of a value that one core wrote and another did not get.
const CODE: &str = "cpu-coherence";

pub fn run<S: Sink>(_params: &CpuCoherenceParams, context: &Context<'_, S>) -> Done {
    work(&Bench::new(context))
}

fn work(bench: &Bench<'_>) -> Done {
    let cores = cores::allowed();
    let trial = Trial { bench, cores: &cores, wrong: AtomicU64::new(0), first: Mutex::new(None) };
    // Sums say something on one core too; the rest needs two.
    let alone = cores.len() == 1;
    let mut done = vec![("atomic sums", trial.sums(bench.until(if alone { 0.9 } else { 0.25 })))];
    if alone {
        bench.note("one core only: nothing to exchange, atomics were tested on it alone");
    } else {
        done.push(("core to core", trial.pairs(bench.until(0.6))));
        done.push(("memory order", trial.litmus(bench.until(0.8))));
        done.push(("shared lines", trial.lines(bench.until(0.95))));
    }
    let wrong = trial.wrong.load(Ordering::Relaxed);
    if wrong > 0 {
        let first = trial.first.lock().ok().and_then(|first| first.clone());
        return judge(wrong, "wrong values", first.as_deref());
    }
    match done.iter().find(|(_, rounds)| *rounds == 0) {
        Some((name, _)) => Done::inconclusive(format!("no time for a single round of: {name}")),
        None => {
            let rounds: Vec<String> = done.iter().map(|(name, rounds)| format!("{name} {rounds}")).collect();
            bench.note(format!("rounds: {}", rounds.join(", ")));
            Done::pass()
        }
    }
}

/// What all parts share. Each part gives the number of rounds that it completed by `until`.
struct Trial<'a> {
    bench: &'a Bench<'a>,
    cores: &'a [Core],
    wrong: AtomicU64,
    first: Mutex<Option<String>>,
}

impl Trial<'_> {
    fn fault(&self, core: &Core, detail: String) {
        if self.wrong.fetch_add(1, Ordering::Relaxed) < MAX_FINDINGS as u64 {
            self.bench.fault(CODE, core.device(), Action::Replace, detail.clone());
        }
        if let Ok(mut first) = self.first.lock() {
            first.get_or_insert(detail);
        }
    }

    /// One observed number, past the tap.
    fn seen(&self, unit: &str, value: u64) -> u64 {
        let mut bytes = value.to_ne_bytes();
        self.bench.tap.produced(unit, &mut bytes);
        u64::from_ne_bytes(bytes)
    }
}

/// Spins until `ready`; false if the time ended first. Where threads outnumber cores the other one must get its turn, so
/// after a while it yields.
fn spin_until(until: Instant, mut ready: impl FnMut() -> bool) -> bool {
    /// Spins between two looks at the clock; a look costs some 20 of them.
    const LOOK: u32 = 1 << 10;
    for spins in 1u32.. {
        if ready() {
            return true;
        }
        std::hint::spin_loop();
        if spins % LOOK == 0 {
            if Instant::now() >= until {
                return false;
            }
            std::thread::yield_now();
        }
    }
    false
}

/// Two threads on two cores; what both came back with, `None` if one panicked.
fn on_two<T: Send>(
    (a, b): (&Core, &Core),
    one: impl FnOnce() -> T + Send,
    two: impl FnOnce() -> T + Send,
) -> Option<(T, T)> {
    std::thread::scope(|scope| {
        // Unbound threads still exchange; only the place is then not known, which the sums' notes say.
        let one = scope.spawn(move || {
            let _ = cores::pin(a);
            one()
        });
        let two = scope.spawn(move || {
            let _ = cores::pin(b);
            two()
        });
        let (one, two) = (one.join(), two.join());
        Some((one.ok()?, two.ok()?))
    })
}

/// A cache line of its own; 128 bytes, since x86 fetches lines in pairs and some ARM lines are that long.
#[repr(align(128))]
#[derive(Default)]
struct Own<T>(T);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::host::bench::testing::{FlipOne, Rig};
    use whetstone_burnin::protocol::Event;
    use whetstone_model::report::TestOutcome;

    #[test]
    fn sound_cores_pass() {
        let rig = Rig::new(3, Duration::from_millis(1500));
        let done = work(&rig.bench());
        assert_eq!(rig.findings(), vec![]);
        // A machine under other load may not get round every part; then it says which.
        assert!(done.outcome == TestOutcome::Pass || done.detail.starts_with("no time for"), "{done:?}");
        if done.outcome == TestOutcome::Pass && cores::allowed().len() > 1 {
            let events = rig.sink.0.lock().unwrap();
            let latency =
                events.iter().find_map(|e| if let Event::Matrix(m) = e { Some(m) } else { None }).unwrap();
            assert!(latency.values[0][1].is_some_and(|ns| ns > 0.0), "{latency:?}");
            assert_eq!(latency.values[0][0], None);
        }
    }

    #[test]
    fn a_wrong_bit_in_any_part_is_found_and_names_its_cores() {
        let parts: &[&str] = match cores::allowed().len() {
            1 => &["sum"],
            _ => &["sum", "ping-pong", "message", "store", "line"],
        };
        for part in parts {
            let rig = Rig::new(3, Duration::from_millis(800));
            let tap = FlipOne::new(part, 2, 8);
            let done = work(&rig.tapped(&tap));
            assert!(tap.flipped(), "{part} never ran");
            assert_eq!(done.outcome, TestOutcome::Fail, "{part}: {done:?}");
            let findings = rig.findings();
            assert_eq!(findings[0].code, CODE);
            assert!(findings[0].detail.contains("expected"), "{part}: {findings:?}");
        }
    }
}
