//! Threshold files: TOML in, checked types out; every error names its line.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use crate::unit::Unit;

use super::{Better, Expected, Profile, Provenance, ProvenanceKind, Role, Table, Threshold, metric};

/// Thresholds of one file at most.
pub const MAX_THRESHOLDS: usize = 1000;
/// Longest threshold file, bytes.
pub const MAX_FILE_BYTES: usize = 4 << 20;
/// Longest text (name, note) in a file, bytes.
const MAX_TEXT: usize = 600;

/// What is wrong with a threshold file, with the line, from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct ThresholdError {
    pub file: String,
    pub line: usize,
    pub what: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    sku: Option<Spanned<String>>,
    scope: Option<Spanned<String>>,
    name: Option<String>,
    family: Option<String>,
    gpu_name: Option<Spanned<String>>,
    #[serde(default)]
    sources: BTreeMap<String, Spanned<RawSource>>,
    expected: Option<Spanned<toml::Table>>,
    #[serde(default)]
    threshold: Vec<Spanned<RawThreshold>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSource {
    name: String,
    date: String,
    kind: ProvenanceKind,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawThreshold {
    metric: Spanned<String>,
    unit: Spanned<String>,
    better: Better,
    warn: Option<f64>,
    fail: Option<f64>,
    hardware_limit: Option<f64>,
    typical: Option<f64>,
    #[serde(default)]
    unknown: bool,
    note: Option<String>,
    from: Option<Spanned<toml::Value>>,
}

/// Turns byte offsets of one text into errors with lines.
struct Place<'a> {
    file: &'a str,
    text: &'a str,
}

impl Place<'_> {
    fn line(&self, offset: usize) -> usize {
        1 + self.text.as_bytes()[..offset.min(self.text.len())].iter().filter(|b| **b == b'\n').count()
    }

    fn error(&self, offset: usize, what: impl Into<String>) -> ThresholdError {
        ThresholdError { file: self.file.to_owned(), line: self.line(offset), what: what.into() }
    }

    fn toml(&self, fallback: usize, error: &toml::de::Error) -> ThresholdError {
        let what = error.message().trim().replace('\n', ", ");
        self.error(error.span().map_or(fallback, |s| s.start), what)
    }
}

pub(super) fn table(file: &str, text: &str) -> Result<Table, ThresholdError> {
    let place = Place { file, text };
    if text.len() > MAX_FILE_BYTES {
        return Err(place.error(0, format!("{} bytes: at most {MAX_FILE_BYTES}", text.len())));
    }
    let raw: RawFile = toml::from_str(text).map_err(|e| place.toml(0, &e))?;
    if raw.threshold.len() > MAX_THRESHOLDS {
        return Err(place.error(0, format!("{} thresholds: at most {MAX_THRESHOLDS}", raw.threshold.len())));
    }
    let sources = sources(&place, &raw.sources)?;
    let mut thresholds: Vec<Threshold> = Vec::with_capacity(raw.threshold.len());
    for entry in &raw.threshold {
        let threshold = threshold(&place, entry.get_ref(), &sources)?;
        if thresholds.iter().any(|t| t.metric == threshold.metric) {
            let what = format!("a second threshold for {}", threshold.metric);
            return Err(place.error(entry.get_ref().metric.span().start, what));
        }
        thresholds.push(threshold);
    }
    match (&raw.sku, &raw.scope) {
        (Some(sku), None) => {
            let profile = profile(&place, &raw, sku, thresholds, &sources)?;
            Ok(Table { profiles: vec![profile], generic: Vec::new() })
        }
        (None, Some(scope)) if matches!(scope.get_ref().as_str(), "every-gpu" | "every-machine") => {
            if let Some(expected) = &raw.expected {
                return Err(place.error(expected.span().start, "[expected] belongs to a file with a sku"));
            }
            Ok(Table { profiles: Vec::new(), generic: thresholds })
        }
        (None, Some(scope)) => {
            let what = format!("scope {:?}: \"every-gpu\" or \"every-machine\"", scope.get_ref());
            Err(place.error(scope.span().start, what))
        }
        (Some(_), Some(scope)) => Err(place.error(scope.span().start, "either sku or scope, not both")),
        (None, None) => Err(place.error(0, "neither sku nor scope: a threshold file has one of them")),
    }
}

fn sources(
    place: &Place<'_>,
    raw: &BTreeMap<String, Spanned<RawSource>>,
) -> Result<BTreeMap<String, Provenance>, ThresholdError> {
    let mut sources = BTreeMap::new();
    for (key, entry) in raw {
        let RawSource { name, date, kind } = entry.get_ref();
        let at = entry.span().start;
        if name.trim().is_empty() || name.len() > MAX_TEXT {
            return Err(place.error(at, format!("source {key:?}: a name of 1 to {MAX_TEXT} bytes")));
        }
        if !is_date(date) {
            return Err(
                place.error(at, format!("source {key:?}: date {date:?} is not YYYY, YYYY-MM or YYYY-MM-DD"))
            );
        }
        let source = Provenance { of: Vec::new(), name: name.clone(), date: date.clone(), kind: *kind };
        sources.insert(key.clone(), source);
    }
    Ok(sources)
}

fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let number = |part: &str, len: usize, range: std::ops::RangeInclusive<u32>| {
        part.len() == len && part.parse::<u32>().is_ok_and(|n| range.contains(&n))
    };
    match parts.as_slice() {
        [y] => number(y, 4, 1990..=2100),
        [y, m] => number(y, 4, 1990..=2100) && number(m, 2, 1..=12),
        [y, m, d] => number(y, 4, 1990..=2100) && number(m, 2, 1..=12) && number(d, 2, 1..=31),
        _ => false,
    }
}

fn threshold(
    place: &Place<'_>,
    raw: &RawThreshold,
    sources: &BTreeMap<String, Provenance>,
) -> Result<Threshold, ThresholdError> {
    let name = raw.metric.get_ref();
    let at = raw.metric.span().start;
    if !metric::is_well_formed(name) {
        return Err(place.error(at, format!("metric {name:?}: dotted words of a-z, 0-9 and '_'")));
    }
    let unit: Unit =
        raw.unit.get_ref().parse().map_err(|e: crate::unit::UnitError| {
            place.error(raw.unit.span().start, format!("{name}: {e}"))
        })?;
    // A pattern's unit need not be that of every name that it stands for.
    if let Some(known) = metric::find(name).filter(|m| !m.name.contains('*')) {
        if unit.convert(1.0, known.unit).is_err() {
            let what = format!("{name} is measured in {}, not in {unit}", known.unit);
            return Err(place.error(raw.unit.span().start, what));
        }
        if known.better.is_some_and(|b| b != raw.better) {
            return Err(place.error(at, format!("{name}: better is the other way round")));
        }
    }
    let numbers = [raw.warn, raw.fail, raw.hardware_limit, raw.typical];
    if let Some(bad) = numbers.iter().flatten().find(|v| !v.is_finite()) {
        return Err(place.error(at, format!("{name}: {bad} is not a number to compare with")));
    }
    if raw.unknown && (raw.warn.is_some() || raw.fail.is_some()) {
        return Err(place.error(at, format!("{name}: unknown, and yet with a limit")));
    }
    if !raw.unknown && raw.warn.is_none() && raw.fail.is_none() {
        return Err(
            place.error(at, format!("{name}: neither warn nor fail; say unknown = true if none is known"))
        );
    }
    if raw.note.as_ref().is_some_and(|n| n.len() > MAX_TEXT) {
        return Err(place.error(at, format!("{name}: a note has at most {MAX_TEXT} bytes")));
    }
    Ok(Threshold {
        metric: name.clone(),
        unit,
        better: raw.better,
        warn: raw.warn,
        fail: raw.fail,
        hardware_limit: raw.hardware_limit,
        typical: raw.typical,
        unknown: raw.unknown,
        note: raw.note.clone(),
        sources: provenance(place, raw, sources)?,
        file: place.file.to_owned(),
        line: place.line(at),
    })
}

/// `from = "key"` speaks for all numbers, `from = { fail = "key", … }` for each on its own.
fn provenance(
    place: &Place<'_>,
    raw: &RawThreshold,
    sources: &BTreeMap<String, Provenance>,
) -> Result<Vec<Provenance>, ThresholdError> {
    let Some(from) = &raw.from else { return Ok(Vec::new()) };
    let at = from.span().start;
    let find = |key: &str| {
        let what = || place.error(at, format!("{}: no [sources.{key}] in this file", raw.metric.get_ref()));
        sources.get(key).cloned().ok_or_else(what)
    };
    match from.get_ref() {
        toml::Value::String(key) => Ok(vec![find(key)?]),
        toml::Value::Table(by_role) => {
            let mut list: Vec<Provenance> = Vec::new();
            for (role, key) in by_role {
                let role = Role::ALL.into_iter().find(|r| r.as_str() == role);
                let (Some(role), toml::Value::String(key)) = (role, key) else {
                    return Err(place.error(at, "from: warn, fail, hardware_limit, typical = \"source\""));
                };
                list.push(Provenance { of: vec![role], ..find(key)? });
            }
            Ok(list)
        }
        _ => Err(place.error(at, "from: the key of a source, or one for each number")),
    }
}

fn profile(
    place: &Place<'_>,
    raw: &RawFile,
    sku: &Spanned<String>,
    thresholds: Vec<Threshold>,
    sources: &BTreeMap<String, Provenance>,
) -> Result<Profile, ThresholdError> {
    let at = sku.span().start;
    let key = sku.get_ref();
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if key.is_empty() || key.len() > 40 || !key.bytes().all(legal) {
        return Err(place.error(at, format!("sku {key:?}: 1 to 40 of a-z, 0-9 and '-'")));
    }
    let need = |field: &str| place.error(at, format!("sku {key:?} has no {field}"));
    let gpu_name = raw.gpu_name.as_ref().ok_or_else(|| need("gpu_name"))?;
    let matcher = regex::RegexBuilder::new(&format!("^(?:{})$", gpu_name.get_ref()))
        .size_limit(1 << 20)
        .build()
        .map_err(|e| {
            place.error(gpu_name.span().start, format!("gpu_name: {}", e.to_string().replace('\n', " ")))
        })?;
    let section = raw.expected.as_ref().ok_or_else(|| need("[expected]"))?;
    Ok(Profile {
        sku: key.clone(),
        name: raw.name.clone().ok_or_else(|| need("name"))?,
        family: raw.family.clone().ok_or_else(|| need("family"))?,
        gpu_name: gpu_name.get_ref().clone(),
        expected: expected(place, section, sources)?,
        thresholds,
        file: place.file.to_owned(),
        matcher,
    })
}

fn expected(
    place: &Place<'_>,
    section: &Spanned<toml::Table>,
    sources: &BTreeMap<String, Provenance>,
) -> Result<Expected, ThresholdError> {
    let at = section.span().start;
    let mut fields = section.get_ref().clone();
    let from = match fields.remove("from") {
        Some(toml::Value::String(key)) => vec![key],
        Some(toml::Value::Array(keys)) => keys.iter().filter_map(|k| k.as_str().map(str::to_owned)).collect(),
        _ => return Err(place.error(at, "[expected] has no from: the key of its source, or a list of keys")),
    };
    let mut expected: Expected = fields.try_into().map_err(|e| place.toml(at, &e))?;
    for key in from {
        let source =
            sources.get(&key).ok_or_else(|| place.error(at, format!("no [sources.{key}] in this file")))?;
        expected.sources.push(source.clone());
    }
    if let Some([low, high]) = expected.memory_mib.filter(|[low, high]| low == &0 || low > high) {
        return Err(place.error(at, format!("memory_mib = [{low}, {high}]: the lower bound first, above 0")));
    }
    Ok(expected)
}
