//! A whole burn-in of simulated blades: each planted fault is found, on its device, with its reason, and nobody
//! else is accused. The binary, the NVML and CUDA wrappers and the kernels' sources are those that ship.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

use std::path::Path;

use serde_json::Value;
use whetstone_suite::{sim_blade, whet_on};

/// Tests by name, at sizes for simulated GPUs.
fn suite(tests: &[&str]) -> String {
    let mut text = "name = \"sim\"\ndescription = \"Small sizes.\"\n".to_owned();
    for test in tests {
        let params = match *test {
            "gpu_memory" => "min_fraction_of_total = 0.0, patterns = [\"random\"], fade_s = 0",
            "gpu_gemm" => {
                "formats = [\"bf16\"], max_k = 64, iterations = 1, blocks_per_sm = 1, min_rounds = 1, fill_budget = false"
            }
            "gpu_power" => "iterations = 1, min_fraction_of_limit = 0.0",
            "gpu_bandwidth" => "mib = 8, repeats = 1",
            "gpu_collectives" => "mib = 8, repeats = 1, operations = [\"all_reduce\"]",
            other => panic!("no parameters for {other}"),
        };
        let name = test.replace('_', "-");
        text += &format!(
            "[[test]]\nname = \"{name}\"\nkind = \"{test}\"\nbudget_s = 6\nparams = {{ {params} }}\n"
        );
    }
    text
}

/// Burns in a blade of two H100s of eight SMs each; exit code and report.
fn burn_in(dir: &Path, tests: &[&str], faults: &str) -> (i32, Value) {
    burn_in_sized(dir, "gpus = 2\nsms = 8", tests, faults)
}

fn burn_in_sized(dir: &Path, size: &str, tests: &[&str], faults: &str) -> (i32, Value) {
    burn_in_with(dir, size, tests, faults, &[])
}

fn burn_in_with(dir: &Path, size: &str, tests: &[&str], faults: &str, more: &[&str]) -> (i32, Value) {
    let scenario = format!("name = \"b-7\"\nsku = \"h100\"\nhbm_backed_mib = 32\n{size}\n{faults}\n");
    let blade = sim_blade(dir, &scenario);
    let file = dir.join("suite.toml");
    std::fs::write(&file, suite(tests)).unwrap();
    let output = whet_on(&blade)
        .args(["burnin", "--backend", "cuda", "--blade", "b-7", "--json", "--timeout", "3", "--suite"])
        .arg(&file)
        .arg("--out")
        .arg(dir.join("run"))
        .args(more)
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), report)
}

/// Outcome, code and reason of the GPU with this label.
fn gpu<'r>(report: &'r Value, label: &str) -> (&'r str, &'r str, &'r str) {
    let devices = report["devices"].as_array().unwrap();
    let at =
        devices.iter().position(|d| d["label"] == label).unwrap_or_else(|| panic!("{label} in {devices:?}"));
    let verdict = &report["device_verdicts"][at];
    let text = |key: &str| verdict[key].as_str().unwrap();
    (text("outcome"), text("code"), text("why"))
}

/// One planted fault on gpu1: found there with one of `codes` and a reason that holds `says`; gpu0 passes.
fn found(tests: &[&str], fault: &str, codes: &[&str], says: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (exit, report) = burn_in(dir.path(), tests, &format!("[[fault]]\ngpu = 1\n{fault}"));
    let (outcome, code, why) = gpu(&report, "gpu1");
    assert_eq!((exit, outcome), (10, "fail"), "{fault}: {code}: {why}: {}", report["verdict"]);
    assert!(codes.contains(&code), "{fault}: found as {code}: {why}");
    assert!(why.contains(says), "{fault}: {why:?} does not say {says:?}");
    assert_eq!(gpu(&report, "gpu0").0, "pass", "{fault}: {:?}", gpu(&report, "gpu0"));
    let blade = report["verdict"]["why"].as_str().unwrap();
    assert!(blade.starts_with("gpu1: "), "the blade's verdict names the device: {blade}");
    assert!(!report["verdict"]["evidence"].as_array().unwrap().is_empty());
}

#[test]
fn a_healthy_blade_passes_every_test_and_says_that_it_is_simulated() {
    let dir = tempfile::tempdir().unwrap();
    let tests = ["gpu_memory", "gpu_gemm", "gpu_power", "gpu_bandwidth", "gpu_collectives"];
    // All eight: bus bandwidth has its floor for a whole blade.
    let (exit, report) = burn_in_sized(dir.path(), "gpus = 8\nsms = 4", &tests, "");
    assert_eq!(exit, 0, "{} {}", report["verdict"], report["findings"]);
    assert_eq!(report["simulated"], true);
    assert_eq!(report["blade"]["sku"], "hgx-h100");
    for test in report["tests"].as_array().unwrap() {
        assert_eq!(test["outcome"], "pass", "{test}");
    }
    let page = std::fs::read_to_string(dir.path().join("run/report.html")).unwrap();
    assert!(page.to_uppercase().contains("SIMULATED"), "the page says so too");
    let samples = std::fs::read_to_string(dir.path().join("run/samples.jsonl")).unwrap();
    for metric in ["gemm.bf16.throughput", "hbm.bandwidth", "pcie.h2d.bandwidth", "nccl.all_reduce.busbw"] {
        assert!(samples.contains(metric), "{metric} is there for the judge");
    }
}

#[test]
fn wrong_bits_are_found_with_their_place() {
    let flip = "kind = \"sm_flip\"\nsm = 5\nbit = 9\nformat = \"bf16\"";
    found(&["gpu_gemm"], flip, &["sdc"], "SM 5");
    found(&["gpu_memory"], "kind = \"hbm_flip\"\nword = 1000000\nbit = 17", &["hbm-bit-error"], "");
    let copy = "kind = \"copy_flip\"\ndirection = \"device_to_host\"\nbit = 3\nevery_n = 3";
    found(&["gpu_bandwidth"], copy, &["copy-corruption"], "");
}

#[test]
fn a_rank_that_contributes_wrong_bits_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let fault = "[[fault]]\ngpu = 1\nkind = \"nccl_flip\"\nbit = 4";
    let (exit, report) = burn_in(dir.path(), &["gpu_collectives"], fault);
    assert_eq!(exit, 10, "{}", report["verdict"]);
}

#[test]
fn what_the_driver_counts_and_the_kernel_log_says_is_found() {
    found(&["gpu_gemm"], "kind = \"remap_failed\"", &["remap-failure", "row-remap-failure"], "");
    found(&["gpu_gemm"], "kind = \"pcie_width\"\nnow = 8", &["pcie-width"], "x8");
    found(&["gpu_gemm"], "kind = \"nvlink_down\"\nlink = 3", &["nvlink-down"], "3");
    found(&["gpu_memory", "gpu_gemm"], "kind = \"xid\"\ncode = 95\nat_s = 0.5", &["xid-95"], "95");
}

#[test]
fn a_lost_gpu_fails_and_the_others_are_tested_to_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let fault = "[[fault]]\ngpu = 1\nkind = \"gpu_lost\"\nat_s = 1.0";
    let (exit, report) = burn_in(dir.path(), &["gpu_memory", "gpu_gemm"], fault);
    assert_eq!((exit, gpu(&report, "gpu1").0), (10, "fail"), "{}", report["verdict"]);
    assert_eq!(gpu(&report, "gpu0").0, "pass", "{:?}", gpu(&report, "gpu0"));
    assert_eq!(report["complete"], true);
}

#[test]
fn a_gpu_that_hangs_is_inconclusive_and_left_out_of_what_follows() {
    let dir = tempfile::tempdir().unwrap();
    let fault = "[[fault]]\ngpu = 1\nkind = \"hang\"\ncall = \"cuda\"";
    let (exit, report) = burn_in(dir.path(), &["gpu_gemm", "gpu_memory"], fault);
    assert_eq!(exit, 20, "{}", report["verdict"]);
    assert_eq!((gpu(&report, "gpu0").0, gpu(&report, "gpu1").0), ("pass", "inconclusive"));
    let second = report["tests"][1]["devices"].as_array().unwrap();
    assert!(second.iter().any(|d| d["detail"].as_str().unwrap().starts_with("left out")), "{second:?}");
}

#[test]
fn a_driver_that_does_not_answer_is_inconclusive_never_failed() {
    let dir = tempfile::tempdir().unwrap();
    let (exit, report) = burn_in(dir.path(), &["gpu_gemm"], "[[fault]]\nkind = \"nvml_version_mismatch\"");
    assert_eq!((exit, &report["verdict"]["outcome"]), (20, &"inconclusive".into()), "{}", report["verdict"]);
    let dir = tempfile::tempdir().unwrap();
    let (exit, report) = burn_in(dir.path(), &["gpu_gemm"], "[[fault]]\nkind = \"hang\"\ncall = \"nvml\"");
    assert_eq!((exit, &report["verdict"]["outcome"]), (20, &"inconclusive".into()), "{}", report["verdict"]);
}

#[test]
fn without_a_profile_only_what_needs_none_is_judged() {
    let dir = tempfile::tempdir().unwrap();
    let (slow, tests) = ("[[fault]]\ngpu = 1\nkind = \"slow_hbm\"\npercent = 60.0", ["gpu_memory"]);
    let (exit, report) = burn_in_with(dir.path(), "gpus = 2\nsms = 8", &tests, slow, &["--sku", "none"]);
    assert_eq!((exit, &report["blade"]["sku"]), (0, &Value::Null), "{}", report["verdict"]);
    let dir = tempfile::tempdir().unwrap();
    let (exit, report) = burn_in_with(dir.path(), "gpus = 2\nsms = 8", &tests, slow, &[]);
    assert_eq!(
        (exit, &report["verdict"]["code"]),
        (10, &"threshold-hbm-bandwidth".into()),
        "{}",
        report["verdict"]
    );
}
