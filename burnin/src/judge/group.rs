//! Samples into cohorts of like devices.

use std::collections::BTreeMap;

use crate::judge::LEAST_BLADES;
use crate::judge::robust;
use crate::judge::types::{Better, Sample};

/// What devices must agree in to be compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key<'a> {
    pub test: &'a str,
    pub metric: &'a str,
    pub unit: &'a str,
    pub better: Better,
    pub sku: Option<&'a str>,
    pub driver: Option<&'a str>,
    pub firmware: Option<&'a str>,
    pub suite: Option<&'a str>,
}

/// A device with the median of its samples.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceValue<'a> {
    pub blade: &'a str,
    pub device: &'a str,
    pub value: f64,
}

/// Like devices in one metric, sorted by blade and device.
#[derive(Debug, Clone, PartialEq)]
pub struct Group<'a> {
    pub key: Key<'a>,
    pub devices: Vec<DeviceValue<'a>>,
    pub n_blades: usize,
    pub n_samples: usize,
}

impl Group<'_> {
    /// Why nothing can be compared here, whatever the values; `None` if something can. Either there are siblings on
    /// enough blades, or enough blades that the others show how much blades differ.
    pub fn too_small(&self) -> Option<String> {
        let with_siblings = self.blades().iter().filter(|b| b.len() >= 2).count();
        if self.n_blades < LEAST_BLADES {
            Some(format!("{} blade(s), needs {LEAST_BLADES} to compare", self.n_blades))
        } else if self.n_blades == LEAST_BLADES && with_siblings < LEAST_BLADES {
            Some(format!("one device per blade, needs more than {LEAST_BLADES} blades to compare"))
        } else {
            None
        }
    }

    /// The devices of each blade, as ranges of `devices`.
    pub fn blades(&self) -> Vec<std::ops::Range<usize>> {
        let mut ranges = Vec::with_capacity(self.n_blades);
        let mut start = 0;
        for chunk in self.devices.chunk_by(|a, b| a.blade == b.blade) {
            ranges.push(start..start + chunk.len());
            start += chunk.len();
        }
        ranges
    }
}

/// All cohorts, ordered by key.
pub fn cohorts(samples: &[Sample]) -> Vec<Group<'_>> {
    let mut by_key: BTreeMap<Key<'_>, BTreeMap<(&str, &str), Vec<f64>>> = BTreeMap::new();
    for s in samples.iter().filter(|s| s.value.is_finite()) {
        let key = Key {
            test: &s.test,
            metric: &s.metric,
            unit: &s.unit,
            better: s.better,
            sku: s.sku.as_deref(),
            driver: s.driver.as_deref(),
            firmware: s.firmware.as_deref(),
            suite: s.suite.as_deref(),
        };
        by_key.entry(key).or_default().entry((&s.blade, &s.device)).or_default().push(s.value);
    }
    by_key
        .into_iter()
        .map(|(key, devices)| {
            let n_samples = devices.values().map(Vec::len).sum();
            let devices: Vec<DeviceValue<'_>> = devices
                .into_iter()
                .filter_map(|((blade, device), values)| {
                    Some(DeviceValue { blade, device, value: robust::median(&values)? })
                })
                .collect();
            let n_blades = devices.chunk_by(|a, b| a.blade == b.blade).count();
            Group { key, devices, n_blades, n_samples }
        })
        .collect()
}
