//! Lines that are neither XID nor SXID, known by the patterns of `model/data/fault/events.toml`.

use regex::bytes::{Captures, Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use serde::Deserialize;

use super::header::Segment;
use super::rules::{Rules, TableError};
use super::{Code, Details, Fault, Kind, pci_address};

/// `{PCI}` in a pattern.
const PCI: &str = r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?";
/// `{MLX5}` in a pattern.
const MLX5: &str = r"mlx5_core[\s:]+(?:(?P<device>{PCI})\b)?";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    event: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    kind: Kind,
    code: String,
    name: String,
    needs: Vec<String>,
    pattern: String,
    #[serde(default = "two")]
    lead: usize,
    tag: Option<String>,
    #[serde(default)]
    comm: bool,
    #[serde(default)]
    settle_s: u64,
}

fn two() -> usize {
    2
}

#[derive(Debug)]
struct Event {
    entry: Entry,
    pattern: Regex,
    /// Places of its literals in the set.
    needs: Vec<usize>,
}

/// All events, in the order of the file.
#[derive(Debug)]
pub struct Events {
    events: Vec<Event>,
    literals: Vec<String>,
    set: RegexSet,
}

impl Events {
    pub fn parse(text: &str) -> Result<Self, TableError> {
        let file: File = toml::from_str(text)
            .map_err(|source| TableError::Toml { file: "events.toml", source: Box::new(source) })?;
        let mut literals: Vec<String> = Vec::new();
        let mut events = Vec::new();
        for entry in file.event {
            let expanded = entry.pattern.replace("{MLX5}", MLX5).replace("{PCI}", PCI);
            let pattern = RegexBuilder::new(&expanded).unicode(false).build().map_err(|source| {
                TableError::Pattern {
                    kind: entry.kind.to_string(),
                    code: entry.code.clone(),
                    source: Box::new(source),
                }
            })?;
            let needs = entry.needs.iter().map(|literal| {
                literals.iter().position(|known| known == literal).unwrap_or_else(|| {
                    literals.push(literal.clone());
                    literals.len() - 1
                })
            });
            let needs = needs.collect();
            events.push(Event { entry, pattern, needs });
        }
        let set = RegexSetBuilder::new(literals.iter().map(|l| regex::escape(l))).unicode(false).build()?;
        Ok(Self { events, literals, set })
    }

    pub fn literals(&self) -> impl Iterator<Item = &str> {
        self.literals.iter().map(String::as_str)
    }

    /// `kind/code` of every event.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.events.iter().map(|event| format!("{}/{}", event.entry.kind, event.entry.code))
    }

    pub fn classify(&self, rules: &Rules, segment: &Segment<'_>) -> Option<Fault> {
        let hits = self.set.matches(segment.body);
        if !hits.matched_any() {
            return None;
        }
        self.events
            .iter()
            .filter(|event| event.needs.iter().any(|literal| hits.matched(*literal)))
            .find_map(|event| event.fault(rules, segment))
    }
}

impl Event {
    fn fault(&self, rules: &Rules, segment: &Segment<'_>) -> Option<Fault> {
        let entry = &self.entry;
        let told_by = match segment.program {
            None => true,
            Some(program) => entry.comm || entry.tag.as_deref().is_some_and(|tag| tag.as_bytes() == program),
        };
        if !told_by || segment.uptime_s.is_some_and(|seconds| seconds < entry.settle_s) {
            return None;
        }
        let captures = self.pattern.captures(segment.body)?;
        if !segment.may_begin(captures.get(0)?.start(), entry.lead) {
            return None;
        }
        let details = details(&captures);
        let code = match (entry.kind, &details.status) {
            (Kind::Mce, Some(status)) => machine_check(status).unwrap_or(&entry.code),
            _ => &entry.code,
        };
        let row = rules.policy.event.get(entry.kind.as_str())?.get(code)?;
        let mut fault = Fault::new(entry.kind, Code::Name(code.to_owned()), entry.name.clone(), row);
        fault.device =
            text(&captures, "source").or_else(|| text(&captures, "device")).and_then(|a| pci_address(&a));
        *fault.details = details;
        Some(fault)
    }
}

/// Longest text that is taken from a line into a field.
const MAX_FIELD: usize = 256;

fn text(captures: &Captures<'_>, group: &str) -> Option<String> {
    let bytes = captures.name(group)?.as_bytes();
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_FIELD)]);
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn details(captures: &Captures<'_>) -> Details {
    let number = |group| text(captures, group).and_then(|text| text.parse::<u32>().ok());
    Details {
        pid: number("pid"),
        process: text(captures, "process"),
        link: text(captures, "link").and_then(|text| text.parse().ok()),
        sxid: number("sxid"),
        port: number("port"),
        module: number("module"),
        watts: number("watts"),
        cpu: number("cpu"),
        bank: number("bank"),
        status: text(captures, "status").map(|status| format!("0x{:0>16}", status.to_ascii_lowercase())),
        iface: text(captures, "iface"),
        disk: text(captures, "disk"),
        server: text(captures, "server"),
        ..Details::default()
    }
}

/// What the status word of a machine check says (Intel SDM vol. 3B, 17.3.2.2; AMD APM vol. 2, 9.3.2.1).
fn machine_check(status: &str) -> Option<&'static str> {
    const UNCORRECTED: u64 = 1 << 61;
    const CONTEXT_CORRUPT: u64 = 1 << 57;
    let word = u64::from_str_radix(status.strip_prefix("0x")?, 16).ok()?;
    Some(match (word & UNCORRECTED != 0, word & CONTEXT_CORRUPT != 0) {
        (true, true) => "fatal",
        (true, false) => "uncorrected",
        (false, _) => "corrected",
    })
}
