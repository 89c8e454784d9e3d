//! What the agent's threads have in common.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use whetstone_model::wire::{BladeFacts, ItemBody, RunProgress};

use super::client::Client;
use super::log::{self, Lasting, Level};
use super::spool::{Kept, Spool};

/// What a thread that panicked leaves behind is still the best there is: each value is whole after each statement.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers for `/metrics`.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Reports by how they ended: `ok`, or the category of the error.
    pub reports: BTreeMap<&'static str, u64>,
    pub last_report: Option<Instant>,
    /// By this blade's clock; milliseconds since the Unix epoch.
    pub certificate_ends_ms: Option<i64>,
    /// Findings that stand now, by severity.
    pub findings: BTreeMap<&'static str, u64>,
    pub look_s: f64,
}

/// What wakes the reporter.
#[derive(Debug, Default)]
struct Signals {
    stop: bool,
    /// A fault is to be reported.
    urgent: bool,
    /// Something else happened that the reporter should look at.
    stirred: bool,
    /// The operator lost what stands: it has to be said again.
    say_again: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub started: Instant,
    spool: Mutex<Spool>,
    spool_trouble: Lasting,
    /// The blade's facts and how often they changed.
    facts: Mutex<(u64, Option<BladeFacts>)>,
    /// The run that goes on.
    pub progress: Mutex<Option<RunProgress>>,
    /// The way to the operator, while there is one.
    pub client: Mutex<Option<Client>>,
    pub counts: Mutex<Counts>,
    signals: Mutex<Signals>,
    signalled: Condvar,
}

impl Shared {
    pub fn new(spool: Spool) -> Shared {
        Shared {
            started: Instant::now(),
            spool: Mutex::new(spool),
            spool_trouble: Lasting::default(),
            facts: Mutex::new((0, None)),
            progress: Mutex::new(None),
            client: Mutex::new(None),
            counts: Mutex::new(Counts::default()),
            signals: Mutex::new(Signals::default()),
            signalled: Condvar::new(),
        }
    }

    pub fn spool(&self) -> MutexGuard<'_, Spool> {
        lock(&self.spool)
    }

    /// Spools an item and says so when that does not go as it should.
    pub fn append(&self, at_ms: i64, body: ItemBody) {
        let kept = self.spool().append(at_ms, body);
        match kept {
            Kept::Disk => self.spool_trouble.well("spool is on disk again"),
            Kept::Memory => self.spool_trouble.failed(
                Level::Error,
                "spool cannot be written: findings wait in memory",
                &[],
                "disk full, read-only or broken",
            ),
            Kept::Lost => self.spool_trouble.failed(Level::Error, "a finding was lost", &[], "no room"),
            // Counted, and what the bound is for.
            Kept::Dropped => {}
        }
    }

    pub fn note(&self, text: impl Into<String>) {
        self.append(crate::probe::now_ms(), ItemBody::Note { text: text.into() });
    }

    /// Makes what was spooled durable.
    pub fn sync(&self) {
        let synced = self.spool().sync();
        if let Err(error) = synced {
            self.spool_trouble.failed(Level::Error, "spool cannot be written", &[], &error.to_string());
        }
    }

    /// Takes facts in; a change is reported.
    pub fn learn(&self, facts: BladeFacts) {
        let mut known = lock(&self.facts);
        if known.1.as_ref() != Some(&facts) {
            *known = (known.0 + 1, Some(facts));
            drop(known);
            self.stir();
        }
    }

    /// The facts and the number of their version, once there are any.
    pub fn facts(&self) -> Option<(u64, BladeFacts)> {
        let known = lock(&self.facts);
        known.1.clone().map(|facts| (known.0, facts))
    }

    pub fn stop(&self) {
        lock(&self.signals).stop = true;
        self.signalled.notify_all();
    }

    pub fn stopping(&self) -> bool {
        lock(&self.signals).stop
    }

    /// A fault waits to be reported.
    pub fn urge(&self) {
        let mut signals = lock(&self.signals);
        (signals.urgent, signals.stirred) = (true, true);
        self.signalled.notify_all();
    }

    pub fn stir(&self) {
        lock(&self.signals).stirred = true;
        self.signalled.notify_all();
    }

    /// Whether a fault waits to be reported; it counts as reported from now on.
    pub fn take_urgent(&self) -> bool {
        std::mem::take(&mut lock(&self.signals).urgent)
    }

    /// What stands is to be said again with the next look.
    pub fn ask_again(&self) {
        lock(&self.signals).say_again = true;
    }

    /// Whether what stands has to be said again; it counts as said from now on.
    pub fn take_again(&self) -> bool {
        std::mem::take(&mut lock(&self.signals).say_again)
    }

    pub fn is_urgent(&self) -> bool {
        lock(&self.signals).urgent
    }

    /// Sleeps until something happens, for `limit` at most.
    pub fn rest(&self, limit: Duration) {
        let mut signals = lock(&self.signals);
        if !signals.stop && !signals.stirred {
            signals = self
                .signalled
                .wait_timeout(signals, limit)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(signals, _)| signals);
        }
        signals.stirred = false;
    }

    /// Sleeps until the agent is to stop, for `limit` at most; true when it is to stop.
    pub fn rest_until_stop(&self, limit: Duration) -> bool {
        let signals = lock(&self.signals);
        let waited = self.signalled.wait_timeout_while(signals, limit, |signals| !signals.stop);
        waited.map_or_else(|poisoned| poisoned.into_inner().0.stop, |(signals, _)| signals.stop)
    }

    pub fn count_report(&self, result: &'static str) {
        let mut counts = lock(&self.counts);
        *counts.reports.entry(result).or_default() += 1;
        if result == "ok" {
            counts.last_report = Some(Instant::now());
        }
    }
}

/// Starts a thread with a name; without it the agent cannot do its work.
pub(super) fn thread(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).inspect_err(|e| {
        log::error("a thread cannot be started", &[("thread", &name), ("why", e)]);
    })
}
