//! The parts of the page that are tables: devices, findings, readings against their thresholds, matrices.

use std::collections::BTreeMap;

use maud::{Markup, html};
use whetstone_model::evidence::Reading;
use whetstone_model::report::{Matrix, Report, TestResult};
use whetstone_model::threshold::{Judged, Role, Table};

use super::scale::{heat, number, unit};
use super::{Names, chip};

/// Most rows and columns of a heat map; an NVLink domain has 72 GPUs.
const MAX_MATRIX: usize = 80;
/// Most columns of the readings' table that stand side by side.
const MAX_COLUMNS: usize = 9;

pub fn devices(report: &Report) -> Markup {
    html! {
        div.card.scroll { table {
            tr { th { "Device" } th { "Model" } th { "Id" } th { "PCI · serial" } th { "Verdict" } th { "Why" } th { "Next" } }
            @for device in &report.devices {
                @let verdict = report.device_verdicts.iter().find(|v| v.device.as_ref() == Some(&device.id));
                tr {
                    td { b { (device.label) } }
                    td { (device.model) }
                    td.mono.wrap { (device.id.as_str()) }
                    td.mono { (device.pci.as_deref().unwrap_or("–")) @if let Some(serial) = &device.serial { br; (serial) } }
                    @match verdict {
                        Some(v) => {
                            td { (chip(v.outcome.as_str())) }
                            td.wrap { (v.why) @if v.code != "ok" { " " span.soft.mono { (v.code) } } }
                            td { (v.action.next_step()) }
                        }
                        None => { td { "–" } td {} td {} }
                    }
                }
            }
        } }
    }
}

pub fn findings(report: &Report, names: &Names<'_>) -> Markup {
    html! {
        div.card.scroll { table {
            tr { th { "Severity" } th { "Device" } th { "What" } th { "Found in" } th { "Reading" } th { "Next" } }
            @for finding in &report.findings {
                @let test = report.tests.iter().find(|t| t.findings.contains(finding));
                tr {
                    td { span.chip.(finding.severity.as_str()) { (finding.severity.as_str()) } }
                    td { b { (names.of(finding.device.as_ref())) } }
                    td.wrap { (finding.detail) br; span.mono.soft { (finding.code) } }
                    td { (test.map_or("probe", |t| t.name.as_str())) }
                    td.num { @if let Some(r) = &finding.reading { (number(r.value)) " " (unit(r.unit)) br; span.mono.soft { (r.metric) } } }
                    td { (finding.action.next_step()) }
                }
            }
        } }
    }
}

/// A metric's value on each device of a test.
type Row<'a> = BTreeMap<String, &'a Reading>;

/// One table per test: a row per metric, a column per device, the limits, and what is beyond them marked.
pub fn readings(report: &Report, names: &Names<'_>, thresholds: Option<&Table>) -> Markup {
    html! {
        @for test in report.tests.iter().filter(|t| !t.readings.is_empty()) {
            @let (columns, rows) = pivot(test, names);
            @for part in columns.chunks(MAX_COLUMNS) {
                div.card.scroll {
                    h3 { (test.name) " " span.soft { (test.kind) } }
                    table {
                        tr {
                            th { "Metric" } th { "Unit" }
                            @for column in part { th.num { (column) } }
                            th.num { "Warn" } th.num { "Fail" } th.num { "Typical" }
                        }
                        @for ((metric, unit), row) in rows.iter().filter(|(_, row)| part.iter().any(|c| row.contains_key(c))) {
                            @let reference = thresholds.and_then(|t| t.threshold(report.blade.sku.as_deref(), metric));
                            tr {
                                td.mono { (metric) }
                                td { (unit) }
                                @for column in part {
                                    @match row.get(column) {
                                        Some(reading) => td.num.(class(report, thresholds, reading).unwrap_or_default()) { (number(reading.value)) }
                                        None => td.num.soft { "·" }
                                    }
                                }
                                @for role in [Role::Warn, Role::Fail, Role::Typical] {
                                    td.num.soft {
                                        @match reference.and_then(|t| Some((t, t.value(role)?))) {
                                            Some((t, limit)) => (number(t.unit.convert(limit, row_unit(row).unwrap_or(t.unit)).unwrap_or(limit))),
                                            None => "–",
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn row_unit(row: &Row<'_>) -> Option<whetstone_model::unit::Unit> {
    row.values().next().map(|r| r.unit)
}

fn pivot<'a>(
    test: &'a TestResult,
    names: &Names<'_>,
) -> (Vec<String>, BTreeMap<(&'a str, &'static str), Row<'a>>) {
    let mut columns: Vec<String> = Vec::new();
    let mut rows: BTreeMap<(&str, &'static str), Row<'_>> = BTreeMap::new();
    for reading in &test.readings {
        let column = names.of(reading.device.as_ref()).to_owned();
        if !columns.contains(&column) {
            columns.push(column.clone());
        }
        rows.entry((&reading.reading.metric, reading.reading.unit.as_str()))
            .or_default()
            .insert(column, &reading.reading);
    }
    columns.sort_by_key(|c| names.place(c));
    (columns, rows)
}

fn class(report: &Report, thresholds: Option<&Table>, reading: &Reading) -> Option<&'static str> {
    let judged = thresholds?.judge(report.blade.sku.as_deref(), reading).ok()?.judged;
    match judged {
        Judged::Fail => Some("bad"),
        Judged::Warn => Some("meh"),
        Judged::Pass | Judged::NotJudged(_) => None,
    }
}

/// A heat map with its values; the range of the colours is that of the values off the diagonal.
pub fn matrix(test: &str, matrix: &Matrix) -> Markup {
    let finite = |v: &Option<f64>| v.filter(|v| v.is_finite());
    let all: Vec<f64> = matrix.values.iter().flatten().filter_map(finite).collect();
    let low = all.iter().copied().fold(f64::INFINITY, f64::min);
    let high = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let median = whetstone_burnin::judge::robust::median(&all).unwrap_or(0.0);
    // Values that differ by little look alike: the colours say "the same" rather than draw the noise.
    let span = (high - low).max(0.3 * high.abs()).max(f64::MIN_POSITIVE);
    let lower_is_better = matrix.metric.ends_with("latency");
    let odd = |v: f64| {
        if lower_is_better { v > 1.25 * median } else { v < 0.8 * median }
    };
    html! {
        div.card.scroll {
            h3 { (matrix.metric) " " span.soft { (matrix.unit) " · " (test) " · from row to column" } }
            @if all.is_empty() { p.soft { "nothing measured" } } @else {
                table.heat {
                    tr { th {} @for column in matrix.columns.iter().take(MAX_MATRIX) { th { (column) } } }
                    @for (name, row) in matrix.rows.iter().zip(&matrix.values).take(MAX_MATRIX) {
                        tr {
                            th { (name) }
                            @for value in row.iter().take(MAX_MATRIX) {
                                @match finite(value) {
                                    Some(v) => {
                                        @let (back, ink) = heat(1.0 - (high - v) / span);
                                        td.low[odd(v)] style=(format!("background:{back};color:{ink}")) { (short(v)) }
                                    }
                                    None => td.soft { "–" },
                                }
                            }
                        }
                    }
                }
                p.soft { "least " (number(low)) ", median " (number(median)) ", greatest " (number(high)) " " (matrix.unit)
                    @if all.iter().any(|v| odd(*v)) { ". Framed: " @if lower_is_better { "25 % above" } @else { "20 % below" } " the median" } }
            }
        }
    }
}

/// Three digits: a matrix has many cells.
fn short(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { number((value * 100.0).round() / 100.0) }
}
