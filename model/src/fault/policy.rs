//! The policy table: what we do about a fault, and why. Data: `model/data/fault/policy.toml`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::action::{Action, Severity};

/// What we do about one sort of fault.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub action: Action,
    pub severity: Severity,
    pub why: String,
}

impl Row {
    /// How much care it takes; the more careful of two rows is the greater.
    pub(crate) fn care(&self) -> (Severity, Action) {
        (self.severity, self.action)
    }
}

/// Row for a recovery action that XID 154 names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovery {
    pub number: u32,
    pub action: Action,
    pub severity: Severity,
    pub why: String,
}

/// Rows that stand for no single catalogue entry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Special {
    pub xid_unused: Row,
    pub xid_unlisted: Row,
    pub sxid_unlisted: Row,
    pub nvlink5_fatal_no_rule: Row,
    pub nvlink5_nonfatal_no_rule: Row,
}

/// The whole policy; the tables' keys are checked against each other in [`super::rules::Rules::load`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// By NVIDIA's action name.
    pub catalogue: BTreeMap<String, Row>,
    /// Overrides by XID.
    #[serde(deserialize_with = "by_code")]
    pub xid: BTreeMap<u32, Row>,
    pub special: Special,
    /// By the name that the driver prints.
    pub recovery: BTreeMap<String, Recovery>,
    /// By effect of an SXID.
    pub sxid: BTreeMap<String, Row>,
    /// By class of a register bit of XID 74.
    pub nvlink_register: BTreeMap<String, Row>,
    /// By kind and code.
    pub event: BTreeMap<String, BTreeMap<String, Row>>,
}

/// TOML keys are text; the codes in them are numbers.
fn by_code<'de, D: serde::Deserializer<'de>>(d: D) -> Result<BTreeMap<u32, Row>, D::Error> {
    let rows = BTreeMap::<String, Row>::deserialize(d)?;
    rows.into_iter()
        .map(|(code, row)| {
            code.parse()
                .map(|code| (code, row))
                .map_err(|_| serde::de::Error::custom(format!("{code:?} is not an XID")))
        })
        .collect()
}

impl Policy {
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The row of a recovery action, by its printed name, else by its number.
    pub fn recovery(&self, name: &str, number: Option<u32>) -> Option<&Recovery> {
        self.recovery
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, row)| row)
            .or_else(|| self.recovery.values().find(|row| Some(row.number) == number))
    }
}
