//! The supplier's list: CSV or YAML, read whole, every problem with its line.

mod csv_file;
mod yaml_file;

use std::collections::HashMap;
use std::path::Path;

use whetstone_api::{ExpectedBlade, MAX_TRANCHE_BLADES};
use whetstone_model::ids::{BladeName, DomainName, RackName, Serial};

/// Largest file: 5,000 blades with every field at its longest take 2 MB.
const MAX_BYTES: u64 = 4 << 20;
/// Problems that are told; a file of another kind would have one in each line.
const MAX_PROBLEMS: usize = 100;

/// Columns of a CSV file and keys of a YAML entry.
const FIELDS: [&str; 6] = ["serial", "name", "rack", "slot", "sku", "nvlink_domain"];

/// What is wrong with a list. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct Problem {
    pub file: String,
    pub line: u64,
    pub what: String,
}

/// A blade as written, with the line where it stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Entry {
    pub line: u64,
    pub blade: ExpectedBlade,
}

/// A field's text, unchecked, and where it stands.
struct Raw {
    line: u64,
    /// In the order of [`FIELDS`]; empty = not said.
    fields: [String; 6],
}

/// What the readers find.
#[derive(Default)]
struct Found {
    raws: Vec<Raw>,
    /// Line and words.
    problems: Vec<(u64, String)>,
}

/// Reads a list: YAML by the name's ending, else CSV. The error is all that is wrong with it, in the order of lines.
pub fn read(path: &Path) -> Result<Vec<Entry>, Vec<Problem>> {
    let file = path.display().to_string();
    let one = |what: String| vec![Problem { file: file.clone(), line: 1, what }];
    let size = std::fs::metadata(path).map_err(|e| one(e.to_string()))?.len();
    if size > MAX_BYTES {
        return Err(one(format!("{size} bytes; a manifest has at most {MAX_BYTES}")));
    }
    let bytes = std::fs::read(path).map_err(|e| one(e.to_string()))?;
    let yaml = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
    parse(&file, &bytes, yaml)
}

/// As [`read`], from bytes.
pub fn parse(file: &str, bytes: &[u8], yaml: bool) -> Result<Vec<Entry>, Vec<Problem>> {
    let found = if yaml { yaml_file::read(bytes) } else { csv_file::read(bytes) };
    let (entries, mut problems) = check(found);
    if entries.is_empty() && problems.is_empty() {
        problems.push((1, "lists no blade".to_owned()));
    }
    if entries.len() > MAX_TRANCHE_BLADES {
        let what = format!("{} blades; a tranche has at most {MAX_TRANCHE_BLADES}", entries.len());
        problems.push((1, what));
    }
    if problems.is_empty() {
        return Ok(entries);
    }
    problems.sort_by_key(|(line, _)| *line);
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    problems.truncate(MAX_PROBLEMS);
    if let Some((_, last)) = problems.last_mut().filter(|_| more > 0) {
        *last += &format!(" (and {more} more problems)");
    }
    let problem = |(line, what)| Problem { file: file.to_owned(), line, what };
    Err(problems.into_iter().map(problem).collect())
}

/// Every field against its rule, serials and names against each other.
fn check(found: Found) -> (Vec<Entry>, Vec<(u64, String)>) {
    let Found { raws, mut problems } = found;
    let mut entries: Vec<Entry> = Vec::with_capacity(raws.len());
    let (mut serials, mut names) = (HashMap::<String, u64>::new(), HashMap::<String, u64>::new());
    for Raw { line, fields } in raws {
        let before = problems.len();
        let mut bad = |what: String| problems.push((line, what));
        let [serial, name, rack, slot, sku, domain] = fields.map(|text| text.trim().to_owned());
        if serial.is_empty() {
            bad("has no serial".to_owned());
        } else if let Err(e) = Serial::new(serial.as_str()) {
            bad(e.to_string());
        }
        let some = |text: String| (!text.is_empty()).then_some(text);
        let blade = ExpectedBlade {
            serial,
            name: some(name),
            rack: some(rack),
            slot: some(slot),
            sku: some(sku),
            nvlink_domain: some(domain),
        };
        let mut rule = |error: Option<String>| error.into_iter().for_each(&mut bad);
        rule(blade.name.as_ref().and_then(|text| BladeName::new(text.as_str()).err()).map(|e| e.to_string()));
        rule(blade.rack.as_ref().and_then(|text| RackName::new(text.as_str()).err()).map(|e| e.to_string()));
        rule(
            blade
                .nvlink_domain
                .as_ref()
                .and_then(|text| DomainName::new(text.as_str()).err())
                .map(|e| e.to_string()),
        );
        rule(blade.slot.as_deref().and_then(|text| plain("slot", text)));
        rule(blade.sku.as_deref().and_then(|text| plain("sku", text)));
        if problems.len() > before {
            continue;
        }
        if let Some(first) = serials.get(&blade.serial) {
            problems.push((line, format!("serial {} stands in line {first} already", blade.serial)));
            continue;
        }
        serials.insert(blade.serial.clone(), line);
        match blade.blade_name() {
            Err(e) => problems.push((line, format!("needs a name: {}", e.what))),
            Ok(name) => {
                let name = String::from(name);
                if let Some(first) = names.get(&name) {
                    problems.push((line, format!("name {name} is used in line {first} already")));
                } else {
                    names.insert(name, line);
                    entries.push(Entry { line, blade });
                }
            }
        }
    }
    (entries, problems)
}

/// What the CRD asks of the fields without a form of their own.
fn plain(field: &str, text: &str) -> Option<String> {
    let length = text.chars().count();
    (length > 63 || text.chars().any(char::is_control))
        .then(|| format!("{field}: one line of at most 63 characters ({length} given)"))
}

#[cfg(test)]
mod tests;
