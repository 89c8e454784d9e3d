//! The kernel log during a run: what it says counts against the test that was running.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use whetstone_model::action::{Action, Severity};
use whetstone_model::device::DeviceId;
use whetstone_model::evidence::Finding;
use whetstone_model::facts::Facts;
use whetstone_model::fault::{DriverVersion, Fault, Kind};

use crate::probe::kmsg::{FollowOptions, From, KmsgFollower};

/// Faults kept between two tests; a storm says no more by its ten-thousandth line.
const MAX_WAITING: usize = 1_000;
/// A line of the log is in a plain file this long before the follower has seen it, at the most.
const INTERVAL: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Waiting {
    faults: Vec<(String, Fault)>,
    dropped: u64,
}

/// Follows the log; or knows why it cannot.
pub(super) struct KernelLog {
    waiting: Arc<Mutex<Waiting>>,
    /// Ends when dropped.
    _follower: Option<KmsgFollower>,
    unreadable: Option<String>,
}

impl KernelLog {
    pub fn start(path: &Path, facts: &Facts) -> KernelLog {
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let into = waiting.clone();
        let driver =
            facts.gpu_driver.as_ref().and_then(|d| d.version.as_ref()?.parse::<DriverVersion>().ok());
        let options = FollowOptions { path: path.to_owned(), from: From::End, driver, interval: INTERVAL };
        let started = KmsgFollower::start(options, move |line| {
            let Some(fault) = line.fault else { return };
            let mut waiting = into.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.faults.len() < MAX_WAITING {
                waiting.faults.push((line.line.into_owned(), fault));
            } else {
                waiting.dropped += 1;
            }
        });
        match started {
            Ok(follower) => KernelLog { waiting, _follower: Some(follower), unreadable: None },
            Err(e) => KernelLog { waiting, _follower: None, unreadable: Some(e.to_string()) },
        }
    }

    /// Why the log cannot be followed: faults that only it tells go unseen.
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// Lines that say something since the last call, and what they mean. Devices are named as in `facts`.
    pub fn take(&mut self, facts: &Facts) -> (Vec<(Option<DeviceId>, String)>, Vec<Finding>) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        let mut lines = Vec::with_capacity(waiting.faults.len());
        let mut findings: Vec<Finding> = Vec::new();
        for (line, fault) in waiting.faults {
            let mut finding = fault.finding();
            finding.device = finding.device.map(|device| name(device, facts));
            if matches!(fault.kind, Kind::Xid | Kind::Sxid) && finding.severity == Severity::Warning {
                // In service it may be the application's doing; here the application is ours, and known to be right.
                finding.severity = Severity::Fault;
                finding.action = finding.action.max(Action::DrainAndTest);
            }
            lines.push((finding.device.clone(), line));
            if !findings.iter().any(|f| f.code == finding.code && f.device == finding.device) {
                findings.push(finding);
            }
        }
        if waiting.dropped > 0 {
            lines.push((None, format!("({} more lines that say something were not kept)", waiting.dropped)));
        }
        (lines, findings)
    }
}

/// A GPU's UUID for its PCI address; the log gives the address with or without the function.
fn name(device: DeviceId, facts: &Facts) -> DeviceId {
    let address = device.as_str().split('.').next().unwrap_or_default();
    let is_it = |pci: &String| pci.split('.').next() == Some(address);
    let of_gpu = facts.gpus.iter().find(|gpu| gpu.identity.pci.as_ref().is_some_and(is_it)).map(|g| &g.uuid);
    let of_gap = || facts.gpu_gaps.iter().find(|gap| gap.pci.as_ref().is_some_and(is_it))?.uuid.as_ref();
    of_gpu.or_else(of_gap).cloned().unwrap_or(device)
}
