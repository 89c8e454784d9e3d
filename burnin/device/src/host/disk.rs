//! A disk: a file of the test's own is written, forced to the medium, dropped from the cache, read back and compared.
//!
//! The file has no name (or loses it before the first byte is written), so it is gone when the process is, however that
//! ends.

mod file;
mod place;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::DiskParams;
use whetstone_model::action::Action;
use whetstone_model::device::DeviceId;
use whetstone_model::report::TestOutcome;
use whetstone_model::unit::Unit;

use super::bench::{Bench, MAX_FINDINGS, judge};
use super::dram::lines::{self, Pattern};
use super::pages::{Pages, bytes_of};
use super::stream::Stream;
use crate::{Context, Done};
use file::Scratch;

/// Codes: wrong content, and an error of the device itself.
const CORRUPT: &str = "disk-corruption";
const IO_ERROR: &str = "disk-io-error";
/// One request of the sequential parts; large enough for the full rate of an NVMe drive with [`WORKERS`] of them at once.
const CHUNK: u64 = 1 << 20;
const WORKERS: u64 = 4;
/// One request of the random part.
const SMALL: u64 = 4 << 10;
/// Latencies kept for the percentiles.
const MAX_SAMPLES: usize = 1 << 20;
/// Random reads take at most this long: the percentile does not get better by more.
const RANDOM: Duration = Duration::from_secs(10);

pub fn run<S: Sink>(params: &DiskParams, context: &Context<'_, S>) -> Done {
    work(params, &Bench::new(context), Path::new("/sys"))
}

fn work(params: &DiskParams, bench: &Bench<'_>, sys: &Path) -> Done {
    let place = match place::of(bench.scratch, sys) {
        Ok(place) => place,
        Err(error) => return Done::inconclusive(format!("{}: {error}", bench.scratch.display())),
    };
    if place.in_memory {
        return Done::inconclusive(
            "the scratch directory lies in memory (tmpfs): no disk was tested; give it another place",
        );
    }
    let bytes = params.mib << 20;
    if place.free.saturating_sub(bytes) < place.total / 10 {
        return Done::inconclusive(format!(
            "a file of {} MiB would leave less than a tenth of the file system free ({} of {} MiB are)",
            params.mib,
            place.free >> 20,
            place.total >> 20
        ));
    }
    bench.note(format!("file system on {}", place.name));
    let scratch = match Scratch::create(bench.scratch) {
        Ok(scratch) => scratch,
        Err(error) => return Done::inconclusive(format!("{}: {error}", bench.scratch.display())),
    };
    if !scratch.direct {
        bench.note("no direct access on this file system: the page cache was dropped instead");
    }
    let device = place.device;
    Trial { bench, scratch, device, bytes, wrong: AtomicU64::new(0), broken: AtomicBool::new(false) }.run()
}

struct Trial<'a> {
    bench: &'a Bench<'a>,
    scratch: Scratch,
    device: Option<DeviceId>,
    bytes: u64,
    wrong: AtomicU64,
    /// The device gave an error: no use to go on.
    broken: AtomicBool,
}

/// Why a part ended early.
enum Stop {
    Time,
    Full,
    Broken(String),
}

impl Trial<'_> {
    fn run(self) -> Done {
        let started = Instant::now();
        let written = match self.write(self.bench.until(0.5)) {
            Ok(written) => written,
            Err(Stop::Full) => {
                return Done::inconclusive("the file system filled up while the test wrote (ENOSPC)");
            }
            Err(Stop::Broken(what)) => return Done::fail(what),
            Err(Stop::Time) => 0,
        };
        if written < SMALL.max(self.bytes / 10) {
            return Done::inconclusive(format!(
                "only {} of {} MiB written in time",
                written >> 20,
                self.bytes >> 20
            ));
        }
        let rate = |bytes: u64, since: Instant| bytes as f64 / since.elapsed().as_secs_f64() / 1e6;
        self.bench.reading(self.device.clone(), "disk.write.bandwidth", rate(written, started), Unit::MBps);
        self.scratch.drop_cache();

        let started = Instant::now();
        let read = match self.read(written, self.bench.until(0.85)) {
            Ok(read) => read,
            Err(Stop::Broken(what)) => return Done::fail(what),
            Err(_) => 0,
        };
        if read > 0 {
            self.bench.reading(self.device.clone(), "disk.read.bandwidth", rate(read, started), Unit::MBps);
        }
        self.scratch.drop_cache();
        if let Err(Stop::Broken(what)) = self.random(written) {
            return Done::fail(what);
        }
        let done = judge(
            self.wrong.load(Ordering::Relaxed),
            "wrong 4 KiB blocks",
            Some("what was read is not what was written"),
        );
        if self.wrong.load(Ordering::Relaxed) > 0 {
            return done;
        }
        if read < written {
            return Done::inconclusive(format!(
                "only {} of {} MiB read back in time",
                read >> 20,
                written >> 20
            ));
        }
        if written < self.bytes {
            self.bench.note(format!("{} of {} MiB in the time given", written >> 20, self.bytes >> 20));
        }
        Done { outcome: TestOutcome::Pass, detail: String::new() }
    }

    /// The file's content is a function of seed and place, as words of [`Pattern::Random`].
    fn key(&self) -> u64 {
        self.bench.seed ^ 0xd15c
    }

    fn write(&self, until: Instant) -> Result<u64, Stop> {
        let written = self.in_chunks(self.bytes, until, "writing", |at, words| {
            lines::write(Pattern::Random, self.key(), words, at, false);
            self.scratch.write(at, bytes_of(words))
        })?;
        self.bench.tick("forcing it to the medium");
        self.scratch.sync().map_err(|error| self.broken("fsync", 0, &error))?;
        Ok(written)
    }

    fn read(&self, written: u64, until: Instant) -> Result<u64, Stop> {
        self.in_chunks(written, until, "reading back", |at, words| {
            self.scratch.read(at, bytes_of(words))?;
            self.check(at, words);
            Ok(())
        })
    }

    fn check(&self, at: u64, words: &mut [u64]) {
        self.bench.tap.produced("disk", bytes_of(words));
        let mut from = 0;
        while let Some(start) = lines::first_wrong_block(Pattern::Random, self.key(), words, at, from) {
            let differs = |i: &usize| words[*i] != Pattern::Random.word(self.key(), at + 8 * *i as u64);
            let first = (start..words.len()).find(differs).unwrap_or(start);
            let (place, got) = (at + 8 * first as u64, words[first]);
            let expected = Pattern::Random.word(self.key(), place);
            if self.wrong.fetch_add(1, Ordering::Relaxed) < MAX_FINDINGS as u64 {
                let detail = format!(
                    "file offset {place:#x}: expected {expected:#018x}, got {got:#018x}, flipped {:#x}",
                    expected ^ got
                );
                self.bench.fault(CORRUPT, self.device.clone(), Action::Replace, detail);
            }
            from = start + (SMALL / 8) as usize;
            if from >= words.len() {
                break;
            }
        }
    }

    /// Calls `each` for every chunk of the file, from several threads; the bytes dealt with, all from the start on.
    fn in_chunks(
        &self,
        bytes: u64,
        until: Instant,
        doing: &str,
        each: impl Fn(u64, &mut [u64]) -> io::Result<()> + Sync,
    ) -> Result<u64, Stop> {
        let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let worker = || -> Result<(), Stop> {
            let mut words: Pages<u64> = Pages::new((CHUNK / 8) as usize).map_err(|_| Stop::Time)?;
            while Instant::now() < until && !self.broken.load(Ordering::Relaxed) {
                let at = next.fetch_add(CHUNK, Ordering::Relaxed);
                if at >= bytes {
                    break;
                }
                let len = CHUNK.min(bytes - at);
                each(at, &mut words[..(len / 8) as usize]).map_err(|error| self.broken(doing, at, &error))?;
                done.fetch_add(len, Ordering::Relaxed);
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
            while threads.iter().any(|thread| !thread.is_finished()) {
                let mib = done.load(Ordering::Relaxed) >> 20;
                self.bench.tick(&format!("{doing}, {mib} of {} MiB", bytes >> 20));
                std::thread::park_timeout(Duration::from_millis(200));
            }
            let ended = threads.into_iter().map(|thread| thread.join().unwrap_or(Err(Stop::Time)));
            ended.collect::<Result<Vec<()>, Stop>>()
        })?;
        // Chunks are taken in order and every one that was taken was finished.
        Ok(done.load(Ordering::Relaxed))
    }

    fn broken(&self, doing: &str, at: u64, error: &io::Error) -> Stop {
        if matches!(
            error.raw_os_error().map(rustix::io::Errno::from_raw_os_error),
            Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT)
        ) {
            return Stop::Full;
        }
        let detail = format!("{doing} at file offset {at:#x}: {error}");
        if !self.broken.swap(true, Ordering::Relaxed) {
            self.bench.fault(IO_ERROR, self.device.clone(), Action::Replace, detail.clone());
        }
        Stop::Broken(detail)
    }

    /// Small reads all over the file, one at a time: how long one takes.
    fn random(&self, written: u64) -> Result<(), Stop> {
        let Ok(mut words) = Pages::<u64>::new((SMALL / 8) as usize) else { return Ok(()) };
        let mut stream = Stream::new(self.bench.seed ^ 0x4b);
        let mut took: Vec<u32> = Vec::new();
        let until = self.bench.stop().min(Instant::now() + RANDOM);
        let mut said = None::<Instant>;
        // A file that was read through once has told enough; small files are not read for ever.
        let most = (written / SMALL * 4).min(MAX_SAMPLES as u64) as usize;
        while took.len() < most && Instant::now() < until {
            if said.is_none_or(|said| said.elapsed() > Duration::from_millis(300)) {
                self.bench.tick(&format!("random reads of 4 KiB, {}", took.len()));
                said = Some(Instant::now());
            }
            let at = stream.below(written / SMALL) * SMALL;
            let started = Instant::now();
            self.scratch
                .read(at, bytes_of(&mut words))
                .map_err(|error| self.broken("random read", at, &error))?;
            took.push(u32::try_from(started.elapsed().as_nanos()).unwrap_or(u32::MAX));
            self.check(at, &mut words);
        }
        took.sort_unstable();
        for (metric, part) in [("disk.random_read.p50", 0.50), ("disk.random_read.p99", 0.99)] {
            if let Some(nanoseconds) = took.get((took.len() as f64 * part) as usize) {
                let microseconds = f64::from(*nanoseconds) / 1e3;
                self.bench.reading(self.device.clone(), metric, microseconds, Unit::Microsecond);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::bench::testing::{FlipOne, Rig};

    const SMALL_FILE: DiskParams = DiskParams { mib: 4 };

    fn rig() -> Rig {
        Rig::new(21, Duration::from_secs(60))
    }

    /// Whether the machine's temporary directory is one that can be tested at all.
    fn testable(done: &Done) -> bool {
        done.outcome != TestOutcome::Inconclusive
    }

    #[test]
    fn a_sound_disk_passes_and_leaves_nothing_behind() {
        let rig = rig();
        let done = work(&SMALL_FILE, &rig.bench(), Path::new("/sys"));
        assert!(rig.findings().is_empty(), "{:?}", rig.findings());
        assert_eq!(std::fs::read_dir(rig.scratch.path()).unwrap().count(), 0);
        if testable(&done) {
            assert_eq!(done, Done::pass());
            let metrics: Vec<String> = rig.readings().into_iter().map(|r| r.reading.metric).collect();
            for metric in ["disk.write.bandwidth", "disk.read.bandwidth", "disk.random_read.p99"] {
                assert!(metrics.iter().any(|m| m == metric), "{metric} missing in {metrics:?}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_found_with_its_place() {
        for seed in 0..8 {
            let rig = rig();
            let tap = FlipOne::new("disk", seed % 5, seed);
            let done = work(&SMALL_FILE, &rig.tapped(&tap), Path::new("/sys"));
            if testable(&done) {
                assert_eq!(done.outcome, TestOutcome::Fail, "{done:?}");
                let findings = rig.findings();
                assert_eq!((findings.len(), findings[0].code.as_str()), (1, CORRUPT), "{findings:?}");
                assert!(findings[0].detail.starts_with("file offset 0x"), "{findings:?}");
            }
        }
    }

    #[test]
    fn a_file_that_would_fill_the_disk_is_refused() {
        let rig = rig();
        let done = work(&DiskParams { mib: 1 << 24 }, &rig.bench(), Path::new("/sys"));
        assert_eq!(done.outcome, TestOutcome::Inconclusive);
        assert!(done.detail.contains("less than a tenth") || done.detail.contains("tmpfs"), "{done:?}");
    }

    #[test]
    fn a_place_that_is_not_there_is_inconclusive_with_its_name() {
        let rig = rig();
        let mut bench = rig.bench();
        let gone = rig.scratch.path().join("gone");
        bench.scratch = &gone;
        let done = work(&SMALL_FILE, &bench, Path::new("/sys"));
        assert_eq!(done.outcome, TestOutcome::Inconclusive);
        assert!(done.detail.contains("gone"), "{done:?}");
    }

    #[test]
    fn a_full_file_system_is_inconclusive_and_other_errors_are_faults() {
        let rig = rig();
        let bench = rig.bench();
        let Ok(scratch) = Scratch::create(rig.scratch.path()) else { return };
        let (wrong, broken) = (AtomicU64::new(0), AtomicBool::new(false));
        let trial = Trial { bench: &bench, scratch, device: None, bytes: CHUNK, wrong, broken };
        let full = rustix::io::Errno::NOSPC.into();
        assert!(matches!(trial.broken("writing", 0, &full), Stop::Full));
        assert!(rig.findings().is_empty());
        let failed = rustix::io::Errno::IO.into();
        assert!(matches!(trial.broken("reading", 0, &failed), Stop::Broken(_)));
        assert_eq!(rig.findings()[0].code, IO_ERROR);
    }
}
