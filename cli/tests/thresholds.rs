//! `whet thresholds` as a user calls it: exit codes, and one clear line with file and line for bad input.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

use std::path::PathBuf;
use std::process::{Command, Output};

fn whet(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_whet")).arg("thresholds").args(args).output().expect("whet runs")
}

fn file(name: &str, content: &[u8]) -> String {
    let path =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("thresholds-{}-{name}", std::process::id()));
    std::fs::write(&path, content).expect("a temporary file");
    path.to_str().expect("a path in UTF-8").to_owned()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

#[test]
fn the_built_in_thresholds_are_shown_and_clean() {
    let output = whet(&["lint", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(json(&output)["issues"], serde_json::json!([]));

    let output = whet(&["show", "--sku", "hgx-h100", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let document = json(&output);
    assert_eq!(document["profiles"][0]["sku"], "hgx-h100");
    assert_eq!(document["profiles"].as_array().map(Vec::len), Some(1));
    let hbm = document["profiles"][0]["thresholds"]
        .as_array()
        .and_then(|list| list.iter().find(|t| t["metric"] == "hbm.bandwidth"))
        .expect("hbm.bandwidth");
    assert_eq!((&hbm["fail"], &hbm["unit"]), (&serde_json::json!(1905.0), &serde_json::json!("GB/s")));
    assert!(hbm["sources"].as_array().is_some_and(|s| s.iter().any(|s| s["kind"] == "spec")));

    let text = String::from_utf8(whet(&["show", "--sku", "gb200-nvl72"]).stdout).expect("text");
    assert!(text.contains("hbm.bandwidth") && text.contains("unknown: measured, not judged"), "{text}");
}

#[test]
fn a_slip_is_a_fault_found() {
    let name = file(
        "slip.tsv",
        b"sku\tmetric\tvalue\tunit\tkind\tsource\nH200\thbm.bandwidth\t2333\tMB/s\tfail\tx\n",
    );
    let output = whet(&["lint", &name, "--json"]);
    assert_eq!(output.status.code(), Some(10));
    let issues = json(&output)["issues"].clone();
    assert_eq!(issues[0]["line"], 2);
    assert_eq!(issues[0]["code"], "unit-slip");
    assert_eq!(issues[0]["file"], name.as_str());
    let text = String::from_utf8(whet(&["lint", &name]).stdout).expect("text");
    assert!(text.contains(&format!("{name}:2: unit-slip: ")), "{text}");
}

#[test]
fn two_files_are_held_against_each_other() {
    let conf = file(
        "conf.tsv",
        b"vm_sku\tcheck\tparameter\tvalue\tunit\tenabled\tsource_line\n\
        v5\tcheck_gpu_bw\thost_device_bandwidth_min\t48\tGB/s\tyes\t3\n",
    );
    let readme = file(
        "readme.tsv",
        b"vm_sku\tcheck\tcomponent\texpected_as_printed\n\
        v5\tcheck_gpu_bandwidth\tGPU DtH/HtD bandwidth\t55 GB/s\nv5\tcheck_gpu_xid\tXID\tnot present\n",
    );
    assert_eq!(whet(&["lint", &conf]).status.code(), Some(0));
    assert_eq!(whet(&["lint", &readme]).status.code(), Some(0));
    let output = whet(&["lint", &conf, &readme, "--json"]);
    assert_eq!(output.status.code(), Some(10));
    assert_eq!(json(&output)["issues"][0]["code"], "contradiction");
}

#[test]
fn bad_input_is_said_with_its_line_and_nothing_is_judged() {
    let good = "sku\tmetric\tvalue\tunit\tkind\tsource\nH200\thbm.bandwidth\t2333\tGB/s\tfail\tx\n";
    for (name, content, says) in [
        ("garbage.bin", b"\x00\xff\xfe\n\x01".to_vec(), ":1: not text"),
        ("late.tsv", [good.as_bytes(), b"H\xff"].concat(), ":3: not text"),
        ("prose.txt", b"hello world, this is no table\n".to_vec(), ":1: "),
        ("empty.tsv", Vec::new(), ":1: empty"),
        ("columns.tsv", b"a\tb\n1\t2\n".to_vec(), ":1: unknown columns"),
        (
            "short.tsv",
            format!("{good}H100\thbm.bandwidth\n").into_bytes(),
            ":3: 2 columns where the header has 6",
        ),
        ("word.tsv", good.replace("2333", "fast").into_bytes(), ":2: value \"fast\" is not a number"),
        ("ours.toml", b"sku = \"x\"\nname = 5\n".to_vec(), ":2: "),
    ] {
        let path = file(name, &content);
        let output = whet(&["lint", &path, "--json"]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{name}: {error}");
        assert!(error.contains(&format!("{path}{says}")), "{name}: {error}");
        assert_eq!(error.trim().lines().count(), 1, "{name}: {error}");
        assert!(output.stdout.is_empty(), "{name}");
    }
    assert_eq!(whet(&["lint", "/nowhere/at/all.tsv"]).status.code(), Some(2));
    assert_eq!(whet(&["lint", env!("CARGO_TARGET_TMPDIR")]).status.code(), Some(2));
    let output = whet(&["show", "--sku", "hgx-h999"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("known: "), "the user is told what there is");
}
