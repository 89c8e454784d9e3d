//! Rules about PCIe: width, generation, replays, AER, devices that left the bus.

use super::{Judge, device, hours_up};
use crate::action::{Action, Severity};
use crate::device::DeviceId;
use crate::evidence::Reading;
use crate::facts::{ClockReason, Facts, GpuFacts, PciDevice, PciKind, pcie_generation};
use crate::unit::Unit;

/// A GPU that does nothing may let its link slow down; its width stays.
pub(super) fn is_idle(gpu: &GpuFacts) -> bool {
    gpu.clocks.event_reasons.contains(&ClockReason::GpuIdle)
        || gpu.utilization.gpu_percent.is_some_and(|percent| percent < 5)
        || gpu.clocks.pstate.is_some_and(|pstate| pstate >= 5)
}

pub(super) fn judge_gpu(gpu: &GpuFacts, facts: &Facts, judge: &mut Judge<'_>) {
    let who = || Some(gpu.uuid.clone());
    let seen = facts.pci.iter().find(|pci| Some(&pci.address) == gpu.identity.pci.as_ref());
    let expected = judge.profile.map(|profile| &profile.expected);
    let width = gpu.pcie.width.or_else(|| seen.and_then(|pci| pci.link.width));
    let can = gpu.pcie.max_width.or_else(|| seen.and_then(max_width));
    let generation =
        gpu.pcie.generation.or_else(|| seen.and_then(|pci| pci.link.speed_gts).and_then(pcie_generation));
    let now = link_name(generation, width);
    if let Some(width) = width {
        if let Some(wanted) =
            expected.and_then(|expected| expected.pcie_width).filter(|wanted| width < *wanted)
        {
            judge.fault("pcie-width", who(), Action::CheckLink, format!("{now}, its SKU says x{wanted}"));
        } else if let Some(can) = can.filter(|can| width < *can) {
            judge.fault("pcie-width", who(), Action::CheckLink, format!("{now}, GPU and slot can do x{can}"));
        }
    }
    let wanted = expected.and_then(|expected| expected.pcie_generation);
    let can = gpu.pcie.max_generation.into_iter().chain(gpu.pcie.gpu_max_generation).min();
    if let Some(generation) = generation {
        let too_slow = match (wanted, can) {
            (Some(wanted), _) if generation < wanted => Some(format!("{now}, its SKU says Gen{wanted}")),
            (_, Some(can)) if generation < can => Some(format!("{now}, GPU and slot can do Gen{can}")),
            _ => None,
        };
        // What the link can do at best is no matter of load.
        let never = wanted.zip(gpu.pcie.max_generation).is_some_and(|(wanted, max)| max < wanted);
        match too_slow {
            Some(detail) if !is_idle(gpu) || never => {
                judge.fault("pcie-generation", who(), Action::CheckLink, detail);
            }
            Some(detail) => {
                judge.info("pcie-generation-idle", who(), format!("{detail}; idle, so this is no fault yet"))
            }
            None => {}
        }
    }
    if let Some(replays) = gpu.pcie.replays.filter(|replays| *replays > 0) {
        let what = format!("{replays} PCIe replays since the driver was loaded");
        let told = hours_up(facts, 1.0).is_some_and(|hours| {
            let reading = Reading::new("pcie.replay.rate", replays as f64 / hours, Unit::PerHour);
            judge.reading(
                "pcie-replays",
                who(),
                Action::CheckLink,
                &format!("{what}, a mean since boot"),
                reading,
            )
        });
        if !told {
            judge.info("pcie-replays", who(), what);
        }
    }
}

fn link_name(generation: Option<u32>, width: Option<u32>) -> String {
    let width = width.map_or("x?".to_owned(), |width| format!("x{width}"));
    generation.map_or_else(|| format!("PCIe {width}"), |generation| format!("PCIe Gen{generation} {width}"))
}

/// What device and port above it can do together.
fn max_width(pci: &PciDevice) -> Option<u32> {
    pci.link.max_width.into_iter().chain(pci.parent_max.width).min()
}

fn max_speed(pci: &PciDevice) -> Option<f64> {
    let limits = pci.link.max_speed_gts.into_iter().chain(pci.parent_max.speed_gts);
    limits.reduce(f64::min)
}

/// Vendor of ConnectX and BlueField adapters.
const MELLANOX: &str = "15b3:";

pub(super) fn judge(facts: &Facts, judge: &mut Judge<'_>) {
    for pci in &facts.pci {
        let gpu = facts.gpus.iter().find(|gpu| gpu.identity.pci.as_ref() == Some(&pci.address));
        let who = gpu.map(|gpu| gpu.uuid.clone()).or_else(|| device(&pci.address));
        if gpu.is_none() {
            trained(pci, who.clone(), judge);
        }
        if pci.config_readable == Some(false) {
            let detail =
                format!("{} at {} does not answer on the bus any more", pci.kind.as_str(), pci.address);
            judge.fault("gpu-lost", who.clone(), Action::Reboot, detail);
        }
        aer(pci, who, facts, judge);
    }
}

/// Link of a device that NVML does not speak of.
fn trained(pci: &PciDevice, who: Option<DeviceId>, judge: &mut Judge<'_>) {
    // How grave: an NVSwitch or a fast adapter on half its lanes slows every job; a drive in a dual-port bay or
    // an on-board network chip is often built that way.
    let severity = match pci.kind {
        PciKind::NvSwitch => Severity::Fault,
        PciKind::Nic if pci.id.starts_with(MELLANOX) => Severity::Fault,
        PciKind::Nvme => Severity::Warning,
        PciKind::Gpu | PciKind::Nic => Severity::Info,
        PciKind::Port | PciKind::Other => return,
    };
    let action = if severity == Severity::Info { Action::None } else { Action::CheckLink };
    let kind = pci.kind.as_str();
    let now = link_name(pci.link.speed_gts.and_then(pcie_generation), pci.link.width);
    if let (Some(width), Some(can)) = (pci.link.width, max_width(pci))
        && width < can
    {
        judge.say(
            "pcie-width",
            who.clone(),
            severity,
            action,
            format!("{kind} on {now}, it and its slot can do x{can}"),
        );
    }
    if let (Some(speed), Some(can)) = (pci.link.speed_gts, max_speed(pci))
        && speed < can - 0.01
    {
        let can = pcie_generation(can).map_or(format!("{can} GT/s"), |generation| format!("Gen{generation}"));
        let detail = format!("{kind} on {now}, it and its slot can do {can}");
        judge.say("pcie-generation", who, severity, action, detail);
    }
}

/// Requests for functions that are not there: firmware and drivers make them while they look around at boot.
const HARMLESS: &str = "UnsupReq";

/// Uncorrected AER errors of a device, without the harmless ones and without the kernel's own totals.
pub(super) fn aer_uncorrected(pci: &PciDevice) -> u64 {
    pci.aer_fatal
        .iter()
        .chain(&pci.aer_non_fatal)
        .filter(|(name, _)| !name.starts_with("TOTAL") && name.as_str() != HARMLESS)
        .fold(0u64, |sum, (_, count)| sum.saturating_add(*count))
}

pub(super) fn aer_corrected(pci: &PciDevice) -> u64 {
    pci.aer_correctable
        .iter()
        .filter(|(name, _)| !name.starts_with("TOTAL"))
        .fold(0u64, |sum, (_, count)| sum.saturating_add(*count))
}

fn aer(pci: &PciDevice, who: Option<DeviceId>, facts: &Facts, judge: &mut Judge<'_>) {
    let names = |counts: [&std::collections::BTreeMap<String, u64>; 2]| {
        let names: Vec<String> = counts
            .into_iter()
            .flatten()
            .filter(|(name, _)| !name.starts_with("TOTAL"))
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        names.join(", ")
    };
    let uncorrected = aer_uncorrected(pci);
    if uncorrected > 0 {
        let what = format!(
            "{uncorrected} uncorrected PCIe errors of {} {} since boot ({})",
            pci.kind.as_str(),
            pci.address,
            names([&pci.aer_fatal, &pci.aer_non_fatal])
        );
        let reading = Reading::new("pcie.aer.uncorrectable.count", uncorrected as f64, Unit::Count);
        judge.reading("pcie-aer-uncorrectable", who.clone(), Action::CheckLink, &what, reading);
    }
    let corrected = aer_corrected(pci);
    if corrected > 0 {
        let empty = std::collections::BTreeMap::new();
        let what = format!(
            "{corrected} corrected PCIe errors of {} {} since boot ({})",
            pci.kind.as_str(),
            pci.address,
            names([&pci.aer_correctable, &empty])
        );
        let told = hours_up(facts, 1.0).is_some_and(|hours| {
            let reading = Reading::new("pcie.aer.correctable.rate", corrected as f64 / hours, Unit::PerHour);
            let what = format!("{what}, a mean since boot");
            judge.reading("pcie-aer-correctable", who.clone(), Action::CheckLink, &what, reading)
        });
        if !told {
            judge.info("pcie-aer-correctable", who, what);
        }
    }
}
