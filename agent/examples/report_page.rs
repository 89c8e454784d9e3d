//! Writes sample pages to a folder, to look at: `cargo run -p whetstone-agent --example report_page -- DIR`.

// Its `unwrap` is on a constant.
#[allow(clippy::unwrap_used)]
#[path = "../src/bundle/html/tests/sample.rs"]
mod sample;

use whetstone_agent::bundle::html::{IndexRow, render, render_index};

fn main() -> std::io::Result<()> {
    let dir = std::path::PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| ".".to_owned()));
    let reports = [sample::eight_gpus(), sample::host_only()];
    let mut rows = Vec::new();
    for report in &reports {
        let file = format!("{}.html", report.blade.name);
        std::fs::write(dir.join(&file), render(report))?;
        rows.push(IndexRow {
            blade: report.blade.name.clone(),
            outcome: report.verdict.outcome,
            device: report.devices.get(5).map(|d| d.label.clone()),
            why: report.verdict.why.clone(),
            next: report.verdict.action.next_step().to_owned(),
            link: file,
            simulated: report.simulated,
        });
    }
    std::fs::write(dir.join("index.html"), render_index(&rows))
}
