//! Main memory: patterns over a part of what is free, written by every core to memory near it, read back, compared.
//!
//! Every byte that is written is read again and compared; the rates count bytes written plus bytes read.

mod area;
mod limits;
pub mod lines;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::DramParams;
use whetstone_model::action::Action;
use whetstone_model::unit::Unit;

use super::bench::{Bench, MAX_FINDINGS, judge};
use super::cores::{self, Core};
use super::stream;
use crate::{Context, Done};
use area::{Area, Wrong};
use lines::Pattern;

/// Code of a word that does not hold what was written.
const CODE: &str = "dram-corruption";
/// Memory is taken in pieces of this size, so that the limit is never overrun by more; also the time between two looks at
/// the clock (some 10 ms).
const PIECE: u64 = 64 << 20;
/// Less than this for each core says nothing: it would not leave the caches.
const LEAST: u64 = 1 << 20;
/// Left to the rest of the machine whatever the parameters say, beside a 64th of what is available.
const RESERVE: u64 = 64 << 20;

pub fn run<S: Sink>(params: &DramParams, context: &Context<'_, S>) -> Done {
    work(params, &Bench::new(context), Path::new("/"))
}

/// What one core did.
#[derive(Default)]
struct Tally {
    passes: u32,
    /// Bytes of memory that it held.
    held: u64,
    /// Bytes compared.
    verified: u64,
    pattern: Rate,
    copy: Rate,
    wrong: u64,
    first: Option<String>,
}

/// Bytes moved and the time that it took.
#[derive(Default, Clone, Copy)]
struct Rate {
    bytes: u64,
    busy: Duration,
}

impl Rate {
    fn add(&mut self, bytes: u64, since: Instant) {
        self.bytes += bytes;
        self.busy += since.elapsed();
    }

    fn gigabytes_per_second(self) -> f64 {
        let seconds = self.busy.as_secs_f64();
        if seconds > 0.0 { self.bytes as f64 / seconds / 1e9 } else { 0.0 }
    }
}

fn work(params: &DramParams, bench: &Bench<'_>, root: &Path) -> Done {
    let Some(available) = limits::available(root) else {
        return Done::inconclusive("the kernel does not say how much memory is available (/proc/meminfo)");
    };
    let reserve = RESERVE + available / 64;
    let wanted = (available / 100 * u64::from(params.percent_of_available)).min(params.max_mib << 20);
    let target = wanted.min(available.saturating_sub(reserve));
    let cores = cores::allowed();
    // Whole 8 KiB, so that halves are whole blocks.
    let share = (target / cores.len() as u64) & !0x1fff;
    if share < LEAST {
        return Done::inconclusive(format!(
            "{} MiB available and {} MiB left to others: too little to test on {} cores",
            available >> 20,
            reserve >> 20,
            cores.len()
        ));
    }
    let now = Mutex::new(String::new());
    let doing = || now.lock().map(|now| now.clone()).unwrap_or_default();
    let (pending, findings) = (Mutex::new(0), AtomicU64::new(0));
    let shared = Shared { bench, root, reserve, pending: &pending, findings: &findings, now: &now };
    let tallies = cores::on_each(bench, &cores, &doing, |index, core| shared.one_core(index, core, share));

    let all = || tallies.iter().flatten();
    let held: u64 = all().map(|tally| tally.held).sum();
    let passes = all().map(|tally| tally.passes).min().unwrap_or(0);
    if passes > 0 {
        bench.reading(
            None,
            "dram.bandwidth",
            all().map(|t| t.pattern.gigabytes_per_second()).sum(),
            Unit::GBps,
        );
        bench.reading(
            None,
            "dram.copy.bandwidth",
            all().map(|t| t.copy.gigabytes_per_second()).sum(),
            Unit::GBps,
        );
    }
    bench.note(format!(
        "{passes} passes over {} MiB of {} MiB available, {:.1} GiB compared",
        held >> 20,
        available >> 20,
        all().map(|tally| tally.verified).sum::<u64>() as f64 / f64::from(1 << 30)
    ));
    let wrong: u64 = all().map(|tally| tally.wrong).sum();
    if wrong > 0 {
        let first = all().find_map(|tally| tally.first.as_deref());
        return judge(wrong, "wrong 4 KiB blocks", first);
    }
    if tallies.iter().any(Option::is_none) {
        return Done::inconclusive("a worker thread ended early");
    }
    if held < share * cores.len() as u64 / 2 {
        return Done::inconclusive(format!(
            "only {} of {} MiB could be had: others took memory meanwhile",
            held >> 20,
            (share * cores.len() as u64) >> 20
        ));
    }
    if passes < params.min_passes {
        return Done::inconclusive(format!(
            "{passes} of {} passes over {} MiB done in the time given",
            params.min_passes,
            held >> 20
        ));
    }
    Done::pass()
}

/// What the threads of all cores have in common.
struct Shared<'a> {
    bench: &'a Bench<'a>,
    root: &'a Path,
    reserve: u64,
    /// Bytes that threads are about to take, which the kernel does not count yet.
    pending: &'a Mutex<u64>,
    findings: &'a AtomicU64,
    now: &'a Mutex<String>,
}

impl Shared<'_> {
    /// Pieces of memory up to `share` bytes, each only while the machine has it to spare.
    fn take(&self, share: u64) -> Vec<Area> {
        let mut areas = Vec::new();
        let mut left = share;
        while left >= LEAST.min(PIECE) && !self.over() {
            let piece = left.min(PIECE) & !0x1fff;
            let Ok(mut pending) = self.pending.lock() else { break };
            if limits::available(self.root).unwrap_or(0) < piece + *pending + self.reserve {
                break;
            }
            *pending += piece;
            drop(pending);
            let area = Area::new(piece);
            if let Ok(mut pending) = self.pending.lock() {
                *pending -= piece;
            }
            let Ok(area) = area else { break };
            areas.push(area);
            left -= piece;
        }
        areas
    }

    fn over(&self) -> bool {
        Instant::now() >= self.bench.stop()
    }

    fn one_core(&self, index: usize, core: &Core, share: u64) -> Tally {
        self.say(index, "taking memory");
        let mut areas = self.take(share);
        let held = areas.iter().map(Area::bytes).sum();
        let mut worker =
            Worker { shared: self, core, index, pass: 0, tally: Tally { held, ..Tally::default() } };
        while !areas.is_empty() && worker.pass(&mut areas).is_some() {
            worker.pass += 1;
            worker.tally.passes += 1;
        }
        worker.tally
    }

    fn say(&self, index: usize, what: &str) {
        if index == 0
            && let Ok(mut now) = self.now.lock()
        {
            what.clone_into(&mut now);
        }
    }
}

/// One core at its own memory.
struct Worker<'a> {
    shared: &'a Shared<'a>,
    core: &'a Core,
    index: usize,
    pass: u32,
    tally: Tally,
}

/// Every pattern, and whether it is written past the caches; what is written through them is checked as well.
const PATTERNS: [(Pattern, bool); 6] = [
    (Pattern::Address, true),
    (Pattern::WalkingOnes, true),
    (Pattern::WalkingZeros, false),
    (Pattern::Random, true),
    (Pattern::Random, false),
    (Pattern::Solid, true),
];

impl Worker<'_> {
    /// All patterns over all areas; `None` if the time ended before.
    fn pass(&mut self, areas: &mut [Area]) -> Option<()> {
        let seed = self.shared.bench.seed ^ self.index as u64;
        for (number, (pattern, streaming)) in PATTERNS.into_iter().enumerate() {
            let key = match pattern {
                // The walk moves on by one bit each pass, the address is itself and its complement in turn.
                Pattern::WalkingOnes | Pattern::WalkingZeros => u64::from(self.pass),
                Pattern::Address => 0u64.wrapping_sub(u64::from(self.pass % 2)),
                Pattern::Solid | Pattern::Random => {
                    stream::at(seed, u64::from(self.pass) * 16 + number as u64)
                }
            };
            self.shared.say(self.index, &format!("pass {}, {}", self.pass + 1, pattern.as_str()));
            for area in areas.iter_mut() {
                let started = Instant::now();
                area.write(pattern, key, streaming);
                self.tally.pattern.add(area.bytes(), started);
                self.produced(area, pattern);
                self.check_time()?;
            }
            if pattern == Pattern::Solid {
                for (expected, downwards) in [(key, false), (!key, true)] {
                    for area in areas.iter_mut() {
                        let started = Instant::now();
                        let wrong = area.invert(expected, downwards);
                        self.tally.pattern.add(2 * area.bytes(), started);
                        self.tally.verified += area.bytes();
                        self.report(pattern, wrong);
                        self.produced(area, pattern);
                        self.check_time()?;
                    }
                }
            }
            for area in areas.iter_mut() {
                let started = Instant::now();
                let wrong = area.verify(pattern, key);
                self.tally.pattern.add(area.bytes(), started);
                self.tally.verified += area.bytes();
                self.report(pattern, wrong);
                self.check_time()?;
            }
        }
        let key = stream::at(seed, u64::from(self.pass) * 16 + 15);
        self.shared.say(self.index, &format!("pass {}, copy", self.pass + 1));
        for area in areas.iter_mut() {
            area.write(Pattern::Random, key, true);
            let started = Instant::now();
            area.copy_half();
            self.tally.copy.add(area.bytes(), started);
            self.produced(area, Pattern::Random);
            let wrong = area.verify_halves(Pattern::Random, key);
            self.tally.verified += area.bytes();
            self.report(Pattern::Random, wrong);
            self.check_time()?;
        }
        Some(())
    }

    fn produced(&self, area: &mut Area, pattern: Pattern) {
        area.tap(self.shared.bench.tap, pattern.as_str());
    }

    fn check_time(&self) -> Option<()> {
        (!self.shared.over()).then_some(())
    }

    fn report(&mut self, pattern: Pattern, wrong: Vec<Wrong>) {
        for wrong in wrong {
            self.tally.wrong += 1;
            let detail = format!("{}: {wrong}; written and read by {}", pattern.as_str(), self.core);
            if self.shared.findings.fetch_add(1, Ordering::Relaxed) < MAX_FINDINGS as u64 {
                // Which DIMM it is only the memory controller knows: EDAC's counters and machine checks say it.
                self.shared.bench.fault(CODE, None, Action::Replace, detail.clone());
            }
            self.tally.first.get_or_insert(detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::bench::Tap;
    use crate::host::bench::testing::{FlipOne, Rig};
    use whetstone_model::report::TestOutcome;

    const SMALL: DramParams = DramParams { percent_of_available: 50, max_mib: 8, min_passes: 1 };

    #[test]
    fn sound_memory_passes_and_its_rate_is_read() {
        let rig = Rig::new(9, Duration::from_millis(1500));
        let done = work(&SMALL, &rig.bench(), Path::new("/"));
        assert_eq!(
            (done.outcome, rig.findings().len()),
            (TestOutcome::Pass, 0),
            "{done:?} {:?}",
            rig.findings()
        );
        assert!(rig.readings().iter().any(|r| r.reading.metric == "dram.bandwidth" && r.reading.value > 0.0));
        assert!(rig.notes().iter().any(|note| note.contains("MiB available")));
    }

    #[test]
    fn a_bit_that_flips_in_any_pattern_is_named_with_its_place() {
        for pattern in ["address", "walking ones", "walking zeros", "moving inversions", "random"] {
            let rig = Rig::new(9, Duration::from_millis(600));
            let tap = FlipOne::new(pattern, 1, 4);
            let done = work(&SMALL, &rig.tapped(&tap), Path::new("/"));
            assert!(tap.flipped(), "{pattern}: too slow a machine for one pass");
            let findings = rig.findings();
            assert_eq!((done.outcome, findings.len()), (TestOutcome::Fail, 1), "{pattern}: {findings:?}");
            let detail = &findings[0].detail;
            assert!(
                detail.starts_with(&format!("{pattern}: address 0x")) && detail.contains("flipped 0x"),
                "{detail}"
            );
        }
    }

    #[test]
    fn a_thousand_single_bit_flips_are_all_found_in_place() {
        let mut area = Area::new(64 << 10).unwrap();
        for seed in 0..1000 {
            let (pattern, streaming) = PATTERNS[seed as usize % PATTERNS.len()];
            area.write(pattern, seed, streaming);
            assert_eq!(area.verify(pattern, seed).len(), 0);
            let tap = FlipOne::new("", 0, seed);
            area.tap(&tap, "any");
            let wrong = area.verify(pattern, seed);
            assert_eq!(wrong.len(), 1, "{pattern:?} seed {seed}");
            assert_eq!(wrong[0].flipped().count_ones(), 1);
        }
    }

    #[test]
    fn memory_that_cannot_be_had_is_inconclusive() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc")).unwrap();
        std::fs::write(root.path().join("proc/meminfo"), "MemAvailable: 66000 kB\n").unwrap();
        let rig = Rig::new(9, Duration::from_secs(5));
        let done = work(&SMALL, &rig.bench(), root.path());
        assert_eq!(done.outcome, TestOutcome::Inconclusive, "{done:?}");
        assert!(done.detail.contains("too little"), "{done:?}");
    }

    #[test]
    fn no_time_is_inconclusive() {
        let rig = Rig::new(9, Duration::ZERO);
        let done = work(&SMALL, &rig.bench(), Path::new("/"));
        assert_eq!(done.outcome, TestOutcome::Inconclusive, "{done:?}");
    }

    /// Every word bad: millions of faults, few findings.
    struct AllBad;

    impl Tap for AllBad {
        fn produced(&self, _unit: &str, bytes: &mut [u8]) {
            bytes.iter_mut().for_each(|byte| *byte ^= 1);
        }
    }

    #[test]
    fn a_broken_module_does_not_flood_the_report() {
        let rig = Rig::new(9, Duration::from_millis(400));
        let done = work(&SMALL, &rig.tapped(&AllBad), Path::new("/"));
        assert_eq!(done.outcome, TestOutcome::Fail);
        assert_eq!(rig.findings().len(), MAX_FINDINGS);
    }
}
