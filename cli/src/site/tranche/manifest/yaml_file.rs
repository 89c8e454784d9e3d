//! A list of entries, or a mapping whose `blades` is one:
//! ```yaml
//! blades:
//!   - {serial: 1655123000042, name: b-003, rack: r-02, sku: hgx-h100, nvlink_domain: d-1}
//! ```

use std::cell::RefCell;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::{FIELDS, Found, Raw};

pub fn read(bytes: &[u8]) -> Found {
    let mut found = Found::default();
    let Ok(text) = std::str::from_utf8(bytes) else {
        found.problems.push((1, "is not UTF-8 text".to_owned()));
        return found;
    };
    let walk = Walk { stop_at: None, entries: RefCell::default() };
    let result = Document(&walk).deserialize(serde_norway::Deserializer::from_str(text));
    if let Err(error) = result {
        let line = error.location().map_or(1, |at| at.line() as u64);
        found.problems.push((line, said(&error)));
        return found;
    }
    let entries = walk.entries.into_inner();
    // The library says where something is in its errors alone: a walk that stops at each entry in turn would read the file as
    // often as it has entries. Block lists have one entry after another with a dash in the same column.
    let lines = dashes(text, entries.len()).unwrap_or_else(|| by_walk(text, entries.len()));
    for (number, (fields, problems)) in entries.into_iter().enumerate() {
        let line = lines.get(number).copied().unwrap_or(1);
        if problems.is_empty() {
            found.raws.push(Raw { line, fields });
        } else {
            found.problems.extend(problems.into_iter().map(|what| (line, what)));
        }
    }
    found
}

/// An error without its place: that stands before it.
fn said(error: &serde_norway::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(what, _)| what.to_owned())
}

/// Lines of the entries of a block list. `None` where there are not just as many: it is written in another way.
fn dashes(text: &str, entries: usize) -> Option<Vec<u64>> {
    let dash = |line: &str| {
        let inner = line.trim_start_matches(' ');
        (inner == "-" || inner.starts_with("- ")).then(|| line.len() - inner.len())
    };
    let column = text.lines().find_map(dash)?;
    let lines: Vec<u64> = text
        .lines()
        .zip(1..)
        .filter(|(line, _)| dash(line) == Some(column))
        .map(|(_, number)| number)
        .collect();
    (lines.len() == entries).then_some(lines)
}

/// Entries whose line is looked for one by one; later ones are said to be where the last of these is.
const MAX_WALKS: usize = 200;

fn by_walk(text: &str, entries: usize) -> Vec<u64> {
    let line = |number| {
        let walk = Walk { stop_at: Some(number), entries: RefCell::default() };
        let result = Document(&walk).deserialize(serde_norway::Deserializer::from_str(text));
        result.err().and_then(|error| error.location()).map_or(1, |at| at.line() as u64)
    };
    let mut lines: Vec<u64> = (0..entries.min(MAX_WALKS)).map(line).collect();
    lines.resize(entries, lines.last().copied().unwrap_or(1));
    lines
}

type Fields = ([String; 6], Vec<String>);

struct Walk {
    /// Fail at this entry, to learn where it is.
    stop_at: Option<usize>,
    entries: RefCell<Vec<Fields>>,
}

struct Document<'a>(&'a Walk);

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of blades, or a mapping with `blades`")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(One(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut there = false;
        while let Some(key) = map.next_key::<String>()? {
            if key != "blades" {
                let shown: String = key.chars().take(40).collect();
                return Err(A::Error::custom(format!(
                    "unknown key {shown:?}; a manifest has `blades` alone"
                )));
            }
            there = true;
            map.next_value_seed(List(self.0))?;
        }
        if there { Ok(()) } else { Err(A::Error::custom("has no `blades`")) }
    }
}

struct List<'a>(&'a Walk);

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(Document(self.0))
    }
}

struct One<'a>(&'a Walk);

impl<'de> DeserializeSeed<'de> for One<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for One<'_> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a blade: a mapping with {}", FIELDS.join(", "))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let number = self.0.entries.borrow().len();
        if self.0.stop_at == Some(number) {
            return Err(A::Error::custom("here"));
        }
        let (mut fields, mut problems): Fields = Default::default();
        while let Some(key) = map.next_key::<String>()? {
            // As the object has it, too.
            let known = if key == "nvlinkDomain" { "nvlink_domain" } else { key.as_str() };
            let field = FIELDS.iter().position(|field| *field == known);
            let Some(field) = field.and_then(|field| fields.get_mut(field)) else {
                let shown: String = key.chars().take(40).collect();
                problems.push(format!("key {shown:?} is none of {}", FIELDS.join(", ")));
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            *field = map.next_value::<Scalar>()?.0;
        }
        self.0.entries.borrow_mut().push((fields, problems));
        Ok(())
    }
}

/// A scalar as written: a serial of digits keeps its zeros. Null is nothing.
struct Scalar(String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Scalar(Option::<String>::deserialize(deserializer)?.unwrap_or_default()))
    }
}
