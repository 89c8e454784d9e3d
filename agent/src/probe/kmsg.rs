//! The kernel log, followed live: `/dev/kmsg`, or a file or FIFO that grows (a simulated blade's log, a console server's).
//!
//! One thread reads without blocking, hands each line with what it means to a callback, and otherwise sleeps. It holds
//! one line of bounded length. Lines that the kernel overwrote before they were read are counted, a file that was
//! rotated or truncated is read on from its new beginning.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, SeekFrom, fstat, open, seek};
use rustix::io::{Errno, read};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::time::{ClockId, clock_gettime};
use whetstone_model::fault::lines::{Line, Splitter};
use whetstone_model::fault::{Classifier, DriverVersion, Fault, Rules};

/// The kernel's own log device.
pub const KMSG: &str = "/dev/kmsg";

/// Read at a time, in bytes. The kernel refuses to give a record to a smaller buffer than the record; it makes none over 8 KiB.
const CHUNK: usize = 16 * 1024;

/// Reads between two looks at whether to stop: a log that is written faster than it is read must not hold us up.
const MAX_READS: usize = 256;

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// With what is there already.
    Start,
    /// With what comes from now on.
    End,
}

#[derive(Debug, Clone)]
pub struct FollowOptions {
    pub path: PathBuf,
    pub from: From,
    /// Driver version, if it is known: it decides how NVLink 5 errors are read.
    pub driver: Option<DriverVersion>,
    /// How often a plain file is looked at; devices and FIFOs wake the follower themselves.
    pub interval: Duration,
}

impl Default for FollowOptions {
    fn default() -> Self {
        Self { path: KMSG.into(), from: From::End, driver: None, interval: Duration::from_millis(200) }
    }
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelLine<'a> {
    /// Milliseconds since the Unix epoch: from the record's own time where it has one, else when it was read.
    pub at_ms: i64,
    /// As it stands in the log; bytes that are not UTF-8 are replaced.
    pub line: Cow<'a, str>,
    pub fault: Option<Fault>,
}

/// What a follower has seen so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FollowStats {
    pub lines: u64,
    pub faults: u64,
    /// Times that the kernel had overwritten records before they were read.
    pub overruns: u64,
    /// Lines that were longer than the limit and were cut.
    pub cut: u64,
    /// Times that the file was replaced or truncated.
    pub rotations: u64,
    /// The source failed and is no longer followed.
    pub failed: bool,
}

/// Why a log cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    #[error("kernel log {path}: {source}")]
    Open { path: String, source: io::Error },
    #[error("fault tables: {0}")]
    Tables(String),
    #[error("follower of the kernel log: {0}")]
    Start(#[source] io::Error),
}

impl FollowError {
    /// For metrics.
    pub fn category(&self) -> &'static str {
        match self {
            FollowError::Open { .. } => "kmsg_open",
            FollowError::Tables(_) => "kmsg_tables",
            FollowError::Start(_) => "kmsg_start",
        }
    }

    /// A log that is not there yet may come; one that may not be read stays so.
    pub fn is_transient(&self) -> bool {
        matches!(self, FollowError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

#[derive(Debug, Default)]
struct Counters {
    lines: AtomicU64,
    faults: AtomicU64,
    overruns: AtomicU64,
    cut: AtomicU64,
    rotations: AtomicU64,
    failed: AtomicBool,
}

/// Follows a log until it is stopped or dropped.
#[derive(Debug)]
pub struct KmsgFollower {
    counters: Arc<Counters>,
    /// Closing it wakes the thread and ends it.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl KmsgFollower {
    /// Opens the log and begins; with [`From::End`] every line that is written after this returns is seen.
    ///
    /// `each` runs on the follower's thread for every line, in order; it should be quick and must not wait for the
    /// thread that stops the follower.
    pub fn start(
        options: FollowOptions,
        each: impl FnMut(KernelLine<'_>) + Send + 'static,
    ) -> Result<Self, FollowError> {
        let rules = Rules::builtin().map_err(|e| FollowError::Tables(e.to_string()))?;
        let source = Source::open(&options.path, options.from)
            .map_err(|source| FollowError::Open { path: options.path.display().to_string(), source })?;
        let (stopped, stop) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| FollowError::Start(e.into()))?;
        let counters = Arc::new(Counters::default());
        let mut reader = Reader {
            path: options.path,
            source,
            splitter: Splitter::default(),
            classifier: Classifier::new(rules, options.driver),
            each,
            counters: counters.clone(),
        };
        let interval = options.interval;
        let thread = std::thread::Builder::new()
            .name("kmsg".to_owned())
            .spawn(move || reader.run(&stopped, interval))
            .map_err(FollowError::Start)?;
        Ok(Self { counters, stop: Some(stop), thread: Some(thread) })
    }

    pub fn stats(&self) -> FollowStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FollowStats {
            lines: load(&self.counters.lines),
            faults: load(&self.counters.faults),
            overruns: load(&self.counters.overruns),
            cut: load(&self.counters.cut),
            rotations: load(&self.counters.rotations),
            failed: self.counters.failed.load(Ordering::Relaxed),
        }
    }

    /// Reads what is there, ends, and says what was seen in all.
    pub fn stop(mut self) -> FollowStats {
        self.end();
        self.stats()
    }

    fn end(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // Only a panic of the callback ends the thread otherwise; it has been told on standard error.
            let _ = thread.join();
        }
    }
}

impl Drop for KmsgFollower {
    fn drop(&mut self) {
        self.end();
    }
}

/// What sort of thing the log is; each has its own way of saying "nothing yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// End of file; looked at again after a while; may be rotated.
    File,
    /// `EAGAIN`, then `poll`.
    Device,
    /// End of file while nobody has it open for writing.
    Fifo,
}

#[derive(Debug)]
struct Source {
    file: OwnedFd,
    sort: Sort,
}

impl Source {
    fn open(path: &Path, from: From) -> io::Result<Self> {
        let file = open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        let kind = File::metadata(&File::from(file.try_clone()?))?.file_type();
        let sort = if kind.is_fifo() {
            Sort::Fifo
        } else if kind.is_char_device() {
            Sort::Device
        } else if kind.is_file() {
            Sort::File
        } else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "neither a file, a FIFO nor a character device",
            ));
        };
        if from == From::End && sort != Sort::Fifo {
            seek(&file, SeekFrom::End(0))?;
        }
        Ok(Self { file, sort })
    }
}

/// What to do after a read.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// There may be more.
    Read,
    /// Nothing for now: wait until the source can be read.
    Poll,
    /// Nothing for now, and the source will not wake us.
    Sleep,
    /// The source is lost.
    End,
}

struct Reader<F> {
    path: PathBuf,
    source: Source,
    splitter: Splitter,
    classifier: Classifier<'static>,
    each: F,
    counters: Arc<Counters>,
}

impl<F: FnMut(KernelLine<'_>)> Reader<F> {
    fn run(&mut self, stopped: &OwnedFd, interval: Duration) {
        let mut chunk = vec![0; CHUNK];
        loop {
            // Told to stop: what has been written by now is still read, as far as an end of it is in sight.
            let stopping = is_ready(stopped);
            let mut next = Next::Read;
            for _ in 0..MAX_READS {
                let result = read(&self.source.file, &mut chunk[..]);
                next = self.after(result.map(|bytes| &chunk[..bytes]));
                if next != Next::Read {
                    break;
                }
            }
            if stopping {
                break;
            }
            let file = &self.source.file;
            let mut waiting = vec![PollFd::new(stopped, PollFlags::IN)];
            let limit = match next {
                Next::End => return,
                Next::Poll => {
                    waiting.push(PollFd::new(file, PollFlags::IN));
                    None
                }
                Next::Read => continue,
                Next::Sleep => Timespec::try_from(interval).ok(),
            };
            // An interrupted wait is only a short one.
            let _ = poll(&mut waiting, limit.as_ref());
            if next == Next::Sleep {
                self.look_for_rotation();
            }
        }
        self.finish();
    }

    fn after(&mut self, result: Result<&[u8], Errno>) -> Next {
        match result {
            Ok([]) => Next::Sleep,
            Ok(bytes) => {
                self.take(bytes);
                Next::Read
            }
            Err(Errno::INTR) => Next::Read,
            Err(Errno::AGAIN) => Next::Poll,
            // The kernel overwrote what we had not read; the next read gives the oldest record that is left.
            Err(Errno::PIPE) => {
                self.counters.overruns.fetch_add(1, Ordering::Relaxed);
                self.splitter.reset();
                Next::Read
            }
            Err(_) => {
                self.counters.failed.store(true, Ordering::Relaxed);
                self.finish();
                Next::End
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let Self { splitter, classifier, each, counters, .. } = self;
        let Ok(()) = splitter.push(bytes, |line| -> Result<(), std::convert::Infallible> {
            tell(line, classifier, each, counters);
            Ok(())
        });
    }

    fn finish(&mut self) {
        let Self { splitter, classifier, each, counters, .. } = self;
        let Ok(()) = splitter.finish(|line| -> Result<(), std::convert::Infallible> {
            tell(line, classifier, each, counters);
            Ok(())
        });
    }

    /// A plain file that became shorter is read from its start, one that was replaced is left for the new one.
    fn look_for_rotation(&mut self) {
        if self.source.sort != Sort::File {
            return;
        }
        let Ok(open) = fstat(&self.source.file) else { return };
        let Ok(now) = std::fs::metadata(&self.path) else { return };
        if (now.dev(), now.ino()) != (open.st_dev, open.st_ino) {
            // The path may hold anything by now; if it cannot be followed we wait for one that can.
            let Ok(source) = Source::open(&self.path, From::Start) else { return };
            // What was written to the old file between our last read and its replacement.
            let mut chunk = vec![0; CHUNK];
            while let Ok(bytes @ 1..) = read(&self.source.file, &mut chunk[..]) {
                self.take(&chunk[..bytes]);
            }
            self.finish();
            self.source = source;
            self.counters.rotations.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let position = seek(&self.source.file, SeekFrom::Current(0)).unwrap_or_default();
        if now.len() < position && seek(&self.source.file, SeekFrom::Start(0)).is_ok() {
            self.splitter.reset();
            self.counters.rotations.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn tell(
    line: Line<'_>,
    classifier: &mut Classifier<'_>,
    each: &mut impl FnMut(KernelLine<'_>),
    counters: &Counters,
) {
    let fault = classifier.line(line.bytes);
    counters.lines.fetch_add(1, Ordering::Relaxed);
    counters.cut.fetch_add(u64::from(line.cut), Ordering::Relaxed);
    counters.faults.fetch_add(u64::from(fault.is_some()), Ordering::Relaxed);
    each(KernelLine { at_ms: at_ms(line.bytes), line: String::from_utf8_lossy(line.bytes), fault });
}

/// Whether the pipe's other end was closed.
fn is_ready(pipe: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Time of a record of `/dev/kmsg` (microseconds since boot in its third field), else now.
fn at_ms(line: &[u8]) -> i64 {
    let now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    let up = clock_gettime(ClockId::Monotonic);
    let up_us = up.tv_sec.saturating_mul(1_000_000).saturating_add(up.tv_nsec / 1000);
    match record_us(line) {
        // A record from the future was not written by this machine since it booted.
        Some(us) if us <= up_us => now_ms - (up_us - us) / 1000,
        _ => now_ms,
    }
}

fn record_us(line: &[u8]) -> Option<i64> {
    let header = line.iter().take(64).position(|b| *b == b';').map(|end| &line[..end])?;
    let mut fields = std::str::from_utf8(header).ok()?.split(',');
    let (_, _, us) =
        (fields.next()?.parse::<u32>().ok()?, fields.next()?.parse::<u64>().ok()?, fields.next()?);
    us.parse().ok().filter(|us| *us >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::mpsc::{Receiver, channel};

    const XID: &str = "3,7,1000000,-;NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.\n";
    /// Long enough for a loaded machine; a test that waits this long has failed.
    const PATIENCE: Duration = Duration::from_secs(30);

    type Heard = (String, Option<String>);

    fn follow(path: &Path, from: From) -> (KmsgFollower, Receiver<Heard>) {
        let (tell, heard) = channel();
        let interval = Duration::from_millis(5);
        let options = FollowOptions { path: path.to_owned(), from, interval, ..FollowOptions::default() };
        let follower = KmsgFollower::start(options, move |line| {
            let fault = line.fault.map(|fault| format!("{} {}", fault.kind, fault.code));
            let _ = tell.send((line.line.into_owned(), fault));
        });
        (follower.unwrap(), heard)
    }

    fn append(path: &Path, text: &str) {
        File::options().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn next(heard: &Receiver<Heard>) -> Heard {
        heard.recv_timeout(PATIENCE).expect("a line that was written was not told")
    }

    fn fault() -> Heard {
        (XID.trim_end().to_owned(), Some("xid 79".to_owned()))
    }

    #[test]
    fn a_growing_file_is_followed_from_its_end_or_its_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kmsg");
        append(&path, "6,1,1,-;old\n");
        let (from_end, end) = follow(&path, From::End);
        let (from_start, start) = follow(&path, From::Start);
        assert_eq!(next(&start), ("6,1,1,-;old".to_owned(), None));
        // A line that comes in two pieces is one line.
        append(&path, &XID[..30]);
        append(&path, &XID[30..]);
        assert_eq!((next(&start), next(&end)), (fault(), fault()));
        let stats = from_end.stop();
        assert_eq!((stats.lines, stats.faults, stats.rotations, stats.failed), (1, 1, 0, false));
        assert_eq!(from_start.stop().lines, 2);
    }

    #[test]
    fn what_was_written_before_the_stop_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kmsg");
        append(&path, "");
        let (follower, heard) = follow(&path, From::End);
        append(&path, &format!("{XID}6,2,2,-;without an end"));
        assert_eq!(follower.stop().lines, 2);
        assert_eq!(
            heard.iter().map(|(line, _)| line).collect::<Vec<_>>(),
            [XID.trim_end(), "6,2,2,-;without an end"]
        );
    }

    #[test]
    fn a_file_that_is_truncated_or_replaced_is_read_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kmsg");
        append(&path, "6,1,1,-;a line that is long enough\n");
        let (follower, heard) = follow(&path, From::Start);
        next(&heard);
        File::create(&path).unwrap();
        // Only a follower that has seen the short file can be sure that the next line is new.
        while follower.stats().rotations < 1 {
            std::thread::yield_now();
        }
        append(&path, "6,2,2,-;after\n");
        assert_eq!(next(&heard).0, "6,2,2,-;after");
        append(&path, "6,3,3,-;last of the old\n");
        std::fs::rename(&path, dir.path().join("kmsg.1")).unwrap();
        append(&path, XID);
        assert_eq!(next(&heard).0, "6,3,3,-;last of the old");
        assert_eq!(next(&heard), fault());
        assert_eq!(follower.stop().rotations, 2);
    }

    #[test]
    fn a_fifo_outlives_its_writers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::from_raw_mode(0o600)).unwrap();
        let (follower, heard) = follow(&path, From::End);
        for _ in 0..2 {
            let mut writer = File::options().write(true).open(&path).unwrap();
            writer.write_all(XID.as_bytes()).unwrap();
            drop(writer);
            assert_eq!(next(&heard), fault());
        }
        assert_eq!(follower.stop().faults, 2);
    }

    fn reader(path: &Path) -> Reader<impl FnMut(KernelLine<'_>)> {
        Reader {
            path: path.to_owned(),
            source: Source::open(path, From::Start).unwrap(),
            splitter: Splitter::default(),
            classifier: Classifier::new(Rules::builtin().unwrap(), None),
            each: |_: KernelLine<'_>| {},
            counters: Arc::new(Counters::default()),
        }
    }

    #[test]
    fn overwritten_records_are_counted_and_a_lost_source_is_said() {
        let mut reader = reader(Path::new("/dev/null"));
        assert_eq!(reader.after(Ok(XID.as_bytes())), Next::Read);
        assert_eq!(reader.after(Err(Errno::PIPE)), Next::Read);
        assert_eq!(reader.after(Err(Errno::AGAIN)), Next::Poll);
        assert_eq!(reader.after(Err(Errno::INTR)), Next::Read);
        let counted = |c: &AtomicU64| c.load(Ordering::Relaxed);
        assert_eq!((counted(&reader.counters.overruns), counted(&reader.counters.faults)), (1, 1));
        assert!(!reader.counters.failed.load(Ordering::Relaxed));
        assert_eq!(reader.after(Err(Errno::IO)), Next::End);
        assert!(reader.counters.failed.load(Ordering::Relaxed));
    }

    #[test]
    fn a_long_line_is_cut_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kmsg");
        append(&path, &format!("{}\n{XID}", "x".repeat(100_000)));
        let (follower, heard) = follow(&path, From::Start);
        assert_eq!(next(&heard).0.len(), whetstone_model::fault::lines::MAX_LINE);
        assert_eq!(next(&heard), fault());
        assert_eq!(follower.stop().cut, 1);
    }

    #[test]
    fn a_log_that_is_not_there_is_an_error_with_its_path() {
        let error = KmsgFollower::start(
            FollowOptions { path: "/nowhere/kmsg".into(), ..FollowOptions::default() },
            |_| {},
        )
        .unwrap_err();
        assert!(
            error.to_string().starts_with("kernel log /nowhere/kmsg: ") && error.is_transient(),
            "{error}"
        );
        let directory = FollowOptions { path: "/".into(), ..FollowOptions::default() };
        assert!(!KmsgFollower::start(directory, |_| {}).unwrap_err().is_transient());
    }

    #[test]
    fn the_records_own_time_is_taken_unless_it_cannot_be() {
        let now = at_ms(b"no record");
        let up = clock_gettime(ClockId::Monotonic);
        let us = up.tv_sec * 1_000_000 + up.tv_nsec / 1000 - 500_000;
        let half_a_second_ago = at_ms(format!("6,1,{us},-;x").as_bytes());
        assert!((-60_000..=-400).contains(&(half_a_second_ago - at_ms(b"x"))), "{half_a_second_ago} {now}");
        assert!(at_ms(b"6,1,9999999999999999,-;from the future") >= now);
        assert_eq!((record_us(b"6,1,77,-;x"), record_us(b"a;b"), record_us(b"1,2;")), (Some(77), None, None));
    }
}
