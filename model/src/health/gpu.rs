//! Rules about one GPU: memory, heat, clocks, modes.

use super::{Judge, hours_up};
use crate::action::{Action, Severity};
use crate::evidence::Reading;
use crate::facts::{ClockReason, Facts, GpuFacts, RecoveryAction};
use crate::unit::Unit;

pub(super) fn judge(gpu: &GpuFacts, facts: &Facts, judge: &mut Judge<'_>) {
    ecc(gpu, facts, judge);
    remapping(gpu, judge);
    thermal(gpu, judge);
    throttling(gpu, judge);
    repair(gpu, judge);
    modes(gpu, judge);
}

/// The larger of the library's own sum and of the two memories: libraries that give only one of them exist.
pub(super) fn sum(total: Option<u64>, sram: Option<u64>, dram: Option<u64>) -> Option<u64> {
    let parts = match (sram, dram) {
        (None, None) => None,
        (sram, dram) => Some(sram.unwrap_or(0).saturating_add(dram.unwrap_or(0))),
    };
    total.max(parts)
}

fn ecc(gpu: &GpuFacts, facts: &Facts, judge: &mut Judge<'_>) {
    let who = || Some(gpu.uuid.clone());
    let ecc = &gpu.ecc;
    let counters = &ecc.volatile;
    let uncorrected =
        sum(counters.total.uncorrected, counters.sram.uncorrected, counters.dram.uncorrected).unwrap_or(0);
    let place = match (counters.sram.uncorrected.unwrap_or(0), counters.dram.uncorrected.unwrap_or(0)) {
        (0, 0) => String::new(),
        (sram, 0) => format!(" ({sram} in SRAM)"),
        (0, dram) => format!(" ({dram} in DRAM)"),
        (sram, dram) => format!(" ({sram} in SRAM, {dram} in DRAM)"),
    };
    let place = format!("{uncorrected} uncorrectable ECC errors since the driver was loaded{place}");
    let reading = Reading::new("ecc.uncorrectable.count", uncorrected as f64, Unit::Count);
    let now_bad = judge.reading("ecc-uncorrectable", who(), Action::ResetGpu, &place, reading);

    let life = &ecc.aggregate;
    let ever = sum(life.total.uncorrected, life.sram.uncorrected, life.dram.uncorrected).unwrap_or(0);
    if ever > 0 && !now_bad {
        let detail =
            format!("{ever} uncorrectable ECC errors over the GPU's life, none since the driver was loaded");
        judge.info("ecc-uncorrectable-history", who(), detail);
    }
    if ecc.sram_threshold_exceeded == Some(true) {
        let parts: Vec<String> = ecc
            .sram_uncorrected_by_part
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(part, count)| format!("{part} {count}"))
            .collect();
        let parts = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
        let reading = Reading::new("ecc.sram.threshold_exceeded", 1.0, Unit::Count);
        let what = format!("uncorrectable SRAM errors over NVIDIA's limit{parts}");
        judge.reading("ecc-sram-threshold", who(), Action::Replace, &what, reading);
    }
    if let Some(corrected) = sum(counters.total.corrected, counters.sram.corrected, counters.dram.corrected)
        && corrected > 0
    {
        let what = format!("{corrected} corrected ECC errors since the driver was loaded");
        let count = Reading::new("ecc.correctable.count", corrected as f64, Unit::Count);
        let mut told = judge.reading("ecc-correctable", who(), Action::DrainAndTest, &what, count);
        if let Some(hours) = hours_up(facts, 1.0) {
            let what = format!("{what}, a mean since boot");
            let rate = Reading::new("ecc.correctable.rate", corrected as f64 / hours, Unit::PerHour);
            told |= judge.reading("ecc-correctable-rate", who(), Action::DrainAndTest, &what, rate);
        }
        if !told {
            judge.info("ecc-correctable", who(), what);
        }
    }
    if ecc.enabled == Some(false) {
        let detail = "ECC is off: errors in its memory are neither corrected nor seen".to_owned();
        judge.warn("ecc-off", who(), Action::ResetGpu, detail);
    }
    if let (Some(now), Some(next)) = (ecc.enabled, ecc.pending_enabled)
        && now != next
    {
        let word = |on| if on { "on" } else { "off" };
        let detail = format!("ECC is {} and will be {} after the next reset", word(now), word(next));
        judge.warn("ecc-mode-pending", who(), Action::ResetGpu, detail);
    }
}

fn remapping(gpu: &GpuFacts, judge: &mut Judge<'_>) {
    let who = || Some(gpu.uuid.clone());
    if let Some(rows) = &gpu.remapped_rows {
        let flag = |on: bool| f64::from(u8::from(on));
        let failure = Reading::new("row_remap.failure", flag(rows.failure), Unit::Count);
        judge.reading(
            "row-remap-failure",
            who(),
            Action::Replace,
            "a memory row could not be remapped",
            failure,
        );
        let pending = Reading::new("row_remap.pending", flag(rows.pending), Unit::Count);
        judge.reading("row-remap-pending", who(), Action::ResetGpu, "a row remap waits for a reset", pending);
        let count = Reading::new("row_remap.uncorrectable.count", f64::from(rows.uncorrected), Unit::Count);
        let what = format!("{} rows remapped after uncorrectable errors", rows.uncorrected);
        judge.reading("row-remap-uncorrectable", who(), Action::None, &what, count);
        if let Some(banks) = rows.histogram.filter(|banks| banks.none > 0) {
            let detail =
                format!("{} memory banks have no spare row left; {} have few", banks.none, banks.low);
            judge.warn("row-remap-no-spares", who(), Action::ContactSupport, detail);
        }
    }
    if let Some(pages) = gpu.retired_pages {
        let count = pages.single_bit.saturating_add(pages.double_bit);
        let reading = Reading::new("retired_pages.count", f64::from(count), Unit::Count);
        judge.reading(
            "retired-pages",
            who(),
            Action::Replace,
            &format!("{count} retired memory pages"),
            reading,
        );
        if pages.pending == Some(true) {
            let detail = "memory pages wait for retirement at the next driver load".to_owned();
            judge.warn("retired-pages-pending", who(), Action::Reboot, detail);
        }
    }
}

fn thermal(gpu: &GpuFacts, judge: &mut Judge<'_>) {
    let who = || Some(gpu.uuid.clone());
    let heat = &gpu.thermal;
    if let Some(margin) = heat.margin_c {
        // The GPU's own threshold first: it needs no table.
        match heat.slowdown_tlimit_c {
            Some(limit) if margin <= limit => {
                let detail = format!(
                    "margin to the temperature limit {margin} C, slowdown begins at {limit} C (GPU at {})",
                    degrees(heat.gpu_c)
                );
                judge.fault("thermal-margin", who(), Action::DrainAndTest, detail);
            }
            _ => {
                let reading = Reading::new("temperature.margin", f64::from(margin), Unit::CelsiusMargin);
                let what = "margin to the temperature limit";
                judge.reading("thermal-margin", who(), Action::DrainAndTest, what, reading);
            }
        }
    } else if let (Some(now), Some(limit)) = (heat.gpu_c, heat.slowdown_c)
        && now >= limit
    {
        let detail = format!("GPU at {now} C, slowdown begins at {limit} C");
        judge.fault("thermal-margin", who(), Action::DrainAndTest, detail);
    }
    if let (Some(now), Some(limit)) = (heat.memory_c, heat.memory_max_c)
        && now >= limit
    {
        let detail = format!("GPU memory at {now} C, its limit is {limit} C");
        judge.fault("thermal-memory", who(), Action::DrainAndTest, detail);
    }
}

fn degrees(value: Option<i32>) -> String {
    value.map_or("unknown".to_owned(), |value| format!("{value} C"))
}

fn throttling(gpu: &GpuFacts, judge: &mut Judge<'_>) {
    let who = || Some(gpu.uuid.clone());
    let held = |reason| gpu.clocks.event_reasons.contains(&reason);
    let clock = gpu.clocks.sm_mhz.map_or(String::new(), |mhz| format!(", SM clock {mhz} MHz"));
    let at = format!("GPU at {}{clock}", degrees(gpu.thermal.gpu_c));
    if held(ClockReason::HwThermalSlowdown) {
        let detail = format!("clocks held down by heat (hardware thermal slowdown): {at}");
        judge.fault("throttle-thermal", who(), Action::DrainAndTest, detail);
    }
    if held(ClockReason::HwPowerBrake) {
        let detail = format!("clocks held down by the power brake (supply or its cabling): {at}");
        judge.fault("throttle-power-brake", who(), Action::ContactSupport, detail);
    }
    if held(ClockReason::HwSlowdown)
        && !held(ClockReason::HwThermalSlowdown)
        && !held(ClockReason::HwPowerBrake)
    {
        let detail =
            format!("clocks held down by hardware, the GPU does not say whether by heat or power: {at}");
        judge.fault("throttle-hw", who(), Action::DrainAndTest, detail);
    }
    if held(ClockReason::SwThermalSlowdown) {
        let detail = format!("clocks held down by the driver because of heat: {at}");
        judge.warn("throttle-thermal-sw", who(), Action::DrainAndTest, detail);
    }
}

fn repair(gpu: &GpuFacts, judge: &mut Judge<'_>) {
    let who = || Some(gpu.uuid.clone());
    let action = match gpu.recovery_action {
        None | Some(RecoveryAction::None) => None,
        Some(RecoveryAction::GpuReset) => Some((Action::ResetGpu, "a GPU reset")),
        Some(RecoveryAction::NodeReboot) => Some((Action::Reboot, "a reboot")),
        Some(RecoveryAction::DrainP2p) => Some((Action::DrainAndTest, "a drain of peer-to-peer traffic")),
        Some(RecoveryAction::DrainAndReset) => Some((Action::ResetGpu, "a drain and a GPU reset")),
    };
    if let Some((action, what)) = action {
        judge.fault(
            "gpu-recovery-needed",
            who(),
            action,
            format!("the driver says that the GPU needs {what}"),
        );
    }
    if let Some(pending) = gpu.repair_pending.filter(|pending| pending.channel || pending.tpc) {
        let what = match (pending.channel, pending.tpc) {
            (true, true) => "a memory channel and a TPC",
            (true, false) => "a memory channel",
            _ => "a TPC",
        };
        judge.fault(
            "gpu-repair-pending",
            who(),
            Action::ResetGpu,
            format!("repair of {what} waits for a reset"),
        );
    }
    if gpu.inforom_valid == Some(false) {
        let detail =
            "the board's own data (InfoROM) is corrupt: its error counts cannot be trusted".to_owned();
        judge.fault("inforom-corrupt", who(), Action::ContactSupport, detail);
    }
}

fn modes(gpu: &GpuFacts, judge: &mut Judge<'_>) {
    let who = || Some(gpu.uuid.clone());
    if gpu.modes.persistence == Some(false) {
        let detail =
            "persistence is off: the driver lets the GPU go between jobs, and its counters start anew"
                .to_owned();
        judge.warn("persistence-off", who(), Action::None, detail);
    }
    if gpu.modes.compute.as_deref() == Some("prohibited") {
        judge.warn(
            "compute-prohibited",
            who(),
            Action::None,
            "compute mode is \"prohibited\": no job can run".to_owned(),
        );
    }
    if gpu.modes.mig == Some(true) {
        judge.info("mig-on", who(), "MIG is on: the GPU is cut into instances".to_owned());
    }
    if let (Some(now), Some(usual)) = (gpu.power.enforced_limit_w, gpu.power.default_limit_w)
        && now < usual - 0.5
    {
        let detail = format!("power limit is {now:.0} W, its default is {usual:.0} W");
        judge.warn("power-limit-low", who(), Action::None, detail);
    }
    if !gpu.processes.is_empty() {
        let names: Vec<String> = gpu
            .processes
            .iter()
            .take(5)
            .map(|process| format!("{} ({})", process.pid, process.name.as_deref().unwrap_or("?")))
            .collect();
        let more = gpu.processes.len().saturating_sub(5);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        judge.info("foreign-processes", who(), format!("in use by {}{more}", names.join(", ")));
    }
    if !gpu.unanswered.is_empty() {
        let detail = format!("NVML calls failed: {}", gpu.unanswered.join("; "));
        judge.say("nvml-call-failed", who(), Severity::Info, Action::None, detail);
    }
}
