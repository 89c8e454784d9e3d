//! Thresholds and SKU profiles as data (`model/data/thresholds/*.toml`), and their linter.
//!
//! A [`Profile`] says how a SKU is recognised, what parts it has, and what its readings are held against. Two
//! generic files hold what does not depend on the SKU: `gpu.toml` for every GPU, `host.toml` for every machine.
//! A metric is looked up in the SKU's profile first, then in the generic files. `docs/thresholds.md` describes
//! the format.

pub mod chip;
pub mod import;
mod judge;
pub mod lint;
pub mod metric;
mod parse;

pub use import::Measure;
pub use judge::{JudgeError, Judged, Judgement, NotJudged};
pub use parse::ThresholdError;

use serde::{Deserialize, Serialize};

use crate::unit::Unit;

/// The files that every binary carries.
pub const BUILT_IN: [(&str, &str); 10] = [
    ("host.toml", include_str!("../../data/thresholds/host.toml")),
    ("gpu.toml", include_str!("../../data/thresholds/gpu.toml")),
    ("hgx-a100-40gb.toml", include_str!("../../data/thresholds/hgx-a100-40gb.toml")),
    ("hgx-a100.toml", include_str!("../../data/thresholds/hgx-a100.toml")),
    ("hgx-h100.toml", include_str!("../../data/thresholds/hgx-h100.toml")),
    ("hgx-h200.toml", include_str!("../../data/thresholds/hgx-h200.toml")),
    ("hgx-b200.toml", include_str!("../../data/thresholds/hgx-b200.toml")),
    ("gb200-nvl72.toml", include_str!("../../data/thresholds/gb200-nvl72.toml")),
    ("gb300-nvl72.toml", include_str!("../../data/thresholds/gb300-nvl72.toml")),
    ("l40s.toml", include_str!("../../data/thresholds/l40s.toml")),
];

/// Which way is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    Higher,
    Lower,
}

impl Better {
    /// True if `value` is on the bad side of `limit`; a value equal to the limit is still good.
    pub fn is_worse(self, value: f64, limit: f64) -> bool {
        match self {
            Better::Higher => value < limit,
            Better::Lower => value > limit,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Better::Higher => "higher",
            Better::Lower => "lower",
        }
    }
}

/// What sort of knowledge a number rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProvenanceKind {
    /// Somebody measured it on such hardware.
    Measured,
    /// The vendor or a standard says so.
    Spec,
    /// Computed or reasoned from other numbers; the name says how.
    Derived,
    /// Another tool passes and fails by it.
    OthersFloor,
}

impl ProvenanceKind {
    pub fn as_str(self) -> &'static str {
        match self {
            ProvenanceKind::Measured => "measured",
            ProvenanceKind::Spec => "spec",
            ProvenanceKind::Derived => "derived",
            ProvenanceKind::OthersFloor => "others_floor",
        }
    }
}

/// Where numbers of a threshold come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The numbers that it speaks for; empty = all of the threshold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub of: Vec<Role>,
    pub name: String,
    /// Of the source, `YYYY`, `YYYY-MM` or `YYYY-MM-DD`.
    pub date: String,
    pub kind: ProvenanceKind,
}

/// What a number of a threshold is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Warn,
    Fail,
    HardwareLimit,
    Typical,
}

impl Role {
    pub const ALL: [Role; 4] = [Role::Warn, Role::Fail, Role::HardwareLimit, Role::Typical];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Warn => "warn",
            Role::Fail => "fail",
            Role::HardwareLimit => "hardware_limit",
            Role::Typical => "typical",
        }
    }
}

/// What one metric is held against. All numbers are in `unit`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Threshold {
    pub metric: String,
    pub unit: Unit,
    pub better: Better,
    /// A reading worse than this is a warning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warn: Option<f64>,
    /// A reading worse than this is a fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail: Option<f64>,
    /// What the hardware can do at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware_limit: Option<f64>,
    /// What a good part shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub typical: Option<f64>,
    /// Measured but not judged: no number is known that would be right.
    pub unknown: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    pub sources: Vec<Provenance>,
    /// Name of the file that it stands in.
    pub file: String,
    /// Line of its `[[threshold]]`, from 1.
    pub line: usize,
}

impl Threshold {
    pub fn value(&self, role: Role) -> Option<f64> {
        match role {
            Role::Warn => self.warn,
            Role::Fail => self.fail,
            Role::HardwareLimit => self.hardware_limit,
            Role::Typical => self.typical,
        }
    }

    /// The sources of one of its numbers.
    pub fn sources_of(&self, role: Role) -> impl Iterator<Item = &Provenance> {
        self.sources.iter().filter(move |s| s.of.is_empty() || s.of.contains(&role))
    }
}

/// The parts that a healthy blade of a SKU has; `None` = not known or the integrator's choice: not judged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expected {
    /// GPUs of one blade.
    pub gpus: Option<u32>,
    /// Such as `9.0`.
    pub compute_capability: Option<String>,
    pub sm_count: Option<u32>,
    /// Total memory of one GPU as NVML tells it, MiB: lowest and highest of a healthy one.
    pub memory_mib: Option<[u64; 2]>,
    /// Lowest PCIe generation and width of a GPU's link under load.
    pub pcie_generation: Option<u32>,
    pub pcie_width: Option<u32>,
    /// NVLinks of one GPU; 0 = it has none.
    pub nvlinks_per_gpu: Option<u32>,
    /// Lowest speed of one NVLink in one direction as NVML tells it, MB/s.
    pub nvlink_mbps: Option<u64>,
    /// GPUs of a whole NVLink domain.
    pub nvlink_domain_gpus: Option<u32>,
    /// Each GPU must have registered with its NVLink fabric.
    pub fabric: Option<bool>,
    /// ECC must be on.
    pub ecc: Option<bool>,
    /// Usual NIC ports of the compute network and the rate of each, Gb/s: the integrator's choice, so a blade
    /// with others is not at fault.
    pub nic_ports_usual: Option<u32>,
    pub nic_gbps_usual: Option<f64>,
    /// Where these facts come from.
    pub sources: Vec<Provenance>,
}

/// One SKU of blade.
#[derive(Debug, Clone, Serialize)]
pub struct Profile {
    /// Key, such as `hgx-h100`.
    pub sku: String,
    pub name: String,
    /// Chip generation, such as `hopper`: SKUs of one family are neighbours for the linter.
    pub family: String,
    /// Regular expression on the GPU's product name without a trailing ` (sim)`; anchored.
    pub gpu_name: String,
    pub expected: Expected,
    pub thresholds: Vec<Threshold>,
    pub file: String,
    #[serde(skip)]
    matcher: regex::Regex,
}

impl Profile {
    pub fn threshold(&self, metric: &str) -> Option<&Threshold> {
        self.thresholds.iter().find(|t| t.metric == metric)
    }

    /// True if a GPU with this product name and memory (MiB, 0 = not known) can be one of this SKU's.
    pub fn fits(&self, gpu: GpuSeen<'_>) -> bool {
        let memory = self.expected.memory_mib.is_none_or(|[low, high]| {
            // Wider than the inventory's range: a GPU that lost memory is still of its SKU.
            gpu.memory_mib == 0 || (gpu.memory_mib >= low * 3 / 4 && gpu.memory_mib <= high * 5 / 4)
        });
        memory && self.matcher.is_match(product_name(gpu.name))
    }
}

/// A product name without the words that a simulated GPU adds.
pub fn product_name(name: &str) -> &str {
    name.trim().strip_suffix("(sim)").unwrap_or(name).trim()
}

/// A GPU as the search for a profile needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuSeen<'a> {
    /// Product name as NVML tells it.
    pub name: &'a str,
    /// Total memory, MiB; 0 = not known.
    pub memory_mib: u64,
}

/// All profiles and the generic thresholds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Table {
    pub profiles: Vec<Profile>,
    /// Of every GPU or machine, whatever its SKU.
    pub generic: Vec<Threshold>,
}

impl Table {
    /// What the binary carries.
    pub fn built_in() -> Result<Table, ThresholdError> {
        let mut table = Table::default();
        for (file, text) in BUILT_IN {
            table.add(Table::parse(file, text)?)?;
        }
        Ok(table)
    }

    /// Reads one file; `file` names it in errors.
    pub fn parse(file: &str, text: &str) -> Result<Table, ThresholdError> {
        parse::table(file, text)
    }

    /// Adds another table's profiles and generic thresholds; a SKU or generic metric twice is an error.
    pub fn add(&mut self, other: Table) -> Result<(), ThresholdError> {
        for profile in other.profiles {
            if let Some(old) = self.profiles.iter().find(|p| p.sku == profile.sku) {
                let what = format!("sku {:?} is already described in {}", profile.sku, old.file);
                return Err(ThresholdError { file: profile.file, line: 1, what });
            }
            self.profiles.push(profile);
        }
        for threshold in other.generic {
            if let Some(old) = self.generic.iter().find(|t| t.metric == threshold.metric) {
                let what = format!("{} already has a threshold in {}:{}", old.metric, old.file, old.line);
                return Err(ThresholdError { file: threshold.file, line: threshold.line, what });
            }
            self.generic.push(threshold);
        }
        Ok(())
    }

    pub fn profile(&self, sku: &str) -> Option<&Profile> {
        self.profiles.iter().find(|p| p.sku == sku)
    }

    /// The profile that most of a blade's GPUs fit, so that one odd GPU shows as odd and not as another SKU.
    /// Of several that fit equally, the one whose GPU count is nearest. `None` without GPUs or without a fit.
    pub fn profile_for(&self, gpus: &[GpuSeen<'_>]) -> Option<&Profile> {
        let seen = gpus.len() as i64;
        self.profiles
            .iter()
            .map(|p| (p, gpus.iter().filter(|g| p.fits(**g)).count()))
            .filter(|(_, fitting)| *fitting > 0)
            .min_by_key(|(p, fitting)| {
                let distance = p.expected.gpus.map_or(i64::MAX, |n| (i64::from(n) - seen).abs());
                (std::cmp::Reverse(*fitting), distance)
            })
            .map(|(p, _)| p)
    }

    /// The threshold of a metric: the SKU's own, else the generic one.
    pub fn threshold(&self, sku: Option<&str>, metric: &str) -> Option<&Threshold> {
        sku.and_then(|s| self.profile(s))
            .and_then(|p| p.threshold(metric))
            .or_else(|| self.generic.iter().find(|t| t.metric == metric))
    }
}

#[cfg(test)]
mod tests;
