//! Verdict rules: what a run's results mean for each device and for the blade.
//!
//! A fault anywhere fails; otherwise a gap (a test that could not run, a source that did not answer, a run cut
//! off) leaves the verdict open; only a whole run without either passes.

use whetstone_model::action::{Action, Severity};
use whetstone_model::device::{Device, DeviceId, DeviceKind};
use whetstone_model::evidence::Finding;
use whetstone_model::report::{TestOutcome, TestResult};
use whetstone_model::verdict::{Outcome, Verdict};

/// Something that kept a part from being tested.
#[derive(Debug, Clone, PartialEq)]
pub struct Gap {
    /// `None`: the whole blade.
    pub device: Option<DeviceId>,
    pub code: String,
    pub why: String,
    pub action: Action,
}

/// Everything that the rules look at.
pub struct Input<'a> {
    pub devices: &'a [Device],
    /// Findings with the ids of the evidence that holds them.
    pub findings: &'a [(u64, Finding)],
    pub tests: &'a [TestResult],
    /// Gaps beyond those that the tests state: silent sources, a run cut off.
    pub gaps: &'a [Gap],
}

/// The blade's verdict and one for each device, in the order of `input.devices`.
pub fn decide(input: &Input<'_>) -> (Verdict, Vec<Verdict>) {
    let gaps = all_gaps(input);
    let of_device = |device: &Device| {
        let mine = |id: &Option<DeviceId>| id.as_ref() == Some(&device.id);
        // A gap of the whole blade leaves every device open, and so does a fault that nobody could be blamed for.
        let blame = blade_fault(input).into_iter().chain(untested(input, device));
        let open: Vec<Gap> =
            gaps.iter().filter(|g| g.device.is_none() || mine(&g.device)).cloned().chain(blame).collect();
        let findings = input.findings.iter().filter(|(_, f)| mine(&f.device));
        verdict(Some(device.id.clone()), findings, open.iter())
    };
    let label = |id: &Option<DeviceId>, why: &str| match id {
        Some(id) => {
            let name = input.devices.iter().find(|d| d.id == *id).map_or(id.as_str(), |d| d.label.as_str());
            format!("{name}: {why}")
        }
        None => why.to_owned(),
    };
    let mut blade = verdict(None, input.findings.iter(), gaps.iter());
    let about = match blade.outcome {
        Outcome::Fail => gravest(input.findings.iter()).and_then(|(_, f)| f.device.clone()),
        Outcome::Inconclusive => gaps.first().and_then(|g| g.device.clone()),
        Outcome::Pass => None,
    };
    blade.why = label(&about, &blade.why);
    (blade, input.devices.iter().map(of_device).collect())
}

/// A fault of the blade as a whole, as the gap that it is for each device.
fn blade_fault(input: &Input<'_>) -> Option<Gap> {
    let (_, fault) = gravest(input.findings.iter().filter(|(_, f)| f.device.is_none()))?;
    let why = format!("fault of the blade, not traced to a device: {}", fault.detail);
    Some(Gap { device: None, code: fault.code.clone(), why, action: fault.action })
}

/// A GPU that no test of the suite ran on has not passed, even where the suite has.
fn untested(input: &Input<'_>, device: &Device) -> Option<Gap> {
    let tested = input.tests.iter().any(|t| t.devices.iter().any(|d| d.device == device.id));
    (device.kind == DeviceKind::Gpu && !tested).then(|| Gap {
        device: Some(device.id.clone()),
        code: "not-tested".to_owned(),
        why: "no test of this suite ran on it".to_owned(),
        action: Action::DrainAndTest,
    })
}

fn all_gaps(input: &Input<'_>) -> Vec<Gap> {
    let mut gaps = input.gaps.to_vec();
    for test in input.tests {
        let gap = |device: Option<DeviceId>, detail: &str| Gap {
            device,
            code: "could-not-test".to_owned(),
            why: format!("{}: {}", test.name, if detail.is_empty() { "could not be tested" } else { detail }),
            action: Action::DrainAndTest,
        };
        let mut open = test.devices.iter().filter(|d| d.outcome == TestOutcome::Inconclusive).peekable();
        if open.peek().is_some() {
            gaps.extend(open.map(|d| gap(Some(d.device.clone()), &d.detail)));
        } else if test.outcome == TestOutcome::Inconclusive {
            gaps.push(gap(None, &test.detail));
        }
    }
    gaps
}

/// The fault that a verdict names: the one whose action disturbs most; of equal ones, the first found.
fn gravest<'a>(findings: impl Iterator<Item = &'a (u64, Finding)>) -> Option<&'a (u64, Finding)> {
    findings.filter(|(_, f)| f.severity == Severity::Fault).fold(None, |best, one| match best {
        Some((_, kept)) if kept.action >= one.1.action => best,
        _ => Some(one),
    })
}

fn verdict<'a>(
    device: Option<DeviceId>,
    findings: impl Iterator<Item = &'a (u64, Finding)> + Clone,
    mut gaps: impl Iterator<Item = &'a Gap>,
) -> Verdict {
    if let Some((_, fault)) = gravest(findings.clone()) {
        let evidence = findings.filter(|(_, f)| f.severity == Severity::Fault).map(|(id, _)| *id).collect();
        return Verdict {
            device,
            outcome: Outcome::Fail,
            code: fault.code.clone(),
            why: fault.detail.clone(),
            action: fault.action,
            evidence,
        };
    }
    if let Some(gap) = gaps.next() {
        return Verdict {
            device,
            outcome: Outcome::Inconclusive,
            code: gap.code.clone(),
            why: gap.why.clone(),
            action: gap.action,
            evidence: Vec::new(),
        };
    }
    Verdict {
        device,
        outcome: Outcome::Pass,
        code: "ok".to_owned(),
        why: String::new(),
        action: Action::None,
        evidence: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whetstone_model::report::DeviceOutcome;
    fn id(name: &str) -> DeviceId {
        DeviceId::new(name).unwrap()
    }

    fn device(n: u32) -> Device {
        Device {
            id: id(&format!("GPU-{n}")),
            kind: DeviceKind::Gpu,
            label: format!("gpu{n}"),
            model: "H100".into(),
            serial: None,
            pci: None,
        }
    }

    fn finding(device: Option<&str>, severity: Severity, action: Action) -> Finding {
        Finding {
            code: format!("code-{action}"),
            device: device.map(id),
            severity,
            action,
            detail: "detail".into(),
            reading: None,
        }
    }

    /// A test that passed on these devices.
    fn passed(devices: &[&str]) -> TestResult {
        let mut test = TestResult::empty("memory", "gpu_memory", 0);
        test.outcome = TestOutcome::Pass;
        let (outcome, detail) = (TestOutcome::Pass, String::new());
        test.devices = devices
            .iter()
            .map(|d| DeviceOutcome { device: id(d), outcome, detail: detail.clone() })
            .collect();
        test
    }

    fn gap(device: Option<&str>) -> Gap {
        Gap { device: device.map(id), code: "gap".into(), why: "no answer".into(), action: Action::Reboot }
    }

    #[test]
    fn a_fault_beats_a_gap_and_names_its_device_and_evidence() {
        let devices = [device(0), device(1)];
        let findings = [
            (7, finding(Some("GPU-1"), Severity::Fault, Action::CheckLink)),
            (9, finding(Some("GPU-1"), Severity::Fault, Action::Replace)),
            (11, finding(Some("GPU-0"), Severity::Warning, Action::Replace)),
        ];
        let gaps = [gap(Some("GPU-0"))];
        let (blade, each) =
            decide(&Input { devices: &devices, findings: &findings, tests: &[], gaps: &gaps });
        assert_eq!(
            (blade.outcome, blade.action, blade.why.as_str()),
            (Outcome::Fail, Action::Replace, "gpu1: detail")
        );
        assert_eq!(blade.evidence, [7, 9]);
        assert_eq!((each[0].outcome, each[1].outcome), (Outcome::Inconclusive, Outcome::Fail));
    }

    #[test]
    fn a_warning_alone_passes_and_a_blade_wide_gap_leaves_every_device_open() {
        let devices = [device(0)];
        let warn = [(1, finding(Some("GPU-0"), Severity::Warning, Action::None))];
        let tests = [passed(&["GPU-0"])];
        let (blade, each) = decide(&Input { devices: &devices, findings: &warn, tests: &tests, gaps: &[] });
        assert_eq!((blade.outcome, blade.code.as_str()), (Outcome::Pass, "ok"));
        assert_eq!(each[0].outcome, Outcome::Pass);
        let (blade, each) =
            decide(&Input { devices: &devices, findings: &warn, tests: &[], gaps: &[gap(None)] });
        assert_eq!((blade.outcome, each[0].outcome), (Outcome::Inconclusive, Outcome::Inconclusive));
    }

    #[test]
    fn an_inconclusive_test_of_one_device_leaves_the_others_passed() {
        let devices = [device(0), device(1)];
        let mut test = TestResult::empty("gemm", "gpu_gemm", 0);
        test.outcome = TestOutcome::Inconclusive;
        test.devices.push(DeviceOutcome {
            device: id("GPU-1"),
            outcome: TestOutcome::Inconclusive,
            detail: "no answer for 20 s".into(),
        });
        let (blade, each) = decide(&Input {
            devices: &devices,
            findings: &[],
            tests: &[passed(&["GPU-0"]), test],
            gaps: &[],
        });
        assert_eq!(blade.why, "gpu1: gemm: no answer for 20 s");
        assert_eq!((each[0].outcome, each[1].outcome), (Outcome::Pass, Outcome::Inconclusive));
    }

    #[test]
    fn a_fault_without_a_culprit_and_a_missing_test_leave_devices_open() {
        let devices = [device(0), device(1)];
        let findings = [(3, finding(None, Severity::Fault, Action::DrainAndTest))];
        let tests = [passed(&["GPU-0", "GPU-1"])];
        let (blade, each) =
            decide(&Input { devices: &devices, findings: &findings, tests: &tests, gaps: &[] });
        assert_eq!(blade.outcome, Outcome::Fail);
        assert!(each.iter().all(|v| v.outcome == Outcome::Inconclusive), "both are suspects");
        let (blade, each) =
            decide(&Input { devices: &devices, findings: &[], tests: &[passed(&["GPU-0"])], gaps: &[] });
        assert_eq!((blade.outcome, each[0].outcome), (Outcome::Pass, Outcome::Pass));
        assert_eq!(each[1].code, "not-tested");
    }
}
