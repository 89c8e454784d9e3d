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
use crate::metrics::{Distribution, OfWhat};

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
        let compared = compared(&samples, &judgement);
        (distribution(&samples), judgement, compared)
    })
    .await;
    let (distribution, judgement, compared) = match judged {
        Ok(judged) => judged,
        Err(error) => {
            warn!(tranche = %job.tranche, %error, "the judge ended without an answer");
            return Ok(());
        }
    };
    parts.metrics.burnin_metric.replace(job.tranche.as_str(), &distribution);
    let results = results(job, &judgement, &compared);
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

/// Blades that were compared with others in anything: one alone with its driver among a hundred is like nobody.
fn compared(samples: &[Sample], judgement: &Judgement) -> BTreeSet<String> {
    let judged: BTreeSet<_> = judgement
        .cohorts
        .iter()
        .filter(|cohort| cohort.judged)
        .map(|c| (&c.test, &c.metric, &c.unit, &c.sku, &c.driver, &c.firmware, &c.suite))
        .collect();
    samples
        .iter()
        .filter(|s| judged.contains(&(&s.test, &s.metric, &s.unit, &s.sku, &s.driver, &s.firmware, &s.suite)))
        .map(|sample| sample.blade.clone())
        .collect()
}

fn results(job: &Job, judgement: &Judgement, compared: &BTreeSet<String>) -> Vec<(RunId, CohortRow)> {
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
                None if compared.contains(name) => {
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

/// Quantiles of each metric over devices, for the dashboards. Two tests of a suite may measure the same metric.
fn distribution(samples: &[Sample]) -> Distribution {
    let mut values: BTreeMap<OfWhat, Vec<f64>> = BTreeMap::new();
    for sample in samples {
        let sku = sample.sku.clone().unwrap_or_else(|| "unknown".to_owned());
        let key = OfWhat { sku, test: sample.test.clone(), metric: sample.metric.clone() };
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

    fn text(driver: &str, value: f64) -> Vec<u8> {
        let line = |gpu: u32| {
            let value = value + f64::from(gpu) * 0.01;
            format!(
                "{{\"blade\":\"old\",\"device\":\"gpu{gpu}\",\"test\":\"gemm\",\"metric\":\"m\",\"value\":{value},\"unit\":\"x\",\"better\":\"higher\",\"driver\":\"{driver}\"}}\n"
            )
        };
        (0..8).map(line).collect::<String>().into_bytes()
    }

    #[test]
    fn a_distribution_has_the_bare_name_of_its_metric_and_tests_stay_apart() {
        let sample = |test: &str, value: f64| -> Sample {
            serde_json::from_value(serde_json::json!({
                "blade": "b-1", "device": "gpu0", "test": test, "metric": "hbm.bandwidth", "value": value,
                "unit": "GB/s", "better": "higher", "sku": "hgx-h100",
            }))
            .unwrap()
        };
        let samples = [sample("gpu-memory", 2.0), sample("bandwidth", 3.0), sample("bandwidth", 1.0)];
        let of =
            |test: &str| OfWhat { sku: "hgx-h100".into(), test: test.into(), metric: "hbm.bandwidth".into() };
        let distribution = distribution(&samples);
        assert_eq!(distribution.keys().collect::<Vec<_>>(), [&of("bandwidth"), &of("gpu-memory")]);
        assert_eq!(distribution[&of("bandwidth")][0], ("0", 1.0));
        assert_eq!(distribution[&of("bandwidth")][4], ("1", 3.0));
    }

    #[test]
    fn a_blade_is_called_as_today_bad_lines_are_left_out_and_one_without_its_like_is_like_nobody() {
        let names: HashMap<RunId, String> = (1..=10).map(|n| (RunId(n), format!("b-{n}"))).collect();
        let mut texts: Vec<_> = (1..=8)
            .map(|n| (RunId(n), text("580", if n == 3 { 80.0 } else { 100.0 + n as f64 * 0.05 })))
            .collect();
        texts[0].1.extend_from_slice(b"{ not a sample\n");
        // Alone with its driver; and one that has no samples at all.
        texts.push((RunId(9), text("570", 100.0)));
        let samples = samples(&texts, &names);
        assert_eq!(samples.len(), 72);
        let judgement = judge(&samples, &Options { fpr: 0.01, seed: 0 });
        let job = Job {
            tranche: TrancheName::new("t").unwrap(),
            fpr: 0.01,
            wanted: vec![RunId(3), RunId(4), RunId(9), RunId(10)],
            cohort: names
                .iter()
                .map(|(run, name)| (*run, Serial::new(format!("S{run}")).unwrap(), name.clone()))
                .collect(),
        };
        let results = results(&job, &judgement, &compared(&samples, &judgement));
        let results: BTreeMap<RunId, Outcome> =
            results.into_iter().map(|(run, result)| (run, result.outcome)).collect();
        use Outcome::{Fail, Inconclusive, Pass};
        let wanted =
            [(RunId(3), Fail), (RunId(4), Pass), (RunId(9), Inconclusive), (RunId(10), Inconclusive)];
        assert_eq!(results, BTreeMap::from(wanted));
    }
}
