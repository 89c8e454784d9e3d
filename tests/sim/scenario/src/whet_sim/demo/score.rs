//! What was found beside what was planted.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use whetstone_model::report::Report;
use whetstone_model::verdict::{Outcome, Verdict};
use whetstone_scenario::Fault;
use whetstone_scenario::tranche::{Planted, PlantedFault, Shows};

use super::run::Ran;

/// What of `whet judge --json` is used here.
#[derive(Debug, Default, Deserialize)]
pub struct Judgement {
    #[serde(default)]
    pub outliers: Vec<Outlier>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Outlier {
    pub blade: String,
    pub device: String,
    pub metric: String,
    pub p: f64,
    #[serde(default)]
    pub percent_worse: Option<f64>,
    #[serde(default)]
    pub cohort_devices: usize,
    pub reason: String,
}

/// A device (or a whole blade) that is not to be trusted, or that could not be tested.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub blade: String,
    /// `fail`, `inconclusive`, `outlier` (by the fleet judge), `missed` (planted, and nobody saw it).
    pub verdict: String,
    /// `gpu5`; `–` for the blade.
    pub device: String,
    /// Stable id, if it is about a device.
    pub id: Option<String>,
    pub why: String,
    pub next: String,
    /// Kinds planted there; empty = a healthy device.
    pub planted: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    pub seed: u64,
    pub rows: Vec<Row>,
    pub blades: Vec<BladeLine>,
    pub planted: usize,
    pub found: usize,
    /// Kinds and places of what was not found.
    pub missed: Vec<String>,
    /// Devices that were accused, and how many of those are healthy.
    pub accused: usize,
    pub healthy_accused: usize,
    /// Blades without a planted fault that did not pass.
    pub healthy_not_passed: usize,
    pub recall: f64,
    pub precision: f64,
}

/// A line of the index: every blade, the good ones too.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BladeLine {
    pub blade: String,
    pub verdict: String,
    pub why: String,
    pub planted: Vec<String>,
    pub seconds: u64,
    pub has_report: bool,
}

impl Score {
    pub fn perfect(&self) -> bool {
        self.found == self.planted && self.healthy_accused == 0 && self.healthy_not_passed == 0
    }

    pub fn passed(&self) -> usize {
        self.blades.iter().filter(|b| b.verdict == "pass").count()
    }
}

/// The short words of a planted fault: its kind and its numbers.
pub fn words(planted: &PlantedFault) -> String {
    let mut text = planted.fault.kind();
    if let Ok(serde_json::Value::Object(keys)) = serde_json::to_value(&planted.fault) {
        for (key, value) in keys.iter().filter(|(key, value)| *key != "kind" && !value.is_null()) {
            text += &format!(" {key}={}", value.to_string().trim_matches('"'));
        }
    }
    format!("{}: {text}", planted.device)
}

pub fn score(planted: &Planted, ran: &[Ran], judgement: &Judgement) -> Score {
    let mut score = Score {
        seed: planted.seed,
        rows: Vec::new(),
        blades: Vec::new(),
        planted: 0,
        found: 0,
        missed: Vec::new(),
        accused: 0,
        healthy_accused: 0,
        healthy_not_passed: 0,
        recall: 1.0,
        precision: 1.0,
    };
    for (blade, ran) in planted.blades.iter().zip(ran) {
        let mut rows = match &ran.report {
            Ok(report) => rows(&blade.blade, report, judgement),
            Err(why) => vec![whole(&blade.blade, "inconclusive", why, "run again")],
        };
        for fault in &blade.faults {
            score.planted += 1;
            let mut seen = false;
            for row in rows.iter_mut().filter(|row| explains(fault, row)) {
                row.planted.push(words(fault));
                seen |= row.verdict != "inconclusive" || fault.shows == Shows::Untestable;
            }
            if seen {
                score.found += 1;
            } else {
                score.missed.push(format!("{} {}", blade.blade, words(fault)));
                rows.push(Row {
                    verdict: "missed".into(),
                    device: fault.device.clone(),
                    planted: vec![words(fault)],
                    ..whole(&blade.blade, "", "nothing was found here", "")
                });
            }
        }
        let accused = rows.iter().filter(|row| matches!(row.verdict.as_str(), "fail" | "outlier"));
        let mut devices = BTreeSet::new();
        for row in accused.filter(|row| devices.insert(row.device.clone())) {
            score.accused += 1;
            score.healthy_accused += usize::from(row.planted.is_empty());
        }
        let outlier = rows.iter().find(|row| row.verdict == "outlier");
        let verdict = match (ran.word(), outlier) {
            ("pass", Some(_)) => "fail",
            (word, _) => word,
        };
        score.healthy_not_passed += usize::from(blade.faults.is_empty() && verdict != "pass");
        score.blades.push(BladeLine {
            blade: blade.blade.clone(),
            verdict: verdict.to_owned(),
            why: outlier.filter(|_| ran.word() == "pass").map_or(ran.why(), |row| &row.why).to_owned(),
            planted: blade.faults.iter().map(words).collect(),
            seconds: ran.took.as_secs(),
            has_report: ran.report.is_ok(),
        });
        score.rows.extend(rows);
    }
    let part = |of: usize, all: usize| if all == 0 { 1.0 } else { of as f64 / all as f64 };
    score.recall = part(score.found, score.planted);
    score.precision = part(score.accused - score.healthy_accused, score.accused);
    score
}

fn whole(blade: &str, verdict: &str, why: &str, next: &str) -> Row {
    Row {
        blade: blade.to_owned(),
        verdict: verdict.to_owned(),
        device: "–".to_owned(),
        id: None,
        why: why.to_owned(),
        next: next.to_owned(),
        planted: Vec::new(),
    }
}

/// Every accused device of one blade; the blade itself if it did not pass and no device says why.
fn rows(blade: &str, report: &Report, judgement: &Judgement) -> Vec<Row> {
    let label = |id: &str| {
        report.devices.iter().find(|d| d.id.as_str() == id).map_or(id, |d| d.label.as_str()).to_owned()
    };
    let of = |verdict: &Verdict| {
        let id = verdict.device.as_ref().map(|d| d.as_str().to_owned());
        Row {
            device: id.as_deref().map_or("–".to_owned(), label),
            id,
            ..whole(blade, verdict.outcome.as_str(), &verdict.why, verdict.action.next_step())
        }
    };
    let mut rows: Vec<Row> =
        report.device_verdicts.iter().filter(|v| v.outcome == Outcome::Fail).map(of).collect();
    // Faults that are about no device of the list: the blade, or something that was never listed.
    for finding in report.findings.iter().filter(|f| f.severity == whetstone_model::action::Severity::Fault) {
        let id = finding.device.as_ref().map(|d| d.as_str().to_owned());
        if !rows.iter().any(|row| row.id == id) {
            rows.push(Row {
                device: id.as_deref().map_or("–".to_owned(), label),
                id,
                ..whole(blade, "fail", &finding.detail, finding.action.next_step())
            });
        }
    }
    // Where the whole blade is open, its devices are too: one row says it.
    let open = report.device_verdicts.iter().filter(|v| v.outcome == Outcome::Inconclusive);
    let same = |v: &&Verdict| v.why == report.verdict.why || report.verdict.why.ends_with(&v.why);
    let some: Vec<Row> = open.clone().map(of).collect();
    if open.clone().count() > 0
        && open.clone().count() < report.devices.len()
        && !open.clone().all(|v| same(&v))
    {
        rows.extend(some);
    } else if report.verdict.outcome == Outcome::Inconclusive || (!some.is_empty() && rows.is_empty()) {
        let one = some.iter().find(|row| report.verdict.why.starts_with(&format!("{}:", row.device)));
        rows.push(one.cloned().unwrap_or_else(|| of(&Verdict { device: None, ..report.verdict.clone() })));
    } else {
        rows.extend(some);
    }
    for outlier in judgement.outliers.iter().filter(|o| o.blade == blade) {
        let known = rows
            .iter()
            .any(|row| row.id.as_deref() == Some(&outlier.device) && row.verdict != "inconclusive");
        if !known {
            let far = outlier.percent_worse.map_or(outlier.reason.clone(), |percent| {
                format!(
                    "{} {percent:.1} % worse than its cohort of {} (p = {:.0e})",
                    outlier.metric, outlier.cohort_devices, outlier.p
                )
            });
            let about_blade = outlier.device == blade;
            rows.push(Row {
                device: if about_blade { "–".into() } else { label(&outlier.device) },
                id: (!about_blade).then(|| outlier.device.clone()),
                ..whole(blade, "outlier", &far, "replace")
            });
        }
    }
    rows
}

/// Whether a row can be this fault's doing.
fn explains(fault: &PlantedFault, row: &Row) -> bool {
    let about = |name: &str| row.device == name || row.id.as_deref() == Some(name);
    if about(&fault.device) || fault.uuid.as_deref().is_some_and(about) {
        return true;
    }
    match &fault.fault {
        // A link has two ends.
        Fault::SlowLink { peer, .. } => about(&format!("gpu{peer}")),
        // The agent names GPUs by NVML's index: a GPU that is not there moves the others up.
        Fault::GpuMissing | Fault::GpuLost { .. } => row.device == "–" || row.id.is_none(),
        Fault::IbDown { .. } | Fault::DimmErrors { .. } => {
            row.id.as_deref().is_some_and(|id| id.starts_with(&fault.device))
        }
        _ => fault.shows == Shows::Untestable && (row.device == "–" || row.verdict == "inconclusive"),
    }
}
