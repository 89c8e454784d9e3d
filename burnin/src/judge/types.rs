//! What goes into the judge and what comes out.

use serde::{Deserialize, Serialize};

/// Which way a metric is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    Higher,
    Lower,
}

/// One measured value of one device. Several of the same device in the same metric are combined by their median.
///
/// Fields beyond these are ignored, so that richer records can be fed in as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub blade: String,
    pub device: String,
    pub test: String,
    pub metric: String,
    /// Finite, in `unit`.
    pub value: f64,
    pub unit: String,
    pub better: Better,
    /// The rest says what is like what: only devices that agree in all four are compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sku: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<String>,
}

/// How to judge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Probability that a healthy device is accused, over all its tests; above 0, at most 0.2.
    pub fpr: f64,
    /// Spreads rounded values within their rounding step; the same seed gives the same judgement.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { fpr: 0.01, seed: 0 }
    }
}

/// Whether a device stands apart by itself or because its whole blade does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Apart from the other devices of its blade.
    Device,
    /// Its blade is apart from the other blades (a blade with one device counts as a blade).
    Blade,
}

/// A device that is accused in one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outlier {
    pub blade: String,
    pub device: String,
    pub test: String,
    pub metric: String,
    pub unit: String,
    /// Median of the device's samples.
    pub value: f64,
    pub scope: Scope,
    /// Probability that a healthy device (for [`Scope::Blade`]: blade) lies so far out.
    pub p: f64,
    /// It was accused because `p` is below this: the stated rate, shared among the device's tests.
    pub p_limit: f64,
    /// How much worse than the cohort's median, in percent of it; `None` if the median is 0.
    pub percent_worse: Option<f64>,
    /// The same in spreads of the cohort; `None` if its spread is 0.
    pub spreads: Option<f64>,
    /// 1 = worst of the cohort.
    pub rank: usize,
    /// Devices in the cohort.
    pub cohort_devices: usize,
    pub cohort_center: f64,
    pub cohort_spread: f64,
    /// One sentence for a person.
    pub reason: String,
}

/// A group of like devices in one metric, and what can be said about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cohort {
    pub test: String,
    pub metric: String,
    pub unit: String,
    pub better: Better,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sku: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<String>,
    pub n_devices: usize,
    pub n_blades: usize,
    pub n_samples: usize,
    /// Median over devices, in `unit`.
    pub center: f64,
    /// Robust standard deviation over devices (1.4826 × median absolute deviation), in `unit`.
    pub spread: f64,
    /// False if no device of it could have been accused, whatever its value.
    pub judged: bool,
    /// Why it was not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
    /// The smallest lag behind the cohort, in percent of the median, with which a device would be accused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detectable_percent: Option<f64>,
    /// The same for a whole blade; `None` if blades as wholes cannot be judged here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detectable_blade_percent: Option<f64>,
    /// What a person should know: a second kind of device, blades that differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What the judge says about all samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    pub fpr: f64,
    /// Distinct devices among the samples.
    pub n_devices: usize,
    /// Distinct blades among the samples.
    pub n_blades: usize,
    /// Least probable first.
    pub outliers: Vec<Outlier>,
    pub cohorts: Vec<Cohort>,
}

impl Judgement {
    /// True if at least one cohort could be judged.
    pub fn anything_judged(&self) -> bool {
        self.cohorts.iter().any(|c| c.judged)
    }
}
