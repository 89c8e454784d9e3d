//! Plots of the acceptance report as inline SVG.

use maud::{Markup, html};

use super::data::{Distribution, OutlierLine};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 132.0;
const LEFT: f64 = 16.0;
const RIGHT: f64 = 16.0;
/// The axis' distance from the top.
const FLOOR: f64 = 104.0;
/// Up to so many devices each is a dot; more are drawn as columns, or the page would not open.
const MAX_DOTS: usize = 400;
const COLUMNS: usize = 90;
/// Outliers that are named in a plot; all are in the table.
const MAX_NAMED: usize = 6;

/// Four significant digits, thousands untouched.
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10().floor();
    if !(-5.0..12.0).contains(&magnitude) {
        return format!("{value:.3e}");
    }
    let decimals = (3.0 - magnitude).max(0.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn px(value: f64) -> String {
    format!("{value:.1}")
}

/// Values on a line: all devices of one metric, the median, and by name those that stand apart.
pub(super) fn strip(distribution: &Distribution) -> Markup {
    let values: Vec<f64> = distribution.values.iter().map(|v| v.value).collect();
    let (Some(low), Some(high)) = (values.first().copied(), values.last().copied()) else { return html! {} };
    let margin = ((high - low) * 0.04).max(high.abs().max(1e-9) * 0.002);
    let (from, to) = (low - margin, high + margin);
    let x = |v: f64| LEFT + (WIDTH - LEFT - RIGHT) * (v - from) / (to - from);
    let is_outlier = |blade: &str, device: &str| {
        distribution.outliers.iter().any(|o| o.blade == blade && o.device == device)
    };
    let label = format!("{} of {} devices", distribution.metric, values.len());
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(label) {
            line.axis x1=(px(LEFT)) x2=(px(WIDTH - RIGHT)) y1=(px(FLOOR)) y2=(px(FLOOR)) {}
            @for tick in ticks(from, to) {
                line.axis x1=(px(x(tick))) x2=(px(x(tick))) y1=(px(FLOOR)) y2=(px(FLOOR + 4.0)) {}
                text x=(px(x(tick))) y=(px(FLOOR + 18.0)) text-anchor="middle" { (number(tick)) }
            }
            line.median x1=(px(x(distribution.median))) x2=(px(x(distribution.median))) y1="26" y2=(px(FLOOR)) {}
            @if values.len() <= MAX_DOTS {
                @for (index, value) in distribution.values.iter().enumerate() {
                    @if !is_outlier(&value.blade, &value.device) {
                        circle.dot cx=(px(x(value.value))) cy=(px(height_of(index))) r="2.6" {
                            title { (value.blade) " " (value.device) ": " (number(value.value)) " " (distribution.unit) }
                        }
                    }
                }
            } @else {
                (columns(&values, from, to, &x))
            }
            @for (index, outlier) in distribution.outliers.iter().enumerate() {
                (mark(outlier, index, x(outlier.value), &distribution.unit))
            }
        }
    }
}

/// Dots are spread over the height, so that equal values do not hide each other: a fixed pattern, no chance.
fn height_of(index: usize) -> f64 {
    // Steps of the golden ratio fall evenly and never line up.
    let part = (index as f64 * 0.618_033_988_75).fract();
    36.0 + part * (FLOOR - 8.0 - 36.0)
}

fn columns(values: &[f64], from: f64, to: f64, x: &dyn Fn(f64) -> f64) -> Markup {
    let mut counts = [0usize; COLUMNS];
    for value in values {
        let at = ((value - from) / (to - from) * COLUMNS as f64) as usize;
        counts[at.min(COLUMNS - 1)] += 1;
    }
    let most = counts.iter().max().copied().unwrap_or(1).max(1);
    let wide = (x(to) - x(from)) / COLUMNS as f64;
    html! {
        @for (index, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            @let tall = (FLOOR - 36.0) * *count as f64 / most as f64;
            rect.column x=(px(x(from) + wide * index as f64)) y=(px(FLOOR - tall.max(1.0))) width=(px((wide - 1.0).max(0.5)))
                height=(px(tall.max(1.0))) { title { (count) " devices" } }
        }
    }
}

fn mark(outlier: &OutlierLine, index: usize, x: f64, unit: &str) -> Markup {
    // The names of neighbours stand below each other.
    let y = 34.0 + 12.0 * (index % MAX_NAMED) as f64;
    let at_right = x > WIDTH * 0.8;
    html! {
        circle.outlier cx=(px(x)) cy=(px(y)) r="4" {
            title { (outlier.blade) " " (outlier.device) ": " (number(outlier.value)) " " (unit) }
        }
        @if index < MAX_NAMED {
            text.named x=(px(if at_right { x - 7.0 } else { x + 7.0 })) y=(px(y + 4.0))
                text-anchor=(if at_right { "end" } else { "start" }) { (outlier.blade) " " (outlier.device) }
        }
    }
}

/// Round values within the axis, about five.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let span = high - low;
    if !(span.is_finite() && span > 0.0) {
        return Vec::new();
    }
    let rough = span / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(rough);
    let first = (low / step).ceil();
    (0..12).map(|i| (first + f64::from(i)) * step).take_while(|v| *v <= high).collect()
}

/// Parts of a whole as one bar: (class, count).
pub(super) fn bar(parts: &[(&'static str, usize)]) -> Markup {
    let all: usize = parts.iter().map(|(_, count)| count).sum();
    if all == 0 {
        return html! {};
    }
    let mut at = 0.0;
    let pieces: Vec<_> = parts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(class, count)| {
            let wide = 100.0 * *count as f64 / all as f64;
            let piece = (*class, *count, at, wide);
            at += wide;
            piece
        })
        .collect();
    html! {
        svg.bar viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="shares" {
            @for (class, count, from, wide) in &pieces {
                rect class=(class) x=(format!("{from:.2}")) y="0" width=(format!("{wide:.2}")) height="10" {
                    title { (count) " " (class) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ticks_read_well() {
        assert_eq!(number(712.345), "712.3");
        assert_eq!(number(0.0), "0");
        assert_eq!(number(f64::NAN), "–");
        assert_eq!(ticks(0.0, 10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert!(ticks(3.0, 3.0).is_empty());
        assert!(ticks(0.0, f64::INFINITY).is_empty());
    }
}
