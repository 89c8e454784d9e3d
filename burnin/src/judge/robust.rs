//! Order statistics that a quarter of bad values cannot carry away.

/// Median of values in any order; `None` of an empty slice.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (!sorted.is_empty()).then(|| median_of_sorted(&sorted))
}

/// Median of an ascending, non-empty slice.
pub fn median_of_sorted(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    // Halves first: the sum of two large values must not overflow.
    0.5 * sorted[(n - 1) / 2] + 0.5 * sorted[n / 2]
}

/// Quantile `q` (0 to 1) of an ascending, non-empty slice, between neighbours by straight lines.
pub fn quantile_of_sorted(sorted: &[f64], q: f64) -> f64 {
    let at = q.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + part * (sorted[high] - sorted[low])
}

/// Robust standard deviation of an ascending, non-empty slice: the median absolute deviation from the median,
/// scaled so that it is the standard deviation of normal noise. Where more than half of the values are equal it
/// would be 0: then the mean absolute deviation, scaled likewise. 0 only if all are equal.
pub fn width(sorted: &[f64]) -> f64 {
    let middle = median_of_sorted(sorted);
    let mut off: Vec<f64> = sorted.iter().map(|v| (v - middle).abs()).collect();
    off.sort_by(f64::total_cmp);
    let mad = median_of_sorted(&off);
    if mad > 0.0 { 1.4826 * mad } else { 1.2533 * off.iter().sum::<f64>() / off.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[f64::MAX, f64::MAX]), Some(f64::MAX));
        assert_eq!(quantile_of_sorted(&[0.0, 10.0], 0.25), 2.5);
        assert_eq!(quantile_of_sorted(&[7.0], 0.9), 7.0);
    }

    #[test]
    fn width_survives_a_quarter_of_wild_values_and_ties() {
        let mut values: Vec<f64> = (0..75).map(f64::from).collect();
        values.extend([1e9; 25]);
        assert!((30.0..60.0).contains(&width(&values)), "{}", width(&values));
        assert!(width(&[1.0, 1.0, 1.0, 1.0, 2.0]) > 0.0);
        assert_eq!(width(&[1.0, 1.0, 1.0]), 0.0);
    }
}
