//! The last word of each agent about itself: for sums that need two reports. Lost with the process, which costs nothing.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use whetstone_model::ids::{RunId, Serial};
use whetstone_model::wire::AgentUsage;
use whetstone_store::AgentStats;

use super::Metrics;

#[derive(Debug, Default)]
struct Word {
    stream: String,
    acked: u64,
    /// The agent knows that everything up to here is stored, and the store did not.
    behind: Option<u64>,
    dropped: u64,
    usage: Option<AgentUsage>,
    /// The run that it was last heard to be busy with, as far as the store knows too.
    run: Option<RunId>,
}

/// One word per blade with a certificate.
#[derive(Debug, Default)]
pub(super) struct Remembered(Mutex<HashMap<Serial, Word>>);

impl Remembered {
    fn lock(&self) -> MutexGuard<'_, HashMap<Serial, Word>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what is new since the report before.
    pub fn learn(&self, serial: &Serial, stream: &str, stats: &AgentStats, metrics: &Metrics) {
        let mut words = self.lock();
        let known = words.contains_key(serial);
        let word = words.entry(serial.clone()).or_default();
        // The first word after a start of ours counts nothing: it may have been counted before.
        if word.stream != stream {
            if known {
                metrics.agent_dropped(stats.dropped);
            }
            word.stream = stream.to_owned();
            word.acked = 0;
            word.behind = None;
        } else {
            metrics.agent_dropped(stats.dropped.saturating_sub(word.dropped));
        }
        word.dropped = stats.dropped;
        if let Some(usage) = stats.usage {
            metrics.agent_memory(usage.resident_bytes);
            if let Some(before) = word.usage
                && usage.up_seconds > before.up_seconds
                && usage.cpu_seconds >= before.cpu_seconds
            {
                metrics.agent_cpu(
                    (usage.cpu_seconds - before.cpu_seconds) / (usage.up_seconds - before.up_seconds),
                );
            }
            word.usage = Some(usage);
        }
    }

    /// Up to where everything of a stream is stored, as far as it was said here.
    pub fn acked(&self, serial: &Serial, stream: &str) -> u64 {
        self.lock().get(serial).filter(|word| word.stream == stream).map_or(0, |word| word.acked)
    }

    /// Notes it; the greatest so far comes back.
    pub fn keep_acked(&self, serial: &Serial, stream: &str, acked: u64) -> u64 {
        let mut words = self.lock();
        let word = words.entry(serial.clone()).or_default();
        if word.stream == stream {
            word.acked = word.acked.max(acked);
            word.acked
        } else {
            acked
        }
    }

    /// Holds what an agent was once told to be stored against what the store knew of the stream before its report.
    pub fn compare(&self, serial: &Serial, stream: &str, told: u64, known: u64) {
        let mut words = self.lock();
        if let Some(word) = words.get_mut(serial).filter(|word| word.stream == stream)
            && known < told
        {
            tracing::warn!(blade = %serial, told, known, "the store lost evidence: what stands is said again");
            word.behind = Some(told);
        }
    }

    /// True until the agent has heard of it: after an answer it knows more to be stored than it did.
    pub fn is_behind(&self, serial: &Serial, stream: &str, told: u64) -> bool {
        self.lock().get(serial).is_some_and(|word| word.stream == stream && word.behind == Some(told))
    }

    /// True if the agent was not known to be busy with this run.
    pub fn is_news(&self, serial: &Serial, run: RunId) -> bool {
        self.lock().get(serial).is_none_or(|word| word.run != Some(run))
    }

    pub fn heard(&self, serial: &Serial, run: RunId) {
        self.lock().entry(serial.clone()).or_default().run = Some(run);
    }

    pub fn forget_all(&self) {
        self.lock().clear();
    }
}
