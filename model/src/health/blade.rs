//! Rules about the blade's parts beside each other: what should be alike and is not.

use std::collections::BTreeMap;

use super::{Judge, device};
use crate::action::Action;
use crate::facts::{Facts, GpuFacts};

pub(super) fn judge(facts: &Facts, judge: &mut Judge<'_>) {
    odd_ones(facts, judge, "mixed-gpu-model", Action::ContactSupport, "GPU", |gpu| gpu.name.clone());
    odd_ones(facts, judge, "mixed-vbios", Action::UpdateSoftware, "VBIOS", |gpu| gpu.identity.vbios.clone());
    // Some firmware keeps a little more for itself; a missing stack is gigabytes.
    odd_ones(facts, judge, "mixed-gpu-memory", Action::DrainAndTest, "memory of about", |gpu| {
        gpu.memory.total_mib.map(|mib| format!("{} GiB", (mib + 512) / 1024))
    });
    if facts.cpu.microcode.len() > 1 {
        let detail = format!("CPUs run different microcode: {}", facts.cpu.microcode.join(", "));
        judge.warn("mixed-microcode", None, Action::UpdateSoftware, detail);
    }
    adapters(facts, judge);
}

/// Names those that differ from the majority; all of them if there is none.
fn odd_ones(
    facts: &Facts,
    judge: &mut Judge<'_>,
    code: &str,
    action: Action,
    what: &str,
    value: impl Fn(&GpuFacts) -> Option<String>,
) {
    let mut groups: BTreeMap<String, Vec<&GpuFacts>> = BTreeMap::new();
    for gpu in &facts.gpus {
        if let Some(value) = value(gpu) {
            groups.entry(value).or_default().push(gpu);
        }
    }
    if groups.len() < 2 {
        return;
    }
    let most = groups.values().map(Vec::len).max().unwrap_or(0);
    let leaders: Vec<&String> =
        groups.iter().filter(|(_, gpus)| gpus.len() == most).map(|(value, _)| value).collect();
    for (value, gpus) in &groups {
        if leaders.len() == 1 && leaders[0] == value {
            continue;
        }
        let others: Vec<&str> = groups.keys().filter(|other| *other != value).map(String::as_str).collect();
        for gpu in gpus {
            let detail = format!("{what} {value}, other GPUs of the blade have {}", others.join(", "));
            judge.warn(code, Some(gpu.uuid.clone()), action, detail);
        }
    }
}

/// Adapters of one board id carry one firmware.
fn adapters(facts: &Facts, judge: &mut Judge<'_>) {
    let mut by_board: BTreeMap<&str, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for port in &facts.ib_ports {
        if let (Some(board), Some(firmware)) = (&port.board_id, &port.firmware) {
            let adapters = by_board.entry(board).or_default().entry(firmware).or_default();
            if !adapters.contains(&port.adapter.as_str()) {
                adapters.push(&port.adapter);
            }
        }
    }
    for firmwares in by_board.values().filter(|firmwares| firmwares.len() > 1) {
        let most = firmwares.values().map(Vec::len).max().unwrap_or(0);
        let tied = firmwares.values().filter(|adapters| adapters.len() == most).count() > 1;
        for (firmware, adapters) in firmwares.iter().filter(|(_, adapters)| tied || adapters.len() < most) {
            let others: Vec<&str> = firmwares.keys().filter(|other| *other != firmware).copied().collect();
            for adapter in adapters {
                let detail = format!(
                    "{adapter}: firmware {firmware}, adapters of the same board have {}",
                    others.join(", ")
                );
                judge.warn("mixed-nic-firmware", device(adapter), Action::UpdateSoftware, detail);
            }
        }
    }
}
