//! How far out is far: the chance that one more healthy value lies beyond a given one.
//!
//! The shape of a cohort's noise is not known and a small cohort cannot show it, so no single shape is chosen.
//! The judge holds a fixed family of shapes (Student-t tails with 2, 4, 8 or infinitely many degrees of freedom,
//! each with five degrees of skew) against the cohort, weighs each shape, place and width by how well it explains
//! the values, and averages the tail probability over all of them (a Bayesian predictive tail). With few values
//! the wide and heavy-tailed shapes keep their weight and the probability stays honest (for two or three values it
//! falls off like a Student t with one or two degrees of freedom); with many values it sharpens.

use crate::judge::robust;

/// Degrees of freedom of the tails with their weight before any data. Infinity is the normal distribution.
/// 2 covers the far tail of a lognormal with sigma 1, the heaviest healthy noise that is planned for.
const TAILS: [(f64, f64); 4] = [(f64::INFINITY, 0.30), (8.0, 0.22), (4.0, 0.25), (2.0, 0.23)];
/// Ratio of the width of the bad side to that of the good side, with its weight before any data.
const SKEWS: [(f64, f64); 5] = [(0.25, 0.02), (0.5, 0.08), (1.0, 0.45), (2.0, 0.20), (4.0, 0.25)];
/// Steps of the grid over the place (in standard errors) and over the logarithm of the width.
const PLACES: i32 = 6;
const WIDTHS: usize = 18;
/// Above this many values the middle ones are grouped: the tails alone decide the shape, and time stays bounded.
const MAX_POINTS: usize = 72;
const KEPT_ENDS: usize = 12;

/// One shape at one place with one width, and how much it is believed.
#[derive(Debug, Clone, Copy)]
struct Part {
    weight: f64,
    place: f64,
    /// Width of the bad (upper) side.
    width: f64,
    /// Share of the values on the bad side.
    share: f64,
    freedom: f64,
}

impl Part {
    /// Probability of a value beyond `x`, in the units of the fit.
    fn beyond(&self, x: f64) -> f64 {
        let y = (x - self.place) / self.width;
        if y >= 0.0 {
            2.0 * self.share * upper(y, self.freedom)
        } else {
            let good = 1.0 - self.share;
            1.0 - 2.0 * good * upper(-y * self.share / good, self.freedom)
        }
    }
}

/// The predictive distribution of one more healthy value; larger is worse.
#[derive(Debug, Clone)]
pub struct Tail {
    parts: Vec<Part>,
    median: f64,
    scale: f64,
}

impl Tail {
    /// Learns from at least two values, not all equal. `least_width` is the smallest standard deviation that
    /// is believed (0: none), for values whose measuring error is known.
    pub fn fit(values: &[f64], least_width: f64) -> Option<Tail> {
        Tail::fit_below(values, least_width, 0)
    }

    /// As [`Tail::fit`], from a healthy sample of which the worst `unseen` values are not given: all that is known
    /// of them is that they are worse than the rest.
    pub fn fit_below(values: &[f64], least_width: f64, unseen: usize) -> Option<Tail> {
        if values.len() < 2 || values.iter().any(|v| !v.is_finite()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = robust::median_of_sorted(&sorted);
        let scale = robust::width(&sorted).max(least_width);
        if !(scale > 0.0 && scale.is_finite()) {
            return None;
        }
        for v in &mut sorted {
            *v = (*v - median) / scale;
        }
        let points = grouped(&sorted);
        let edge = sorted[sorted.len() - 1];
        let n = sorted.len() as f64;
        let least = (least_width / scale).ln();
        let mut parts = Vec::with_capacity(TAILS.len() * SKEWS.len() * (2 * PLACES as usize + 1) * WIDTHS);
        for &(freedom, tail_weight) in &TAILS {
            for &(skew, skew_weight) in &SKEWS {
                // Width of the bad and of the good side, in units of the shape's own width.
                let (bad, good) = (skew.sqrt(), 1.0 / skew.sqrt());
                let share = bad / (bad + good);
                let middle = robust::quantile_of_sorted(&sorted, 1.0 - share);
                let mut off: Vec<f64> = sorted
                    .iter()
                    .map(|v| (v - middle).abs() / if *v > middle { bad } else { good })
                    .collect();
                off.sort_by(f64::total_cmp);
                let guess = (robust::median_of_sorted(&off) / half_width(freedom)).max(0.05).ln().max(least);
                // The width is poorly known from few values, upwards most of all.
                let (low, high) =
                    ((guess - 0.3 - 3.6 / n.sqrt()).max(least), guess + 0.3 + 3.6 / n.sqrt() + 10.0 / n);
                let step = (high - low) / (WIDTHS - 1) as f64;
                for w in 0..WIDTHS {
                    let log_width = low + step * w as f64;
                    let width = log_width.exp();
                    for place_step in -PLACES..=PLACES {
                        let place = middle + width * f64::from(place_step) * 0.85 / n.sqrt();
                        let mut likely = log_likelihood(&points, place, width * bad, width * good, freedom);
                        let mut part = Part { weight: 0.0, place, width: width * bad, share, freedom };
                        if unseen > 0 {
                            likely += unseen as f64 * part.beyond(edge).max(f64::MIN_POSITIVE).ln();
                        }
                        // Flat in place and in the logarithm of the width; the grid of places grows with it.
                        part.weight = likely + log_width + (tail_weight * skew_weight * step).ln();
                        parts.push(part);
                    }
                }
            }
        }
        let best = parts.iter().map(|p| p.weight).fold(f64::NEG_INFINITY, f64::max);
        parts.retain_mut(|p| {
            p.weight = (p.weight - best).exp();
            p.weight > 1e-15
        });
        let total: f64 = parts.iter().map(|p| p.weight).sum();
        parts.iter_mut().for_each(|p| p.weight /= total);
        (total > 0.0).then_some(Tail { parts, median, scale })
    }

    /// Probability that one more healthy value is `value` or worse.
    pub fn beyond(&self, value: f64) -> f64 {
        let x = (value - self.median) / self.scale;
        let sum: f64 = self.parts.iter().map(|p| p.weight * p.beyond(x)).sum();
        sum.min(1.0)
    }

    /// Probability that `count` healthy values that are all worse than `edge` are all worse than `value` too.
    pub fn gap(&self, edge: f64, value: f64, count: usize) -> f64 {
        let (edge, value) = ((edge - self.median) / self.scale, (value - self.median) / self.scale);
        let ratio = |p: &Part| p.beyond(value) / p.beyond(edge).max(f64::MIN_POSITIVE);
        self.parts
            .iter()
            .map(|p| p.weight * ratio(p).min(1.0).powi(count.min(1_000) as i32))
            .sum::<f64>()
            .min(1.0)
    }

    /// The value whose [`Tail::beyond`] is `p` (below 0.2), or `None` if it lies more than `reach` beyond the median.
    pub fn value_at(&self, p: f64, reach: f64) -> Option<f64> {
        let (mut low, mut high) = (self.median, self.median + reach);
        if self.beyond(high) > p {
            return None;
        }
        for _ in 0..40 {
            let middle = 0.5 * (low + high);
            if self.beyond(middle) > p { low = middle } else { high = middle }
        }
        Some(high)
    }
}

/// Values with their multiplicity: both ends as they are, the middle in groups of neighbours.
fn grouped(sorted: &[f64]) -> Vec<(f64, f64)> {
    if sorted.len() <= MAX_POINTS {
        return sorted.iter().map(|v| (*v, 1.0)).collect();
    }
    let (head, rest) = sorted.split_at(KEPT_ENDS);
    let (middle, tail) = rest.split_at(rest.len() - KEPT_ENDS);
    let size = middle.len().div_ceil(MAX_POINTS - 2 * KEPT_ENDS);
    let groups = middle.chunks(size).map(|c| (c.iter().sum::<f64>() / c.len() as f64, c.len() as f64));
    head.iter().map(|v| (*v, 1.0)).chain(groups).chain(tail.iter().map(|v| (*v, 1.0))).collect()
}

fn log_likelihood(points: &[(f64, f64)], place: f64, bad: f64, good: f64, freedom: f64) -> f64 {
    let n: f64 = points.iter().map(|(_, count)| count).sum();
    let off = |v: f64| (v - place) / if v >= place { bad } else { good };
    let shape: f64 = if freedom.is_infinite() {
        -0.5 * points.iter().map(|&(v, count)| count * off(v).powi(2)).sum::<f64>()
    } else {
        -0.5 * (freedom + 1.0)
            * points.iter().map(|&(v, count)| count * (1.0 + off(v).powi(2) / freedom).ln()).sum::<f64>()
    };
    shape + n * (2.0 * peak(freedom) / (bad + good)).ln()
}

/// Density of the standard t distribution at 0.
fn peak(freedom: f64) -> f64 {
    match freedom {
        2.0 => 0.353_553_390_593,
        4.0 => 0.375,
        8.0 => 0.386_699_020_961,
        _ => 0.398_942_280_401,
    }
}

/// Median of |t|: half of the values lie within it.
fn half_width(freedom: f64) -> f64 {
    match freedom {
        2.0 => 0.816_497,
        4.0 => 0.740_697,
        8.0 => 0.706_387,
        _ => 0.674_490,
    }
}

/// P(t > `y`) for `y` ≥ 0, without cancellation far out. For an even number of degrees of freedom ν the
/// integral over u = t/√(ν + t²) is a polynomial in w = 1 − u.
fn upper(y: f64, freedom: f64) -> f64 {
    if freedom.is_infinite() {
        return 0.5 * libm::erfc(y * std::f64::consts::FRAC_1_SQRT_2);
    }
    let u = y / (freedom + y * y).sqrt();
    let w = freedom / (freedom + y * y) / (1.0 + u);
    match freedom {
        2.0 => 0.5 * w,
        4.0 => 0.75 * w * w * (1.0 - w / 3.0),
        _ => 35.0 / 32.0 * w.powi(4) * (2.0 - w * (12.0 / 5.0 - w * (1.0 - w / 7.0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_agree_with_printed_tables() {
        // One-sided critical values of Student's t, from any table.
        for (freedom, t, p) in [
            (2.0, 2.920, 0.05),
            (2.0, 31.599, 0.0005),
            (4.0, 2.132, 0.05),
            (4.0, 8.610, 0.0005),
            (8.0, 1.860, 0.05),
            (8.0, 5.041, 0.0005),
            (f64::INFINITY, 3.2905, 0.0005),
        ] {
            assert!((upper(t, freedom) / p - 1.0).abs() < 2e-3, "{freedom} {t}: {}", upper(t, freedom));
            assert!((upper(0.0, freedom) - 0.5).abs() < 1e-12);
            assert!((upper(half_width(freedom), freedom) - 0.25).abs() < 1e-5);
        }
    }

    #[test]
    fn densities_integrate_to_one() {
        for &(freedom, _) in &TAILS {
            let slope = (upper(0.0, freedom) - upper(1e-6, freedom)) / 1e-6;
            assert!((slope / peak(freedom) - 1.0).abs() < 1e-5, "{freedom}: {slope}");
        }
    }

    #[test]
    fn few_values_say_little_and_many_say_much() {
        let line = |n: usize| -> Vec<f64> { (0..n).map(|i| (i as f64 + 0.5) / n as f64).collect() };
        let p: Vec<f64> =
            [3, 8, 24, 200].map(|n| Tail::fit(&line(n), 0.0).unwrap().beyond(3.0)).into_iter().collect();
        assert!(p.windows(2).all(|w| w[1] < w[0]), "{p:?}");
        assert!(p[0] > 0.01 && p[3] < 1e-6, "{p:?}");
    }

    #[test]
    fn value_at_inverts_beyond() {
        let values: Vec<f64> = (0..50).map(|i| (f64::from(i) * 0.7).sin()).collect();
        let tail = Tail::fit(&values, 0.0).unwrap();
        let at = tail.value_at(0.001, 100.0).unwrap();
        assert!((tail.beyond(at) / 0.001 - 1.0).abs() < 1e-3);
        assert_eq!(tail.value_at(1e-12, 0.5), None);
    }

    #[test]
    fn equal_values_have_no_tail() {
        assert!(Tail::fit(&[4.0; 9], 0.0).is_none());
        assert!(Tail::fit(&[4.0], 0.0).is_none());
        assert!(Tail::fit(&[4.0; 9], 0.1).unwrap().beyond(5.0) < 1e-2);
    }
}
