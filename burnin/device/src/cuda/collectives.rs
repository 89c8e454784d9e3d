//! NCCL inside the blade: one thread per GPU in this process, every element of every checked result compared.
//!
//! Data are integers in f32, so sums are exact in any order of any ring or tree. A wrong element is traced to the GPU
//! whose contribution explains it. A rank that no longer answers makes the test inconclusive and is named.

mod data;
pub mod library;
mod rank;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use whetstone_burnin::protocol::{Event, Sink};
use whetstone_burnin::suite::{Collective, GpuCollectivesParams};
use whetstone_model::action::{Action, Severity};
use whetstone_model::evidence::{Finding, Reading};
use whetstone_model::report::DeviceReading;
use whetstone_model::unit::Unit;

use super::blame::{contributor, culprits};
use super::driver::{guarded, require_driver};
use super::errors::judge;
use super::gemm::speed::median;
use crate::{Context, Done};
use data::{Data, Origin, WrongElement};
use rank::{Failure, Plan, Report};

/// Without any word from any rank for so long the collective is stuck: a healthy one takes milliseconds.
const STUCK_AFTER: Duration = Duration::from_secs(30);
const SAY_EVERY: Duration = Duration::from_millis(500);

pub fn run<S: Sink>(params: &GpuCollectivesParams, context: &Context<'_, S>) -> Done {
    match context.gpus.len() {
        0 => return Done::not_applicable("no GPU"),
        1 => return Done::not_applicable("one GPU only: there is nothing to collect from"),
        _ => {}
    }
    guarded(context, || {
        require_driver().map_err(|e| (None, e))?;
        if let Err(why) = library::prepare(params, context) {
            return Ok(Done::inconclusive(why));
        }
        Ok(test(params, context))
    })
}

/// What all ranks said about one operation.
#[derive(Default)]
struct Outcome {
    /// Seconds of each repeat, per rank.
    seconds: BTreeMap<usize, Vec<f64>>,
    wrong: Vec<(usize, WrongElement)>,
    wrong_elements: u64,
    checked: u32,
}

/// In the order of the suite.
type Outcomes = Vec<(Collective, Outcome)>;

fn test<S: Sink>(params: &GpuCollectivesParams, context: &Context<'_, S>) -> Done {
    let ranks = context.gpus.len();
    let version = match cudarc::nccl::result::get_nccl_version() {
        Ok(version) => version,
        Err(error) => return Done::inconclusive(format!("ncclGetVersion: {:?}", error.0)),
    };
    let id = match cudarc::nccl::result::get_uniqueid() {
        Ok(id) => id,
        Err(error) => return Done::inconclusive(format!("ncclGetUniqueId: {:?}", error.0)),
    };
    context.sink.emit(Event::NcclVersion { version: version_text(version) });
    let data = Arc::new(Data::new(ranks, params.mib << 20, context.seed));
    let plan = Arc::new(Plan {
        ranks,
        id,
        operations: params.operations.clone(),
        repeats: params.repeats,
        data: data.clone(),
        deadline: context.deadline,
        barrier: Barrier::new(ranks),
        stop: false.into(),
    });
    let (sender, receiver) = channel();
    for (rank, target) in context.gpus.iter().enumerate() {
        let (plan, target, sender) = (plan.clone(), target.clone(), sender.clone());
        // Detached: a rank that hangs in the library must not keep this process from ending with a result.
        std::thread::spawn(move || rank::run(&plan, rank, &target, &sender));
    }
    drop(sender);
    match listen(context, params, ranks, &receiver) {
        Err(done) => done,
        Ok(results) => conclude(context, &data, &results),
    }
}

/// Gathers what the ranks say until all have ended; an early end is the error.
fn listen<S: Sink>(
    context: &Context<'_, S>,
    params: &GpuCollectivesParams,
    ranks: usize,
    receiver: &Receiver<(usize, Report)>,
) -> Result<Outcomes, Done> {
    let mut results: Outcomes = params.operations.iter().map(|o| (*o, Outcome::default())).collect();
    let mut ended = BTreeSet::new();
    let mut at: BTreeMap<usize, String> = BTreeMap::new();
    let (mut heard, mut said) = (Instant::now(), Instant::now());
    let mut finished = 0;
    while ended.len() < ranks {
        match receiver.recv_timeout(SAY_EVERY) {
            Ok((rank, report)) => {
                heard = Instant::now();
                match report {
                    Report::Doing(what) => {
                        at.insert(rank, what);
                    }
                    Report::Finished { operation, seconds, wrong, wrong_elements, checked } => {
                        finished += 1;
                        let Some((_, result)) = results.iter_mut().find(|(o, _)| *o == operation) else {
                            continue;
                        };
                        result.seconds.insert(rank, seconds);
                        result.wrong.extend(wrong.into_iter().map(|w| (rank, w)));
                        result.wrong_elements += wrong_elements;
                        result.checked += checked;
                    }
                    Report::Ended => {
                        ended.insert(rank);
                    }
                    Report::Failed(failure) => return Err(failed(context, rank, failure)),
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            // Every thread is gone and some never said that they ended: cudarc panicked in them.
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Done::inconclusive(
                    "a rank of the collective ended without a word (missing NCCL symbol?)",
                ));
            }
        }
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            let done = f64::from(finished) / (params.operations.len() * ranks).max(1) as f64;
            let doing = at.values().next().map_or("starting", String::as_str);
            context.sink.progress(done, &format!("collectives: {doing}"));
        }
        if heard.elapsed() > STUCK_AFTER {
            return Err(stuck(context, &at, &ended));
        }
    }
    Ok(results)
}

/// A rank met an error; the others now wait for it in vain, and end with this process.
fn failed<S: Sink>(context: &Context<'_, S>, rank: usize, failure: Failure) -> Done {
    let target = &context.gpus[rank];
    match failure {
        Failure::Cuda(error) => {
            let (finding, done) = judge(&error, Some(target));
            finding.into_iter().for_each(|f| context.sink.emit(Event::Finding(f)));
            done
        }
        // NCCL's codes do not tell hardware from set-up; the kernel log and the counters decide.
        Failure::Nccl { what, error } => Done::inconclusive(format!("{}: {what}: {error}", target.label)),
    }
}

fn stuck<S: Sink>(context: &Context<'_, S>, at: &BTreeMap<usize, String>, ended: &BTreeSet<usize>) -> Done {
    let waiting: Vec<String> = (0..context.gpus.len())
        .filter(|rank| !ended.contains(rank))
        .map(|rank| {
            let doing = at.get(&rank).map_or("starting", String::as_str);
            format!("{} ({doing})", context.gpus[rank].label)
        })
        .collect();
    let detail = format!("collective stuck for {} s: {}", STUCK_AFTER.as_secs(), waiting.join(", "));
    context.sink.emit(Event::Finding(Finding {
        code: "nccl-stuck".to_owned(),
        device: None,
        severity: Severity::Warning,
        action: Action::Reboot,
        detail: detail.clone(),
        reading: None,
    }));
    Done::inconclusive(detail)
}

fn conclude<S: Sink>(context: &Context<'_, S>, data: &Data, results: &Outcomes) -> Done {
    for (operation, result) in results {
        // A collective has ended when its slowest rank has.
        let repeats = result.seconds.values().map(Vec::len).min().unwrap_or(0);
        let slowest = |i: usize| result.seconds.values().map(|s| s[i]).fold(0.0, f64::max);
        let rates: Vec<f64> =
            (0..repeats).map(|i| data.bus_bytes(*operation) / slowest(i).max(1e-12)).collect();
        if let Some(rate) = median(&rates) {
            let metric = format!("nccl.{}.busbw", operation.as_str());
            let reading = Reading::new(metric, rate / 1e9, Unit::GBps);
            context.sink.emit(Event::Reading(DeviceReading { device: None, reading }));
        }
        context.sink.note(format!(
            "{}: {repeats} repeats of {} MiB on {} GPUs, {} results checked element by element",
            operation.as_str(),
            data.bytes() >> 20,
            data.ranks(),
            result.checked
        ));
    }
    let lines = blame(context, data, results);
    let missing: Vec<&str> =
        results.iter().filter(|(_, r)| r.checked == 0).map(|(o, _)| o.as_str()).collect();
    match (lines.is_empty(), missing.is_empty()) {
        (false, _) => Done::fail(lines.join("; ")),
        (true, false) => Done::inconclusive(format!("the time was spent before {}", missing.join(", "))),
        (true, true) => Done::pass(),
    }
}

/// Puts every wrong element down to a GPU where that can be said, and emits one finding per GPU.
fn blame<S: Sink>(context: &Context<'_, S>, data: &Data, results: &Outcomes) -> Vec<String> {
    // (from, to) of each wrong element whose contributor is known, with what it says.
    let (mut pairs, mut texts) = (Vec::new(), Vec::new());
    let mut unknown: Vec<String> = Vec::new();
    let mut elements = 0;
    for (operation, result) in results {
        elements += result.wrong_elements;
        for (receiver, wrong) in &result.wrong {
            let from = match wrong.origin {
                Origin::Rank(sender) => Some(sender),
                Origin::Sum(index) => {
                    let (expected, got) = (f32::from_bits(wrong.expected), f32::from_bits(wrong.got));
                    contributor(&data.contributions(index), expected, got).map(|(rank, _)| rank)
                }
            };
            let text = format!(
                "{}: element {} on {} is {:#010x}, must be {:#010x}, xor {:#x}",
                operation.as_str(),
                wrong.index,
                context.gpus[*receiver].label,
                wrong.got,
                wrong.expected,
                wrong.got ^ wrong.expected
            );
            match from {
                Some(from) => {
                    pairs.push((from, *receiver));
                    texts.push((operation.as_str(), text));
                }
                None => unknown.push(text),
            }
        }
    }
    let mut by_culprit: BTreeMap<Option<usize>, (BTreeSet<&str>, usize, String)> = BTreeMap::new();
    for (guilty, (operation, text)) in culprits(&pairs).into_iter().zip(texts) {
        let entry = by_culprit.entry(Some(guilty)).or_insert_with(|| (BTreeSet::new(), 0, text));
        entry.0.insert(operation);
        entry.1 += 1;
    }
    // With one culprit, its flips are in every wrong sum too.
    if by_culprit.len() == 1
        && let Some(entry) = by_culprit.values_mut().next()
    {
        entry.0 = results.iter().filter(|(_, r)| r.wrong_elements > 0).map(|(o, _)| o.as_str()).collect();
        entry.1 += unknown.len();
    }
    // A wrong sum that no single flipped contribution explains names nobody; it stands alone only if nothing else does.
    if by_culprit.is_empty()
        && let Some(first) = unknown.first()
    {
        by_culprit.insert(None, (BTreeSet::from(["reductions"]), unknown.len(), first.clone()));
    }
    let lines: Vec<String> = by_culprit
        .into_iter()
        .map(|(guilty, (operations, count, first))| {
            let operations: Vec<&str> = operations.into_iter().collect();
            let whose = guilty.map_or("the contributor is unknown".to_owned(), |g| {
                format!("all through {}", context.gpus[g].label)
            });
            let detail = format!(
                "{}: {count} wrong element{} looked at, {whose}; {first}",
                operations.join(", "),
                if count == 1 { "" } else { "s" }
            );
            context.sink.emit(Event::Finding(Finding {
                code: "collective-corruption".to_owned(),
                device: guilty.map(|g| context.gpus[g].uuid.clone()),
                severity: Severity::Fault,
                action: if guilty.is_some() { Action::Replace } else { Action::DrainAndTest },
                detail: detail.clone(),
                reading: Some(Reading::new("nccl.wrong_elements", elements as f64, Unit::Count)),
            }));
            detail
        })
        .collect();
    lines
}

/// `2.27.3`: 10000·major + 100·minor + patch since 2.9.
fn version_text(version: i32) -> String {
    let (major, rest) = if version >= 10_000 {
        (version / 10_000, version % 10_000)
    } else {
        (version / 1000, version % 1000)
    };
    format!("{major}.{}.{}", rest / 100, rest % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_nvidia_writes_them() {
        assert_eq!((version_text(22703).as_str(), version_text(2804).as_str()), ("2.27.3", "2.8.4"));
    }
}
