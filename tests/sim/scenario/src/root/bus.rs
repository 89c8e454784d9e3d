//! PCI devices, InfiniBand ports, network interfaces, NVMe drives.

use super::Tree;
use crate::blade::{BladeScenario, GpuScenario};
use crate::fault::Fault;
use crate::seed::Seed;

/// Drives of a blade.
const DRIVES: u32 = 4;
/// First PCI buses of NICs, drives and switches: clear of every GPU's bus.
const NIC_BUS: u32 = 0xc0;
const NVME_BUS: u32 = 0xe0;
const SWITCH_BUS: u32 = 0xf0;
/// Each device hangs on a port of its own, on a bus number that nothing else has.
const PORT_DOMAIN: u32 = 0x0040;

struct Device<'a> {
    address: &'a str,
    vendor: u32,
    device: u32,
    subsystem: (u32, u32),
    class: u32,
    driver: &'a str,
    numa: u32,
    /// (generation, width) now and at best.
    now: (u32, u32),
    best: (u32, u32),
    port: u32,
    replays: u64,
}

pub fn write(tree: &Tree, blade: &BladeScenario) -> std::io::Result<()> {
    let sku = &blade.sku;
    for gpu in &blade.gpus {
        let best = (sku.pcie_gen, sku.pcie_width);
        device(
            tree,
            &Device {
                address: &gpu.pci,
                vendor: 0x10de,
                device: sku.pci_device,
                subsystem: (0x10de, sku.pci_subsystem),
                class: 0x03_0200,
                driver: "nvidia",
                numa: gpu.numa,
                now: link_now(gpu, best),
                best,
                port: gpu.slot as u32,
                replays: 0,
            },
        )?;
        let proc = format!("proc/driver/nvidia/gpus/{}/information", gpu.pci);
        tree.text(
            &proc,
            &format!(
                "Model: \t\t {}\nGPU UUID: \t {}\nVideo BIOS: \t {}\nBus Location: \t {}\n",
                sku.name, gpu.uuid, gpu.vbios, gpu.pci
            ),
        )?;
    }
    if !blade.gpus.is_empty() {
        tree.value(
            "proc/driver/nvidia/version",
            format!("NVRM version: NVIDIA UNIX Open Kernel Module  {}  (simulated)", blade.driver),
        )?;
        tree.value("sys/module/nvidia/version", &blade.driver)?;
    }
    for switch in 0..sku.nvswitches {
        device(
            tree,
            &Device {
                address: &format!("0000:{:02x}:00.0", SWITCH_BUS + switch),
                vendor: 0x10de,
                device: if sku.nvlink_version == 3 { 0x1af1 } else { 0x22a3 },
                subsystem: (0x10de, 0x1796),
                class: 0x06_8000,
                driver: "nvidia-nvswitch",
                numa: 0,
                now: (3, 2),
                best: (3, 2),
                port: 0x40 + switch,
                replays: 0,
            },
        )?;
    }
    for port in 0..sku.pci.len() as u32 {
        infiniband(tree, blade, port)?;
    }
    for drive in 0..DRIVES {
        nvme(tree, blade, drive)?;
    }
    tree.value("sys/class/net/lo/operstate", "unknown")?;
    tree.value("sys/class/net/lo/flags", "0x9")?;
    tree.value("sys/class/net/lo/mtu", 65_536)
}

fn link_now(gpu: &GpuScenario, best: (u32, u32)) -> (u32, u32) {
    gpu.faults.iter().fold(best, |(generation, width), fault| match fault {
        Fault::PcieGen { now } => (*now, width),
        Fault::PcieWidth { now } => (generation, *now),
        _ => (generation, width),
    })
}

fn speed(generation: u32) -> &'static str {
    match generation {
        1 => "2.5 GT/s PCIe",
        2 => "5.0 GT/s PCIe",
        3 => "8.0 GT/s PCIe",
        4 => "16.0 GT/s PCIe",
        5 => "32.0 GT/s PCIe",
        _ => "64.0 GT/s PCIe",
    }
}

/// Where the device's directory really is: below the port that it hangs on, as in sysfs.
fn home(address: &str, port: u32) -> String {
    format!("sys/devices/pci{PORT_DOMAIN:04x}:00/{}/{address}", port_address(port))
}

fn port_address(port: u32) -> String {
    format!("{PORT_DOMAIN:04x}:00:{:02x}.{}", port / 8, port % 8)
}

fn device(tree: &Tree, device: &Device<'_>) -> std::io::Result<()> {
    let dir = home(device.address, device.port);
    attributes(tree, &dir, device)?;
    tree.link(&format!("sys/bus/pci/devices/{}", device.address), &dir)?;
    tree.link(&format!("{dir}/driver"), &format!("sys/bus/pci/drivers/{}", device.driver))?;
    tree.value(&format!("sys/bus/pci/drivers/{}/bind", device.driver), "")?;
    // Its port: can always do what the device can.
    let address = port_address(device.port);
    let port = format!("sys/devices/pci{PORT_DOMAIN:04x}:00/{address}");
    let bridge = Device {
        address: &address,
        vendor: 0x1000,
        device: 0xc030,
        subsystem: (0x1000, 0x100b),
        class: 0x06_0400,
        ..*device
    };
    attributes(tree, &port, &bridge)?;
    tree.link(&format!("sys/bus/pci/devices/{address}"), &port)
}

fn attributes(tree: &Tree, dir: &str, device: &Device<'_>) -> std::io::Result<()> {
    let value = |name: &str, value: String| tree.value(&format!("{dir}/{name}"), value);
    value("vendor", format!("{:#06x}", device.vendor))?;
    value("device", format!("{:#06x}", device.device))?;
    value("subsystem_vendor", format!("{:#06x}", device.subsystem.0))?;
    value("subsystem_device", format!("{:#06x}", device.subsystem.1))?;
    value("class", format!("{:#08x}", device.class))?;
    value("numa_node", device.numa.to_string())?;
    value("enable", "1".into())?;
    value("current_link_speed", speed(device.now.0).into())?;
    value("current_link_width", device.now.1.to_string())?;
    value("max_link_speed", speed(device.best.0).into())?;
    value("max_link_width", device.best.1.to_string())?;
    let mut config = Vec::from((device.vendor as u16).to_le_bytes());
    config.extend((device.device as u16).to_le_bytes());
    config.resize(64, 0);
    let path = tree.base.join(dir).join("config");
    std::fs::write(path, config)?;
    let list = |names: &[&str], total: &str, first: (&str, u64)| {
        let lines: String =
            names.iter().map(|n| format!("{n} {}\n", if *n == first.0 { first.1 } else { 0 })).collect();
        format!("{lines}{total} {}\n", first.1)
    };
    let correctable =
        ["RxErr", "BadTLP", "BadDLLP", "Rollover", "Timeout", "NonFatalErr", "CorrIntErr", "HeaderOF"];
    let uncorrectable = [
        "Undefined",
        "DLP",
        "SDES",
        "TLP",
        "FCP",
        "CmpltTO",
        "CmpltAbrt",
        "UnxCmplt",
        "RxOF",
        "MalfTLP",
        "ECRC",
        "UnsupReq",
        "ACSViol",
        "UncorrIntErr",
        "BlockedTLP",
        "AtomicOpBlocked",
        "TLPBlockedErr",
        "PoisonTLPBlocked",
    ];
    let text = |name: &str, text: String| tree.text(&format!("{dir}/{name}"), &text);
    text("aer_dev_correctable", list(&correctable, "TOTAL_ERR_COR", ("Timeout", device.replays)))?;
    text("aer_dev_nonfatal", list(&uncorrectable, "TOTAL_ERR_NONFATAL", ("DLP", 0)))?;
    text("aer_dev_fatal", list(&uncorrectable, "TOTAL_ERR_FATAL", ("DLP", 0)))
}

fn infiniband(tree: &Tree, blade: &BladeScenario, port: u32) -> std::io::Result<()> {
    let sku = &blade.sku;
    let address = format!("0000:{:02x}:00.0", NIC_BUS + port);
    // 400 Gb/s is ConnectX-7, 800 ConnectX-8, 200 ConnectX-6.
    let (pci_device, kind, text, generation) = match sku.ib_gbps {
        800 => (0x1023, "MT4131", "800 Gb/sec (4X XDR)", 6),
        400 => (0x1021, "MT4129", "400 Gb/sec (4X NDR)", 5),
        _ => (0x101b, "MT4123", "200 Gb/sec (4X HDR)", 4),
    };
    let numa = u32::from(2 * port >= sku.pci.len() as u32);
    device(
        tree,
        &Device {
            address: &address,
            vendor: 0x15b3,
            device: pci_device,
            subsystem: (0x15b3, 0x0041),
            class: 0x02_0700,
            driver: "mlx5_core",
            numa,
            now: (generation, 16),
            best: (generation, 16),
            port: 0x20 + port,
            replays: 0,
        },
    )?;
    let down = blade.faults.iter().any(|f| matches!(f, Fault::IbDown { port: p } if *p == port));
    let symbol_errors: u64 = blade
        .faults
        .iter()
        .map(|f| match f {
            Fault::IbErrors { port: p, symbol_errors } if *p == port => *symbol_errors,
            _ => 0,
        })
        .sum();
    let name = format!("mlx5_{port}");
    let dir = format!("{}/infiniband/{name}", home(&address, 0x20 + port));
    let value = |name: &str, value: String| tree.value(&format!("{dir}/{name}"), value);
    let mut draw = Seed::of(blade.seed, &format!("ib {} {port}", blade.name));
    let guid = draw.word();
    value(
        "node_guid",
        format!(
            "{:04x}:{:04x}:{:04x}:{:04x}",
            guid >> 48,
            guid >> 32 & 0xffff,
            guid >> 16 & 0xffff,
            guid & 0xffff
        ),
    )?;
    value("fw_ver", "28.43.2026".into())?;
    value("hca_type", kind.into())?;
    value("board_id", "SIM0000000838".into())?;
    value("node_type", "1: CA".into())?;
    tree.link(&format!("{dir}/device"), &home(&address, 0x20 + port))?;
    tree.link(&format!("sys/class/infiniband/{name}"), &dir)?;
    let value = |name: &str, value: String| tree.value(&format!("{dir}/ports/1/{name}"), value);
    value("state", if down { "1: DOWN" } else { "4: ACTIVE" }.into())?;
    value("phys_state", if down { "3: Disabled" } else { "5: LinkUp" }.into())?;
    value("rate", if down { "2.5 Gb/sec (1X SDR)".into() } else { text.to_owned() })?;
    value("link_layer", "InfiniBand".into())?;
    value("lid", format!("{:#x}", 1 + draw.below(4000)))?;
    let traffic = draw.below(1 << 40);
    for (counter, count) in [
        ("symbol_error", symbol_errors),
        ("link_downed", 0),
        ("link_error_recovery", 0),
        ("local_link_integrity_errors", 0),
        ("excessive_buffer_overrun_errors", 0),
        ("port_rcv_errors", 0),
        ("port_rcv_remote_physical_errors", 0),
        ("port_rcv_switch_relay_errors", 0),
        ("port_rcv_constraint_errors", 0),
        ("port_xmit_constraint_errors", 0),
        ("port_xmit_discards", 0),
        ("port_xmit_wait", 0),
        ("VL15_dropped", 0),
        ("port_rcv_data", traffic),
        ("port_xmit_data", traffic),
        ("port_rcv_packets", traffic / 512),
        ("port_xmit_packets", traffic / 512),
    ] {
        value(&format!("counters/{counter}"), count.to_string())?;
    }
    for counter in [
        "out_of_buffer",
        "out_of_sequence",
        "packet_seq_err",
        "local_ack_timeout_err",
        "implied_nak_seq_err",
        "rnr_nak_retry_err",
        "duplicate_request",
        "req_cqe_error",
        "resp_cqe_error",
        "roce_adp_retrans",
        "roce_slow_restart",
    ] {
        value(&format!("hw_counters/{counter}"), "0".into())?;
    }
    value("hw_counters/lifespan", "12".into())
}

fn nvme(tree: &Tree, blade: &BladeScenario, drive: u32) -> std::io::Result<()> {
    let address = format!("0000:{:02x}:00.0", NVME_BUS + drive);
    let numa = drive / (DRIVES / 2);
    device(
        tree,
        &Device {
            address: &address,
            vendor: 0x144d,
            device: 0xa824,
            subsystem: (0x144d, 0xa801),
            class: 0x01_0802,
            driver: "nvme",
            numa,
            now: (4, 4),
            best: (4, 4),
            port: 0x30 + drive,
            replays: 0,
        },
    )?;
    let dir = format!("{}/nvme/nvme{drive}", home(&address, 0x30 + drive));
    let value = |name: &str, value: String| tree.value(&format!("{dir}/{name}"), value);
    let serial = Seed::of(blade.seed, &format!("nvme {} {drive}", blade.name)).below(1_000_000_000);
    value("model", "Simulated NVMe 3.84TB (sim)".into())?;
    value("serial", format!("SIMN{serial:09}"))?;
    value("firmware_rev", "SIM10001".into())?;
    value("state", "live".into())?;
    value("transport", "pcie".into())?;
    value("address", address.clone())?;
    value("numa_node", numa.to_string())?;
    // 3.84 TB in sectors of 512 bytes.
    value(&format!("nvme{drive}n1/size"), "7501476528".into())?;
    value("hwmon0/name", "nvme".into())?;
    value("hwmon0/temp1_input", "38850".into())?;
    tree.link(&format!("{dir}/device"), &home(&address, 0x30 + drive))?;
    tree.link(&format!("sys/class/nvme/nvme{drive}"), &dir)
}
