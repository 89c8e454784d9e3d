//! What goes on beside the tests: telemetry of the GPUs, and the kernel log.

use std::collections::BTreeMap;
use std::time::Duration;

use whetstone_burnin::suite::{PowerShape, TestKind};
use whetstone_model::action::{Action, Severity};
use whetstone_model::device::{Device, DeviceId};
use whetstone_model::evidence::{Finding, Reading};
use whetstone_model::facts::{Facts, GpuFacts, GpuSample};
use whetstone_model::health;
use whetstone_model::report::{DeviceReading, Series, TestOutcome, TestResult};
use whetstone_model::threshold::Table;
use whetstone_model::unit::Unit;

use super::RunOptions;
use super::kernel_log::{KernelLines, KernelLog};
use crate::probe::telemetry::Sampler;

/// How often telemetry is read.
const INTERVAL: Duration = Duration::from_secs(1);
/// Points that a report keeps of one series.
const MAX_POINTS: usize = 2_000;
/// A GPU needs this many samples under load to come up to its power before a power test judges it.
const WARM_UP: usize = 3;
/// A sample counts as under load from this utilization on, percent.
const BUSY: u32 = 50;

/// One number of a sample as a report shows it over time.
type Shown = (&'static str, Unit, fn(&GpuSample) -> Option<f64>);
const SHOWN: [Shown; 6] = [
    ("temperature.gpu", Unit::Celsius, |s| s.temperature_c.map(f64::from)),
    ("temperature.memory", Unit::Celsius, |s| s.memory_c.map(f64::from)),
    ("temperature.margin", Unit::CelsiusMargin, |s| s.margin_c.map(f64::from)),
    ("power.draw", Unit::Watt, |s| s.power_w),
    ("clock.sm", Unit::MegaHertz, |s| s.sm_mhz.map(f64::from)),
    ("clock.memory", Unit::MegaHertz, |s| s.memory_mhz.map(f64::from)),
];

/// The watchers of a run.
pub(super) struct Watch {
    sampler: Option<Sampler>,
    /// Samples of the running test.
    current: Vec<GpuSample>,
    series: BTreeMap<DeviceId, Thinned>,
    started_ms: i64,
    kernel_log: KernelLog,
}

/// The test whose load is summed up.
pub(super) struct Under<'a> {
    pub kind: &'a TestKind,
    /// Outcomes of its devices: one that did not pass had no load to judge.
    pub result: &'a TestResult,
    /// They name the devices of kernel lines.
    pub devices: &'a [Device],
    /// As they were before the test.
    pub gpus: &'a [GpuFacts],
    pub sku: Option<&'a str>,
    pub table: &'a Table,
    /// A process of the test was ended by us, which drivers note in the kernel log.
    pub killed: bool,
}

/// What was seen during one test.
pub(super) struct Load {
    pub readings: Vec<DeviceReading>,
    pub findings: Vec<Finding>,
    /// Lines of the kernel log that say something, with their device.
    pub kernel_lines: KernelLines,
    /// GPUs whose power the test was to judge and could not.
    pub not_judged: Vec<DeviceId>,
}

/// What a run's watching leaves at its end.
pub(super) struct Ended {
    pub series: Vec<Series>,
    /// From the kernel log, after the last test.
    pub findings: Vec<Finding>,
    /// Why the kernel log is not known in whole, if so.
    pub log_gap: Option<String>,
}

impl Watch {
    pub fn start(options: &RunOptions, facts: &Facts, started_ms: i64) -> Watch {
        Watch {
            sampler: Sampler::start(&options.probe, INTERVAL).ok(),
            current: Vec::new(),
            series: BTreeMap::new(),
            started_ms,
            kernel_log: KernelLog::start(&options.kmsg, facts),
        }
    }

    /// Takes what waits; called often enough that the sampler never has to drop.
    pub fn poll(&mut self) {
        let Some(sampler) = &self.sampler else { return };
        for sample in sampler.drain() {
            self.series.entry(sample.uuid.clone()).or_default().push(&sample, self.started_ms);
            self.current.push(sample);
        }
    }

    /// Why the kernel log cannot be watched, if so.
    pub fn blind(&self) -> Option<&str> {
        self.kernel_log.unreadable()
    }

    /// A test begins: what was seen before is not its doing.
    pub fn test_begins(&mut self, devices: &[Device]) -> (KernelLines, Vec<Finding>) {
        self.poll();
        self.current.clear();
        self.kernel_log.take(devices, false)
    }

    /// What was seen since the test began.
    pub fn test_ended(&mut self, under: &Under<'_>) -> Load {
        let samples = std::mem::take(&mut self.current);
        let (kernel_lines, findings) = self.kernel_log.take(under.devices, under.killed);
        let mut load = Load { readings: Vec::new(), findings, kernel_lines, not_judged: Vec::new() };
        let loads_gpus =
            matches!(under.kind, TestKind::GpuMemory(_) | TestKind::GpuGemm(_) | TestKind::GpuPower(_));
        if !loads_gpus {
            return load;
        }
        let passed = |gpu: &&GpuFacts| {
            under.result.devices.iter().any(|d| d.device == gpu.uuid && d.outcome == TestOutcome::Pass)
        };
        for gpu in under.gpus.iter().filter(passed) {
            let mine: Vec<GpuSample> = samples.iter().filter(|s| s.uuid == gpu.uuid).cloned().collect();
            load.readings.extend(summary(&gpu.uuid, &mine));
            load.findings.extend(health::throttling(&mine, gpu.pcie.max_generation, under.sku, under.table));
            match held_power(under.kind, gpu, &mine) {
                Held::Enough => {}
                Held::Low(finding) => load.findings.push(*finding),
                Held::Unknown => load.not_judged.push(gpu.uuid.clone()),
            }
        }
        load
    }

    /// Ends the watching.
    pub fn stop(&mut self, devices: &[Device]) -> Ended {
        self.poll();
        self.sampler = None;
        let log_gap = self.kernel_log.stop();
        let (_, findings) = self.kernel_log.take(devices, true);
        let series = std::mem::take(&mut self.series);
        let series = series.into_iter().flat_map(|(device, kept)| kept.series(device)).collect();
        Ended { series, findings, log_gap }
    }
}

/// Telemetry of one GPU at a resolution that fits a report however long the run is.
#[derive(Default)]
struct Thinned {
    points: Vec<(u64, [Option<f64>; SHOWN.len()])>,
    /// Of so many samples one is kept; doubles when the points are too many.
    every: usize,
    passed: usize,
}

impl Thinned {
    fn push(&mut self, sample: &GpuSample, started_ms: i64) {
        let every = self.every.max(1);
        self.passed += 1;
        if !(self.passed - 1).is_multiple_of(every) {
            return;
        }
        let at = u64::try_from(sample.at_ms - started_ms).unwrap_or(0);
        self.points.push((at, SHOWN.map(|(_, _, of)| of(sample))));
        if self.points.len() >= MAX_POINTS {
            let mut index = 0;
            self.points.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.every = every * 2;
        }
    }

    fn series(self, device: DeviceId) -> impl Iterator<Item = Series> {
        SHOWN.iter().enumerate().filter_map(move |(index, (metric, unit, _))| {
            let points: Vec<(u64, f64)> =
                self.points.iter().filter_map(|(at, values)| Some((*at, values[index]?))).collect();
            let (device, metric) = (Some(device.clone()), (*metric).to_owned());
            (!points.is_empty()).then_some(Series { device, metric, unit: *unit, points })
        })
    }
}

/// Highest temperature, mean power and clock of one GPU under a test's load. The margin is `throttling`'s to judge.
fn summary(device: &DeviceId, samples: &[GpuSample]) -> Vec<DeviceReading> {
    let mean = |of: fn(&GpuSample) -> Option<f64>| {
        let (sum, n) = samples.iter().filter_map(of).fold((0.0, 0u32), |(sum, n), v| (sum + v, n + 1));
        (n > 0).then(|| sum / f64::from(n))
    };
    let hottest = samples.iter().filter_map(|s| s.temperature_c).max().map(f64::from);
    [
        ("temperature.gpu", hottest, Unit::Celsius),
        ("power.mean", mean(|s| s.power_w), Unit::Watt),
        ("clock.sm", mean(|s| s.sm_mhz.map(f64::from)), Unit::MegaHertz),
    ]
    .into_iter()
    .filter_map(|(metric, value, unit)| {
        Some(DeviceReading { device: Some(device.clone()), reading: Reading::new(metric, value?, unit) })
    })
    .collect()
}

/// How a GPU held its power.
#[derive(Debug, PartialEq)]
enum Held {
    /// As much as asked for, or nothing was asked for.
    Enough,
    Low(Box<Finding>),
    /// It could not be read.
    Unknown,
}

/// A GPU that does not reach its power under a load made for it does less work than it was bought for.
fn held_power(kind: &TestKind, gpu: &GpuFacts, samples: &[GpuSample]) -> Held {
    let TestKind::GpuPower(params) = kind else { return Held::Enough };
    if params.shape != PowerShape::Hold || params.min_fraction_of_limit == 0.0 {
        return Held::Enough;
    }
    let busy = samples.iter().filter(|s| s.utilization_percent.is_none_or(|percent| percent >= BUSY));
    let warm: Vec<f64> = busy.skip(WARM_UP).filter_map(|s| s.power_w).collect();
    let Some(limit) = gpu.power.enforced_limit_w.filter(|limit| *limit > 0.0) else { return Held::Unknown };
    if warm.is_empty() {
        return Held::Unknown;
    }
    let mean = warm.iter().sum::<f64>() / warm.len() as f64;
    let floor = params.min_fraction_of_limit * limit;
    if mean >= floor {
        return Held::Enough;
    }
    Held::Low(Box::new(Finding {
        code: "power-low".to_owned(),
        device: Some(gpu.uuid.clone()),
        severity: Severity::Fault,
        action: Action::DrainAndTest,
        detail: format!("{mean:.0} W under full load, under {floor:.0} W (limit {limit:.0} W)"),
        reading: Some(Reading::new("power.mean", mean, Unit::Watt)),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use whetstone_burnin::suite::GpuPowerParams;

    fn gpu() -> GpuFacts {
        let mut gpu: GpuFacts =
            serde_json::from_value(serde_json::json!({ "uuid": "GPU-0", "index": 0 })).unwrap();
        gpu.power.enforced_limit_w = Some(700.0);
        gpu
    }

    fn sample(at_s: i64, power: f64) -> GpuSample {
        let mut gpu = gpu();
        gpu.power.draw_w = Some(power);
        GpuSample::of(&gpu, at_s * 1000)
    }

    #[test]
    fn a_long_run_keeps_bounded_series_that_span_all_of_it() {
        let mut kept = Thinned::default();
        for second in 0..100_000 {
            kept.push(&sample(second, 100.0), 0);
        }
        let series: Vec<Series> = kept.series(DeviceId::new("GPU-0").unwrap()).collect();
        let points = &series.iter().find(|s| s.metric == "power.draw").unwrap().points;
        assert!(points.len() < MAX_POINTS && points.len() > MAX_POINTS / 4, "{}", points.len());
        assert!(points[0].0 == 0 && points[points.len() - 1].0 > 99_000_000);
    }

    #[test]
    fn low_power_is_judged_after_the_warm_up_under_load_and_only_when_held() {
        let kind = |shape| TestKind::GpuPower(GpuPowerParams { shape, ..Default::default() });
        let judge = |shape, watts: &[f64]| {
            let samples: Vec<GpuSample> = watts.iter().map(|w| sample(0, *w)).collect();
            held_power(&kind(shape), &gpu(), &samples)
        };
        assert_eq!(judge(PowerShape::Hold, &[80.0, 200.0, 500.0, 690.0, 690.0]), Held::Enough);
        let weak = [80.0, 400.0, 400.0, 400.0, 400.0];
        assert_eq!(judge(PowerShape::Pulse, &weak), Held::Enough);
        assert!(matches!(judge(PowerShape::Hold, &weak), Held::Low(f) if f.code == "power-low"));
        assert_eq!(judge(PowerShape::Hold, &[400.0]), Held::Unknown, "too short to tell");
        let mut idle: Vec<GpuSample> = [690.0, 690.0, 690.0, 690.0, 60.0, 60.0].map(|w| sample(0, w)).into();
        for (index, sample) in idle.iter_mut().enumerate() {
            sample.utilization_percent = Some(if index < 4 { 100 } else { 0 });
        }
        assert_eq!(
            held_power(&kind(PowerShape::Hold), &gpu(), &idle),
            Held::Enough,
            "idle samples do not count"
        );
    }
}
