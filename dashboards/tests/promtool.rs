//! The alert rules in Debian's promtool: they are valid, each fires when it should and is silent when it should.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests: what fails here is a failed test"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use whetstone_dashboards::alerts;

fn alerts_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts")
}

fn test_files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(alerts_folder().join("tests"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    files
}

/// promtool comes with the package `prometheus`, which `make test` installs.
fn promtool(args: &[&std::ffi::OsStr]) {
    let output = Command::new("promtool").args(args).output().expect("promtool (Debian package prometheus)");
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn rules_are_valid() {
    let rules = alerts_folder().join("whetstone.rules.yaml");
    promtool(&[
        "check".as_ref(),
        "rules".as_ref(),
        "--lint=all".as_ref(),
        "--lint-fatal".as_ref(),
        rules.as_os_str(),
    ]);
}

#[test]
fn rules_fire_and_are_silent_as_they_should() {
    let files = test_files();
    let mut args: Vec<&std::ffi::OsStr> = vec!["test".as_ref(), "rules".as_ref()];
    args.extend(files.iter().map(|file| file.as_os_str()));
    promtool(&args);
}

#[test]
fn every_alert_is_tested_both_ways() {
    // (fires, is silent) by alert.
    let mut seen: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
    let all = alerts::all();
    for file in test_files() {
        let text = std::fs::read_to_string(&file).unwrap();
        let yaml: serde_norway::Value = serde_norway::from_str(&text).unwrap();
        for test in yaml["tests"].as_sequence().unwrap() {
            for check in test["promql_expr_test"].as_sequence().unwrap() {
                let expr = check["expr"].as_str().unwrap();
                let fires =
                    check.get("exp_samples").and_then(|s| s.as_sequence()).is_some_and(|s| !s.is_empty());
                for alert in &all {
                    if expr == format!("ALERTS{{alertname=\"{}\",alertstate=\"firing\"}}", alert.name) {
                        let entry = seen.entry(alert.name).or_default();
                        if fires {
                            entry.0 = true;
                        } else {
                            entry.1 = true;
                        }
                    }
                }
            }
        }
    }
    for alert in &all {
        assert_eq!(seen.get(alert.name), Some(&(true, true)), "{}: (fires, is silent)", alert.name);
    }
}
