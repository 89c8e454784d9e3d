//! NVLink 5 errors (XID 144-150): decoding the two words that the line carries.

use regex::bytes::Regex;
use serde::{Deserialize, Serialize};

use super::DriverVersion;
use super::policy::Row;
use super::rules::Rules;
use super::tables::Nvlink5Rule;

/// Codes that carry such words.
pub const CODES: std::ops::RangeInclusive<u32> = 144..=150;

/// First driver branch that prints the new layout.
const NEW_SINCE: u16 = 575;

/// How the bits of intrinfo are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    BelowR575,
    R575Up,
    /// No driver version is known; what was read holds in every layout that fits, or is marked as not certain.
    Unknown,
}

impl Layout {
    pub fn of(driver: Option<DriverVersion>) -> Self {
        match driver {
            None => Layout::Unknown,
            Some(version) if version.branch < NEW_SINCE => Layout::BelowR575,
            Some(_) => Layout::R575Up,
        }
    }
}

/// What such a line says, and which rule of the catalogue fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nvlink5 {
    /// Part of the chip, as printed.
    pub unit: String,
    /// `Fatal` or `Nonfatal`, as printed.
    pub severity: String,
    /// Hexadecimal, as printed.
    pub intrinfo: String,
    pub error_status: String,
    pub cross_containment: Option<String>,
    pub injected: Option<String>,
    /// Rule of the catalogue, if one fits in the layout (or in one of the two, if the layout is not known).
    pub rule: Option<u32>,
    /// What fits in either layout, told if the layout is not known.
    pub rule_below_r575: Option<u32>,
    pub rule_r575_up: Option<u32>,
    /// The sheet's own word on how grave the rule is.
    pub rule_severity: Option<String>,
    pub origin: Option<String>,
    /// False if the two layouts fit with different actions and the more careful one was taken.
    pub certain: bool,
}

/// Finds the words in the line's text after the code.
#[derive(Debug)]
pub struct Pattern(Regex);

/// The words of a line.
pub struct Words {
    pub unit: String,
    pub severity: String,
    pub cross_containment: Option<String>,
    pub injected: Option<String>,
    pub link: Option<i32>,
    pub intrinfo: (u32, String),
    pub error_status: (u32, String),
}

impl Words {
    pub fn fatal(&self) -> bool {
        !self.severity.to_ascii_lowercase().starts_with("non")
    }

    pub fn subcode(&self) -> u32 {
        (self.intrinfo.0 >> 20) & 0x3f
    }
}

impl Pattern {
    pub fn new() -> Result<Self, regex::Error> {
        let pattern = r"(?x)
            ([A-Za-z][A-Za-z0-9_]*(?:[\ /][A-Za-z0-9_]+){0,3}?)\s+
            ((?i:(?:link[\ _-]?)?fatal|non[\ _-]?fatal))\b[\s,]*
            (?:(XC\d+)[\s,]+)?(?:(i\d+)[\s,]+)?
            (?:Link[\s:]*(-?\d{1,6})[\s,]*)?
            \(\s*(0[xX][0-9a-fA-F]{1,8})[\s,]+(0[xX][0-9a-fA-F]{1,8})\b";
        regex::bytes::RegexBuilder::new(pattern).unicode(false).build().map(Self)
    }

    pub fn find(&self, text: &[u8]) -> Option<Words> {
        let captures = self.0.captures(text)?;
        let get = |group| {
            captures.get(group).and_then(|m| std::str::from_utf8(m.as_bytes()).ok()).map(str::to_owned)
        };
        let word = |group| {
            let text = get(group)?;
            Some((u32::from_str_radix(&text[2..], 16).ok()?, text))
        };
        Some(Words {
            unit: get(1)?,
            severity: get(2)?,
            cross_containment: get(3),
            injected: get(4),
            link: get(5).and_then(|link| link.parse().ok()),
            intrinfo: word(6)?,
            error_status: word(7)?,
        })
    }
}

/// A rule that fits, and its action (the promoted one where the bits say so).
#[derive(Debug, Clone, Copy)]
struct Fit<'r> {
    rule: &'r Nvlink5Rule,
    action: &'r str,
}

/// The rule that fits in one layout (0 old, 1 new). Of several the one whose unit is printed, else the first.
fn fit<'r>(rules: &'r Rules, xid: u32, words: &Words, layout: usize) -> Option<Fit<'r>> {
    let (intrinfo, status) = (words.intrinfo.0, words.error_status.0);
    let mut fits = rules.nvlink5.iter().filter_map(|rule| {
        if rule.xid != xid || rule.subcode != words.subcode() {
            return None;
        }
        if !(rule.status.is_empty() || rule.status.contains(&status)) {
            return None;
        }
        if rule.bits[layout].fit(intrinfo) {
            return Some(Fit { rule, action: &rule.action });
        }
        let (bits, action) = rule.promoted.as_ref()?;
        bits[layout].fit(intrinfo).then_some(Fit { rule, action })
    });
    let printed = |fit: &Fit<'_>| words.unit.split('/').any(|unit| unit == fit.rule.unit[layout]);
    let first = fits.next()?;
    if printed(&first) { Some(first) } else { Some(fits.find(printed).unwrap_or(first)) }
}

/// What to do about such an error.
pub struct Decoded<'r> {
    pub nvlink5: Nvlink5,
    pub layout: Layout,
    pub row: &'r Row,
    /// The rule's action and investigation; `None` if no rule fits.
    pub action: Option<&'r str>,
    pub investigate: Option<&'r str>,
}

pub fn decode<'r>(rules: &'r Rules, xid: u32, words: &Words, driver: Option<DriverVersion>) -> Decoded<'r> {
    let layout = Layout::of(driver);
    let (old, new) = (fit(rules, xid, words, 0), fit(rules, xid, words, 1));
    let candidates = match layout {
        Layout::BelowR575 => [old, None],
        Layout::R575Up => [new, None],
        Layout::Unknown => [old, new],
    };
    let row = |fit: &Fit<'r>| rules.policy.catalogue.get(fit.action);
    let best = candidates
        .iter()
        .flatten()
        .filter_map(|fit| Some((fit, row(fit)?)))
        .max_by_key(|(_, row)| row.care());
    let certain =
        candidates.iter().flatten().map(|fit| fit.action).collect::<std::collections::BTreeSet<_>>().len()
            < 2;
    let special = &rules.policy.special;
    let no_rule =
        if words.fatal() { &special.nvlink5_fatal_no_rule } else { &special.nvlink5_nonfatal_no_rule };
    let told = |fit: Option<Fit<'_>>| fit.filter(|_| layout == Layout::Unknown).map(|fit| fit.rule.rule);
    Decoded {
        layout,
        row: best.map_or(no_rule, |(_, row)| row),
        action: best.map(|(fit, _)| fit.action),
        investigate: best.map(|(fit, _)| fit.rule.investigate.as_str()),
        nvlink5: Nvlink5 {
            unit: words.unit.clone(),
            severity: words.severity.clone(),
            intrinfo: words.intrinfo.1.clone(),
            error_status: words.error_status.1.clone(),
            cross_containment: words.cross_containment.clone(),
            injected: words.injected.clone(),
            rule: best.map(|(fit, _)| fit.rule.rule),
            rule_below_r575: told(old),
            rule_r575_up: told(new),
            rule_severity: best.map(|(fit, _)| fit.rule.severity.clone()),
            origin: best.map(|(fit, _)| fit.rule.origin.clone()),
            certain,
        },
    }
}
