//! The acceptance report of a tranche, from manifest to signed files.

use serde_json::{Value, json};
use whetstone_bundle::manifest::verify;
use whetstone_model::ids::RunId;
use whetstone_model::lifecycle::{Phase, QuarantineReason};
use whetstone_model::verdict::Outcome;
use whetstone_operator::ops::AcceptanceReport;
use whetstone_store::{NewRun, NewTransition};

use crate::report::SUITE;
use crate::result::{pack, report_of, result_of};
use crate::site::*;

const BLADES: usize = 10;

fn row(site: &Site, of: &str) -> whetstone_store::BladeRow {
    site.wait(site.store.load_blades(&[serial(of)])).unwrap().blades.remove(0)
}

fn to(site: &Site, of: &str, phase: Phase) {
    let transition = NewTransition {
        serial: serial(of),
        expect_sequence: row(site, of).sequence,
        to: phase,
        why: "test".into(),
        run: None,
        case: None,
        at_ms: now_ms(),
    };
    site.wait(site.store.transition(&[transition])).unwrap().remove(0).unwrap();
}

fn start(site: &Site, of: &str, seed: u64) -> RunId {
    let new = NewRun {
        suite_name: "quick".into(),
        suite_text: SUITE.into(),
        budget_ms: 1,
        why: "test".into(),
        seed,
        sku: None,
    };
    let run = (serial(of), row(site, of).sequence, new);
    site.wait(site.store.start_runs(&[run], now_ms())).unwrap().remove(0).unwrap().0
}

/// Eight devices with small differences; `slow` is far behind.
fn samples(number: usize, slow: Option<usize>) -> String {
    (0..8)
        .map(|device| {
            let noise = ((number * 8 + device) * 37 % 80) as f64 * 0.02;
            let value = if slow == Some(device) { 500.0 } else { 700.0 + noise };
            json!({"blade": format!("b-{number}"), "device": format!("GPU-b-{number}-{device}"), "label": format!("gpu{device}"),
                "test": "gemm-bf16", "metric": "gemm.bf16.throughput", "value": value, "unit": "TFLOP/s", "better": "higher",
                "sku": "hgx-h100", "driver": "580.1", "suite": sha256(SUITE)})
            .to_string()
                + "\n"
        })
        .collect()
}

/// b-1 fails, b-2 is slow and withheld for it, b-9 burns in, b-10 never came; the others are ready.
fn tranche() -> Site {
    let site = Site::start(BLADES);
    for number in 1..BLADES {
        let of = format!("S{number}");
        let agent = site.joined(&of);
        to(&site, &of, Phase::Discovered);
        let run = start(&site, &of, number as u64);
        if number == 9 {
            continue;
        }
        let outcome = if number == 1 { Outcome::Fail } else { Outcome::Pass };
        let report = report_of(&format!("b-{number}"), number as u64, outcome);
        let result =
            result_of(&agent, run, &report, &samples(number, (number == 2).then_some(3)), &agent.signer);
        assert_eq!(agent.put_result(run.0, &pack(&result)).status, 204);
        match number {
            1 => to(&site, &of, Phase::Quarantined { reason: QuarantineReason::BurnIn }),
            2 => {
                let fail = whetstone_store::CohortRow {
                    outcome: Outcome::Fail,
                    why: "gpu3 is 29 % slower".into(),
                    at_ms: now_ms(),
                };
                site.wait(site.store.store_cohort(&[(run, fail)])).unwrap();
                to(&site, &of, Phase::Quarantined { reason: QuarantineReason::Outlier });
            }
            _ => to(&site, &of, Phase::Ready),
        }
    }
    Agent::new(&site, "X1").join("wt-none");
    site
}

#[test]
fn the_report_says_what_became_of_each_blade_and_is_signed() {
    let site = tranche();
    let answer = Answer::of(site.person().get(format!("{}/v1/ops/tranches/t-07/report", site.url)).call());
    let bundle: Value = answer.json();
    let files: std::collections::BTreeMap<String, String> =
        serde_json::from_value(bundle["files"].clone()).unwrap();
    let report: AcceptanceReport = serde_json::from_str(&files["report.json"]).unwrap();

    let c = report.counts;
    assert_eq!(
        (c.expected, c.delivered, c.accepted, c.returned, c.undecided, c.missing),
        (10, 9, 6, 2, 1, 1)
    );
    assert_eq!((c.duplicates, c.unexpected), (1, 1));
    assert!((report.yield_percent.unwrap() - 100.0 * 6.0 / 9.0).abs() < 1e-9);
    assert_eq!(report.racks.len(), 3);
    assert_eq!(report.racks.iter().map(|r| r.counts.accepted).sum::<usize>(), 6);
    let returned: Vec<_> =
        report.returns.iter().map(|r| (r.name.as_str(), r.code.as_str(), r.device.as_deref())).collect();
    assert_eq!(returned, [("b-1", "sdc", Some("gpu5")), ("b-2", "outlier", None)]);
    assert_eq!(report.returns[0].evidence, ["e-8812"]);
    assert_eq!(report.returns[0].device_serial.as_deref(), Some("G55"));
    assert_eq!(report.returns[0].findings[0].detail, "wrong bits on SM 41");
    assert_eq!(report.returns[1].why, "gpu3 is 29 % slower");
    assert_eq!(report.missing[0].name.as_str(), "b-10");
    assert_eq!(report.unexpected[0].serial, "X1");
    assert_eq!((report.suites[0].runs, report.versions[0].runs), (8, 8));
    assert!(report.simulated && report.notes.is_empty(), "{:?}", report.notes);
    let d = &report.distributions[0];
    assert_eq!((d.values.len(), d.sku.as_deref(), d.judged), (64, Some("hgx-h100"), true));
    let outliers: Vec<_> = d.outliers.iter().map(|o| (o.blade.as_str(), o.device.as_str())).collect();
    assert_eq!(outliers, [("b-2", "gpu3")]);

    // Written to a folder it is what `whet report verify` checks.
    let dir = tempfile::tempdir().unwrap();
    write_files(dir.path(), &files);
    let key = whetstone_operator::pki::report_key(site.dir.path()).unwrap().verifying_key();
    assert_eq!(verify(dir.path(), &[key]).unwrap().files, 2);
    std::fs::write(dir.path().join("report.json"), files["report.json"].replace("b-1", "b-3")).unwrap();
    assert!(verify(dir.path(), &[key]).is_err());

    let page = &files["report.html"];
    for what in
        ["SIMULATED", "wrong bits on SM 41", "b-2 gpu3", "e-8812", "S999", "66.7 %", "prefers-color-scheme"]
    {
        assert!(page.contains(what), "the page does not say {what:?}");
    }
    for outside in ["src=", "href=", "url(", "@import", "<script"] {
        assert!(!page.contains(outside), "the page refers to something outside: {outside}");
    }
}

#[test]
fn what_others_say_stays_text_on_the_page() {
    let site = Site::start(1);
    let evil = "<script>alert(1)</script>";
    let case = whetstone_store::NewCase {
        serial: serial("S1"),
        code: "x".into(),
        device: None,
        reason: "person".into(),
        detail: evil.into(),
        action: whetstone_model::action::Action::Replace,
        at_ms: now_ms(),
    };
    site.joined("S1");
    to(&site, "S1", Phase::Discovered);
    to(&site, "S1", Phase::Quarantined { reason: QuarantineReason::Person });
    site.wait(site.store.open_cases(&[case])).unwrap();
    let bundle: Value =
        Answer::of(site.person().get(format!("{}/v1/ops/tranches/t-07/report", site.url)).call()).json();
    let page = bundle["files"]["report.html"].as_str().unwrap();
    assert!(!page.contains(evil));
    assert!(page.contains("&lt;script&gt;alert(1)"));
}
