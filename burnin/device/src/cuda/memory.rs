//! Patterns over nearly all free GPU memory, each word verified on the GPU itself.
//!
//! A wrong word is named by its offset in the tested range and its device address (the driver does not tell physical
//! ones), with the flipped bits, the pattern, the pass and the SM that read it.

mod range;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use whetstone_burnin::exact::mix64;
use whetstone_burnin::protocol::{Event, Sink};
use whetstone_burnin::suite::{GpuMemoryParams, MemoryPattern};
use whetstone_model::action::{Action, Severity};
use whetstone_model::evidence::{Finding, Reading};
use whetstone_model::report::DeviceReading;
use whetstone_model::unit::Unit;

use super::driver::{Gpu, on_one_gpu};
use super::errors::CudaError;
use crate::{Context, Done};
use range::{Fault, Pattern, Range};

/// Wrong words that get a finding of their own; all are counted.
const MAX_FINDINGS: usize = 8;
/// Wrong words that are remembered; beyond that a chip is so broken that the number says it all.
const MAX_WORDS: usize = 65_536;
/// Shifts of a walking bit in one pass; later passes go on with the next ones.
const SHIFTS_PER_PASS: u64 = 4;
/// Copies timed for the bandwidth.
const COPIES: usize = 5;

pub fn run<S: Sink>(params: &GpuMemoryParams, context: &Context<'_, S>) -> Done {
    on_one_gpu(context, |gpu| {
        let fraction = params.fraction_of_free;
        context.sink.progress(0.0, &format!("{} memory: allocating", gpu.target.label));
        let range = Range::allocate(gpu, fraction)?;
        let mut test = Test { params, context, gpu, range, wrong: BTreeMap::new(), faults: 0, steps: 0 };
        test.run()
    })
}

struct Test<'a, S: Sink> {
    params: &'a GpuMemoryParams,
    context: &'a Context<'a, S>,
    gpu: &'a Gpu,
    range: Range<'a>,
    /// Wrong words: flipped bits and times seen.
    wrong: BTreeMap<u64, (u64, u64)>,
    /// All wrong reads, also those beyond the log's size.
    faults: u64,
    /// Sweeps done; the `pass` that the kernels log.
    steps: u32,
}

impl<S: Sink> Test<'_, S> {
    fn run(&mut self) -> Result<Done, CudaError> {
        let label = self.gpu.target.label.clone();
        let (_, total) = self.gpu.memory()?;
        let covered = self.range.bytes() as f64 / (total as f64).max(1.0);
        self.reading("hbm.covered", covered * 100.0, Unit::Percent);
        self.context.sink.progress(0.0, &format!("{label} memory: bandwidth"));
        self.steps += 1;
        let copied = self.range.copy_rate(Pattern::random(mix64(self.context.seed)), COPIES, self.steps)?;
        if let Some(rate) = copied.rate {
            self.reading("hbm.bandwidth", rate / 1e9, Unit::GBps);
        }
        self.book(MemoryPattern::Random, copied.faults);

        let begun = Instant::now();
        let mut passes = 0;
        let mut unfinished = None;
        'passes: loop {
            for (i, pattern) in self.params.patterns.iter().enumerate() {
                let now = Instant::now();
                if now >= self.context.deadline {
                    if passes == 0 {
                        unfinished = Some(format!(
                            "the time was spent after {i} of {} patterns",
                            self.params.patterns.len()
                        ));
                    }
                    break 'passes;
                }
                let by_time = (now - begun).as_secs_f64()
                    / self.context.deadline.saturating_duration_since(begun).as_secs_f64().max(1e-3);
                let by_pass = i as f64 / self.params.patterns.len() as f64;
                let done = if self.params.fill_budget { by_time } else { by_pass };
                let doing = format!("{label} memory: {}, pass {}", pattern.as_str(), passes + 1);
                self.context.sink.progress(done, &doing);
                self.pattern(*pattern, passes, &doing, done)?;
            }
            passes += 1;
            if passes >= self.params.min_passes && !self.params.fill_budget {
                break;
            }
        }
        self.context.sink.note(format!(
            "{label}: {:.1} MiB of {:.1} MiB tested ({:.1} %) in {} allocations, {passes} passes, {} sweeps",
            self.range.bytes() as f64 / 1_048_576.0,
            total as f64 / 1_048_576.0,
            covered * 100.0,
            self.range.allocations(),
            self.steps
        ));
        Ok(self.judge(&label, covered, unfinished))
    }

    fn judge(&self, label: &str, covered: f64, unfinished: Option<String>) -> Done {
        if self.faults > 0 {
            let bits = self.wrong.values().fold(0, |all, (xor, _)| all | xor);
            let text = format!(
                "{label}: {} wrong reads of {} words in GPU memory, bits {bits:#x}",
                self.faults,
                self.wrong.len()
            );
            if self.wrong.len() > MAX_FINDINGS {
                self.finding(format!("{text}; the first {MAX_FINDINGS} words have findings of their own"));
            }
            return Done::fail(text);
        }
        if let Some(why) = unfinished {
            return Done::inconclusive(format!("{label}: {why}"));
        }
        if covered < self.params.min_fraction_of_total {
            return Done::inconclusive(format!(
                "{label}: only {:.1} % of the GPU's memory could be tested, {:.0} % are asked for; something else holds it",
                covered * 100.0,
                self.params.min_fraction_of_total * 100.0
            ));
        }
        Done::pass()
    }

    /// One pattern over the whole range.
    fn pattern(
        &mut self,
        pattern: MemoryPattern,
        pass: u32,
        doing: &str,
        done: f64,
    ) -> Result<(), CudaError> {
        let seed = mix64(self.context.seed ^ (u64::from(pass) << 32) ^ pattern as u64);
        match pattern {
            MemoryPattern::Address => self.fill_and_verify(Pattern::address(seed & !7), pattern),
            MemoryPattern::WalkingOnes | MemoryPattern::WalkingZeros => {
                for shift in 0..SHIFTS_PER_PASS {
                    let seed = (u64::from(pass) * SHIFTS_PER_PASS + shift) % 64;
                    let walking = if pattern == MemoryPattern::WalkingOnes {
                        Pattern::walking_one(seed)
                    } else {
                        Pattern::walking_zero(seed)
                    };
                    self.fill_and_verify(walking, pattern)?;
                }
                Ok(())
            }
            MemoryPattern::Random => self.fill_and_verify(Pattern::random(seed), pattern),
            MemoryPattern::MovingInversions => {
                let up = Pattern::random(seed);
                self.range.fill(up)?;
                // Upwards: must be the pattern, becomes its complement. Downwards: must be that, becomes the pattern.
                for (expected, descending) in [(up, false), (up.complement(), true)] {
                    self.steps += 1;
                    let faults = self.range.invert(expected, descending, self.steps)?;
                    self.book(pattern, faults);
                }
                self.verify(up, pattern)
            }
            MemoryPattern::BitFade => {
                for rested in
                    [Pattern::constant(0xaaaa_aaaa_aaaa_aaaa), Pattern::constant(0x5555_5555_5555_5555)]
                {
                    self.range.fill(rested)?;
                    self.gpu.wait("mem_fill")?;
                    self.rest(doing, done);
                    self.verify(rested, pattern)?;
                }
                Ok(())
            }
        }
    }

    fn fill_and_verify(&mut self, words: Pattern, pattern: MemoryPattern) -> Result<(), CudaError> {
        self.range.fill(words)?;
        self.verify(words, pattern)
    }

    fn verify(&mut self, words: Pattern, pattern: MemoryPattern) -> Result<(), CudaError> {
        self.steps += 1;
        let faults = self.range.verify(words, self.steps)?;
        self.book(pattern, faults);
        Ok(())
    }

    /// Leaves the memory alone for `fade_s` seconds, but not past the deadline, and says so meanwhile.
    fn rest(&self, doing: &str, done: f64) {
        let until = (Instant::now() + Duration::from_secs(self.params.fade_s)).min(self.context.deadline);
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.context.sink.progress(done, &format!("{doing}, resting {:.0} s", left.as_secs_f64()));
            std::thread::sleep(left.min(Duration::from_secs(1)));
        }
    }

    /// Books wrong reads; each new word gets a finding at once, so that a crash later on loses nothing.
    fn book(&mut self, pattern: MemoryPattern, (count, faults): (u64, Vec<Fault>)) {
        self.faults += count;
        for fault in faults {
            let xor = fault.expected ^ fault.got;
            let known = self.wrong.len();
            if known >= MAX_WORDS && !self.wrong.contains_key(&fault.offset) {
                continue;
            }
            let word = self.wrong.entry(fault.offset).or_insert((0, 0));
            *word = (word.0 | xor, word.1 + 1);
            if word.1 == 1 && known < MAX_FINDINGS {
                let bits: Vec<String> =
                    (0..64).filter(|bit| xor >> bit & 1 == 1).map(|bit: u32| bit.to_string()).collect();
                self.finding(format!(
                    "memory offset {:#x} (device address {:#x}): wrote {:#018x}, read {:#018x}, bit {} wrong, pattern {}, sweep {}, read by SM {}",
                    fault.offset,
                    fault.address,
                    fault.expected,
                    fault.got,
                    bits.join(", "),
                    pattern.as_str(),
                    fault.pass,
                    fault.smid
                ));
            }
        }
    }

    fn finding(&self, detail: String) {
        self.context.sink.emit(Event::Finding(Finding {
            code: "hbm-bit-error".to_owned(),
            device: Some(self.gpu.target.uuid.clone()),
            severity: Severity::Fault,
            action: Action::Replace,
            detail,
            reading: None,
        }));
    }

    fn reading(&self, metric: &str, value: f64, unit: Unit) {
        let device = Some(self.gpu.target.uuid.clone());
        self.context
            .sink
            .emit(Event::Reading(DeviceReading { device, reading: Reading::new(metric, value, unit) }));
    }
}
