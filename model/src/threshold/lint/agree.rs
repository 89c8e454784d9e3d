//! Numbers that disagree with each other, with their own comments, or that treat unlike things alike.

use super::super::Role;
use super::super::import::Limit;
use super::super::judge::number;
use super::{Bench, Code, Issue, by_sku_and_metric, issue, shown, whose};

/// Two pass marks of the same thing that differ by more are not rounded from one number.
const SAME: f64 = 0.02;
/// The same for measured and typical values, which scatter.
const SAME_TYPICAL: f64 = 0.10;

fn differ(a: f64, b: f64, by: f64) -> bool {
    (a - b).abs() > by * a.abs().max(b.abs())
}

/// Several numbers for one SKU, metric and purpose.
pub(super) fn contradictions(bench: &Bench<'_>) -> Vec<Issue> {
    let mut issues = Vec::new();
    for group in by_sku_and_metric(bench.limits).into_values() {
        for role in [Role::Fail, Role::Warn, Role::Typical] {
            let same: Vec<&Limit> = group.iter().copied().filter(|l| l.role == role).collect();
            let Some((first, rest)) = same.split_first() else { continue };
            let by = if role == Role::Typical { SAME_TYPICAL } else { SAME };
            // Against the first only: n numbers that disagree are n - 1 issues, not n².
            for other in rest {
                let there = first.value_in(&other.measure);
                if there.is_some_and(|v| !differ(v, other.value, by)) {
                    continue;
                }
                let who = |l: &Limit| {
                    let source = if l.source.is_empty() { l.file.clone() } else { l.source.clone() };
                    if l.product == other.product { source } else { format!("{source}, {}", l.product) }
                };
                let message = format!(
                    "{}: {} says {} {}, {} says {}",
                    whose(other),
                    who(other),
                    role.as_str(),
                    shown(other),
                    who(first),
                    shown(first),
                );
                issues.push(issue(other, Code::Contradiction, message, &[first]));
            }
        }
    }
    issues
}

/// A number whose own comment computes another one ("multiply by .75 to get N").
pub(super) fn notes(bench: &Bench<'_>) -> Vec<Issue> {
    let fails = bench.limits.iter().filter(|l| l.role == Role::Fail);
    fails
        .filter_map(|limit| {
            let stated = number_after(&limit.note, "to get")?;
            let numbers = numbers(&limit.note);
            // The comment agrees if any number of it, as it is or as a three-quarters rule, is the value.
            let agrees =
                numbers.iter().any(|n| [1.0, 0.75].iter().any(|part| !differ(n * part, limit.value, SAME)));
            let message = || {
                format!(
                    "{}: the value is {}, its own comment says {}",
                    whose(limit),
                    shown(limit),
                    number(stated)
                )
            };
            (!agrees).then(|| issue(limit, Code::Contradiction, message(), &[]))
        })
        .collect()
}

/// All plain numbers of a text; a `.75` counts, a number inside a word does not.
fn numbers(text: &str) -> Vec<f64> {
    text.split(|c: char| c.is_whitespace() || matches!(c, '~' | '(' | ')' | '=' | ',' | ';'))
        .filter_map(|word| word.trim_end_matches('.').parse::<f64>().ok())
        .filter(|n| n.is_finite())
        .collect()
}

fn number_after(text: &str, words: &str) -> Option<f64> {
    let at = text.find(words)?;
    numbers(&text[at + words.len()..]).first().copied()
}

/// The same limit for corrected and uncorrected errors of one part.
pub(super) fn same_limit(bench: &Bench<'_>) -> Vec<Issue> {
    let fails = || bench.limits.iter().filter(|l| l.role == Role::Fail && l.value > 0.0);
    let milder = |metric: &str| {
        [("uncorrect", "correct"), ("double_bit", "single_bit"), ("dbe", "sbe")]
            .into_iter()
            .find(|(grave, _)| metric.contains(grave))
            .map(|(grave, mild)| metric.replacen(grave, mild, 1))
    };
    let mut issues = Vec::new();
    for grave in fails() {
        let Some(mild_name) = milder(&grave.metric) else { continue };
        let milder =
            bench.own_index.get(&(grave.sku.as_str(), mild_name.as_str(), Role::Fail)).into_iter().flatten();
        let same = |l: &&&Limit| l.source == grave.source && l.value_in(&grave.measure) == Some(grave.value);
        let Some(mild) = milder.copied().find(|l| same(&l)) else { continue };
        let message = format!(
            "{}: {} for uncorrected errors too, the limit of {mild_name}; an uncorrected error has already lost data",
            whose(grave),
            shown(grave)
        );
        issues.push(issue(grave, Code::SameLimit, message, &[mild]));
    }
    issues
}
