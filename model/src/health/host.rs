//! Rules about the host: memory, drives, clock, CPUs.

use super::{Judge, device, hours_up};
use crate::action::Action;
use crate::evidence::Reading;
use crate::facts::{Facts, NvmeDrive};
use crate::unit::Unit;

/// Corrected DIMM errors are judged per day (mcelog's rule): no shorter time is assumed.
const EDAC_HOURS: f64 = 24.0;

pub(super) fn judge(facts: &Facts, judge: &mut Judge<'_>) {
    edac(facts, judge);
    for drive in &facts.nvme {
        nvme(drive, judge);
    }
    clock(facts, judge);
    if let Some(lost) = facts.memory.hardware_corrupted_mib.filter(|mib| *mib > 0) {
        let detail = format!("the kernel took {lost} MiB of memory out of use after hardware errors");
        judge.warn("memory-hardware-corrupted", None, Action::Replace, detail);
    }
    if let Some(offline) = facts.cpu.offline.filter(|count| *count > 0) {
        judge.info("cpu-offline", None, format!("{offline} CPUs are present and offline"));
    }
    let throttles = facts
        .cpu
        .core_throttle_count
        .unwrap_or(0)
        .saturating_add(facts.cpu.package_throttle_count.unwrap_or(0));
    if throttles > 0 {
        judge.info(
            "cpu-throttled",
            None,
            format!("CPUs were slowed down by heat {throttles} times since boot"),
        );
    }
}

fn edac(facts: &Facts, judge: &mut Judge<'_>) {
    for controller in &facts.edac {
        let of_dimms = |pick: fn(&crate::facts::EdacDimm) -> Option<u64>| {
            controller.dimms.iter().filter_map(pick).fold(0u64, u64::saturating_add)
        };
        let dimms = controller.dimms.iter().map(|dimm| {
            let name = dimm.label.as_deref().unwrap_or(&dimm.name);
            (dimm.name.as_str(), name.to_owned(), dimm.corrected.unwrap_or(0), dimm.uncorrected.unwrap_or(0))
        });
        // Errors that the controller could not attribute to a DIMM.
        let rest = (
            controller.name.as_str(),
            format!("controller {} (no DIMM named)", controller.name),
            controller.corrected.unwrap_or(0).saturating_sub(of_dimms(|dimm| dimm.corrected)),
            controller.uncorrected.unwrap_or(0).saturating_sub(of_dimms(|dimm| dimm.uncorrected)),
        );
        for (id, name, corrected, uncorrected) in dimms.chain([rest]) {
            if uncorrected > 0 {
                let reading = Reading::new("edac.uncorrectable.count", uncorrected as f64, Unit::Count);
                let what = format!("{name}: {uncorrected} uncorrected memory errors since boot");
                judge.reading("edac-uncorrectable", device(id), Action::Replace, &what, reading);
            }
            if corrected > 0 {
                let what = format!("{name}: {corrected} corrected memory errors since boot");
                let told = hours_up(facts, EDAC_HOURS).is_some_and(|hours| {
                    let reading =
                        Reading::new("edac.correctable.rate", corrected as f64 / hours, Unit::PerHour);
                    judge.reading(
                        "edac-correctable",
                        device(id),
                        Action::DrainAndTest,
                        &format!("{what}, a mean"),
                        reading,
                    )
                });
                if !told {
                    judge.info("edac-correctable", device(id), what);
                }
            }
        }
    }
}

fn nvme(drive: &NvmeDrive, judge: &mut Judge<'_>) {
    let who = || drive.serial.as_deref().and_then(device).or_else(|| device(&drive.name));
    let name = &drive.name;
    match drive.state.as_deref() {
        None | Some("live") => {}
        Some("dead") => {
            judge.fault("nvme-state", who(), Action::Replace, format!("{name}: its controller is dead"));
        }
        Some(state) => {
            judge.warn(
                "nvme-state",
                who(),
                Action::DrainAndTest,
                format!("{name}: its controller is {state:?}, not live"),
            );
        }
    }
    let Some(smart) = &drive.smart else { return };
    let warnings = [
        "spare blocks low",
        "temperature out of range",
        "reliability degraded",
        "read-only",
        "volatile memory backup failed",
        "persistent memory unreliable",
    ];
    let set: Vec<&str> = warnings
        .iter()
        .enumerate()
        .filter(|(bit, _)| smart.critical_warning >> bit & 1 == 1)
        .map(|(_, w)| *w)
        .collect();
    let reading = Reading::new("nvme.critical_warning", f64::from(smart.critical_warning), Unit::Count);
    let what = format!("{name}: critical warning bits ({})", set.join(", "));
    judge.reading("nvme-critical-warning", who(), Action::Replace, &what, reading);
    if let Some(used) = smart.percentage_used {
        let reading = Reading::new("nvme.wear", f64::from(used), Unit::Percent);
        judge.reading(
            "nvme-wear",
            who(),
            Action::Replace,
            &format!("{name}: part of its endurance used"),
            reading,
        );
    }
    if let Some(errors) = smart.media_errors {
        let reading = Reading::new("nvme.media_errors.count", errors as f64, Unit::Count);
        let what = format!("{name}: {errors} media and data integrity errors");
        judge.reading("nvme-media-errors", who(), Action::DrainAndTest, &what, reading);
    }
}

fn clock(facts: &Facts, judge: &mut Judge<'_>) {
    if facts.clock.synchronised == Some(false) {
        let detail = "no time source sets the system clock: times of evidence cannot be compared".to_owned();
        judge.warn("clock-unsynchronised", None, Action::None, detail);
    }
    if let Some(source) =
        facts.clock.clocksource.as_deref().filter(|source| matches!(*source, "hpet" | "acpi_pm" | "jiffies"))
    {
        let detail =
            format!("the kernel keeps time with {source}: it found the CPU's own counter unreliable");
        judge.warn("clocksource-fallback", None, Action::DrainAndTest, detail);
    }
}
