//! The SKUs that can be simulated.
//!
//! Figures are NVIDIA's data sheets' (dense rates) and what `nvidia-smi` prints on such boards (memory size,
//! clocks, VBIOS form). `rate` is what a good kernel sustains: [`EFFICIENCY`] of the data sheet's peak.

use serde::{Deserialize, Serialize};

use crate::format::Format;

/// Part of the data sheet's dense peak that a simulated healthy GPU sustains.
pub const EFFICIENCY: f64 = 0.75;

/// What a kind of GPU can do, as the simulated libraries tell it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimSku {
    /// Key: `h100`.
    pub id: String,
    /// Product name with `(sim)` at its end.
    pub name: String,
    pub board_part: String,
    pub vbios: String,
    /// PCI device id; the vendor is 0x10de.
    pub pci_device: u32,
    pub pci_subsystem: u32,
    pub compute_capability: (u32, u32),
    /// `nvmlDeviceArchitecture_t`: 7 Ampere, 8 Ada, 9 Hopper, 10 Blackwell.
    pub architecture: u32,
    pub sms: u32,
    /// FP32 lanes per SM.
    pub cores_per_sm: u32,
    pub hbm_mib: u64,
    pub memory_bus_bits: u32,
    pub bar1_mib: u64,
    pub gpus_per_blade: usize,
    pub nvlinks: u32,
    /// NVLink generation (3, 4, 5), 0 without.
    pub nvlink_version: u32,
    /// Each link, one direction, usable GB/s.
    pub nvlink_gbps: f64,
    /// What NVML prints as a link's speed, MB/s.
    pub nvlink_reported_mbps: u32,
    pub pcie_gen: u32,
    pub pcie_width: u32,
    /// Host to device, large pinned copies, GB/s.
    pub pcie_gbps: f64,
    /// Board power limit, W.
    pub power_limit_w: f64,
    pub idle_w: f64,
    pub sm_clock_mhz: u32,
    pub max_sm_clock_mhz: u32,
    pub memory_clock_mhz: u32,
    /// Degrees C: idle, under full load, and the slowdown, shutdown and memory limits.
    pub idle_c: f64,
    pub load_c: f64,
    pub slowdown_c: f64,
    pub shutdown_c: f64,
    pub memory_max_c: f64,
    /// HBM, GB/s, sustained by a copy kernel (read plus write).
    pub hbm_gbps: f64,
    /// Sustained TFLOP/s (or TOP/s) per format; a format that is absent is not supported.
    pub tflops: Vec<(Format, f64)>,
    /// NVSwitches that show on the blade's PCI bus.
    pub nvswitches: u32,
    /// An NVLink domain of a whole rack (72 GPUs) rather than of one server.
    pub rack_scale: bool,
    /// PCI addresses of the GPUs, by slot.
    pub pci: Vec<String>,
    /// Rate of one InfiniBand port, Gb/s.
    pub ib_gbps: u32,
}

impl SimSku {
    /// Sustained TFLOP/s in `format`, `None` if the chip does not have it.
    pub fn tflops(&self, format: Format) -> Option<f64> {
        self.tflops.iter().find(|(f, _)| *f == format).map(|(_, rate)| *rate)
    }

    /// One of [`SimSku::names`].
    pub fn built_in(id: &str) -> Option<SimSku> {
        built_in().into_iter().find(|s| s.id == id)
    }

    pub fn names() -> Vec<String> {
        built_in().into_iter().map(|s| s.id).collect()
    }
}

/// Dense peaks in the order fp64, fp32, tf32, fp16 and bf16, fp8, int8; 0 = not there.
fn rates(peaks: [f64; 6]) -> Vec<(Format, f64)> {
    let [f64_, f32_, tf32, half, fp8, int8] = peaks;
    [
        (Format::F64, f64_),
        (Format::F32, f32_),
        (Format::Tf32, tf32),
        (Format::F16, half),
        (Format::Bf16, half),
        (Format::E4m3, fp8),
        (Format::E5m2, fp8),
        (Format::S8, int8),
    ]
    .into_iter()
    .filter(|(_, peak)| *peak > 0.0)
    // Short decimals: they read back from JSON as the same numbers.
    .map(|(format, peak)| (format, (peak * EFFICIENCY * 1e3).round() / 1e3))
    .collect()
}

fn addresses(list: &[&str]) -> Vec<String> {
    list.iter().map(|a| (*a).to_owned()).collect()
}

fn built_in() -> Vec<SimSku> {
    let h100 = SimSku {
        id: "h100".into(),
        name: "NVIDIA H100 80GB HBM3 (sim)".into(),
        board_part: "692-2G520-0200-000".into(),
        vbios: "96.00.99.00.01".into(),
        pci_device: 0x2330,
        pci_subsystem: 0x16c1,
        compute_capability: (9, 0),
        architecture: 9,
        sms: 132,
        cores_per_sm: 128,
        hbm_mib: 81_559,
        memory_bus_bits: 5120,
        bar1_mib: 131_072,
        gpus_per_blade: 8,
        nvlinks: 18,
        nvlink_version: 4,
        nvlink_gbps: 25.0,
        nvlink_reported_mbps: 26_562,
        pcie_gen: 5,
        pcie_width: 16,
        pcie_gbps: 55.2,
        power_limit_w: 700.0,
        idle_w: 72.0,
        sm_clock_mhz: 1755,
        max_sm_clock_mhz: 1980,
        memory_clock_mhz: 2619,
        idle_c: 30.0,
        load_c: 66.0,
        slowdown_c: 87.0,
        shutdown_c: 92.0,
        memory_max_c: 95.0,
        hbm_gbps: 3050.0,
        tflops: rates([66.9, 66.9, 494.7, 989.4, 1978.9, 1978.9]),
        nvswitches: 4,
        rack_scale: false,
        pci: addresses(&[
            "0000:18:00.0",
            "0000:2a:00.0",
            "0000:3a:00.0",
            "0000:5d:00.0",
            "0000:9a:00.0",
            "0000:ab:00.0",
            "0000:ba:00.0",
            "0000:db:00.0",
        ]),
        ib_gbps: 400,
    };
    let h200 = SimSku {
        id: "h200".into(),
        name: "NVIDIA H200 (sim)".into(),
        board_part: "692-2G520-0280-000".into(),
        vbios: "96.00.D9.00.01".into(),
        pci_device: 0x2335,
        pci_subsystem: 0x18be,
        hbm_mib: 143_771,
        memory_bus_bits: 6144,
        bar1_mib: 262_144,
        memory_clock_mhz: 3201,
        hbm_gbps: 4368.0,
        ..h100.clone()
    };
    let a100 = SimSku {
        id: "a100".into(),
        name: "NVIDIA A100-SXM4-80GB (sim)".into(),
        board_part: "692-2G506-0212-002".into(),
        vbios: "92.00.99.00.05".into(),
        pci_device: 0x20b2,
        pci_subsystem: 0x147f,
        compute_capability: (8, 0),
        architecture: 7,
        sms: 108,
        cores_per_sm: 64,
        hbm_mib: 81_920,
        nvlinks: 12,
        nvlink_version: 3,
        nvlink_reported_mbps: 25_000,
        pcie_gen: 4,
        pcie_gbps: 26.1,
        power_limit_w: 400.0,
        idle_w: 58.0,
        sm_clock_mhz: 1275,
        max_sm_clock_mhz: 1410,
        memory_clock_mhz: 1593,
        load_c: 62.0,
        slowdown_c: 89.0,
        hbm_gbps: 1794.0,
        tflops: rates([19.5, 19.5, 156.0, 312.0, 0.0, 624.0]),
        nvswitches: 6,
        pci: addresses(&[
            "0000:07:00.0",
            "0000:0f:00.0",
            "0000:47:00.0",
            "0000:4e:00.0",
            "0000:87:00.0",
            "0000:90:00.0",
            "0000:b7:00.0",
            "0000:bd:00.0",
        ]),
        ib_gbps: 200,
        ..h100.clone()
    };
    let b200 = SimSku {
        id: "b200".into(),
        name: "NVIDIA B200 (sim)".into(),
        board_part: "692-2G525-0220-000".into(),
        vbios: "97.00.99.00.0F".into(),
        pci_device: 0x2901,
        pci_subsystem: 0x1999,
        compute_capability: (10, 0),
        architecture: 10,
        sms: 148,
        hbm_mib: 183_359,
        memory_bus_bits: 8192,
        bar1_mib: 262_144,
        nvlink_version: 5,
        nvlink_gbps: 50.0,
        nvlink_reported_mbps: 53_125,
        power_limit_w: 1000.0,
        idle_w: 140.0,
        sm_clock_mhz: 1830,
        max_sm_clock_mhz: 1965,
        memory_clock_mhz: 3996,
        hbm_gbps: 7007.0,
        tflops: rates([37.0, 75.0, 1125.0, 2250.0, 4500.0, 4500.0]),
        nvswitches: 2,
        ..h100.clone()
    };
    let gb200 = SimSku {
        id: "gb200".into(),
        name: "NVIDIA GB200 (sim)".into(),
        board_part: "699-2G548-0202-800".into(),
        vbios: "97.00.B9.00.69".into(),
        pci_device: 0x2941,
        pci_subsystem: 0x2046,
        sms: 152,
        hbm_mib: 189_471,
        gpus_per_blade: 4,
        power_limit_w: 1200.0,
        idle_w: 150.0,
        sm_clock_mhz: 1920,
        max_sm_clock_mhz: 2062,
        load_c: 58.0,
        // The host sits behind NVLink-C2C.
        pcie_gbps: 190.0,
        hbm_gbps: 7280.0,
        tflops: rates([40.0, 80.0, 1250.0, 2500.0, 5000.0, 5000.0]),
        nvswitches: 0,
        rack_scale: true,
        pci: addresses(&["0008:01:00.0", "0009:01:00.0", "0018:01:00.0", "0019:01:00.0"]),
        ..b200.clone()
    };
    let gb300 = SimSku {
        id: "gb300".into(),
        name: "NVIDIA GB300 (sim)".into(),
        board_part: "699-2G548-0302-800".into(),
        vbios: "97.10.4A.00.02".into(),
        pci_device: 0x31c2,
        pci_subsystem: 0x21f1,
        compute_capability: (10, 3),
        hbm_mib: 284_208,
        power_limit_w: 1400.0,
        idle_w: 165.0,
        tflops: rates([1.3, 80.0, 1250.0, 2500.0, 5000.0, 165.0]),
        ib_gbps: 800,
        ..gb200.clone()
    };
    let l40s = SimSku {
        id: "l40s".into(),
        name: "NVIDIA L40S (sim)".into(),
        board_part: "900-2G133-0080-000".into(),
        vbios: "95.02.66.00.02".into(),
        pci_device: 0x26b9,
        pci_subsystem: 0x1851,
        compute_capability: (8, 9),
        architecture: 8,
        sms: 142,
        hbm_mib: 46_068,
        memory_bus_bits: 384,
        bar1_mib: 65_536,
        nvlinks: 0,
        nvlink_version: 0,
        nvlink_gbps: 0.0,
        nvlink_reported_mbps: 0,
        pcie_gen: 4,
        pcie_gbps: 26.4,
        power_limit_w: 350.0,
        idle_w: 36.0,
        sm_clock_mhz: 2280,
        max_sm_clock_mhz: 2520,
        memory_clock_mhz: 9001,
        load_c: 70.0,
        slowdown_c: 92.0,
        shutdown_c: 98.0,
        memory_max_c: 105.0,
        hbm_gbps: 778.0,
        tflops: rates([1.43, 91.6, 183.0, 362.0, 733.0, 733.0]),
        nvswitches: 0,
        ib_gbps: 200,
        ..h100.clone()
    };
    vec![a100, h100, h200, b200, gb200, gb300, l40s]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sku_announces_itself_and_has_an_address_for_each_gpu() {
        for sku in built_in() {
            assert!(sku.name.ends_with("(sim)"), "{}", sku.name);
            assert_eq!(sku.pci.len(), sku.gpus_per_blade, "{}", sku.id);
            assert_eq!(sku.nvlinks == 0, sku.nvlink_version == 0, "{}", sku.id);
            assert!(
                sku.idle_c < sku.load_c && sku.load_c < sku.slowdown_c && sku.slowdown_c < sku.shutdown_c
            );
        }
        assert_eq!(SimSku::built_in("a100").unwrap().tflops(Format::E4m3), None);
    }
}
