//! The demonstration on a small tranche: the shipped binary on simulated blades, every planted fault found, nobody accused
//! falsely.

use std::process::Command;

use serde_json::Value;

#[test]
fn a_small_tranche_is_told_apart_without_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("runs");
    let output = Command::new(whetstone_suite::whet_sim())
        .args(["demo", "--seed", "4", "--blades", "4", "--own-suite", "none", "--json", "--down"])
        .arg("--whet")
        .arg(whetstone_suite::whet())
        .arg("--libs")
        .arg(whetstone_suite::sim_libraries())
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let demo: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
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
    assert_eq!(output.status.code(), Some(0), "{said}");

    let index = std::fs::read_to_string(out.join("index.html")).unwrap();
    for blade in ["b-001", "b-004"] {
        assert!(index.contains(&format!("href=\"{blade}/report.html\"")), "{blade} is not linked");
        let report: Value =
            serde_json::from_slice(&std::fs::read(out.join(blade).join("report.json")).unwrap()).unwrap();
        assert_eq!(report["simulated"], true, "{blade} passes as hardware");
    }
}
