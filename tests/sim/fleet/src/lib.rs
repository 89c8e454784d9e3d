//! Thousands of agents in one process, speaking the real protocol to a real operator. Not shipped.
//!
//! What is simulated is the blade: its burn-ins take as long as they are told to and end as its script says. The certificates,
//! the signatures and every byte on the wire are real.

mod agent;
mod client;
mod readings;
mod report;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use whetstone_model::ids::Serial;

/// How a burn-in of a blade ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    Pass,
    Fail,
    Inconclusive,
    /// The agent takes the run up and never speaks of it again.
    Lost,
    /// Passes, but one GPU does a fifth less than its like.
    Slow,
}

/// One simulated blade.
#[derive(Debug, Clone)]
pub struct FleetBlade {
    pub serial: Serial,
    pub token: String,
    /// How its runs end, in turn; the last one stands for all that follow. Empty = they pass.
    pub script: Vec<End>,
}

#[derive(Debug, Clone)]
pub struct Options {
    /// `127.0.0.1:8443`; of several with commas between them the next one where one is away or does not lead.
    pub operator: String,
    /// Name in the operator's certificate.
    pub server_name: String,
    pub ca_pem: String,
    /// How long a burn-in takes.
    pub run_time: Duration,
    /// Least time between two reports, whatever the operator asks for; `None` = as it asks.
    pub report_every: Option<Duration>,
    /// GPUs of each blade.
    pub gpus: u32,
    /// SKU profile that the blades say they are.
    pub sku: String,
    /// Tells machines apart that claim the same serials: goes into all their ids and keys. The first has none.
    pub machine: String,
}

/// What all blades together did.
#[derive(Debug, Default)]
pub struct Stats {
    pub joined: AtomicU64,
    pub reports: AtomicU64,
    /// Items in reports that were taken, repeated ones too.
    pub items: AtomicU64,
    /// Items that the operator said it has stored: each counts once.
    pub acked: AtomicU64,
    /// Bytes of the bodies of reports that were taken.
    pub bytes: AtomicU64,
    pub results: AtomicU64,
    /// Calls that failed and were made again.
    pub failures: AtomicU64,
    /// Answers that said no for good (4xx).
    pub refused: AtomicU64,
    /// Milliseconds from a fault to the report's answer, summed over all faults.
    pub fault_ms: AtomicU64,
    pub faults: AtomicU64,
}

impl Stats {
    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// What a blade is told from outside.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Command {
    /// Code of a fault that stands; `None` = none.
    pub fault: Option<String>,
    /// The blade cannot reach the operator.
    pub cut_off: bool,
    /// Sends everything twice, and old items again.
    pub repeats: bool,
    /// Its clock is off by so much, ms.
    pub skew_ms: i64,
    /// Readings that it has each minute, all at once as a real agent has them (24 with 8 GPUs); each blade at its own second.
    pub readings_per_minute: u32,
    /// One full report after the other, as fast as they are taken.
    pub flood: bool,
}

/// The running fleet.
pub struct Fleet {
    blades: BTreeMap<Serial, watch::Sender<Command>>,
    pub stats: Arc<Stats>,
    tasks: Mutex<JoinSet<()>>,
}

impl Fleet {
    /// Starts all agents. They go on by themselves until the fleet is dropped.
    pub fn start(options: Options, blades: Vec<FleetBlade>) -> anyhow::Result<Fleet> {
        let tls = client::Tls::new(&options)?;
        let options = Arc::new(options);
        let stats = Arc::<Stats>::default();
        let mut tasks = JoinSet::new();
        let mut commands = BTreeMap::new();
        for (place, blade) in blades.into_iter().enumerate() {
            let (command, commanded) = watch::channel(Command::default());
            commands.insert(blade.serial.clone(), command);
            let agent =
                agent::Agent::new(place, blade, options.clone(), tls.clone(), stats.clone(), commanded)?;
            tasks.spawn(agent.run());
        }
        Ok(Fleet { blades: commands, stats, tasks: Mutex::new(tasks) })
    }

    /// Changes what the blades of `serials` do, or all if it is empty.
    pub fn command(&self, serials: &[Serial], change: impl Fn(&mut Command)) {
        for (serial, command) in &self.blades {
            if serials.is_empty() || serials.contains(serial) {
                command.send_modify(&change);
            }
        }
    }

    /// The same, and wakes none: each blade sees it at its next report. Blades that are woken together report together from then on.
    pub fn command_quietly(&self, serials: &[Serial], change: impl Fn(&mut Command)) {
        for (serial, command) in &self.blades {
            if serials.is_empty() || serials.contains(serial) {
                command.send_if_modified(|command| {
                    change(command);
                    false
                });
            }
        }
    }

    pub fn serials(&self) -> impl Iterator<Item = &Serial> {
        self.blades.keys()
    }

    /// Ends all agents at once, as a power cut would.
    pub fn stop(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

pub(crate) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
