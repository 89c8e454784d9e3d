//! The last word of each agent about itself: for sums that need two reports. Lost with the process, which costs nothing.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use whetstone_model::ids::{RunId, Serial};
use whetstone_model::wire::AgentUsage;
use whetstone_store::{AgentStats, Stored};

use super::Metrics;

#[derive(Debug, Default)]
struct Word {
    stream: String,
    acked: u64,
    /// What the agent was told to be stored when it was not: until it is told more, it has to say again what stands.
    lost: Option<u64>,
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
            word.lost = None;
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

    /// What an agent with nothing new hears: up to where its stream is stored, and whether it has to say again what stands. `None`
    /// where it was `told` more than was ever said here: the store has to be asked, it may be an older one.
    pub fn known(&self, serial: &Serial, stream: &str, told: u64) -> Option<(u64, bool)> {
        let words = self.lock();
        let word = words.get(serial).filter(|word| word.stream == stream);
        let (acked, lost) = word.map_or((0, None), |word| (word.acked, word.lost));
        let again = lost == Some(told);
        (told <= acked || again).then_some((acked, again))
    }

    /// Notes what the store answered to an agent that was `told` this much, and says what the agent is to hear.
    pub fn keep(&self, serial: &Serial, stream: &str, told: u64, stored: &Stored) -> (u64, bool) {
        let mut words = self.lock();
        let word = words.entry(serial.clone()).or_default();
        if word.stream != stream {
            return (stored.acked, stored.lost);
        }
        if stored.lost {
            word.lost = Some(told);
        }
        word.acked = word.acked.max(stored.acked);
        (word.acked, stored.lost)
    }

    /// True if the agent was not known to be busy with this run.
    pub fn is_news(&self, serial: &Serial, run: RunId) -> bool {
        self.lock().get(serial).is_none_or(|word| word.run != Some(run))
    }

    pub fn heard(&self, serial: &Serial, run: RunId) {
        self.lock().entry(serial.clone()).or_default().run = Some(run);
    }

    pub fn forget(&self, serial: &Serial) {
        self.lock().remove(serial);
    }

    pub fn forget_all(&self) {
        self.lock().clear();
    }
}
