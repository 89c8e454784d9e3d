//! Tables and TOML of others' limits, row by row.

use serde::Deserialize;

use super::super::{Better, Role, ThresholdError};
use super::{Import, Limit, MAX_LINE, MAX_ROWS, Measure, direction, known};

/// The columns of a table that is known by its header.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Ours,
    Dcgm,
    Azure,
    AzureReadme,
}

const FORMS: [(Form, &[&str]); 4] = [
    (Form::Ours, &["sku", "metric", "value", "unit", "kind"]),
    (Form::Dcgm, &["sku_id", "test", "parameter", "value", "unit"]),
    (Form::Azure, &["vm_sku", "check", "parameter", "value", "unit"]),
    (Form::AzureReadme, &["vm_sku", "check", "expected_as_printed"]),
];

fn error(file: &str, line: usize, what: impl Into<String>) -> ThresholdError {
    ThresholdError { file: file.to_owned(), line, what: what.into() }
}

/// One row with its columns by name.
struct Row<'a> {
    file: &'a str,
    line: usize,
    columns: &'a [&'a str],
    cells: Vec<&'a str>,
}

impl<'a> Row<'a> {
    /// A cell, trimmed; empty if the table has no such column.
    fn get(&self, column: &str) -> &'a str {
        let place = self.columns.iter().position(|c| *c == column);
        place.and_then(|i| self.cells.get(i)).map_or("", |c| c.trim())
    }

    fn error(&self, what: impl Into<String>) -> ThresholdError {
        error(self.file, self.line, what)
    }

    fn value(&self, text: &str) -> Result<f64, ThresholdError> {
        number(text).ok_or_else(|| self.error(format!("value {:?} is not a number", shown(text))))
    }

    fn limit(&self, metric: &str, value: f64, unit: &str, role: Role) -> Limit {
        let (measure, factor) = Measure::parse(unit);
        Limit {
            file: self.file.to_owned(),
            line: self.line,
            sku: String::new(),
            product: String::new(),
            metric: metric.to_owned(),
            value: value * factor,
            measure,
            role,
            better: direction(metric),
            source: String::new(),
            note: String::new(),
        }
    }
}

fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}

fn number(text: &str) -> Option<f64> {
    // "1,905,000" is a number with thousands; "1,5" is not one that we would guess at.
    let grouped =
        text.contains(',') && text.split(',').skip(1).all(|g| g.split('.').next().map(str::len) == Some(3));
    let plain = if grouped { text.replace(',', "") } else { text.to_owned() };
    plain.parse::<f64>().ok().filter(|v| v.is_finite())
}

pub(super) fn table(file: &str, text: &str) -> Result<Import, ThresholdError> {
    let mut lines = text.lines().enumerate().map(|(i, l)| (i + 1, l)).filter(|(_, l)| {
        let l = l.trim();
        !l.is_empty() && !l.starts_with('#')
    });
    let Some((header_line, header)) = lines.next() else { return Err(error(file, 1, "empty")) };
    let columns: Vec<&str> = header.trim_start_matches('\u{feff}').split('\t').map(str::trim).collect();
    let Some((form, _)) = FORMS.iter().find(|(_, need)| need.iter().all(|n| columns.contains(n))) else {
        let known: Vec<String> = FORMS.iter().map(|(_, need)| need.join(" ")).collect();
        let what = format!("unknown columns; a table of limits has {}", known.join(", or "));
        return Err(error(file, header_line, what));
    };
    let mut import = Import::default();
    for (count, (line, text)) in lines.enumerate() {
        if count >= MAX_ROWS {
            return Err(error(file, line, format!("more than {MAX_ROWS} rows")));
        }
        if text.len() > MAX_LINE {
            return Err(error(file, line, format!("a line of {} bytes: at most {MAX_LINE}", text.len())));
        }
        let row = Row { file, line, columns: &columns, cells: text.split('\t').collect() };
        if row.cells.len() != columns.len() {
            let what = format!("{} columns where the header has {}", row.cells.len(), columns.len());
            return Err(row.error(what));
        }
        let limits = match form {
            Form::Ours => ours(&row)?,
            Form::Dcgm => dcgm(&row)?,
            Form::Azure => azure(&row)?,
            Form::AzureReadme => azure_readme(&row)?,
        };
        import.skipped += usize::from(limits.is_empty());
        import.limits.extend(limits);
    }
    Ok(import)
}

fn ours(row: &Row<'_>) -> Result<Vec<Limit>, ThresholdError> {
    let metric = known::our_name(row.get("metric"));
    if metric.is_empty() {
        return Err(row.error("no metric"));
    }
    let kind = row.get("kind");
    let role = known::role(kind)
        .ok_or_else(|| row.error(format!("kind {:?}: fail, warn, hardware_limit or typical", shown(kind))))?;
    let unit = row.get("unit");
    if unit.is_empty() {
        return Err(row.error(format!("{metric}: no unit")));
    }
    let limit = row.limit(metric, row.value(row.get("value"))?, unit, role);
    let name = row.get("name");
    let better = match row.get("better") {
        "" => limit.better,
        "higher" => Better::Higher,
        "lower" => Better::Lower,
        other => return Err(row.error(format!("better {:?}: higher or lower", shown(other)))),
    };
    let sku = row.get("sku");
    Ok(vec![Limit {
        sku: sku.to_owned(),
        product: if name.is_empty() { sku } else { name }.to_owned(),
        source: row.get("source").to_owned(),
        note: row.get("note").to_owned(),
        better,
        ..limit
    }])
}

fn dcgm(row: &Row<'_>) -> Result<Vec<Limit>, ThresholdError> {
    let Some(meaning) = known::dcgm(row.get("test"), row.get("parameter")) else { return Ok(Vec::new()) };
    let value = row.value(row.get("value"))?;
    let make = |metric: &&str| Limit {
        sku: row.get("sku_id").to_owned(),
        product: row.get("name").to_owned(),
        source: "DCGM diag-skus.yaml.in".to_owned(),
        note: row.get("source_comment").to_owned(),
        ..row.limit(metric, value, row.get("unit"), meaning.role)
    };
    Ok(meaning.metrics.iter().map(make).collect())
}

fn azure(row: &Row<'_>) -> Result<Vec<Limit>, ThresholdError> {
    let Some(meaning) = known::azure(row.get("check"), row.get("parameter")) else { return Ok(Vec::new()) };
    let value = row.value(row.get("value"))?;
    let source = "azurehpc-health-checks conf";
    let make = |metric: &&str| azure_limit(row, metric, value, row.get("unit"), meaning.role, source);
    Ok(meaning.metrics.iter().map(make).collect())
}

fn azure_readme(row: &Row<'_>) -> Result<Vec<Limit>, ThresholdError> {
    let Some(meaning) = known::azure_readme(row.get("check")) else { return Ok(Vec::new()) };
    let printed = row.get("expected_as_printed");
    let (value, unit) = printed.split_once(' ').unwrap_or((printed, "count"));
    let value = row.value(value)?;
    let source = "azurehpc-health-checks README";
    let make = |metric: &&str| azure_limit(row, metric, value, unit, meaning.role, source);
    Ok(meaning.metrics.iter().map(make).collect())
}

fn azure_limit(row: &Row<'_>, metric: &str, value: f64, unit: &str, role: Role, source: &str) -> Limit {
    let sku = row.get("vm_sku");
    Limit {
        sku: sku.to_owned(),
        product: sku.to_owned(),
        source: source.to_owned(),
        ..row.limit(metric, value, unit, role)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    limit: Vec<toml::Spanned<RawLimit>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimit {
    #[serde(default)]
    sku: String,
    #[serde(default)]
    name: String,
    metric: String,
    value: f64,
    unit: String,
    kind: String,
    #[serde(default)]
    better: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    note: String,
}

/// `[[limit]]` tables with the same fields as the columns.
pub(super) fn toml(file: &str, text: &str) -> Result<Import, ThresholdError> {
    let line_at =
        |offset: usize| 1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count();
    let raw: RawFile = toml::from_str(text).map_err(|e| {
        error(file, e.span().map_or(1, |s| line_at(s.start)), e.message().trim().replace('\n', ", "))
    })?;
    if raw.limit.len() > MAX_ROWS {
        return Err(error(file, 1, format!("{} limits: at most {MAX_ROWS}", raw.limit.len())));
    }
    const COLUMNS: [&str; 9] = ["sku", "name", "metric", "value", "unit", "kind", "better", "source", "note"];
    let mut import = Import::default();
    for entry in &raw.limit {
        let r = entry.get_ref();
        let value = r.value.to_string();
        let cells =
            vec![r.sku.as_str(), &r.name, &r.metric, &value, &r.unit, &r.kind, &r.better, &r.source, &r.note];
        let row = Row { file, line: line_at(entry.span().start), columns: &COLUMNS, cells };
        import.limits.extend(ours(&row)?);
    }
    Ok(import)
}
