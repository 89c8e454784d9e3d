//! `whet judge` as a user runs it: exit codes, JSON, and input errors that name the line.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

use std::io::Write;
use std::process::{Command, Output};

/// `blades` × 8 devices in one metric, values even within half a percent; `change` may alter one.
fn samples(blades: usize, change: impl Fn(usize, usize) -> f64) -> String {
    let mut text = String::new();
    for blade in 0..blades {
        for device in 0..8 {
            let noise = ((blade * 8 + device) * 37 % 101) as f64 / 101.0 - 0.5;
            let value = 700.0 * (1.0 + 0.01 * noise) * change(blade, device);
            text.push_str(&format!(
                "{{\"blade\":\"b-{blade}\",\"device\":\"GPU-{blade}-{device}\",\"test\":\"gemm\",\"metric\":\"gemm.bf16.throughput\",\
                 \"value\":{value},\"unit\":\"TFLOP/s\",\"better\":\"higher\",\"label\":\"gpu{device}\"}}\n"
            ));
        }
    }
    text
}

fn whet(text: &str, more: &[&str]) -> Output {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Command::new(env!("CARGO_BIN_EXE_whet"))
        .args(["judge", "--samples"])
        .arg(file.path())
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn an_outlier_is_named_with_its_reason_and_exit_code_10() {
    let text = samples(6, |b, d| if (b, d) == (4, 2) { 0.92 } else { 1.0 });
    let out = whet(&text, &["--json"]);
    assert_eq!(out.status.code(), Some(10), "{out:?}");
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let outliers = json["outliers"].as_array().unwrap();
    assert_eq!(outliers.len(), 1);
    assert_eq!((&outliers[0]["blade"], &outliers[0]["device"]), (&"b-4".into(), &"GPU-4-2".into()));
    assert!(outliers[0]["p"].as_f64().unwrap() < 0.01);
    assert!(outliers[0]["reason"].as_str().unwrap().contains("% below its cohort of 48"));
    assert_eq!(json["cohorts"][0]["judged"], true);
    let table = String::from_utf8(whet(&text, &[]).stdout).unwrap();
    assert!(
        table.contains("b-4  GPU-4-2  gemm: gemm.bf16.throughput")
            && table.contains("1 of 48 devices on 6 blades")
    );
}

#[test]
fn a_healthy_fleet_is_0_and_a_fleet_that_cannot_be_judged_is_20() {
    assert_eq!(whet(&samples(6, |_, _| 1.0), &[]).status.code(), Some(0));
    let out = whet(&samples(2, |b, d| if (b, d) == (0, 0) { 0.5 } else { 1.0 }), &["--json"]);
    assert_eq!(out.status.code(), Some(20));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["cohorts"][0]["judged"], false);
    assert!(json["cohorts"][0]["why_not"].as_str().unwrap().contains("2 blade(s)"));
}

#[test]
fn bad_input_is_2_and_names_file_and_line() {
    let mut text = samples(3, |_, _| 1.0);
    text.push_str("{\"blade\": 7}\n");
    let out = whet(&text, &["--json"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(out.stdout.is_empty() && String::from_utf8_lossy(&out.stderr).contains(":25: "), "{out:?}");
    assert_eq!(whet("", &[]).status.code(), Some(2));
    for fpr in ["0", "1", "NaN", "x"] {
        assert_eq!(whet(&samples(3, |_, _| 1.0), &["--fpr", fpr]).status.code(), Some(2), "{fpr}");
    }
}
