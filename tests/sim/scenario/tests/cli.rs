//! `whet-sim` as a person uses it: what it makes, and what nonsense gets.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests: what fails here is a failed test")]

use std::path::Path;
use std::process::{Command, Output};

fn whet_sim(args: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_whet-sim")).args(args).current_dir(dir).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_blade_is_made_whole_and_never_over_another() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("s.toml"), "name = \"b-1\"\nsku = \"gb300\"\n").unwrap();
    let made = whet_sim(&["blade", "--scenario", "s.toml", "--out", "b"], dir.path());
    assert!(made.status.success(), "{}", stderr(&made));
    assert!(String::from_utf8_lossy(&made.stdout).contains("NVIDIA GB300 (sim) with 4 GPUs"));
    for file in ["blade.json", "kmsg", "root/proc/cpuinfo", "root/sys/bus/pci/devices/0008:01:00.0/vendor"] {
        assert!(dir.path().join("b").join(file).exists(), "{file}");
    }
    let before = std::fs::read(dir.path().join("b/blade.json")).unwrap();
    std::fs::write(dir.path().join("s.toml"), "name = \"b-2\"\nsku = \"a100\"\n").unwrap();
    let again = whet_sim(&["blade", "--scenario", "s.toml", "--out", "b"], dir.path());
    assert_eq!(again.status.code(), Some(2));
    assert_eq!(std::fs::read(dir.path().join("b/blade.json")).unwrap(), before, "a blade was overwritten");
}

#[test]
fn nonsense_exits_2_says_file_and_line_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for (scenario, says) in [
        ("name = \"b\"\nsku = \"h1000\"\n", "s.toml:2: unknown sku \"h1000\""),
        ("name = \"b\"\nsku = \"h100\"\n[[fault]]\ngpu = 9\nkind = \"remap_pending\"\n", "s.toml:4: gpu = 9"),
        (
            "name = \"b\"\nsku = \"h100\"\n[[fault]]\ngpu = 0\nkind = \"nvlink_down\"\nlink = 40\n",
            "s.toml:6: link = 40",
        ),
        (
            "name = \"b\"\nsku = \"h100\"\n[[fault]]\ngpu = 0\nkind = \"ecc_storm\"\nper_s = -1.0\n",
            "s.toml:6: per_s = -1",
        ),
        ("name = \"b\"\nsku = \"h100\"\nspeed = 3\n", "s.toml:3: unknown field `speed`"),
        ("name = \"b\"\nsku = \"h100\n", "s.toml:2: "),
    ] {
        std::fs::write(dir.path().join("s.toml"), scenario).unwrap();
        let output = whet_sim(&["blade", "--scenario", "s.toml", "--out", "b"], dir.path());
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{scenario}: {said}");
        assert!(said.contains(says) && said.lines().count() == 1, "{scenario}: {said}");
        assert!(!dir.path().join("b").exists(), "{scenario}: something was written");
    }
    let output = whet_sim(&["blade", "--scenario", "absent.toml", "--out", "b"], dir.path());
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

#[test]
fn a_tranche_says_what_it_planted() {
    let dir = tempfile::tempdir().unwrap();
    let made = whet_sim(&["tranche", "--seed", "5", "--blades", "3", "--out", "t"], dir.path());
    assert!(made.status.success(), "{}", stderr(&made));
    let planted: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("t/planted.json")).unwrap()).unwrap();
    assert_eq!(planted["blades"].as_array().unwrap().len(), 3);
    for blade in ["b-001", "b-002", "b-003"] {
        // The scenario beside a blade makes the same blade again.
        let scenario = format!("t/{blade}/scenario.toml");
        let again = whet_sim(&["blade", "--scenario", &scenario, "--out", blade], dir.path());
        assert!(again.status.success(), "{}", stderr(&again));
        let read = |path: String| std::fs::read_to_string(dir.path().join(path)).unwrap();
        assert_eq!(read(format!("t/{blade}/blade.json")), read(format!("{blade}/blade.json")));
    }
    for bad in [["--blades", "0"], ["--sku", "h1"]] {
        let output = whet_sim(&["tranche", bad[0], bad[1], "--out", "u"], dir.path());
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(!dir.path().join("u").exists());
    }
}

#[test]
fn a_demonstration_starts_nothing_without_its_parts_and_clears_only_its_own() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("libs")).unwrap();
    let demo =
        |whet: &str| whet_sim(&["demo", "--whet", whet, "--libs", "libs", "--out", "runs"], dir.path());
    let output = demo("no-such-whet");
    assert!(
        output.status.code() == Some(2) && stderr(&output).contains("no-such-whet"),
        "{}",
        stderr(&output)
    );
    std::fs::write(dir.path().join("whet"), "").unwrap();
    let output = demo("whet");
    assert!(
        output.status.code() == Some(2) && stderr(&output).contains("libnvidia-ml.so.1"),
        "{}",
        stderr(&output)
    );
    for library in ["libnvidia-ml.so.1", "libcuda.so.1", "libnccl.so.2"] {
        std::fs::write(dir.path().join("libs").join(library), "").unwrap();
    }
    std::fs::create_dir_all(dir.path().join("runs")).unwrap();
    std::fs::write(dir.path().join("runs/thesis.txt"), "years of work").unwrap();
    let output = demo("whet");
    assert!(output.status.code() == Some(2) && stderr(&output).contains("not empty"), "{}", stderr(&output));
    assert!(dir.path().join("runs/thesis.txt").exists());
}
