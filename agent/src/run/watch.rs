//! What goes on beside the tests: telemetry of the GPUs, and the kernel log.

use std::collections::BTreeMap;
use std::time::Duration;

use whetstone_burnin::suite::{PowerShape, TestKind};
use whetstone_model::action::{Action, Severity};
use whetstone_model::device::DeviceId;
use whetstone_model::evidence::{Finding, Reading};
use whetstone_model::facts::{Facts, GpuFacts, GpuSample};
use whetstone_model::health;
use whetstone_model::report::{DeviceReading, Series};
use whetstone_model::threshold::Table;
use whetstone_model::unit::Unit;

use super::RunOptions;
use super::kernel_log::KernelLog;
use crate::probe::telemetry::Sampler;

/// How often telemetry is read.
const INTERVAL: Duration = Duration::from_secs(1);
/// Points that a report keeps of one series.
const MAX_POINTS: usize = 2_000;
/// A GPU needs this many samples to come up to its power before a power test judges it.
const WARM_UP: usize = 3;

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

/// What was seen during one test.
pub(super) struct Load {
    pub readings: Vec<DeviceReading>,
    pub findings: Vec<Finding>,
    /// Lines of the kernel log that say something, with their device.
    pub kernel_lines: Vec<(Option<DeviceId>, String)>,
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
    pub fn test_begins(&mut self, facts: &Facts) -> Vec<Finding> {
        self.poll();
        self.current.clear();
        self.kernel_log.take(facts).1
    }

    /// What was seen since the test began. `facts` name the devices of kernel lines.
    pub fn test_ended(&mut self, kind: &TestKind, facts: &Facts, sku: Option<&str>, table: &Table) -> Load {
        self.poll();
        let samples = std::mem::take(&mut self.current);
        let (mut readings, mut findings) = (Vec::new(), Vec::new());
        let loads_gpus =
            matches!(kind, TestKind::GpuMemory(_) | TestKind::GpuGemm(_) | TestKind::GpuPower(_));
        if loads_gpus {
            for gpu in &facts.gpus {
                let mine: Vec<GpuSample> = samples.iter().filter(|s| s.uuid == gpu.uuid).cloned().collect();
                readings.extend(summary(&gpu.uuid, &mine));
                findings.extend(low_power(kind, gpu, &mine));
                findings.extend(health::throttling(&mine, gpu.pcie.max_generation, sku, table));
            }
        }
        let (kernel_lines, faults) = self.kernel_log.take(facts);
        findings.extend(faults);
        Load { readings, findings, kernel_lines }
    }

    /// Ends the watching; the telemetry of the whole run.
    pub fn stop(&mut self) -> Vec<Series> {
        self.poll();
        self.sampler = None;
        std::mem::take(&mut self.series).into_iter().flat_map(|(device, kept)| kept.series(device)).collect()
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

/// Highest temperature, lowest margin, mean power and clock of one GPU under a test's load.
fn summary(device: &DeviceId, samples: &[GpuSample]) -> Vec<DeviceReading> {
    let mean = |of: fn(&GpuSample) -> Option<f64>| {
        let (sum, n) = samples.iter().filter_map(of).fold((0.0, 0u32), |(sum, n), v| (sum + v, n + 1));
        (n > 0).then(|| sum / f64::from(n))
    };
    let hottest = samples.iter().filter_map(|s| s.temperature_c).max().map(f64::from);
    let margin = samples.iter().filter_map(|s| s.margin_c).min().map(f64::from);
    [
        ("temperature.gpu", hottest, Unit::Celsius),
        ("temperature.margin", margin, Unit::CelsiusMargin),
        ("power.mean", mean(|s| s.power_w), Unit::Watt),
        ("clock.sm", mean(|s| s.sm_mhz.map(f64::from)), Unit::MegaHertz),
    ]
    .into_iter()
    .filter_map(|(metric, value, unit)| {
        Some(DeviceReading { device: Some(device.clone()), reading: Reading::new(metric, value?, unit) })
    })
    .collect()
}

/// A GPU that does not reach its power under a load made for it does less work than it was bought for.
fn low_power(kind: &TestKind, gpu: &GpuFacts, samples: &[GpuSample]) -> Option<Finding> {
    let TestKind::GpuPower(params) = kind else { return None };
    if params.shape != PowerShape::Hold || params.min_fraction_of_limit == 0.0 {
        return None;
    }
    let warm: Vec<f64> = samples.iter().skip(WARM_UP).filter_map(|s| s.power_w).collect();
    let limit = gpu.power.enforced_limit_w?;
    if warm.is_empty() || limit <= 0.0 {
        return None;
    }
    let mean = warm.iter().sum::<f64>() / warm.len() as f64;
    let floor = params.min_fraction_of_limit * limit;
    (mean < floor).then(|| Finding {
        code: "power-low".to_owned(),
        device: Some(gpu.uuid.clone()),
        severity: Severity::Fault,
        action: Action::DrainAndTest,
        detail: format!("{mean:.0} W under full load, under {floor:.0} W (limit {limit:.0} W)"),
        reading: Some(Reading::new("power.mean", mean, Unit::Watt)),
    })
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
    fn low_power_is_judged_after_the_warm_up_and_only_when_held() {
        let kind = |shape| TestKind::GpuPower(GpuPowerParams { shape, ..Default::default() });
        let ramp: Vec<GpuSample> = [80.0, 200.0, 500.0, 690.0, 690.0].map(|w| sample(0, w)).into();
        assert_eq!(low_power(&kind(PowerShape::Hold), &gpu(), &ramp), None);
        let weak: Vec<GpuSample> = [80.0, 400.0, 400.0, 400.0, 400.0].map(|w| sample(0, w)).into();
        assert_eq!(low_power(&kind(PowerShape::Pulse), &gpu(), &weak), None);
        assert_eq!(low_power(&kind(PowerShape::Hold), &gpu(), &weak).unwrap().code, "power-low");
    }
}
