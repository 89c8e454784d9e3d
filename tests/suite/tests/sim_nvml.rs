//! The agent's probe against the simulated NVML: every SKU, every fault that NVML shows.
//!
//! The library and its blade are chosen by environment and live as long as a process, so each look is taken by a
//! child: this test program itself, told by [`CHILD`] what to do.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests: what fails here is a failed test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use whetstone_agent::probe::{Depth, ProbeOptions, Prober};
use whetstone_model::facts::*;
use whetstone_scenario::{BladeScenario, Sim, SimSku, home};

/// Set for a child: where it leaves its answer.
const CHILD: &str = "WHETSTONE_TEST_ANSWER";
/// Set for a child: milliseconds that a source may take.
const TIMEOUT: &str = "WHETSTONE_TEST_TIMEOUT_MS";

fn make(scenario: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let blade = BladeScenario::parse("scenario", scenario).unwrap();
    home::make(&blade, &dir.path().join("blade")).unwrap();
    dir
}

fn child(name: &str, blade: &Path, timeout_ms: u64) -> (Output, PathBuf) {
    let answer = blade.with_file_name("answer.json");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env("WHETSTONE_SIM", blade)
        .env("WHETSTONE_NVML_LIB", whetstone_suite::sim_libraries().join("libnvidia-ml.so.1"))
        .env("WHETSTONE_ROOT", blade.join("root"))
        .env(CHILD, &answer)
        .env(TIMEOUT, timeout_ms.to_string())
        .output()
        .unwrap();
    (output, answer)
}

/// What the agent sees of the blade at `blade`.
fn look_at(blade: &Path, timeout_ms: u64) -> Facts {
    let (output, answer) = child("child_looks", blade, timeout_ms);
    let text = std::fs::read_to_string(&answer).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    serde_json::from_str(&text).unwrap()
}

fn look(scenario: &str) -> Facts {
    let dir = make(scenario);
    look_at(&dir.path().join("blade"), 10_000)
}

#[test]
#[ignore = "run by the other tests as a child"]
fn child_looks() {
    let Some(answer) = std::env::var_os(CHILD) else { return };
    let timeout = Duration::from_millis(std::env::var(TIMEOUT).unwrap().parse().unwrap());
    let facts = Prober::new(ProbeOptions { timeout, ..ProbeOptions::from_env() }).look(Depth::Full);
    std::fs::write(answer, serde_json::to_string(&facts).unwrap()).unwrap();
    // A call that hangs would hold up the end of the process.
    std::process::exit(0);
}

#[test]
fn every_sku_tells_what_it_is_and_is_healthy() {
    for id in SimSku::names() {
        let sku = SimSku::built_in(&id).unwrap();
        let facts = look(&format!("name='b'\nsku='{id}'"));
        let driver = facts.gpu_driver.as_ref().unwrap();
        assert!(driver.simulated && facts.simulated(), "{id}: not said to be simulated");
        assert_eq!(driver.cuda_version.as_deref(), Some("13.0"), "{id}");
        assert_eq!(facts.gpus.len(), sku.gpus_per_blade, "{id}: {:?}", facts.gpu_gaps);
        for gpu in &facts.gpus {
            let at = format!("{id} {}", gpu.label());
            assert_eq!(gpu.unanswered, Vec::<String>::new(), "{at}");
            assert_eq!(gpu.name.as_deref(), Some(sku.name.as_str()), "{at}");
            let (major, minor) = sku.compute_capability;
            assert_eq!(gpu.identity.compute_capability, Some(format!("{major}.{minor}")), "{at}");
            assert_eq!(gpu.memory.total_mib, Some(sku.hbm_mib), "{at}");
            assert_eq!(gpu.memory.free_mib, Some(64), "{at}");
            assert_eq!(gpu.ecc.enabled, Some(true), "{at}");
            assert_eq!(
                gpu.ecc.volatile.dram,
                ErrorCount { corrected: Some(0), uncorrected: Some(0) },
                "{at}"
            );
            assert_eq!(gpu.ecc.sram_threshold_exceeded, Some(false), "{at}");
            let rows = gpu.remapped_rows.as_ref().unwrap();
            assert!(!rows.pending && !rows.failure && rows.uncorrected == 0, "{at}: {rows:?}");
            assert_eq!(gpu.pcie.generation, Some(sku.pcie_gen), "{at}");
            assert_eq!(gpu.pcie.width, gpu.pcie.max_width, "{at}");
            assert_eq!(gpu.power.enforced_limit_w, Some(sku.power_limit_w), "{at}");
            assert_eq!(gpu.nvlinks.len(), sku.nvlinks as usize, "{at}");
            for link in &gpu.nvlinks {
                assert_eq!(link.up, Some(true), "{at} link {}", link.link);
                assert_eq!(link.speed_mbps, Some(sku.nvlink_reported_mbps.into()), "{at} link {}", link.link);
                assert!(link.errors.values().all(|count| *count == 0), "{at}: {:?}", link.errors);
            }
            // Margins came with Ada; before, temperatures are told against limits in degrees.
            assert_eq!(gpu.thermal.margin_c.is_some(), sku.architecture >= 8, "{at}");
            assert_eq!(gpu.thermal.slowdown_tlimit_c, (sku.architecture >= 8).then_some(-2), "{at}");
            assert_eq!(gpu.clocks.event_reasons, [ClockReason::GpuIdle], "{at}");
            assert_eq!(gpu.fabric.is_some(), sku.nvlink_version >= 4, "{at}");
            if let Some(fabric) = &gpu.fabric {
                assert_eq!(fabric.state, FabricState::Completed, "{at}");
                assert_ne!(fabric.health.unwrap().degraded_bandwidth, Some(true), "{at}");
                assert_eq!(fabric.cluster_uuid.is_some(), sku.rack_scale, "{at}");
            }
        }
        let uuids: std::collections::BTreeSet<_> = facts.gpus.iter().map(|g| &g.uuid).collect();
        assert_eq!(uuids.len(), facts.gpus.len(), "{id}: UUIDs repeat");
        let pci: Vec<_> = facts.gpus.iter().filter_map(|g| g.identity.pci.clone()).collect();
        assert_eq!(pci, sku.pci, "{id}");
    }
}

/// Each fault that NVML shows while idle: what is planted on GPU 2, and where it must be seen there and on no other.
#[test]
fn each_fault_is_seen_on_its_gpu_and_on_no_other() {
    type Seen = fn(&GpuFacts) -> bool;
    let cases: [(&str, &str, Seen); 15] = [
        ("h100", "kind='pcie_width', now=8", |g| g.pcie.width == Some(8) && g.pcie.max_width == Some(16)),
        ("h100", "kind='pcie_gen', now=3", |g| {
            g.pcie.generation == Some(3) && g.pcie.max_generation == Some(5)
        }),
        ("h100", "kind='nvlink_down', link=4", |g| g.nvlinks[4].up == Some(false)),
        ("gb200", "kind='nvlink_down', link=17", |g| g.nvlinks[17].up == Some(false)),
        ("h100", "kind='ecc_uncorrectable', count=3", |g| g.ecc.volatile.dram.uncorrected == Some(3)),
        ("h100", "kind='sram_threshold'", |g| g.ecc.sram_threshold_exceeded == Some(true)),
        ("a100", "kind='remap_pending'", |g| g.remapped_rows.as_ref().is_some_and(|r| r.pending)),
        ("h200", "kind='remap_failed'", |g| g.remapped_rows.as_ref().is_some_and(|r| r.failure)),
        ("gb300", "kind='fabric_degraded'", |g| {
            g.fabric.as_ref().and_then(|f| f.health).is_some_and(|h| h.degraded_bandwidth == Some(true))
        }),
        ("b200", "kind='fabric_incomplete'", |g| {
            g.fabric.as_ref().is_some_and(|f| f.state == FabricState::InProgress)
        }),
        ("h100", "kind='power_cap', watts=450.0", |g| g.power.enforced_limit_w == Some(450.0)),
        ("l40s", "kind='ecc_off'", |g| {
            g.ecc.enabled == Some(false) && g.ecc.volatile.dram.corrected.is_none()
        }),
        ("h100", "kind='persistence_off'", |g| g.modes.persistence == Some(false)),
        ("h100", "kind='odd_vbios'", |g| g.identity.vbios.as_deref() == Some("96.00.99.00.99")),
        ("h100", "kind='memory_busy', mib=40", |g| {
            g.memory.free_mib == Some(24) && g.processes.iter().any(|p| p.memory_mib == Some(40))
        }),
    ];
    for (sku, fault, seen) in cases {
        let facts = look(&format!("name='b'\nsku='{sku}'\nfault=[{{gpu=2, {fault}}}]"));
        let on: Vec<u32> = facts.gpus.iter().filter(|g| seen(g)).map(|g| g.index).collect();
        assert_eq!(on, [2], "{sku}: {fault}");
    }
}

#[test]
fn a_lost_gpu_is_a_gap_and_the_others_answer() {
    let dir = make("name='b'\nsku='h100'\nfault=[{gpu=5, kind='gpu_lost', at_s=0.0}]");
    let blade = dir.path().join("blade");
    let facts = look_at(&blade, 10_000);
    assert_eq!(facts.gpus.len(), 7);
    assert_eq!(facts.gpu_gaps.iter().map(|g| (g.index, g.kind)).collect::<Vec<_>>(), [(5, GapKind::Lost)]);
    let log = std::fs::read_to_string(blade.join("kmsg")).unwrap();
    assert_eq!(log.matches("NVRM: Xid (PCI:0000:ab:00): 79,").count(), 1, "{log}");
}

#[test]
fn a_gpu_that_is_not_there_is_not_listed() {
    let facts = look("name='b'\nsku='h100'\nfault=[{gpu=0, kind='gpu_missing'}]");
    assert_eq!((facts.gpus.len(), facts.gpu_gaps.len()), (7, 0));
}

#[test]
fn a_hanging_call_is_given_up_and_the_others_answer() {
    let dir = make("name='b'\nsku='h100'\nfault=[{gpu=1, kind='hang', call='nvmlDeviceGetPowerUsage'}]");
    let facts = look_at(&dir.path().join("blade"), 2_000);
    assert_eq!(facts.gpus.len(), 7);
    assert_eq!(facts.gpu_gaps.iter().map(|g| (g.index, g.kind)).collect::<Vec<_>>(), [(1, GapKind::Timeout)]);
    let dir = make("name='b'\nsku='h100'\nfault=[{kind='hang', call='nvml'}]");
    let facts = look_at(&dir.path().join("blade"), 500);
    assert_eq!(facts.source("nvml").unwrap().state, SourceState::Timeout);
}

#[test]
fn a_version_mismatch_and_a_missing_blade_are_errors_not_absence() {
    let facts = look("name='b'\nsku='h100'\nfault=[{kind='nvml_version_mismatch'}]");
    let source = facts.source("nvml").unwrap();
    assert!(source.state == SourceState::Error && source.detail.contains("mismatch"), "{source:?}");

    let dir = make("name='b'\nsku='h100'");
    let blade = dir.path().join("blade");
    std::fs::write(blade.join("blade.json"), "{\"version\": 1").unwrap();
    let (output, answer) = child("child_looks", &blade, 10_000);
    let facts: Facts = serde_json::from_str(&std::fs::read_to_string(answer).unwrap()).unwrap();
    assert_eq!(facts.source("nvml").unwrap().state, SourceState::Error);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.matches("simulated silicon: ").count(), 1, "{said}");
}

#[test]
fn load_makes_it_warm_hungry_and_shows_errors_that_only_load_shows() {
    let dir = make(
        "name='b'\nsku='h100'\nthermal_s=0.01\nfault=[{gpu=1, kind='ecc_storm', per_s=100000.0},
         {gpu=2, kind='thermal_throttle', after_s=0.0}, {gpu=3, kind='nvlink_errors', link=7, per_s=100000.0},
         {gpu=4, kind='pcie_replays', per_s=100000.0}, {gpu=5, kind='power_cap', watts=500.0}]",
    );
    let blade = dir.path().join("blade");
    let sim = Sim::open_dir(&blade).unwrap();
    // The load goes on in the background until a look has been taken under it.
    let done = std::sync::atomic::AtomicBool::new(false);
    let facts = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                (1..8).filter_map(|i| sim.gpu(i)).for_each(|gpu| gpu.load(1.0));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let facts = look_at(&blade, 10_000);
            // On a busy machine the load may pause, and a look takes its readings one after the other.
            let gpu = &facts.gpus;
            let loaded = gpu[4].pcie.replays > Some(0)
                && gpu[2].thermal.margin_c < Some(-2)
                && gpu[2].clocks.event_reasons.contains(&ClockReason::HwThermalSlowdown)
                && gpu[2].clocks.sm_mhz < gpu[7].clocks.sm_mhz
                && gpu[5].clocks.event_reasons.contains(&ClockReason::SwPowerCap)
                && gpu[7].power.draw_w > Some(600.0)
                && gpu[7].thermal.gpu_c > Some(58)
                && gpu[7].utilization.gpu_percent == Some(100);
            if loaded || Instant::now() > until {
                done.store(true, std::sync::atomic::Ordering::Relaxed);
                return facts;
            }
        }
    });
    let gpu = &facts.gpus;
    assert!(gpu[0].power.draw_w < Some(80.0) && gpu[0].thermal.gpu_c < Some(36), "idle: {:?}", gpu[0].power);
    assert!(
        gpu[7].power.draw_w > Some(600.0) && gpu[7].thermal.gpu_c > Some(58),
        "loaded: {:?}",
        gpu[7].power
    );
    assert!(gpu[7].clocks.event_reasons.is_empty() && gpu[7].utilization.gpu_percent == Some(100));
    assert!(gpu[1].ecc.volatile.dram.corrected > Some(0) && gpu[7].ecc.volatile.dram.corrected == Some(0));
    assert!(gpu[2].clocks.event_reasons.contains(&ClockReason::HwThermalSlowdown), "{:?}", gpu[2].clocks);
    assert!(gpu[2].clocks.sm_mhz < gpu[7].clocks.sm_mhz && gpu[2].thermal.margin_c < Some(-2));
    assert!(gpu[3].nvlinks[7].errors["crc_flit"] > 0 && gpu[3].nvlinks[6].errors["crc_flit"] == 0);
    assert!(gpu[4].pcie.replays > Some(0) && gpu[3].pcie.replays == Some(0));
    assert!(
        gpu[5].clocks.event_reasons.contains(&ClockReason::SwPowerCap) && gpu[5].power.draw_w <= Some(500.0)
    );
}

#[test]
fn an_xid_comes_as_an_event_and_in_the_kernel_log() {
    let dir = make("name='b'\nsku='h100'\nfault=[{gpu=6, kind='xid', code=48, at_s=0.2}]");
    let blade = dir.path().join("blade");
    let (output, answer) = child("child_waits_for_an_event", &blade, 10_000);
    let got: (u32, u64) =
        serde_json::from_str(&std::fs::read_to_string(answer).unwrap_or_else(|e| panic!("{e}: {output:?}")))
            .unwrap();
    assert_eq!(got, (6, 48));
    let log = std::fs::read_to_string(blade.join("kmsg")).unwrap();
    assert_eq!(log.matches("NVRM: Xid (PCI:0000:ba:00): 48, ").count(), 1, "{log}");
}

#[test]
#[ignore = "run by the other tests as a child"]
fn child_waits_for_an_event() {
    use nvml_wrapper::bitmasks::event::EventTypes;
    use nvml_wrapper::enums::event::XidError;
    use nvml_wrapper::struct_wrappers::event::EventData;
    let Some(answer) = std::env::var_os(CHILD) else { return };
    let library = std::env::var_os("WHETSTONE_NVML_LIB").unwrap();
    let nvml = nvml_wrapper::Nvml::builder().lib_path(&library).init().unwrap();
    let mut events = nvml.create_event_set().unwrap();
    for index in 0..nvml.device_count().unwrap() {
        let gpu = nvml.device_by_index(index).unwrap();
        events = gpu
            .register_events(EventTypes::CRITICAL_XID_ERROR, events)
            .unwrap_or_else(|e| panic!("{}", e.error));
    }
    let EventData { device, event_data, .. } = events.wait(30_000).unwrap();
    let Some(XidError::Value(code)) = event_data else { panic!("an event without its code") };
    let text = serde_json::to_string(&(device.index().unwrap(), code)).unwrap();
    std::fs::write(answer, text).unwrap();
}
