//! Copies: host to GPU and back, GPU to GPU, one direction and both at once, every copy's content verified.

mod host;
mod peer;

use std::time::Instant;

use whetstone_burnin::protocol::{Event, Sink};
use whetstone_burnin::suite::GpuBandwidthParams;
use whetstone_model::action::{Action, Severity};
use whetstone_model::device::DeviceId;
use whetstone_model::evidence::{Finding, Reading};
use whetstone_model::report::DeviceReading;
use whetstone_model::unit::Unit;

use super::driver::{Gpu, guarded};
use crate::{Context, Done};

pub fn run<S: Sink>(params: &GpuBandwidthParams, context: &Context<'_, S>) -> Done {
    if context.gpus.is_empty() {
        return Done::not_applicable("no GPU");
    }
    guarded(context, || {
        let mut gpus = Vec::new();
        for target in context.gpus {
            gpus.push(Gpu::open(target).map_err(|e| (Some(target.clone()), e))?);
        }
        let mut test = Test { params, context, gpus: &gpus, wrong: Vec::new(), unfinished: None };
        test.host()?;
        if gpus.len() > 1 {
            test.peers()?;
        }
        Ok(test.done())
    })
}

struct Test<'a, S: Sink> {
    params: &'a GpuBandwidthParams,
    context: &'a Context<'a, S>,
    gpus: &'a [Gpu],
    /// What went wrong, one line each.
    wrong: Vec<String>,
    /// What the time did not suffice for.
    unfinished: Option<String>,
}

impl<S: Sink> Test<'_, S> {
    fn bytes(&self) -> usize {
        (self.params.mib as usize) << 20
    }

    fn late(&self) -> bool {
        Instant::now() >= self.context.deadline
    }

    fn reading(&self, gpu: &Gpu, metric: &str, value: f64, unit: Unit) {
        let device = Some(gpu.target.uuid.clone());
        self.context
            .sink
            .emit(Event::Reading(DeviceReading { device, reading: Reading::new(metric, value, unit) }));
    }

    /// A finding; a fault also fails the test.
    fn found(&mut self, code: &str, device: DeviceId, severity: Severity, action: Action, detail: String) {
        self.context.sink.emit(Event::Finding(Finding {
            code: code.to_owned(),
            device: Some(device),
            severity,
            action,
            detail: detail.clone(),
            reading: None,
        }));
        if severity == Severity::Fault {
            self.wrong.push(detail);
        }
    }

    fn done(self) -> Done {
        match (self.wrong.as_slice(), self.unfinished) {
            ([], None) => Done::pass(),
            ([], Some(why)) => Done::inconclusive(why),
            (wrong, _) => Done::fail(wrong.join("; ")),
        }
    }
}

/// The first difference of two equally long byte strings, and how many bits differ in all.
fn difference(expected: &[u8], got: &[u8]) -> Option<(usize, u8, u64)> {
    if expected == got {
        return None;
    }
    let pairs = expected.iter().zip(got).enumerate().filter(|(_, (e, g))| e != g);
    let mut first = None;
    let mut bits = 0;
    for (at, (e, g)) in pairs {
        first = first.or(Some((at, e ^ g)));
        bits += u64::from((e ^ g).count_ones());
    }
    first.map(|(at, xor)| (at, xor, bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_counted_in_bits() {
        assert_eq!(difference(&[1, 2, 3], &[1, 2, 3]), None);
        assert_eq!(difference(&[1, 2, 3, 0], &[1, 6, 3, 3]), Some((1, 4, 3)));
    }
}
