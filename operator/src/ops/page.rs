//! The acceptance report for people: one page, self-contained, for light and dark.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use whetstone_model::ids::RackName;

use super::data::*;
use super::plot::{bar, number, strip};

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub(super) fn render(report: &AcceptanceReport) -> String {
    let title = format!("Tranche {}: acceptance", report.tranche);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                @if report.simulated { div.sim { "SIMULATED DEVICES: NOT A RESULT ABOUT HARDWARE" } }
                main {
                    h1 { (title) }
                    p.soft { "As of " (time(report.made_ms)) @if let Some(due) = report.due_ms { ", delivery due " (time(due)) } }
                    (figures(report))
                    (by_rack(report))
                    (returns(report))
                    (odd_serials(report))
                    (distributions(report))
                    (blades(report))
                    (method(report))
                    footer { "Whetstone acceptance report " (report.schema) ". Signed: " code { "whet report verify" } " checks every byte." }
                }
            }
        }
    }
    .into_string()
}

fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| format!("{ms} ms"), |t| t.strftime("%Y-%m-%d %H:%M UTC").to_string())
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1} %"))
}

fn rack(rack: Option<&RackName>) -> &str {
    rack.map_or("–", RackName::as_str)
}

fn or_dash(text: Option<&str>) -> &str {
    text.filter(|text| !text.is_empty()).unwrap_or("–")
}

fn parts(counts: &Counts) -> [(&'static str, usize); 4] {
    [
        ("accepted", counts.accepted),
        ("returned", counts.returned),
        ("undecided", counts.undecided),
        ("missing", counts.missing),
    ]
}

fn figures(report: &AcceptanceReport) -> Markup {
    let counts = &report.counts;
    html! {
        div.figures {
            div { b { (percent(report.yield_percent)) } span { "yield: accepted of delivered" } }
            div { b { (counts.expected) } span { "on the manifest" } }
            div { b { (counts.delivered) } span { "delivered" } }
            @for (name, count) in parts(counts) { div { b class=(name) { (count) } span { (name) } } }
        }
        (bar(&parts(counts)))
    }
}

fn by_rack(report: &AcceptanceReport) -> Markup {
    html! {
        h2 { "Yield by rack" }
        div."card scroll" { table {
            tr { th { "Rack" } th.num { "Yield" } th.num { "Accepted" } th.num { "Returned" } th.num { "Undecided" } th.num { "Missing" } th { "" } }
            @for line in &report.racks { tr {
                td { (rack(line.rack.as_ref())) }
                td.num { (percent(line.yield_percent)) }
                @for (_, count) in parts(&line.counts) { td.num { (count) } }
                td.bar { (bar(&parts(&line.counts))) }
            } }
        } }
    }
}

fn returns(report: &AcceptanceReport) -> Markup {
    html! {
        h2 { "Returns" }
        @if report.returns.is_empty() { p.soft { "None." } }
        @for line in &report.returns {
            div.card {
                h3 {
                    span.returned.word { (line.name) } " · serial " code { (line.serial) } " · rack " (rack(line.rack.as_ref()))
                }
                p {
                    @if let Some(device) = &line.device { b { (device) } " " }
                    @if let Some(serial) = &line.device_serial { "(serial " code { (serial) } ") " }
                    // Most verdicts name device and code themselves.
                    @if line.why.contains(&line.code) { (line.why) } @else { b { (line.code) } ": " (line.why) }
                }
                p { "Next: " (line.action.next_step()) }
                @if !line.findings.is_empty() {
                    table { @for finding in &line.findings { tr {
                        td { (or_dash(finding.device.as_deref())) } td { (finding.code) } td { (finding.detail) }
                    } } }
                }
                @for case in &line.cases {
                    p.soft {
                        "Case " (case.case) ", opened " (time(case.opened_ms)) ": " (case.detail)
                        @if let Some(closed) = case.closed_ms { " (closed " (time(closed)) ")" }
                    }
                }
                p.soft {
                    @if let Some(run) = line.run { "Run " (run) }
                    @if let Some(report) = &line.report { ", report " code { (report) } }
                    @if !line.evidence.is_empty() { ", evidence " (line.evidence.join(", ")) }
                    @if let Some(sha256) = &line.report_sha256 { br; "report.json SHA-256 " code { (sha256) } }
                    @if let Some(signer) = &line.signer { br; "signed by " code { (signer) } }
                }
            }
        }
    }
}

fn odd_serials(report: &AcceptanceReport) -> Markup {
    html! {
        @if !report.missing.is_empty() {
            h2 { "Missing" }
            div.card { p { @for (i, line) in report.missing.iter().enumerate() {
                @if i > 0 { ", " } (line.name) " (" code { (line.serial) } ", rack " (rack(line.rack.as_ref())) ")"
            } } }
        }
        @if !report.duplicates.is_empty() {
            h2 { "On this manifest, but of another tranche" }
            div.card { p { @for (i, line) in report.duplicates.iter().enumerate() {
                @if i > 0 { ", " } code { (line.serial) } " (tranche " (line.tranche) ")"
            } } }
        }
        @if !report.unexpected.is_empty() {
            h2 { "On no manifest" }
            p.soft { "Machines anywhere on the site that tried to join." }
            div."card scroll" { table {
                tr { th { "Serial, as claimed" } th { "What" } th { "First" } th { "Last" } th.num { "Times" } }
                @for line in &report.unexpected { tr {
                    td { code { (line.serial) } } td { (line.what) } td { (time(line.first_ms)) } td { (time(line.last_ms)) }
                    td.num { (line.times) }
                } }
            } }
        }
    }
}

fn distributions(report: &AcceptanceReport) -> Markup {
    html! {
        h2 { "Distributions" }
        @if report.distributions.is_empty() { p.soft { "No run has left comparable readings yet." } }
        @for d in &report.distributions {
            div.card {
                h3 {
                    (d.metric) " " span.soft { "(" (d.unit) ") · " (d.test) " · " (or_dash(d.sku.as_deref()))
                        @if let Some(driver) = &d.driver { " · driver " (driver) } }
                }
                (strip(d))
                p.soft {
                    (d.values.len()) " devices on " (d.n_blades) " blades, median " (number(d.median)) " " (d.unit) ", spread "
                    (number(d.spread)) @if let Some(why) = &d.why_not { ". Not judged: " (why) }
                }
                @for outlier in &d.outliers {
                    p { span.returned.word { (outlier.blade) " " (outlier.device) } ": " (outlier.reason) }
                }
            }
        }
    }
}

fn blades(report: &AcceptanceReport) -> Markup {
    html! {
        h2 { "Blades" }
        div."card scroll" { table {
            tr { th { "Blade" } th { "Serial" } th { "Rack" } th { "SKU" } th { "Phase" } th { "" } th { "Verdict" } th { "Device" } th { "Why" }
                th.num { "Run" } th { "Ended" } }
            @for line in &report.blades { tr {
                td { (line.name) }
                td { code { (line.serial) } }
                td { (rack(line.rack.as_ref())) }
                td { (or_dash(line.sku.as_deref())) }
                td { (line.phase) }
                td class=(line.standing.as_str()) { (line.standing.as_str()) }
                td { (line.outcome.map_or("–", |outcome| outcome.as_str())) }
                td { (or_dash(line.device.as_deref())) }
                td { (or_dash(line.why.as_deref()))
                    @if let Some(cohort) = &line.cohort { @if !cohort.why.is_empty() { br; span.soft { "cohort: " (cohort.why) } } } }
                td.num { @match line.run { Some(run) => (run), None => "–" } }
                td { @match line.ended_ms { Some(ms) => (time(ms)), None => "–" } }
            } }
        } }
    }
}

fn method(report: &AcceptanceReport) -> Markup {
    html! {
        h2 { "How it was tested" }
        div."card scroll" {
            @if let Some(suite) = &report.suite { p { "Suite asked for: " b { (suite) } } }
            table {
                tr { th { "Suite" } th { "SHA-256" } th.num { "Runs" } }
                @for line in &report.suites { tr { td { (line.name) } td { code { (line.sha256) } } td.num { (line.runs) } } }
            }
            table {
                tr { th { "whet" } th { "Driver" } th { "VBIOS" } th { "CUDA" } th { "NCCL" } th { "Kernel" } th.num { "Runs" } }
                @for v in &report.versions { tr {
                    td { (v.whet) }
                    @for text in [&v.driver, &v.vbios, &v.cuda, &v.nccl] { td { (or_dash(text.as_deref())) } }
                    td { (v.kernel) } td.num { (v.runs) }
                } }
            }
            p.soft { "The fleet judge accuses a healthy device with a probability of " (number(100.0 * report.fpr)) " %, over all its tests." }
            @for note in &report.notes { p.soft { (note) } }
        }
    }
}
