//! All tables together, parsed and held against each other once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::bytes::{Regex, RegexBuilder};

use super::events::Events;
use super::header::Headers;
use super::nvidia::Nvidia;
use super::policy::{Policy, Row};
use super::tables::{self, Nvlink5Rule, RegisterBits, Sxid, Xid};

/// A table that does not parse, or two that do not fit together. Names the file and the row.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("{file}:{line}: {what}")]
    Row { file: &'static str, line: usize, what: String },
    #[error("{file}: {source}")]
    Toml { file: &'static str, source: Box<toml::de::Error> },
    #[error("events.toml: {kind}/{code}: {source}")]
    Pattern { kind: String, code: String, source: Box<regex::Error> },
    #[error("a built-in pattern: {0}")]
    BuiltIn(Box<regex::Error>),
    #[error("policy.toml: no row for {what} {key}")]
    NoPolicy { what: &'static str, key: String },
    #[error("policy.toml: the row for {what} {key} is used by nothing")]
    Unused { what: &'static str, key: String },
}

impl From<regex::Error> for TableError {
    fn from(source: regex::Error) -> Self {
        TableError::BuiltIn(Box::new(source))
    }
}

/// The text of every table.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    pub xid: &'a str,
    pub sxid: &'a str,
    pub nvlink5: &'a str,
    pub nvlink_registers: &'a str,
    pub events: &'a str,
    pub policy: &'a str,
}

/// The tables that are compiled in.
pub const BUILTIN: Sources<'static> = Sources {
    xid: include_str!("../../data/fault/xid.tsv"),
    sxid: include_str!("../../data/fault/sxid.tsv"),
    nvlink5: include_str!("../../data/fault/nvlink5.tsv"),
    nvlink_registers: include_str!("../../data/fault/nvlink_registers.tsv"),
    events: include_str!("../../data/fault/events.toml"),
    policy: include_str!("../../data/fault/policy.toml"),
};

/// Everything that the classifier knows.
#[derive(Debug)]
pub struct Rules {
    pub xids: BTreeMap<u32, Xid>,
    pub sxids: BTreeMap<u32, Sxid>,
    pub nvlink5: Vec<Nvlink5Rule>,
    pub register_bits: RegisterBits,
    pub policy: Policy,
    events: Events,
    nvidia: Nvidia,
    header: Headers,
    /// Any literal without which a line says nothing.
    prefilter: Regex,
}

impl Rules {
    /// The tables that are compiled in; parsed at the first call.
    ///
    /// # Errors
    /// A table that does not parse. Tests rule that out for the tables of this version.
    pub fn builtin() -> Result<&'static Rules, &'static TableError> {
        static RULES: LazyLock<Result<Rules, TableError>> = LazyLock::new(|| Rules::load(BUILTIN));
        RULES.as_ref()
    }

    /// Parses tables and checks that each entry has its row in the policy and no row is left over.
    pub fn load(sources: Sources<'_>) -> Result<Rules, TableError> {
        let toml = |file| move |source: toml::de::Error| TableError::Toml { file, source: Box::new(source) };
        let events = Events::parse(sources.events)?;
        let literals: Vec<String> =
            super::nvidia::LITERALS.iter().copied().chain(events.literals()).map(regex::escape).collect();
        let rules = Rules {
            xids: tables::xids(sources.xid)?,
            sxids: tables::sxids(sources.sxid)?,
            nvlink5: tables::nvlink5(sources.nvlink5)?,
            register_bits: tables::register_bits(sources.nvlink_registers)?,
            policy: Policy::parse(sources.policy).map_err(toml("policy.toml"))?,
            events,
            nvidia: Nvidia::new()?,
            header: Headers::new()?,
            prefilter: RegexBuilder::new(&literals.join("|")).unicode(false).build()?,
        };
        rules.check()?;
        Ok(rules)
    }

    /// Whether the line holds any literal of interest; most do not, and are done with here.
    pub(crate) fn may_matter(&self, line: &[u8]) -> bool {
        self.prefilter.is_match(line)
    }

    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    pub(crate) fn nvidia(&self) -> &Nvidia {
        &self.nvidia
    }

    pub(crate) fn header(&self) -> &Headers {
        &self.header
    }

    /// The policy's row for an XID, given the catalogue's action for it.
    pub fn xid_row(&self, code: u32) -> &Row {
        let special = &self.policy.special;
        let Some(xid) = self.xids.get(&code) else { return &special.xid_unlisted };
        let by_action = xid.action.as_ref().and_then(|action| self.policy.catalogue.get(action));
        match self.policy.xid.get(&code) {
            Some(row) => row,
            None if !xid.used && xid.action.as_deref() == Some("CONTACT_SUPPORT") => &special.xid_unused,
            // `check` rules out that there is none.
            None => by_action.unwrap_or(&special.xid_unlisted),
        }
    }

    fn check(&self) -> Result<(), TableError> {
        let policy = &self.policy;
        let mut actions: BTreeSet<&str> = BTreeSet::new();
        for xid in self.xids.values() {
            actions.extend(xid.action.as_deref());
            if xid.action.is_none() && !policy.xid.contains_key(&xid.code) {
                return Err(TableError::NoPolicy { what: "XID", key: xid.code.to_string() });
            }
        }
        for rule in &self.nvlink5 {
            actions.insert(&rule.action);
            actions.extend(rule.promoted.as_ref().map(|(_, action)| action.as_str()));
        }
        let events: BTreeSet<String> = self.events.names().collect();
        let event_rows: BTreeSet<String> = policy
            .event
            .iter()
            .flat_map(|(kind, rows)| rows.keys().map(move |code| format!("{kind}/{code}")))
            .collect();
        let texts = |keys: BTreeSet<&str>| keys.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
        let of = |keys: Vec<&String>| keys.into_iter().cloned().collect::<BTreeSet<_>>();
        let mut effects: BTreeSet<&str> = self.sxids.values().map(|s| s.effect.as_str()).collect();
        effects.extend(super::nvidia::PRINTED_EFFECTS);
        let mut classes: BTreeSet<&str> = self.register_bits.values().map(String::as_str).collect();
        classes.insert(super::nvidia::UNLISTED_BIT);
        for (what, needed, there) in [
            ("catalogue action", texts(actions), of(policy.catalogue.keys().collect())),
            ("SXID effect", texts(effects), of(policy.sxid.keys().collect())),
            ("register class", texts(classes), of(policy.nvlink_register.keys().collect())),
            ("event", events, event_rows),
        ] {
            if let Some(key) = needed.difference(&there).next() {
                return Err(TableError::NoPolicy { what, key: key.clone() });
            }
            if let Some(key) = there.difference(&needed).next() {
                return Err(TableError::Unused { what, key: key.clone() });
            }
        }
        match policy.xid.keys().find(|code| !self.xids.contains_key(code)) {
            Some(code) => Err(TableError::Unused { what: "XID", key: code.to_string() }),
            None => Ok(()),
        }
    }
}
