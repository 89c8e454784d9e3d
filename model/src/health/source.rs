//! Rules about what could not be looked at, and about GPUs that are gone.

use super::{Judge, device};
use crate::action::Action;
use crate::facts::{Facts, GapKind, PciKind, SourceState};

pub(super) fn judge(facts: &Facts, judge: &mut Judge<'_>) {
    for source in &facts.sources {
        let (name, why) = (&source.name, &source.detail);
        match source.state {
            SourceState::Ok | SourceState::Absent => {}
            // The GPUs that hang are named one by one below.
            SourceState::Timeout if name == "nvml" && !facts.gpu_gaps.is_empty() => {}
            SourceState::Timeout => {
                judge.warn(
                    "source-timeout",
                    None,
                    Action::Reboot,
                    format!("{name}: {why}; nothing is known from it"),
                );
            }
            SourceState::Error => {
                let (code, action) = match source.code.as_deref() {
                    Some(code @ "nvml-version-mismatch") => (code, Action::Reboot),
                    Some(code @ "nvml-no-permission") => (code, Action::None),
                    _ => ("source-error", Action::Reboot),
                };
                judge.warn(code, None, action, format!("{name}: {why}"));
            }
        }
    }
    for gap in &facts.gpu_gaps {
        let who = gap.device();
        let name = match (&gap.uuid, &gap.pci) {
            (Some(_), Some(pci)) => format!("gpu{} at {pci}", gap.index),
            _ => format!("gpu{}", gap.index),
        };
        let detail = format!("{name}: {}", gap.detail);
        match gap.kind {
            GapKind::Lost => judge.fault("gpu-lost", who, Action::Reboot, detail),
            GapKind::ResetRequired => judge.fault("gpu-needs-reset", who, Action::ResetGpu, detail),
            GapKind::Timeout => judge.warn("source-timeout", who, Action::Reboot, detail),
            GapKind::NoPermission => judge.warn("nvml-no-permission", who, Action::None, detail),
            GapKind::Error => judge.warn("source-error", who, Action::Reboot, detail),
        }
    }
    bus(facts, judge);
}

/// GPUs on the PCI bus that NVML does not speak of.
fn bus(facts: &Facts, judge: &mut Judge<'_>) {
    let nvml = facts.source("nvml").map(|source| source.state);
    let known = |address: &str| {
        let of = |pci: &Option<String>| pci.as_deref() == Some(address);
        facts.gpus.iter().any(|gpu| of(&gpu.identity.pci)) || facts.gpu_gaps.iter().any(|gap| of(&gap.pci))
    };
    // A GPU that left before it could be named explains one that the bus still lists; it is not counted twice.
    let nameless = facts.gpu_gaps.iter().filter(|gap| gap.pci.is_none()).count();
    let missing: Vec<_> = facts
        .pci
        .iter()
        .filter(|pci| pci.kind == PciKind::Gpu && !known(&pci.address))
        .skip(nameless)
        .collect();
    match nvml {
        Some(SourceState::Ok) => {
            for pci in missing {
                let who = device(&pci.address);
                match pci.driver.as_deref() {
                    None | Some("nvidia") => {
                        let detail =
                            format!("GPU at {} is on the PCI bus, NVML does not list it", pci.address);
                        judge.fault("gpu-missing", who, Action::Reboot, detail);
                    }
                    Some(driver) => {
                        let detail = format!("GPU at {} belongs to the driver {driver}", pci.address);
                        judge.info("gpu-other-driver", who, detail);
                    }
                }
            }
        }
        Some(SourceState::Absent) if !missing.is_empty() => {
            let detail = format!(
                "{} GPUs on the PCI bus and no NVIDIA driver: they cannot be looked at",
                missing.len()
            );
            judge.warn("gpu-without-driver", None, Action::UpdateSoftware, detail);
        }
        // The source's own finding says why nothing is known of them.
        _ => {}
    }
}
