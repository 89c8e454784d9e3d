//! What is different between the findings of two looks.

use whetstone_model::evidence::Finding;

#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Appeared(Finding),
    /// Its severity or action is another one; `detail` may differ at every look and is no change.
    Changed(Finding),
    Cleared(Finding),
}

/// Changes from one look to the next. Findings are told apart by code and device; of several that share both,
/// the first (gravest) stands for all.
pub fn changes(before: &[Finding], after: &[Finding]) -> Vec<Change> {
    let of = |finding: &Finding, list: &[Finding]| {
        list.iter().position(|other| other.code == finding.code && other.device == finding.device)
    };
    let first = |list: &[Finding], at: usize| of(&list[at], list) == Some(at);
    let mut out = Vec::new();
    for (at, finding) in after.iter().enumerate().filter(|(at, _)| first(after, *at)) {
        match of(finding, before).map(|old| &before[old]) {
            None => out.push(Change::Appeared(after[at].clone())),
            Some(old) if (old.severity, old.action) != (finding.severity, finding.action) => {
                out.push(Change::Changed(finding.clone()));
            }
            Some(_) => {}
        }
    }
    let gone =
        before.iter().enumerate().filter(|(at, finding)| first(before, *at) && of(finding, after).is_none());
    out.extend(gone.map(|(_, finding)| Change::Cleared(finding.clone())));
    out
}

#[cfg(test)]
mod tests {
    use whetstone_model::action::{Action, Severity};
    use whetstone_model::device::DeviceId;

    use super::*;

    fn finding(code: &str, device: &str, severity: Severity, detail: &str) -> Finding {
        Finding {
            code: code.into(),
            device: DeviceId::new(device).ok(),
            severity,
            action: Action::None,
            detail: detail.into(),
            reading: None,
        }
    }

    #[test]
    fn only_what_appears_changes_or_goes_is_said() {
        let same = finding("pcie-width", "GPU-1", Severity::Fault, "x8");
        let other_words = finding("pcie-width", "GPU-1", Severity::Fault, "x8 still");
        let worse = finding("ecc-correctable-rate", "GPU-1", Severity::Fault, "");
        let mild = finding("ecc-correctable-rate", "GPU-1", Severity::Warning, "");
        let new = finding("pcie-width", "GPU-2", Severity::Fault, "x4");
        let gone = finding("clock-unsynchronised", "", Severity::Warning, "");
        let before = [same, mild, gone.clone()];
        let after = [other_words, worse.clone(), new.clone()];
        assert_eq!(
            changes(&before, &after),
            [Change::Changed(worse), Change::Appeared(new), Change::Cleared(gone)]
        );
        assert!(changes(&after, &after).is_empty());
    }

    #[test]
    fn two_findings_of_one_code_and_device_are_said_once() {
        let twice = [
            finding("fabric-degraded", "GPU-1", Severity::Fault, "bandwidth"),
            finding("fabric-degraded", "GPU-1", Severity::Fault, "route"),
        ];
        assert_eq!(changes(&[], &twice), [Change::Appeared(twice[0].clone())]);
        assert_eq!(changes(&twice, &[]), [Change::Cleared(twice[0].clone())]);
    }
}
