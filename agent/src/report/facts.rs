//! What is said of the blade itself, and the few readings that are sent while it is only watched.

use whetstone_model::device::DeviceId;
use whetstone_model::evidence::Reading;
use whetstone_model::facts::Facts;
use whetstone_model::health;
use whetstone_model::threshold::Table;
use whetstone_model::unit::Unit;
use whetstone_model::wire::{BladeFacts, GpuFacts, MAX_GPUS};

/// Longest text of a fact; real ones are under 100 bytes.
const MAX_TEXT: usize = 200;

/// The facts that the operator is told.
pub fn blade_facts(facts: &Facts, table: &Table) -> BladeFacts {
    let short = |text: &Option<String>| {
        text.as_ref().map(|text| text[..text.floor_char_boundary(MAX_TEXT)].to_owned())
    };
    let fabric = facts.gpus.iter().find_map(|gpu| gpu.fabric.as_ref());
    let nvlink_cluster = fabric.and_then(|fabric| {
        let clique = fabric.clique_id.map_or(String::new(), |id| format!(".{id}"));
        fabric.cluster_uuid.as_ref().map(|uuid| format!("{uuid}{clique}"))
    });
    BladeFacts {
        serial: short(&facts.host.serial),
        hostname: short(&facts.host.hostname),
        sku: health::profile(facts, table).map(|profile| profile.sku.clone()),
        gpus: facts
            .gpus
            .iter()
            .take(MAX_GPUS)
            .map(|gpu| GpuFacts {
                uuid: gpu.uuid.clone(),
                name: short(&gpu.name),
                serial: short(&gpu.identity.serial),
                pci: short(&gpu.identity.pci),
            })
            .collect(),
        driver: short(&facts.gpu_driver.as_ref().and_then(|driver| driver.version.clone())),
        kernel: short(&facts.kernel.release),
        nvlink_cluster: short(&nvlink_cluster),
        boot_id: short(&facts.host.boot_id),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        simulated: facts.simulated(),
    }
}

/// Temperature, draw and clock of each GPU as they are now: what a person looks at first, and no more, since
/// thousands of blades send it every minute.
pub fn readings(facts: &Facts) -> Vec<(Option<DeviceId>, Reading)> {
    let mut out = Vec::new();
    for gpu in facts.gpus.iter().take(MAX_GPUS) {
        let values = [
            ("temperature.gpu", gpu.thermal.gpu_c.map(f64::from), Unit::Celsius),
            ("power.draw", gpu.power.draw_w, Unit::Watt),
            ("clock.sm", gpu.clocks.sm_mhz.map(f64::from), Unit::MegaHertz),
        ];
        for (metric, value, unit) in values {
            if let Some(value) = value.filter(|value| value.is_finite()) {
                out.push((Some(gpu.uuid.clone()), Reading::new(metric, value, unit)));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_bounded_and_readings_have_known_names() {
        let gpu = serde_json::json!({"uuid": "GPU-1", "index": 0, "name": "x".repeat(5_000),
            "thermal": {"gpu_c": 41}, "power": {"draw_w": 312.5}, "clocks": {"sm_mhz": 1980}});
        let facts = Facts { gpus: vec![serde_json::from_value(gpu).unwrap(); 300], ..Facts::default() };
        let said = blade_facts(&facts, &Table::built_in().unwrap());
        assert_eq!(said.gpus.len(), MAX_GPUS);
        assert!(serde_json::to_vec(&said).unwrap().len() < 64 << 10);
        let readings = readings(&facts);
        assert_eq!(readings.len(), 3 * MAX_GPUS);
        for (_, reading) in &readings {
            let known = whetstone_model::threshold::metric::find(&reading.metric).expect("a known metric");
            assert_eq!(known.unit, reading.unit, "{}", reading.metric);
        }
    }
}
