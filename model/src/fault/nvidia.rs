//! Numbered errors of NVIDIA's drivers: XID, SXID, and the GPU that fell off the bus without saying its number.

use regex::bytes::{Regex, RegexBuilder};

use super::header::Segment;
use super::rules::Rules;
use super::{Code, Details, DriverVersion, Fault, Kind, nvlink5, pci_address};
use crate::device::DeviceId;

/// Literals one of which every line has that this module understands.
pub const LITERALS: &[&str] = &["Xid", "fallen off the bus", "NVRM: The NVIDIA GPU", "NVIDIA UNIX"];

/// The XID of a GPU that fell off the bus.
pub const FALLEN_OFF: u32 = 79;
/// NVLink error with registers.
const NVLINK_ERROR: u32 = 74;
/// The driver names a recovery action.
const RECOVERY: u32 = 154;

/// Effects that follow from what the SXID line prints, not from the table.
pub const PRINTED_EFFECTS: [&str; 2] = ["printed_fatal", "printed_nonfatal"];
/// Class of a register bit that the table does not list.
pub const UNLISTED_BIT: &str = "unlisted";

/// Registers that XID 74 prints.
const REGISTERS: usize = 7;
/// Longest process name that is kept; the kernel's own limit is 15, the driver's longer.
const MAX_PROCESS: usize = 128;

#[derive(Debug)]
pub struct Nvidia {
    xid: Regex,
    sxid: Regex,
    pid: Regex,
    process: Regex,
    core: Regex,
    link_registers: Regex,
    recovery: Regex,
    link: Regex,
    named: Regex,
    fallen: Regex,
    address: Regex,
    version: Regex,
    nvlink5: nvlink5::Pattern,
}

impl Nvidia {
    pub fn new() -> Result<Self, regex::Error> {
        let regex = |pattern: &str| RegexBuilder::new(pattern).unicode(false).build();
        Ok(Self {
            // After the address newer drivers name the MIG instance: "(PCI:0000:41:00 GPU-I:03)".
            xid: regex(
                r"NVRM:\s*(?:GPU\d*:?\s+)?Xid\s*\(\s*(?:(?i:PCI)[:\s]\s*)?([0-9a-fA-F]{2,8}:[0-9a-fA-F:.]{2,16})\s*[^()]{0,64}\)\s*:?\s*(\d{1,6})\b",
            )?,
            sxid: regex(
                r"(?:nvidia-nvswitch(\d{0,4}):?\s*)?\bSXid\s*\(\s*(?:(?i:PCI)[:\s]\s*)?([0-9a-fA-F]{2,8}:[0-9a-fA-F:.]{2,16})\s*[^()]{0,64}\)\s*:?\s*(\d{1,6})\b",
            )?,
            pid: regex(r"\bpid\s*=\s*'?(\d{1,10})\b")?,
            process: regex(r"\bname\s*=\s*'?([^,'\n]{1,128})")?,
            core: regex(
                r"\(\s*GPC\s*:?\s*(\d{1,4})\s*,\s*TPC\s*:?\s*(\d{1,4})(?:\s*,\s*SM\s*:?\s*(\d{1,4}))?\s*\)",
            )?,
            link_registers: regex(
                r"(?i:link)\s*(-?\d{1,4})\s*\(\s*(0[xX][0-9a-fA-F]{1,8}(?:[\s,]+0[xX][0-9a-fA-F]{1,8}){0,15})\s*\)",
            )?,
            recovery: regex(
                r"(?i:changed\s+from)\s+(?:0[xX][0-9a-fA-F]{1,4}\s*)?\(([^()]{1,64})\)\s+(?i:to)\s+(?:(?:0[xX])?([0-9a-fA-F]{1,4})\s*)?\(([^()]{1,64})\)",
            )?,
            link: regex(r"\b(?i:link)\s+(-?\d{1,4})\b")?,
            named: regex(r"NVRM:\s*The NVIDIA GPU\s+(?:(?i:PCI):)?([0-9a-fA-F]{2,8}:[0-9a-fA-F:.]{2,16})")?,
            fallen: regex(r"NVRM:.{0,200}\bfallen off the bus")?,
            address: regex(r"\b((?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)\b")?,
            version: regex(r"NVRM:\s*loading NVIDIA UNIX .{0,80}?\s(\d{3,4}\.\d{1,3}(?:\.\d{1,3})?)\s")?,
            nvlink5: nvlink5::Pattern::new()?,
        })
    }

    /// The version that the driver prints while it loads.
    pub fn driver_version(&self, segment: &Segment<'_>) -> Option<DriverVersion> {
        let captures = self.version.captures(segment.body)?;
        segment.may_begin(captures.get(0)?.start(), 1).then_some(())?;
        std::str::from_utf8(captures.get(1)?.as_bytes()).ok()?.parse().ok()
    }

    pub fn xid(&self, rules: &Rules, segment: &Segment<'_>, driver: Option<DriverVersion>) -> Option<Fault> {
        let captures = self.xid.captures(segment.body)?;
        let whole = captures.get(0)?;
        segment.may_begin(whole.start(), 1).then_some(())?;
        let code: u32 = number(captures.get(2)?.as_bytes())?;
        let rest = &segment.body[whole.end()..];
        let mut fault = xid_fault(rules, code);
        fault.device = address(captures.get(1)?.as_bytes());
        self.process(rest, &mut fault.details);
        if let Some(core) = self.core.captures(rest) {
            let part = |group| core.get(group).and_then(|m| number(m.as_bytes()));
            (fault.details.gpc, fault.details.tpc, fault.details.sm) = (part(1), part(2), part(3));
        }
        match code {
            NVLINK_ERROR => self.registers(rules, rest, &mut fault),
            RECOVERY => self.recovery(rules, rest, &mut fault),
            code if nvlink5::CODES.contains(&code) => self.nvlink5(rules, code, rest, driver, &mut fault),
            _ => {}
        }
        Some(fault)
    }

    fn process(&self, rest: &[u8], details: &mut Details) {
        let captured = |regex: &Regex| regex.captures(rest).and_then(|c| c.get(1)).map(|m| m.as_bytes());
        details.pid = captured(&self.pid).and_then(number);
        details.process = captured(&self.process)
            .map(|name| String::from_utf8_lossy(&name[..name.len().min(MAX_PROCESS)]).trim().to_owned())
            .filter(|name| !name.is_empty() && !name.starts_with("<unknown"));
    }

    /// XID 74: of several set bits the gravest class decides; "secondary" only where nothing else is set.
    fn registers(&self, rules: &Rules, rest: &[u8], fault: &mut Fault) {
        let Some(captures) = self.link_registers.captures(rest) else {
            fault.details.link = self.link(rest);
            return;
        };
        let text = |group| {
            captures.get(group).and_then(|m| std::str::from_utf8(m.as_bytes()).ok()).unwrap_or_default()
        };
        fault.details.link = text(1).parse().ok();
        fault.details.registers =
            text(2).split([',', ' ', '\t']).filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let mut classes: Vec<&str> = Vec::new();
        for (register, word) in (1u8..).zip(fault.details.registers.iter().take(REGISTERS)) {
            let word = u32::from_str_radix(&word[2..], 16).unwrap_or_default();
            for bit in (0u8..32).filter(|bit| word >> bit & 1 == 1) {
                classes.push(rules.register_bits.get(&(register, bit)).map_or(UNLISTED_BIT, String::as_str));
            }
        }
        classes.sort_unstable();
        classes.dedup();
        let alone = classes.iter().all(|class| matches!(*class, "secondary" | "harmless"));
        let rows = classes.iter().filter(|class| alone || **class != "secondary");
        let gravest =
            rows.filter_map(|class| rules.policy.nvlink_register.get(*class)).max_by_key(|row| row.care());
        if let Some(row) = gravest {
            fault.follow(row);
        }
        fault.details.register_classes = classes.into_iter().map(str::to_owned).collect();
    }

    /// XID 154: the recovery that it names is the action.
    fn recovery(&self, rules: &Rules, rest: &[u8], fault: &mut Fault) {
        let Some(captures) = self.recovery.captures(rest) else { return };
        let text =
            |group| captures.get(group).map(|m| String::from_utf8_lossy(m.as_bytes()).trim().to_owned());
        let number = text(2).and_then(|number| u32::from_str_radix(&number, 16).ok());
        let to = text(3).unwrap_or_default();
        if let Some(row) = rules.policy.recovery(&to, number) {
            fault.action = row.action;
            fault.severity = row.severity;
            fault.why.clone_from(&row.why);
        }
        fault.details.recovery_from = text(1);
        fault.details.recovery_to = Some(to);
    }

    fn nvlink5(
        &self,
        rules: &Rules,
        code: u32,
        rest: &[u8],
        driver: Option<DriverVersion>,
        fault: &mut Fault,
    ) {
        let Some(words) = self.nvlink5.find(rest) else {
            fault.details.layout = Some(nvlink5::Layout::of(driver));
            return;
        };
        let decoded = nvlink5::decode(rules, code, &words, driver);
        fault.follow(decoded.row);
        fault.subcode = Some(words.subcode());
        if let (Some(action), Some(investigate)) = (decoded.action, decoded.investigate) {
            fault.catalog_action = Some(action.to_owned());
            fault.details.investigate = Some(investigate.to_owned());
        }
        fault.details.link = words.link;
        fault.details.fatal = Some(words.fatal());
        fault.details.layout = Some(decoded.layout);
        fault.details.nvlink5 = Some(decoded.nvlink5);
    }

    fn link(&self, rest: &[u8]) -> Option<i32> {
        std::str::from_utf8(self.link.captures(rest)?.get(1)?.as_bytes()).ok()?.parse().ok()
    }

    pub fn sxid(&self, rules: &Rules, segment: &Segment<'_>) -> Option<Fault> {
        let captures = self.sxid.captures(segment.body)?;
        let whole = captures.get(0)?;
        segment.may_begin(whole.start(), 1).then_some(())?;
        let code: u32 = number(captures.get(3)?.as_bytes())?;
        let rest = &segment.body[whole.end()..];
        let printed = printed_fatal(rest);
        let listed = rules.sxids.get(&code);
        let policy = &rules.policy;
        let by_table =
            listed.and_then(|sxid| policy.sxid.get(&sxid.effect)).unwrap_or(&policy.special.sxid_unlisted);
        // The driver that printed the line knows more than the guide; "always fatal" stays what it is.
        let always = listed.is_some_and(|sxid| sxid.effect == "always_fatal");
        let grave = by_table.severity == crate::action::Severity::Fault;
        let row = match printed {
            Some(true) if !grave => policy.sxid.get(PRINTED_EFFECTS[0]),
            Some(false) if grave && !always => policy.sxid.get(PRINTED_EFFECTS[1]),
            _ => None,
        };
        let name = listed.map_or("unlisted NVSwitch error", |sxid| &sxid.meaning);
        let mut fault = Fault::new(Kind::Sxid, Code::Number(code), name, row.unwrap_or(by_table));
        fault.device = address(captures.get(2)?.as_bytes());
        fault.details.in_catalog = Some(listed.is_some());
        fault.details.nvswitch = captures.get(1).and_then(|m| number(m.as_bytes()));
        fault.details.fatal = printed;
        fault.details.link = self.link(rest);
        Some(fault)
    }

    /// The GPU in "The NVIDIA GPU 0000:b3:00.0", which begins a message of several lines.
    pub fn named(&self, segment: &Segment<'_>) -> Option<Option<DeviceId>> {
        let captures = self.named.captures(segment.body)?;
        segment.may_begin(captures.get(0)?.start(), 1).then_some(())?;
        Some(address(captures.get(1)?.as_bytes()))
    }

    /// Whether the line says that a GPU has fallen off the bus.
    pub fn fallen(&self, segment: &Segment<'_>) -> bool {
        self.fallen.find(segment.body).is_some_and(|found| segment.may_begin(found.start(), 1))
    }

    /// The first PCI address in the line.
    pub fn device_in(&self, segment: &Segment<'_>) -> Option<DeviceId> {
        // "(PCI ID: 10de:26b5)" is no address: it has one colon, so a shape with a domain or a function is asked for.
        let found = self.address.captures_iter(segment.body).filter_map(|c| c.get(1)).map(|m| m.as_bytes());
        let mut full =
            found.filter(|text| text.contains(&b'.') || text.iter().filter(|b| **b == b':').count() > 1);
        full.find_map(address)
    }

    pub fn implied_fallen(&self, rules: &Rules, device: Option<DeviceId>) -> Option<Fault> {
        let mut fault = xid_fault(rules, FALLEN_OFF);
        fault.device = device;
        fault.details.implied = true;
        Some(fault)
    }
}

/// What the catalogue and the policy say about a code.
fn xid_fault(rules: &Rules, code: u32) -> Fault {
    let listed = rules.xids.get(&code);
    let name = listed.map_or("UNLISTED", |xid| &xid.mnemonic);
    let mut fault = Fault::new(Kind::Xid, Code::Number(code), name, rules.xid_row(code));
    fault.catalog_action = listed.and_then(|xid| xid.action.clone());
    fault.details.in_catalog = Some(listed.is_some());
    fault.details.meaning = listed.map(|xid| xid.meaning.clone());
    fault.details.investigate = listed.and_then(|xid| xid.investigate.clone());
    fault
}

/// "Fatal" or "Non-fatal" as the first word after an SXID's number.
fn printed_fatal(rest: &[u8]) -> Option<bool> {
    let text: Vec<u8> = rest
        .iter()
        .skip_while(|b| matches!(b, b',' | b' ' | b'\t'))
        .take(12)
        .map(u8::to_ascii_lowercase)
        .collect();
    if text.starts_with(b"fatal") {
        Some(true)
    } else if text.starts_with(b"non-fatal")
        || text.starts_with(b"nonfatal")
        || text.starts_with(b"non fatal")
    {
        Some(false)
    } else {
        None
    }
}

fn number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn address(text: &[u8]) -> Option<DeviceId> {
    pci_address(std::str::from_utf8(text).ok()?)
}
