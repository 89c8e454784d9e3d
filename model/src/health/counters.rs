//! Two looks compared: what counted up in between, as a rate.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Judge, bus, gpu, link, profile};
use crate::action::Action;
use crate::device::DeviceId;
use crate::evidence::{Finding, Reading};
use crate::facts::{ClockReason, Facts, GpuFacts, GpuSample};
use crate::threshold::Table;
use crate::unit::Unit;

macro_rules! counters {
    ($($name:ident = $text:literal;)*) => {
        /// What counts up on a device.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Counter { $(#[serde(rename = $text)] $name,)* }
        impl Counter {
            pub const ALL: &'static [Counter] = &[$(Counter::$name,)*];
            pub fn as_str(self) -> &'static str { match self { $(Counter::$name => $text,)* } }
        }
    };
}

counters! {
    EccCorrected = "ecc_corrected";
    EccUncorrected = "ecc_uncorrected";
    RowsRemapped = "rows_remapped_uncorrectable";
    RemapPending = "row_remap_pending";
    RemapFailure = "row_remap_failure";
    RetiredPages = "retired_pages";
    NvlinkErrors = "nvlink_errors";
    NvlinksDown = "nvlinks_down";
    PcieReplays = "pcie_replays";
    AerCorrected = "aer_corrected";
    AerUncorrected = "aer_uncorrected";
    EdacCorrected = "edac_corrected";
    EdacUncorrected = "edac_uncorrected";
    IbSymbolErrors = "ib_symbol_errors";
    IbLinkRecovery = "ib_link_recovery";
    IbLinkDowned = "ib_link_downed";
    CarrierChanges = "carrier_changes";
}

/// Counters of a blade, or of one GPU, at one time. In JSON a list of `{device, counter, value}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Entry>", into = "Vec<Entry>")]
pub struct Counters(BTreeMap<(DeviceId, Counter), u64>);

#[derive(Serialize, Deserialize)]
struct Entry {
    device: DeviceId,
    counter: Counter,
    value: u64,
}

impl From<Vec<Entry>> for Counters {
    fn from(entries: Vec<Entry>) -> Self {
        Self(entries.into_iter().map(|entry| ((entry.device, entry.counter), entry.value)).collect())
    }
}

impl From<Counters> for Vec<Entry> {
    fn from(counters: Counters) -> Self {
        let entry = |((device, counter), value)| Entry { device, counter, value };
        counters.0.into_iter().map(entry).collect()
    }
}

impl Counters {
    /// All counters of a blade.
    pub fn of(facts: &Facts) -> Self {
        let mut all = Self::default();
        for gpu in &facts.gpus {
            all.0.extend(Self::of_gpu(gpu).0);
        }
        for pci in facts.pci.iter().filter(|pci| pci.has_aer) {
            let gpu = facts.gpus.iter().find(|gpu| gpu.identity.pci.as_ref() == Some(&pci.address));
            let Some(who) = gpu.map(|gpu| gpu.uuid.clone()).or_else(|| super::device(&pci.address)) else {
                continue;
            };
            all.put(&who, Counter::AerCorrected, Some(bus::aer_corrected(pci)));
            all.put(&who, Counter::AerUncorrected, Some(bus::aer_uncorrected(pci)));
        }
        for dimm in facts.edac.iter().flat_map(|controller| &controller.dimms) {
            let Some(who) = super::device(&dimm.name) else { continue };
            all.put(&who, Counter::EdacCorrected, dimm.corrected);
            all.put(&who, Counter::EdacUncorrected, dimm.uncorrected);
        }
        for port in &facts.ib_ports {
            let Some(who) = super::device(&port.id()) else { continue };
            let count = |name: &str| port.counters.get(name).copied();
            all.put(&who, Counter::IbSymbolErrors, count("symbol_error"));
            all.put(&who, Counter::IbLinkRecovery, count("link_error_recovery"));
            all.put(&who, Counter::IbLinkDowned, count("link_downed"));
        }
        for nic in &facts.nics {
            let Some(who) = super::device(&nic.name) else { continue };
            all.put(&who, Counter::CarrierChanges, nic.carrier_changes);
        }
        all
    }

    /// Counters that NVML has for one GPU.
    pub fn of_gpu(gpu: &GpuFacts) -> Self {
        let mut all = Self::default();
        let ecc = &gpu.ecc.volatile;
        let who = &gpu.uuid;
        let corrected = gpu::sum(ecc.total.corrected, ecc.sram.corrected, ecc.dram.corrected);
        let uncorrected = gpu::sum(ecc.total.uncorrected, ecc.sram.uncorrected, ecc.dram.uncorrected);
        all.put(who, Counter::EccCorrected, corrected);
        all.put(who, Counter::EccUncorrected, uncorrected);
        if let Some(rows) = &gpu.remapped_rows {
            all.put(who, Counter::RowsRemapped, Some(u64::from(rows.uncorrected)));
            all.put(who, Counter::RemapPending, Some(u64::from(rows.pending)));
            all.put(who, Counter::RemapFailure, Some(u64::from(rows.failure)));
        }
        let retired =
            gpu.retired_pages.map(|pages| u64::from(pages.single_bit) + u64::from(pages.double_bit));
        all.put(who, Counter::RetiredPages, retired);
        all.put(who, Counter::NvlinkErrors, link::error_sum(gpu));
        if !gpu.nvlinks.is_empty() {
            let down = gpu.nvlinks.iter().filter(|link| link.up == Some(false)).count();
            all.put(who, Counter::NvlinksDown, Some(down as u64));
        }
        all.put(who, Counter::PcieReplays, gpu.pcie.replays);
        all
    }

    fn put(&mut self, who: &DeviceId, counter: Counter, value: Option<u64>) {
        if let Some(value) = value {
            self.0.insert((who.clone(), counter), value);
        }
    }

    /// Takes over what a later look gave; a device that it lacks keeps what was last known of it.
    pub fn update(&mut self, later: Counters) {
        self.0.extend(later.0);
    }

    pub fn get(&self, who: &DeviceId, counter: Counter) -> Option<u64> {
        self.0.get(&(who.clone(), counter)).copied()
    }

    /// In the order of devices.
    pub fn iter(&self) -> impl Iterator<Item = (&DeviceId, Counter, u64)> {
        self.0.iter().map(|((device, counter), value)| (device, *counter, *value))
    }
}

/// How a counter's increase is judged.
enum Rule {
    /// By how often, against this metric's threshold.
    Rate(&'static str),
    /// By how much, against this metric's threshold.
    Count(&'static str),
    /// Worth knowing only.
    Info,
}

struct Judged {
    rule: Rule,
    code: &'static str,
    action: Action,
    words: &'static str,
}

fn rule(counter: Counter) -> Judged {
    use Rule::*;
    let of = |rule, code, action, words| Judged { rule, code, action, words };
    match counter {
        Counter::EccCorrected => of(
            Rate("ecc.correctable.rate"),
            "ecc-correctable-rate",
            Action::DrainAndTest,
            "corrected ECC errors",
        ),
        Counter::EccUncorrected => of(
            Count("ecc.uncorrectable.count"),
            "ecc-uncorrectable",
            Action::ResetGpu,
            "uncorrectable ECC errors",
        ),
        Counter::RowsRemapped => of(
            Count("row_remap.uncorrectable.count"),
            "row-remap-uncorrectable",
            Action::ResetGpu,
            "rows remapped after uncorrectable errors",
        ),
        Counter::RemapPending => of(
            Count("row_remap.pending"),
            "row-remap-pending",
            Action::ResetGpu,
            "a row remap that waits for a reset",
        ),
        Counter::RemapFailure => of(
            Count("row_remap.failure"),
            "row-remap-failure",
            Action::Replace,
            "a row that could not be remapped",
        ),
        Counter::RetiredPages => of(Info, "retired-pages", Action::None, "memory pages retired"),
        Counter::NvlinkErrors => {
            of(Rate("nvlink.error.rate"), "nvlink-errors", Action::CheckLink, "NVLink errors")
        }
        Counter::NvlinksDown => {
            of(Count("nvlink.inactive"), "nvlink-down", Action::CheckLink, "NVLinks gone down")
        }
        Counter::PcieReplays => {
            of(Rate("pcie.replay.rate"), "pcie-replays", Action::CheckLink, "PCIe replays")
        }
        Counter::AerCorrected => of(
            Rate("pcie.aer.correctable.rate"),
            "pcie-aer-correctable",
            Action::CheckLink,
            "corrected PCIe errors",
        ),
        Counter::AerUncorrected => of(
            Count("pcie.aer.uncorrectable.count"),
            "pcie-aer-uncorrectable",
            Action::CheckLink,
            "uncorrected PCIe errors",
        ),
        Counter::EdacCorrected => of(
            Rate("edac.correctable.rate"),
            "edac-correctable",
            Action::DrainAndTest,
            "corrected memory errors",
        ),
        Counter::EdacUncorrected => of(
            Count("edac.uncorrectable.count"),
            "edac-uncorrectable",
            Action::Replace,
            "uncorrected memory errors",
        ),
        Counter::IbSymbolErrors => {
            of(Rate("ib.symbol_error.rate"), "ib-symbol-errors", Action::CheckLink, "symbol errors")
        }
        Counter::IbLinkRecovery => {
            of(Rate("ib.link_recovery.rate"), "ib-link-recovery", Action::CheckLink, "link error recoveries")
        }
        Counter::IbLinkDowned => of(
            Count("ib.link_downed.count"),
            "ib-link-downed",
            Action::CheckLink,
            "times that the link went down",
        ),
        Counter::CarrierChanges => of(Info, "nic-carrier-changes", Action::None, "carrier changes"),
    }
}

/// Shortest time that rates are taken over, seconds: one event in the second between two looks is no storm.
const MIN_SECONDS: f64 = 60.0;

/// What counted up from `before` to `after`, `seconds` later. A counter that fell was reset in between: what it
/// shows now has come since. Devices that are only in one of the two are not judged ([`vanished`] does).
pub fn deltas(
    before: &Counters,
    after: &Counters,
    seconds: f64,
    sku: Option<&str>,
    table: &Table,
) -> Vec<Finding> {
    let mut judge = Judge::new(table, sku.and_then(|sku| table.profile(sku)));
    let hours = if seconds.is_finite() { seconds.max(MIN_SECONDS) } else { MIN_SECONDS } / 3600.0;
    for (who, counter, now) in after.iter() {
        let Some(then) = before.get(who, counter) else { continue };
        let grown = now.checked_sub(then).unwrap_or(now);
        if grown == 0 {
            continue;
        }
        let Judged { rule, code, action, words } = rule(counter);
        let what = format!("{grown} {words} in {seconds:.0} s");
        let told = match rule {
            Rule::Rate(metric) => {
                let reading = Reading::new(metric, grown as f64 / hours, Unit::PerHour);
                judge.reading(code, Some(who.clone()), action, &what, reading)
            }
            Rule::Count(metric) => {
                let reading = Reading::new(metric, grown as f64, Unit::Count);
                judge.reading(code, Some(who.clone()), action, &what, reading)
            }
            Rule::Info => false,
        };
        if !told {
            judge.info(code, Some(who.clone()), what);
        }
    }
    judge.end()
}

/// GPUs and drives that were there and are not any more.
pub fn vanished(before: &Facts, after: &Facts, table: &Table) -> Vec<Finding> {
    let mut judge = Judge::new(table, profile(before, table));
    for gpu in &before.gpus {
        let here = after.gpus.iter().any(|other| other.uuid == gpu.uuid);
        // A gap has a finding of its own.
        let gap = after.gpu_gaps.iter().any(|gap| {
            gap.uuid.as_ref() == Some(&gpu.uuid) || gap.pci.is_some() && gap.pci == gpu.identity.pci
        });
        let looked = after.source("nvml").is_none_or(|nvml| nvml.state == crate::facts::SourceState::Ok);
        if !here && !gap && looked {
            let detail = format!("{} was there before and is not any more", gpu.label());
            judge.fault("gpu-lost", Some(gpu.uuid.clone()), Action::Reboot, detail);
        }
    }
    for drive in &before.nvme {
        let looked = after.source("nvme").is_none_or(|nvme| nvme.state == crate::facts::SourceState::Ok);
        if looked && !after.nvme.iter().any(|other| other.name == drive.name) {
            let who = drive.serial.as_deref().and_then(super::device).or_else(|| super::device(&drive.name));
            let detail = format!("{} was there before and is not any more", drive.name);
            judge.fault("nvme-lost", who, Action::Reboot, detail);
        }
    }
    judge.end()
}

/// Samples of one GPU under load, in the order of time: hardware slowdowns as a rate, the least margin, and the
/// generation of its PCIe link, which must not be lowered while the GPU works. Samples of an idle GPU (less than
/// half busy) do not count for the link.
pub fn throttling(
    samples: &[GpuSample],
    generation_wanted: Option<u32>,
    sku: Option<&str>,
    table: &Table,
) -> Vec<Finding> {
    let mut judge = Judge::new(table, sku.and_then(|sku| table.profile(sku)));
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return Vec::new() };
    let who = || Some(first.uuid.clone());
    let slowed = |sample: &GpuSample| {
        let hard = [ClockReason::HwSlowdown, ClockReason::HwThermalSlowdown, ClockReason::HwPowerBrake];
        hard.iter().any(|reason| sample.event_reasons.contains(reason))
    };
    // A slowdown that lasts over many samples is one.
    let begun = samples.windows(2).filter(|pair| !slowed(&pair[0]) && slowed(&pair[1])).count()
        + usize::from(slowed(first));
    if begun > 0 {
        let seconds = ((last.at_ms - first.at_ms) as f64 / 1000.0).max(MIN_SECONDS);
        let share = samples.iter().filter(|sample| slowed(sample)).count() * 100 / samples.len();
        let mut reasons: Vec<&str> = samples
            .iter()
            .filter(|sample| slowed(sample))
            .flat_map(|sample| &sample.event_reasons)
            .filter(|reason| !matches!(reason, ClockReason::SwPowerCap | ClockReason::GpuIdle))
            .map(|reason| reason.as_str())
            .collect();
        reasons.sort_unstable();
        reasons.dedup();
        let what = format!("{begun} hardware slowdowns, {share} % of the time ({})", reasons.join(", "));
        let reading = Reading::new("throttle.hw.rate", begun as f64 * 3600.0 / seconds, Unit::PerHour);
        if !judge.reading("throttle-hw", who(), Action::DrainAndTest, &what, reading) {
            judge.info("throttle-hw", who(), what);
        }
    }
    if let Some(least) = samples.iter().filter_map(|sample| sample.margin_c).min() {
        let reading = Reading::new("temperature.margin", f64::from(least), Unit::CelsiusMargin);
        let what = "least margin to the temperature limit";
        judge.reading("thermal-margin", who(), Action::DrainAndTest, what, reading);
    }
    let busy =
        samples.iter().filter(|sample| sample.utilization_percent.is_some_and(|percent| percent >= 50));
    let best = busy.filter_map(|sample| sample.pcie_generation).max();
    if let (Some(best), Some(wanted)) = (best, generation_wanted)
        && best < wanted
    {
        let detail = format!("PCIe stays at Gen{best} under load, GPU and slot can do Gen{wanted}");
        judge.fault("pcie-generation", who(), Action::CheckLink, detail);
    }
    judge.end()
}
