//! Finds thresholds that cannot be right: pure, over the limits of any number of files at once.
//!
//! Every rule looks at numbers and their neighbours only; none knows a particular slip. `docs/thresholds.md`
//! lists the codes with an example of each.

mod agree;
mod order;
mod outlier;
mod reach;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::import::{self, Limit};
use super::{Role, Table, judge::number, metric};

/// Neighbours shown with an issue at most.
const MAX_NEIGHBOURS: usize = 6;

/// What is wrong with a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// A factor away from its neighbours, or in a unit of another dimension.
    UnitSlip,
    /// Asks for more than the hardware can do.
    AboveHardware,
    /// No result could fail it.
    NeverFails,
    /// Below what the parts of the SKU are specified for: a degraded part passes.
    BelowSpec,
    /// A warning that cannot come before its failure.
    WarningAfterFailure,
    /// Two sources, or a number and its own comment, say different things.
    Contradiction,
    /// One chip has limits far apart for the same test.
    Spread,
    /// One limit for things of different gravity.
    SameLimit,
    /// Nobody says where the number comes from.
    MissingProvenance,
    /// A threshold file limits a metric that nothing measures.
    UnknownMetric,
}

impl Code {
    pub fn as_str(self) -> &'static str {
        match self {
            Code::UnitSlip => "unit-slip",
            Code::AboveHardware => "above-hardware",
            Code::NeverFails => "never-fails",
            Code::BelowSpec => "below-spec",
            Code::WarningAfterFailure => "warning-after-failure",
            Code::Contradiction => "contradiction",
            Code::Spread => "spread",
            Code::SameLimit => "same-limit",
            Code::MissingProvenance => "missing-provenance",
            Code::UnknownMetric => "unknown-metric",
        }
    }
}

/// A limit that an issue compares with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Neighbour {
    pub sku: String,
    pub value: f64,
    pub unit: String,
    pub file: String,
    pub line: usize,
}

/// One thing that is wrong, at one place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Issue {
    pub file: String,
    /// From 1.
    pub line: usize,
    pub code: Code,
    pub sku: String,
    pub metric: String,
    pub value: f64,
    pub unit: String,
    /// One sentence for a person.
    pub message: String,
    /// The values that it was compared with.
    pub neighbours: Vec<Neighbour>,
}

/// Limits under examination, and those they may be compared with.
struct Bench<'a> {
    limits: &'a [Limit],
    /// Limits of our own table: neighbours for a file that has too few of its own, never examined here.
    reference: &'a [Limit],
    table: &'a Table,
    /// The limits of both by SKU, metric and purpose.
    own_index: Index<'a>,
    reference_index: Index<'a>,
}

type Index<'a> = BTreeMap<(&'a str, &'a str, Role), Vec<&'a Limit>>;

fn index(limits: &[Limit]) -> Index<'_> {
    let mut index: Index<'_> = BTreeMap::new();
    for limit in limits {
        index.entry((&limit.sku, &limit.metric, limit.role)).or_default().push(limit);
    }
    index
}

/// Examines limits, from one file or from several that should agree. `table` (the built-in one) lends hardware
/// limits and neighbours.
pub fn lint(limits: &[Limit], table: &Table) -> Vec<Issue> {
    let reference = import::of_table(table);
    let bench = Bench {
        limits,
        reference: &reference,
        table,
        own_index: index(limits),
        reference_index: index(&reference),
    };
    let slips = outlier::unit_slips(&bench);
    let slipped: BTreeSet<(&str, usize)> = slips.iter().map(|i| (i.file.as_str(), i.line)).collect();
    let slipped = |l: &Limit| slipped.contains(&(l.file.as_str(), l.line));
    let sound: Vec<&Limit> = limits.iter().filter(|l| !slipped(l)).collect();
    let same = agree::same_limit(&bench);
    let mut issues = reach::above_hardware(&bench);
    // A limit shared with milder errors is the graver thing to say of the same number.
    let said: BTreeSet<_> = same.iter().map(|i| (i.file.clone(), i.line, i.metric.clone())).collect();
    let unsaid = |i: &Issue| !said.contains(&(i.file.clone(), i.line, i.metric.clone()));
    issues.extend(reach::never_fails(&bench).into_iter().filter(unsaid));
    issues.extend(reach::below_spec(&bench));
    issues.extend(order::warnings(&bench));
    issues.extend(agree::contradictions(&bench));
    issues.extend(agree::notes(&bench));
    issues.extend(same);
    issues.extend(outlier::spread(&sound));
    issues.extend(provenance(&bench));
    issues.extend(slips);
    issues.sort_by(|a, b| (&a.file, a.line, a.code, &a.metric).cmp(&(&b.file, b.line, b.code, &b.metric)));
    issues.dedup_by(|a, b| (&a.file, a.line, a.code, &a.metric) == (&b.file, b.line, b.code, &b.metric));
    issues
}

/// Examines our own kind of table: all of [`lint`], and metrics that nothing measures.
pub fn lint_table(table: &Table, reference: &Table) -> Vec<Issue> {
    let limits = import::of_table(table);
    let mut issues = lint(&limits, reference);
    issues.extend(unknown_metrics(&limits));
    issues
}

/// Limits of metrics that [`metric::METRICS`] does not know.
pub fn unknown_metrics(limits: &[Limit]) -> Vec<Issue> {
    let mut seen: BTreeMap<(&str, usize), &Limit> = BTreeMap::new();
    for limit in limits.iter().filter(|l| metric::find(&l.metric).is_none()) {
        seen.entry((&limit.file, limit.line)).or_insert(limit);
    }
    let what = |l: &Limit| {
        format!("{}: no probe and no test measures it, so nothing is ever judged by it", l.metric)
    };
    seen.into_values().map(|l| issue(l, Code::UnknownMetric, what(l), &[])).collect()
}

fn provenance(bench: &Bench<'_>) -> Vec<Issue> {
    let mut by_file: BTreeMap<&str, Vec<&Limit>> = BTreeMap::new();
    for limit in bench.limits {
        by_file.entry(&limit.file).or_default().push(limit);
    }
    let mut issues = Vec::new();
    for limits in by_file.into_values() {
        let bare: Vec<&&Limit> = limits.iter().filter(|l| l.source.trim().is_empty()).collect();
        // A table without a source column is one thing to say, not one for each row.
        let whole_file = bare.len() == limits.len() && bare.len() > 1;
        for l in bare.iter().take(if whole_file { 1 } else { usize::MAX }) {
            let message = if whole_file {
                format!("none of the {} numbers of this file says where it comes from", limits.len())
            } else {
                format!("{}: nothing says where the {} of {} comes from", l.metric, l.role.as_str(), shown(l))
            };
            issues.push(issue(l, Code::MissingProvenance, message, &[]));
        }
    }
    issues
}

fn issue(limit: &Limit, code: Code, message: String, neighbours: &[&Limit]) -> Issue {
    let neighbour = |l: &&Limit| Neighbour {
        sku: name(l).to_owned(),
        value: l.value,
        unit: l.measure.as_str().to_owned(),
        file: l.file.clone(),
        line: l.line,
    };
    Issue {
        file: limit.file.clone(),
        line: limit.line,
        code,
        sku: limit.sku.clone(),
        metric: limit.metric.clone(),
        value: limit.value,
        unit: limit.measure.as_str().to_owned(),
        message,
        neighbours: neighbours.iter().take(MAX_NEIGHBOURS).map(neighbour).collect(),
    }
}

/// The SKU as people know it.
fn name(limit: &Limit) -> &str {
    if limit.product.is_empty() { &limit.sku } else { &limit.product }
}

/// Value and unit.
fn shown(limit: &Limit) -> String {
    format!("{} {}", number(limit.value), limit.measure.as_str())
}

/// Who asks, for a sentence: the SKU if there is one.
fn whose(limit: &Limit) -> String {
    match name(limit) {
        "" => limit.metric.clone(),
        sku => format!("{} of {sku}", limit.metric),
    }
}

/// Limits by SKU and metric.
fn by_sku_and_metric(limits: &[Limit]) -> BTreeMap<(&str, &str), Vec<&Limit>> {
    let mut groups: BTreeMap<(&str, &str), Vec<&Limit>> = BTreeMap::new();
    for limit in limits {
        groups.entry((&limit.sku, &limit.metric)).or_default().push(limit);
    }
    groups
}

impl Bench<'_> {
    /// What the hardware of a limit's SKU can do in its metric: said in the same files, else in our table. The
    /// highest, where several are said.
    fn hardware_limit<'s>(&'s self, limit: &'s Limit) -> Option<&'s Limit> {
        let own = self.own(limit, Role::HardwareLimit).iter().copied();
        own.max_by(|a, b| a.value.total_cmp(&b.value))
            .or_else(|| self.reference_value(limit, Role::HardwareLimit))
    }

    /// Limits of the same SKU and metric for another purpose, in the examined files.
    fn own<'s>(&'s self, limit: &'s Limit, role: Role) -> &'s [&'s Limit] {
        self.own_index.get(&(limit.sku.as_str(), limit.metric.as_str(), role)).map_or(&[], Vec::as_slice)
    }

    /// A number of our own table for a limit's SKU or chip.
    fn reference_value<'s>(&'s self, limit: &'s Limit, role: Role) -> Option<&'s Limit> {
        let sku = match self.table.profile(&limit.sku) {
            Some(profile) => profile.sku.as_str(),
            None => limit.chip()?.profile()?,
        };
        self.reference_index.get(&(sku, limit.metric.as_str(), role))?.first().copied()
    }
}

#[cfg(test)]
mod tests;
