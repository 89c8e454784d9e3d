use super::*;
use crate::evidence::Reading;

fn table() -> Table {
    Table::built_in().unwrap()
}

fn gpus(name: &str, memory_mib: u64, count: usize) -> Vec<GpuSeen<'_>> {
    vec![GpuSeen { name, memory_mib }; count]
}

#[test]
fn built_in_files_parse_and_every_metric_in_them_is_known() {
    let table = table();
    assert_eq!(table.profiles.len(), 8);
    let all = table.profiles.iter().flat_map(|p| &p.thresholds).chain(&table.generic);
    for t in all {
        assert!(metric::find(&t.metric).is_some(), "{}:{}: {}", t.file, t.line, t.metric);
        assert!(!t.sources.is_empty(), "{}:{}", t.file, t.line);
    }
}

#[test]
fn every_metric_has_a_threshold_or_says_unknown_on_an_hgx_blade() {
    // Counters of parts that such a blade need not have.
    let table = table();
    for m in metric::METRICS.iter().filter(|m| !m.name.starts_with("ib.")) {
        assert!(table.threshold(Some("hgx-h100"), m.name).is_some(), "{}", m.name);
    }
}

#[test]
fn a_blade_is_recognised_by_name_and_memory_also_when_gpus_are_missing_or_simulated() {
    let table = table();
    for (name, memory, count, sku) in [
        ("NVIDIA H100 80GB HBM3", 81_559, 8, Some("hgx-h100")),
        ("NVIDIA H100 80GB HBM3 (sim)", 81_559, 7, Some("hgx-h100")),
        ("NVIDIA H200 (sim)", 143_771, 8, Some("hgx-h200")),
        ("NVIDIA A100-SXM4-80GB", 81_920, 8, Some("hgx-a100")),
        ("NVIDIA A100-SXM4-40GB", 40_960, 8, Some("hgx-a100-40gb")),
        ("NVIDIA B200", 183_359, 8, Some("hgx-b200")),
        ("NVIDIA GB200", 189_471, 4, Some("gb200-nvl72")),
        ("NVIDIA GB300", 284_208, 4, Some("gb300-nvl72")),
        ("NVIDIA L40S", 46_068, 4, Some("l40s")),
        // Anchored: an H100 of another board is not an HGX one.
        ("NVIDIA H100 80GB HBM3e", 81_559, 8, None),
        ("NVIDIA GH200 480GB", 97_871, 1, None),
        ("Tesla T4", 15_360, 1, None),
    ] {
        let found = table.profile_for(&gpus(name, memory, count)).map(|p| p.sku.as_str());
        assert_eq!(found, sku, "{name}");
    }
    assert!(table.profile_for(&[]).is_none());
}

#[test]
fn one_odd_gpu_does_not_change_what_the_blade_is() {
    let mut blade = gpus("NVIDIA H100 80GB HBM3", 81_559, 7);
    blade.insert(0, GpuSeen { name: "NVIDIA H200", memory_mib: 143_771 });
    assert_eq!(table().profile_for(&blade).unwrap().sku, "hgx-h100");
}

#[test]
fn judges_in_the_thresholds_unit_and_on_the_right_side() {
    let table = table();
    let judge =
        |metric: &str, value: f64, unit| table.judge(Some("hgx-h100"), &Reading::new(metric, value, unit));
    assert_eq!(judge("hbm.bandwidth", 2.6, Unit::TBps).unwrap().judged, Judged::Pass);
    assert_eq!(judge("hbm.bandwidth", 1_904_000.0, Unit::MBps).unwrap().judged, Judged::Fail);
    assert_eq!(judge("pcie.h2d.bandwidth", 48.0, Unit::GBps).unwrap().judged, Judged::Pass);
    assert_eq!(judge("pcie.h2d.bandwidth", 47.9, Unit::GBps).unwrap().judged, Judged::Warn);
    assert_eq!(judge("temperature.margin", -2.0, Unit::CelsiusMargin).unwrap().judged, Judged::Warn);
    assert_eq!(judge("temperature.margin", -2.1, Unit::CelsiusMargin).unwrap().judged, Judged::Fail);
    // 1/s against a limit in 1/h: 2/s is above 3,600/h.
    assert_eq!(judge("ecc.correctable.rate", 2.0, Unit::PerSecond).unwrap().judged, Judged::Fail);
    assert_eq!(judge("ecc.uncorrectable.count", 1.0, Unit::Count).unwrap().judged, Judged::Fail);
    assert_eq!(judge("ecc.uncorrectable.count", 0.0, Unit::Count).unwrap().judged, Judged::Pass);
    let unknown = Judged::NotJudged(NotJudged::Unknown);
    assert_eq!(judge("gemm.bf16.throughput", 1.0, Unit::Tflops).unwrap().judged, unknown);
    let none = Judged::NotJudged(NotJudged::NoThreshold);
    assert_eq!(judge("gemm.bf17.throughput", 1.0, Unit::Tflops).unwrap().judged, none);
}

#[test]
fn a_wrong_dimension_or_no_number_is_an_error_and_never_a_pass() {
    let table = table();
    let wrong = table.judge(Some("hgx-h100"), &Reading::new("hbm.bandwidth", 9e9, Unit::Tflops)).unwrap_err();
    assert!(
        wrong.to_string().contains("hbm.bandwidth") && wrong.to_string().contains("hgx-h100.toml:"),
        "{wrong}"
    );
    for value in [f64::NAN, f64::INFINITY] {
        assert!(matches!(
            table.judge(None, &Reading::new("ecc.uncorrectable.count", value, Unit::Count)),
            Err(JudgeError::NotFinite { .. })
        ));
    }
}

#[test]
fn the_skus_own_threshold_comes_before_the_generic_one() {
    let table = table();
    let hot = Reading::new("temperature.gpu", 90.0, Unit::Celsius);
    assert_eq!(table.judge(Some("hgx-a100"), &hot).unwrap().judged, Judged::Fail);
    assert_eq!(table.judge(Some("hgx-h100"), &hot).unwrap().judged, Judged::NotJudged(NotJudged::Unknown));
}

#[test]
fn a_sentence_names_value_limit_and_source() {
    let table = table();
    let slow = table.judge(Some("hgx-h100"), &Reading::new("hbm.bandwidth", 1800.25, Unit::GBps)).unwrap();
    let text = slow.sentence();
    assert!(text.starts_with("1800 GB/s, below 1905 GB/s (DCGM"), "{text}");
    let hot = table.judge(Some("hgx-a100"), &Reading::new("temperature.gpu", 90.0, Unit::Celsius)).unwrap();
    assert!(hot.sentence().starts_with("90 C, above 89 C ("), "{}", hot.sentence());
}

#[test]
fn errors_in_files_name_file_and_line() {
    let good = "sku = \"x\"\nname = \"x\"\nfamily = \"x\"\ngpu_name = \"x\"\n[sources.s]\nname = \"s\"\ndate = \"2025\"\n\
                kind = \"spec\"\n[expected]\nfrom = \"s\"\ngpus = 8\n[[threshold]]\nmetric = \"hbm.bandwidth\"\n\
                unit = \"GB/s\"\nbetter = \"higher\"\nfail = 5\nfrom = \"s\"\n";
    Table::parse("x.toml", good).unwrap();
    for (from, to, line, says) in [
        ("GB/s", "GB/h", 14, "unknown unit"),
        ("GB/s", "W", 14, "measured in GB/s"),
        ("\"higher\"", "\"lower\"", 13, "other way round"),
        ("\"higher\"", "\"upper\"", 15, "unknown variant"),
        ("fail = 5", "typical = 5", 13, "neither warn nor fail"),
        ("fail = 5", "fail = nan", 13, "not a number"),
        ("fail = 5", "fail = 5\nunknown = true", 13, "unknown, and yet"),
        ("fail = 5", "fial = 5", 16, "unknown field"),
        ("gpus = 8", "gpu = 8", 9, "unknown field"),
        ("hbm.b", "HBM.b", 13, "dotted words"),
        ("\"2025\"", "\"last year\"", 5, "is not YYYY"),
        ("fail = 5\nfrom = \"s\"", "fail = 5\nfrom = \"t\"", 17, "no [sources.t]"),
        ("gpu_name = \"x\"", "gpu_name = \"(\"", 4, "gpu_name"),
        ("sku = \"x\"", "skew = \"x\"", 1, "unknown field"),
        ("name = \"x\"\nfam", "fam", 1, "has no name"),
    ] {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from}");
        let error = Table::parse("x.toml", &text).unwrap_err();
        assert_eq!(error.file, "x.toml");
        assert!(error.what.contains(says), "{to}: {error}");
        assert_eq!(error.line, line, "{to}: {error}");
    }
    let twice = format!("{good}{}", &good[good.find("[[threshold]]").unwrap()..]);
    assert!(Table::parse("x.toml", &twice).unwrap_err().what.contains("a second threshold"));
    for garbage in ["", "\u{0}\u{1}", "a\tb\tc\n", "[[threshold]]\n"] {
        let error = Table::parse("x.toml", garbage).unwrap_err();
        assert!(error.line >= 1 && !error.what.is_empty());
    }
}
