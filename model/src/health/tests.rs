use super::*;
use crate::facts::*;

fn table() -> Table {
    Table::built_in().unwrap()
}

/// A GPU as a healthy HGX H100 has them.
fn gpu(index: u32) -> GpuFacts {
    let mut gpu: GpuFacts = serde_json::from_value(serde_json::json!({
        "uuid": format!("GPU-{index}"), "index": index, "name": "NVIDIA H100 80GB HBM3",
        "pci": format!("0000:{:02x}:00.0", 0x17 + index), "vbios": "96.00.89.00.01",
    }))
    .unwrap();
    gpu.memory.total_mib = Some(81559);
    gpu.ecc.enabled = Some(true);
    gpu.ecc.pending_enabled = Some(true);
    gpu.ecc.volatile.sram = ErrorCount { corrected: Some(0), uncorrected: Some(0) };
    gpu.ecc.volatile.dram = ErrorCount { corrected: Some(0), uncorrected: Some(0) };
    gpu.ecc.sram_threshold_exceeded = Some(false);
    gpu.remapped_rows = Some(RemappedRows::default());
    gpu.thermal = Thermal {
        gpu_c: Some(41),
        margin_c: Some(46),
        slowdown_tlimit_c: Some(-2),
        memory_c: Some(50),
        memory_max_c: Some(95),
        ..Thermal::default()
    };
    gpu.clocks.sm_mhz = Some(1980);
    gpu.clocks.pstate = Some(0);
    gpu.pcie = GpuPcie {
        generation: Some(5),
        width: Some(16),
        max_generation: Some(5),
        max_width: Some(16),
        replays: Some(0),
        ..GpuPcie::default()
    };
    gpu.nvlinks = (0..18)
        .map(|link| NvLink {
            link,
            up: Some(true),
            speed_mbps: Some(26562),
            errors: [("replay".to_owned(), 0)].into(),
            ..NvLink::default()
        })
        .collect();
    gpu.fabric = Some(Fabric {
        state: FabricState::Completed,
        clique_id: Some(0),
        cluster_uuid: Some("c0".into()),
        health_mask: Some(0x1aa),
        health: Some(FabricHealth::decode(0x1aa)),
        summary: Some(FabricSummary::Healthy),
        ..Fabric::default()
    });
    gpu.modes.persistence = Some(true);
    gpu
}

/// A healthy blade with all that a blade can have.
fn blade() -> Facts {
    let gpus: Vec<GpuFacts> = (0..8).map(gpu).collect();
    let pci = gpus
        .iter()
        .map(|gpu| PciDevice {
            address: gpu.identity.pci.clone().unwrap(),
            kind: PciKind::Gpu,
            id: "10de:2330".into(),
            driver: Some("nvidia".into()),
            has_aer: true,
            config_readable: Some(true),
            ..PciDevice::default()
        })
        .collect();
    let port = |n: u32| IbPort {
        adapter: format!("mlx5_{n}"),
        port: 1,
        link_layer: Some("InfiniBand".into()),
        state: Some("ACTIVE".into()),
        rate_gbps: Some(400.0),
        adapter_type: Some("MT4129".into()),
        board_id: Some("MT_0000000838".into()),
        firmware: Some("28.41.1000".into()),
        ..IbPort::default()
    };
    let dimm = EdacDimm {
        name: "mc0/dimm0".into(),
        corrected: Some(0),
        uncorrected: Some(0),
        ..EdacDimm::default()
    };
    Facts {
        host: Host { uptime_s: Some(86_400.0), ..Host::default() },
        gpus,
        pci,
        ib_ports: (0..8).map(port).collect(),
        edac: vec![MemoryController { name: "mc0".into(), dimms: vec![dimm], ..MemoryController::default() }],
        nvme: vec![NvmeDrive {
            name: "nvme0".into(),
            state: Some("live".into()),
            smart: Some(NvmeSmart {
                percentage_used: Some(3),
                media_errors: Some(0),
                ..NvmeSmart::default()
            }),
            ..NvmeDrive::default()
        }],
        clock: ClockSync {
            synchronised: Some(true),
            clocksource: Some("tsc".into()),
            ..ClockSync::default()
        },
        sources: ["nvml", "pci", "infiniband"]
            .map(|name| SourceStatus {
                name: name.into(),
                state: SourceState::Ok,
                detail: String::new(),
                code: None,
                took_ms: 1,
            })
            .to_vec(),
        ..Facts::default()
    }
}

#[test]
fn a_healthy_blade_has_no_findings() {
    assert_eq!(findings(&blade(), &table()), []);
}

#[test]
fn a_blade_without_gpus_and_without_a_driver_has_no_findings() {
    let mut facts = blade();
    facts.gpus.clear();
    facts.pci.clear();
    facts.sources[0].state = SourceState::Absent;
    assert_eq!(findings(&facts, &table()), []);
}

/// Breaks one thing of a healthy blade: exactly this finding must follow, at this device, with this action.
#[track_caller]
fn broken(
    code: &str,
    who: Option<&str>,
    severity: Severity,
    action: Action,
    break_it: impl FnOnce(&mut Facts),
) {
    let mut facts = blade();
    break_it(&mut facts);
    let found = findings(&facts, &table());
    let Some(finding) = found.iter().find(|finding| finding.code == code) else {
        panic!("no {code} in {found:#?}");
    };
    assert_eq!(finding.device.as_ref().map(DeviceId::as_str), who, "{finding:?}");
    assert_eq!((finding.severity, finding.action), (severity, action), "{finding:?}");
    let graver = found.iter().filter(|other| other.code != code && other.severity >= Warning);
    assert_eq!(graver.collect::<Vec<_>>(), Vec::<&Finding>::new(), "more than {code} was found");
}

use Severity::{Fault, Info, Warning};

#[test]
fn gpu_memory() {
    let who = Some("GPU-3");
    broken("ecc-uncorrectable", who, Fault, Action::ResetGpu, |f| {
        f.gpus[3].ecc.volatile.dram.uncorrected = Some(1)
    });
    broken("ecc-uncorrectable", who, Fault, Action::ResetGpu, |f| {
        f.gpus[3].ecc.volatile.total.uncorrected = Some(1)
    });
    broken("ecc-uncorrectable-history", who, Info, Action::None, |f| {
        f.gpus[3].ecc.aggregate.dram.uncorrected = Some(1);
    });
    broken("ecc-sram-threshold", who, Fault, Action::Replace, |f| {
        f.gpus[3].ecc.sram_threshold_exceeded = Some(true)
    });
    broken("ecc-correctable", who, Info, Action::None, |f| f.gpus[3].ecc.volatile.dram.corrected = Some(20));
    // 24 hours: a rate of 100 an hour, then of 5000.
    broken("ecc-correctable-rate", who, Warning, Action::DrainAndTest, |f| {
        f.gpus[3].ecc.volatile.dram.corrected = Some(2400);
    });
    broken("ecc-correctable-rate", who, Fault, Action::DrainAndTest, |f| {
        f.gpus[3].ecc.volatile.dram.corrected = Some(120_000);
    });
    broken("ecc-off", who, Warning, Action::ResetGpu, |f| {
        f.gpus[3].ecc.enabled = Some(false);
        f.gpus[3].ecc.pending_enabled = Some(false);
    });
    broken("ecc-mode-pending", who, Warning, Action::ResetGpu, |f| {
        f.gpus[3].ecc.pending_enabled = Some(false)
    });
    let rows = |change: fn(&mut RemappedRows)| {
        move |f: &mut Facts| change(f.gpus[3].remapped_rows.as_mut().unwrap())
    };
    broken("row-remap-pending", who, Fault, Action::ResetGpu, rows(|rows| rows.pending = true));
    broken("row-remap-failure", who, Fault, Action::Replace, rows(|rows| rows.failure = true));
    broken("row-remap-uncorrectable", who, Warning, Action::None, rows(|rows| rows.uncorrected = 2));
    broken(
        "row-remap-no-spares",
        who,
        Warning,
        Action::ContactSupport,
        rows(|rows| rows.histogram = Some(RemapHistogram { none: 1, max: 639, ..RemapHistogram::default() })),
    );
    broken("retired-pages", who, Fault, Action::Replace, |f| {
        f.gpus[3].retired_pages = Some(RetiredPages { single_bit: 9, double_bit: 2, pending: Some(false) });
    });
    broken("retired-pages-pending", who, Warning, Action::Reboot, |f| {
        f.gpus[3].retired_pages = Some(RetiredPages { single_bit: 1, double_bit: 0, pending: Some(true) });
    });
}

#[test]
fn gpu_heat_and_clocks() {
    let who = Some("GPU-1");
    broken("thermal-margin", who, Fault, Action::DrainAndTest, |f| f.gpus[1].thermal.margin_c = Some(-2));
    broken("thermal-margin", who, Fault, Action::DrainAndTest, |f| {
        // A100: no margin, a temperature.
        f.gpus[1].thermal = Thermal { gpu_c: Some(93), slowdown_c: Some(92), ..Thermal::default() };
    });
    broken("thermal-memory", who, Fault, Action::DrainAndTest, |f| f.gpus[1].thermal.memory_c = Some(95));
    let reasons =
        |list: &'static [ClockReason]| move |f: &mut Facts| f.gpus[1].clocks.event_reasons = list.to_vec();
    use ClockReason::*;
    broken("throttle-thermal", who, Fault, Action::DrainAndTest, reasons(&[HwSlowdown, HwThermalSlowdown]));
    broken("throttle-power-brake", who, Fault, Action::ContactSupport, reasons(&[HwSlowdown, HwPowerBrake]));
    broken("throttle-hw", who, Fault, Action::DrainAndTest, reasons(&[HwSlowdown]));
    broken("throttle-thermal-sw", who, Warning, Action::DrainAndTest, reasons(&[SwThermalSlowdown]));
    let mut facts = blade();
    reasons(&[SwPowerCap, ApplicationClocks])(&mut facts);
    assert_eq!(findings(&facts, &table()), [], "a GPU at its power limit is healthy");
    broken("power-limit-low", who, Warning, Action::None, |f| {
        f.gpus[1].power.enforced_limit_w = Some(500.0);
        f.gpus[1].power.default_limit_w = Some(700.0);
    });
}

#[test]
fn gpu_links() {
    let who = Some("GPU-5");
    broken("nvlink-down", who, Fault, Action::CheckLink, |f| f.gpus[5].nvlinks[7].up = Some(false));
    broken("nvlink-down", who, Fault, Action::CheckLink, |f| {
        f.gpus[5].nvlinks.iter_mut().for_each(|link| link.up = Some(false));
    });
    broken("nvlink-missing", who, Fault, Action::CheckLink, |f| drop(f.gpus[5].nvlinks.pop()));
    broken("nvlink-speed", who, Fault, Action::CheckLink, |f| f.gpus[5].nvlinks[2].speed_mbps = Some(13281));
    broken("nvlink-errors", who, Info, Action::None, |f| {
        _ = f.gpus[5].nvlinks[2].errors.insert("replay".into(), 3)
    });
    broken("nvlink-errors", who, Fault, Action::CheckLink, |f| {
        f.gpus[5].nvlinks[2].errors.insert("crc_flit".into(), 5000);
    });
    let fabric = |change: fn(&mut Fabric)| move |f: &mut Facts| change(f.gpus[5].fabric.as_mut().unwrap());
    let mask = |mask: u32| {
        move |f: &mut Facts| {
            let fabric = f.gpus[5].fabric.as_mut().unwrap();
            (fabric.health_mask, fabric.health) = (Some(mask), Some(FabricHealth::decode(mask)));
        }
    };
    broken("fabric-degraded", who, Fault, Action::CheckLink, mask(0x1a9));
    broken("fabric-degraded", who, Fault, Action::CheckLink, mask(0x19a));
    broken("fabric-recovering", who, Warning, Action::DrainAndTest, mask(0x1a6));
    broken("fabric-misconfigured", who, Fault, Action::ContactSupport, mask(0x5aa));
    broken(
        "fabric-degraded",
        who,
        Fault,
        Action::CheckLink,
        fabric(|f| f.summary = Some(FabricSummary::Unhealthy)),
    );
    broken("fabric-failed", who, Fault, Action::Reboot, fabric(|f| f.status = 999));
    broken("fabric-split", who, Fault, Action::ContactSupport, fabric(|f| f.clique_id = Some(2)));
    broken("fabric-incomplete", who, Fault, Action::Reboot, fabric(|f| f.state = FabricState::InProgress));
    broken("fabric-incomplete", who, Warning, Action::None, |f| {
        f.host.uptime_s = Some(120.0);
        f.gpus[5].fabric.as_mut().unwrap().state = FabricState::InProgress;
    });
    broken("fabric-incomplete", who, Fault, Action::Reboot, |f| f.gpus[5].fabric = None);
}

#[test]
fn cards_without_bridges_are_healthy_and_one_broken_link_among_cards_is_not() {
    let mut facts = blade();
    for gpu in &mut facts.gpus {
        gpu.name = Some("NVIDIA Example PCIe".into());
        gpu.fabric = None;
        gpu.nvlinks.iter_mut().for_each(|link| link.up = Some(false));
    }
    let found = findings(&facts, &table());
    assert!(found.iter().all(|f| f.severity == Info && f.code == "nvlink-unused"), "{found:?}");
    facts.gpus[0].nvlinks[0].up = Some(true);
    let found = findings(&facts, &table());
    assert!(found.iter().any(|f| f.severity == Fault && f.code == "nvlink-down"), "{found:?}");
}

#[test]
fn pcie() {
    let who = Some("GPU-7");
    broken("pcie-width", who, Fault, Action::CheckLink, |f| f.gpus[7].pcie.width = Some(8));
    broken("pcie-width", who, Fault, Action::CheckLink, |f| {
        // The slot itself came up narrow: NVML calls that its maximum.
        (f.gpus[7].pcie.width, f.gpus[7].pcie.max_width) = (Some(8), Some(8));
    });
    broken("pcie-generation", who, Fault, Action::CheckLink, |f| {
        f.gpus[7].pcie.generation = Some(3);
        f.gpus[7].utilization.gpu_percent = Some(98);
    });
    broken("pcie-generation-idle", who, Info, Action::None, |f| {
        f.gpus[7].pcie.generation = Some(1);
        f.gpus[7].clocks.event_reasons = vec![ClockReason::GpuIdle];
    });
    broken("pcie-generation", who, Fault, Action::CheckLink, |f| {
        // Idle, but it could do no better under load either.
        (f.gpus[7].pcie.generation, f.gpus[7].pcie.max_generation) = (Some(3), Some(3));
        f.gpus[7].clocks.event_reasons = vec![ClockReason::GpuIdle];
    });
    broken("pcie-replays", who, Info, Action::None, |f| f.gpus[7].pcie.replays = Some(12));
    broken("pcie-replays", who, Fault, Action::CheckLink, |f| f.gpus[7].pcie.replays = Some(100_000));
    broken("pcie-aer-uncorrectable", who, Fault, Action::CheckLink, |f| {
        f.pci[7].aer_non_fatal.insert("CmpltTO".into(), 1);
    });
    broken("pcie-aer-correctable", who, Info, Action::None, |f| {
        _ = f.pci[7].aer_correctable.insert("RxErr".into(), 9)
    });
    let mut facts = blade();
    facts.pci[7].aer_non_fatal = [("UnsupReq".to_owned(), 3), ("TOTAL_ERR_NONFATAL".to_owned(), 3)].into();
    assert_eq!(findings(&facts, &table()), [], "requests made while looking around at boot are no errors");
    let nic = |id: &str, kind| PciDevice {
        address: "0000:c0:00.0".into(),
        kind,
        id: id.into(),
        link: PciLink {
            speed_gts: Some(32.0),
            width: Some(8),
            max_speed_gts: Some(32.0),
            max_width: Some(16),
        },
        ..PciDevice::default()
    };
    let at = Some("0000:c0:00.0");
    broken("pcie-width", at, Fault, Action::CheckLink, |f| f.pci.push(nic("15b3:1021", PciKind::Nic)));
    broken("pcie-width", at, Warning, Action::CheckLink, |f| f.pci.push(nic("144d:a824", PciKind::Nvme)));
    broken("pcie-width", at, Info, Action::None, |f| f.pci.push(nic("8086:1521", PciKind::Nic)));
    let mut facts = blade();
    facts.pci.push(PciDevice {
        parent_max: PciLinkMax { speed_gts: Some(32.0), width: Some(8) },
        ..nic("15b3:1021", PciKind::Nic)
    });
    assert_eq!(findings(&facts, &table()), [], "a slot of eight lanes is used to the full");
}

#[test]
fn gpus_that_are_gone_or_do_not_answer() {
    let gap = |kind, uuid: Option<&str>, pci: Option<&str>| {
        let gap = GpuGap {
            index: 2,
            uuid: uuid.map(|uuid| DeviceId::new(uuid).unwrap()),
            pci: pci.map(str::to_owned),
            kind,
            detail: "planted".into(),
        };
        move |f: &mut Facts| {
            f.gpus.remove(2);
            f.gpu_gaps.push(gap);
        }
    };
    let (who, pci) = (Some("GPU-2"), Some("0000:19:00.0"));
    broken("gpu-lost", who, Fault, Action::Reboot, gap(GapKind::Lost, who, pci));
    broken("gpu-needs-reset", who, Fault, Action::ResetGpu, gap(GapKind::ResetRequired, who, pci));
    broken("source-timeout", who, Warning, Action::Reboot, gap(GapKind::Timeout, who, pci));
    broken("nvml-no-permission", who, Warning, Action::None, gap(GapKind::NoPermission, who, pci));
    // Nothing is known of it but that it is one of those on the bus.
    broken("gpu-lost", None, Fault, Action::Reboot, gap(GapKind::Lost, None, None));
    broken("gpu-missing", pci, Fault, Action::Reboot, |f| drop(f.gpus.remove(2)));
    broken("gpu-other-driver", pci, Info, Action::None, |f| {
        f.gpus.remove(2);
        f.pci[2].driver = Some("vfio-pci".into());
    });
    broken("gpu-lost", who, Fault, Action::Reboot, |f| f.pci[2].config_readable = Some(false));
}

#[test]
fn sources_that_say_nothing() {
    let nvml = |state, code: Option<&'static str>| {
        move |f: &mut Facts| {
            f.gpus.clear();
            f.sources[0] = SourceStatus { code: code.map(str::to_owned), state, ..f.sources[0].clone() };
        }
    };
    use SourceState::*;
    broken("source-timeout", None, Warning, Action::Reboot, nvml(Timeout, None));
    broken("source-error", None, Warning, Action::Reboot, nvml(Error, None));
    broken(
        "nvml-version-mismatch",
        None,
        Warning,
        Action::Reboot,
        nvml(Error, Some("nvml-version-mismatch")),
    );
    broken("nvml-no-permission", None, Warning, Action::None, nvml(Error, Some("nvml-no-permission")));
    broken("gpu-without-driver", None, Warning, Action::UpdateSoftware, nvml(Absent, None));
    for code in ["source-timeout", "source-error", "gpu-without-driver"] {
        assert!(GAP_CODES.contains(&code));
    }
}

#[test]
fn odd_parts_of_a_blade() {
    broken("mixed-vbios", Some("GPU-4"), Warning, Action::UpdateSoftware, |f| {
        f.gpus[4].identity.vbios = Some("96.00.74.00.01".into());
    });
    broken("mixed-gpu-memory", Some("GPU-4"), Warning, Action::DrainAndTest, |f| {
        f.gpus[4].memory.total_mib = Some(65_247);
    });
    broken("mixed-microcode", None, Warning, Action::UpdateSoftware, |f| {
        f.cpu.microcode = vec!["0x1".into(), "0x2".into()];
    });
    broken("mixed-nic-firmware", Some("mlx5_6"), Warning, Action::UpdateSoftware, |f| {
        f.ib_ports[6].firmware = Some("28.39.1002".into());
    });
    broken("persistence-off", Some("GPU-0"), Warning, Action::None, |f| {
        f.gpus[0].modes.persistence = Some(false)
    });
    broken("compute-prohibited", Some("GPU-0"), Warning, Action::None, |f| {
        f.gpus[0].modes.compute = Some("prohibited".into());
    });
    broken("mig-on", Some("GPU-0"), Info, Action::None, |f| f.gpus[0].modes.mig = Some(true));
    broken("foreign-processes", Some("GPU-0"), Info, Action::None, |f| {
        f.gpus[0].processes.push(GpuProcess { pid: 7, name: None, memory_mib: None, kind: "compute".into() });
    });
    broken("gpu-recovery-needed", Some("GPU-0"), Fault, Action::Reboot, |f| {
        f.gpus[0].recovery_action = Some(RecoveryAction::NodeReboot);
    });
    broken("gpu-repair-pending", Some("GPU-0"), Fault, Action::ResetGpu, |f| {
        f.gpus[0].repair_pending = Some(RepairPending { channel: false, tpc: true });
    });
    broken("inforom-corrupt", Some("GPU-0"), Fault, Action::ContactSupport, |f| {
        f.gpus[0].inforom_valid = Some(false)
    });
    broken("nvml-call-failed", Some("GPU-0"), Info, Action::None, |f| {
        f.gpus[0].unanswered = vec!["power_usage: an internal driver error occurred".into()];
    });
}

#[test]
fn ports_of_the_network() {
    let who = Some("mlx5_4/1");
    broken("ib-port-down", who, Fault, Action::CheckLink, |f| f.ib_ports[4].state = Some("DOWN".into()));
    broken("ib-port-down", who, Info, Action::None, |f| {
        // The only one of its board: nothing says that it was meant to be used.
        f.ib_ports[4].state = Some("DOWN".into());
        f.ib_ports[4].board_id = Some("MT_0000000884".into());
    });
    broken("ib-port-rate", who, Fault, Action::CheckLink, |f| f.ib_ports[4].rate_gbps = Some(200.0));
    broken("ib-link-downed", who, Warning, Action::CheckLink, |f| {
        f.ib_ports[4].counters.insert("link_downed".into(), 1);
    });
    broken("ib-symbol-errors", who, Fault, Action::CheckLink, |f| {
        f.ib_ports[4].counters.insert("symbol_error".into(), 24 * 121);
    });
}

#[test]
fn the_host() {
    broken("edac-uncorrectable", Some("mc0/dimm0"), Fault, Action::Replace, |f| {
        f.edac[0].dimms[0].uncorrected = Some(1);
    });
    broken("edac-uncorrectable", Some("mc0"), Fault, Action::Replace, |f| f.edac[0].uncorrected = Some(1));
    broken("edac-correctable", Some("mc0/dimm0"), Info, Action::None, |f| {
        f.edac[0].dimms[0].corrected = Some(9)
    });
    broken("edac-correctable", Some("mc0/dimm0"), Warning, Action::DrainAndTest, |f| {
        f.edac[0].dimms[0].corrected = Some(11);
    });
    broken("nvme-state", Some("nvme0"), Fault, Action::Replace, |f| f.nvme[0].state = Some("dead".into()));
    broken("nvme-state", Some("nvme0"), Warning, Action::DrainAndTest, |f| {
        f.nvme[0].state = Some("resetting".into())
    });
    let smart = |change: fn(&mut NvmeSmart)| move |f: &mut Facts| change(f.nvme[0].smart.as_mut().unwrap());
    broken("nvme-critical-warning", Some("nvme0"), Fault, Action::Replace, smart(|s| s.critical_warning = 4));
    broken("nvme-wear", Some("nvme0"), Warning, Action::Replace, smart(|s| s.percentage_used = Some(81)));
    broken(
        "nvme-media-errors",
        Some("nvme0"),
        Warning,
        Action::DrainAndTest,
        smart(|s| s.media_errors = Some(1)),
    );
    broken("clock-unsynchronised", None, Warning, Action::None, |f| f.clock.synchronised = Some(false));
    broken("clocksource-fallback", None, Warning, Action::DrainAndTest, |f| {
        f.clock.clocksource = Some("hpet".into())
    });
    broken("memory-hardware-corrupted", None, Warning, Action::Replace, |f| {
        f.memory.hardware_corrupted_mib = Some(1)
    });
    broken("cpu-offline", None, Info, Action::None, |f| f.cpu.offline = Some(2));
    broken("cpu-throttled", None, Info, Action::None, |f| f.cpu.package_throttle_count = Some(2));
}

#[test]
fn gravest_come_first() {
    let mut facts = blade();
    facts.cpu.offline = Some(1);
    facts.clock.synchronised = Some(false);
    facts.gpus[0].ecc.volatile.dram.uncorrected = Some(1);
    let order: Vec<Severity> = findings(&facts, &table()).iter().map(|finding| finding.severity).collect();
    assert_eq!(order, [Fault, Warning, Info]);
}

#[track_caller]
fn grown(code: &str, severity: Severity, seconds: f64, change: impl FnOnce(&mut Facts)) {
    let before = blade();
    let mut after = blade();
    change(&mut after);
    let found = deltas(&Counters::of(&before), &Counters::of(&after), seconds, Some("hgx-h100"), &table());
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((found[0].code.as_str(), found[0].severity), (code, severity), "{found:?}");
}

#[test]
fn what_counts_up_is_judged_by_its_rate() {
    // The storm of a degrading HBM stack (4,647 a second), and one single error.
    grown("ecc-correctable-rate", Fault, 180.0, |f| f.gpus[0].ecc.volatile.dram.corrected = Some(836_460));
    grown("ecc-correctable-rate", Info, 180.0, |f| f.gpus[0].ecc.volatile.dram.corrected = Some(1));
    grown("ecc-correctable-rate", Warning, 180.0, |f| f.gpus[0].ecc.volatile.dram.corrected = Some(2));
    // Two looks a second apart: no rate is taken over less than a minute.
    grown("ecc-correctable-rate", Warning, 1.0, |f| f.gpus[0].ecc.volatile.dram.corrected = Some(1));
    grown("ecc-uncorrectable", Fault, 180.0, |f| f.gpus[0].ecc.volatile.sram.uncorrected = Some(1));
    grown("row-remap-pending", Fault, 180.0, |f| f.gpus[0].remapped_rows.as_mut().unwrap().pending = true);
    grown("nvlink-down", Fault, 180.0, |f| f.gpus[0].nvlinks[1].up = Some(false));
    grown("nvlink-errors", Fault, 180.0, |f| _ = f.gpus[0].nvlinks[1].errors.insert("replay".into(), 50));
    grown("pcie-replays", Warning, 180.0, |f| f.gpus[0].pcie.replays = Some(10));
    grown("pcie-aer-uncorrectable", Fault, 180.0, |f| _ = f.pci[0].aer_fatal.insert("DLP".into(), 1));
    grown("edac-uncorrectable", Fault, 180.0, |f| f.edac[0].dimms[0].uncorrected = Some(1));
    let same = Counters::of(&blade());
    assert_eq!(deltas(&same, &same, 60.0, None, &table()), []);
}

#[test]
fn a_counter_that_was_reset_counts_from_zero() {
    let mut before = blade();
    before.gpus[0].ecc.volatile.dram.corrected = Some(1_000_000);
    let mut after = blade();
    after.gpus[0].ecc.volatile.dram.corrected = Some(1);
    let found = deltas(&Counters::of(&before), &Counters::of(&after), 3600.0, None, &table());
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].severity, Info, "one error in an hour, not a huge number: {found:?}");
}

#[test]
fn counters_read_back_from_their_json() {
    let counters = Counters::of(&blade());
    assert!(counters.iter().count() > 50);
    let text = serde_json::to_string(&counters).unwrap();
    assert_eq!(serde_json::from_str::<Counters>(&text).unwrap(), counters);
}

#[test]
fn a_gpu_or_drive_that_was_there_is_missed() {
    let before = blade();
    let mut after = blade();
    after.gpus.remove(1);
    after.nvme.clear();
    let found: Vec<String> =
        vanished(&before, &after, &table()).into_iter().map(|finding| finding.code).collect();
    assert_eq!(found, ["gpu-lost", "nvme-lost"]);
    assert_eq!(vanished(&before, &before, &table()), []);
    after.sources[0].state = SourceState::Timeout;
    after.nvme = before.nvme.clone();
    assert_eq!(vanished(&before, &after, &table()), [], "a library that hangs says nothing about its GPUs");
}

#[test]
fn samples_under_load() {
    let sample = |second: i64, reasons: &[ClockReason], margin: i32, generation: u32| {
        let mut gpu = gpu(0);
        gpu.clocks.event_reasons = reasons.to_vec();
        gpu.thermal.margin_c = Some(margin);
        gpu.pcie.generation = Some(generation);
        gpu.utilization.gpu_percent = Some(if second == 0 { 0 } else { 100 });
        GpuSample::of(&gpu, second * 1000)
    };
    let slow = [ClockReason::HwSlowdown, ClockReason::HwThermalSlowdown];
    let healthy: Vec<GpuSample> =
        (0..180).map(|s| sample(s, &[ClockReason::SwPowerCap], 10, if s == 0 { 1 } else { 5 })).collect();
    assert_eq!(throttling(&healthy, Some(5), Some("hgx-h100"), &table()), []);
    let codes = |samples: &[GpuSample]| -> Vec<(String, Severity)> {
        let found = throttling(samples, Some(5), Some("hgx-h100"), &table());
        found.into_iter().map(|finding| (finding.code, finding.severity)).collect()
    };
    let hot: Vec<GpuSample> =
        (0..180).map(|s| sample(s, if s % 40 > 30 { &slow } else { &[] }, 3, 5)).collect();
    assert_eq!(codes(&hot), [("throttle-hw".to_owned(), Fault)]);
    let at_limit: Vec<GpuSample> = (0..180).map(|s| sample(s, &[], -4, 5)).collect();
    assert_eq!(codes(&at_limit), [("thermal-margin".to_owned(), Fault)]);
    let narrow: Vec<GpuSample> = (0..180).map(|s| sample(s, &[], 10, 3)).collect();
    assert_eq!(codes(&narrow), [("pcie-generation".to_owned(), Fault)]);
}

/// `docs/findings.md` lists every code that a rule can give, and no other.
#[test]
fn the_page_lists_every_code() {
    let sources = [
        include_str!("source.rs"),
        include_str!("blade.rs"),
        include_str!("bus.rs"),
        include_str!("counters.rs"),
        include_str!("gpu.rs"),
        include_str!("host.rs"),
        include_str!("link.rs"),
        include_str!("mod.rs"),
        include_str!("ports.rs"),
    ];
    // A code is a string of words with dashes; nothing else in the rules looks like that.
    let is_code = |text: &str| {
        text.contains('-')
            && text.split('-').all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase()))
    };
    let not_codes = ["vfio-pci", "read-only", "peer-to-peer"];
    let said: std::collections::BTreeSet<&str> = sources
        .iter()
        .flat_map(|source| source.split('"').skip(1).step_by(2))
        .filter(|text| is_code(text) && !not_codes.contains(text))
        .collect();
    let page = include_str!("../../../docs/findings.md");
    let listed: std::collections::BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(said.len() > 60, "the rules were not understood: {said:?}");
    assert_eq!(said.difference(&listed).collect::<Vec<_>>(), Vec::<&&str>::new(), "not on the page");
    assert_eq!(
        listed.difference(&said).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "on the page, given by no rule"
    );
}
