//! Whatever comes in: no crash, no fault out of nothing, and none lost behind an odd header.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests; the lint exempts only the tests themselves

use std::convert::Infallible;

use proptest::prelude::*;
use whetstone_model::fault::lines::{MAX_LINE, Splitter};
use whetstone_model::fault::{Classifier, Code, Kind, Rules, classify};

/// Lines of an ordinary boot: none of them is a fault, nor is any piece of them.
const ORDINARY: &[&str] = &[
    "EXT4-fs (nvme0n1p2): re-mounted. Opts: errors=remount-ro. Quota mode: none.",
    "systemd[1]: Finished Remount Root and Kernel File Systems.",
    "nvidia-nvlink: Nvlink Core is being initialized, major device number 507",
    "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  575.57.08  Fri May  9 23:35:40 UTC 2025",
    "NVRM: GPU at PCI:0000:9b:00: GPU-509665ad-b600-ac93-3616-d754b23d636d",
    "nvidia 0000:9b:00.0: enabling device (0140 -> 0142)",
    "mlx5_core 0000:41:00.0: firmware version: 28.39.1002",
    "mlx5_core 0000:41:00.0 ens1f0np0: Link up",
    "mlx5_core 0000:41:00.0: Port module event: module 0, Cable plugged",
    "ata5: SATA link down (SStatus 0 SControl 300)",
    "EDAC MC0: Giving out device to module amd64_edac controller F19h_M10h: DEV 0000:00:18.3 (INTERRUPT)",
    "MCE: In-kernel MCE decoding enabled.",
    "pcieport 0000:00:01.0: AER: enabled with IRQ 31",
    "nvme nvme0: 64/0/0 default/read/poll queues",
    "audit: type=1400 audit(1753325642.544:115): apparmor=\"STATUS\" comm=\"apparmor_parser\"",
    "perf: interrupt took too long (3141 > 3136), lowering kernel.perf_event_max_sample_rate to 63500",
    "Memory: 2113241088K/2147483648K available (16384K kernel code, 3000K rwdata)",
    "nfs: server 10.0.0.5 starting",
    "md: raid1 personality registered for level 1",
];

/// Words that faults are made of, in no order that means one.
const WORDS: &[&str] = &[
    "NVRM:",
    "Xid",
    "SXid",
    "(PCI:0000:3b:00)",
    "79,",
    "pid=1,",
    "GPU",
    "has fallen",
    "bus",
    "mlx5_core",
    "0000:3b:00.0",
    "Link",
    "error",
    "Fatal",
    "AER",
    "EDAC",
    "MC0",
    "timed out",
    "kernel",
    "panic",
    "nfs",
    "server",
    "killed",
    "process",
];

fn header() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        (0u64..10_000_000, 0u32..1_000_000).prop_map(|(s, us)| format!("[{s:5}.{us:06}] ")),
        (0u8..8, 0u64..1_000_000, 0u64..1 << 50)
            .prop_map(|(level, seq, us)| format!("{level},{seq},{us},-;")),
        (0u8..8, 0u32..9999).prop_map(|(level, s)| format!("<{level}>[{s:5}.000001] ")),
        ("[a-z][a-z0-9-]{0,20}", 1u8..29, 0u8..24)
            .prop_map(|(host, day, hour)| format!("Nov {day:2} {hour:02}:00:01 {host} kernel: ")),
        ("[a-z][a-z0-9.-]{0,20}", 0u8..60).prop_map(|(host, m)| format!(
            "2026-11-22T06:{m:02}:02.123456+00:00 {host} kernel: [  1.000001] "
        )),
        Just("kern  :warn  : 2025-01-21T04:41:44,283390+00:00 ".to_owned()),
    ]
}

fn rules() -> &'static Rules {
    Rules::builtin().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_of_any_kind_never_crash_it(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
        classify(&bytes, None);
        let mut classifier = Classifier::new(rules(), None);
        let mut splitter = Splitter::default();
        splitter.push(&bytes, |line| { classifier.line(line.bytes); Ok::<(), Infallible>(()) }).unwrap();
    }

    #[test]
    fn random_text_is_no_fault(text in "\\PC{0,400}") {
        prop_assert_eq!(classify(&text, None), None);
    }

    #[test]
    fn no_piece_of_an_ordinary_line_is_a_fault(
        header in header(),
        line in prop::sample::select(ORDINARY),
        from in 0usize..200,
        to in 0usize..200,
        junk in "[ -~]{0,40}",
    ) {
        let piece = line.get(from.min(line.len())..).unwrap_or("");
        let piece = piece.get(..to.min(piece.len())).unwrap_or("");
        for text in [format!("{header}{line}"), format!("{header}{piece}"), format!("{header}{piece}{junk}"), format!("{header}{junk}{piece}")] {
            prop_assert_eq!(classify(&text, None), None, "{}", text);
        }
    }

    #[test]
    fn two_ordinary_lines_written_into_each_other_are_no_fault(
        one in prop::sample::select(ORDINARY),
        two in prop::sample::select(ORDINARY),
        at in 0usize..200,
    ) {
        let at = at.min(one.len());
        let text = format!("[    1.000001] {}[    1.000002] {two}{}", &one[..at], &one[at..]);
        prop_assert_eq!(classify(&text, None), None, "{}", text);
    }

    #[test]
    fn words_of_faults_in_no_order_are_no_gpu_fault(words in prop::collection::vec(prop::sample::select(WORDS), 0..12)) {
        // The one order that does mean something is left out.
        let text = words.join(" ");
        prop_assume!(!text.contains("Xid (PCI:0000:3b:00) 79,"));
        let fault = classify(&text, None);
        let gpu = fault.as_ref().is_some_and(|f| matches!(f.kind, Kind::Xid | Kind::Sxid));
        prop_assert!(!gpu, "{}: {:?}", text, fault);
    }

    #[test]
    fn an_xid_is_found_behind_every_header(header in header(), code in 1u32..173, bus in 0u8..=255, tail in "[ -~]{0,200}") {
        let line = format!("{header}NVRM: Xid (PCI:0000:{bus:02X}:00): {code}, {tail}");
        let fault = classify(&line, None);
        prop_assert!(fault.is_some(), "{}", line);
        let fault = fault.unwrap();
        prop_assert_eq!(fault.code, Code::Number(code));
        let device = format!("0000:{bus:02x}:00");
        prop_assert_eq!(fault.device.as_ref().map(|d| d.as_str()), Some(device.as_str()));
    }

    #[test]
    fn a_line_cut_anywhere_tells_the_same_fault_or_none(cut in 0usize..140, code in 100u32..173) {
        let line = format!("[   12.345678] NVRM: Xid (PCI:0000:3b:00): {code}, pid=4711, name=train, NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x004505c6 0x00000000 0x00000000)");
        let fault = classify(&line[..cut.min(line.len())], None);
        if let Some(fault) = fault {
            // A code that lost digits is another code; there is no telling, but never another kind or device.
            prop_assert_eq!(fault.kind, Kind::Xid);
            prop_assert_eq!(fault.device.as_ref().map(|d| d.as_str()), Some("0000:3b:00"));
            let Code::Number(number) = fault.code else { panic!("an XID without a number") };
            prop_assert!(code.to_string().starts_with(&number.to_string()));
        }
    }

    #[test]
    fn how_the_stream_is_chunked_does_not_matter(
        picks in prop::collection::vec((0usize..ORDINARY.len() + 2, header()), 1..20),
        chunk in 1usize..300,
    ) {
        let lines: Vec<String> = picks.iter().map(|(pick, header)| match pick.checked_sub(ORDINARY.len()) {
            None => format!("{header}{}", ORDINARY[*pick]),
            Some(0) => format!("{header}NVRM: Xid (PCI:0000:3b:00): 48, x"),
            Some(_) => format!("{header}nvidia-nvswitch0: SXid (PCI:0000:0a:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"),
        }).collect();
        let wanted: Vec<bool> = picks.iter().map(|(pick, _)| *pick >= ORDINARY.len()).collect();
        let text = lines.join("\n");
        let (mut classifier, mut splitter, mut found) = (Classifier::new(rules(), None), Splitter::default(), Vec::new());
        let mut each = |line: whetstone_model::fault::lines::Line<'_>| {
            found.push(classifier.line(line.bytes).is_some());
            Ok::<(), Infallible>(())
        };
        for piece in text.as_bytes().chunks(chunk) {
            splitter.push(piece, &mut each).unwrap();
        }
        splitter.finish(&mut each).unwrap();
        prop_assert_eq!(found, wanted);
    }
}

#[test]
fn an_enormous_line_is_looked_at_up_to_the_limit() {
    let fault = "NVRM: Xid (PCI:0000:3b:00): 48, x";
    assert!(classify(format!("{fault}{}", "y".repeat(10 << 20)), None).is_some());
    assert!(classify(format!("{}{fault}", "y".repeat(10 << 20)), None).is_none());
    // A line of nothing but headers and brackets costs no more than its length.
    for unit in ["[    1.000001] ", "<1>", "NVRM: Xid (", "1,2,3,-;", "kernel: ", "\n"] {
        classify(unit.repeat(MAX_LINE / unit.len()), None);
    }
}
