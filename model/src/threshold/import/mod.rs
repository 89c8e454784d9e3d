//! Limits from any source in one form, so that the linter sees our numbers and others' alike.
//!
//! [`read`] takes our own threshold files, the import format of `docs/thresholds.md` (a table with the columns
//! `sku metric value unit kind …` or TOML with `[[limit]]`), and three tables made from others' files: DCGM's
//! `diag-skus.yaml.in` and the configuration and README of azurehpc-health-checks. Each is known by its header.

mod known;
mod measure;
mod rows;

pub use measure::Measure;

use super::chip::Chip;
use super::parse::MAX_FILE_BYTES;
use super::{Better, Profile, Provenance, Role, Table, Threshold, ThresholdError, metric};

/// Rows of one file at most.
pub const MAX_ROWS: usize = 10_000;
/// Longest line of a table, bytes.
pub const MAX_LINE: usize = 16 << 10;

/// One number that something is held against.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    pub file: String,
    /// Line in `file`, from 1.
    pub line: usize,
    /// Id of the SKU in the source; empty for what holds for every SKU.
    pub sku: String,
    /// Name to find the chip by; the id where there is no name.
    pub product: String,
    /// Our name of the metric where it has one, else the source's.
    pub metric: String,
    pub value: f64,
    pub measure: Measure,
    pub role: Role,
    pub better: Better,
    /// Who says so; empty = not said.
    pub source: String,
    /// Comment beside the number in the source.
    pub note: String,
}

impl Limit {
    pub fn chip(&self) -> Option<Chip> {
        Chip::of(&self.product).or_else(|| Chip::of(&self.sku))
    }

    /// The value in another limit's unit, `None` if they measure different things.
    pub fn value_in(&self, measure: &Measure) -> Option<f64> {
        self.measure.convert(self.value, measure)
    }
}

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Import {
    pub limits: Vec<Limit>,
    /// Rows that are no limits (flags, sizes, names).
    pub skipped: usize,
    /// It is a threshold file of ours, whose metrics must all be known.
    pub own_format: bool,
}

/// Reads the limits of a file, whatever its known form; `file` names it in errors.
pub fn read(file: &str, text: &str) -> Result<Import, ThresholdError> {
    if text.len() > MAX_FILE_BYTES {
        let what = format!("{} bytes: at most {MAX_FILE_BYTES}", text.len());
        return Err(ThresholdError { file: file.to_owned(), line: 1, what });
    }
    let first = text.lines().find(|l| !l.trim().is_empty() && !l.starts_with('#')).unwrap_or_default();
    if first.contains('\t') && !first.contains('=') {
        return rows::table(file, text);
    }
    match toml::from_str::<toml::Table>(text) {
        Ok(table) if table.contains_key("limit") => rows::toml(file, text),
        Ok(table) if table.is_empty() => Err(ThresholdError {
            file: file.to_owned(),
            line: 1,
            what: "empty: neither a threshold file (TOML) nor a table with a known header".to_owned(),
        }),
        // Ours, or broken TOML: either way the parser of threshold files says where.
        _ => Ok(Import { limits: of_table(&Table::parse(file, text)?), skipped: 0, own_format: true }),
    }
}

/// Our own thresholds as limits.
pub fn of_table(table: &Table) -> Vec<Limit> {
    let generic = table.generic.iter().map(|t| (None, t));
    let of_skus = table.profiles.iter().flat_map(|p| p.thresholds.iter().map(move |t| (Some(p), t)));
    generic.chain(of_skus).flat_map(|(profile, threshold)| of_threshold(profile, threshold)).collect()
}

fn of_threshold(profile: Option<&Profile>, t: &Threshold) -> Vec<Limit> {
    let names =
        |sources: Vec<&Provenance>| sources.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join("; ");
    Role::ALL
        .into_iter()
        .filter_map(|role| t.value(role).map(|value| (role, value)))
        .map(|(role, value)| Limit {
            file: t.file.clone(),
            line: t.line,
            sku: profile.map(|p| p.sku.clone()).unwrap_or_default(),
            product: profile.map(|p| p.sku.clone()).unwrap_or_default(),
            metric: t.metric.clone(),
            value,
            measure: Measure::Unit(t.unit),
            role,
            better: t.better,
            source: names(t.sources_of(role).collect()),
            note: String::new(),
        })
        .collect()
}

/// Which way is good for a metric that the source says nothing about.
fn direction(name: &str) -> Better {
    if let Some(better) = metric::find(name).and_then(|m| m.better) {
        return better;
    }
    const BAD: [&str; 18] = [
        "error", "ecc", "fail", "replay", "crc", "latency", "temp", "drift", "flap", "retired", "discard",
        "recover", "downed", "wear", "xid", "restart", "remap", "loss",
    ];
    let name = name.to_ascii_lowercase();
    if BAD.iter().any(|w| name.contains(w)) { Better::Lower } else { Better::Higher }
}
