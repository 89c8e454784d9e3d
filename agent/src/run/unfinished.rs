//! Bundles of runs that did not come to their own end: cut off with the agent, or never begun.
//!
//! They are signed like any other, so that whoever ordered a run always gets a result that can be trusted.

use std::fs;
use std::path::Path;

use ed25519_dalek::SigningKey;
use sha2::{Digest as _, Sha256};
use whetstone_model::action::Action;
use whetstone_model::report::{Blade, Report, SCHEMA, SuiteRef, Versions};
use whetstone_model::verdict::{Outcome, Verdict};

use super::{begin, now_ms, plan, samples};
use crate::bundle::{Bundle, BundleError, html, manifest, read_report, write_atomic};

/// A run of which nothing was tested.
#[derive(Debug, Clone)]
pub struct Untested<'a> {
    pub blade: Blade,
    pub versions: Versions,
    pub simulated: bool,
    pub suite_name: &'a str,
    pub suite_text: &'a str,
    pub seed: u64,
    /// The verdict's code.
    pub code: &'a str,
    pub why: &'a str,
}

/// Writes and signs the bundle of a run that was not begun. `dir` is made, or empty.
pub fn untested(dir: &Path, run: &Untested<'_>, key: &SigningKey) -> Result<Report, BundleError> {
    let started_ms = now_ms();
    let report = Report {
        schema: SCHEMA.to_owned(),
        run: begin::run_id(&run.blade.name, started_ms, run.seed),
        blade: run.blade.clone(),
        simulated: run.simulated,
        suite: SuiteRef {
            name: run.suite_name.to_owned(),
            sha256: hex::encode(Sha256::digest(run.suite_text.as_bytes())),
            seed: run.seed,
        },
        versions: run.versions.clone(),
        started_ms,
        ended_ms: Some(started_ms),
        complete: false,
        incomplete_because: Some(run.why.to_owned()),
        devices: Vec::new(),
        verdict: inconclusive(run.code, run.why),
        device_verdicts: Vec::new(),
        tests: Vec::new(),
        findings: Vec::new(),
        series: Vec::new(),
    };
    let bundle = Bundle::create(dir)?;
    bundle.raw("suite.toml", run.suite_text.as_bytes())?;
    bundle.finish(&report, "", key)?;
    Ok(report)
}

/// Brings the bundle of a run that was cut off to an end: what was tested stands, the rest is open, `why` says so.
/// A fault that was found before the end stays a fault.
pub fn cut_off(dir: &Path, code: &str, why: &str, key: &SigningKey) -> Result<Report, BundleError> {
    let mut report = read_report(dir)?;
    report.ended_ms = Some(now_ms());
    report.complete = false;
    report.incomplete_because = Some(why.to_owned());
    if report.verdict.outcome != Outcome::Fail {
        report.verdict = inconclusive(code, why);
    }
    for verdict in &mut report.device_verdicts {
        if verdict.outcome != Outcome::Fail {
            *verdict = Verdict { device: verdict.device.clone(), ..inconclusive(code, why) };
        }
    }
    // What tests left, and what was half written: neither is evidence.
    let _ = plan::remove_scratch(dir);
    for folder in [dir.to_owned(), dir.join("raw")] {
        for entry in fs::read_dir(&folder).map_err(BundleError::io(&folder))? {
            let path = entry.map_err(BundleError::io(&folder))?.path();
            if path.extension().is_some_and(|end| end == "partial") {
                fs::remove_file(&path).map_err(BundleError::io(&path))?;
            }
        }
    }
    let path = dir.join("report.json");
    let mut json = serde_json::to_vec_pretty(&report)
        .map_err(|e| BundleError::Malformed { path: path.clone(), what: e.to_string() })?;
    json.push(b'\n');
    write_atomic(&path, &json)?;
    write_atomic(&dir.join("samples.jsonl"), samples::samples(&report).as_bytes())?;
    write_atomic(&dir.join("report.html"), html::render(&report).as_bytes())?;
    manifest::sign(dir, &report.run, key)?;
    Ok(report)
}

fn inconclusive(code: &str, why: &str) -> Verdict {
    Verdict {
        device: None,
        outcome: Outcome::Inconclusive,
        code: code.to_owned(),
        why: why.to_owned(),
        action: Action::DrainAndTest,
        evidence: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(dir: &Path, key: &SigningKey) -> Report {
        let run = Untested {
            blade: Blade { name: "b-1".into(), serial: None, sku: None, kernel: String::new() },
            versions: Versions {
                whet: "0".into(),
                driver: None,
                cuda: None,
                nccl: None,
                vbios: None,
                kernels: None,
            },
            simulated: false,
            suite_name: "s",
            suite_text: "rubbish",
            seed: 7,
            code: "refused",
            why: "suite: rubbish",
        };
        untested(dir, &run, key).unwrap()
    }

    #[test]
    fn a_run_that_was_not_begun_is_inconclusive_signed_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::from_bytes(&[3; 32]);
        let report = make(&dir.path().join("b"), &key);
        assert_eq!(
            (report.verdict.outcome, report.verdict.code.as_str()),
            (Outcome::Inconclusive, "refused")
        );
        let verified = manifest::verify(&dir.path().join("b"), &[key.verifying_key()]).unwrap();
        assert_eq!((verified.run, verified.trusted), (report.run, true));
    }

    #[test]
    fn a_run_that_was_cut_off_keeps_its_fault_and_never_passes() {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::from_bytes(&[3; 32]);
        for (before, after) in [
            (Outcome::Pass, Outcome::Inconclusive),
            (Outcome::Inconclusive, Outcome::Inconclusive),
            (Outcome::Fail, Outcome::Fail),
        ] {
            let bundle = dir.path().join(before.as_str());
            let mut report = make(&bundle, &key);
            report.verdict.outcome = before;
            report.ended_ms = None;
            fs::write(bundle.join("report.json"), serde_json::to_vec(&report).unwrap()).unwrap();
            fs::remove_file(bundle.join("manifest.sig")).unwrap();
            fs::write(bundle.join("report.json.partial"), "{").unwrap();
            fs::create_dir_all(bundle.join("scratch/t")).unwrap();
            let ended = cut_off(&bundle, "agent-restarted", "agent restarted", &key).unwrap();
            assert_eq!(ended.verdict.outcome, after);
            assert!(!ended.complete && ended.ended_ms.is_some());
            manifest::verify(&bundle, &[key.verifying_key()]).unwrap();
            assert!(!bundle.join("scratch").exists() && !bundle.join("report.json.partial").exists());
        }
    }
}
