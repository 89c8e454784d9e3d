//! The linter on others' real numbers: it must find the slips that are known to be in them, by rules that know
//! none of them. The data is read in place (`WHETSTONE_SHARED_DATA`, default `../shared/data` beside the
//! workspace) and never copied.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

use std::path::PathBuf;

use whetstone_model::evidence::Reading;
use whetstone_model::threshold::import::{self, Import};
use whetstone_model::threshold::lint::{Code, Issue, lint};
use whetstone_model::threshold::{GpuSeen, Judged, Table};
use whetstone_model::unit::Unit;
use whetstone_scenario::sku::SimSku;

fn data(name: &str) -> Option<Import> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shared =
        std::env::var_os("WHETSTONE_SHARED_DATA").map_or_else(|| root.join("../shared/data"), PathBuf::from);
    let path = shared.join("thresholds").join(name);
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    };
    Some(import::read(name, &text).expect("a known table"))
}

fn issues(tables: &[&Import]) -> Vec<Issue> {
    let limits: Vec<_> = tables.iter().flat_map(|t| t.limits.iter().cloned()).collect();
    lint(&limits, &Table::built_in().expect("built-in thresholds"))
}

fn has(issues: &[Issue], code: Code, sku: &str, metric: &str, value: f64) -> bool {
    issues.iter().any(|i| i.code == code && i.sku == sku && i.metric == metric && i.value == value)
}

#[test]
fn dcgm_the_h200_floor_in_another_unit_and_its_like() {
    let Some(dcgm) = data("dcgm-skus.tsv") else { return };
    let found = issues(&[&dcgm]);
    // GB/s written among MB/s: no H200 could fail it. Its sister 233b is right and must not be accused.
    assert!(has(&found, Code::UnitSlip, "2335", "hbm.bandwidth", 2333.0));
    assert!(has(&found, Code::NeverFails, "2335", "hbm.bandwidth", 2333.0));
    assert!(!found.iter().any(|i| i.sku == "233b" && i.metric == "hbm.bandwidth"), "{found:#?}");
    // A factor of ten or so low.
    for (sku, value) in [("20b0", 137_500.0), ("26b5", 49_050.0), ("2337", 122_250.0), ("2336", 127_500.0)] {
        assert!(has(&found, Code::UnitSlip, sku, "hbm.bandwidth", value), "{sku}");
    }
    // B100: a factor of a hundred above every other Blackwell.
    assert!(has(&found, Code::UnitSlip, "29bc", "sm_stress.target_stress", 3_416_250.0));
    // Comments that compute another number.
    for (sku, value) in [("20b0", 137_500.0), ("20f3", 971_000.0), ("2339", 2_020_000.0)] {
        assert!(has(&found, Code::Contradiction, sku, "hbm.bandwidth", value), "{sku}");
    }
    // One id twice, with different limits.
    assert!(has(&found, Code::Contradiction, "25b6", "hbm.bandwidth", 123_225.0));
    // A Gen5 link that trained to Gen3 passes.
    for sku in ["2330", "2335", "2901"] {
        assert!(has(&found, Code::BelowSpec, sku, "pcie.generation", 3.0), "{sku}");
    }
    assert!(!found.iter().any(|i| i.code == Code::BelowSpec && i.sku == "2909"), "2909 asks for Gen5");
}

#[test]
fn dcgm_nothing_else_is_called_a_unit_slip() {
    let Some(dcgm) = data("dcgm-skus.tsv") else { return };
    let mut slips: Vec<String> =
        issues(&[&dcgm]).iter().filter(|i| i.code == Code::UnitSlip).map(|i| i.sku.clone()).collect();
    slips.dedup();
    // K40d asks 200 GFLOP/s where its four sisters ask 550 to 1,300: odd, and rightly shown.
    assert_eq!(slips, ["2336", "102e", "20b0", "26b5", "2337", "2335", "29bc"]);
}

#[test]
fn dcgm_the_b200_entries_are_far_apart() {
    let Some(dcgm) = data("dcgm-skus.tsv") else { return };
    let found = issues(&[&dcgm]);
    for (metric, low, high) in
        [("hbm.bandwidth", 2_558_124.0, 4_402_500.0), ("sm_stress.target_stress", 12_375.0, 36_949.0)]
    {
        let spread = found.iter().find(|i| {
            i.code == Code::Spread && i.metric == metric && i.value == low && i.message.contains("B200")
        });
        let spread = spread.unwrap_or_else(|| panic!("{metric}"));
        assert_eq!(spread.neighbours[0].value, high);
    }
}

#[test]
fn azure_readme_and_configuration_contradict_each_other() {
    let (Some(conf), Some(readme)) = (data("azure-nhc.tsv"), data("azure-nhc-readme.tsv")) else { return };
    let found = issues(&[&conf, &readme]);
    for (sku, metric, printed) in [
        ("nd96isr_h200_v5", "pcie.h2d.bandwidth", 55.0),
        ("nd96isr_h200_v5", "nccl.all_reduce.busbw", 480.0),
        ("nd96isr_h200_v5", "ib.write.bandwidth", 400.0),
        ("nd96isr_h100_v5", "pcie.h2d.bandwidth", 52.0),
        ("nd96asr_v4", "pcie.h2d.bandwidth", 23.0),
    ] {
        assert!(has(&found, Code::Contradiction, sku, metric, printed), "{sku} {metric}");
    }
    // GB/s printed where the check compares Gb/s: eight times what the port can do.
    assert!(has(&found, Code::AboveHardware, "nd96isr_h100_v5", "ib.write.bandwidth", 380.0));
    // Where they agree nothing is said.
    assert!(!found.iter().any(|i| i.sku == "nd96isr_h100_v5" && i.metric == "nccl.all_reduce.busbw"));
    assert!(!found.iter().any(|i| i.metric == "dram.triad.bandwidth"));
}

#[test]
fn azure_one_ecc_limit_for_corrected_and_uncorrected_errors() {
    let Some(conf) = data("azure-nhc.tsv") else { return };
    let found = issues(&[&conf]);
    assert!(has(&found, Code::SameLimit, "nd96isr_h100_v5", "ecc.dram.uncorrectable.count", 20_000_000.0));
    // A quarter of what its half-sized sister asks.
    assert!(has(&found, Code::UnitSlip, "nc96ads_a100_v4", "nccl.all_reduce.busbw", 25.0));
}

#[test]
fn nvsentinel_a_warning_that_can_never_precede_the_failure() {
    // From its link counter documentation: fatal above 120 an hour, non-fatal above 10 a second.
    let table = "sku\tmetric\tvalue\tunit\tkind\tsource\n\
                 any\tsymbol_error\t120\t1/h\tfatal\tNVSentinel\n\
                 any\tsymbol_error\t10\t1/s\tnon-fatal\tNVSentinel\n\
                 any\tlink_error_recovery\t5\t1/min\tnon-fatal\tNVSentinel\n";
    let found = issues(&[&import::read("nvsentinel.tsv", table).expect("the import format")]);
    let codes: Vec<_> = found.iter().map(|i| (i.line, i.code)).collect();
    assert_eq!(codes, [(3, Code::WarningAfterFailure)]);
}

/// What the simulated silicon says of itself must fit its SKU's profile, or healthy simulated blades would be
/// accused, and what is below its limits must be seen.
#[test]
fn simulated_skus_are_recognised_and_within_their_limits() {
    let table = Table::built_in().expect("built-in thresholds");
    for name in SimSku::names() {
        let sim = SimSku::built_in(&name).expect("a built-in SKU");
        let gpus = vec![GpuSeen { name: &sim.name, memory_mib: sim.hbm_mib }; sim.gpus_per_blade];
        let profile = table.profile_for(&gpus).unwrap_or_else(|| panic!("{}: no profile fits", sim.name));
        let expected = &profile.expected;
        assert!(expected.memory_mib.is_some_and(|[low, high]| (low..=high).contains(&sim.hbm_mib)), "{name}");
        assert!(expected.gpus.is_none_or(|n| n as usize == sim.gpus_per_blade), "{name}");
        assert!(expected.sm_count.is_none_or(|n| n == sim.sms), "{name}");
        assert_eq!(expected.nvlinks_per_gpu, Some(sim.nvlinks), "{name}");
        assert!(expected.nvlink_mbps.is_none_or(|n| n <= u64::from(sim.nvlink_reported_mbps)), "{name}");
        assert!(expected.pcie_generation.is_none_or(|n| n == sim.pcie_gen), "{name}");
        let (major, minor) = sim.compute_capability;
        assert_eq!(expected.compute_capability, Some(format!("{major}.{minor}")), "{name}");

        let judged = |metric: &str, value: f64, unit: Unit| {
            let reading = Reading::new(metric, value, unit);
            table.judge(Some(&profile.sku), &reading).unwrap_or_else(|e| panic!("{name}: {e}")).judged
        };
        for (metric, value, unit) in [
            ("hbm.bandwidth", sim.hbm_gbps, Unit::GBps),
            ("pcie.h2d.bandwidth", sim.pcie_gbps, Unit::GBps),
            ("power.limit", sim.power_limit_w, Unit::Watt),
            ("temperature.gpu", sim.load_c, Unit::Celsius),
        ] {
            let good = judged(metric, value, unit);
            assert!(
                matches!(good, Judged::Pass | Judged::NotJudged(_)),
                "{name}: {metric} {value}: {good:?}"
            );
        }
        assert_eq!(judged("hbm.bandwidth", sim.hbm_gbps / 4.0, Unit::GBps), Judged::Fail, "{name}");
    }
}
