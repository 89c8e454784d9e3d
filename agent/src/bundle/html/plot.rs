//! Plots as inline SVG: lines over time, the tests' bars, strips of one cell per SM, bars per core.

use maud::{Markup, html};

use super::scale::{deviation, duration, number, ticks, time_ticks};

const WIDTH: f64 = 420.0;
/// Points drawn per line: about one per pixel column; each column keeps its least and greatest value.
const COLUMNS: usize = 240;

/// One line of a plot; `points` are (milliseconds, value) in ascending time.
pub struct Line<'a> {
    pub label: &'a str,
    pub points: &'a [(u64, f64)],
}

/// Lines over time with a legend. Non-finite points are left out.
pub fn lines(title: &str, unit: &str, lines: &[Line<'_>], bands: &[(u64, u64)], end_ms: u64) -> Markup {
    let (height, left, right, top, bottom) = (190.0, 44.0, 20.0, 8.0, 22.0);
    let all = || lines.iter().flat_map(|l| l.points).filter(|p| p.1.is_finite());
    let last = all().map(|p| p.0).fold(end_ms, u64::max).max(1) as f64;
    let (least, most) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), p| (a.min(p.1), b.max(p.1)));
    if least > most {
        return html! {};
    }
    let margin = ((most - least) * 0.08).max(most.abs().max(1.0) * 0.005);
    let (low, high) = ((least - margin).max(if least >= 0.0 { 0.0 } else { f64::MIN }), most + margin);
    let x = |ms: u64| left + (WIDTH - left - right) * ms as f64 / last;
    let y = |v: f64| top + (height - top - bottom) * (1.0 - (v - low) / (high - low));
    html! {
        div.card {
            h3 { (title) " " span.soft { (unit) } }
            svg viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label=(format!("{title} over time")) {
                @for (from, to) in bands.iter().filter(|b| b.1 > b.0) {
                    rect.band x=(px(x(*from))) y=(px(top)) width=(px(x(*to) - x(*from))) height=(px(height - top - bottom)) {}
                }
                @for tick in ticks(low, high, 5) {
                    line.axis x1=(px(left)) x2=(px(WIDTH - right)) y1=(px(y(tick))) y2=(px(y(tick))) {}
                    text x=(px(left - 6.0)) y=(px(y(tick) + 4.0)) text-anchor="end" { (number(tick)) }
                }
                @for tick in time_ticks(last as u64, 4) {
                    text x=(px(x(tick))) y=(px(height - 6.0)) text-anchor="middle" { (duration(tick as i64)) }
                }
                @for (i, line) in lines.iter().enumerate() {
                    path.curve stroke=(colour(i)) d=(path(line.points, &x, &y)) { title { (line.label) } }
                }
            }
            div.legend {
                @for (i, line) in lines.iter().enumerate() {
                    span { i style=(format!("background:{}", colour(i))) {} (line.label) }
                }
            }
        }
    }
}

/// Colour number `i` of the page's palette.
pub fn colour(i: usize) -> String {
    format!("var(--c{})", i % 8)
}

/// Short form of a coordinate.
fn px(value: f64) -> String {
    format!("{value:.1}")
}

fn path(points: &[(u64, f64)], x: &dyn Fn(u64) -> f64, y: &dyn Fn(f64) -> f64) -> String {
    let finite: Vec<(u64, f64)> = points.iter().copied().filter(|p| p.1.is_finite()).collect();
    let size = finite.len().div_ceil(COLUMNS).max(1);
    let mut text = String::new();
    for chunk in finite.chunks(size) {
        let by = |a: &&(u64, f64), b: &&(u64, f64)| a.1.total_cmp(&b.1);
        let (Some(low), Some(high)) = (chunk.iter().min_by(by), chunk.iter().max_by(by)) else { continue };
        let (first, second) = if low.0 <= high.0 { (low, high) } else { (high, low) };
        for (i, p) in [first, second].into_iter().enumerate() {
            if i == 1 && first == second {
                continue;
            }
            let letter = if text.is_empty() { 'M' } else { 'L' };
            text.push_str(&format!("{letter}{:.1} {:.1}", x(p.0), y(p.1)));
        }
    }
    text
}

/// A bar on the time axis.
pub struct Bar<'a> {
    pub label: &'a str,
    /// `pass`, `fail`, …: the class that colours it.
    pub class: &'a str,
    pub from_ms: i64,
    pub to_ms: i64,
    pub note: String,
}

/// Bars on a time axis, one row each; times count from the start of the run.
pub fn timeline(bars: &[Bar<'_>], end_ms: i64) -> Markup {
    let (row, left, right, wide) = (22.0, 190.0, 90.0, 1180.0);
    let height = row * bars.len() as f64 + 26.0;
    let last = bars.iter().map(|b| b.to_ms).fold(end_ms, i64::max).max(1) as f64;
    let x = |ms: i64| left + (wide - left - right) * ms.max(0) as f64 / last;
    html! {
        svg viewBox=(format!("0 0 {wide} {height}")) role="img" aria-label="tests over time" {
            @for tick in time_ticks(last as u64, 8) {
                line.axis x1=(px(x(tick as i64))) x2=(px(x(tick as i64))) y1="0" y2=(px(height - 20.0)) {}
                text x=(px(x(tick as i64))) y=(px(height - 5.0)) text-anchor="middle" { (duration(tick as i64)) }
            }
            @for (i, bar) in bars.iter().enumerate() {
                @let y = row * i as f64;
                text x=(px(left - 10.0)) y=(px(y + 15.0)) text-anchor="end" { (clip(bar.label, 28)) }
                rect class=(bar.class) fill="currentColor" x=(px(x(bar.from_ms))) y=(px(y + 4.0)) rx="3"
                    width=(px((x(bar.to_ms) - x(bar.from_ms)).max(3.0))) height=(px(row - 8.0)) {
                    title { (bar.label) ": " (bar.note) }
                }
                text x=(px(x(bar.to_ms).max(x(bar.from_ms) + 3.0) + 6.0)) y=(px(y + 15.0)) { (bar.note) }
            }
        }
    }
}

/// One row of a strip plot: a device and one value per part.
pub struct Strip<'a> {
    pub label: &'a str,
    pub values: &'a [Option<f64>],
}

/// A part that is far from the others: row, index, value, percent from the row's median.
pub struct Odd {
    pub row: usize,
    pub index: usize,
    pub value: f64,
    pub percent: f64,
}

/// Parts that lag behind their own row's median: by more than 2 % and more than 5 robust deviations of the row.
pub fn odd(strips: &[Strip<'_>]) -> Vec<Odd> {
    let mut found = Vec::new();
    for (row, strip) in strips.iter().enumerate() {
        let values: Vec<f64> = strip.values.iter().flatten().copied().filter(|v| v.is_finite()).collect();
        let Some(median) = whetstone_burnin::judge::robust::median(&values) else { continue };
        let off: Vec<f64> = values.iter().map(|v| (v - median).abs()).collect();
        let spread = 1.4826 * whetstone_burnin::judge::robust::median(&off).unwrap_or(0.0);
        for (index, value) in strip.values.iter().enumerate() {
            let Some(value) = value.filter(|v| v.is_finite()) else { continue };
            if median - value > (0.02 * median.abs()).max(5.0 * spread) && median != 0.0 {
                found.push(Odd { row, index, value, percent: 100.0 * (value - median) / median.abs() });
            }
        }
    }
    found
}

/// One cell per part, coloured by its distance from its row's median (full red at −10 %), odd ones marked.
pub fn strips(rows: &[Strip<'_>], what: &str, unit: &str, odd: &[Odd]) -> Markup {
    let parts = rows.iter().map(|r| r.values.len()).max().unwrap_or(0).max(1);
    let (left, right, wide, row) = (110.0, 92.0, 1180.0, 24.0);
    let cell = (wide - left - right) / parts as f64;
    let height = row * rows.len() as f64 + 22.0;
    html! {
        svg viewBox=(format!("0 0 {wide} {height}")) role="img" aria-label=(format!("one cell per {what}")) {
            @for (i, strip) in rows.iter().enumerate() {
                @let y = row * i as f64;
                @let values: Vec<f64> = strip.values.iter().flatten().copied().filter(|v| v.is_finite()).collect();
                @let median = whetstone_burnin::judge::robust::median(&values).unwrap_or(0.0);
                text x=(px(left - 10.0)) y=(px(y + 15.0)) text-anchor="end" { (clip(strip.label, 16)) }
                @for (index, value) in strip.values.iter().enumerate() {
                    @if let Some(value) = value.filter(|v| v.is_finite()) {
                        rect x=(px(left + cell * index as f64)) y=(px(y + 3.0)) height=(px(row - 6.0))
                            width=(format!("{:.2}", (cell - if cell > 4.0 { 1.0 } else { 0.2 }).max(0.4)))
                            fill=(deviation(if median == 0.0 { 0.0 } else { (value - median) / median.abs() * 10.0 })) {
                            title { (strip.label) " " (what) " " (index) ": " (number(value)) " " (unit) }
                        }
                    }
                }
                text x=(px(wide - right + 8.0)) y=(px(y + 15.0)) { (number(median)) " " (unit) }
            }
            @for mark in odd.iter().take(64) {
                rect x=(px(left + cell * mark.index as f64 - 1.0)) y=(px(row * mark.row as f64 + 1.0)) width=(px(cell + 1.0))
                    height=(px(row - 2.0)) fill="none" stroke="var(--fail)" stroke-width="2" {}
            }
            @for tick in ticks(0.0, (parts - 1) as f64, 12).into_iter().filter(|t| t.fract() == 0.0) {
                text x=(px(left + cell * (tick + 0.5))) y=(px(height - 6.0)) text-anchor="middle" { (number(tick)) }
            }
            text x=(px(left - 10.0)) y=(px(height - 6.0)) text-anchor="end" { (what) }
        }
    }
}

/// One bar per part, from zero.
pub fn bars(values: &[Option<f64>], what: &str, unit: &str, odd: &[Odd]) -> Markup {
    let (left, right, top, bottom, wide, height) = (64.0, 10.0, 10.0, 22.0, 1180.0, 190.0);
    let most = values.iter().flatten().copied().filter(|v| v.is_finite()).fold(0.0, f64::max);
    let high = if most > 0.0 { most * 1.06 } else { 1.0 };
    let cell = (wide - left - right) / values.len().max(1) as f64;
    // A few bars as wide as the page would look like a wall.
    let thick = (cell * 0.8).min(46.0);
    let y = |v: f64| top + (height - top - bottom) * (1.0 - v.max(0.0) / high);
    html! {
        svg viewBox=(format!("0 0 {wide} {height}")) role="img" aria-label=(format!("one bar per {what}")) {
            @for tick in ticks(0.0, high, 4) {
                line.axis x1=(px(left)) x2=(px(wide - right)) y1=(px(y(tick))) y2=(px(y(tick))) {}
                text x=(px(left - 6.0)) y=(px(y(tick) + 4.0)) text-anchor="end" { (number(tick)) }
            }
            @for (index, value) in values.iter().enumerate() {
                @if let Some(value) = value.filter(|v| v.is_finite()) {
                    rect x=(px(left + cell * (index as f64 + 0.5) - thick / 2.0)) y=(px(y(value))) width=(format!("{thick:.2}"))
                        height=(px((height - bottom - y(value)).max(0.5))) rx="2"
                        fill=(if odd.iter().any(|o| o.index == index) { "var(--fail)" } else { "var(--c0)" }) {
                        title { (what) " " (index) ": " (number(value)) " " (unit) }
                    }
                }
            }
            @for tick in ticks(0.0, values.len().saturating_sub(1) as f64, 16).into_iter().filter(|t| t.fract() == 0.0) {
                text x=(px(left + cell * (tick + 0.5))) y=(px(height - 6.0)) text-anchor="middle" { (number(tick)) }
            }
            text x=(px(left - 6.0)) y=(px(height - 6.0)) text-anchor="end" { (what) }
        }
    }
}

/// At most `most` characters.
pub fn clip(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}
