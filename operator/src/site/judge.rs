//! Compares the runs of a tranche with each other, in the background: a thousand blades take the judge a while.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};
use whetstone_burnin::judge::{Judgement, Options, Outlier, Sample, judge};
use whetstone_model::ids::{RunId, Serial, TrancheName};
use whetstone_model::verdict::Outcome;
use whetstone_plan::{Plan, RunState};
use whetstone_store::CohortRow;

use super::memory::Memory;
use super::{Parts, SiteError};
use crate::clock::now_ms;

/// Samples of one tranche at most; the judge holds them in memory (5,000 blades with 8 GPUs and 50 metrics).
const MAX_SAMPLES: usize = 2_000_000;
/// Metrics whose distribution is exported.
const MAX_METRICS: usize = 100;

/// What is to be compared.
struct Job {
    tranche: TrancheName,
    fpr: f64,
    /// Runs that wait for a result.
    wanted: Vec<RunId>,
    /// All finished runs of the tranche, with the blade of each.
    cohort: Vec<(RunId, Serial, String)>,
}

/// Starts a comparison for each tranche that wants one and has none going on.
pub fn start(parts: &Parts, memory: &Memory, plan: &Plan) {
    for tranche in plan.tranches.iter().filter(|tranche| !tranche.judge.is_empty()) {
        if !memory.judging.begin(&tranche.tranche) {
            continue;
        }
        let cohort = memory
            .site
            .blades
            .values()
            .filter(|blade| blade.tranche.as_ref() == Some(&tranche.tranche))
            .filter_map(|blade| {
                let run = blade.run.as_ref()?;
                matches!(run.state, RunState::Finished { .. })
                    .then(|| (run.run, blade.serial.clone(), blade.name.to_string()))
            })
            .collect();
        let job = Job {
            tranche: tranche.tranche.clone(),
            fpr: memory.site.tranches.get(&tranche.tranche).map_or(0.01, |view| view.fpr),
            wanted: tranche.judge.clone(),
            cohort,
        };
        let (parts, judging) = (parts.clone(), memory.judging.clone());
        parts.tasks.clone().spawn(async move {
            if let Err(error) = run(&parts, &job).await {
                parts.metrics.reconcile_errors.with_label_values(&[error.category()]).inc();
                warn!(tranche = %job.tranche, %error, "comparison failed, it is tried again");
            }
            judging.end(&job.tranche);
            parts.dirty.serials(job.cohort.into_iter().map(|(_, serial, _)| serial));
        });
    }
}

async fn run(parts: &Parts, job: &Job) -> Result<(), SiteError> {
    let runs: Vec<RunId> = job.cohort.iter().map(|(run, ..)| *run).collect();
    let texts = parts.store.samples_of(&runs).await?;
    let names: HashMap<RunId, String> =
        job.cohort.iter().map(|(run, _, name)| (*run, name.clone())).collect();
    let fpr = job.fpr;
    let judged = tokio::task::spawn_blocking(move || {
        let samples = samples(&texts, &names);
        let judgement = judge(&samples, &Options { fpr, seed: 0 });
        (distribution(&samples), judgement)
    })
    .await;
    let (distribution, judgement) = match judged {
        Ok(judged) => judged,
        Err(error) => {
            warn!(tranche = %job.tranche, %error, "the judge ended without an answer");
            return Ok(());
        }
    };
    for ((sku, metric), quantiles) in &distribution {
        for (quantile, value) in quantiles {
            parts.metrics.burnin_metric.with_label_values(&[sku.as_str(), metric, quantile]).set(*value);
        }
    }
    let results = results(job, &judgement);
    let outliers = results.iter().filter(|(_, result)| result.outcome == Outcome::Fail).count();
    info!(tranche = %job.tranche, runs = results.len(), cohort = job.cohort.len(), outliers, "compared");
    parts.store.store_cohort(&results).await?;
    Ok(())
}

/// The samples of all runs. A blade is called as it is now: two runs may have known it by other names.
fn samples(texts: &[(RunId, Vec<u8>)], names: &HashMap<RunId, String>) -> Vec<Sample> {
    let lines = texts.iter().flat_map(|(run, text)| text.split(|b| *b == b'\n').map(move |line| (run, line)));
    lines
        .filter(|(_, line)| !line.is_empty())
        .filter_map(|(run, line)| {
            let mut sample: Sample = serde_json::from_slice(line).ok()?;
            sample.blade = names.get(run)?.clone();
            sample.value.is_finite().then_some(sample)
        })
        .take(MAX_SAMPLES)
        .collect()
}

fn results(job: &Job, judgement: &Judgement) -> Vec<(RunId, CohortRow)> {
    let mut worst: BTreeMap<&str, &Outlier> = BTreeMap::new();
    // Least probable first: the first of a blade is its gravest.
    for outlier in &judgement.outliers {
        worst.entry(&outlier.blade).or_insert(outlier);
    }
    let at_ms = now_ms();
    let wanted: BTreeSet<RunId> = job.wanted.iter().copied().collect();
    job.cohort
        .iter()
        .filter(|(run, ..)| wanted.contains(run))
        .map(|(run, _, name)| {
            let result = match worst.get(name.as_str()) {
                Some(outlier) => {
                    let why = format!("{} {}", outlier.device, outlier.reason);
                    CohortRow { outcome: Outcome::Fail, why, at_ms }
                }
                None if judgement.anything_judged() => {
                    let why = format!("like the other blades of {}", job.tranche);
                    CohortRow { outcome: Outcome::Pass, why, at_ms }
                }
                None => {
                    let why = "no cohort that is large enough to compare with".to_owned();
                    CohortRow { outcome: Outcome::Inconclusive, why, at_ms }
                }
            };
            (*run, result)
        })
        .collect()
}

type Quantiles = [(&'static str, f64); 5];

/// Quantiles of each metric over devices, for the dashboards.
fn distribution(samples: &[Sample]) -> BTreeMap<(String, String), Quantiles> {
    let mut values: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for sample in samples {
        let sku = sample.sku.clone().unwrap_or_else(|| "unknown".to_owned());
        let key = (sku, format!("{}/{}", sample.test, sample.metric));
        if values.len() < MAX_METRICS || values.contains_key(&key) {
            values.entry(key).or_default().push(sample.value);
        }
    }
    let quantile = |sorted: &[f64], part: f64| {
        let place = (part * (sorted.len() - 1) as f64).round() as usize;
        sorted.get(place).copied().unwrap_or(f64::NAN)
    };
    values
        .into_iter()
        .map(|(key, mut values)| {
            values.sort_by(f64::total_cmp);
            let at = |name, part| (name, quantile(&values, part));
            (key, [at("0", 0.0), at("0.05", 0.05), at("0.5", 0.5), at("0.95", 0.95), at("1", 1.0)])
        })
        .collect()
}

/// Tranches that are being compared.
#[derive(Clone, Default)]
pub struct Judging(Arc<Mutex<BTreeSet<TrancheName>>>);

impl Judging {
    /// False if a comparison of this tranche goes on already.
    fn begin(&self, tranche: &TrancheName) -> bool {
        self.lock().insert(tranche.clone())
    }
    fn end(&self, tranche: &TrancheName) {
        self.lock().remove(tranche);
    }
    fn lock(&self) -> MutexGuard<'_, BTreeSet<TrancheName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(blade: &str, value: f64) -> Vec<u8> {
        let line = |gpu: u32| {
            let value = value + f64::from(gpu) * 0.01;
            format!(
                "{{\"blade\":\"{blade}\",\"device\":\"gpu{gpu}\",\"test\":\"gemm\",\"metric\":\"m\",\"value\":{value},\"unit\":\"x\",\"better\":\"higher\"}}\n"
            )
        };
        (0..8).map(line).collect::<String>().into_bytes()
    }

    #[test]
    fn a_slow_blade_is_named_by_its_name_of_today_and_bad_lines_are_left_out() {
        let names: HashMap<RunId, String> = (1..=8).map(|n| (RunId(n), format!("b-{n}"))).collect();
        let mut texts: Vec<_> = (1..=8)
            .map(|n| (RunId(n), text("old", if n == 3 { 80.0 } else { 100.0 + n as f64 * 0.05 })))
            .collect();
        texts[0].1.extend_from_slice(b"{ not a sample\n");
        let samples = samples(&texts, &names);
        assert_eq!(samples.len(), 64);
        let judgement = judge(&samples, &Options { fpr: 0.01, seed: 0 });
        let job = Job {
            tranche: TrancheName::new("t").unwrap(),
            fpr: 0.01,
            wanted: vec![RunId(3), RunId(4)],
            cohort: names
                .iter()
                .map(|(run, name)| (*run, Serial::new(format!("S{run}")).unwrap(), name.clone()))
                .collect(),
        };
        let results: BTreeMap<RunId, Outcome> =
            results(&job, &judgement).into_iter().map(|(run, result)| (run, result.outcome)).collect();
        assert_eq!(results, BTreeMap::from([(RunId(3), Outcome::Fail), (RunId(4), Outcome::Pass)]));
    }
}
