//! The kernel log during a run: what it says counts against the test that was running.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use whetstone_model::action::{Action, Severity};
use whetstone_model::device::{Device, DeviceId};
use whetstone_model::evidence::Finding;
use whetstone_model::facts::Facts;
use whetstone_model::fault::{DriverVersion, Fault, Kind};

use crate::probe::kmsg::{FollowOptions, From, KmsgFollower};

/// Different faults kept between two tests; one of our tables has fewer than that.
const MAX_KINDS: usize = 1_000;
/// Lines kept of each of them; a storm says no more by its hundredth line.
const MAX_LINES: usize = 100;
/// A line of the log is in a plain file this long before the follower has seen it, at the most.
const INTERVAL: Duration = Duration::from_millis(100);
/// "Preemptive cleanup": the driver's note that a process with a context was ended, by us for instance.
const XID_PROCESS_ENDED: &str = "45";

/// Lines that say something, with their device.
pub(super) type KernelLines = Vec<(Option<DeviceId>, String)>;

#[derive(Default)]
struct Waiting {
    /// By what they say, so that a storm of harmless lines crowds out nothing.
    faults: BTreeMap<String, (Vec<String>, Fault)>,
    /// Further lines of faults that are kept.
    repeats: u64,
    /// Lines of faults that are not kept.
    lost: u64,
}

impl Waiting {
    fn add(&mut self, line: String, fault: Fault) {
        let key = format!(
            "{:?} {} {:?} {:?} {:?}",
            fault.kind, fault.code, fault.subcode, fault.device, fault.severity
        );
        let many = self.faults.len();
        match self.faults.entry(key) {
            Entry::Occupied(mut known) if known.get().0.len() < MAX_LINES => known.get_mut().0.push(line),
            Entry::Occupied(_) => self.repeats += 1,
            Entry::Vacant(new) if many < MAX_KINDS => {
                new.insert((vec![line], fault));
            }
            Entry::Vacant(_) => self.lost += 1,
        }
    }
}

/// Follows the log; or knows why it cannot.
pub(super) struct KernelLog {
    waiting: Arc<Mutex<Waiting>>,
    follower: Option<KmsgFollower>,
    unreadable: Option<String>,
    lost: u64,
}

impl KernelLog {
    pub fn start(path: &Path, facts: &Facts) -> KernelLog {
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let into = waiting.clone();
        let driver =
            facts.gpu_driver.as_ref().and_then(|d| d.version.as_ref()?.parse::<DriverVersion>().ok());
        let options = FollowOptions { path: path.to_owned(), from: From::End, driver, interval: INTERVAL };
        let started = KmsgFollower::start(options, move |line| {
            if let Some(fault) = line.fault {
                into.lock().unwrap_or_else(PoisonError::into_inner).add(line.line.into_owned(), fault);
            }
        });
        match started {
            Ok(follower) => KernelLog { waiting, follower: Some(follower), unreadable: None, lost: 0 },
            Err(e) => KernelLog { waiting, follower: None, unreadable: Some(e.to_string()), lost: 0 },
        }
    }

    /// Why the log cannot be followed: faults that only it tells go unseen.
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// Reads to the end of the log and ends. `Some` says why not all of it was seen.
    pub fn stop(&mut self) -> Option<String> {
        let stats = self.follower.take()?.stop();
        if stats.failed {
            Some("the kernel log could not be read to the end of the run".to_owned())
        } else if stats.overruns > 0 {
            Some(format!("the kernel overwrote lines before they were read, {} times", stats.overruns))
        } else if self.lost > 0 {
            Some(format!("{} lines of the kernel log were too many to keep", self.lost))
        } else {
            None
        }
    }

    /// Lines that say something since the last call, and what they mean. `killed`: processes of ours were ended.
    pub fn take(&mut self, devices: &[Device], killed: bool) -> (KernelLines, Vec<Finding>) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        self.lost += waiting.lost;
        let mut lines = KernelLines::new();
        let mut findings: Vec<Finding> = Vec::new();
        for (said, fault) in waiting.faults.into_values() {
            let mut finding = fault.finding();
            finding.device = finding.device.map(|device| name(device, devices));
            let ours = killed && fault.code.to_string() == XID_PROCESS_ENDED;
            if matches!(fault.kind, Kind::Xid | Kind::Sxid) && finding.severity == Severity::Warning && !ours
            {
                // In service it may be the application's doing; here the application is ours, and known to be right.
                finding.severity = Severity::Fault;
                finding.action = finding.action.max(Action::DrainAndTest);
            }
            lines.extend(said.into_iter().map(|line| (finding.device.clone(), line)));
            match findings.iter_mut().find(|f| f.code == finding.code && f.device == finding.device) {
                Some(old) if (finding.severity, finding.action) > (old.severity, old.action) => {
                    *old = finding
                }
                Some(_) => {}
                None => findings.push(finding),
            }
        }
        if waiting.repeats > 0 {
            lines.push((None, format!("({} more lines that repeat these were not kept)", waiting.repeats)));
        }
        (lines, findings)
    }
}

/// The report's name of the device at a PCI address; the log gives the address with or without the function.
fn name(device: DeviceId, devices: &[Device]) -> DeviceId {
    let slot = |address: &str| address.split('.').next().map(str::to_owned);
    let address = slot(device.as_str());
    let known = devices.iter().find(|d| d.pci.as_deref().and_then(slot) == address);
    known.map_or(device, |d| d.id.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use whetstone_model::device::DeviceKind;
    use whetstone_model::fault::classify;

    fn log(lines: &[String]) -> KernelLog {
        let mut waiting = Waiting::default();
        for line in lines {
            if let Some(fault) = classify(line, None) {
                waiting.add(line.clone(), fault);
            }
        }
        KernelLog { waiting: Arc::new(Mutex::new(waiting)), follower: None, unreadable: None, lost: 0 }
    }

    fn gpu() -> Device {
        let id = DeviceId::new("GPU-7").unwrap();
        let (label, model, pci) = ("gpu7".into(), String::new(), Some("0000:3b:00.0".into()));
        Device { id, kind: DeviceKind::Gpu, label, model, serial: None, pci }
    }

    fn xid(code: u32, text: &str) -> String {
        format!("NVRM: Xid (PCI:0000:3b:00): {code}, pid=1, name=x, {text}")
    }

    #[test]
    fn a_storm_of_harmless_lines_hides_no_fault_and_the_device_has_the_reports_name() {
        let mut lines = vec!["EDAC MC0: 1 CE on DIMM_A1 (channel:0 slot:0 page:0x0)".to_owned(); 5_000];
        lines.push(xid(79, "GPU has fallen off the bus."));
        let (kept, findings) = log(&lines).take(&[gpu()], false);
        let lost = findings.iter().find(|f| f.code == "xid-79").unwrap();
        assert_eq!((lost.severity, lost.device.as_ref().unwrap().as_str()), (Severity::Fault, "GPU-7"));
        assert!(kept.len() < 200, "{}", kept.len());
    }

    #[test]
    fn what_our_own_kill_leaves_in_the_log_accuses_nobody() {
        let lines = [xid(45, "Ch 00000008")];
        let worst = |killed| log(&lines).take(&[gpu()], killed).1.iter().map(|f| f.severity).max();
        assert!(worst(true) < Some(Severity::Fault));
        assert!(worst(false) >= worst(true));
    }
}
