//! The kernel log understood: which lines are faults, of which device, and what to do.
//!
//! [`classify`] looks at one line (or a few that belong together); a [`Classifier`] reads a log from top to bottom and
//! also understands messages that run over several lines. Facts lie in tables under `model/data/fault/`, what we do
//! about them in `policy.toml` there. Lines come from outside: nothing here trusts their length, form or encoding.

mod driver;
mod events;
mod header;
pub mod lines;
mod nvidia;
mod nvlink5;
pub mod policy;
pub mod rules;
pub mod tables;

use serde::{Deserialize, Serialize};

use crate::action::{Action, Severity};
use crate::device::DeviceId;
use crate::evidence::Finding;
pub use driver::{BadDriverVersion, DriverVersion};
pub use nvlink5::{Layout, Nvlink5};
pub use rules::{Rules, TableError};

/// What part of the machine a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// NVIDIA driver, numbered error of a GPU.
    Xid,
    /// NVIDIA driver, numbered error of an NVSwitch.
    Sxid,
    Nvlink,
    FabricManager,
    /// Mellanox or NVIDIA network adapter.
    Mlx5,
    /// Port of the fabric network going up or down.
    IbLink,
    Nccl,
    Peermem,
    PcieAer,
    /// Machine check, or a hardware error that firmware reports.
    Mce,
    /// Error of system memory.
    Edac,
    /// Out of memory.
    Memory,
    Cpu,
    Disk,
    Nfs,
    Os,
}

impl Kind {
    pub const ALL: [Kind; 16] = [
        Kind::Xid,
        Kind::Sxid,
        Kind::Nvlink,
        Kind::FabricManager,
        Kind::Mlx5,
        Kind::IbLink,
        Kind::Nccl,
        Kind::Peermem,
        Kind::PcieAer,
        Kind::Mce,
        Kind::Edac,
        Kind::Memory,
        Kind::Cpu,
        Kind::Disk,
        Kind::Nfs,
        Kind::Os,
    ];

    /// The name used in JSON and in data tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Xid => "xid",
            Kind::Sxid => "sxid",
            Kind::Nvlink => "nvlink",
            Kind::FabricManager => "fabric_manager",
            Kind::Mlx5 => "mlx5",
            Kind::IbLink => "ib_link",
            Kind::Nccl => "nccl",
            Kind::Peermem => "peermem",
            Kind::PcieAer => "pcie_aer",
            Kind::Mce => "mce",
            Kind::Edac => "edac",
            Kind::Memory => "memory",
            Kind::Cpu => "cpu",
            Kind::Disk => "disk",
            Kind::Nfs => "nfs",
            Kind::Os => "os",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Number of an XID or SXID, or the name of an event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Code {
    Number(u32),
    Name(String),
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Code::Number(number) => write!(f, "{number}"),
            Code::Name(name) => f.write_str(name),
        }
    }
}

/// A line that means something. `severity` says whether it makes the blade unfit: most application errors do not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    pub kind: Kind,
    pub code: Code,
    /// NVLink 5: bits 25..20 of intrinfo.
    pub subcode: Option<u32>,
    /// PCI address `dddd:bb:dd[.f]`, lower case, where the line has one.
    pub device: Option<DeviceId>,
    /// NVIDIA's mnemonic for an XID, else a short name of ours.
    pub name: String,
    pub action: Action,
    /// NVIDIA's own name of the action, where its catalogue has one.
    pub catalog_action: Option<String>,
    pub severity: Severity,
    /// Why this action and severity: the reason that the policy gives.
    pub why: String,
    #[serde(flatten)]
    pub details: Box<Details>,
}

/// What else the line says; fields that it does not have are left out of JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Details {
    /// What the code stands for, in our words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meaning: Option<String>,
    /// NVIDIA's name of what to do if the immediate action does not help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub investigate: Option<String>,
    /// False for a number that NVIDIA's tables do not list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_catalog: Option<bool>,
    /// No line named the code, but what is said means it (a GPU off the bus is XID 79).
    #[serde(skip_serializing_if = "is_false")]
    pub implied: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// NVLink number; -1 is what the driver prints if no single link is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpc: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpc: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sm: Option<u32>,
    /// XID 74: the registers as printed, and what their bits stand for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub registers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub register_classes: Vec<String>,
    /// XID 154: the recovery action before and now, as printed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_to: Option<String>,
    /// NVLink 5 (XID 144-150): which layout it was read by; `unknown` if no driver version was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvlink5: Option<Nvlink5>,
    /// SXID: number of the switch, and whether the driver called it fatal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvswitch: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fatal: Option<bool>,
    /// SXID that the fabric manager names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sxid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// Machine check: bank and status word (hexadecimal).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bank: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iface: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Fault {
    pub(crate) fn new(kind: Kind, code: Code, name: impl Into<String>, row: &policy::Row) -> Self {
        Self {
            kind,
            code,
            subcode: None,
            device: None,
            name: name.into(),
            action: row.action,
            catalog_action: None,
            severity: row.severity,
            why: row.why.clone(),
            details: Box::default(),
        }
    }

    pub(crate) fn follow(&mut self, row: &policy::Row) {
        self.action = row.action;
        self.severity = row.severity;
        self.why.clone_from(&row.why);
    }

    /// The finding that a run's report carries for it: code `xid-79`, `mlx5-cmd-exec-timeout`, …
    pub fn finding(&self) -> Finding {
        let code = format!("{}-{}", self.kind, self.code).replace('_', "-");
        let meaning = self.details.meaning.as_deref().unwrap_or(&self.name);
        let detail = match self.kind {
            Kind::Xid | Kind::Sxid => {
                format!("{} {}: {meaning}", self.kind.as_str().to_uppercase(), self.code)
            }
            _ => format!("kernel log: {meaning}"),
        };
        Finding {
            code,
            device: self.device.clone(),
            severity: self.severity,
            action: self.action,
            detail,
            reading: None,
        }
    }
}

/// Lines that follow each other closely enough for "The NVIDIA GPU ..." and "... fallen off the bus" to be one message.
const LINES_OF_ONE_MESSAGE: u8 = 4;

/// A GPU that a line named without saying yet what is wrong with it.
#[derive(Debug, Clone)]
struct Named {
    device: Option<DeviceId>,
    /// The fault was already told by an XID line in between.
    told: bool,
    lines_left: u8,
}

/// Reads a log from top to bottom. Remembers the last few lines only as far as one message needs it, and the driver's
/// version if the log names it and the caller did not.
#[derive(Debug, Clone)]
pub struct Classifier<'r> {
    rules: &'r Rules,
    driver: Option<DriverVersion>,
    /// From the log itself ("loading NVIDIA UNIX ... 575.57.08").
    driver_in_log: Option<DriverVersion>,
    named: Option<Named>,
}

impl<'r> Classifier<'r> {
    /// `driver`: the version that wrote the log, if it is known.
    pub fn new(rules: &'r Rules, driver: Option<DriverVersion>) -> Self {
        Self { rules, driver, driver_in_log: None, named: None }
    }

    /// What the line means, or `None`. Of several faults in one line (a torn log) the gravest.
    pub fn line(&mut self, line: impl AsRef<[u8]>) -> Option<Fault> {
        let line = line.as_ref();
        let line = &line[..line.len().min(lines::MAX_LINE)];
        if let Some(named) = &mut self.named {
            named.lines_left -= 1;
            if named.lines_left == 0 {
                self.named = None;
            }
        }
        if !self.rules.may_matter(line) {
            return None;
        }
        let mut gravest: Option<Fault> = None;
        for segment in header::segments(self.rules.header(), line) {
            if let Some(fault) = self.segment(&segment) {
                let graver = gravest.as_ref().is_none_or(|known| {
                    (fault.severity, !fault.details.implied) > (known.severity, !known.details.implied)
                });
                if graver {
                    gravest = Some(fault);
                }
            }
        }
        gravest
    }

    fn segment(&mut self, segment: &header::Segment<'_>) -> Option<Fault> {
        let nvidia = self.rules.nvidia();
        if segment.is_kernel() {
            if let Some(version) = nvidia.driver_version(segment) {
                self.driver_in_log = Some(version);
                return None;
            }
            let driver = self.driver.or(self.driver_in_log);
            if let Some(fault) =
                nvidia.xid(self.rules, segment, driver).or_else(|| nvidia.sxid(self.rules, segment))
            {
                if let (Some(named), Code::Number(nvidia::FALLEN_OFF)) = (&mut self.named, &fault.code) {
                    named.told = true;
                }
                return Some(fault);
            }
            if let Some(device) = nvidia.named(segment) {
                self.named = Some(Named { device, told: false, lines_left: LINES_OF_ONE_MESSAGE });
            }
            if nvidia.fallen(segment) {
                let named = self.named.take();
                if named.as_ref().is_some_and(|named| named.told) {
                    return None;
                }
                let device = nvidia.device_in(segment).or_else(|| named.and_then(|named| named.device));
                return nvidia.implied_fallen(self.rules, device);
            }
        }
        self.rules.events().classify(self.rules, segment)
    }
}

/// What one line (or a few lines of one message, with line ends between) means, or `None`.
///
/// `None` too if the tables that were compiled in did not parse; tests rule that out, and [`Rules::builtin`] says so.
pub fn classify(line: impl AsRef<[u8]>, driver: Option<DriverVersion>) -> Option<Fault> {
    Classifier::new(Rules::builtin().ok()?, driver).line(line)
}

/// A PCI address as `dddd:bb:dd[.f]` in lower case: `PCI:0000:3B:00.0`, `00000000:3b:00.0` and `3b:00.0` are the same.
pub fn pci_address(text: &str) -> Option<DeviceId> {
    let text = text.trim();
    let text = text.get(..4).filter(|p| p.eq_ignore_ascii_case("pci:")).map_or(text, |_| &text[4..]);
    let text = text.to_ascii_lowercase();
    let mut parts = text.trim_end_matches('.').rsplitn(3, ':');
    let (slot, bus, domain) = (parts.next()?, parts.next()?, parts.next().unwrap_or("0000"));
    let hex = |s: &str, digits: std::ops::RangeInclusive<usize>| {
        digits.contains(&s.len()) && s.bytes().all(|b| b.is_ascii_hexdigit())
    };
    let (device, function) =
        slot.split_once('.').map_or((slot, None), |(device, function)| (device, Some(function)));
    let function_fits =
        function.is_none_or(|f| f.len() == 1 && f.bytes().all(|b| (b'0'..=b'7').contains(&b)));
    if !hex(domain, 4..=8) || !hex(bus, 2..=2) || !hex(device, 2..=2) || !function_fits {
        return None;
    }
    // Some tools print the domain with 8 digits; the kernel prints at least 4.
    let short = &domain[domain.len() - domain.trim_start_matches('0').len().max(4)..];
    let function = function.map(|f| format!(".{f}")).unwrap_or_default();
    DeviceId::new(format!("{short}:{bus}:{device}{function}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_however_it_is_printed() {
        for text in ["0000:3b:00.0", "PCI:0000:3B:00.0", "pci:00000000:3b:00.0", " 3B:00.0 ", "0000:3b:00.0."]
        {
            assert_eq!(pci_address(text).map(String::from).as_deref(), Some("0000:3b:00.0"), "{text}");
        }
        assert_eq!(pci_address("PCI:0018:01:00").map(String::from).as_deref(), Some("0018:01:00"));
        assert_eq!(pci_address("10000:e1:00.0").map(String::from).as_deref(), Some("10000:e1:00.0"));
        for text in [
            "",
            "PCI:",
            "0000:3b",
            "0000:3b:00.9",
            "0000:3b:0",
            "0:3b:00",
            "0000:3b:00.",
            "g000:3b:00",
            "ä:00:00",
        ] {
            let found = pci_address(text);
            assert!(found.is_none() || text == "0000:3b:00.", "{text:?} gave {found:?}");
        }
    }

    #[test]
    fn kinds_are_named_alike_in_json_and_tables() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("{:?}", kind.as_str()));
        }
    }
}
