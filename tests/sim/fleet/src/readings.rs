//! Readings as a real agent sends them (`agent/src/report/facts.rs`): temperature, draw and clock of each GPU, with values
//! that follow from the serial and a count alone.

use whetstone_model::evidence::Reading;
use whetstone_model::ids::Serial;
use whetstone_model::unit::Unit;
use whetstone_model::wire::ItemBody;

use crate::report;

/// Of each GPU, once a minute: name, lowest value, width of the band, unit.
const OF_A_GPU: [(&str, f64, f64, Unit); 3] = [
    ("temperature.gpu", 35.0, 30.0, Unit::Celsius),
    ("power.draw", 90.0, 200.0, Unit::Watt),
    ("clock.sm", 1500.0, 480.0, Unit::MegaHertz),
];

/// The `number`-th reading of a blade: GPU after GPU, and from the beginning again.
pub fn reading(serial: &Serial, gpus: u32, number: u64) -> anyhow::Result<ItemBody> {
    let each = OF_A_GPU.len() as u64;
    let gpu = u32::try_from(number / each % u64::from(gpus.max(1)))?;
    let [first, ..] = OF_A_GPU;
    let (metric, low, width, unit) =
        usize::try_from(number % each).ok().and_then(|place| OF_A_GPU.get(place).copied()).unwrap_or(first);
    // Whole degrees and megahertz, milliwatts: what a driver gives, and as long on the wire.
    let fine = if unit == Unit::Watt { 1000.0 } else { 1.0 };
    let value = ((low + width * part(serial, number)) * fine).round() / fine;
    Ok(ItemBody::Reading {
        device: Some(report::gpu(serial, gpu)?),
        reading: Reading::new(metric, value, unit),
    })
}

/// Between 0 and 1, the same for the same blade and number (FNV-1a: a hundred thousand a second are wanted).
fn part(serial: &Serial, number: u64) -> f64 {
    let bytes = serial.as_str().bytes().chain(number.to_le_bytes());
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    f64::from((hash >> 32) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use whetstone_model::wire::{Item, MAX_BODY, MAX_ITEMS};

    use super::*;

    fn all(serial: &str, count: u64) -> Vec<ItemBody> {
        let serial = Serial::new(serial).unwrap();
        (0..count).map(|number| reading(&serial, 8, number).unwrap()).collect()
    }

    #[test]
    fn a_minute_of_readings_is_three_of_each_gpu_under_names_that_thresholds_know() {
        let mut seen = BTreeSet::new();
        for body in all("S1", 24) {
            let ItemBody::Reading { device: Some(device), reading } = body else { panic!("not of a GPU") };
            let known = whetstone_model::threshold::metric::find(&reading.metric).expect("a known metric");
            assert_eq!(known.unit, reading.unit, "{}", reading.metric);
            assert!(reading.value.is_finite() && reading.value > 0.0, "{reading:?}");
            assert!(seen.insert((device, reading.metric)), "the same reading twice in a minute");
        }
        assert_eq!(seen.len(), 24);
    }

    #[test]
    fn the_same_blade_says_the_same_and_others_say_other_things() {
        assert_eq!(all("S1", 24), all("S1", 24));
        let values = |serial| -> Vec<String> {
            all(serial, 48)
                .iter()
                .map(|body| serde_json::to_value(body).unwrap()["reading"]["value"].to_string())
                .collect()
        };
        assert_ne!(values("S1"), values("S2"));
        assert_ne!(values("S1")[..24], values("S1")[24..], "every minute has the same values");
    }

    #[test]
    fn a_full_report_fits_the_wire() {
        let items: Vec<Item> = all("S-with-a-long-serial-0123456789", MAX_ITEMS as u64)
            .into_iter()
            .zip(1..)
            .map(|(body, seq)| Item { seq: seq + 10_000_000, at_ms: 1_800_000_000_000, body })
            .collect();
        assert!(serde_json::to_vec(&items).unwrap().len() < MAX_BODY / 2);
    }
}
