//! The demonstration on a small tranche: the shipped binary on simulated blades, every planted fault found, nobody accused
//! falsely; then what it says of how to look around and how to end it, done as it is written there.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests: what fails here is a failed test"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The site of a demonstration goes on after it.
struct Left(PathBuf);

impl Drop for Left {
    fn drop(&mut self) {
        let down =
            Command::new(whetstone_suite::whet()).args(["site", "down", "--dir"]).arg(&self.0).output();
        if !down.as_ref().is_ok_and(|down| down.status.success()) {
            eprintln!("{down:?}");
        }
    }
}

/// Processes that have the folder in their environment, as all that a site or its cluster starts does.
fn processes_of(dir: &Path) -> Vec<String> {
    let text = dir.to_str().unwrap();
    let of_site = |pid: &fs::DirEntry| {
        let environment = fs::read(pid.path().join("environ")).ok()?;
        let environment = String::from_utf8_lossy(&environment).into_owned();
        let mark = |entry: &str| entry.starts_with("WHETSTONE_") && entry.contains(text);
        let name = fs::read_to_string(pid.path().join("cmdline")).unwrap_or_default();
        environment.split('\0').any(mark).then(|| name.replace('\0', " "))
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| of_site(&entry))
        .filter(|name| !name.is_empty())
        .collect()
}

/// Links of clusters of this machine (`whet0`, …), with their addresses.
fn links() -> Vec<String> {
    let links = fs::read_dir("/sys/class/net").unwrap().flatten();
    let mut names: Vec<String> = links.map(|link| link.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.starts_with("whet"));
    names.sort();
    names
}

/// A line of the output as a person types it after the `export`.
fn typed(export: &str, line: &str) -> Output {
    Command::new("bash").args(["-euc", &format!("{export}\n{line}")]).output().unwrap()
}

#[test]
fn a_small_tranche_is_told_apart_without_a_mistake_and_can_be_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("runs");
    let before = links();
    let left = Left(out.join("site"));
    let output = Command::new(whetstone_suite::whet_sim())
        .args(["demo", "--seed", "4", "--blades", "4", "--own-suite", "none"])
        .arg("--whet")
        .arg(whetstone_suite::whet())
        .arg("--libs")
        .arg(whetstone_suite::sim_libraries())
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let demo = fs::read(out.join("demo.json")).unwrap_or_else(|e| panic!("{e}: {said}"));
    told_apart(&serde_json::from_slice(&demo).unwrap());
    assert_eq!(output.status.code(), Some(0), "{said}");

    let index = fs::read_to_string(out.join("index.html")).unwrap();
    for blade in ["b-001", "b-004"] {
        assert!(index.contains(&format!("href=\"{blade}/report.html\"")), "{blade} is not linked");
        let report: Value =
            serde_json::from_slice(&fs::read(out.join(blade).join("report.json")).unwrap()).unwrap();
        assert_eq!(report["simulated"], true, "{blade} passes as hardware");
    }

    let text = String::from_utf8(output.stdout).unwrap();
    looked_at(&text, &out);
    // All that it started has the folder in its environment: else the check below would look at nothing.
    let running = processes_of(&left.0);
    for name in ["whetstone-operator", "whetstone-agent", "kube-apiserver"] {
        assert!(running.iter().any(|process| process.contains(name)), "{name}: {running:#?}");
    }
    let (_, end) = text.split_once("end it: ").unwrap();
    let ended = typed("true", end);
    assert!(ended.status.success(), "{ended:?}");
    assert!(!left.0.exists(), "the site's folder is left");
    assert_eq!(processes_of(&left.0), [""; 0]);
    assert_eq!(links().iter().filter(|link| !before.contains(link)).count(), 0, "{:?}", links());
    // What was found stays.
    assert!(out.join("acceptance/report.html").is_file() && out.join("b-004/report.html").is_file());
}

fn told_apart(demo: &Value) {
    assert_eq!(demo["missed"], serde_json::json!([]), "{demo:#}");
    assert_eq!(demo["healthy_accused"], 0, "{demo:#}");
    assert_eq!(demo["healthy_not_passed"], 0, "{demo:#}");
    // Seed 4 plants a blade that cannot be tested and one with six faults of all sorts.
    assert_eq!((demo["planted"].as_u64(), demo["found"].as_u64()), (Some(7), Some(7)), "{demo:#}");
    let verdicts: Vec<&str> =
        demo["blades"].as_array().unwrap().iter().filter_map(|b| b["verdict"].as_str()).collect();
    // The one whose driver answers nothing is withheld before any run: it shows no GPU.
    assert_eq!(verdicts, ["pass", "pass", "no report", "fail"], "{demo:#}");
    assert_eq!(demo["blades"][2]["why"], "the manifest says hgx-h100, the blade shows no GPU", "{demo:#}");
}

/// What it prints at the end: the table, what kubectl shows, and commands that do what they promise.
fn looked_at(text: &str, out: &Path) {
    let line = |from: &str, start: &str| {
        let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("no {from:?}: {text}"));
        let found = rest.lines().find(|line| line.trim_start().starts_with(start));
        found.unwrap_or_else(|| panic!("no {start:?} after {from:?}: {text}")).trim().to_owned()
    };
    assert!(text.contains("2 of 4 pass · planted 7 faults on 2 blades: 7 found"), "{text}");
    assert!(line("$ kubectl get blades", "b-001").contains("Ready"), "{text}");
    assert!(line("$ kubectl get blades", "b-004").contains("Quarantined"), "{text}");
    // Node, taint, cordon, and whose they are.
    let free: Vec<String> =
        line("$ kubectl get nodes", "b-001").split_whitespace().map(str::to_owned).collect();
    assert_eq!(free[3..], ["<none>"], "{free:?}");
    let held = line("$ kubectl get nodes", "b-004");
    assert!(held.contains(" true ") && held.contains("case="), "{held}");

    let report = line("", "acceptance report: ");
    let path = out.join("acceptance/report.html");
    assert!(report.contains(path.to_str().unwrap()) && path.is_file(), "{report}");
    let (_, verify) = report.split_once("(signed; ").unwrap();
    let verified = typed("true", verify.trim_end_matches(')'));
    assert!(verified.status.success(), "{verify}: {verified:?}");
    let export = line("look around:", "export ");
    let (_, on) = text.split_once("look around:").unwrap();
    for (what, start, words) in [
        ("blades", " blades", "b-004"),
        ("tranche", " tranche show t-01", "t-01"),
        ("explain", " explain b-001", "Ready"),
    ] {
        let command =
            on.lines().find(|line| line.ends_with(start)).unwrap_or_else(|| panic!("no {what}: {text}"));
        let shown = typed(&export, command);
        let said = String::from_utf8_lossy(&shown.stdout);
        assert!(shown.status.success() && said.contains(words), "{command}: {shown:?}");
    }
}
