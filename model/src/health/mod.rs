//! Health rules: facts + thresholds → findings. `docs/findings.md` lists every code.
//!
//! Two sorts of rules. [`findings`] judges one look and needs no baseline: states, limits that the device itself
//! states, and mean rates since boot. [`deltas`] judges two looks: what counted up in between, as a rate.
//! A healthy blade has no finding of severity warning or fault.

mod blade;
mod bus;
mod counters;
mod gpu;
mod host;
mod link;
mod ports;
mod source;

pub use counters::{Counter, Counters, deltas, throttling, vanished};

use crate::action::{Action, Severity};
use crate::device::DeviceId;
use crate::evidence::{Finding, Reading};
use crate::facts::Facts;
use crate::threshold::{GpuSeen, Judged, Profile, Table};
use crate::unit::Unit;

/// Codes that say that something could not be looked at: nothing about the hardware. A caller takes a blade
/// with one of them and no fault as inconclusive.
pub const GAP_CODES: [&str; 6] = [
    "source-timeout",
    "source-error",
    "nvml-version-mismatch",
    "nvml-no-permission",
    "gpu-without-driver",
    "threshold-unusable",
];

/// True if the finding is about not having been able to look.
pub fn is_gap(finding: &Finding) -> bool {
    GAP_CODES.contains(&finding.code.as_str())
}

/// The profile that the blade's GPUs fit.
pub fn profile<'a>(facts: &Facts, table: &'a Table) -> Option<&'a Profile> {
    let seen: Vec<GpuSeen<'_>> = facts
        .gpus
        .iter()
        .map(|gpu| GpuSeen {
            name: gpu.name.as_deref().unwrap_or_default(),
            memory_mib: gpu.memory.total_mib.unwrap_or(0),
        })
        .collect();
    table.profile_for(&seen)
}

/// Everything that is wrong or worth knowing, gravest first.
pub fn findings(facts: &Facts, table: &Table) -> Vec<Finding> {
    let mut judge = Judge::new(table, profile(facts, table));
    source::judge(facts, &mut judge);
    for gpu in &facts.gpus {
        gpu::judge(gpu, facts, &mut judge);
        link::judge(gpu, facts, &mut judge);
        bus::judge_gpu(gpu, facts, &mut judge);
    }
    link::judge_domain(facts, &mut judge);
    bus::judge(facts, &mut judge);
    blade::judge(facts, &mut judge);
    ports::judge(facts, &mut judge);
    host::judge(facts, &mut judge);
    judge.end()
}

/// Collects findings; holds readings against their thresholds.
struct Judge<'a> {
    table: &'a Table,
    profile: Option<&'a Profile>,
    found: Vec<Finding>,
}

impl<'a> Judge<'a> {
    fn new(table: &'a Table, profile: Option<&'a Profile>) -> Self {
        Self { table, profile, found: Vec::new() }
    }

    fn say(
        &mut self,
        code: &str,
        device: Option<DeviceId>,
        severity: Severity,
        action: Action,
        detail: String,
    ) {
        self.found.push(Finding { code: code.to_owned(), device, severity, action, detail, reading: None });
    }

    fn fault(&mut self, code: &str, device: Option<DeviceId>, action: Action, detail: String) {
        self.say(code, device, Severity::Fault, action, detail);
    }

    fn warn(&mut self, code: &str, device: Option<DeviceId>, action: Action, detail: String) {
        self.say(code, device, Severity::Warning, action, detail);
    }

    fn info(&mut self, code: &str, device: Option<DeviceId>, detail: String) {
        self.say(code, device, Severity::Info, Action::None, detail);
    }

    /// A finding if the reading's threshold says so. `what` begins the sentence, and is all of it for a count.
    /// True if there was one.
    fn reading(
        &mut self,
        code: &str,
        device: Option<DeviceId>,
        action: Action,
        what: &str,
        reading: Reading,
    ) -> bool {
        let (severity, detail) = match self.table.judge(self.profile.map(|p| p.sku.as_str()), &reading) {
            Ok(judgement) => {
                let severity = match judgement.judged {
                    Judged::Fail => Severity::Fault,
                    Judged::Warn => Severity::Warning,
                    Judged::Pass | Judged::NotJudged(_) => return false,
                };
                // A count stands in the sentence already, and "above 0" tells nobody anything.
                let plain = reading.unit == Unit::Count;
                let detail =
                    if plain { what.to_owned() } else { format!("{what}: {}", judgement.sentence()) };
                (severity, detail)
            }
            Err(error) => {
                self.warn("threshold-unusable", device, Action::None, format!("{what}: {error}"));
                return true;
            }
        };
        self.found.push(Finding {
            code: code.to_owned(),
            device,
            severity,
            action,
            detail,
            reading: Some(reading),
        });
        true
    }

    /// Gravest first; among equals in the order in which they were found.
    fn end(mut self) -> Vec<Finding> {
        self.found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        self.found
    }
}

/// A device id from a name that a source gave; `None` if it cannot be one.
fn device(name: &str) -> Option<DeviceId> {
    DeviceId::new(name).ok()
}

/// Hours that counters have been running at most: since boot, and no less than `at_least`, so that a few events
/// right after boot do not look like a storm. `None` if the uptime is not known.
fn hours_up(facts: &Facts, at_least: f64) -> Option<f64> {
    facts.host.uptime_s.filter(|uptime| *uptime >= 0.0).map(|uptime| (uptime / 3600.0).max(at_least))
}

#[cfg(test)]
mod tests;
