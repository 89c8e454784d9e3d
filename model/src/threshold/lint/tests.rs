use super::*;
use crate::threshold::import::read;

fn built_in() -> Table {
    Table::built_in().unwrap()
}

/// Issues of a table in the import format: `sku metric value unit kind source`, one row a line, blanks as tabs.
fn of(rows: &[&str]) -> Vec<Issue> {
    let mut text = String::from("sku\tmetric\tvalue\tunit\tkind\tsource\n");
    for row in rows {
        text.push_str(&row.split_whitespace().collect::<Vec<_>>().join("\t"));
        text.push('\n');
    }
    lint(&read("x.tsv", &text).unwrap().limits, &built_in())
}

fn codes(issues: &[Issue]) -> Vec<(usize, &'static str)> {
    issues.iter().map(|i| (i.line, i.code.as_str())).collect()
}

#[test]
fn the_built_in_thresholds_are_clean() {
    let table = built_in();
    let issues = lint_table(&table, &table);
    assert!(issues.is_empty(), "{:#?}", issues);
}

#[test]
fn a_unit_slip_is_seen_beside_the_sisters() {
    let good = ["H100 hbm.bandwidth 1905000 MB/s fail d", "H200 hbm.bandwidth 2333000 MB/s fail d"];
    assert_eq!(codes(&of(&good)), []);
    let issues = of(&["H100 hbm.bandwidth 1905000 MB/s fail d", "H200 hbm.bandwidth 2333 MB/s fail d"]);
    assert_eq!(codes(&issues), [(3, "unit-slip"), (3, "never-fails")]);
    assert!(issues[0].message.contains("of H200: 2333 MB/s is a factor"), "{}", issues[0].message);
    assert!(issues[0].neighbours.iter().any(|n| n.sku == "H100" && n.value == 1_905_000.0));
    // Alone in its file it is compared with our own numbers.
    assert!(codes(&of(&["H200 hbm.bandwidth 2333 MB/s fail d"])).contains(&(2, "unit-slip")));
}

#[test]
fn small_boards_may_ask_for_little_if_they_are_small() {
    let rows = |small: &str| {
        of(&[
            "A100 power.limit 400 W typical d",
            "A30 power.limit 165 W typical d",
            "A40 power.limit 300 W typical d",
            "A2 power.limit 60 W typical d",
            "A100 sm.rate 13000 GFLOP/s fail d",
            "A30 sm.rate 7000 GFLOP/s fail d",
            "A40 sm.rate 14000 GFLOP/s fail d",
            small,
        ])
    };
    assert_eq!(codes(&rows("A2 sm.rate 1800 GFLOP/s fail d")), []);
    assert_eq!(codes(&rows("A2 sm.rate 180 GFLOP/s fail d")), [(9, "unit-slip")]);
}

#[test]
fn a_unit_of_another_dimension_is_a_slip() {
    let issues = of(&[
        "H100 p2p.bandwidth 335 GB/s fail d",
        "H200 p2p.bandwidth 335 GB/s fail d",
        "A100 p2p.bandwidth 235 W fail d",
    ]);
    assert_eq!(codes(&issues), [(4, "unit-slip")]);
}

#[test]
fn a_floor_above_the_hardware_and_one_that_nothing_fails() {
    assert_eq!(codes(&of(&["H100 p2p.bandwidth 460 GB/s fail d"])), [(2, "above-hardware")]);
    assert_eq!(codes(&of(&["H100 p2p.bandwidth 450 GB/s fail d"])), []);
    // The port's own rate in the same file counts.
    let port = ["x ib.write.bandwidth 200 Gb/s hardware_limit d", "x ib.write.bandwidth 48 GB/s fail d"];
    assert_eq!(codes(&of(&port)), [(3, "above-hardware")]);
    // Bits taken for bytes.
    assert_eq!(codes(&of(&["x ib.write.bandwidth 390 GB/s fail d"])), [(2, "above-hardware")]);
    assert_eq!(codes(&of(&["x ib.write.bandwidth 390 Gb/s fail d"])), []);
    assert_eq!(codes(&of(&["x some.rate 0 GB/s fail d"])), [(2, "never-fails")]);
    let typical = ["x some.rate 100 GB/s typical d", "x some.rate 4 GB/s fail d"];
    assert_eq!(codes(&of(&typical)), [(3, "never-fails")]);
}

#[test]
fn a_degraded_link_that_passes() {
    assert_eq!(codes(&of(&["H100 pcie.generation 3 generation fail d"])), [(2, "below-spec")]);
    assert_eq!(codes(&of(&["H100 pcie.generation 5 generation fail d"])), []);
    assert_eq!(codes(&of(&["L40S pcie.width 8 lanes fail d"])), [(2, "below-spec")]);
}

#[test]
fn a_warning_that_can_never_come_first() {
    // Fatal at 120 an hour, a warning at 10 a second: 36,000 an hour.
    let inverted = ["all symbol_error 120 1/h fail n", "all symbol_error 10 1/s warn n"];
    let issues = of(&inverted);
    assert_eq!(codes(&issues), [(3, "warning-after-failure")]);
    assert!(issues[0].message.contains("120 1/h = 0.03333 1/s"), "{}", issues[0].message);
    assert_eq!(codes(&of(&["all symbol_error 120 1/h fail n", "all symbol_error 0.5 1/min warn n"])), []);
    let floor = |warn: &str| codes(&of(&["x a.rate 48 GB/s fail n", warn]));
    assert_eq!(floor("x a.rate 50 GB/s warn n"), []);
    assert_eq!(floor("x a.rate 48 GB/s warn n"), [(3, "warning-after-failure")]);
    assert_eq!(floor("x a.rate 40000 MB/s warn n"), [(3, "warning-after-failure")]);
}

#[test]
fn two_sources_that_contradict_each_other() {
    let two = |second: &str| codes(&of(&["v5 a.rate 431 GB/s fail conf", second]));
    assert_eq!(two("v5 a.rate 480 GB/s fail readme"), [(3, "contradiction")]);
    assert_eq!(two("v5 a.rate 432 GB/s fail readme"), []);
    assert_eq!(two("v6 a.rate 480 GB/s fail readme"), []);
    assert_eq!(two("v5 a.rate 480 Gb/s fail readme"), [(3, "contradiction")]);
}

#[test]
fn a_number_that_contradicts_its_own_comment() {
    let with = |value: &str, note: &str| {
        let text = format!(
            "sku\tmetric\tvalue\tunit\tkind\tsource\tnote\nx\ta.rate\t{value}\tMB/s\tfail\td\t{note}\n"
        );
        codes(&lint(&read("x.tsv", &text).unwrap().limits, &built_in()))
    };
    let note = "shows ~1830000. Multiply by .75 to get 1372500";
    assert_eq!(with("137500", note), [(2, "contradiction")]);
    assert_eq!(with("1372500", note), []);
    // The comment's result is the slip here, its measured number agrees.
    assert_eq!(with("3318750", "shows ~4425000. Multiply by .75 to get ~4425000"), []);
    assert_eq!(with("5", "no numbers to get here"), []);
}

#[test]
fn one_chip_with_limits_far_apart() {
    let b200 = |low: &str| {
        codes(&of(&["B200-a sm.rate 36949 GFLOP/s fail d", low, "B200-c sm.rate 33843 GFLOP/s fail d"]))
    };
    assert_eq!(b200("B200-b sm.rate 12375 GFLOP/s fail d"), [(3, "spread")]);
    assert_eq!(b200("B200-b sm.rate 30000 GFLOP/s fail d"), []);
    // A card and a module of one chip are different products.
    assert_eq!(b200("B200-PCIe sm.rate 12375 GFLOP/s fail d"), []);
}

#[test]
fn one_limit_for_errors_of_different_gravity() {
    let ecc = |uncorrected: &str| {
        codes(&of(&[
            "x ecc.correctable 20000000 count fail d",
            &format!("x ecc.uncorrectable {uncorrected} count fail d"),
        ]))
    };
    assert_eq!(ecc("20000000"), [(3, "same-limit")]);
    assert_eq!(ecc("10000"), [(3, "never-fails")]);
    assert_eq!(ecc("0"), []);
}

#[test]
fn a_number_without_a_source() {
    let text =
        "sku\tmetric\tvalue\tunit\tkind\tsource\nx\ta.rate\t5\tGB/s\tfail\td\nx\tb.rate\t5\tGB/s\tfail\t\n";
    assert_eq!(codes(&lint(&read("x.tsv", text).unwrap().limits, &built_in())), [(3, "missing-provenance")]);
    // A table that has no such column is one issue.
    let text = "sku\tmetric\tvalue\tunit\tkind\nx\ta.rate\t5\tGB/s\tfail\nx\tb.rate\t5\tGB/s\tfail\n";
    assert_eq!(codes(&lint(&read("x.tsv", text).unwrap().limits, &built_in())), [(2, "missing-provenance")]);
    // In our own format, a number of a threshold that no source speaks for.
    let text = "scope = \"every-gpu\"\n[sources.s]\nname = \"s\"\ndate = \"2025\"\nkind = \"spec\"\n[[threshold]]\n\
                metric = \"pcie.replay.rate\"\nunit = \"1/h\"\nbetter = \"lower\"\nwarn = 1\nfail = 2\n\
                from = { fail = \"s\" }\n";
    assert_eq!(codes(&lint(&read("x.toml", text).unwrap().limits, &built_in())), [(7, "missing-provenance")]);
}

#[test]
fn a_slip_planted_in_our_own_files_is_found() {
    let table = built_in();
    for (file, from, to, code) in [
        ("hgx-h200.toml", "fail = 2333\n", "fail = 2.333\n", Code::UnitSlip),
        ("hgx-h100.toml", "fail = 335\n", "fail = 3350\n", Code::AboveHardware),
        ("hgx-h100.toml", "warn = 48\n", "warn = 30\n", Code::WarningAfterFailure),
        ("gpu.toml", "warn = 80\n", "warn = 2000\n", Code::WarningAfterFailure),
        ("gpu.toml", "from = \"gcm\"\n", "", Code::MissingProvenance),
        ("gpu.toml", "\"retired_pages.count\"", "\"retired_pages.cuont\"", Code::UnknownMetric),
    ] {
        let (_, text) = super::super::BUILT_IN.iter().find(|(name, _)| *name == file).unwrap();
        let bad = text.replacen(from, to, 1);
        assert_ne!(bad, *text, "{file}: {from:?} is not there any more");
        let issues = lint_table(&Table::parse(file, &bad).unwrap(), &table);
        assert!(
            issues.iter().any(|i| i.code == code && i.line > 1),
            "{file}: {from:?} -> {to:?}: {issues:#?}"
        );
    }
}

#[test]
fn import_errors_name_the_line() {
    let head = "sku\tmetric\tvalue\tunit\tkind\n";
    for (text, line, says) in [
        ("a\tb\tc\n", 1, "unknown columns"),
        ("# c\n\na\tb\n", 3, "unknown columns"),
        (&format!("{head}x\tm\tten\tW\tfail\n"), 2, "\"ten\" is not a number"),
        (&format!("{head}x\tm\tinf\tW\tfail\n"), 2, "is not a number"),
        (&format!("{head}x\tm\t1,5\tW\tfail\n"), 2, "is not a number"),
        (&format!("{head}\nx\tm\t1\tW\tperhaps\n"), 3, "kind \"perhaps\""),
        (&format!("{head}x\tm\t1\t\tfail\n"), 2, "no unit"),
        (&format!("{head}x\tm\t1\tW\n"), 2, "4 columns where the header has 5"),
        (&format!("{head}x\tm\t1\tW\tfail\n{}\n", "y".repeat(20_000)), 3, "a line of 20000 bytes"),
        ("[[limit]]\nsku = \"x\"\nmetric = \"m\"\nvalue = \"1\"\n", 4, "invalid type"),
        ("[[limit]]\nmetric = \"m\"\nvalue = 1\nunit = \"W\"\nkind = \"perhaps\"\n", 1, "kind"),
        ("", 1, "empty"),
        ("hello world\n", 1, ""),
        ("x = 1\n", 1, "unknown field"),
    ] {
        let error = read("x.tsv", text).unwrap_err();
        assert_eq!(error.line, line, "{error}");
        assert!(error.what.contains(says), "{error}");
    }
    let many = format!("{head}{}", "x\tm\t1\tW\tfail\n".repeat(10_001));
    assert_eq!(read("x.tsv", &many).unwrap_err().line, 10_002);
    let thousands = format!("{head}x\tm\t1,905,000\tMB/s\tfloor\n");
    assert_eq!(read("x.tsv", &thousands).unwrap().limits[0].value, 1_905_000.0);
    let toml = "[[limit]]\nsku = \"x\"\nmetric = \"m\"\nvalue = 1\nunit = \"W\"\nkind = \"fail\"\n";
    assert_eq!(read("x.toml", toml).unwrap().limits.len(), 1);
}
