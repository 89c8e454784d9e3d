//! Lines as the kernel and its drivers print them, in the many shapes that logs give them; all composed for this test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests; the lint exempts only the tests themselves

use whetstone_model::action::{Action, Severity};
use whetstone_model::fault::{Classifier, Fault, Rules, classify};

/// `kind code device` of a line, or `-`.
fn told(line: &str) -> String {
    classify(line, None).map_or_else(
        || "-".to_owned(),
        |f| format!("{} {} {}", f.kind, f.code, f.device.as_ref().map_or("-", |d| d.as_str())),
    )
}

#[track_caller]
fn all(cases: &[(&str, &str)]) {
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|(line, wanted)| {
            let got = told(line);
            (got != *wanted).then(|| format!("{line:?}: {got}, not {wanted}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn xid_in_every_shape() {
    all(&[
        ("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", "xid 79 0000:3b:00"),
        (
            "NVRM: Xid (PCI:0000:3b:00.0): 79, pid=7, name=a b, GPU has fallen off the bus.",
            "xid 79 0000:3b:00.0",
        ),
        ("NVRM: Xid (0000:3B:00): 79, GPU has fallen off the bus.", "xid 79 0000:3b:00"),
        ("NVRM: Xid (PCI:0000:3b:00): 79", "xid 79 0000:3b:00"),
        ("NVRM: Xid (PCI:0000:3b:00): 79 GPU has fallen off the bus", "xid 79 0000:3b:00"),
        ("NVRM: Xid  (PCI: 0000:3b:00) : 79, x", "xid 79 0000:3b:00"),
        ("NVRM: Xid (PCI:00000000:3b:00.0): 79, x", "xid 79 0000:3b:00.0"),
        ("NVRM: Xid (PCI:0000:41:00 GPU-I:03): 43, pid=77, name=python", "xid 43 0000:41:00"),
        ("NVRM: Xid (PCI:0000:41:00 GPU-I:05 GPU-CI:00): 94, pid=77, name=python", "xid 94 0000:41:00"),
        ("\tNVRM:\tXid (PCI:0000:3b:00): 48, DBE", "xid 48 0000:3b:00"),
        ("3,1234,56789012,-;NVRM: Xid (PCI:0000:3b:00): 48, pid=1, x", "xid 48 0000:3b:00"),
        ("Nov 22 06:57:02 b-003 kernel: NVRM: Xid (PCI:0000:3b:00): 48, x", "xid 48 0000:3b:00"),
        (
            "2026-11-22T06:57:02.123456+00:00 b-003 kernel: [ 99.123456] NVRM: Xid (PCI:0000:3b:00): 48",
            "xid 48 0000:3b:00",
        ),
        ("b-003 NVRM: Xid (PCI:0000:3b:00): 48, x", "xid 48 0000:3b:00"),
        // Torn by another CPU's line: both halves are looked at.
        (
            "[    1.000001] usb 1-1: new high[    1.000002] NVRM: Xid (PCI:0000:3b:00): 48, x",
            "xid 48 0000:3b:00",
        ),
        (
            "[    1.000001] NVRM: Xid (PCI:0000:3b:00): 13, x[    1.000002] NVRM: Xid (PCI:0000:5e:00): 79, y",
            "xid 79 0000:5e:00",
        ),
    ]);
}

#[test]
fn a_gpu_off_the_bus_without_its_number() {
    all(&[
        ("NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.", "xid 79 0000:3b:00.0"),
        ("NVRM: GPU at PCI:0000:3b:00: GPU-00 has fallen off the bus", "xid 79 0000:3b:00"),
        (
            "NVRM: The NVIDIA GPU 0000:B3:00.0 (PCI ID: 10de:26b5) installed in this system has fallen off the bus and is not responding to commands.",
            "xid 79 0000:b3:00.0",
        ),
        (
            "3,7,9123456,-;NVRM: The NVIDIA GPU 0000:b3:00.0\\x0aNVRM: (PCI ID: 10de:26b5) installed in this system has\\x0aNVRM: fallen off the bus and is not responding to commands.",
            "xid 79 0000:b3:00.0",
        ),
        // The number that is printed wins.
        ("NVRM: Xid (PCI:0000:3b:00): 31, GPU has fallen off the bus", "xid 31 0000:3b:00"),
        ("my application has fallen off the bus", "-"),
    ]);
    let mut classifier = Classifier::new(Rules::builtin().unwrap(), None);
    let lines = [
        "[ 1843.308145] NVRM: The NVIDIA GPU 0000:b3:00.0",
        "               NVRM: (PCI ID: 10de:26b5) installed in this system has",
        "[ 1843.308150] usb 1-1: something in between",
        "               NVRM: fallen off the bus and is not responding to commands.",
        "NVRM: fallen off the bus and is not responding to commands.",
    ];
    let found: Vec<Option<Fault>> = lines.iter().map(|line| classifier.line(line)).collect();
    assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, false, true, true]);
    let devices: Vec<Option<String>> =
        found.into_iter().flatten().map(|f| f.device.map(String::from)).collect();
    assert_eq!(
        devices,
        [Some("0000:b3:00.0".to_owned()), None],
        "a name is used once, and not for a later message"
    );
    // The same first line begins another message too.
    let mut other = Classifier::new(Rules::builtin().unwrap(), None);
    for line in [
        "NVRM: The NVIDIA GPU 0000:b3:00.0 (PCI ID: 10de:1234)",
        "NVRM: installed in this system is not supported",
    ] {
        assert_eq!(other.line(line), None);
    }
}

#[test]
fn network_adapters() {
    all(&[
        (
            "mlx5_core 0000:12:00.0: mlx5_pcie_event:301:(pid 12): Detected insufficient power on the PCIe slot (27W).",
            "mlx5 pci_power_insufficient 0000:12:00.0",
        ),
        ("mlx5_core: Detected insufficient power on the PCIe slot (9W).", "mlx5 pci_power_insufficient -"),
        (
            "mlx5_core 0000:12:00.0: Port module event[error]: module 1, Cable error, High Temperature",
            "mlx5 port_module_high_temp 0000:12:00.0",
        ),
        (
            "mlx5_core 0000:12:00.0: Port module event[error]: module 1, Cable error, Bad or shorted cable/module",
            "mlx5 port_module_error 0000:12:00.0",
        ),
        (
            "mlx5_core 0000:12:00.0: Port module event[error]: module 1, Cable error, Power budget exceeded",
            "mlx5 port_module_error 0000:12:00.0",
        ),
        ("mlx5_core 0000:12:00.0: Port module event: module 0, Cable plugged", "-"),
        (
            "mlx5_core 0000:12:00.0: Port module event: module 0, Cable unplugged",
            "mlx5 module_unplugged 0000:12:00.0",
        ),
        (
            "mlx5_core 0000:12:00.0: wait_func:1195:(pid 100): QUERY_VPORT_STATE(0x750) timeout. Will cause a leak of a command resource",
            "mlx5 cmd_exec_timeout 0000:12:00.0",
        ),
        (
            "mlx5_core 0000:12:00.0: poll_health:840:(pid 0): device's health compromised - reached miss count",
            "mlx5 health_poll_failed 0000:12:00.0",
        ),
        (
            "mlx5_core 0000:12:00.0: print_health_info:500:(pid 0): synd 0x8: unrecoverable hardware error",
            "mlx5 unrecoverable_err 0000:12:00.0",
        ),
        ("mlx5_core: INFO: synd 0x8: unrecoverable hardware error.", "mlx5 unrecoverable_err -"),
        (
            "mlx5_core 0000:12:00.0: print_health_info:500:(pid 0): synd 0x1: firmware internal error",
            "mlx5 firmware_error 0000:12:00.0",
        ),
        ("mlx5_core 0000:12:00.0: print_health_info:500:(pid 0): synd 0x0: unrecognized error", "-"),
        (
            "mlx5_core 0000:12:00.0: mlx5_cmd_out_err:808:(pid 33): ACCESS_REG(0x805) op_mod(0x1) failed, status bad resource(0x5)",
            "mlx5 access_reg_failed 0000:12:00.0",
        ),
        ("mlx5_cmd_out_err:808:(pid 33): ACCESS_REG(0x805) op_mod(0x0) failed", "mlx5 access_reg_failed -"),
        (
            "NETDEV WATCHDOG: ens1f0np0 (mlx5_core): transmit queue 12 timed out 5123 ms",
            "mlx5 netdev_watchdog -",
        ),
        ("NETDEV WATCHDOG: eth0 (virtio_net): transmit queue 0 timed out", "-"),
        ("mlx5_core 0000:12:00.0 ens1f0np0: TX timeout detected", "mlx5 netdev_watchdog 0000:12:00.0"),
        (
            "mlx5_core 0000:12:00.0: temp_warn:167:(pid 0): High temperature on sensors with bit set 0 1",
            "mlx5 high_temperature 0000:12:00.0",
        ),
        ("mlx5_core 0000:12:00.0: firmware version: 28.39.1002", "-"),
        ("mlx5_core 0000:12:00.0: 252.048 Gb/s available PCIe bandwidth (16.0 GT/s PCIe x16 link)", "-"),
        ("mlx5_core 0000:12:00.0: Rate limit: 127 rates are supported, range: 0Mbps to 97656Mbps", "-"),
    ]);
}

#[test]
fn ports_that_come_and_go() {
    all(&[
        ("Aug 17 06:18:01 b-003 systemd-networkd[5398]: ib6: Lost carrier", "ib_link lost_carrier -"),
        ("Aug 17 06:18:01 b-003 systemd-networkd[5398]: ibp12s0: lost carrier", "ib_link lost_carrier -"),
        ("Aug 17 06:18:01 b-003 systemd-networkd[5398]: ib6: Gained carrier", "ib_link gained_carrier -"),
        ("Aug 17 06:18:01 b-003 systemd-networkd[5398]: cali1234: Lost carrier", "-"),
        ("[ 9123.456789] mlx5_core 0000:12:00.0 ens1f0np0: Link down", "ib_link link_down 0000:12:00.0"),
        (
            "[ 9123.456789] mlx5_core 0000:12:00.0: mlx5_0: Port: 1 Link DOWN",
            "ib_link link_down 0000:12:00.0",
        ),
        ("6,1,9123456789,-;mlx5_core 0000:12:00.0 ens1f0np0: Link down", "ib_link link_down 0000:12:00.0"),
        // While the machine boots links come and go.
        ("[   23.456789] mlx5_core 0000:12:00.0 ens1f0np0: Link down", "-"),
        ("6,1,23456789,-;mlx5_core 0000:12:00.0 ens1f0np0: Link down", "-"),
        ("[ 9123.456789] mlx5_core 0000:12:00.0 ens1f0np0: Link up", "-"),
        ("ata5: SATA link down (SStatus 0 SControl 300)", "-"),
        ("IPv6: ADDRCONF(NETDEV_CHANGE): ib0: link becomes ready", "-"),
    ]);
}

#[test]
fn pcie_and_machine_checks() {
    all(&[
        (
            "pcieport 0000:00:01.0: AER: Corrected error received: 0000:01:00.0",
            "pcie_aer corrected 0000:01:00.0",
        ),
        (
            "pcieport 0000:00:01.0: AER: Multiple Corrected error received: 0000:01:00.0",
            "pcie_aer corrected 0000:01:00.0",
        ),
        (
            "pcieport 0000:00:01.0: AER: Correctable error message received from 0000:01:00.0",
            "pcie_aer corrected 0000:01:00.0",
        ),
        ("pcieport 0000:00:01.0: AER: Corrected error received: id=00e0", "pcie_aer corrected 0000:00:01.0"),
        (
            "nvme 0000:01:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID)",
            "pcie_aer corrected 0000:01:00.0",
        ),
        (
            "pcieport 0000:00:01.0: AER: Uncorrected (Non-Fatal) error received: 0000:01:00.0",
            "pcie_aer nonfatal 0000:01:00.0",
        ),
        (
            "mlx5_core 0000:01:00.0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer, (Requester ID)",
            "pcie_aer nonfatal 0000:01:00.0",
        ),
        (
            "pcieport 0000:00:01.0: AER: Uncorrectable (Fatal) error message received from 0000:01:00.0",
            "pcie_aer fatal 0000:01:00.0",
        ),
        (
            "nvidia 0000:3b:00.0: AER: can't recover (no error_detected callback)",
            "pcie_aer recovery_failed 0000:3b:00.0",
        ),
        ("pcieport 0000:00:01.0: AER: device recovery failed", "pcie_aer recovery_failed 0000:00:01.0"),
        ("pcieport 0000:00:01.0: AER: device recovery successful", "-"),
        ("pcieport 0000:00:01.0: AER: enabled with IRQ 31", "-"),
        (
            "pcieport 0000:00:01.0: DPC: containment event, status:0x1f01 source:0x0000",
            "pcie_aer containment 0000:00:01.0",
        ),
        (
            "[ 9999.000001] pcieport 0000:00:01.0: pciehp: Slot(1-2): Link Down",
            "pcie_aer slot_link_down 0000:00:01.0",
        ),
        ("mce: [Hardware Error]: CPU 24: Machine Check Exception: 5 Bank 7: be00000000800400", "mce fatal -"),
        ("mce: [Hardware Error]: CPU 24: Machine Check: 0 Bank 7: 9c2000000001011b", "mce corrected -"),
        ("mce: [Hardware Error]: CPU 24: Machine Check: 0 Bank 7: bc2000000001011b", "mce uncorrected -"),
        ("[Hardware Error]: Corrected error, no action required.", "mce corrected -"),
        ("[Hardware Error]: Uncorrected, software restartable error.", "mce uncorrected -"),
        ("{1}[Hardware Error]: event severity: fatal", "mce fatal -"),
        ("mce: [Hardware Error]: Machine check events logged", "mce logged -"),
        ("MCE: In-kernel MCE decoding enabled.", "-"),
        (
            "mce: CPU0: Core temperature above threshold, cpu clock throttled (total events = 1)",
            "cpu thermal_throttle -",
        ),
        ("mce: CPU0: Core temperature/speed normal", "-"),
        ("Memory failure: 0x12345: recovery action for dirty LRU page: Recovered", "mce memory_failure -"),
        (
            "EDAC MC0: 1 CE memory read error on CPU_SrcID#0_Ha#0_Chan#1_DIMM#0 (channel:1 slot:0)",
            "edac correctable_error -",
        ),
        ("EDAC MC1: 1 UE memory read error on CPU_SrcID#1_MC#0_Chan#0_DIMM#0", "edac uncorrectable_error -"),
        ("EDAC MC: UMC3 chip selects:", "-"),
        ("EDAC MC0: Giving out device to module i10nm_edac controller Intel_10nm Socket#0", "-"),
    ]);
    let mce =
        classify("mce: [Hardware Error]: CPU 24: Machine Check: 0 Bank 7: be00000000800400", None).unwrap();
    assert_eq!((mce.details.cpu, mce.details.bank, mce.action), (Some(24), Some(7), Action::Replace));
}

#[test]
fn drives_memory_and_the_rest_of_the_host() {
    all(&[
        ("nvme nvme4: I/O 22 QID 0 timeout, reset controller", "disk nvme_controller_timeout -"),
        (
            "nvme nvme4: I/O tag 22 (2016) opcode 0x2 (I/O Cmd) QID 3 timeout, aborting req_op:READ(0) size:4096",
            "disk nvme_controller_timeout -",
        ),
        ("nvme nvme4: Disabling device after reset failure: -19", "disk nvme_device_disabled -"),
        (
            "nvme nvme4: controller is down; will reset: CSTS=0xffffffff, PCI_STATUS=0x10",
            "disk nvme_controller_down -",
        ),
        ("nvme nvme4: 64/0/0 default/read/poll queues", "-"),
        ("block nvme1n1: no available path - failing I/O", "disk nvme_path_failure -"),
        ("blk_update_request: I/O error, dev sda, sector 1234 op 0x0:(READ)", "disk io_error -"),
        ("I/O error, dev nvme0n1, sector 1234 op 0x1:(WRITE) flags 0x800", "disk io_error -"),
        ("critical medium error, dev sda, sector 1234", "disk medium_error -"),
        ("Buffer I/O error on dev sda1, logical block 0, async page read", "disk buffer_io_error -"),
        (
            "EXT4-fs error (device sda1): ext4_find_entry:1455: inode #2: comm ls: reading directory",
            "disk filesystem_error -",
        ),
        ("EXT4-fs (sda1): mounted filesystem with ordered data mode", "-"),
        ("EXT4-fs (sda1): Remounting filesystem read-only", "disk filesystem_read_only -"),
        (
            "XFS (sda1): Metadata corruption detected at xfs_agf_read_verify+0x10/0x20",
            "disk filesystem_error -",
        ),
        ("md/raid1:md0: Disk failure on sdb1, disabling device.", "disk raid_disk_failure -"),
        ("md/raid10:md0: Disk failure on nvme2n1 detected, failing array.", "disk raid_array_failure -"),
        ("kworker/u256:3: attempt to access beyond end of device", "disk beyond_end_of_device -"),
        ("ata1.00: exception Emask 0x0 SAct 0x4000 SErr 0x0 action 0x0", "disk ata_error -"),
        (
            "python3 invoked oom-killer: gfp_mask=0x100cca(GFP_HIGHUSER_MOVABLE), order=0, oom_score_adj=0",
            "memory oom -",
        ),
        (
            "Memory cgroup out of memory: Killed process 4711 (python3) total-vm:1kB, anon-rss:1kB",
            "memory oom -",
        ),
        ("Out of memory: Killed process 4711 (Web Content) total-vm:1kB", "memory oom -"),
        ("kworker/0:1 invoked oom-killer: gfp_mask=0x201da, order=0", "memory oom -"),
        ("oom_reaper: reaped process 4711 (python3), now anon-rss:0kB", "memory oom -"),
        ("watchdog: BUG: soft lockup - CPU#17 stuck for 22s! [kworker/17:1:4711]", "cpu soft_lockup -"),
        ("NMI watchdog: Watchdog detected hard LOCKUP on cpu 17", "cpu hard_lockup -"),
        ("rcu: INFO: rcu_sched self-detected stall on CPU", "cpu rcu_stall -"),
        ("INFO: task dd:4711 blocked for more than 122 seconds.", "cpu hung_task -"),
        ("nfs: server 10.1.2.3 not responding, still trying", "nfs nfs_server_not_responding -"),
        ("nfs: server filer-7 OK", "nfs nfs_server_ok -"),
        (" ? nfs_wb_all+0x1f/0x120 [nfs]", "nfs nfs_writeback_hang -"),
        ("Kernel panic - not syncing: Fatal exception in interrupt", "os kernel_panic -"),
        ("BUG: unable to handle page fault for address: ffffffffc0de1234", "os kernel_oops -"),
        ("VFS: file-max limit 1234567 reached", "os vfs_file_max_limit_reached -"),
        ("NVRM: API mismatch: the client has the version 570.1, but", "os nvidia_api_mismatch -"),
        (
            "NVRM: GPU 0000:3b:00.0: RmInitAdapter failed! (0x62:0x40:2393)",
            "os nvidia_init_failed 0000:3b:00.0",
        ),
        (
            "python3[4711]: segfault at 10 ip 00007f sp 00007f error 4 in libnccl.so.2.19.3[7f00+1000]",
            "nccl segfault_in_libnccl -",
        ),
        (
            "traps: python3[4711] general protection fault ip:7f sp:7f error:0 in libnccl.so.2[7f00+1000]",
            "nccl segfault_in_libnccl -",
        ),
        ("python3[4711]: segfault at 10 ip 00007f sp 00007f error 4 in libcudnn.so.8[7f00+1000]", "-"),
        (
            "nvidia-peermem nv_get_p2p_free_callback:131 ERROR detected invalid context, skipping further processing",
            "peermem invalid_context -",
        ),
        (
            "NVRM: knvlinkDiscoverPostRxDetLinks_GB100: Getting peer3's postRxDetLinkMask failed!",
            "nvlink post_rx_detect_failure -",
        ),
        (
            "[Nov 22 2026 07:53:55] [ERROR] [tid 8] detected NVSwitch fatal error 20034 on fid 0 on NVSwitch pci bus id 00000000:86:00.0 physical id 3 port 33",
            "fabric_manager nvswitch_fatal 0000:86:00.0",
        ),
        (
            "Nov 22 07:53:55 b-003 nv-fabricmanager[99]: detected NVSwitch non-fatal error 12028 on fid 0 on NVSwitch pci bus id 00000000:86:00.0 physical id 3 port 61",
            "fabric_manager nvswitch_non_fatal 0000:86:00.0",
        ),
    ]);
}

/// Text that speaks of faults is none.
#[test]
fn talk_about_faults_is_no_fault() {
    for line in [
        "",
        "NVRM: Xid",
        "NVRM: Xid (PCI:0000:3b:00): none",
        "NVRM: Xid : 32, pid=1",
        "NVRM: Xid (79): 79",
        "Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",
        "If the log says NVRM: Xid (PCI:0000:3b:00): 79, replace the GPU",
        "Nov 22 06:57:02 b-003 sudo:  ann : TTY=pts/0 ; COMMAND=/bin/grep NVRM: Xid (PCI:0000:3b:00): 79 /var/log/kern.log",
        "Nov 22 06:57:02 b-003 sshd[77]: NVRM: Xid (PCI:0000:3b:00): 79, x",
        "Nov 22 06:57:02 b-003 gpud[77]: {\"msg\":\"[ 12.345678] NVRM: Xid (PCI:0000:3b:00): 79, x\"}",
        "[   12.345678] audit: type=1400 audit(1.2:3): comm=\"NVRM: Xid (PCI:0000:3b:00): 79\"",
        "note \"NVRM: Xid (PCI:0000:3b:00): 79\"",
        "pstore dump of NVRM: nvidia-nvswitch0: SXid (PCI:0000:3b:00.0): 20034, Fatal, Link 1",
        "nvidia-nvswitch0: SXid (PCI:0000:3b:00.0): none, Fatal",
        "documentation: how to read Kernel panic messages and what to do",
        "bash[12]: Out of memory: Killed process 1 (init)",
        "nvidia-nvlink: Nvlink Core is being initialized, major device number 507",
        "NVRM: GPU at PCI:0000:3b:00: GPU-00000000-0000-0000-0000-000000000000",
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  575.57.08  Fri May  9 2025",
        "MCE records pool initialized",
        "pcieport 0000:00:01.0: PME: Signaling with IRQ 30",
    ] {
        assert_eq!(told(line), "-", "{line:?}");
    }
}

#[test]
fn nothing_but_a_fault_is_grave() {
    let oom = classify("Out of memory: Killed process 1 (a)", None).unwrap();
    assert_eq!(
        (oom.severity, oom.details.pid, oom.details.process.as_deref()),
        (Severity::Warning, Some(1), Some("a"))
    );
    let oom = |line: &str| classify(line, None).unwrap().details.process;
    assert_eq!(oom("kworker/0:1 invoked oom-killer: gfp_mask=0x201da").as_deref(), Some("kworker/0:1"));
    assert_eq!(oom("[  1.000001] Killed process 7 (a (b)) total-vm:1kB").as_deref(), Some("a (b)"));
    let finding = classify("NVRM: Xid (PCI:0000:3b:00): 79, x", None).unwrap().finding();
    assert_eq!((finding.code.as_str(), finding.action), ("xid-79", Action::Reboot));
    assert_eq!(finding.device.unwrap().as_str(), "0000:3b:00");
}

/// A fault survives being written as JSON and read back, and carries the names that readers rely on.
#[test]
fn json_holds_the_stable_names() {
    let fault = classify(
        "NVRM: Xid (PCI:0008:01:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x004505c6 0x0 0x0)",
        None,
    );
    let json = serde_json::to_value(&fault).unwrap();
    for key in ["kind", "code", "subcode", "device", "name", "action", "catalog_action", "severity"] {
        assert!(json.get(key).is_some(), "{key} is missing");
    }
    assert_eq!((json["layout"].as_str(), json["subcode"].as_u64()), (Some("unknown"), Some(4)));
    assert_eq!(serde_json::from_value::<Option<Fault>>(json).unwrap(), fault);
}
