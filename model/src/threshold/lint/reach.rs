//! Limits that no hardware could meet, that no result could fail, or that let a degraded part pass.

use std::collections::BTreeSet;

use super::super::import::Limit;
use super::super::judge::number;
use super::super::{Better, Role};
use super::{Bench, Code, Issue, issue, shown, whose};

/// A floor below this part of what is normal fails only a device that hardly works at all.
const FLOOR_PART: f64 = 0.05;
/// So many uncorrected errors are never reached: a device is unusable after a few.
const UNCORRECTED: f64 = 1000.0;
/// Room for rounding between a limit and what the hardware can do.
const ROUNDING: f64 = 1.005;

/// Gb/s of the fastest RDMA port sold (XDR InfiniBand, 800 Gb/s), for SKUs whose port is not known.
const FASTEST_PORT_GBPS: f64 = 800.0;

fn pass_marks<'a>(bench: &Bench<'a>) -> impl Iterator<Item = &'a Limit> {
    bench.limits.iter().filter(|l| matches!(l.role, Role::Fail | Role::Warn))
}

pub(super) fn above_hardware(bench: &Bench<'_>) -> Vec<Issue> {
    pass_marks(bench).filter(|l| l.better == Better::Higher).filter_map(|limit| above(bench, limit)).collect()
}

fn above(bench: &Bench<'_>, limit: &Limit) -> Option<Issue> {
    if let Some(most) = bench.hardware_limit(limit) {
        let most_here = most.value_in(&limit.measure)?;
        let message = || {
            format!("{}: {} is more than the hardware can do ({})", whose(limit), shown(limit), shown(most))
        };
        return (limit.value > most_here * ROUNDING)
            .then(|| issue(limit, Code::AboveHardware, message(), &[most]));
    }
    if !limit.metric.starts_with("ib.write") {
        return None;
    }
    let gbps = super::super::Measure::Unit(crate::unit::Unit::Gbps);
    let asked = limit.value_in(&gbps)?;
    let message = format!(
        "{}: {} is {} Gb/s, more than the fastest port there is ({FASTEST_PORT_GBPS} Gb/s)",
        whose(limit),
        shown(limit),
        number(asked)
    );
    (asked > FASTEST_PORT_GBPS * ROUNDING).then(|| issue(limit, Code::AboveHardware, message, &[]))
}

pub(super) fn never_fails(bench: &Bench<'_>) -> Vec<Issue> {
    let fails = bench.limits.iter().filter(|l| l.role == Role::Fail);
    fails
        .filter_map(|limit| match limit.better {
            Better::Higher => floor_out_of_reach(bench, limit),
            Better::Lower => count_out_of_reach(limit),
        })
        .collect()
}

fn floor_out_of_reach(bench: &Bench<'_>, limit: &Limit) -> Option<Issue> {
    // A margin or a temperature may well be 0 or below; a rate of work may not.
    let may_be_negative = limit.metric.contains("margin") || limit.metric.contains("temperature");
    if limit.value <= 0.0 && !may_be_negative {
        let message = format!("{}: a floor of {} fails nothing", whose(limit), shown(limit));
        return Some(issue(limit, Code::NeverFails, message, &[]));
    }
    let typical = bench.limits.iter().find(|l| {
        l.role == Role::Typical
            && l.metric == limit.metric
            && l.sku == limit.sku
            && l.product == limit.product
    });
    let normal = typical
        .or_else(|| bench.reference_value(limit, Role::Typical))
        .or_else(|| bench.hardware_limit(limit))?;
    let part = limit.value / normal.value_in(&limit.measure)?;
    let message = format!(
        "{}: a floor of {} is {} % of {} ({}): no device that works at all fails it",
        whose(limit),
        shown(limit),
        number(part * 100.0),
        shown(normal),
        normal.role.as_str(),
    );
    (part > 0.0 && part < FLOOR_PART).then(|| issue(limit, Code::NeverFails, message, &[normal]))
}

fn count_out_of_reach(limit: &Limit) -> Option<Issue> {
    let uncorrected = ["uncorrect", "double_bit", "dbe"].iter().any(|w| limit.metric.contains(w));
    let message = format!(
        "{}: a limit of {} uncorrected errors is never reached: the first one has already lost data",
        whose(limit),
        number(limit.value)
    );
    (uncorrected && limit.value >= UNCORRECTED).then(|| issue(limit, Code::NeverFails, message, &[]))
}

/// Link generation and width that a floor lets pass, against what our profile of the chip expects.
pub(super) fn below_spec(bench: &Bench<'_>) -> Vec<Issue> {
    let mut said: BTreeSet<(&str, &str, &str, u64)> = BTreeSet::new();
    let mut issues = Vec::new();
    for limit in pass_marks(bench) {
        if !matches!(limit.metric.as_str(), "pcie.generation" | "pcie.width") {
            continue;
        }
        let Some(profile) = limit.chip().and_then(|c| c.profile()).and_then(|sku| bench.table.profile(sku))
        else {
            continue;
        };
        let (expected, what) = match limit.metric.as_str() {
            "pcie.generation" => (profile.expected.pcie_generation, "generation"),
            _ => (profile.expected.pcie_width, "width"),
        };
        let Some(expected) = expected.filter(|e| limit.value < f64::from(*e)) else { continue };
        if said.insert((&limit.sku, &limit.product, &limit.metric, limit.value.to_bits())) {
            let message = format!(
                "{}: a link at {what} {} passes, while the GPU's is of {what} {expected}",
                whose(limit),
                number(limit.value)
            );
            issues.push(issue(limit, Code::BelowSpec, message, &[]));
        }
    }
    issues
}
