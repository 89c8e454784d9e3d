//! Whether some daemon disciplines the system clock: the kernel's own answer (`adjtimex`), and chrony's where it runs.

use std::time::Duration;

use whetstone_model::facts::ClockSync;

use super::sysfs::{Root, host};
use super::tool;

const LIMIT: Duration = Duration::from_secs(2);

pub fn read(root: &Root) -> ClockSync {
    let mut clock = host::clock(root);
    if root.is_real() {
        if let Ok(kernel) = whetstone_device::host::clock::kernel_discipline() {
            clock.synchronised = clock.synchronised.or(Some(kernel.synchronised));
            clock.max_error_us = u64::try_from(kernel.max_error_us).ok().filter(|_| kernel.synchronised);
            clock.frequency_ppm = Some(kernel.frequency_ppm);
        }
        if let Some(text) = tool::answer("chronyc", &["-n", "-c", "tracking"], LIMIT) {
            from_chrony(&text, &mut clock);
        }
    }
    clock
}

/// One line of 14 values (chronyc's manual, "tracking"): the 5th is the offset, the 8th the frequency in ppm, the
/// 11th and 12th root delay and dispersion, all in seconds; the last is the leap status.
fn from_chrony(text: &str, clock: &mut ClockSync) {
    let values: Vec<&str> = text.trim().split(',').collect();
    if values.len() < 14 {
        return;
    }
    let number = |at: usize| values[at].parse::<f64>().ok().filter(|value| value.is_finite());
    let micros = |seconds: f64| (seconds.abs() * 1e6) as u64;
    clock.synchronised = Some(values[13] != "Not synchronised");
    clock.estimated_error_us = number(4).map(micros);
    // chrony's own bound: dispersion and half the delay.
    clock.max_error_us =
        number(10).zip(number(11)).map(|(delay, dispersion)| micros(delay / 2.0 + dispersion));
    clock.frequency_ppm = number(7);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chrony_is_understood() {
        let mut clock = ClockSync::default();
        from_chrony(
            "C0A80001,192.168.0.1,3,1700000000.1,0.000012,-0.000001,0.00002,-12.5,0.001,0.02,0.004,0.001,64.2,Normal\n",
            &mut clock,
        );
        assert_eq!(
            (clock.synchronised, clock.estimated_error_us, clock.max_error_us),
            (Some(true), Some(12), Some(3000))
        );
        assert_eq!(clock.frequency_ppm, Some(-12.5));
        let mut lost = ClockSync::default();
        from_chrony("0,,0,0,0,0,0,0,0,0,0,0,0,Not synchronised\n", &mut lost);
        assert_eq!(lost.synchronised, Some(false));
        let mut none = ClockSync::default();
        from_chrony("506 Cannot talk to daemon\n", &mut none);
        assert_eq!(none, ClockSync::default());
    }
}
