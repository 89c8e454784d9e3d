//! The report in a real browser: it draws, and asks for nothing from outside.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

use std::path::Path;
use std::process::Command;

use whetstone_suite::whet;

/// A white page of this size is a tenth of it as PNG.
const DRAWN_BYTES: u64 = 40_000;

const SUITE: &str = r#"
name = "page"
description = "Something to draw."
[[test]]
name = "cpu"
kind = "cpu_compute"
budget_s = 2
params = { families = ["hash"] }
[[test]]
name = "coherence"
kind = "cpu_coherence"
budget_s = 1
"#;

/// Headless Chromium with a profile of its own; `None` where it is not installed.
fn chromium(profile: &Path) -> Option<Command> {
    let found = Command::new("chromium").arg("--version").output().is_ok_and(|o| o.status.success());
    let mut command = Command::new("chromium");
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", profile.display()));
    found.then_some(command)
}

#[test]
fn the_report_of_a_run_draws_in_a_browser() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut browser) = chromium(&dir.path().join("profile")) else {
        eprintln!("skipped: chromium is not installed");
        return;
    };
    let suite = dir.path().join("suite.toml");
    std::fs::write(&suite, SUITE).unwrap();
    std::fs::write(dir.path().join("kmsg"), "").unwrap();
    let run = dir.path().join("run");
    let status = Command::new(whet())
        .args(["burnin", "--backend", "cpu", "--blade", "b-page", "--suite"])
        .arg(&suite)
        .arg("--out")
        .arg(&run)
        .arg("--kmsg")
        .arg(dir.path().join("kmsg"))
        .env("WHETSTONE_KEY", dir.path().join("key.pem"))
        .output()
        .unwrap();
    assert!(run.join("report.html").exists(), "{}", String::from_utf8_lossy(&status.stderr));

    let picture = dir.path().join("page.png");
    let output = browser
        .args(["--enable-logging=stderr", "--window-size=1300,2400", "--dump-dom"])
        .arg(format!("--screenshot={}", picture.display()))
        .arg(format!("file://{}", run.join("report.html").display()))
        .output()
        .unwrap();
    let (page, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(page.contains("b-page") && page.contains("<svg"), "the page's own content, with plots: {log}");
    assert!(!log.contains("CONSOLE"), "nothing to complain about: {log}");
    let size = std::fs::metadata(&picture).map_or(0, |m| m.len());
    assert!(size > DRAWN_BYTES, "drawn: {size} bytes of picture");
}
