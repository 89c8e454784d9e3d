//! Warnings that can never come before the failure they should warn of.

use super::super::{Better, Role};
use super::{Bench, Code, Issue, by_sku_and_metric, issue, shown, whose};

pub(super) fn warnings(bench: &Bench<'_>) -> Vec<Issue> {
    let mut issues = Vec::new();
    for group in by_sku_and_metric(bench.limits).into_values() {
        for warn in group.iter().filter(|l| l.role == Role::Warn) {
            // The failure that comes first is the one that a warning must precede.
            let fails = group.iter().filter(|l| l.role == Role::Fail && l.better == warn.better);
            let comparable = fails.filter_map(|f| f.value_in(&warn.measure).map(|value| (value, *f)));
            let first = match warn.better {
                Better::Higher => comparable.max_by(|a, b| a.0.total_cmp(&b.0)),
                Better::Lower => comparable.min_by(|a, b| a.0.total_cmp(&b.0)),
            };
            let Some((fail_value, fail)) = first else { continue };
            let comes_first = match warn.better {
                Better::Higher => warn.value > fail_value,
                Better::Lower => warn.value < fail_value,
            };
            if comes_first {
                continue;
            }
            let message = format!(
                "{}: the warning ({}) can never come before the failure ({}): {} is better",
                whose(warn),
                shown(warn),
                if fail.measure == warn.measure {
                    shown(fail)
                } else {
                    let same = super::super::judge::number(fail_value);
                    format!("{} = {same} {}", shown(fail), warn.measure.as_str())
                },
                warn.better.as_str(),
            );
            issues.push(issue(warn, Code::WarningAfterFailure, message, &[fail]));
        }
    }
    issues
}
