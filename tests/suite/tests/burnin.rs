//! A burn-in as its user sees it: exit codes, the bundle, and what is left when it is cut off.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use whetstone_suite::whet;

/// Host tests that take a second or two on any machine.
const SMALL: &str = r#"
name = "small"
description = "One quick look at the host."
[[test]]
name = "inventory"
kind = "inventory"
budget_s = 5
[[test]]
name = "cpu"
kind = "cpu_compute"
budget_s = 2
params = { families = ["hash"] }
[[test]]
name = "gemm"
kind = "gpu_gemm"
budget_s = 2
"#;

/// A suite that would run for minutes.
const LONG: &str = r#"
name = "long"
description = "To be cut off."
[[test]]
name = "coherence"
kind = "cpu_coherence"
budget_s = 1
[[test]]
name = "cpu"
kind = "cpu_compute"
budget_s = 300
params = { families = ["hash"] }
"#;

fn burnin(dir: &Path, suite: &str, more: &[&str]) -> Command {
    burnin_into(&dir.join("run"), dir, suite, more)
}

fn burnin_into(out: &Path, dir: &Path, suite: &str, more: &[&str]) -> Command {
    let file = dir.join("suite.toml");
    std::fs::write(&file, suite).unwrap();
    let mut command = Command::new(whet());
    command
        .args(["burnin", "--backend", "cpu", "--blade", "b-test", "--suite"])
        .arg(file)
        .arg("--out")
        .arg(out)
        .env("WHETSTONE_KEY", dir.join("key.pem"))
        .env("WHETSTONE_KMSG", dir.join("kmsg"))
        .args(more);
    std::fs::write(dir.join("kmsg"), "").unwrap();
    command
}

fn report(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("run/report.json")).unwrap()).unwrap()
}

fn verify(dir: &Path) -> Output {
    Command::new(whet()).args(["report", "verify", "--json"]).arg(dir.join("run")).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits until the bundle says that `tests` tests are done.
fn wait_for_tests(dir: &Path, tests: usize) {
    let limit = Instant::now() + Duration::from_secs(60);
    loop {
        let done = std::fs::read(dir.join("run/report.json"))
            .ok()
            .and_then(|text| serde_json::from_slice::<Value>(&text).ok())
            .and_then(|report| Some(report["tests"].as_array()?.len()));
        if done.is_some_and(|n| n >= tests) {
            return;
        }
        assert!(Instant::now() < limit, "the run did not come to {tests} tests");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_run_on_this_machine_gives_a_true_result_and_a_signed_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let output = burnin(dir.path(), SMALL, &["--json"]).output().unwrap();
    let printed: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", stderr(&output)));
    assert_eq!(printed, report(dir.path()), "what is printed is what is kept");
    assert_eq!(printed["complete"], true);
    assert_eq!(printed["tests"][1]["outcome"], "pass", "{}", printed["tests"][1]);
    assert_eq!(printed["tests"][2]["outcome"], "not_applicable");
    // This machine may have a fault or a source that does not answer; the exit code must say what the verdict says.
    let code = match printed["verdict"]["outcome"].as_str().unwrap() {
        "pass" => 0,
        "fail" => 10,
        _ => 20,
    };
    assert_eq!(output.status.code(), Some(code));

    assert_eq!(verify(dir.path()).status.code(), Some(0));
    let page = std::fs::read_to_string(dir.path().join("run/report.html")).unwrap();
    assert!(page.contains("b-test") && !page.contains("src=\"http"), "a page of its own");
    let index = Command::new(whet()).args(["report", "index", "--json"]).arg(dir.path()).output().unwrap();
    assert_eq!(index.status.code(), Some(0), "{}", stderr(&index));
    let index: Value = serde_json::from_slice(&index.stdout).unwrap();
    assert_eq!(index["blades"][0]["link"], "run/report.html");
    assert!(std::fs::read_to_string(dir.path().join("index.html")).unwrap().contains("b-test"));

    let path = dir.path().join("run/evidence.jsonl");
    let evidence = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, evidence.replacen('1', "2", 1)).unwrap();
    let changed = verify(dir.path());
    assert_eq!(changed.status.code(), Some(10));
    assert!(String::from_utf8_lossy(&changed.stdout).contains("evidence.jsonl was changed"));
}

#[test]
fn wrong_input_starts_nothing_and_says_what_and_where() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |command: &mut Command, says: &str| {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(says), "{:?} does not say {says:?}", stderr(&output));
        assert!(output.stdout.is_empty());
    };
    refused(&mut burnin(dir.path(), "name = 3\n", &[]), "suite.toml:1");
    refused(
        &mut burnin(dir.path(), &SMALL.replace("gpu_gemm", "gpu_gem"), &[]),
        "suite.toml:15: unknown kind",
    );
    refused(Command::new(whet()).args(["burnin", "--suite", "no-such"]), "quick, standard, soak");
    refused(&mut burnin(dir.path(), SMALL, &["--blade", "../x"]), "--blade");
    assert!(!dir.path().join("run").exists(), "nothing was started");

    // Another run's bundle is never written into.
    std::fs::create_dir(dir.path().join("run")).unwrap();
    std::fs::write(dir.path().join("run/report.json"), "{}").unwrap();
    refused(&mut burnin(dir.path(), SMALL, &[]), "not an empty directory");
    assert_eq!(std::fs::read_to_string(dir.path().join("run/report.json")).unwrap(), "{}");
}

#[test]
fn an_interrupted_run_is_inconclusive_and_signed() {
    let dir = tempfile::tempdir().unwrap();
    let mut child =
        burnin(dir.path(), LONG, &["--json"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    wait_for_tests(dir.path(), 1);
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(20));
    let report = report(dir.path());
    assert_eq!((&report["complete"], &report["verdict"]["outcome"]), (&false.into(), &"inconclusive".into()));
    assert!(report["incomplete_because"].as_str().unwrap().starts_with("interrupted: 2 of 2"), "{report}");
    assert_eq!(verify(dir.path()).status.code(), Some(0));
}

#[test]
fn a_killed_run_leaves_a_readable_bundle_and_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = burnin(dir.path(), LONG, &[]).stderr(std::process::Stdio::null()).spawn().unwrap();
    wait_for_tests(dir.path(), 1);
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let limit = Instant::now() + Duration::from_secs(30);
    let of_run = loop {
        let found = std::fs::read_to_string(&children).unwrap_or_default();
        if let Some(pid) = found.split_whitespace().next() {
            break pid.to_owned();
        }
        assert!(Instant::now() < limit, "the second test has a process");
        std::thread::sleep(Duration::from_millis(10));
    };
    child.kill().unwrap();
    child.wait().unwrap();
    let report = report(dir.path());
    assert_eq!((&report["complete"], &report["verdict"]["outcome"]), (&false.into(), &"inconclusive".into()));
    assert_eq!(report["incomplete_because"], "running: 1 of 2 tests done");
    assert_eq!(report["verdict"]["why"], "running: 1 of 2 tests done");
    assert_eq!(verify(dir.path()).status.code(), Some(20), "not signed");
    let shown = Command::new(whet()).args(["report", "show"]).arg(dir.path().join("run")).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("inconclusive"));
    let limit = Instant::now() + Duration::from_secs(30);
    while Path::new("/proc").join(&of_run).join("exe").exists() {
        assert!(Instant::now() < limit, "test process {of_run} outlived its run");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_full_disk_is_refused_before_anything_starts() {
    // A file system of its own, where this machine allows one.
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
        .arg(&small)
        .output()
        .is_ok_and(|o| o.status.success());
    if !mounted {
        eprintln!("skipped: may not mount a small file system here");
        return;
    }
    let output = burnin_into(&small.join("run"), dir.path(), SMALL, &[]).output();
    let unmounted = Command::new("umount").arg(&small).status();
    let output = output.unwrap();
    assert!(unmounted.unwrap().success());
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("MiB free"), "{}", stderr(&output));
}
