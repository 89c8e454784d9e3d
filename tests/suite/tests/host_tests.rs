//! The tests of the host through the shipped binary, as the runner calls them: one process each, events line by line.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use whetstone_burnin::protocol::{Event, Request};
use whetstone_burnin::suite::{
    ClockParams, CpuCoherenceParams, CpuComputeParams, CpuFamily, DiskParams, DramParams, NetworkParams,
    TestKind,
};
use whetstone_model::report::TestOutcome;

fn start(kind: TestKind, budget_s: u64, scratch: &Path) -> Child {
    let request = Request {
        name: "host".into(),
        kind,
        seed: 7,
        budget_s,
        scratch: scratch.to_owned(),
        gpus: Vec::new(),
    };
    let mut child = Command::new(whetstone_suite::whet())
        .arg("device-test")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Standard input stays open: when it closes, the process takes its runner for gone.
    writeln!(child.stdin.as_mut().unwrap(), "{}", serde_json::to_string(&request).unwrap()).unwrap();
    child
}

fn events(child: &mut Child) -> impl Iterator<Item = Event> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap())
}

/// Every host test on this very machine: none may find a fault, each says progress and ends by itself with `Done`.
#[test]
fn every_host_test_tells_the_truth_about_this_machine() {
    let kinds = [
        TestKind::CpuCompute(CpuComputeParams { families: vec![CpuFamily::Hash], min_rounds: 1 }),
        TestKind::CpuCoherence(CpuCoherenceParams {}),
        TestKind::Dram(DramParams { percent_of_available: 10, max_mib: 64, min_passes: 1 }),
        TestKind::Disk(DiskParams { mib: 8 }),
        TestKind::Network(NetworkParams { mib: 8 }),
        TestKind::Clock(ClockParams {}),
    ];
    for kind in kinds {
        let scratch = tempfile::tempdir().unwrap();
        let mut child = start(kind.clone(), 2, scratch.path());
        let events: Vec<Event> = events(&mut child).collect();
        assert!(child.wait().unwrap().success(), "{}", kind.name());
        let Some(Event::Done { outcome, detail }) = events.last() else { panic!("{}: no end", kind.name()) };
        // A test that cannot be done here (disk too full, directory in memory) says so before it begins.
        let begun = events.iter().any(|e| matches!(e, Event::Progress { .. }));
        assert!(begun || *outcome == TestOutcome::Inconclusive, "{}: no progress: {detail}", kind.name());
        // A machine that is too busy, or a directory in memory, is inconclusive with a reason; never a pass by default.
        match outcome {
            TestOutcome::Pass => assert!(detail.is_empty(), "{}: {detail}", kind.name()),
            TestOutcome::Inconclusive => assert!(!detail.is_empty(), "{}", kind.name()),
            other => panic!("{}: {other:?} {detail} {events:?}", kind.name()),
        }
        assert_eq!(
            std::fs::read_dir(scratch.path()).unwrap().count(),
            0,
            "{} left files behind",
            kind.name()
        );
    }
}

/// The disk test's file is gone even if its process is killed in the middle.
#[test]
fn a_killed_disk_test_leaves_no_file() {
    let scratch = tempfile::tempdir().unwrap();
    let mut child = start(TestKind::Disk(DiskParams { mib: 256 }), 60, scratch.path());
    let writing = events(&mut child).any(|e| match e {
        Event::Progress { doing, .. } => doing.contains("MiB"),
        _ => false,
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    if !writing {
        println!("skipped: this machine's temporary directory cannot be tested (in memory, or too full)");
    }
}
