//! The judgement in words.

use crate::judge::group::Group;
use crate::judge::types::{Better, Cohort, Outlier, Scope};
use crate::judge::weigh::Weighed;

/// The accused devices of a cohort with their reasons.
pub fn outliers(group: &Group<'_>, weighed: &Weighed, fpr: f64) -> Vec<Outlier> {
    let n = group.devices.len();
    let is_worse = |a: f64, b: f64| if group.key.better == Better::Higher { a < b } else { a > b };
    weighed
        .accused
        .iter()
        .map(|&(at, p, by_blade)| {
            let device = &group.devices[at];
            let lag = match group.key.better {
                Better::Higher => weighed.center - device.value,
                Better::Lower => device.value - weighed.center,
            };
            let percent_worse = (weighed.center != 0.0).then(|| 100.0 * lag / weighed.center.abs());
            let spreads = (weighed.spread > 0.0).then(|| lag / weighed.spread);
            let rank = 1 + group.devices.iter().filter(|d| is_worse(d.value, device.value)).count();
            let unit = if group.key.unit.is_empty() { String::new() } else { format!(" {}", group.key.unit) };
            let side = if group.key.better == Better::Higher { "below" } else { "above" };
            let amount = match percent_worse {
                Some(percent) => format!("{percent:.1} %"),
                None => format!("{}{unit}", number(lag)),
            };
            let who = if by_blade && n > group.n_blades { "with its whole blade, " } else { "" };
            let p_limit = if by_blade { weighed.blade_level } else { weighed.device_level };
            let wide = spreads.map_or(String::new(), |s| format!(", {s:.1} spreads out"));
            Outlier {
                blade: device.blade.to_owned(),
                device: device.device.to_owned(),
                test: group.key.test.to_owned(),
                metric: group.key.metric.to_owned(),
                unit: group.key.unit.to_owned(),
                value: device.value,
                scope: if by_blade { Scope::Blade } else { Scope::Device },
                p,
                p_limit,
                percent_worse,
                spreads,
                rank,
                cohort_devices: n,
                cohort_center: weighed.center,
                cohort_spread: weighed.spread,
                reason: format!(
                    "{} {who}{amount} {side} its cohort of {n} (p = {}, fpr {} %): {}{unit} against a median of {}{unit} \
                     with spread {}{unit}, place {rank} of {n} from the worst{wide}",
                    group.key.metric,
                    probability(p),
                    number(100.0 * fpr),
                    number(device.value),
                    number(weighed.center),
                    number(weighed.spread),
                ),
            }
        })
        .collect()
}

/// The cohort's own line.
pub fn cohort(group: &Group<'_>, weighed: &Weighed) -> Cohort {
    let key = &group.key;
    let owned = |text: Option<&str>| text.map(str::to_owned);
    let percent = |shift: f64| (weighed.center != 0.0).then(|| 100.0 * shift / weighed.center.abs());
    Cohort {
        test: key.test.to_owned(),
        metric: key.metric.to_owned(),
        unit: key.unit.to_owned(),
        better: key.better,
        sku: owned(key.sku),
        driver: owned(key.driver),
        firmware: owned(key.firmware),
        suite: owned(key.suite),
        n_devices: group.devices.len(),
        n_blades: group.n_blades,
        n_samples: group.n_samples,
        center: weighed.center,
        spread: weighed.spread,
        judged: weighed.why_not.is_none(),
        why_not: weighed.why_not.clone(),
        detectable_percent: weighed.detectable.and_then(percent),
        detectable_blade_percent: weighed.detectable_blade.and_then(percent),
        notes: weighed.notes.clone(),
    }
}

/// Four significant digits, without trailing zeros.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10().floor();
    if !(-4.0..9.0).contains(&magnitude) {
        return format!("{value:.3e}");
    }
    let decimals = (3.0 - magnitude).max(0.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// One digit and the power of ten; beyond the reach of the arithmetic a bound.
fn probability(p: f64) -> String {
    if p < 1e-15 {
        "below 1e-15".to_owned()
    } else if p < 0.001 {
        format!("{p:.0e}")
    } else {
        number(p)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (987.654, "987.7"),
            (0.012345, "0.01235"),
            (12345.6, "12346"),
            (-2.5, "-2.5"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(probability(2.1e-9), "2e-9");
        assert_eq!(probability(0.0), "below 1e-15");
    }
}
