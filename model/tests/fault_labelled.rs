//! Accuracy over labelled kernel log lines of other projects, read in place and never copied here
//! (`WHETSTONE_SHARED_DATA`, default `../shared/data` beside the workspace).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests; the lint exempts only the tests themselves

use std::path::PathBuf;

use serde_json::Value;
use whetstone_model::fault::{Classifier, Fault, Layout, Rules, classify};

fn shared() -> Option<PathBuf> {
    let root = std::env::var_os("WHETSTONE_SHARED_DATA")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"));
    root.join("kmsg/labelled.jsonl").is_file().then_some(root)
}

/// Every line with its label.
fn labelled() -> Option<Vec<Value>> {
    let Some(root) = shared() else {
        eprintln!("skipped: not there: kmsg/labelled.jsonl of the shared data");
        return None;
    };
    let text = std::fs::read_to_string(root.join("kmsg/labelled.jsonl")).unwrap();
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// Kinds of label that are no fault: a GPU's UUID, and the word of a tool (not of the kernel) that it did a reset.
const NO_FAULT: [&str; 3] = ["none", "gpu_map", "gpu_reset"];

/// What in `fault` differs from the label.
fn differences(fault: &Fault, expect: &Value) -> Vec<String> {
    let got = serde_json::to_value(fault).unwrap();
    let mut wrong = Vec::new();
    let mut same = |what: &str, got: &Value, wanted: &Value| {
        if got != wanted {
            wrong.push(format!("{what}: {got} instead of {wanted}"));
        }
    };
    for (label, field) in [
        ("kind", "kind"),
        ("code", "code"),
        ("pci_bdf", "device"),
        ("pid", "pid"),
        ("process", "process"),
        ("implied", "implied"),
        ("in_catalog", "in_catalog"),
        ("action", "catalog_action"),
        ("investigate", "investigate"),
        ("gpc", "gpc"),
        ("tpc", "tpc"),
        ("sm", "sm"),
        ("link", "link"),
        ("registers", "registers"),
        ("recovery_from", "recovery_from"),
        ("recovery_to", "recovery_to"),
        ("nvswitch", "nvswitch"),
        ("fatal", "fatal"),
        ("module", "module"),
        ("watts", "watts"),
        ("iface", "iface"),
        ("sxid", "sxid"),
        ("port", "port"),
    ] {
        if let Some(wanted) = expect.get(label) {
            same(field, got.get(field).unwrap_or(&Value::Null), wanted);
        }
    }
    if let Some(words) = expect.get("nvlink5") {
        let decoded = got.get("nvlink5").unwrap_or(&Value::Null);
        same("subcode", &got["subcode"], &words["subcode"]);
        same("link", &got["link"], &words["link"]);
        same("unit", &decoded["unit"], &words["unit"]);
        same("severity", &decoded["severity"], &words["severity_text"]);
        same("intrinfo", &decoded["intrinfo"], &words["intrinfo"]);
        same("error status", &decoded["error_status"], &words["error_status"]);
        same(
            "rule below R575",
            &decoded["rule_below_r575"],
            words.pointer("/below_r575/rule").unwrap_or(&Value::Null),
        );
        same(
            "rule from R575 on",
            &decoded["rule_r575_up"],
            words.pointer("/r575_up/rule").unwrap_or(&Value::Null),
        );
    }
    wrong
}

#[test]
fn no_labelled_fault_is_missed_and_no_ordinary_line_accused() {
    let Some(lines) = labelled() else { return };
    let (mut faults, mut ordinary, mut disputed, mut disputed_same) = (0, 0, 0, 0);
    let mut wrong = Vec::new();
    for label in &lines {
        let (line, expect) = (label["line"].as_str().unwrap(), &label["expect"]);
        let found = classify(line, None);
        let no_fault = NO_FAULT.contains(&expect["kind"].as_str().unwrap());
        let differ = match (&found, no_fault) {
            (None, true) => Vec::new(),
            (Some(fault), true) => vec![format!("accused of {} {}", fault.kind, fault.code)],
            (None, false) => vec!["missed".to_owned()],
            (Some(fault), false) => differences(fault, expect),
        };
        if label.get("disputed").is_some_and(|d| !d.is_null() && d != &Value::Bool(false)) {
            disputed += 1;
            disputed_same += usize::from(differ.is_empty());
            continue;
        }
        if no_fault {
            ordinary += 1
        } else {
            faults += 1
        }
        if !differ.is_empty() {
            wrong.push(format!("{} {line:?}: {}", label["id"], differ.join("; ")));
        }
    }
    eprintln!(
        "{faults} faults, {ordinary} ordinary lines, {} wrong; {disputed} disputed lines left out ({disputed_same} as labelled)",
        wrong.len()
    );
    assert!(faults > 200 && ordinary > 150, "the labelled lines are not what this test was written for");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn nvlink5_lines_follow_the_driver_version() {
    let Some(lines) = labelled() else { return };
    let mut seen = 0;
    for label in &lines {
        let Some(words) = label["expect"].get("nvlink5") else { continue };
        for (version, column, layout) in
            [("570.86.15", "below_r575", Layout::BelowR575), ("575.57.08", "r575_up", Layout::R575Up)]
        {
            let fault = classify(label["line"].as_str().unwrap(), Some(version.parse().unwrap())).unwrap();
            assert_eq!(fault.details.layout, Some(layout));
            let wanted = words[column].get("rule").and_then(Value::as_u64).map(|rule| rule as u32);
            assert_eq!(fault.details.nvlink5.as_ref().unwrap().rule, wanted, "{} at {version}", label["id"]);
            if let Some(action) = words[column].get("action").and_then(Value::as_str) {
                assert_eq!(fault.catalog_action.as_deref(), Some(action), "{} at {version}", label["id"]);
            }
            seen += 1;
        }
    }
    assert!(seen > 40, "only {seen} seen");
}

/// Read from top to bottom, as from a file: messages of several lines come apart and must be put together again.
#[test]
fn messages_of_several_lines_are_understood_line_by_line() {
    let Some(lines) = labelled() else { return };
    let rules = Rules::builtin().unwrap();
    let mut seen = 0;
    for label in lines.iter().filter(|label| label["line"].as_str().unwrap().contains('\n')) {
        let mut classifier = Classifier::new(rules, None);
        let found: Vec<Fault> =
            label["line"].as_str().unwrap().lines().filter_map(|line| classifier.line(line)).collect();
        // One of them has an XID line after the message: that line is the same fault told again.
        let told_again = label["expect"].get("implied").is_none() && !found[0].details.implied;
        assert!((1..=2).contains(&found.len()), "{}: {found:?}", label["id"]);
        assert!(found.len() == 1 || !told_again, "{}: {found:?}", label["id"]);
        for fault in &found {
            let device = fault.device.as_ref().map(|device| device.as_str());
            assert_eq!(device, label["expect"]["pci_bdf"].as_str(), "{}", label["id"]);
        }
        seen += 1;
    }
    assert!(seen > 2, "only {seen} seen");
}

#[test]
fn a_real_log_gives_its_five_timeouts_and_nothing_else() {
    let Some(root) = shared() else { return };
    let log = std::fs::read(root.join("kmsg/files/dmesg-with-xid-119.log")).unwrap();
    let mut classifier = Classifier::new(Rules::builtin().unwrap(), None);
    let found: Vec<String> = log
        .split(|b| *b == b'\n')
        .filter_map(|line| classifier.line(line))
        .map(|fault| format!("{} {} {}", fault.kind, fault.code, fault.device.unwrap()))
        .collect();
    assert_eq!(found, vec!["xid 119 0000:9b:00"; 5]);
}

/// Our table of XIDs and rules holds the same facts as the catalogue it was written from.
#[test]
fn our_tables_agree_with_the_catalogue() {
    let Some(root) = shared() else { return };
    let rules = Rules::builtin().unwrap();
    let read = |name: &str| std::fs::read_to_string(root.join("xid").join(name)).unwrap();
    let catalogue = read("catalog.tsv");
    let rows: Vec<Vec<&str>> = catalogue.lines().skip(1).map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows.len(), rules.xids.len());
    for row in &rows {
        let xid = &rules.xids[&row[0].parse::<u32>().unwrap()];
        assert!(row[1].split([' ', '/', '|']).any(|m| m == xid.mnemonic), "{}: {}", row[1], xid.mnemonic);
        assert_eq!(row[3] == "yes", xid.used, "{}", xid.code);
        assert_eq!(row[8], xid.action.as_deref().unwrap_or(""), "{}", xid.code);
    }
    let decode = read("nvlink5.tsv");
    let rows: Vec<Vec<&str>> = decode.lines().skip(1).map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows.len(), rules.nvlink5.len());
    for (row, rule) in rows.iter().zip(&rules.nvlink5) {
        assert_eq!((row[0].parse(), row[1].parse()), (Ok(rule.rule), Ok(rule.xid)));
        assert_eq!(
            (row[3], row[4], row[8]),
            (rule.unit[0].as_str(), rule.unit[1].as_str(), rule.action.as_str())
        );
        for (pattern, bits) in [(row[5], rule.bits[0]), (row[6], rule.bits[1])] {
            let one =
                |set: char| u32::from_str_radix(&pattern.replace('-', "0").replace(set, "1"), 2).unwrap();
            assert_eq!(bits.value, one('1') & 0xf_ffff, "rule {}", rule.rule);
            assert_eq!(rule.subcode, one('1') >> 20 & 0x3f, "rule {}", rule.rule);
        }
    }
    let switch = read("sxid.tsv");
    let codes: Vec<u32> =
        switch.lines().skip(1).map(|line| line.split('\t').next().unwrap().parse().unwrap()).collect();
    assert_eq!(codes, rules.sxids.keys().copied().collect::<Vec<_>>());
}
