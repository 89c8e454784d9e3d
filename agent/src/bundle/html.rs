//! `report.html` from a report.

use whetstone_model::report::Report;

pub fn render(report: &Report) -> String {
    format!("<!doctype html><title>{}</title>", report.run.replace(['<', '&'], "_"))
}
