//! What hangs on the buses: PCI, InfiniBand and RoCE ports, network interfaces, NVMe.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A PCI device of a class that a blade is made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PciDevice {
    /// `dddd:bb:dd.f`, lower case.
    pub address: String,
    pub kind: PciKind,
    /// Vendor and device: `10de:2330`.
    pub id: String,
    pub subsystem_id: Option<String>,
    /// 24 bits, hex without prefix: `030200`.
    pub class: String,
    pub driver: Option<String>,
    pub numa_node: Option<i32>,
    pub link: PciLink,
    /// Address of the port above it (switch or root port), and that port's own highest link.
    pub parent: Option<String>,
    pub parent_max: PciLinkMax,
    /// AER counters since boot, as the kernel names them, without zeros; `TOTAL_*` included.
    pub aer_correctable: BTreeMap<String, u64>,
    pub aer_non_fatal: BTreeMap<String, u64>,
    pub aer_fatal: BTreeMap<String, u64>,
    /// The kernel has AER files for it.
    pub has_aer: bool,
    /// It answers config reads; a device that fell off the bus reads as all ones.
    pub config_readable: Option<bool>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PciKind {
    /// An NVIDIA display or 3D controller.
    Gpu,
    NvSwitch,
    Nic,
    Nvme,
    /// A switch or root port directly above one of the others.
    Port,
    #[default]
    Other,
}

impl PciKind {
    pub fn as_str(self) -> &'static str {
        match self {
            PciKind::Gpu => "gpu",
            PciKind::NvSwitch => "nvswitch",
            PciKind::Nic => "nic",
            PciKind::Nvme => "nvme",
            PciKind::Port => "port",
            PciKind::Other => "other",
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PciLink {
    pub speed_gts: Option<f64>,
    pub width: Option<u32>,
    pub max_speed_gts: Option<f64>,
    pub max_width: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PciLinkMax {
    pub speed_gts: Option<f64>,
    pub width: Option<u32>,
}

/// Generation of a PCIe link by its speed per lane.
pub fn pcie_generation(gts: f64) -> Option<u32> {
    [(2.5, 1), (5.0, 2), (8.0, 3), (16.0, 4), (32.0, 5), (64.0, 6), (128.0, 7)]
        .iter()
        .find(|(speed, _)| (gts - speed).abs() < 0.01)
        .map(|(_, generation)| *generation)
}

/// A port of an InfiniBand or RoCE adapter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IbPort {
    /// `mlx5_0`.
    pub adapter: String,
    pub port: u32,
    /// `InfiniBand` or `Ethernet`.
    pub link_layer: Option<String>,
    /// `ACTIVE`, `DOWN`, `INIT`, …
    pub state: Option<String>,
    /// `LinkUp`, `Polling`, `Disabled`, …
    pub phys_state: Option<String>,
    /// Gb/s.
    pub rate_gbps: Option<f64>,
    /// As printed: `400 Gb/sec (4X NDR)`.
    pub rate_text: Option<String>,
    pub firmware: Option<String>,
    pub adapter_type: Option<String>,
    pub board_id: Option<String>,
    pub node_guid: Option<String>,
    /// PCI address of the adapter.
    pub pci: Option<String>,
    pub numa_node: Option<i32>,
    /// All of `counters/` and `hw_counters/`, since the driver was loaded.
    pub counters: BTreeMap<String, u64>,
    pub hw_counters: BTreeMap<String, u64>,
}

impl IbPort {
    /// `mlx5_0/1`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.adapter, self.port)
    }
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Nic {
    pub name: String,
    pub mac: Option<String>,
    /// `up`, `down`, `unknown`, …
    pub operstate: Option<String>,
    /// An administrator set it up.
    pub admin_up: Option<bool>,
    /// Mb/s.
    pub speed_mbps: Option<u64>,
    pub mtu: Option<u32>,
    pub driver: Option<String>,
    /// `None` for a virtual interface.
    pub pci: Option<String>,
    pub carrier_changes: Option<u64>,
    /// `rx_errors`, `tx_errors`, `rx_dropped`, `tx_dropped`, `rx_crc_errors`, …: those that are not zero.
    pub errors: BTreeMap<String, u64>,
}

/// An NVMe drive.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NvmeDrive {
    /// `nvme0`.
    pub name: String,
    pub model: Option<String>,
    pub serial: Option<String>,
    pub firmware: Option<String>,
    /// Controller state: `live`, `dead`, `resetting`, …
    pub state: Option<String>,
    /// `pcie`, `tcp`, …
    pub transport: Option<String>,
    pub pci: Option<String>,
    pub numa_node: Option<i32>,
    /// Sum of its namespaces, bytes.
    pub size_bytes: Option<u64>,
    pub temperature_c: Option<i32>,
    /// Where SMART came from: `nvme` or `smartctl`; `None` if neither could be asked.
    pub smart_source: Option<String>,
    pub smart: Option<NvmeSmart>,
}

/// The SMART / health log page (NVMe base specification, log page 02h).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NvmeSmart {
    /// Bits: 0 spare low, 1 temperature, 2 reliability, 3 read-only, 4 volatile backup, 5 persistent region.
    pub critical_warning: u32,
    pub available_spare_percent: Option<u32>,
    pub spare_threshold_percent: Option<u32>,
    /// May exceed 100.
    pub percentage_used: Option<u32>,
    pub media_errors: Option<u64>,
    pub error_log_entries: Option<u64>,
    pub power_on_hours: Option<u64>,
    pub unsafe_shutdowns: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_follow_from_lane_speeds() {
        assert_eq!(pcie_generation(32.0), Some(5));
        assert_eq!(pcie_generation(2.5), Some(1));
        assert_eq!(pcie_generation(3.0), None);
    }
}
