//! Watch mode: looks at the blade at an interval and says what changed.

mod change;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use serde::Serialize;
use whetstone_model::evidence::Finding;
use whetstone_model::facts::Facts;
use whetstone_model::health::{self, Counters};
use whetstone_model::threshold::Table;

use crate::probe::kmsg::{FollowError, FollowOptions, KmsgFollower};
use crate::probe::{Depth, ProbeOptions, Prober, now_ms};

pub use change::{Change, changes};

/// What to watch.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    pub probe: ProbeOptions,
    /// Between the beginnings of two looks.
    pub interval: Duration,
    /// The kernel log to follow; `None` = none.
    pub kmsg: Option<PathBuf>,
}

/// One line of what the watch says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// Milliseconds since the Unix epoch, by the blade's clock.
    pub at_ms: i64,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// The first look is done; findings follow as `appeared`.
    Started {
        gpus: usize,
        simulated: bool,
    },
    Appeared {
        finding: Finding,
    },
    /// Its severity or action is another one now.
    Changed {
        finding: Finding,
    },
    /// Was there at the last look and is not any more.
    Cleared {
        finding: Finding,
    },
    /// A line of the kernel log that is a fault.
    Kernel {
        finding: Finding,
        line: String,
    },
    /// The kernel log cannot be followed, or lines of it were lost.
    KernelGap {
        why: String,
    },
    Stopped,
}

/// Faults of the kernel log that wait to be said at most; a storm beyond it is counted.
const KERNEL_QUEUE: usize = 1024;

/// Longest part of a kernel line that is repeated, bytes.
const MAX_LINE: usize = 1000;

/// What wakes the watch between two looks.
enum Wake {
    Kernel(Box<Event>),
    Stop,
}

/// Who is told what a watch sees. Called from the watch's thread.
pub trait Watcher {
    fn say(&mut self, event: Event);

    /// After each look and what was said about it: the facts, everything that is found now, and how long it took.
    fn looked(&mut self, facts: &Facts, found: &[Finding], took: Duration) {
        let (_, _, _) = (facts, found, took);
    }
}

impl<F: FnMut(Event)> Watcher for F {
    fn say(&mut self, event: Event) {
        self(event);
    }
}

/// Watches until a message comes over `stop` or its sender is gone. `say` is called from this thread.
pub fn watch(options: &WatchOptions, stop: Receiver<()>, mut say: impl FnMut(Event)) {
    watch_from(options, Vec::new(), stop, &mut say);
}

/// As [`watch`], where `known` was found earlier: only what is different from it is said at the first look.
pub fn watch_from(
    options: &WatchOptions,
    mut known: Vec<Finding>,
    stop: Receiver<()>,
    watcher: &mut dyn Watcher,
) {
    let (wake, woken) = sync_channel(KERNEL_QUEUE);
    let lost = Arc::new(AtomicU64::new(0));
    let log = options.kmsg.as_ref().map(|path| follow(path, wake.clone(), lost.clone()));
    let log = match log.transpose() {
        Ok(log) => log,
        Err(error) => {
            watcher.say(Event { at_ms: now_ms(), what: What::KernelGap { why: error.to_string() } });
            None
        }
    };
    // A thread of its own waits for the end, so that the loop below waits in one place only.
    std::thread::spawn(move || {
        let _ = stop.recv();
        let _ = wake.send(Wake::Stop);
    });
    // Read once: the tables do not change while the agent runs.
    let table = Table::built_in().unwrap_or_default();
    let mut prober = Prober::new(options.probe.clone());
    let mut rates = Rates::default();
    let mut first = true;
    let mut next = Instant::now();
    loop {
        let begun = Instant::now();
        let facts = prober.look(Depth::Watch);
        let at_ms = facts.at_ms;
        let mut found = health::findings(&facts, &table);
        found.extend(rates.judge(&facts, &table));
        if first {
            watcher.say(Event {
                at_ms,
                what: What::Started { gpus: facts.gpus.len(), simulated: facts.simulated() },
            });
            first = false;
        }
        for change in changes(&known, &found) {
            watcher.say(Event { at_ms, what: change.into() });
        }
        watcher.looked(&facts, &found, begun.elapsed());
        known = found;
        // A look that took longer than the interval is not made up for.
        next = (next + options.interval).max(Instant::now());
        if !rest(&woken, next, &facts, watcher) {
            break;
        }
        let missed = lost.swap(0, Ordering::Relaxed);
        if missed > 0 {
            let why = format!("{missed} faults of the kernel log came faster than they could be said");
            watcher.say(Event { at_ms: now_ms(), what: What::KernelGap { why } });
        }
    }
    drop(log);
    watcher.say(Event { at_ms: now_ms(), what: What::Stopped });
}

/// Waits until the next look is due and says what the kernel says meanwhile. False when the watch is to end.
fn rest(woken: &Receiver<Wake>, next: Instant, facts: &Facts, watcher: &mut dyn Watcher) -> bool {
    loop {
        match woken.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(Wake::Kernel(event)) => watcher.say(named(*event, facts)),
            Err(RecvTimeoutError::Timeout) => return true,
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

/// The kernel names a GPU by its place on the bus; where that GPU is known, its UUID is put in its stead.
fn named(mut event: Event, facts: &Facts) -> Event {
    if let What::Kernel { finding, .. } = &mut event.what
        && let Some(address) = finding.device.as_ref().map(|device| device.as_str().to_owned())
    {
        let here = |pci: &Option<String>| {
            pci.as_deref()
                .is_some_and(|pci| pci == address || pci.strip_suffix(".0") == Some(address.as_str()))
        };
        let gpu = facts.gpus.iter().find(|gpu| here(&gpu.identity.pci)).map(|gpu| &gpu.uuid);
        let gap = facts.gpu_gaps.iter().find(|gap| here(&gap.pci)).and_then(|gap| gap.uuid.as_ref());
        if let Some(uuid) = gpu.or(gap) {
            finding.device = Some(uuid.clone());
        }
    }
    event
}

fn follow(path: &Path, wake: SyncSender<Wake>, lost: Arc<AtomicU64>) -> Result<KmsgFollower, FollowError> {
    let options = FollowOptions { path: path.to_owned(), ..FollowOptions::default() };
    KmsgFollower::start(options, move |line| {
        let Some(fault) = line.fault else { return };
        let text = line.line.get(..line.line.floor_char_boundary(MAX_LINE)).unwrap_or_default();
        let what = What::Kernel { finding: fault.finding(), line: text.to_owned() };
        let event = Box::new(Event { at_ms: line.at_ms, what });
        if let Err(TrySendError::Full(_)) = wake.try_send(Wake::Kernel(event)) {
            lost.fetch_add(1, Ordering::Relaxed);
        }
    })
}

impl From<Change> for What {
    fn from(change: Change) -> Self {
        match change {
            Change::Appeared(finding) => What::Appeared { finding },
            Change::Changed(finding) => What::Changed { finding },
            Change::Cleared(finding) => What::Cleared { finding },
        }
    }
}

/// What counted up lately: the looks are held against one of five to ten minutes ago, so that a single event is
/// not taken for a storm and a storm is seen at once.
#[derive(Default)]
struct Rates {
    older: Option<(i64, Counters)>,
    newer: Option<(i64, Counters)>,
}

const WINDOW_MS: i64 = 5 * 60 * 1000;

impl Rates {
    fn judge(&mut self, facts: &Facts, table: &Table) -> Vec<Finding> {
        let now = Counters::of(facts);
        let found = match self.older.as_ref() {
            Some((at, then)) => {
                let seconds = (facts.at_ms - at) as f64 / 1000.0;
                let sku = health::profile(facts, table).map(|profile| profile.sku.as_str());
                let mut found = health::deltas(then, &now, seconds, sku, table);
                // A count that is going up without being a fault is said once by the total.
                found.retain(|finding| finding.severity > whetstone_model::action::Severity::Info);
                found
            }
            None => Vec::new(),
        };
        let age = |slot: &Option<(i64, Counters)>| slot.as_ref().map(|(at, _)| facts.at_ms - at);
        match (age(&self.older), age(&self.newer)) {
            (None, _) => self.older = Some((facts.at_ms, now)),
            (Some(_), None) => self.newer = Some((facts.at_ms, now)),
            // A clock that was set back starts the window anew.
            (Some(older), Some(newer)) if newer >= WINDOW_MS || older < 0 || newer < 0 => {
                self.older = self.newer.take();
                self.newer = Some((facts.at_ms, now));
            }
            _ => {}
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use whetstone_model::facts::PciDevice;

    fn facts(minute: i64, corrected: u64) -> Facts {
        let mut device = PciDevice { address: "0000:01:00.0".into(), has_aer: true, ..PciDevice::default() };
        device.aer_correctable.insert("BadTLP".into(), corrected);
        Facts { at_ms: minute * 60_000, pci: vec![device], ..Facts::default() }
    }

    #[test]
    fn a_storm_is_seen_at_the_next_look_and_forgotten_when_it_is_over() {
        let table = Table::built_in().unwrap();
        let mut rates = Rates::default();
        assert!(rates.judge(&facts(0, 5), &table).is_empty());
        assert!(rates.judge(&facts(1, 5), &table).is_empty());
        let storm = rates.judge(&facts(2, 5000), &table);
        assert_eq!(storm.len(), 1, "{storm:?}");
        assert_eq!(storm[0].code, "pcie-aer-correctable");
        for minute in 3..20 {
            rates.judge(&facts(minute, 5000), &table);
        }
        assert!(rates.judge(&facts(20, 5000), &table).is_empty());
    }

    #[test]
    fn a_kernel_line_about_a_known_gpu_carries_its_uuid() {
        let gpu = serde_json::json!({"uuid": "GPU-1", "index": 0, "pci": "0000:2a:00.0"});
        let facts = Facts { gpus: vec![serde_json::from_value(gpu).unwrap()], ..Facts::default() };
        let device_of = |address: &str| {
            let finding = Finding {
                code: "xid-79".into(),
                device: whetstone_model::device::DeviceId::new(address).ok(),
                severity: whetstone_model::action::Severity::Fault,
                action: whetstone_model::action::Action::Reboot,
                detail: String::new(),
                reading: None,
            };
            match named(Event { at_ms: 0, what: What::Kernel { finding, line: String::new() } }, &facts).what
            {
                What::Kernel { finding, .. } => finding.device.unwrap().to_string(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(device_of("0000:2a:00"), "GPU-1");
        assert_eq!(device_of("0000:2a:00.0"), "GPU-1");
        assert_eq!(device_of("0000:2b:00.0"), "0000:2b:00.0");
    }

    #[test]
    fn the_watch_stops_when_it_is_told_to_and_says_so() {
        let root = tempfile::tempdir().unwrap();
        let (stop, stopped) = channel();
        stop.send(()).unwrap();
        let options = WatchOptions {
            probe: ProbeOptions {
                nvml_lib: Some(root.path().join("no-library")),
                root: root.path().to_owned(),
                timeout: Duration::from_secs(10),
            },
            interval: Duration::from_secs(3600),
            kmsg: None,
        };
        let mut said = Vec::new();
        watch(&options, stopped, |event| said.push(event.what));
        assert!(matches!(said.first(), Some(What::Started { gpus: 0, simulated: false })), "{said:?}");
        assert!(
            said.iter()
                .any(|what| matches!(what, What::Appeared { finding } if finding.code == "source-error"))
        );
        assert_eq!(said.last(), Some(&What::Stopped));
    }
}
