//! `report.html` from a report: one file without any outside resource, for a browser or for paper.
//!
//! Everything from the report is text to the template and is escaped there: a device's name is what the device says.

mod index;
mod plot;
mod scale;
mod tables;

pub use index::{IndexRow, render_index};

use std::collections::BTreeMap;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use whetstone_model::device::DeviceId;
use whetstone_model::report::{Profile, Report, Series, TestOutcome};
use whetstone_model::threshold::Table;

use plot::{Bar, Line, Strip};
use scale::{duration, number, time};

const STYLE: &str = include_str!("html/style.css");
/// Most lines in one plot, plots of one kind, and parts of one profile: a page has to open on any machine.
const MAX_LINES: usize = 16;
const MAX_PLOTS: usize = 40;
const MAX_PARTS: usize = 1024;

/// What devices are called on the page, and in which order.
struct Names<'a> {
    labels: BTreeMap<&'a DeviceId, (usize, &'a str)>,
}

impl<'a> Names<'a> {
    fn new(report: &'a Report) -> Self {
        Names {
            labels: report.devices.iter().enumerate().map(|(i, d)| (&d.id, (i, d.label.as_str()))).collect(),
        }
    }

    fn of(&self, id: Option<&'a DeviceId>) -> &'a str {
        match id {
            Some(id) => self.labels.get(id).map_or(id.as_str(), |(_, label)| label),
            None => "blade",
        }
    }

    /// Order of a label: as the devices are listed, the blade and unknown ones last.
    fn place(&self, label: &str) -> usize {
        self.labels.values().find(|(_, l)| *l == label).map_or(usize::MAX, |(place, _)| *place)
    }
}

fn chip(outcome: &str) -> Markup {
    let text = if outcome == "not_applicable" { "does not apply" } else { outcome };
    html! { span.chip.(outcome) { (text) } }
}

/// The whole page.
pub fn render(report: &Report) -> String {
    let names = Names::new(report);
    // Without its tables (they are built in and tested) the page still shows every reading.
    let thresholds = Table::built_in().ok();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (report.blade.name) ": " (report.verdict.outcome) @if report.simulated { " (simulated)" } }
                style { (PreEscaped(STYLE)) }
            }
            body {
                @if report.simulated { div.sim { "SIMULATED — not a hardware result" } }
                main {
                    (head(report))
                    @if !report.findings.is_empty() { h2 { "Findings" } (tables::findings(report, &names)) }
                    @if !report.devices.is_empty() { h2 { "Devices" } (tables::devices(report)) }
                    (tests(report))
                    (telemetry(report, &names))
                    (matrices(report))
                    (profiles(report, &names))
                    @if report.tests.iter().any(|t| !t.readings.is_empty()) {
                        h2 { "Readings against thresholds" }
                        p.soft {
                            @match &report.blade.sku {
                                Some(sku) => { "Limits of " b { (sku) } " and the general ones. " }
                                None => "No SKU profile fits this blade: only general limits apply. ",
                            }
                            "A reading without a limit is measured and not judged."
                        }
                        (tables::readings(report, &names, thresholds.as_ref()))
                    }
                    (digests(report, &names))
                    (origin(report))
                    footer { "Whetstone " (report.versions.whet) " · " (report.run) " · " (report.schema)
                        @if report.simulated { " · SIMULATED — not a hardware result" } }
                }
            }
        }
    };
    page.into_string()
}

fn head(report: &Report) -> Markup {
    let verdict = &report.verdict;
    html! {
        h1 { "Burn-in of " (report.blade.name) }
        p.soft { (report.suite.name) " suite, " (time(report.started_ms)) }
        div.banner.(verdict.outcome.as_str()) {
            div.word { (verdict.outcome) }
            div.why {
                @if verdict.why.is_empty() { "Every test ran and found nothing wrong." } @else { (verdict.why) }
                div.next { @if verdict.action != whetstone_model::action::Action::None { "Next: " (verdict.action.next_step()) } }
            }
        }
        @if !report.complete {
            div.banner.inconclusive {
                div.why { b { "The run is not complete" }
                    @if let Some(why) = &report.incomplete_because { " (" (why) ")" }
                    ": " (report.tests.len()) " test(s) are recorded. What is missing says nothing about the hardware." }
            }
        }
        div.card { dl.facts {
            div { dt { "Blade" } dd { (report.blade.name) @if let Some(serial) = &report.blade.serial { br; span.mono { (serial) } } } }
            div { dt { "SKU profile" } dd { (report.blade.sku.as_deref().unwrap_or("none fits")) } }
            div { dt { "Duration" } dd { @match report.ended_ms { Some(end) => (duration(end - report.started_ms)), None => "not ended" } } }
            div { dt { "Driver · CUDA · NCCL" } dd {
                (report.versions.driver.as_deref().unwrap_or("–")) " · " (report.versions.cuda.as_deref().unwrap_or("–")) " · "
                (report.versions.nccl.as_deref().unwrap_or("–")) } }
            div { dt { "VBIOS" } dd { (report.versions.vbios.as_deref().unwrap_or("–")) } }
            div { dt { "Kernel" } dd { (report.blade.kernel) } }
        } }
    }
}

fn outcome_word(outcome: TestOutcome) -> &'static str {
    outcome.as_outcome().map_or("not_applicable", |o| o.as_str())
}

fn tests(report: &Report) -> Markup {
    let bars: Vec<Bar<'_>> = report
        .tests
        .iter()
        .filter(|t| t.outcome != TestOutcome::NotApplicable)
        .map(|t| Bar {
            label: &t.name,
            class: outcome_word(t.outcome),
            from_ms: t.started_ms - report.started_ms,
            to_ms: t.ended_ms - report.started_ms,
            note: duration(t.ended_ms - t.started_ms),
        })
        .collect();
    html! {
        h2 { "Tests" }
        @if !bars.is_empty() {
            div.card { (plot::timeline(&bars, report.ended_ms.unwrap_or(report.started_ms) - report.started_ms)) }
        }
        div.card.scroll { table {
            tr { th { "Test" } th { "Kind" } th { "Outcome" } th.num { "Time" } th { "What it says" } }
            @for test in &report.tests {
                tr {
                    td { b { (test.name) } }
                    td.mono { (test.kind) }
                    td { (chip(outcome_word(test.outcome))) }
                    td.num { (duration(test.ended_ms - test.started_ms)) }
                    td.wrap {
                        (test.detail)
                        @let odd: Vec<_> = test.devices.iter().filter(|d| d.outcome != TestOutcome::Pass && !d.detail.is_empty()).collect();
                        @if !odd.is_empty() { ul { @for d in odd {
                            li { b { (Names::new(report).of(Some(&d.device))) } " " (chip(outcome_word(d.outcome))) " " (d.detail) }
                        } } }
                        @if !test.notes.is_empty() {
                            details { summary { (test.notes.len()) " note(s)" } ul { @for note in &test.notes { li { (note) } } } }
                        }
                    }
                }
            }
        } }
    }
}

fn telemetry(report: &Report, names: &Names<'_>) -> Markup {
    let mut metrics: Vec<(&str, Vec<&Series>)> = Vec::new();
    for series in report.series.iter().filter(|s| !s.points.is_empty()) {
        match metrics.iter_mut().find(|(metric, of)| *metric == series.metric && of[0].unit == series.unit) {
            Some((_, of)) => of.push(series),
            None => metrics.push((&series.metric, vec![series])),
        }
    }
    let end = report.ended_ms.map_or(0, |end| (end - report.started_ms).max(0) as u64);
    let since = |ms: i64| (ms - report.started_ms).max(0) as u64;
    // Every second test is shaded, so that the eye finds it in all plots.
    let bands: Vec<(u64, u64)> =
        report.tests.iter().step_by(2).map(|t| (since(t.started_ms), since(t.ended_ms))).collect();
    html! {
        @if !metrics.is_empty() {
            h2 { "Over time" }
            p.soft { "Shaded: every second test of the suite, in the order above." }
            div.plots {
                @for (metric, of) in metrics.iter().take(MAX_PLOTS) {
                    @for part in of.chunks(MAX_LINES) {
                        @let lines: Vec<Line<'_>> = part.iter().map(|s| Line { label: names.of(s.device.as_ref()), points: &s.points }).collect();
                        (plot::lines(metric, part[0].unit.as_str(), &lines, &bands, end))
                    }
                }
            }
        }
    }
}

fn matrices(report: &Report) -> Markup {
    let all: Vec<_> = report.tests.iter().flat_map(|t| t.matrices.iter().map(move |m| (t, m))).collect();
    html! {
        @if !all.is_empty() {
            h2 { "Between parts" }
            @for (test, matrix) in all.iter().take(MAX_PLOTS) { (tables::matrix(&test.name, matrix)) }
        }
    }
}

fn profiles(report: &Report, names: &Names<'_>) -> Markup {
    // One panel per test, metric and index; a row per device.
    let mut panels: Vec<(&str, &Profile, Vec<&Profile>)> = Vec::new();
    for (test, profile) in report.tests.iter().flat_map(|t| t.profiles.iter().map(move |p| (t, p))) {
        let same = |of: &Profile| {
            of.metric == profile.metric && of.index == profile.index && of.unit == profile.unit
        };
        match panels.iter_mut().find(|(name, of, _)| *name == test.name && same(of)) {
            Some((_, _, rows)) => rows.push(profile),
            None => panels.push((&test.name, profile, vec![profile])),
        }
    }
    html! {
        @if !panels.is_empty() {
            h2 { "Part by part" }
            p.soft { "Colour: distance from the median of the same device, red is slow (full at −10 %). "
                "Marked: more than 2 % and 5 robust deviations behind." }
            @for (test, first, rows) in panels.iter().take(MAX_PLOTS) {
                @let strips: Vec<Strip<'_>> = rows.iter().map(|p| Strip {
                    label: names.of(p.device.as_ref()),
                    values: &p.values[..p.values.len().min(MAX_PARTS)],
                }).collect();
                @let odd = plot::odd(&strips);
                div.card {
                    h3 { (first.metric) " " span.soft { (first.unit) " per " (first.index) " · " (test) } }
                    @if let [only] = &strips[..] && only.values.len() <= 256 {
                        (plot::bars(only.values, &first.index, first.unit.as_str(), &odd))
                    } @else {
                        (plot::strips(&strips, &first.index, first.unit.as_str(), &odd))
                    }
                    @if !odd.is_empty() {
                        p { @for o in odd.iter().take(12) {
                            span.chip.warning { (strips[o.row].label) " " (first.index) " " (o.index) ": " (number(o.value)) " "
                                (first.unit) ", " (format!("{:.1}", -o.percent)) " % behind" } " "
                        }
                        @if odd.len() > 12 { "and " (odd.len() - 12) " more" } }
                    }
                }
            }
        }
    }
}

fn digests(report: &Report, names: &Names<'_>) -> Markup {
    let count: usize = report.tests.iter().map(|t| t.digests.len()).sum();
    html! {
        @if count > 0 {
            h2 { "Digests" }
            div.card.scroll {
                p.soft { "Results that must be the same on every device of one model; a record, never a judgement by itself." }
                details { summary { (count) " digest(s)" }
                    table {
                        tr { th { "Device" } th { "Computed" } th { "Digest" } }
                        @for digest in report.tests.iter().flat_map(|t| &t.digests).take(2_000) {
                            tr { td { (names.of(Some(&digest.device))) } td.mono.wrap { (digest.key) } td.mono { (digest.value) } }
                        }
                    }
                }
            }
        }
    }
}

fn origin(report: &Report) -> Markup {
    html! {
        h2 { "Versions and signature" }
        div.card {
            dl.facts {
                div { dt { "Run" } dd.mono { (report.run) } }
                div { dt { "Suite" } dd { (report.suite.name) ", seed " (report.suite.seed) br; span.mono { (report.suite.sha256) } } }
                div { dt { "GPU kernels" } dd.mono { (report.versions.kernels.as_deref().unwrap_or("none carried")) } }
                div { dt { "Started" } dd { (time(report.started_ms)) } }
                div { dt { "Ended" } dd { @match report.ended_ms { Some(end) => (time(end)), None => "–" } } }
                div { dt { "Schema" } dd.mono { (report.schema) } }
            }
            p { "This page and the files beside it are listed with their SHA-256 in " code { "manifest.json" } ", signed (ed25519) in "
                code { "manifest.sig" } ". " code { "whet report verify DIR" } " says whether a byte was changed and by which key it was signed." }
        }
    }
}

#[cfg(test)]
mod tests;
