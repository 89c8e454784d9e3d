//! Clocks against each other: rate, steps, and whether time ever runs backwards from one core to the next.

mod rate;
mod warp;

use std::path::Path;
use std::time::{Duration, Instant};

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::ClockParams;
use whetstone_model::action::{Action, Severity};
use whetstone_model::evidence::Reading;
use whetstone_model::unit::Unit;

use super::bench::Bench;
use super::cores;
use crate::{Context, Done};
pub use rate::{Discipline, discipline as kernel_discipline};
use rate::{Sample, sample};

/// The system clock moved against the monotonic one by more than this between two looks: somebody set it, or it jumped.
const STEP: Duration = Duration::from_millis(1);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// With less than this between first and last look, a rate to a ppm cannot be told.
const SHORTEST: Duration = Duration::from_millis(500);

pub fn run<S: Sink>(_params: &ClockParams, context: &Context<'_, S>) -> Done {
    work(&Bench::new(context), Path::new("/sys"))
}

fn work(bench: &Bench<'_>, sys: &Path) -> Done {
    let source = clock_source(bench, sys);
    let cores = cores::allowed();
    let first = sample();
    let warps = warp::look(bench, &cores, bench.until(0.4));
    for warp in &warps {
        let detail = warp.to_string();
        // The kernel gives up the cycle counter when it finds this itself, so it harms only those who read it directly.
        let (severity, action) = if warp.kernels {
            (Severity::Fault, Action::Replace)
        } else {
            (Severity::Warning, Action::DrainAndTest)
        };
        bench.finding("clock-warp", warp.core.device(), severity, action, detail, None);
    }
    let (mut last, mut stepped) = (sample(), Duration::ZERO);
    while Instant::now() + PAUSE < bench.stop() {
        bench.tick("clocks against each other");
        std::thread::sleep(PAUSE.min(bench.left()));
        let now = sample();
        stepped = stepped.max(now.step_since(&last));
        last = now;
    }
    if stepped > STEP {
        let milliseconds = stepped.as_secs_f64() * 1e3;
        let detail =
            format!("the system clock jumped by {milliseconds:.1} ms during the test: somebody set it");
        let reading = Reading::new("clock.step", milliseconds, Unit::Millisecond);
        bench.finding("clock-step", None, Severity::Warning, Action::None, detail, Some(reading));
    }
    note_discipline(bench);
    let span = last.since(&first);
    if span >= SHORTEST {
        bench.reading(None, "clock.drift", drift_ppm(&first, &last), Unit::Ppm);
    }
    if let Some(warp) = warps.iter().find(|warp| warp.kernels) {
        return Done::fail(warp.to_string());
    }
    if span < SHORTEST {
        return Done::inconclusive("no time to compare rates: half a second is the least");
    }
    if source.is_none() {
        bench.note("the clock source is not readable here");
    }
    Done::pass()
}

/// How far the adjusted clock's rate is from that of the bare hardware, absolute, in millionths. This is what the clock
/// daemon has to correct; without one it is 0 and says nothing, which [`note_discipline`] says.
fn drift_ppm(first: &Sample, last: &Sample) -> f64 {
    let raw = (last.raw - first.raw) as f64;
    let adjusted = (last.monotonic - first.monotonic) as f64;
    ((adjusted - raw) / raw * 1e6).abs()
}

/// What the kernel's clock discipline says of itself.
fn note_discipline(bench: &Bench<'_>) {
    match kernel_discipline() {
        Ok(state) => bench.note(state.to_string()),
        Err(error) => bench.note(format!("the kernel does not say how it keeps its clock: {error}")),
    }
}

/// The kernel's time source; a finding if it had to give up the cycle counter.
fn clock_source(bench: &Bench<'_>, sys: &Path) -> Option<String> {
    let at = sys.join("devices/system/clocksource/clocksource0");
    let read = |file: &str| Some(std::fs::read_to_string(at.join(file)).ok()?.trim().to_owned());
    let current = read("current_clocksource")?;
    let could_be_tsc =
        read("available_clocksource").is_some_and(|all| all.split(' ').any(|name| name == "tsc"));
    if matches!(current.as_str(), "hpet" | "acpi_pm" | "jiffies" | "refined-jiffies") {
        let why = if could_be_tsc {
            "tsc is available"
        } else {
            "the kernel gave up tsc as unstable, or never trusted it"
        };
        let detail = format!("clock source is {current}, which is slow to read ({why})");
        bench.finding("clock-source", None, Severity::Warning, Action::UpdateSoftware, detail, None);
    }
    bench.note(format!("clock source: {current}"));
    Some(current)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::bench::testing::Rig;
    use whetstone_model::report::TestOutcome;

    #[test]
    fn a_sound_machine_passes_and_its_drift_is_read() {
        let rig = Rig::new(1, Duration::from_millis(1500));
        let done = work(&rig.bench(), Path::new("/sys"));
        assert_eq!(done.outcome, TestOutcome::Pass, "{done:?} {:?}", rig.findings());
        let readings = rig.readings();
        let drift = readings.iter().find(|r| r.reading.metric == "clock.drift").unwrap();
        // The kernel corrects by 500 ppm at most (NTP); a tenth more for the time between two readings.
        assert!((0.0..550.0).contains(&drift.reading.value), "{drift:?}");
    }

    #[test]
    fn drift_is_the_difference_of_rates() {
        let at = |raw, monotonic| Sample { raw, monotonic, real: 0 };
        assert_eq!(drift_ppm(&at(0, 0), &at(1_000_000_000, 1_000_050_000)), 50.0);
        assert_eq!(drift_ppm(&at(0, 0), &at(1_000_000_000, 999_900_000)), 100.0);
    }

    #[test]
    fn a_source_other_than_the_cycle_counter_is_a_warning() {
        let sys = tempfile::tempdir().unwrap();
        let at = sys.path().join("devices/system/clocksource/clocksource0");
        std::fs::create_dir_all(&at).unwrap();
        let rig = Rig::new(1, Duration::from_secs(1));
        for (current, expected) in [("tsc", 0), ("kvm-clock", 0), ("arch_sys_counter", 0), ("hpet", 1)] {
            std::fs::write(at.join("current_clocksource"), format!("{current}\n")).unwrap();
            assert_eq!(clock_source(&rig.bench(), sys.path()).as_deref(), Some(current));
            assert_eq!(rig.findings().len(), expected, "{current}");
        }
    }

    #[test]
    fn no_time_is_inconclusive() {
        let rig = Rig::new(1, Duration::ZERO);
        assert_eq!(work(&rig.bench(), Path::new("/nowhere")).outcome, TestOutcome::Inconclusive);
    }
}
