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
    /// Code of the finding, or the metric that the judge names.
    pub code: String,
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
        code: String::new(),
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
            code: verdict.code.clone(),
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
                code: finding.code.clone(),
                ..whole(blade, "fail", &finding.detail, finding.action.next_step())
            });
        }
    }
    // A gap of the whole blade leaves all its devices open: one row says it.
    let open: Vec<&Verdict> =
        report.device_verdicts.iter().filter(|v| v.outcome == Outcome::Inconclusive).collect();
    for verdict in &open {
        let alike = open.iter().filter(|other| other.why == verdict.why).count();
        let mut row = of(verdict);
        if alike > 1 {
            (row.device, row.id) = ("–".to_owned(), None);
        }
        // Where the blade itself has failed, that it leaves its devices open is no news.
        let told = rows.iter().any(|known| known.why == row.why || row.id.is_none() && known.id.is_none());
        if !told {
            rows.push(row);
        }
    }
    if report.verdict.outcome == Outcome::Inconclusive && rows.is_empty() {
        rows.push(of(&report.verdict));
    }
    outliers(blade, judgement, &label, &mut rows);
    rows
}

/// Adds what the judge says about devices that nobody has failed yet: one row each, with its least probable metric.
fn outliers(blade: &str, judgement: &Judgement, label: &dyn Fn(&str) -> String, rows: &mut Vec<Row>) {
    let mut told = BTreeSet::new();
    for outlier in judgement.outliers.iter().filter(|o| o.blade == blade) {
        let failed =
            rows.iter().any(|row| row.id.as_deref() == Some(&outlier.device) && row.verdict == "fail");
        if failed || !told.insert(&outlier.device) {
            continue;
        }
        let more =
            judgement.outliers.iter().filter(|o| o.blade == blade && o.device == outlier.device).count() - 1;
        let mut why = outlier.percent_worse.map_or(outlier.reason.clone(), |percent| {
            let name = outlier.metric.strip_suffix(".throughput").unwrap_or(&outlier.metric);
            format!(
                "{name} {percent:.1} % below its cohort of {} (p = {:.0e})",
                outlier.cohort_devices, outlier.p
            )
        });
        if more > 0 {
            why += &format!(", {more} more");
        }
        // Readings of the blade as a whole have the blade's name as their device.
        let whole_blade = outlier.device == blade;
        rows.push(Row {
            device: if whole_blade { "–".into() } else { label(&outlier.device) },
            id: (!whole_blade).then(|| outlier.device.clone()),
            code: outlier.metric.clone(),
            ..whole(blade, "outlier", &why, if whole_blade { "drain, burn in again" } else { "replace" })
        });
    }
}

/// Whether a row can be this fault's doing.
fn explains(fault: &PlantedFault, row: &Row) -> bool {
    // The agent numbers GPUs as NVML does: where one is missing, labels move up. Its UUID stays.
    let its_own = match &fault.uuid {
        Some(uuid) => row.id.as_deref() == Some(uuid),
        None => {
            row.device == fault.device || row.id.as_deref().is_some_and(|id| id.starts_with(&fault.device))
        }
    };
    let blade = row.id.is_none();
    let collective = blade && row.code.contains("nccl");
    its_own
        || match &fault.fault {
            // A link has two ends; a collective is as fast as its slowest link.
            Fault::SlowLink { peer, .. } => collective || row.device == format!("gpu{peer}"),
            Fault::NvlinkDown { .. } => collective,
            Fault::GpuMissing | Fault::GpuLost { .. } => blade,
            _ => fault.shows == Shows::Untestable && (blade || row.verdict == "inconclusive"),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planted(uuid: Option<&str>, device: &str, fault: Fault, shows: Shows) -> PlantedFault {
        PlantedFault { device: device.into(), uuid: uuid.map(str::to_owned), fault, shows }
    }

    fn row(verdict: &str, device: &str, id: Option<&str>) -> Row {
        let code = "nccl.all_reduce.busbw".to_owned();
        Row { device: device.into(), id: id.map(str::to_owned), code, ..whole("b", verdict, "", "") }
    }

    #[test]
    fn a_fault_explains_its_own_device_and_no_other() {
        let flip = planted(Some("GPU-a"), "gpu1", Fault::RemapPending, Shows::Accused);
        assert!(explains(&flip, &row("fail", "gpu0", Some("GPU-a"))));
        assert!(!explains(&flip, &row("fail", "gpu1", Some("GPU-b"))));
        assert!(!explains(&flip, &row("outlier", "–", None)));
        let down = planted(None, "mlx5_3", Fault::IbDown { port: 3 }, Shows::Accused);
        assert!(explains(&down, &row("fail", "mlx5_3/1", Some("mlx5_3/1"))));
        assert!(!explains(&down, &row("fail", "mlx5_2/1", Some("mlx5_2/1"))));
    }

    #[test]
    fn a_slow_link_may_show_at_either_end_and_in_collectives() {
        let slow = planted(Some("GPU-a"), "gpu1", Fault::SlowLink { peer: 7, percent: 20.0 }, Shows::Accused);
        assert!(explains(&slow, &row("fail", "gpu7", Some("GPU-h"))));
        assert!(explains(&slow, &row("outlier", "–", None)));
        assert!(!explains(&slow, &Row { code: "inventory-gpu-count".into(), ..row("fail", "–", None) }));
        assert!(!explains(&slow, &row("fail", "gpu6", Some("GPU-g"))));
    }

    fn report(accused: &[(&str, &str)]) -> Report {
        let verdict = |device: Option<&str>, outcome: &str| serde_json::json!({"device": device, "outcome": outcome, "code": "sdc", "why": "wrong bits", "action": "replace", "evidence": []});
        let devices: Vec<_> = ["GPU-a", "GPU-b", "GPU-c"]
            .iter()
            .enumerate()
            .map(|(i, id)| serde_json::json!({"id": id, "kind": "gpu", "label": format!("gpu{i}"), "model": "X (sim)"}))
            .collect();
        let verdicts: Vec<_> = accused.iter().map(|(id, outcome)| verdict(Some(id), outcome)).collect();
        serde_json::from_value(serde_json::json!({
            "schema": "whetstone.report/1", "run": "r", "blade": {"name": "b", "kernel": "k"}, "simulated": true,
            "suite": {"name": "s", "sha256": "0", "seed": 1}, "versions": {"whet": "0"}, "started_ms": 0, "ended_ms": 1,
            "complete": true, "devices": devices, "verdict": verdict(None, accused.first().map_or("pass", |(_, o)| o)),
            "device_verdicts": verdicts, "tests": [], "findings": [], "series": []
        }))
        .unwrap()
    }

    fn scored(accused: &[(&str, &str)], outliers: Vec<Outlier>) -> Score {
        let faults = vec![
            planted(Some("GPU-a"), "gpu0", Fault::RemapPending, Shows::Accused),
            planted(Some("GPU-b"), "gpu1", Fault::RemapFailed, Shows::Accused),
        ];
        let blades = vec![whetstone_scenario::tranche::PlantedBlade { blade: "b".into(), faults }];
        let ran = Ran { took: std::time::Duration::ZERO, report: Ok(report(accused)) };
        score(&Planted { seed: 1, sku: "h100".into(), blades }, &[ran], &Judgement { outliers })
    }

    #[test]
    fn misses_and_false_accusations_are_counted() {
        let all = scored(&[("GPU-a", "fail"), ("GPU-b", "fail")], Vec::new());
        assert!(all.perfect() && all.recall == 1.0 && all.precision == 1.0, "{all:?}");
        let wrong = scored(&[("GPU-a", "fail"), ("GPU-c", "fail")], Vec::new());
        assert_eq!((wrong.found, wrong.missed.len(), wrong.healthy_accused), (1, 1, 1), "{wrong:?}");
        assert!(!wrong.perfect() && wrong.recall == 0.5 && wrong.precision == 0.5);
        // "Could not be tested" is no finding of a fault that a test shows.
        let open = scored(&[("GPU-a", "fail"), ("GPU-b", "inconclusive")], Vec::new());
        assert_eq!((open.found, open.healthy_accused), (1, 0), "{open:?}");
    }

    #[test]
    fn an_outlier_counts_once_per_device() {
        let outlier = |device: &str, metric: &str| Outlier {
            blade: "b".into(),
            device: device.into(),
            metric: metric.into(),
            p: 1e-6,
            percent_worse: Some(7.0),
            cohort_devices: 24,
            reason: "far out".into(),
        };
        let list = vec![
            outlier("GPU-b", "gemm.bf16.throughput"),
            outlier("GPU-b", "hbm.bandwidth"),
            outlier("GPU-c", "x"),
        ];
        let score = scored(&[("GPU-a", "fail")], list);
        assert_eq!((score.found, score.accused, score.healthy_accused), (2, 3, 1), "{score:?}");
        let why: Vec<&str> =
            score.rows.iter().filter(|r| r.device == "gpu1").map(|r| r.why.as_str()).collect();
        assert_eq!(why, ["gemm.bf16 7.0 % below its cohort of 24 (p = 1e-6), 1 more"]);
    }
}
