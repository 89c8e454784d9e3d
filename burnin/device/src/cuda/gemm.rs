//! Silent data corruption: matrix products whose one right result is known to the bit.
//!
//! For each format, on the tensor cores and on the CUDA cores that take it: (0) the accumulator's width p is measured on this chip; (a) exact integers: every block of every SM
//! must have the CPU's digest, and the results are read back by other SMs; (b) random full-range data: all SMs, all
//! iterations and all rounds must agree; (c) the digests of (b) go into the report, so that GPUs of one model can be
//! compared. Every launch fills all SMs with the same tile, so a wrong one names its SM.

pub mod kernel;
mod layers;
pub mod speed;
pub mod wrong;

use std::time::{Duration, Instant};

use whetstone_burnin::protocol::{Event, Sink};
use whetstone_burnin::suite::{GemmFormat, GpuGemmParams};
use whetstone_model::action::{Action, Severity};
use whetstone_model::evidence::{Finding, Reading};
use whetstone_model::report::{DeviceReading, Profile};
use whetstone_model::unit::Unit;

use super::driver::{Gpu, on_one_gpu};
use super::errors::CudaError;
use crate::{Context, Done};
use kernel::{Bench, Kernel, Path, Pipe};
use layers::{Layers, Stop};

/// Progress is said no oftener than this.
const SAY_EVERY: Duration = Duration::from_millis(250);

pub fn run<S: Sink>(params: &GpuGemmParams, context: &Context<'_, S>) -> Done {
    on_one_gpu(context, |gpu| Test { params, context, gpu, said: std::cell::Cell::new(None) }.run())
}

/// The test on one GPU.
struct Test<'a, S: Sink> {
    params: &'a GpuGemmParams,
    context: &'a Context<'a, S>,
    gpu: &'a Gpu,
    said: std::cell::Cell<Option<Instant>>,
}

/// How one format ended.
enum Ended {
    /// What was found wrong, one line each; empty = all right.
    Judged(Vec<String>),
    /// Why it could not be judged.
    Not(String),
    /// The chip or the images have no kernel for it.
    Absent,
}

impl<S: Sink> Test<'_, S> {
    fn run(&self) -> Result<Done, CudaError> {
        let formats = self.params.formats.iter();
        let units: Vec<(GemmFormat, Pipe)> =
            formats.flat_map(|format| Pipe::of(*format).iter().map(|pipe| (*format, *pipe))).collect();
        let (mut wrong, mut not_judged, mut judged) = (Vec::new(), Vec::new(), 0);
        for (i, (format, pipe)) in units.iter().enumerate() {
            let left = self.context.deadline.saturating_duration_since(Instant::now());
            let share = left / (units.len() - i) as u32;
            let part = Part { index: i, of: units.len(), until: Instant::now() + share };
            let name = pipe.metric(*format);
            match self.format(*format, *pipe, &part)? {
                Ended::Judged(lines) => {
                    judged += 1;
                    wrong.extend(lines);
                }
                Ended::Not(why) => not_judged.push(format!("{name}: {why}")),
                Ended::Absent => self.context.sink.note(format!(
                    "{}: {name} was not tested, no kernel of this build has it for this chip",
                    self.gpu.target.label
                )),
            }
        }
        let label = &self.gpu.target.label;
        Ok(match (wrong.is_empty(), not_judged.is_empty()) {
            (false, _) => Done::fail(format!("{label}: {}", wrong.join("; "))),
            (true, false) => Done::inconclusive(format!("{label}: {}", not_judged.join("; "))),
            (true, true) if judged == 0 => Done::inconclusive(format!(
                "{label}: none of the formats has a kernel for {} (compute capability {}.{})",
                self.gpu.name, self.gpu.capability.0, self.gpu.capability.1
            )),
            (true, true) => Done::pass(),
        })
    }

    /// One format on one sort of multiplier, by the best path whose kernel does what it should on this chip.
    fn format(&self, format: GemmFormat, pipe: Pipe, part: &Part) -> Result<Ended, CudaError> {
        let mut after = None;
        let mut distrusted: Vec<String> = Vec::new();
        while let Some(kernel) = Kernel::find(self.gpu, format, pipe, after)? {
            let path = kernel.path;
            match self.path(kernel, part)? {
                Err(why) => {
                    self.distrust(format, path, &why);
                    distrusted.push(format!("{}: {why}", path.as_str()));
                    after = Some(path);
                }
                Ok(ended) => return Ok(ended),
            }
        }
        if distrusted.is_empty() { Ok(Ended::Absent) } else { Ok(Ended::Not(distrusted.join(", "))) }
    }

    /// The outer error is CUDA's; the inner one says why this path's kernel is not to be trusted on this chip.
    fn path(&self, kernel: Kernel, part: &Part) -> Result<Result<Ended, String>, CudaError> {
        let (format, path) = (kernel.format, kernel.path);
        if let Some(remark) = kernel.remark(self.gpu.capability) {
            self.context.sink.note(format!("{}: {remark}", self.gpu.target.label));
        }
        self.say(part, 0.0, &format!("{} ({}): accumulator width", format.as_str(), path.as_str()));
        let max_k = self.params.max_k as usize / 64 * 64;
        let bench = Bench::new(self.gpu, kernel, self.params.blocks_per_sm, max_k)?;
        let mut layers = match Layers::new(&bench, self.params, self.context.seed)? {
            Ok(layers) => layers,
            Err(Stop::Distrust(why)) => return Ok(Err(why)),
        };
        let begun = Instant::now();
        let mut rounds = 0;
        loop {
            let spent = begun.elapsed().as_secs_f64();
            let share = part.until.saturating_duration_since(begun).as_secs_f64();
            let by_time = if self.params.fill_budget { spent / share.max(1e-3) } else { 0.0 };
            let by_rounds = f64::from(rounds) / f64::from(self.params.min_rounds.max(1));
            let done = if self.params.fill_budget { by_time } else { by_rounds };
            self.say(part, done, &format!("{} ({}): round {}", format.as_str(), path.as_str(), rounds + 1));
            if let Err(Stop::Distrust(why)) = layers.round(rounds)? {
                return Ok(Err(why));
            }
            rounds += 1;
            let now = Instant::now();
            let enough = rounds >= self.params.min_rounds && (!self.params.fill_budget || now >= part.until);
            // Out of time: what was done stands, and each round judges for itself.
            if enough || now >= self.context.deadline {
                break;
            }
        }
        Ok(Ok(Ended::Judged(self.report(&bench, &layers, rounds))))
    }

    /// Emits what a format gave; returns what was wrong.
    fn report(&self, bench: &Bench<'_>, layers: &Layers<'_, '_>, rounds: u32) -> Vec<String> {
        let device = Some(self.gpu.target.uuid.clone());
        let (format, path) = (bench.kernel.format.as_str(), bench.kernel.path.as_str());
        let name = bench.kernel.pipe.metric(bench.kernel.format);
        let sink = self.context.sink;
        let reading = |metric: String, value: f64, unit: Unit| {
            sink.emit(Event::Reading(DeviceReading {
                device: device.clone(),
                reading: Reading::new(metric, value, unit),
            }));
        };
        let rate_unit = if bench.kernel.format == GemmFormat::S8 { Unit::Tops } else { Unit::Tflops };
        if let Some(rate) = layers.throughput() {
            reading(format!("gemm.{name}.throughput"), rate / 1e12, rate_unit);
        }
        reading(format!("gemm.{name}.accumulator_bits"), f64::from(layers.width), Unit::Count);
        reading(format!("gemm.{name}.verified_tiles"), layers.verified_tiles as f64, Unit::Count);
        let per_sm = layers.speed.profile(self.gpu.sms);
        sink.emit(Event::Profile(Profile {
            device: device.clone(),
            metric: format!("gemm.{name}.sm_throughput"),
            unit: rate_unit,
            index: "sm".to_owned(),
            values: per_sm.into_iter().map(|rate| rate.map(|r| r / 1e12)).collect(),
        }));
        if let Some(value) = layers.random_digest() {
            sink.emit(Event::Digest(whetstone_burnin::protocol::Digest {
                device: self.gpu.target.uuid.clone(),
                key: layers.digest_key(self.gpu),
                value: format!("{value:016x}"),
            }));
        }
        sink.note(format!(
            "{}: {format} ran on {path}, accumulator {} bits, {rounds} rounds, {} tiles checked to the bit",
            self.gpu.target.label, layers.width, layers.verified_tiles
        ));
        let missing: Vec<String> =
            (0..self.gpu.sms).filter(|sm| !layers.sms.contains(sm)).map(|sm| sm.to_string()).collect();
        if !missing.is_empty() {
            // SM ids need not be contiguous on chips with disabled units, so this is no verdict.
            sink.note(format!(
                "{}: {format}: no block ran on SMs {}",
                self.gpu.target.label,
                missing.join(", ")
            ));
        }

        let mut lines = Vec::new();
        for (damage, layer) in layers.damages() {
            let text = format!("gemm {format} ({path}): {} ({layer})", damage.describe());
            let first = damage.first(bench.kernel.columns);
            sink.emit(Event::Finding(Finding {
                code: "sdc".to_owned(),
                device: device.clone(),
                severity: Severity::Fault,
                action: Action::Replace,
                detail: first.map_or_else(|| text.clone(), |first| format!("{text}; first: {first}")),
                reading: Some(Reading::new(
                    format!("gemm.{name}.wrong_bits"),
                    damage.bits as f64,
                    Unit::Count,
                )),
            }));
            lines.push(text);
        }
        for slow in layers.speed.slow().into_iter().take(16) {
            let detail = format!(
                "gemm {format} ({path}): SM {} is {:.1} % slower than the median of this GPU's SMs",
                slow.sm,
                slow.shortfall * 100.0
            );
            sink.emit(Event::Finding(Finding {
                code: "slow-sm".to_owned(),
                device: device.clone(),
                severity: if slow.fault { Severity::Fault } else { Severity::Warning },
                action: if slow.fault { Action::Replace } else { Action::DrainAndTest },
                detail: detail.clone(),
                reading: Some(Reading::new(
                    format!("gemm.{name}.sm_shortfall"),
                    slow.shortfall * 100.0,
                    Unit::Percent,
                )),
            }));
            if slow.fault {
                lines.push(detail);
            }
        }
        lines
    }

    /// A kernel that no SM agrees with the oracle about: said aloud, never held against the GPU.
    fn distrust(&self, format: GemmFormat, path: Path, why: &str) {
        self.context.sink.emit(Event::Finding(Finding {
            code: "kernel-suspect".to_owned(),
            device: Some(self.gpu.target.uuid.clone()),
            severity: Severity::Warning,
            action: Action::UpdateSoftware,
            detail: format!(
                "gemm {} ({}) is not judged on {}: {why}",
                format.as_str(),
                path.as_str(),
                self.gpu.name
            ),
            reading: None,
        }));
    }

    /// `done` of this format, as progress of the whole test.
    fn say(&self, part: &Part, done: f64, doing: &str) {
        let now = Instant::now();
        if self.said.get().is_some_and(|said| now - said < SAY_EVERY) {
            return;
        }
        self.said.set(Some(now));
        let whole = (part.index as f64 + done.clamp(0.0, 1.0)) / part.of as f64;
        self.context.sink.progress(whole, &format!("{} gemm {doing}", self.gpu.target.label));
    }
}

/// A format's place in the test and its share of the time.
struct Part {
    index: usize,
    of: usize,
    until: Instant,
}
