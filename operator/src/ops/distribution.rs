//! The samples of a tranche's runs as distributions, with what the fleet judge says of them.

use std::collections::BTreeMap;

use serde::Deserialize;
use whetstone_burnin::judge::{self, Cohort, Options, Outlier, Sample, robust};

use super::data::{Distribution, OutlierLine, ValueLine};

/// Samples that are judged: 100,000 devices with 20 metrics.
const MAX_SAMPLES: usize = 2_000_000;
/// Longest line; a sample has about 300 bytes.
const MAX_LINE: usize = 64 << 10;

/// What two samples must agree in to be of one distribution: that of the judge's cohorts.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a> {
    sku: Option<&'a str>,
    test: &'a str,
    metric: &'a str,
    unit: &'a str,
    driver: Option<&'a str>,
    firmware: Option<&'a str>,
    suite: Option<&'a str>,
}

impl<'a> Key<'a> {
    fn of_sample(s: &'a Sample) -> Self {
        Key {
            sku: s.sku.as_deref(),
            test: &s.test,
            metric: &s.metric,
            unit: &s.unit,
            driver: s.driver.as_deref(),
            firmware: s.firmware.as_deref(),
            suite: s.suite.as_deref(),
        }
    }

    fn of_cohort(c: &'a Cohort) -> Self {
        Key {
            sku: c.sku.as_deref(),
            test: &c.test,
            metric: &c.metric,
            unit: &c.unit,
            driver: c.driver.as_deref(),
            firmware: c.firmware.as_deref(),
            suite: c.suite.as_deref(),
        }
    }
}

#[derive(Deserialize)]
struct Labelled {
    #[serde(default)]
    label: Option<String>,
    #[serde(flatten)]
    sample: Sample,
}

/// `lines` are JSON lines of samples; lines that are none are passed over. Labels by (blade, device id) go before those in the
/// samples.
pub(super) fn distributions(
    lines: &[u8],
    labels: &BTreeMap<(String, String), String>,
    fpr: f64,
) -> Vec<Distribution> {
    let mut samples = Vec::new();
    let mut own_labels: BTreeMap<(String, String), String> = BTreeMap::new();
    for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty() && line.len() <= MAX_LINE) {
        let Ok(Labelled { label, sample }) = serde_json::from_slice(line) else { continue };
        if samples.len() == MAX_SAMPLES {
            break;
        }
        if let Some(label) = label {
            own_labels.entry((sample.blade.clone(), sample.device.clone())).or_insert(label);
        }
        samples.push(sample);
    }
    let judgement = judge::judge(&samples, &Options { fpr, seed: 0 });
    let label = |blade: &str, device: &str| {
        let key = (blade.to_owned(), device.to_owned());
        labels.get(&key).or_else(|| own_labels.get(&key)).cloned().unwrap_or_else(|| device.to_owned())
    };
    let mut values: BTreeMap<Key<'_>, BTreeMap<(&str, &str), Vec<f64>>> = BTreeMap::new();
    for sample in samples.iter().filter(|s| s.value.is_finite()) {
        let devices = values.entry(Key::of_sample(sample)).or_default();
        devices.entry((&sample.blade, &sample.device)).or_default().push(sample.value);
    }
    let mut found: Vec<Distribution> = judgement
        .cohorts
        .iter()
        .map(|cohort| {
            let devices = values.get(&Key::of_cohort(cohort));
            let mut lines: Vec<ValueLine> = devices
                .into_iter()
                .flatten()
                .filter_map(|((blade, device), values)| {
                    let value = robust::median(values)?;
                    Some(ValueLine { blade: (*blade).to_owned(), device: label(blade, device), value })
                })
                .collect();
            lines.sort_by(|a, b| a.value.total_cmp(&b.value));
            let is_of = |o: &&Outlier| {
                (&o.test, &o.metric, &o.unit) == (&cohort.test, &cohort.metric, &cohort.unit)
                    && devices.is_some_and(|d| d.contains_key(&(o.blade.as_str(), o.device.as_str())))
            };
            let outliers = judgement.outliers.iter().filter(is_of);
            Distribution {
                sku: cohort.sku.clone(),
                test: cohort.test.clone(),
                metric: cohort.metric.clone(),
                unit: cohort.unit.clone(),
                better: cohort.better,
                driver: cohort.driver.clone(),
                firmware: cohort.firmware.clone(),
                n_blades: cohort.n_blades,
                median: cohort.center,
                spread: cohort.spread,
                judged: cohort.judged,
                why_not: cohort.why_not.clone(),
                values: lines,
                outliers: outliers
                    .map(|o| OutlierLine {
                        blade: o.blade.clone(),
                        device: label(&o.blade, &o.device),
                        value: o.value,
                        scope: o.scope,
                        p: o.p,
                        percent_worse: o.percent_worse,
                        reason: o.reason.clone(),
                    })
                    .collect(),
            }
        })
        .collect();
    // What stands out first, then by name.
    found.sort_by(|a, b| {
        (a.outliers.is_empty(), &a.sku, &a.metric, &a.test).cmp(&(
            b.outliers.is_empty(),
            &b.sku,
            &b.metric,
            &b.test,
        ))
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(blade: usize, device: usize, value: f64) -> String {
        serde_json::json!({"blade": format!("b-{blade:02}"), "device": format!("GPU-{blade}-{device}"),
            "label": format!("gpu{device}"), "test": "gemm", "metric": "gemm.bf16.throughput", "value": value,
            "unit": "TFLOP/s", "better": "higher", "sku": "hgx-h100"})
        .to_string()
    }

    #[test]
    fn a_slow_device_is_named_and_broken_lines_are_passed_over() {
        let mut lines = vec!["{".to_owned(), "x".repeat(MAX_LINE + 1)];
        for blade in 0..12 {
            for device in 0..8 {
                let slow = blade == 3 && device == 5;
                // Small steps that no two devices share.
                let noise = f64::from((blade * 8 + device) * 37 % 96) * 0.02;
                lines.push(line(blade as usize, device as usize, if slow { 500.0 } else { 700.0 + noise }));
            }
        }
        let found = distributions(lines.join("\n").as_bytes(), &BTreeMap::new(), 0.01);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].values.len(), found[0].n_blades), (96, 12));
        assert_eq!(found[0].values[0].device, "gpu5");
        let outliers: Vec<_> =
            found[0].outliers.iter().map(|o| (o.blade.as_str(), o.device.as_str())).collect();
        assert_eq!(outliers, [("b-03", "gpu5")]);
        assert!(found[0].values.is_sorted_by(|a, b| a.value <= b.value));
    }
}
