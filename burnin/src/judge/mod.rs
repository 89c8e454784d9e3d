//! The fleet judge: finds slow devices and slow blades among like ones, with a stated false-positive rate.
//!
//! 1. Samples become cohorts: same test, metric, unit, SKU, driver, firmware and suite ([`group`]).
//! 2. In each cohort every device is compared with the other devices of its own blade, and every blade with the
//!    other blades ([`weigh`]), so that a warm rack position is not taken for a faulty device.
//! 3. [`scan`] looks from the worst quarter inwards for values that stand apart; [`tail`] says how probable a healthy
//!    value there is, without knowing the shape of the noise.
//! 4. The stated rate is shared among a device's tests (Šidák) and between device and blade.
//!
//! The reasons for this choice are in `docs/decisions/fleet-judge-statistic.md`, its measured error rates in
//! `docs/benchmarks/fleet-judge.md`.

mod explain;
mod group;
pub mod robust;
mod scan;
pub mod tail;
mod types;
mod weigh;

pub use types::{Better, Cohort, Judgement, Options, Outlier, Sample, Scope};

use std::collections::BTreeMap;

/// Fewest blades with which anything is compared.
pub const LEAST_BLADES: usize = 3;
/// The range of [`Options::fpr`]; beyond it the tails are not what they say.
pub const FPR_RANGE: std::ops::RangeInclusive<f64> = 1e-6..=0.2;

/// Judges all samples. Values that are not finite are left out; `fpr` is clamped to [`FPR_RANGE`].
///
/// The result does not depend on the order of the samples, nor on the scale of a metric.
pub fn judge(samples: &[Sample], options: &Options) -> Judgement {
    let fpr =
        if options.fpr.is_nan() { 0.01 } else { options.fpr.clamp(*FPR_RANGE.start(), *FPR_RANGE.end()) };
    let groups = group::cohorts(samples);
    // In how many cohorts that are large enough each device takes part: it may be accused in any of them.
    let mut tests: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for cohort in &groups {
        let compared = u32::from(cohort.too_small().is_none());
        for device in &cohort.devices {
            *tests.entry((device.blade, device.device)).or_default() += compared;
        }
    }
    let mut outliers = Vec::new();
    let mut cohorts = Vec::new();
    for cohort in &groups {
        let most = cohort.devices.iter().filter_map(|d| tests.get(&(d.blade, d.device))).max();
        let level = 1.0 - (1.0 - fpr).powf(1.0 / f64::from(most.copied().unwrap_or(1).max(1)));
        let weighed = weigh::weigh(cohort, level, fpr, options.seed);
        outliers.extend(explain::outliers(cohort, &weighed, fpr));
        cohorts.push(explain::cohort(cohort, &weighed));
    }
    outliers.sort_by(|a, b| {
        a.p.total_cmp(&b.p).then_with(|| {
            (&a.blade, &a.device, &a.test, &a.metric).cmp(&(&b.blade, &b.device, &b.test, &b.metric))
        })
    });
    let mut blades: Vec<&str> = tests.keys().map(|(blade, _)| *blade).collect();
    blades.dedup();
    Judgement { fpr, n_devices: tests.len(), n_blades: blades.len(), outliers, cohorts }
}
