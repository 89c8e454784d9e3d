//! What a run leaves for the fleet judge: one line per reading that can be compared between blades.

use std::fmt::Write;

use serde::Serialize;
use whetstone_model::report::Report;
use whetstone_model::unit::Unit;

#[derive(Serialize)]
struct Sample<'a> {
    blade: &'a str,
    device: &'a str,
    /// For people; the judge goes by `device`.
    label: &'a str,
    test: &'a str,
    metric: &'a str,
    value: f64,
    unit: Unit,
    better: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sku: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    firmware: Option<&'a str>,
    suite: &'a str,
}

/// The samples of a finished run as JSON lines. Readings of the blade as a whole have the blade as their device.
pub fn samples(report: &Report) -> String {
    let mut lines = String::new();
    for test in &report.tests {
        for reading in &test.readings {
            let Some(better) = better(&reading.reading.metric) else { continue };
            let device = reading.device.as_ref().map_or(report.blade.name.as_str(), |d| d.as_str());
            let known = report.devices.iter().find(|d| Some(&d.id) == reading.device.as_ref());
            let sample = Sample {
                blade: &report.blade.name,
                device,
                label: known.map_or(device, |d| &d.label),
                test: &test.name,
                metric: &reading.reading.metric,
                value: reading.reading.value,
                unit: reading.reading.unit,
                better,
                sku: report.blade.sku.as_deref(),
                driver: report.versions.driver.as_deref(),
                firmware: report.versions.vbios.as_deref(),
                suite: &report.suite.sha256,
            };
            if let Ok(json) = serde_json::to_string(&sample) {
                let _ = writeln!(lines, "{json}");
            }
        }
    }
    lines
}

/// Which way a metric is better; `None` for one that says nothing about quality (a size, a limit).
fn better(metric: &str) -> Option<&'static str> {
    if [".throughput", ".bandwidth", ".busbw"].iter().any(|end| metric.ends_with(end)) {
        Some("higher")
    } else if metric.ends_with(".latency") {
        Some("lower")
    } else {
        None
    }
}
