//! Is this the blade that was ordered? Its facts against its SKU's profile, and its GPUs against each other.

use std::collections::BTreeMap;

use whetstone_model::action::{Action, Severity};
use whetstone_model::device::DeviceId;
use whetstone_model::evidence::Finding;
use whetstone_model::facts::{FabricState, Facts, GpuFacts};
use whetstone_model::threshold::Profile;

/// What is not as the profile says. `profile: None` (a SKU that is not known) compares GPUs with each other only.
pub fn check(facts: &Facts, profile: Option<&Profile>) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(profile) = profile {
        count(facts, profile, &mut found);
        for gpu in &facts.gpus {
            one_gpu(gpu, profile, &mut found);
        }
    }
    alike(facts, &mut found);
    found
}

fn fault(code: &str, device: Option<&DeviceId>, action: Action, detail: String) -> Finding {
    let code = format!("inventory-{code}");
    Finding { code, device: device.cloned(), severity: Severity::Fault, action, detail, reading: None }
}

fn count(facts: &Facts, profile: &Profile, found: &mut Vec<Finding>) {
    let Some(expected) = profile.expected.gpus else { return };
    // A GPU that is there but gives no facts is a finding of the probe's own.
    let seen = facts.gpus.len() + facts.gpu_gaps.len();
    if seen < expected as usize {
        let detail = format!("{seen} GPUs, {} has {expected}", profile.sku);
        found.push(fault("gpu-count", None, Action::PowerCycle, detail));
    }
}

fn one_gpu(gpu: &GpuFacts, profile: &Profile, found: &mut Vec<Finding>) {
    let expected = &profile.expected;
    let sku = &profile.sku;
    let mut say = |code, action, detail| found.push(fault(code, Some(&gpu.uuid), action, detail));
    if let (Some([low, high]), Some(total)) = (expected.memory_mib, gpu.memory.total_mib)
        && !(low..=high).contains(&total)
    {
        say("memory", Action::Replace, format!("{total} MiB of HBM, {sku} has {low} to {high}"));
    }
    if let (Some(expected), Some(seen)) = (expected.sm_count, gpu.identity.sm_count)
        && seen != expected
    {
        say("sm-count", Action::Replace, format!("{seen} SMs, {sku} has {expected}"));
    }
    // The generation drops when a GPU is idle; it is judged under load by the bandwidth test.
    if let (Some(expected), Some(seen)) = (expected.pcie_width, gpu.pcie.width)
        && seen < expected
    {
        let generation = gpu.pcie.generation.map_or(String::new(), |g| format!("Gen{g} "));
        say("pcie-width", Action::CheckLink, format!("PCIe {generation}x{seen}, {sku} has x{expected}"));
    }
    if let (Some(expected), Some(can)) = (expected.pcie_generation, gpu.pcie.max_generation)
        && can < expected
    {
        say(
            "pcie-generation",
            Action::CheckLink,
            format!("PCIe link can do Gen{can}, {sku} has Gen{expected}"),
        );
    }
    if let Some(expected) = expected.nvlinks_per_gpu {
        let up = gpu.nvlinks.iter().filter(|l| l.up == Some(true)).count();
        let down: Vec<String> =
            gpu.nvlinks.iter().filter(|l| l.up == Some(false)).map(|l| l.link.to_string()).collect();
        if up < expected as usize {
            let which = if down.is_empty() { String::new() } else { format!(" (down: {})", down.join(", ")) };
            say("nvlinks", Action::CheckLink, format!("{up} of {expected} NVLinks up{which}"));
        }
    }
    if let Some(lowest) = expected.nvlink_mbps {
        let slow: Vec<String> = gpu
            .nvlinks
            .iter()
            .filter(|l| l.up == Some(true) && l.speed_mbps.is_some_and(|s| s < lowest))
            .map(|l| format!("{} at {} MB/s", l.link, l.speed_mbps.unwrap_or(0)))
            .collect();
        if !slow.is_empty() {
            say("nvlink-speed", Action::CheckLink, format!("NVLink {}, {sku} has {lowest}", slow.join(", ")));
        }
    }
    if expected.ecc == Some(true) && gpu.ecc.enabled == Some(false) {
        say("ecc-off", Action::UpdateSoftware, "ECC is off: memory errors would pass unseen".to_owned());
    }
    if gpu.modes.persistence == Some(false) {
        let detail = "persistence mode is off: counters are lost whenever the GPU is idle".to_owned();
        say("persistence-off", Action::UpdateSoftware, detail);
        // A setting, not a fault of the hardware: it must be seen, but fails nothing.
        if let Some(last) = found.last_mut() {
            last.severity = Severity::Warning;
        }
    }
    if expected.fabric == Some(true) {
        let complete =
            gpu.fabric.as_ref().is_some_and(|f| f.state == FabricState::Completed && f.status == 0);
        if !complete {
            let state = gpu
                .fabric
                .as_ref()
                .map_or("not reported".to_owned(), |f| format!("{:?}, status {}", f.state, f.status));
            let detail = format!("not registered with its NVLink fabric ({state}): fabric manager or switch");
            found.push(fault("fabric", Some(&gpu.uuid), Action::Reboot, detail));
        }
    }
}

/// GPUs of one blade that are not alike: the odd ones out against the most common value.
fn alike(facts: &Facts, found: &mut Vec<Finding>) {
    let gpus = &facts.gpus;
    let mut odd = |code: &str, what: &str, of: &dyn Fn(&GpuFacts) -> Option<String>| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for value in gpus.iter().filter_map(of) {
            *counts.entry(value).or_default() += 1;
        }
        let Some((common, many)) = counts.iter().max_by_key(|(_, n)| **n) else { return };
        for gpu in gpus {
            if let Some(value) = of(gpu).filter(|v| v != common) {
                let detail =
                    format!("{what} {value}, {many} of its {} neighbours have {common}", gpus.len() - 1);
                found.push(fault(code, Some(&gpu.uuid), Action::UpdateSoftware, detail));
            }
        }
    };
    odd("mixed-vbios", "VBIOS", &|g| g.identity.vbios.clone());
    odd("mixed-board", "board part", &|g| g.identity.board_part_number.clone());
    odd("mixed-model", "product", &|g| g.name.clone());
}

#[cfg(test)]
mod tests {
    use super::*;
    use whetstone_model::facts::NvLink;
    use whetstone_model::threshold::Table;

    const PROFILE: &str = include_str!("../../model/data/thresholds/hgx-h100.toml");

    fn blade() -> (Facts, Table) {
        let table = Table::parse("hgx-h100.toml", PROFILE).unwrap();
        let expected = table.profiles[0].expected.clone();
        let gpu = |n: u32| {
            let mut gpu: GpuFacts =
                serde_json::from_value(serde_json::json!({ "uuid": format!("GPU-{n}"), "index": n }))
                    .unwrap();
            gpu.memory.total_mib = expected.memory_mib.map(|[low, _]| low);
            gpu.pcie.width = expected.pcie_width;
            gpu.pcie.max_generation = expected.pcie_generation;
            gpu.identity.vbios = Some("96.00".into());
            gpu.ecc.enabled = Some(true);
            gpu.modes.persistence = Some(true);
            gpu.fabric =
                Some(whetstone_model::facts::Fabric { state: FabricState::Completed, ..Default::default() });
            let link = |link| NvLink {
                link,
                up: Some(true),
                speed_mbps: expected.nvlink_mbps,
                ..Default::default()
            };
            gpu.nvlinks = (0..expected.nvlinks_per_gpu.unwrap()).map(link).collect();
            gpu
        };
        (Facts { gpus: (0..8).map(gpu).collect(), ..Default::default() }, table)
    }

    fn codes(facts: &Facts, table: &Table) -> Vec<String> {
        check(facts, table.profiles.first()).into_iter().map(|f| f.code).collect()
    }

    #[test]
    fn a_blade_as_ordered_has_no_findings() {
        let (facts, table) = blade();
        assert_eq!(codes(&facts, &table), Vec::<String>::new());
    }

    #[test]
    fn each_departure_is_named() {
        let (good, table) = blade();
        let with = |change: &dyn Fn(&mut Facts)| {
            let mut facts = good.clone();
            change(&mut facts);
            codes(&facts, &table)
        };
        assert_eq!(with(&|f| drop(f.gpus.pop())), ["inventory-gpu-count"]);
        assert_eq!(with(&|f| f.gpus[3].pcie.width = Some(8)), ["inventory-pcie-width"]);
        assert_eq!(with(&|f| f.gpus[3].pcie.max_generation = Some(4)), ["inventory-pcie-generation"]);
        assert_eq!(with(&|f| f.gpus[3].nvlinks[2].up = Some(false)), ["inventory-nvlinks"]);
        assert_eq!(with(&|f| f.gpus[3].nvlinks[2].speed_mbps = Some(1)), ["inventory-nvlink-speed"]);
        assert_eq!(with(&|f| f.gpus[3].memory.total_mib = Some(40_000)), ["inventory-memory"]);
        assert_eq!(with(&|f| f.gpus[3].identity.vbios = Some("95".into())), ["inventory-mixed-vbios"]);
        assert_eq!(with(&|f| f.gpus[3].ecc.enabled = Some(false)), ["inventory-ecc-off"]);
        assert_eq!(with(&|f| f.gpus[3].fabric = None), ["inventory-fabric"]);
    }
}
