//! Compares the runs of a tranche with each other, in the background: a thousand blades take the judge a while.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use whetstone_burnin::judge::{Judgement, Options, Outlier, Sample, judge};
use whetstone_model::ids::{RunId, Serial, TrancheName};
use whetstone_model::lifecycle::Phase;
use whetstone_model::verdict::Outcome;
use whetstone_plan::{BladeView, Plan, RunState};
use whetstone_store::CohortRow;

use super::memory::Memory;
use super::{Parts, SiteError};
use crate::clock::now_ms;
use crate::metrics::{Distribution, OfWhat};

/// Samples of one tranche at most; the judge holds them in memory (5,000 blades with 8 GPUs and 50 metrics).
const MAX_SAMPLES: usize = 2_000_000;
/// Metrics whose distribution is exported.
const MAX_METRICS: usize = 100;
/// A comparison that failed is tried again after this: it reads all samples of a tranche, and what fails at once fails at once again.
const AGAIN: Duration = Duration::from_secs(30);

/// What is to be compared.
struct Job {
    tranche: TrancheName,
    fpr: f64,
    /// Runs that wait for a result.
    wanted: Vec<RunId>,
    /// Finished runs of the tranche, with the blade of each.
    cohort: Vec<(RunId, Serial)>,
}

/// Starts a comparison for each tranche that wants one and has none going on.
pub fn start(parts: &Parts, memory: &Memory, plan: &Plan) {
    for tranche in plan.tranches.iter().filter(|tranche| !tranche.judge.is_empty()) {
        if !memory.judging.begin(&tranche.tranche) {
            continue;
        }
        let job = Job {
            tranche: tranche.tranche.clone(),
            fpr: memory.site.tranches.get(&tranche.tranche).map_or(0.01, |view| view.fpr),
            wanted: tranche.judge.clone(),
            cohort: cohort(memory.site.blades.values(), &tranche.tranche),
        };
        let (parts, judging) = (parts.clone(), memory.judging.clone());
        parts.tasks.clone().spawn(async move {
            let done = run(&parts, &job).await.unwrap_or_else(|error| {
                parts.metrics.reconcile_errors.with_label_values(&[error.category()]).inc();
                warn!(tranche = %job.tranche, %error, "comparison failed, it is tried again");
                false
            });
            judging.end(&job.tranche, done, &parts.stop).await;
            parts.dirty.serials(job.cohort.into_iter().map(|(_, serial)| serial));
        });
    }
}

/// Finished runs of a tranche. Not of blades that are gone for good: what they measured is nobody's measure any more.
fn cohort<'a>(blades: impl Iterator<Item = &'a BladeView>, tranche: &TrancheName) -> Vec<(RunId, Serial)> {
    blades
        .filter(|blade| blade.tranche.as_ref() == Some(tranche) && blade.phase != Phase::Retired)
        .filter_map(|blade| {
            let run = blade.run.as_ref()?;
            matches!(run.state, RunState::Finished { .. }).then(|| (run.run, blade.serial.clone()))
        })
        .collect()
}

/// False if there is no answer.
async fn run(parts: &Parts, job: &Job) -> Result<bool, SiteError> {
    let runs: Vec<RunId> = job.cohort.iter().map(|(run, _)| *run).collect();
    let texts = parts.store.samples_of(&runs).await?;
    let blades: HashMap<RunId, Serial> = job.cohort.iter().cloned().collect();
    let fpr = job.fpr;
    let judged = tokio::task::spawn_blocking(move || {
        let samples = samples(&texts, &blades);
        let judgement = judge(&samples, &Options { fpr, seed: 0 });
        let compared = compared(&samples, &judgement);
        (distribution(&samples), judgement, compared)
    })
    .await;
    let (distribution, judgement, compared) = match judged {
        Ok(judged) => judged,
        Err(error) => {
            warn!(tranche = %job.tranche, %error, "the judge ended without an answer, it is asked again");
            return Ok(false);
        }
    };
    // It may have taken a while.
    if !parts.fence.holds() {
        return Err(SiteError::Ending);
    }
    parts.metrics.burnin_metric.replace(job.tranche.as_str(), &distribution);
    let results = results(job, &judgement, &compared);
    let outliers = results.iter().filter(|(_, result)| result.outcome == Outcome::Fail).count();
    info!(tranche = %job.tranche, runs = results.len(), cohort = job.cohort.len(), outliers, "compared");
    parts.store.store_cohort(&results).await?;
    Ok(true)
}

/// The samples of all runs. A blade is called by its serial: its name may have been another one, and another one's.
fn samples(texts: &[(RunId, Vec<u8>)], blades: &HashMap<RunId, Serial>) -> Vec<Sample> {
    let lines = texts.iter().flat_map(|(run, text)| text.split(|b| *b == b'\n').map(move |line| (run, line)));
    lines
        .filter(|(_, line)| !line.is_empty())
        .filter_map(|(run, line)| {
            let mut sample: Sample = serde_json::from_slice(line).ok()?;
            sample.blade = blades.get(run)?.to_string();
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
        .filter(|(run, _)| wanted.contains(run))
        .map(|(run, serial)| {
            let result = match worst.get(serial.as_str()) {
                Some(outlier) => {
                    let why = format!("{} {}", outlier.device, outlier.reason);
                    CohortRow { outcome: Outcome::Fail, why, at_ms }
                }
                None if compared.contains(serial.as_str()) => {
                    let why = format!("like the other blades of {}", job.tranche);
                    CohortRow { outcome: Outcome::Pass, why, at_ms }
                }
                None => {
                    let why = "no samples, or no cohort that is large enough to compare with".to_owned();
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
    /// One that is not done goes on for a while yet: it is not begun again at once.
    async fn end(&self, tranche: &TrancheName, done: bool, stop: &CancellationToken) {
        if !done {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
        self.lock().remove(tranche);
    }
    fn lock(&self) -> MutexGuard<'_, BTreeSet<TrancheName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use futures::FutureExt;
    use serde_json::json;
    use whetstone_model::action::Action;
    use whetstone_plan::{AgentView, Intent};

    use super::*;

    /// A blade of tranche `t` whose last run has passed.
    pub fn blade(serial: &str, phase: Phase, run: i64) -> BladeView {
        let (code, why) = (String::new(), String::new());
        let state = RunState::Finished { outcome: Outcome::Pass, code, why, action: Action::None };
        let run = json!({
            "run": run, "suite": "quick", "state": state, "created_ms": 0, "budget_ms": 0, "progress": "",
        });
        serde_json::from_value(json!({
            "serial": serial, "name": "b-1", "tranche": "t", "phase": phase, "since_ms": 0, "sequence": 0,
            "intent": Intent::default(), "agent": AgentView::default(), "run": run, "faults": [], "cases": [],
            "inconclusive": 0,
        }))
        .unwrap()
    }

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
            serde_json::from_value(json!({
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
    fn who_replaced_a_blade_is_compared_in_its_place() {
        let t = TrancheName::new("t").unwrap();
        let blades = [blade("S1", Phase::Retired, 1), blade("S2", Phase::BurningIn { run: RunId(2) }, 2)];
        assert_eq!(cohort(blades.iter(), &t), [(RunId(2), Serial::new("S2").unwrap())]);
        assert_eq!(cohort(blades.iter(), &TrancheName::new("other").unwrap()), []);
    }

    #[tokio::test]
    async fn a_comparison_that_failed_is_not_begun_again_at_once() {
        let (judging, stop) = (Judging::default(), CancellationToken::new());
        let t = TrancheName::new("t").unwrap();
        assert!(judging.begin(&t));
        judging.end(&t, true, &stop).await;
        assert!(judging.begin(&t), "that one was done");
        let mut ending = Box::pin(judging.end(&t, false, &stop));
        assert!(ending.as_mut().now_or_never().is_none());
        assert!(!judging.begin(&t));
        stop.cancel();
        ending.await;
        assert!(judging.begin(&t), "an operator that ends waits for nothing");
    }

    /// All samples here call their blade by the same name.
    #[test]
    fn blades_are_told_apart_bad_lines_are_left_out_and_one_without_its_like_is_like_nobody() {
        let blades: HashMap<RunId, Serial> =
            (1..=10).map(|n| (RunId(n), Serial::new(format!("S{n}")).unwrap())).collect();
        let mut texts: Vec<_> = (1..=8)
            .map(|n| (RunId(n), text("580", if n == 3 { 80.0 } else { 100.0 + n as f64 * 0.05 })))
            .collect();
        texts[0].1.extend_from_slice(b"{ not a sample\n");
        // Alone with its driver; and one that has no samples at all.
        texts.push((RunId(9), text("570", 100.0)));
        let samples = samples(&texts, &blades);
        assert_eq!(samples.len(), 72);
        let judgement = judge(&samples, &Options { fpr: 0.01, seed: 0 });
        let job = Job {
            tranche: TrancheName::new("t").unwrap(),
            fpr: 0.01,
            wanted: vec![RunId(3), RunId(4), RunId(9), RunId(10)],
            cohort: blades.into_iter().collect(),
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
