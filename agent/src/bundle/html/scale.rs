//! Numbers for people, axes and colours.

/// Four significant digits, thousands untouched.
pub fn number(value: f64) -> String {
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

/// A length of time in milliseconds, such as `2 min 05 s`.
pub fn duration(ms: i64) -> String {
    let s = ms.max(0) / 1000;
    match s {
        0 if ms <= 0 => "0 s".to_owned(),
        0 => format!("{ms} ms"),
        1..60 if ms % 1000 < 100 => format!("{s} s"),
        1..60 => format!("{}.{} s", s, ms % 1000 / 100),
        60..3600 if s % 60 == 0 => format!("{} min", s / 60),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s / 60 % 60),
    }
}

/// A time in milliseconds since the epoch as `2026-11-22 08:15:00 UTC`.
pub fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| format!("{ms} ms"), |t| t.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

/// Round values that cover `low..=high`, about `count` of them.
pub fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let span = high - low;
    if !(span.is_finite() && span > 0.0) {
        return vec![low];
    }
    let rough = span / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(10.0 * power);
    let first = (low / step).ceil();
    (0..=2 * count).map(|i| (first + i as f64) * step).take_while(|v| *v <= high + step * 1e-9).collect()
}

/// Times that cover `0..=last_ms`, about `count` of them, in steps that clocks have.
pub fn time_ticks(last_ms: u64, count: u64) -> Vec<u64> {
    const STEPS_S: [u64; 14] = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200];
    let rough = (last_ms / 1000 / count.max(1)).max(1);
    let step = STEPS_S.into_iter().find(|s| *s >= rough).unwrap_or(rough.div_ceil(3_600) * 3_600);
    (0..=2 * count).map_while(|i| i.checked_mul(step * 1000).filter(|t| *t <= last_ms)).collect()
}

/// A unit beside a number; a count needs none.
pub fn unit(unit: whetstone_model::unit::Unit) -> &'static str {
    if unit == whetstone_model::unit::Unit::Count { "" } else { unit.as_str() }
}

/// Background and text colour for a share 0 (low) to 1 (high) of a range: pale to deep blue.
pub fn heat(share: f64) -> (String, &'static str) {
    let mix = |a: f64, b: f64| (a + (b - a) * share.clamp(0.0, 1.0)).round() as u8;
    let colour = format!("rgb({},{},{})", mix(226.0, 24.0), mix(237.0, 78.0), mix(250.0, 150.0));
    (colour, if share > 0.5 { "#fff" } else { "#10243f" })
}

/// Colour for a deviation of −1 (bad) over 0 (as the others) to 1 (better): red, grey, teal.
pub fn deviation(share: f64) -> String {
    let s = share.clamp(-1.0, 1.0);
    let mix = |a: f64, b: f64| (a + (b - a) * s.abs()).round() as u8;
    let (r, g, b) = if s < 0.0 { (205.0, 38.0, 38.0) } else { (20.0, 130.0, 150.0) };
    format!("rgb({},{},{})", mix(176.0, r), mix(186.0, g), mix(199.0, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_durations_and_ticks_read_well() {
        assert_eq!(number(1234567.0), "1234567");
        assert_eq!(number(0.0123), "0.0123");
        assert_eq!(number(f64::NAN), "–");
        assert_eq!(duration(125_000), "2 min 05 s");
        assert_eq!(duration(1_250), "1.2 s");
        assert_eq!((duration(-5).as_str(), duration(120_000).as_str()), ("0 s", "2 min"));
        assert_eq!(time_ticks(181_000, 6), [0, 30_000, 60_000, 90_000, 120_000, 150_000, 180_000]);
        assert_eq!(time_ticks(0, 6), [0]);
        assert!(time_ticks(u64::MAX, 6).len() <= 13);
        assert_eq!(time(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(ticks(0.0, 100.0, 5), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(3.0, 3.0, 5), [3.0]);
        assert_eq!(ticks(0.0, f64::INFINITY, 5), [0.0]);
    }
}
