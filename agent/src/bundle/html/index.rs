//! The page over many runs.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use whetstone_model::verdict::Outcome;

use super::{STYLE, chip};

/// One run in the list.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct IndexRow {
    pub blade: String,
    pub outcome: Outcome,
    /// Labels of the devices that decided, if any did.
    pub device: Option<String>,
    pub why: String,
    pub next: String,
    /// Relative link to the run's `report.html`.
    pub link: String,
    pub simulated: bool,
}

/// A page that lists runs, worst first, each linked to its own report.
pub fn render_index(rows: &[IndexRow]) -> String {
    let count = |outcome| rows.iter().filter(|r| r.outcome == outcome).count();
    let mut order: Vec<&IndexRow> = rows.iter().collect();
    let rank = |row: &IndexRow| match row.outcome {
        Outcome::Fail => 0,
        Outcome::Inconclusive => 1,
        Outcome::Pass => 2,
    };
    order.sort_by(|a, b| (rank(a), &a.blade).cmp(&(rank(b), &b.blade)));
    let simulated = rows.iter().filter(|r| r.simulated).count();
    let page: Markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Whetstone burn-in: " (rows.len()) " runs" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                @if simulated > 0 {
                    div.sim { "SIMULATED — not a hardware result (" (simulated) " of " (rows.len()) " runs)" }
                }
                main {
                    h1 { "Burn-in of " (rows.len()) " blades" }
                    p {
                        (chip("pass")) " " b { (count(Outcome::Pass)) } "  "
                        (chip("fail")) " " b { (count(Outcome::Fail)) } "  "
                        (chip("inconclusive")) " " b { (count(Outcome::Inconclusive)) }
                    }
                    div.card.scroll { table {
                        tr { th { "Blade" } th { "Verdict" } th { "Device" } th { "Why" } th { "Next" } th {} }
                        @for row in order {
                            tr {
                                td { b { (row.blade) } }
                                td { (chip(row.outcome.as_str())) }
                                td { (row.device.as_deref().unwrap_or("–")) }
                                td.wrap { (row.why) }
                                td { (row.next) }
                                td { a href=(local(&row.link)) { "report" } @if row.simulated { " " span.soft { "simulated" } } }
                            }
                        }
                    } }
                }
            }
        }
    };
    page.into_string()
}

/// A link that stays inside of the folder: no scheme, so that no name can make it a script.
fn local(link: &str) -> String {
    if link.contains(':') || link.starts_with('/') || link.starts_with('\\') {
        format!("./{}", link.replace(':', "%3A").trim_start_matches(['/', '\\']))
    } else {
        link.to_owned()
    }
}
