//! Units: every number that leaves a core carries one.

use serde::{Deserialize, Serialize};

macro_rules! units {
    ($($name:ident $text:literal $dim:ident $scale:expr;)*) => {
        /// A unit of measure. The text form (`"GB/s"`) is what JSON and data files hold.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Unit { $(#[serde(rename = $text)] $name,)* }
        impl Unit {
            pub const ALL: &'static [Unit] = &[$(Unit::$name,)*];
            pub fn as_str(self) -> &'static str { match self { $(Unit::$name => $text,)* } }
            /// What it measures, and how many base units one of it is.
            fn base(self) -> (Dimension, f64) { match self { $(Unit::$name => (Dimension::$dim, $scale),)* } }
        }
    };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dimension {
    Count,
    Ratio,
    Temperature,
    TemperatureMargin,
    Power,
    Energy,
    Frequency,
    Time,
    Bytes,
    ByteRate,
    Flops,
    IntOps,
    EventRate,
}

units! {
    Count "count" Count 1.0;
    Percent "%" Ratio 0.01;
    Ratio "ratio" Ratio 1.0;
    Ppm "ppm" Ratio 1e-6;
    Celsius "C" Temperature 1.0;
    CelsiusMargin "C margin" TemperatureMargin 1.0;
    Watt "W" Power 1.0;
    Joule "J" Energy 1.0;
    MegaHertz "MHz" Frequency 1e6;
    Second "s" Time 1.0;
    Millisecond "ms" Time 1e-3;
    Microsecond "us" Time 1e-6;
    Nanosecond "ns" Time 1e-9;
    Byte "B" Bytes 1.0;
    KiB "KiB" Bytes 1024.0;
    MiB "MiB" Bytes 1_048_576.0;
    GiB "GiB" Bytes 1_073_741_824.0;
    MBps "MB/s" ByteRate 1e6;
    GBps "GB/s" ByteRate 1e9;
    TBps "TB/s" ByteRate 1e12;
    Gbps "Gb/s" ByteRate 0.125e9;
    GTps "GT/s" EventRate 1e9;
    Gflops "GFLOP/s" Flops 1e9;
    Tflops "TFLOP/s" Flops 1e12;
    Tops "TOP/s" IntOps 1e12;
    PerSecond "1/s" EventRate 1.0;
    PerHour "1/h" EventRate 1.0 / 3600.0;
}

/// Two units that measure different things, or a unit that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("unknown unit {0:?}")]
    Unknown(String),
    #[error("{from} cannot be converted to {to}", from = .from.as_str(), to = .to.as_str())]
    Mismatch { from: Unit, to: Unit },
}

impl Unit {
    /// `value` of `self`, expressed in `to`.
    pub fn convert(self, value: f64, to: Unit) -> Result<f64, UnitError> {
        let ((from_dim, from), (to_dim, scale)) = (self.base(), to.base());
        if from_dim != to_dim {
            return Err(UnitError::Mismatch { from: self, to });
        }
        Ok(value * from / scale)
    }
}

impl std::str::FromStr for Unit {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Unit, UnitError> {
        Unit::ALL
            .iter()
            .copied()
            .find(|u| u.as_str() == text)
            .ok_or_else(|| UnitError::Unknown(text.chars().take(40).collect()))
    }
}

impl std::fmt::Display for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_within_a_dimension_and_refuses_across() {
        assert_eq!(Unit::Gbps.convert(400.0, Unit::GBps).unwrap(), 50.0);
        assert_eq!(Unit::MBps.convert(1_905_000.0, Unit::TBps).unwrap(), 1.905);
        assert!(Unit::Watt.convert(1.0, Unit::Celsius).is_err());
    }

    #[test]
    fn every_unit_reads_back_its_own_text() {
        for unit in Unit::ALL {
            assert_eq!(unit.as_str().parse::<Unit>().unwrap(), *unit);
            assert_eq!(serde_json::to_string(unit).unwrap(), format!("{:?}", unit.as_str()));
        }
    }
}
