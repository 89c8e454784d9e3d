//! The fleet judge on seeded fleets: its stated rate holds, it finds what was planted, and what must not matter does
//! not matter.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

mod fleets;

use std::collections::BTreeSet;

use fleets::{Fleet, Plan, Shape, make};
use proptest::prelude::*;
use whetstone_burnin::judge::{Better, Judgement, Options, Sample, Scope, judge};

fn accused(judgement: &Judgement) -> BTreeSet<(String, String)> {
    judgement.outliers.iter().map(|o| (o.blade.clone(), o.device.clone())).collect()
}

fn at(fleet: &Fleet, fpr: f64) -> Judgement {
    judge(&fleet.samples, &Options { fpr, seed: 0 })
}

/// Healthy devices accused, of how many, over seeded fleets.
fn false_rate(shape: Shape, blades: usize, metrics: usize, fleets: u64, fpr: f64) -> (usize, usize) {
    (0..fleets).fold((0, 0), |(accusations, devices), seed| {
        let fleet = make(&Plan::healthy(shape, blades, metrics, 40_000 + seed));
        (accusations + accused(&at(&fleet, fpr)).len(), devices + fleet.devices)
    })
}

/// The most accusations that a true rate of `fpr` explains with 3.3 standard deviations (about 1 in 2,000). Devices
/// of one fleet are accused together, about two at a time: that widens the bound by the root of two.
fn bound(fpr: f64, devices: usize) -> f64 {
    let mean = fpr * devices as f64;
    mean + 3.3 * (2.0 * mean * (1.0 - fpr)).sqrt()
}

#[test]
fn the_stated_rate_holds_for_every_shape_of_noise() {
    for shape in Shape::ALL {
        for (blades, metrics, fleets) in [(3, 1, 50), (3, 3, 15), (8, 2, 10), (16, 1, 10)] {
            let (accusations, devices) = false_rate(shape, blades, metrics, fleets, 0.01);
            assert!(
                accusations as f64 <= bound(0.01, devices),
                "{}: {accusations} of {devices} healthy devices accused on {blades} blades, {metrics} metrics",
                shape.name()
            );
        }
    }
}

#[test]
fn a_stricter_rate_is_kept_too() {
    for shape in [Shape::Normal, Shape::StudentT3, Shape::SlowTail, Shape::TwoKindsOfDevice] {
        let (accusations, devices) = false_rate(shape, 8, 1, 30, 0.001);
        assert!(accusations as f64 <= bound(0.001, devices), "{}: {accusations} of {devices}", shape.name());
    }
}

#[test]
fn planted_8_percent_is_found_from_three_blades_up() {
    for blades in [3, 4, 8, 16] {
        for share in [0.01, 0.1] {
            let (mut found, mut planted) = (0, 0);
            for seed in 0..6 {
                let plan = Plan {
                    gray_share: share,
                    gray_drop: 0.08,
                    ..Plan::healthy(Shape::Normal, blades, 3, seed)
                };
                let fleet = make(&plan);
                found += fleet.gray.intersection(&accused(&at(&fleet, 0.01))).count();
                planted += fleet.gray.len();
            }
            assert!(found * 100 >= planted * 95, "{blades} blades, {share}: {found} of {planted}");
        }
    }
}

#[test]
fn planted_3_and_5_percent_are_found_among_sixteen_blades() {
    for (drop, least) in [(0.03, 70), (0.05, 97)] {
        let (mut found, mut planted) = (0, 0);
        for seed in 0..5 {
            let plan =
                Plan { gray_share: 0.03, gray_drop: drop, ..Plan::healthy(Shape::Normal, 16, 3, seed) };
            let fleet = make(&plan);
            found += fleet.gray.intersection(&accused(&at(&fleet, 0.01))).count();
            planted += fleet.gray.len();
        }
        assert!(found * 100 >= planted * least, "{drop}: {found} of {planted}");
    }
}

#[test]
fn many_faulty_devices_do_not_hide_each_other() {
    // A quarter of the devices, at different depths: plain spreads would swallow them.
    let mut fleet = make(&Plan::healthy(Shape::Normal, 8, 1, 5));
    for (i, sample) in fleet.samples.iter_mut().enumerate().filter(|(i, _)| i % 4 == 1) {
        sample.value *= 1.0 - 0.06 - 0.01 * (i / 4) as f64;
    }
    let found = accused(&at(&fleet, 0.01));
    assert!(found.len() >= 12, "{} of 16", found.len());
    let planted: BTreeSet<_> =
        fleet.samples.iter().skip(1).step_by(4).map(|s| (s.blade.clone(), s.device.clone())).collect();
    assert!(found.is_subset(&planted));
}

#[test]
fn a_whole_slow_blade_is_found_and_named_as_such() {
    for seed in 0..4 {
        let fleet = make(&Plan { slow_blade: 0.08, ..Plan::healthy(Shape::Normal, 8, 2, seed) });
        let judgement = at(&fleet, 0.01);
        assert_eq!(accused(&judgement), fleet.gray, "seed {seed}");
        assert!(
            judgement.outliers.iter().all(|o| o.scope == Scope::Blade && o.reason.contains("whole blade"))
        );
    }
}

#[test]
fn a_slow_blade_among_three_is_mentioned_not_accused() {
    for (slow_blade, mentioned) in [(0.0, false), (0.08, true)] {
        let fleet = make(&Plan { slow_blade, ..Plan::healthy(Shape::Normal, 3, 1, 12) });
        let judgement = at(&fleet, 0.01);
        assert!(judgement.outliers.is_empty());
        let notes = &judgement.cohorts[0].notes;
        assert_eq!(
            notes.iter().any(|n| n.contains("worse than the median of the others")),
            mentioned,
            "{notes:?}"
        );
    }
}

#[test]
fn blades_with_one_device_are_compared_as_blades() {
    let mut samples = make(&Plan { per_blade: 1, ..Plan::healthy(Shape::Normal, 16, 1, 3) }).samples;
    samples[4].value *= 0.92;
    let judgement = judge(&samples, &Options::default());
    assert_eq!(accused(&judgement), BTreeSet::from([("b-004".to_owned(), "gpu0".to_owned())]));
}

#[test]
fn a_cohort_that_is_too_small_is_said_to_be_so() {
    for (blades, per_blade) in [(1, 8), (2, 8), (3, 1)] {
        let mut samples = make(&Plan { per_blade, ..Plan::healthy(Shape::Normal, blades, 1, 9) }).samples;
        samples[0].value *= 0.8;
        let judgement = judge(&samples, &Options::default());
        assert!(judgement.outliers.is_empty());
        let cohort = &judgement.cohorts[0];
        assert!(!cohort.judged && cohort.why_not.is_some() && !judgement.anything_judged(), "{cohort:?}");
    }
}

#[test]
fn an_outlier_explains_itself() {
    let mut samples = make(&Plan::healthy(Shape::Normal, 16, 1, 21)).samples;
    samples[17].value *= 0.93;
    let judgement = judge(&samples, &Options { fpr: 0.001, seed: 0 });
    let [outlier] = &judgement.outliers[..] else { panic!("{:?}", judgement.outliers) };
    assert_eq!((outlier.rank, outlier.cohort_devices, outlier.scope), (1, 128, Scope::Device));
    assert!(outlier.p < outlier.p_limit && outlier.p_limit < 0.001);
    assert!((6.0..8.5).contains(&outlier.percent_worse.unwrap()));
    assert!(
        outlier.reason.contains("% below its cohort of 128 (p = ") && outlier.reason.contains("fpr 0.1 %")
    );
    let cohort = &judgement.cohorts[0];
    assert!(
        cohort.judged && cohort.detectable_percent.is_some_and(|d| (1.0..4.0).contains(&d)),
        "{cohort:?}"
    );
}

#[test]
fn equal_values_accuse_nobody_and_one_clear_exception_is_found() {
    let mut samples = make(&Plan::healthy(Shape::Normal, 8, 1, 2)).samples;
    samples.iter_mut().for_each(|s| s.value = 1980.0);
    let judgement = judge(&samples, &Options::default());
    assert!(judgement.outliers.is_empty() && judgement.cohorts[0].judged);
    samples[10].value = 1965.0;
    assert!(judge(&samples, &Options::default()).outliers.is_empty(), "one rounding step is not a fault");
    samples[10].value = 1755.0;
    assert_eq!(judge(&samples, &Options::default()).outliers.len(), 1);
}

#[test]
fn a_lag_that_nobody_would_act_on_is_no_outlier() {
    let mut samples = make(&Plan { sigma: 1e-5, ..Plan::healthy(Shape::Normal, 8, 1, 2) }).samples;
    samples[10].value *= 0.995;
    assert!(judge(&samples, &Options::default()).outliers.is_empty());
    samples[10].value *= 0.985;
    assert_eq!(judge(&samples, &Options::default()).outliers.len(), 1);
}

#[test]
fn a_second_kind_is_reported_not_accused() {
    let mut samples = make(&Plan::healthy(Shape::Normal, 8, 1, 4)).samples;
    samples.iter_mut().enumerate().filter(|(i, _)| i % 8 < 2).for_each(|(_, s)| s.value *= 0.96);
    let judgement = judge(&samples, &Options::default());
    assert!(judgement.outliers.is_empty(), "{:?}", judgement.outliers);
    assert!(judgement.cohorts[0].notes.iter().any(|n| n.starts_with("16 devices form a group")));
}

#[test]
fn only_like_is_compared_with_like() {
    let mut samples = make(&Plan::healthy(Shape::Normal, 8, 1, 6)).samples;
    for s in samples.iter_mut().filter(|s| s.blade.as_str() < "b-004") {
        s.driver = Some("570".into());
        s.value *= 0.9;
    }
    let judgement = judge(&samples, &Options::default());
    assert_eq!(judgement.cohorts.len(), 2);
    assert!(judgement.outliers.is_empty());
}

#[test]
fn several_samples_of_a_device_count_once_and_a_single_hiccup_is_forgiven() {
    let one = make(&Plan::healthy(Shape::Normal, 8, 1, 8)).samples;
    let mut three = [one.clone(), one.clone(), one.clone()].concat();
    three[5].value *= 0.5;
    let judgement = judge(&three, &Options::default());
    assert_eq!((judgement.cohorts[0].n_devices, judgement.cohorts[0].n_samples), (64, 192));
    assert_eq!(judgement.outliers, judge(&one, &Options::default()).outliers);
}

fn planted() -> Vec<Sample> {
    make(&Plan { gray_share: 0.1, gray_drop: 0.05, ..Plan::healthy(Shape::Laplace, 4, 2, 77) }).samples
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn order_does_not_matter(samples in Just(planted()).prop_shuffle()) {
        prop_assert_eq!(judge(&samples, &Options::default()), judge(&planted(), &Options::default()));
    }

    #[test]
    fn neither_scale_nor_direction_matters(power in -300..300i32, flip: bool) {
        // Powers of two scale without rounding.
        let mut scaled = planted();
        for s in &mut scaled {
            s.value *= 2f64.powi(power);
            if flip {
                s.value = -s.value;
                s.better = if s.better == Better::Higher { Better::Lower } else { Better::Higher };
            }
        }
        let (a, b) = (judge(&scaled, &Options::default()), judge(&planted(), &Options::default()));
        let who = |j: &Judgement| j.outliers.iter().map(|o| (o.blade.clone(), o.device.clone(), o.rank)).collect::<Vec<_>>();
        prop_assert_eq!(who(&a), who(&b));
        for (x, y) in a.outliers.iter().zip(&b.outliers) {
            prop_assert!((x.p / y.p - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn any_finite_numbers_are_survived(
        wild in prop_oneof![1 => Just(f64::MAX), 9 => Just(1e149)],
        values in prop::collection::vec(prop_oneof![any::<f64>(), Just(0.0), Just(f64::MAX), -1.0..1.0f64], 1..60),
        per_blade in 1..9usize,
        fpr: f64,
    ) {
        let template = planted().swap_remove(0);
        let samples: Vec<Sample> = values
            .iter()
            .enumerate()
            .map(|(i, value)| Sample {
                blade: (i / per_blade).to_string(),
                device: i.to_string(),
                value: value.clamp(-wild, wild),
                ..template.clone()
            })
            .collect();
        let judgement = judge(&samples, &Options { fpr, seed: 1 });
        prop_assert!(judgement.outliers.iter().all(|o| o.p <= o.p_limit && o.p >= 0.0));
    }
}
