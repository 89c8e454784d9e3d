//! Units as others write them.

use crate::unit::Unit;

/// The unit of a limit: one of ours, or a word that can only be compared with itself (`lanes`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Measure {
    Unit(Unit),
    Other(String),
}

/// Others' spellings: ours and how many of ours it is.
const SPELLINGS: &[(&str, Unit, f64)] = &[
    ("GFLOPS", Unit::Gflops, 1.0),
    ("TFLOPS", Unit::Tflops, 1.0),
    ("TFLOP/S", Unit::Tflops, 1.0),
    ("GFLOP/S", Unit::Gflops, 1.0),
    ("TOPS", Unit::Tops, 1.0),
    ("WATT", Unit::Watt, 1.0),
    ("WATTS", Unit::Watt, 1.0),
    ("°C", Unit::Celsius, 1.0),
    ("COUNT SINCE RESET", Unit::Count, 1.0),
    ("ERRORS", Unit::Count, 1.0),
    ("/S", Unit::PerSecond, 1.0),
    ("PER SECOND", Unit::PerSecond, 1.0),
    ("1/MIN", Unit::PerHour, 60.0),
    ("/MIN", Unit::PerHour, 60.0),
    ("PER MINUTE", Unit::PerHour, 60.0),
    ("/H", Unit::PerHour, 1.0),
    ("1/HOUR", Unit::PerHour, 1.0),
    ("/HOUR", Unit::PerHour, 1.0),
    ("PER HOUR", Unit::PerHour, 1.0),
    ("1/D", Unit::PerHour, 1.0 / 24.0),
    ("/DAY", Unit::PerHour, 1.0 / 24.0),
    ("PER DAY", Unit::PerHour, 1.0 / 24.0),
];

/// Bytes and bits differ by a letter's case only, so these are compared exactly.
const EXACT: &[(&str, Unit, f64)] = &[
    ("MBps", Unit::MBps, 1.0),
    ("GBps", Unit::GBps, 1.0),
    ("TBps", Unit::TBps, 1.0),
    ("MiB/s", Unit::MBps, 1.048_576),
    ("GiB/s", Unit::GBps, 1.073_741_824),
    ("Gbps", Unit::Gbps, 1.0),
    ("Gbit/s", Unit::Gbps, 1.0),
    ("Mb/s", Unit::Gbps, 1e-3),
    ("Mbps", Unit::Gbps, 1e-3),
    ("kB", Unit::Byte, 1e3),
    ("MB", Unit::Byte, 1e6),
    ("GB", Unit::Byte, 1e9),
];

impl Measure {
    /// Reads a unit; the factor turns a value in `text` into one in the measure.
    pub fn parse(text: &str) -> (Measure, f64) {
        let text = text.trim();
        if let Ok(unit) = text.parse::<Unit>() {
            return (Measure::Unit(unit), 1.0);
        }
        let upper = text.to_uppercase();
        let exact = EXACT.iter().find(|(word, _, _)| *word == text);
        match exact.or_else(|| SPELLINGS.iter().find(|(word, _, _)| *word == upper)) {
            Some((_, unit, factor)) => (Measure::Unit(*unit), *factor),
            None => (Measure::Other(text.chars().take(40).collect()), 1.0),
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            Measure::Unit(unit) => unit.as_str(),
            Measure::Other(text) => text,
        }
    }

    pub fn convert(&self, value: f64, to: &Measure) -> Option<f64> {
        match (self, to) {
            (Measure::Unit(from), Measure::Unit(to)) => from.convert(value, *to).ok(),
            (from, to) => (from == to).then_some(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_keep_bits_and_bytes_apart() {
        let as_gbps = |text: &str| {
            let (measure, factor) = Measure::parse(text);
            measure.convert(factor, &Measure::Unit(Unit::GBps))
        };
        assert_eq!(as_gbps("Gb/s"), Some(0.125));
        assert_eq!(as_gbps("GB/s"), Some(1.0));
        assert_eq!(as_gbps("MB/s"), Some(0.001));
        assert_eq!(as_gbps("GiB/s"), Some(1.073_741_824));
        assert_eq!(as_gbps("lanes"), None);
    }

    #[test]
    fn rates_of_different_times_compare() {
        let (per_minute, factor) = Measure::parse("1/min");
        let (per_second, _) = Measure::parse("/s");
        assert_eq!(per_minute.convert(120.0 * factor, &per_second), Some(2.0));
    }
}
