//! Power and heat: the heaviest load that the chip has, held or pulsed, with every result compared.
//!
//! Power, temperature, clocks and throttle reasons are read by the agent through NVML while this runs; this side
//! says what load there was. A chip that computes wrongly only when hot or when the load steps shows here.

use std::time::{Duration, Instant};

use whetstone_burnin::exact::{full_range_bytes, mix64};
use whetstone_burnin::protocol::{Event, Sink};
use whetstone_burnin::suite::{GemmFormat, GpuPowerParams, PowerShape};
use whetstone_model::action::{Action, Severity};
use whetstone_model::evidence::{Finding, Reading};
use whetstone_model::report::DeviceReading;
use whetstone_model::unit::Unit;

use super::driver::{Gpu, on_one_gpu};
use super::errors::CudaError;
use super::gemm::kernel::{Bench, Kernel, Pipe};
use super::gemm::wrong::{Damage, majority, minority};
use crate::{Context, Done};

/// What heats most, first: 16-bit tensor products draw the most power on every chip measured so far (they move more
/// operand bits than FP8 at a rate that already reaches the limit); the rest is for chips without them.
const HEAVIEST: [GemmFormat; 7] = [
    GemmFormat::Bf16,
    GemmFormat::F16,
    GemmFormat::E4m3,
    GemmFormat::Tf32,
    GemmFormat::S8,
    GemmFormat::F64,
    GemmFormat::F32,
];

const SAY_EVERY: Duration = Duration::from_millis(500);

pub fn run<S: Sink>(params: &GpuPowerParams, context: &Context<'_, S>) -> Done {
    on_one_gpu(context, |gpu| {
        for format in HEAVIEST {
            for pipe in Pipe::of(format) {
                if let Some(kernel) = Kernel::find(gpu, format, *pipe, None)? {
                    return load(params, context, gpu, kernel);
                }
            }
        }
        Err(CudaError::NoKernel { kernel: "gemm_*".to_owned() })
    })
}

fn load<S: Sink>(
    params: &GpuPowerParams,
    context: &Context<'_, S>,
    gpu: &Gpu,
    kernel: Kernel,
) -> Result<Done, CudaError> {
    let label = &gpu.target.label;
    let k = params.k as usize / 64 * 64;
    let (format, path) = (kernel.format, kernel.path);
    let seed = mix64(context.seed ^ 0x0070_6f77_6572);
    let a = full_range_bytes(format, kernel.rows, k, seed);
    let b = full_range_bytes(format, kernel.columns, k, mix64(seed));
    let bench = Bench::new(gpu, kernel, params.blocks_per_sm, k)?;
    bench.load(&a, &b)?;

    let begun = Instant::now();
    let pulse = Duration::from_millis(params.pulse_ms);
    let whole = context.deadline.saturating_duration_since(begun).as_secs_f64().max(1e-3);
    let (mut launches, mut pulses, mut loaded, mut busy_s) = (0u64, 0u64, Duration::ZERO, 0.0);
    let mut expected: Option<u64> = None;
    let mut damage = Damage::default();
    let mut said: Option<Instant> = None;
    let say = |said: &mut Option<Instant>, doing: &str| {
        let now = Instant::now();
        if said.is_none_or(|at| now - at >= SAY_EVERY) {
            *said = Some(now);
            context.sink.progress((now - begun).as_secs_f64() / whole, &format!("{label} power: {doing}"));
        }
    };
    while launches == 0 || Instant::now() < context.deadline {
        let on = Instant::now();
        let on_until = match params.shape {
            PowerShape::Hold => context.deadline,
            PowerShape::Pulse => (on + pulse).min(context.deadline),
        };
        pulses += 1;
        loop {
            say(&mut said, if params.shape == PowerShape::Hold { "full load" } else { "load on and off" });
            let launch = bench.run(k, params.iterations)?;
            launches += 1;
            busy_s += launch.seconds;
            if let Some((digest, block)) = majority(&launch.tiles) {
                let first = *expected.get_or_insert(digest);
                if digest != first {
                    damage.add(launch.tiles[block].smid, &[], 0);
                }
                for block in minority(&launch.tiles, digest) {
                    damage.add(launch.tiles[block].smid, &[], launch.tiles[block].mismatches);
                }
            }
            if Instant::now() >= on_until {
                break;
            }
        }
        loaded += on.elapsed();
        if params.shape == PowerShape::Pulse {
            // Off for as long as on; a short pulse needs no progress within.
            let off = pulse.min(context.deadline.saturating_duration_since(Instant::now()));
            let off_until = Instant::now() + off;
            while let Some(left) = off_until.checked_duration_since(Instant::now()).filter(|l| !l.is_zero()) {
                say(&mut said, "load on and off");
                std::thread::sleep(left.min(SAY_EVERY));
            }
        }
    }

    let wall = begun.elapsed().as_secs_f64().max(1e-9);
    let device = Some(gpu.target.uuid.clone());
    let reading = |metric: &str, value: f64, unit: Unit| {
        let reading = Reading::new(metric, value, unit);
        context.sink.emit(Event::Reading(DeviceReading { device: device.clone(), reading }));
    };
    reading("power.launch_rate", launches as f64 / wall, Unit::PerSecond);
    reading("power.duty", loaded.as_secs_f64() / wall * 100.0, Unit::Percent);
    context.sink.note(format!(
        "{label}: {} on {}, {launches} launches of {} blocks, {:.2} s of work on the device, load on for {:.1} of {wall:.1} s in {pulses} pulse{}",
        format.as_str(),
        path.as_str(),
        bench.blocks,
        busy_s,
        loaded.as_secs_f64(),
        if pulses == 1 { "" } else { "s" }
    ));
    if damage.is_none() {
        return Ok(Done::pass());
    }
    let text = format!(
        "gemm {} ({}): {} (under power load, SMs and launches against each other)",
        format.as_str(),
        path.as_str(),
        damage.describe()
    );
    context.sink.emit(Event::Finding(Finding {
        code: "sdc".to_owned(),
        device: Some(gpu.target.uuid.clone()),
        severity: Severity::Fault,
        action: Action::Replace,
        detail: text.clone(),
        reading: Some(Reading::new(
            format!("gemm.{}.wrong_tiles", format.as_str()),
            damage.tiles as f64,
            Unit::Count,
        )),
    }));
    Ok(Done::fail(format!("{label}: {text}")))
}
