//! A simulated blade, fully explicit: what `blade.json` in a blade's directory holds.

use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::sku::SimSku;

/// Name of the file in a blade's directory.
pub const BLADE_FILE: &str = "blade.json";
/// Raised when the meaning of a field changes.
pub const BLADE_VERSION: u32 = 1;

/// One blade with everything decided: nothing is left to defaults when a library reads it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BladeScenario {
    pub version: u32,
    pub name: String,
    pub serial: String,
    pub seed: u64,
    pub sku: SimSku,
    /// As `nvmlSystemGetDriverVersion` tells it; says that it is simulated.
    pub driver: String,
    /// As `cuDriverGetVersion` tells it: 13000 = CUDA 13.0.
    pub cuda: i32,
    /// HBM of each GPU that can really be written, MiB. The rest is "in use".
    pub hbm_backed_mib: u64,
    /// Seconds in which a temperature covers two thirds of its way (a real board takes a minute).
    pub thermal_s: f64,
    pub fabric: Option<Fabric>,
    /// The GPUs that are there, by slot. A missing one leaves a gap in the slots.
    pub gpus: Vec<GpuScenario>,
    /// Faults of the blade as a whole.
    pub faults: Vec<Fault>,
}

/// The NVLink domain that the blade belongs to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fabric {
    /// UUID of the domain's cluster.
    pub cluster_uuid: String,
    pub clique: u32,
    /// Chassis serial and the blade's place in it.
    pub chassis_serial: String,
    pub slot: u32,
    pub tray: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuScenario {
    /// Place on the board, from 0: `gpu5` has slot 5.
    pub slot: usize,
    pub uuid: String,
    pub serial: String,
    /// `dddd:bb:dd.f`, lower case.
    pub pci: String,
    pub numa: u32,
    pub vbios: String,
    pub variation: Variation,
    pub faults: Vec<Fault>,
}

/// How this GPU differs from its SKU's mean: parts are never equal.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variation {
    /// Factors, around 1.
    pub compute: f64,
    pub hbm: f64,
    pub pcie: f64,
    pub nvlink: f64,
    pub power: f64,
    /// Degrees C added at idle and under load.
    pub celsius: f64,
}

impl BladeScenario {
    /// The GPU with this slot.
    pub fn slot(&self, slot: usize) -> Option<&GpuScenario> {
        self.gpus.iter().find(|g| g.slot == slot)
    }
}

impl GpuScenario {
    /// `gpu5`.
    pub fn label(&self) -> String {
        format!("gpu{}", self.slot)
    }

    /// The UUID's 16 bytes.
    pub fn uuid_bytes(&self) -> [u8; 16] {
        let hex: Vec<u8> =
            self.uuid.trim_start_matches("GPU-").bytes().filter(u8::is_ascii_hexdigit).collect();
        let digit = |i: usize| hex.get(i).and_then(|b| char::from(*b).to_digit(16)).unwrap_or(0) as u8;
        std::array::from_fn(|i| digit(2 * i) << 4 | digit(2 * i + 1))
    }

    /// Domain, bus, device and function of its PCI address.
    pub fn pci_numbers(&self) -> (u32, u32, u32, u32) {
        let mut parts = self.pci.split([':', '.']).map(|p| u32::from_str_radix(p, 16).unwrap_or(0));
        let mut next = || parts.next().unwrap_or(0);
        (next(), next(), next(), next())
    }
}
