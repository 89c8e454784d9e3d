//! A reading against its threshold.

use crate::evidence::Reading;
use crate::unit::UnitError;

use super::{Role, Table, Threshold};

/// What a threshold says of a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    Pass,
    Warn,
    Fail,
    /// Neither good nor bad is known; never to be read as a pass.
    NotJudged(NotJudged),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotJudged {
    /// No file speaks of this metric.
    NoThreshold,
    /// The file says that the right number is not known.
    Unknown,
}

/// [`Judged`] with the threshold that it rests on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judgement<'a> {
    pub judged: Judged,
    pub threshold: Option<&'a Threshold>,
    /// The reading in the threshold's unit (its own unit where there is no threshold).
    pub value: f64,
}

/// A reading that cannot be held against anything: a fault of ours, never a pass.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum JudgeError {
    #[error("{metric}: its threshold ({file}:{line}) is in another unit: {source}")]
    Unit { metric: String, file: String, line: usize, source: UnitError },
    #[error("{metric}: a reading of {value} is not a number")]
    NotFinite { metric: String, value: f64 },
}

impl Table {
    /// Judges a reading of a blade of this SKU (`None` = SKU not known: only generic thresholds apply).
    pub fn judge(&self, sku: Option<&str>, reading: &Reading) -> Result<Judgement<'_>, JudgeError> {
        let Reading { metric, value, unit } = reading;
        if !value.is_finite() {
            return Err(JudgeError::NotFinite { metric: metric.clone(), value: *value });
        }
        let Some(threshold) = self.threshold(sku, metric) else {
            let judged = Judged::NotJudged(NotJudged::NoThreshold);
            return Ok(Judgement { judged, threshold: None, value: *value });
        };
        let value = unit.convert(*value, threshold.unit).map_err(|source| JudgeError::Unit {
            metric: metric.clone(),
            file: threshold.file.clone(),
            line: threshold.line,
            source,
        })?;
        let worse_than = |limit: Option<f64>| limit.is_some_and(|l| threshold.better.is_worse(value, l));
        let judged = if threshold.unknown {
            Judged::NotJudged(NotJudged::Unknown)
        } else if worse_than(threshold.fail) {
            Judged::Fail
        } else if worse_than(threshold.warn) {
            Judged::Warn
        } else {
            Judged::Pass
        };
        Ok(Judgement { judged, threshold: Some(threshold), value })
    }
}

impl Judgement<'_> {
    /// One line for a person: what was read, what it was held against, and who says so.
    pub fn sentence(&self) -> String {
        let value = number(self.value);
        let Some(t) = self.threshold else {
            return format!("{value}: measured, nothing to hold it against");
        };
        let unit = t.unit;
        let role = match self.judged {
            Judged::Fail => Role::Fail,
            Judged::Warn => Role::Warn,
            Judged::Pass => return format!("{value} {unit}: within limits"),
            Judged::NotJudged(_) => return format!("{value} {unit}: measured, not judged"),
        };
        let limit = number(t.value(role).unwrap_or(f64::NAN));
        let side = if t.better.is_worse(0.0, 1.0) { "below" } else { "above" };
        let source = t.sources_of(role).next().map_or(String::new(), |s| format!(" ({})", s.name));
        format!("{value} {unit}, {side} {limit} {unit}{source}")
    }
}

/// A number as people write it: no more than 4 significant decimals, thousands left alone.
pub(crate) fn number(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    let decimals = (3 - value.abs().log10().floor().max(-6.0) as i32).clamp(0, 9) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}
