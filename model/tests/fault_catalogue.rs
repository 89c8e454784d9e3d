//! Every code of the catalogue and every NVLink 5 rule, each through a line as the driver would print it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests; the lint exempts only the tests themselves

use whetstone_model::action::{Action, Severity};
use whetstone_model::fault::rules::{BUILTIN, Sources};
use whetstone_model::fault::{Code, DriverVersion, Kind, Layout, Rules, TableError, classify};

fn rules() -> &'static Rules {
    Rules::builtin().expect("the tables that are compiled in")
}

fn driver(branch: u16) -> Option<DriverVersion> {
    Some(DriverVersion { branch, minor: 0, patch: 0 })
}

#[test]
fn the_tables_are_whole() {
    let rules = rules();
    assert_eq!(rules.xids.len(), 172);
    assert!(rules.xids.keys().copied().eq(1..=172));
    assert_eq!(rules.xids.values().filter(|xid| xid.used).count(), 109);
    assert_eq!(rules.nvlink5.len(), 95);
    assert_eq!(rules.sxids.len(), 93);
}

#[test]
fn every_xid_has_its_row_and_is_found_in_a_line() {
    for (code, xid) in &rules().xids {
        let line = format!(
            "[ 12.345678] NVRM: Xid (PCI:0000:3B:00): {code}, pid=4711, name=train.py, text of the driver"
        );
        let fault = classify(&line, None).unwrap_or_else(|| panic!("{line} was missed"));
        assert_eq!((fault.kind, &fault.code), (Kind::Xid, &Code::Number(*code)));
        assert_eq!(fault.device.unwrap().as_str(), "0000:3b:00");
        assert_eq!(fault.name, xid.mnemonic);
        assert_eq!(fault.catalog_action, xid.action, "{code}");
        assert_eq!((fault.details.pid, fault.details.process.as_deref()), (Some(4711), Some("train.py")));
        assert!(!fault.why.is_empty() && fault.details.in_catalog == Some(true));
    }
}

/// The actions that NVIDIA names are followed one to one.
#[test]
fn the_catalogues_action_becomes_ours() {
    let action = |code: u32| classify(format!("NVRM: Xid (PCI:0000:3b:00): {code}, x"), None).unwrap().action;
    for (name, ours) in [
        ("RESET_GPU", Action::ResetGpu),
        ("RESTART_APP", Action::RestartApp),
        ("RESTART_BM", Action::Reboot),
        ("IGNORE", Action::None),
        ("CONTACT_SUPPORT", Action::ContactSupport),
        ("UPDATE_SWFW", Action::UpdateSoftware),
        ("CHECK_MECHANICALS", Action::CheckLink),
    ] {
        let codes: Vec<u32> =
            rules().xids.values().filter(|x| x.action.as_deref() == Some(name)).map(|x| x.code).collect();
        assert!(!codes.is_empty(), "{name}");
        for code in codes {
            assert_eq!(action(code), ours, "XID {code}, {name}");
        }
    }
}

#[test]
fn only_what_makes_a_blade_unfit_is_a_fault() {
    let severity =
        |code: u32| classify(format!("NVRM: Xid (PCI:0000:3b:00): {code}, x"), None).unwrap().severity;
    for code in [46, 48, 54, 62, 64, 79, 95, 109, 110, 119, 120, 136, 140, 143, 158, 167, 168, 171, 172] {
        assert_eq!(severity(code), Severity::Fault, "{code}");
    }
    for code in [13, 31, 45, 63, 69, 92, 94] {
        assert_eq!(severity(code), Severity::Warning, "{code}");
    }
    for code in [14, 37, 43, 106, 107] {
        assert_eq!(severity(code), Severity::Info, "{code}");
    }
}

/// A line that a rule of the table was written for, with the bits of one layout.
fn nvlink5_line(xid: u32, unit: &str, intrinfo: u32, status: u32) -> String {
    format!(
        "NVRM: Xid (PCI:0008:01:00): {xid}, {unit} Fatal XC0 i0 Link 07 (0x{intrinfo:08x} 0x{status:08x} 0x0 0x0 0x0 0x0)"
    )
}

#[test]
fn every_nvlink5_rule_is_found_in_both_layouts() {
    let mut tried = 0;
    for rule in &rules().nvlink5 {
        for (layout, branch, named) in [(0, 574, Layout::BelowR575), (1, 575, Layout::R575Up)] {
            let statuses = if rule.status.is_empty() { vec![0, 0x1234] } else { rule.status.clone() };
            let mut wanted = vec![(rule.bits[layout].value, rule.action.as_str())];
            if let Some((bits, action)) = &rule.promoted {
                wanted.push((bits[layout].value, action));
            }
            for (bits, action) in wanted {
                for status in &statuses {
                    // Bits above the layout's own (20 at most, below the subcode) must not matter.
                    for noise in [0, !rule.bits[layout].mask & 0xf_f800, 0xfc00_0000] {
                        let intrinfo = bits | rule.subcode << 20 | noise;
                        let line = nvlink5_line(rule.xid, &rule.unit[layout], intrinfo, *status);
                        let fault = classify(&line, driver(branch)).unwrap();
                        let decoded = fault.details.nvlink5.as_ref().unwrap();
                        assert_eq!(fault.details.layout, Some(named));
                        assert_eq!(fault.subcode, Some(rule.subcode), "{line}");
                        assert_eq!(
                            fault.catalog_action.as_deref(),
                            Some(action),
                            "rule {}: {line}",
                            rule.rule
                        );
                        assert_eq!(fault.details.link, Some(7));
                        // Below R575 the two pipes of the TLW are one unit with the same bits: the first rule stands for both.
                        let twin = layout == 0 && matches!(rule.rule, 48..=51 | 56..=59);
                        let wanted = if twin { rule.rule - 4 } else { rule.rule };
                        assert_eq!(decoded.rule, Some(wanted), "{line}");
                        tried += 1;
                    }
                }
            }
        }
    }
    assert!(tried >= 95 * 2 * 3, "only {tried} tried");
}

#[test]
fn an_unknown_driver_is_said_and_the_careful_action_taken_where_the_layouts_differ() {
    let rules = rules();
    let (mut agree, mut differ) = (0, 0);
    // All words that any rule fits, read by both layouts.
    for rule in &rules.nvlink5 {
        for bits in rule.bits {
            let status = rule.status.first().copied().unwrap_or(0);
            let line = nvlink5_line(rule.xid, &rule.unit[0], bits.value | rule.subcode << 20, status);
            let [old, new, open] =
                [driver(570), driver(580), None].map(|driver| classify(&line, driver).unwrap());
            assert_eq!(open.details.layout, Some(Layout::Unknown));
            let fits = [&old, &new]
                .into_iter()
                .filter(|fault| fault.details.nvlink5.as_ref().unwrap().rule.is_some());
            let careful = fits.clone().max_by_key(|fault| (fault.severity, fault.action)).unwrap();
            assert_eq!((open.action, open.severity), (careful.action, careful.severity), "{line}");
            let actions: std::collections::BTreeSet<_> = fits.map(|fault| &fault.catalog_action).collect();
            assert_eq!(open.details.nvlink5.unwrap().certain, actions.len() == 1, "{line}");
            if actions.len() == 1 { agree += 1 } else { differ += 1 }
        }
    }
    assert!(agree > 100, "{agree} agree, {differ} differ");
}

#[test]
fn the_log_itself_may_say_the_driver() {
    let line = nvlink5_line(149, "NETIR_LINK_EVT", 0x0045_05c6, 0);
    for (loaded, layout) in [
        (
            "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  570.86.15  Tue Jan 1 00:00:00 UTC 2025",
            Layout::BelowR575,
        ),
        ("NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", Layout::R575Up),
    ] {
        let mut classifier = whetstone_model::fault::Classifier::new(rules(), None);
        assert!(classifier.line(format!("[    5.123456] {loaded}")).is_none());
        assert_eq!(classifier.line(&line).unwrap().details.layout, Some(layout));
        // What the caller says wins.
        let mut told = whetstone_model::fault::Classifier::new(rules(), driver(575));
        told.line(loaded);
        assert_eq!(told.line(&line).unwrap().details.layout, Some(Layout::R575Up));
    }
}

#[test]
fn nvlink5_words_without_a_rule_or_torn_are_judged_by_what_is_printed() {
    let no_rule = |word: &str| {
        let line =
            format!("NVRM: Xid (PCI:0008:01:00): 144, SAW_EGR {word} XC0 i0 Link 00 (0x00000004 0x00000001)");
        classify(line, driver(580)).unwrap()
    };
    assert_eq!(
        (no_rule("Fatal").action, no_rule("Nonfatal").action),
        (Action::ResetGpu, Action::DrainAndTest)
    );
    assert_eq!(no_rule("Fatal").catalog_action.as_deref(), Some("WORKFLOW_NVLINK5_ERR"));
    let torn = classify("NVRM: Xid (PCI:0008:01:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x0045", None)
        .unwrap();
    assert_eq!((torn.action, torn.details.layout), (Action::ResetGpu, Some(Layout::Unknown)));
    assert_eq!((torn.subcode, torn.details.nvlink5), (None, None));
}

#[test]
fn the_recovery_that_154_names_is_the_action() {
    let to = |to: &str| {
        let line =
            format!("NVRM: Xid (PCI:0008:01:00): 154, GPU recovery action changed from 0x0 (None) to {to}");
        classify(line, None).unwrap()
    };
    for (printed, action, severity) in [
        ("0x0 (None)", Action::None, Severity::Info),
        ("0x1 (GPU Reset Required)", Action::ResetGpu, Severity::Fault),
        ("0x2 (Node Reboot Required)", Action::Reboot, Severity::Fault),
        ("0x3 (Drain P2P)", Action::DrainAndTest, Severity::Fault),
        ("0x4 (Drain and Reset)", Action::ResetGpu, Severity::Fault),
        ("(Drain and Reset)", Action::ResetGpu, Severity::Fault),
        ("0x2 (a name of a later driver)", Action::Reboot, Severity::Fault),
        ("0x9 (a name of a later driver)", Action::DrainAndTest, Severity::Warning),
        ("torn", Action::DrainAndTest, Severity::Warning),
    ] {
        let fault = to(printed);
        assert_eq!((fault.action, fault.severity), (action, severity), "{printed}");
        assert_eq!(fault.catalog_action.as_deref(), Some("XID_154"));
    }
    assert_eq!(to("0x1 (GPU Reset Required)").details.recovery_from.as_deref(), Some("None"));
}

#[test]
fn the_registers_of_74_decide() {
    let action = |registers: &str| {
        let line =
            format!("NVRM: Xid (PCI:0008:01:00): 74, NVLink: fatal error detected on link 3({registers})");
        let fault = classify(line, None).unwrap();
        assert_eq!(fault.catalog_action.as_deref(), Some("WORKFLOW_NVLINK_ERR"));
        (fault.action, fault.details.register_classes)
    };
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    assert_eq!(action("0x1, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0"), (Action::None, words(&["harmless"])));
    assert_eq!(action("0x2, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0"), (Action::DrainAndTest, words(&["secondary"])));
    // Bit 8 (connection) beside bit 1 (secondary): the connection decides.
    assert_eq!(action("0x102, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0").0, Action::CheckLink);
    assert_eq!(
        action("0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0"),
        (Action::DrainAndTest, words(&["repeat_hardware"]))
    );
    assert_eq!(action("0x0, 0x0, 0x0, 0x40000, 0x0, 0x0, 0x0"), (Action::ResetGpu, words(&["fabric_reset"])));
    assert_eq!(action("0x0, 0x0, 0x0, 0x0, 0x100000, 0x0, 0x0"), (Action::None, words(&["threshold"])));
    assert_eq!(action("0x0, 0x80000000, 0x0, 0x0, 0x0, 0x0, 0x0").1, words(&["unlisted"]));
    assert_eq!(action("0x0, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0"), (Action::ResetGpu, Vec::new()));
}

#[test]
fn every_sxid_is_found_and_what_the_driver_prints_wins_over_the_guide() {
    for (code, sxid) in &rules().sxids {
        let line = format!("nvidia-nvswitch2: SXid (PCI:0000:0A:00.0): {code}, text");
        let fault = classify(line, None).unwrap();
        assert_eq!((fault.kind, &fault.code), (Kind::Sxid, &Code::Number(*code)));
        assert_eq!((fault.details.nvswitch, fault.device.unwrap().as_str()), (Some(2), "0000:0a:00.0"));
        assert_eq!(fault.catalog_action, None);
        assert_eq!(fault.severity, rules().policy.sxid[&sxid.effect].severity);
    }
    let severity = |code: u32, printed: &str| {
        let line =
            format!("nvidia-nvswitch0: SXid (PCI:0000:0a:00.0): {code}, {printed}, Link 07 text (First)");
        let fault = classify(line, None).unwrap();
        assert_eq!(fault.details.link, Some(7));
        fault.severity
    };
    assert_eq!(severity(11012, "Non-fatal"), Severity::Info);
    assert_eq!(severity(11012, "Fatal"), Severity::Fault);
    assert_eq!(severity(24007, "Fatal"), Severity::Fault);
    assert_eq!(severity(24007, "Non-fatal"), Severity::Warning);
    assert_eq!(severity(23001, "Non-fatal"), Severity::Fault, "always fatal, whatever is printed");
    let unlisted = classify("nvidia-nvswitch0: SXid (PCI:0004:00:00.0): 26006, SOE HALTED", None).unwrap();
    assert_eq!((unlisted.details.in_catalog, unlisted.severity), (Some(false), Severity::Warning));
}

/// Each way in which an edited table may go wrong is told with its place.
#[test]
fn a_broken_table_is_named_with_its_line() {
    let load = |change: &dyn Fn(&mut Sources<'static>)| {
        let mut sources = BUILTIN;
        change(&mut sources);
        Rules::load(sources).map(drop).map_err(|e| e.to_string()).unwrap_err()
    };
    let edited = |text: &str, from: &str, to: &str| -> &'static str {
        assert!(text.contains(from), "{from:?} is not there");
        Box::leak(text.replacen(from, to, 1).into_boxed_str())
    };
    let xid = edited(BUILTIN.xid, "\tused\tRESTART_BM", "\tperhaps\tRESTART_BM");
    let told = load(&|s| s.xid = xid);
    assert!(told.starts_with("xid.tsv:") && told.contains("perhaps"), "{told}");
    let xid = edited(BUILTIN.xid, "RESTART_BM", "RESTART_SUN");
    assert!(load(&|s| s.xid = xid).contains("no row for catalogue action RESTART_SUN"));
    let twice = edited(BUILTIN.sxid, "10002\t", "10001\t");
    assert!(load(&|s| s.sxid = twice).contains("is there twice"));
    let rule = edited(BUILTIN.nvlink5, "0x80000000", "80000000");
    assert!(load(&|s| s.nvlink5 = rule).contains("nvlink5.tsv:"));
    let policy = edited(BUILTIN.policy, "action = \"none\"", "action = \"pray\"");
    assert!(load(&|s| s.policy = policy).contains("policy.toml: "));
    let policy = edited(BUILTIN.policy, "hung_task = ", "hangs = ");
    assert!(load(&|s| s.policy = policy).contains("cpu/hung_task"));
    let policy = edited(
        BUILTIN.policy,
        "[event.os]",
        "[event.os]\nspare = { action = \"none\", severity = \"info\", why = \"x\" }",
    );
    assert!(matches!(Rules::load(Sources { policy, ..BUILTIN }), Err(TableError::Unused { .. })));
    let events = edited(BUILTIN.events, "'''NVRM: API mismatch'''", "'''NVRM: (API'''");
    assert!(load(&|s| s.events = events).contains("nvidia_api_mismatch"));
}
