//! `whet probe` as a user runs it: exit codes and forms of output. Machines are directories made here.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

use std::path::Path;
use std::process::{Command, Output};

fn whet(root: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_whet"))
        .args(["probe", "--root"])
        .arg(root)
        .args(more)
        .env_remove("WHETSTONE_NVML_LIB")
        .env_remove("WHETSTONE_ROOT")
        .output()
        .unwrap()
}

fn plant(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn a_root_that_is_not_there_is_wrong_usage() {
    let out = whet(Path::new("/no/such/root"), &["--json"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(out.stdout.is_empty());
    assert!(String::from_utf8_lossy(&out.stderr).contains("/no/such/root"), "{out:?}");
}

#[test]
fn a_time_limit_that_makes_no_sense_is_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    for bad in ["0", "-1", "NaN", "1e9", "soon"] {
        assert_eq!(whet(dir.path(), &[&format!("--timeout={bad}")]).status.code(), Some(2), "{bad}");
    }
}

#[test]
fn a_library_that_cannot_be_loaded_is_a_gap_and_the_rest_is_still_reported() {
    let dir = tempfile::tempdir().unwrap();
    plant(dir.path(), "proc/sys/kernel/hostname", "b-001\n");
    let out = whet(dir.path(), &["--json", "--nvml-lib", "/no/such/library.so"]);
    assert_eq!(out.status.code(), Some(20), "{out:?}");
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["facts"]["host"]["hostname"], "b-001");
    assert_eq!(json["findings"][0]["code"], "source-error");
    assert_eq!(json["findings"][0]["severity"], "warning");
}

#[test]
fn a_fault_is_exit_code_10_in_both_forms() {
    let dir = tempfile::tempdir().unwrap();
    plant(dir.path(), "sys/devices/system/edac/mc/mc0/dimm0/dimm_ue_count", "1\n");
    let json = whet(dir.path(), &["--json"]);
    assert_eq!(json.status.code(), Some(10), "{json:?}");
    let text = whet(dir.path(), &[]);
    assert_eq!(text.status.code(), Some(10));
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.contains("edac-uncorrectable") && text.contains("mc0/dimm0") && text.contains("replace"),
        "{text}"
    );
}
