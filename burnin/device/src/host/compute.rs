//! Arithmetic of each core: matrix products in every vector unit, hashes, ciphers, compressors, on all cores at once.
//!
//! A core that computes wrongly mostly does so in one unit and for some operands only, so each unit gets new operands in
//! every round, and every result is checked (see [`task::Task`]). Cores are also compared with each other.

mod bytes;
pub mod gemm;
mod ledger;
mod task;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::{CpuComputeParams, CpuFamily};
use whetstone_model::action::Action;
use whetstone_model::report::Profile;
use whetstone_model::unit::Unit;

use super::bench::{Bench, MAX_FINDINGS, judge};
use super::cores::{self, Core};
use crate::{Context, Done};
use ledger::Ledger;
use task::Task;

/// Code of a wrong result.
const CODE: &str = "cpu-corruption";

pub fn run<S: Sink>(params: &CpuComputeParams, context: &Context<'_, S>) -> Done {
    work(params, &Bench::new(context))
}

/// What one core did.
#[derive(Default)]
struct Tally {
    /// Rounds in which every unit had its turn.
    rounds: u64,
    wrong: u64,
    first: Option<String>,
    /// Amount and busy time of each unit.
    units: BTreeMap<String, (CpuFamily, f64, Duration)>,
    /// Why units are missing, if some are.
    missing: Option<String>,
}

fn work(params: &CpuComputeParams, bench: &Bench<'_>) -> Done {
    let cores = cores::allowed();
    let ledger = Mutex::new(Ledger::default());
    let now = Mutex::new(String::new());
    let findings = AtomicU64::new(0);
    let doing = || match now.lock() {
        Ok(now) => format!("{} on {} cores", now.as_str(), cores.len()),
        Err(_) => String::new(),
    };
    let shared = Shared { bench, ledger: &ledger, now: &now, findings: &findings };
    let tallies = cores::on_each(bench, &cores, &doing, |index, core| shared.one_core(params, index, core));

    let mut wrong = 0;
    let mut first: Option<String> = None;
    for tally in tallies.iter().flatten() {
        wrong += tally.wrong;
        first = first.or_else(|| tally.first.clone());
    }
    if let Ok(ledger) = ledger.lock() {
        for verdict in ledger.disagreements() {
            for index in &verdict.accused {
                let Some(core) = cores.get(*index) else { continue };
                let detail = format!("{core}: {}", verdict.detail);
                first.get_or_insert_with(|| detail.clone());
                wrong += 1;
                shared.report(core, detail);
            }
        }
    }
    measure(bench, &cores, &tallies);
    if wrong > 0 {
        return judge(wrong, "wrong results", first.as_deref());
    }
    if let Some(why) = tallies.iter().flatten().find_map(|tally| tally.missing.as_ref()) {
        return Done::inconclusive(format!("not every unit could be tested: {why}"));
    }
    if tallies.iter().any(Option::is_none) {
        return Done::inconclusive("a worker thread ended early");
    }
    let rounds = tallies.iter().flatten().map(|tally| tally.rounds).min().unwrap_or(0);
    if rounds < u64::from(params.min_rounds) {
        return Done::inconclusive(format!(
            "{rounds} of {} rounds done in the time given: more time or fewer families",
            params.min_rounds
        ));
    }
    Done::pass()
}

/// What the threads of all cores have in common.
struct Shared<'a> {
    bench: &'a Bench<'a>,
    ledger: &'a Mutex<Ledger>,
    now: &'a Mutex<String>,
    findings: &'a AtomicU64,
}

impl Shared<'_> {
    fn one_core(&self, params: &CpuComputeParams, index: usize, core: &Core) -> Tally {
        let mut tally = Tally::default();
        let mut tasks: Vec<Box<dyn Task>> = Vec::new();
        for family in &params.families {
            // Same seed on every core: results are compared.
            let seed = self.bench.seed ^ *family as u64;
            match family {
                CpuFamily::Gemm => match gemm::tasks::tasks(seed) {
                    Ok(more) => tasks.extend(more),
                    Err(error) => tally.missing = Some(format!("gemm on {core}: no memory: {error}")),
                },
                other => tasks.extend(bytes::tasks(*other, seed)),
            }
        }
        let stop = self.bench.stop();
        let mut slowest = Duration::ZERO;
        'rounds: for round in 0.. {
            for (number, task) in tasks.iter_mut().enumerate() {
                let started = Instant::now();
                // A step that would end too late is not begun.
                if started + slowest >= stop {
                    break 'rounds;
                }
                if index == 0
                    && let Ok(mut now) = self.now.lock()
                {
                    *now = format!("round {}, {}", round + 1, task.name());
                }
                match task.step(round, self.bench.tap) {
                    Ok(work) => {
                        if let (Some(digest), Ok(mut ledger)) = (work.digest, self.ledger.lock()) {
                            ledger.record(number, task.name(), round, index, digest);
                        }
                        let start = (task.family(), 0.0, Duration::ZERO);
                        let unit = tally.units.entry(task.name().to_owned()).or_insert(start);
                        unit.1 += work.amount;
                        unit.2 += work.busy;
                    }
                    Err(mismatch) => {
                        tally.wrong += 1;
                        let detail = format!("{core}: {}: {}", task.name(), mismatch.0);
                        if tally.first.is_none() {
                            tally.first = Some(detail.clone());
                        }
                        self.report(core, detail);
                    }
                }
                slowest = slowest.max(started.elapsed());
            }
            tally.rounds = round + 1;
            if tasks.is_empty() {
                break;
            }
        }
        tally
    }

    /// At once, so that it is known even if the process dies next; the first of many only.
    fn report(&self, core: &Core, detail: String) {
        if self.findings.fetch_add(1, Ordering::Relaxed) < MAX_FINDINGS as u64 {
            self.bench.fault(CODE, core.device(), Action::Replace, detail);
        }
    }
}

/// Throughput of each unit: of the machine, and per core for the widest fp64 unit, where a slow core shows.
fn measure(bench: &Bench<'_>, cores: &[Core], tallies: &[Option<Tally>]) {
    let rate = |tally: &Tally, name: &str| {
        let (_, amount, busy) = tally.units.get(name)?;
        let seconds = busy.as_secs_f64();
        (seconds > 0.0).then(|| amount / seconds / 1e9)
    };
    let total = |name: &str| tallies.iter().flatten().filter_map(|tally| rate(tally, name)).sum::<f64>();
    let Some(units) = tallies.iter().flatten().map(|tally| &tally.units).find(|units| !units.is_empty())
    else {
        return;
    };
    let widest =
        gemm::units::f64_units().first().map(|unit| format!("gemm {}", unit.name)).unwrap_or_default();
    for (name, (family, ..)) in units {
        let (metric, unit) = match family {
            CpuFamily::Gemm if *name == widest => ("cpu.gemm.throughput".to_owned(), Unit::Gflops),
            CpuFamily::Gemm => {
                (format!("cpu.{}.throughput", name.replace(' ', ".").replace('-', "_")), Unit::Gflops)
            }
            other => (format!("cpu.{}.{}.throughput", other.as_str(), name.replace('-', "_")), Unit::GBps),
        };
        bench.reading(None, &metric, total(name), unit);
    }
    let mut values = vec![None; cores.iter().map(|core| core.cpu + 1).max().unwrap_or(0)];
    for (core, tally) in cores.iter().zip(tallies) {
        values[core.cpu] = tally.as_ref().and_then(|tally| rate(tally, &widest));
    }
    if values.iter().any(Option::is_some) {
        let (metric, index) = ("cpu.gemm.core_throughput".to_owned(), "core".to_owned());
        bench.profile(Profile { device: None, metric, unit: Unit::Gflops, index, values });
    }
}

#[cfg(test)]
mod tests;
