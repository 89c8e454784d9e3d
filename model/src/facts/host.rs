//! The machine itself: board, kernel, CPUs, memory, limits, clock.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    pub hostname: Option<String>,
    /// `/etc/machine-id`.
    pub machine_id: Option<String>,
    pub boot_id: Option<String>,
    pub uptime_s: Option<f64>,
    pub vendor: Option<String>,
    pub product: Option<String>,
    /// Serial number of the blade (DMI `product_serial`); needs root.
    pub serial: Option<String>,
    pub board_name: Option<String>,
    pub board_serial: Option<String>,
    pub chassis_serial: Option<String>,
    pub bios_version: Option<String>,
    pub bios_date: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kernel {
    pub release: Option<String>,
    pub version: Option<String>,
    pub cmdline: Option<String>,
    /// Why the kernel is tainted, as `/proc/sys/kernel/tainted` says.
    pub tainted: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// `x86_64`, `aarch64`.
    pub architecture: String,
    pub model: Option<String>,
    /// One entry per distinct value; more than one is a mixed blade.
    pub microcode: Vec<String>,
    pub sockets: Option<u32>,
    /// Physical cores over all sockets.
    pub cores: Option<u32>,
    /// Logical CPUs that are online.
    pub threads: Option<u32>,
    /// CPUs present but offline.
    pub offline: Option<u32>,
    /// Thermal throttle events since boot, over all cores and packages.
    pub core_throttle_count: Option<u64>,
    pub package_throttle_count: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NumaNode {
    pub node: u32,
    /// As the kernel writes lists: `0-31,64-95`.
    pub cpus: String,
    pub memory_total_mib: Option<u64>,
    pub memory_free_mib: Option<u64>,
    /// Distance to each node, in node order.
    pub distances: Vec<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    pub total_mib: Option<u64>,
    pub available_mib: Option<u64>,
    pub swap_total_mib: Option<u64>,
    pub hugepages: Vec<HugePages>,
    /// Memory that the kernel took out of use after hardware errors.
    pub hardware_corrupted_mib: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HugePages {
    pub size_kib: u64,
    pub total: u64,
    pub free: u64,
}

/// A memory module, from DMI.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dimm {
    pub locator: String,
    pub bank: Option<String>,
    pub size_mib: Option<u64>,
    /// `DDR5`, …
    pub kind: Option<String>,
    /// Configured speed, MT/s.
    pub speed_mts: Option<u32>,
    pub manufacturer: Option<String>,
    pub serial: Option<String>,
    pub part_number: Option<String>,
}

/// One memory controller of EDAC; counts since its driver was loaded.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryController {
    /// `mc0`.
    pub name: String,
    pub driver: Option<String>,
    pub corrected: Option<u64>,
    pub uncorrected: Option<u64>,
    pub dimms: Vec<EdacDimm>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EdacDimm {
    /// `mc0/dimm3`.
    pub name: String,
    /// As the board's firmware names it, such as `CPU_SrcID#0_MC#0_Chan#0_DIMM#0`.
    pub label: Option<String>,
    pub size_mib: Option<u64>,
    pub corrected: Option<u64>,
    pub uncorrected: Option<u64>,
}

/// Limits of the control group that the probe itself runs in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cgroup {
    /// 1 or 2.
    pub version: Option<u32>,
    pub path: Option<String>,
    /// CPUs' worth of time; `None` = no limit.
    pub cpu_limit: Option<f64>,
    /// `None` = no limit.
    pub memory_limit_mib: Option<u64>,
    /// CPUs that may be used: `0-15`.
    pub cpuset: Option<String>,
}

/// How the system clock is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClockSync {
    /// The kernel's own answer (adjtimex): some daemon disciplines the clock.
    pub synchronised: Option<bool>,
    /// Kernel's estimate of the error, microseconds.
    pub estimated_error_us: Option<u64>,
    /// Kernel's bound on the error, microseconds.
    pub max_error_us: Option<u64>,
    /// Correction in use, parts per million.
    pub frequency_ppm: Option<f64>,
    /// `tsc`, `kvm-clock`, …; a fall back to `hpet` or `acpi_pm` is itself a sign.
    pub clocksource: Option<String>,
    pub clocksources_available: Vec<String>,
}
