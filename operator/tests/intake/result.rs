//! Results of runs: a verdict is made of what is signed, whole and of the run that was ordered, and once.

use std::collections::BTreeMap;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use whetstone_bundle::manifest::{FileEntry, seal};
use whetstone_model::action::{Action, Severity};
use whetstone_model::device::{Device, DeviceId, DeviceKind};
use whetstone_model::evidence::Finding;
use whetstone_model::ids::RunId;
use whetstone_model::report::{self, Blade, Report, SuiteRef, Versions};
use whetstone_model::verdict::{Outcome, Verdict};
use whetstone_model::wire::error_code::*;
use whetstone_model::wire::*;
use whetstone_operator::intake::{self, What};
use whetstone_operator::site::{self, view};
use whetstone_store::RunState;

use crate::report::{SUITE, run, run_of, start};
use crate::site::*;

/// A report of a run with this seed; `outcome` about `gpu5`.
pub fn report_of(blade: &str, seed: u64, outcome: Outcome) -> Report {
    let device = DeviceId::new(format!("GPU-{blade}-5")).unwrap();
    let failed = outcome == Outcome::Fail;
    let finding =
        Finding { device: Some(device.clone()), detail: "wrong bits on SM 41".into(), ..fault("sdc") };
    assert_eq!(finding.severity, Severity::Fault);
    Report {
        schema: report::SCHEMA.into(),
        run: format!("{blade}-20261126T120000-{seed:04x}"),
        blade: Blade { name: blade.into(), serial: None, sku: Some("hgx-h100".into()), kernel: "6.1".into() },
        simulated: true,
        suite: SuiteRef { name: "quick".into(), sha256: sha256(SUITE), seed },
        versions: Versions {
            whet: "0.1.0".into(),
            driver: Some("580.1".into()),
            cuda: None,
            nccl: None,
            vbios: None,
            kernels: None,
        },
        started_ms: 1,
        ended_ms: Some(2),
        complete: true,
        incomplete_because: None,
        devices: vec![Device {
            id: device.clone(),
            kind: DeviceKind::Gpu,
            label: "gpu5".into(),
            model: "H100 (sim)".into(),
            serial: Some("G55".into()),
            pci: None,
        }],
        verdict: Verdict {
            device: failed.then_some(device),
            outcome,
            code: if failed { "sdc" } else { "ok" }.into(),
            why: if failed { "gpu5 sdc: wrong bits on SM 41" } else { "" }.into(),
            action: if failed { Action::Replace } else { Action::None },
            evidence: if failed { vec![8812] } else { vec![] },
        },
        device_verdicts: vec![],
        tests: vec![],
        findings: if failed { vec![finding] } else { vec![] },
        series: vec![],
    }
}

pub fn result_of(agent: &Agent, run: RunId, report: &Report, samples: &str, key: &SigningKey) -> RunResult {
    let report_json = serde_json::to_string_pretty(report).unwrap();
    let files = BTreeMap::from([
        ("report.json".to_owned(), FileEntry::of(report_json.as_bytes())),
        ("samples.jsonl".to_owned(), FileEntry::of(samples.as_bytes())),
        ("raw/facts.json".to_owned(), FileEntry::of(b"stays on the blade")),
    ]);
    let sealed = seal(&report.run, files, key).unwrap();
    RunResult {
        run,
        serial: agent.serial.clone(),
        instance: agent.instance.clone(),
        report_json,
        samples_jsonl: samples.into(),
        manifest_json: sealed.manifest_json,
        signature: sealed.signature,
    }
}

pub fn pack(result: &RunResult) -> Vec<u8> {
    zstd::encode_all(serde_json::to_vec(result).unwrap().as_slice(), 3).unwrap()
}

fn put(agent: &Agent, result: &RunResult) -> Answer {
    agent.put_result(result.run.0, &pack(result))
}

fn state(site: &Site) -> RunState {
    site.wait(site.store.load_site()).unwrap().blades.remove(0).run.unwrap().state
}

#[test]
fn a_result_becomes_one_verdict_and_another_one_is_refused() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    let run = run(&site, 42);
    let good = result_of(&agent, run, &report_of("b-1", 42, Outcome::Fail), "", &agent.signer);
    assert_eq!(put(&agent, &good).status, 204);
    assert!(site.has_heard("S1", What::Result(run)));
    let RunState::Finished { outcome, code, why, action } = state(&site) else { panic!("not finished") };
    assert_eq!((outcome, code.as_str(), action), (Outcome::Fail, "sdc", Action::Replace));
    assert_eq!(why, "gpu5 sdc: wrong bits on SM 41");

    // The answer was lost: the same bytes, also packed otherwise, change nothing.
    let news = site.heard().len();
    assert_eq!(put(&agent, &good).status, 204);
    let otherwise = zstd::encode_all(serde_json::to_vec(&good).unwrap().as_slice(), 9).unwrap();
    assert_eq!(agent.put_result(run.0, &otherwise).status, 204);
    let other = result_of(&agent, run, &report_of("b-1", 42, Outcome::Pass), "", &agent.signer);
    put(&agent, &other).refused(409, RESULT_DIFFERS);
    assert_eq!(site.heard().len(), news);
    assert!(
        matches!(state(&site), RunState::Finished { outcome: Outcome::Fail, .. }),
        "a verdict has changed"
    );
    let history = site.wait(site.store.history("S1")).unwrap().unwrap();
    assert_eq!(history.verdicts.len(), 1);
    assert_eq!(history.verdicts[0].evidence, [8812]);
    site.until("an audit line", || site.audited("refused", "S1 result-differs"));
    assert_eq!(agent.send(&agent.report(vec![])).json::<ReportAnswer>().order, None);
}

#[test]
fn every_changed_part_and_every_strange_signer_is_refused() {
    let site = Site::start(2);
    let agent = site.joined("S1");
    let run = run(&site, 42);
    let report = report_of("b-1", 42, Outcome::Pass);
    let good = result_of(&agent, run, &report, "{\"x\":1}\n", &agent.signer);
    let flip = |text: &str, at: usize| {
        let mut bytes = text.as_bytes().to_vec();
        bytes[at] ^= 1;
        String::from_utf8(bytes).unwrap()
    };
    for at in (0..good.report_json.len()).step_by(97) {
        let bad = RunResult { report_json: flip(&good.report_json, at), ..good.clone() };
        put(&agent, &bad).refused(400, BAD_REQUEST);
    }
    for at in (0..good.manifest_json.len()).step_by(41) {
        put(&agent, &RunResult { manifest_json: flip(&good.manifest_json, at), ..good.clone() })
            .refused(400, BAD_REQUEST);
    }
    let other_key = SigningKey::from_bytes(&[9; 32]);
    let by_other = result_of(&agent, run, &report, "", &other_key);
    let signed_cut = Report { complete: false, ..report.clone() };
    let of_seed = |seed| result_of(&agent, run, &report_of("b-1", seed, Outcome::Pass), "", &agent.signer);
    let of_suite =
        Report { suite: SuiteRef { sha256: sha256("x"), ..report.suite.clone() }, ..report.clone() };
    let two_runs = {
        let renamed = Report { run: "another".into(), ..report.clone() };
        let json = serde_json::to_string_pretty(&renamed).unwrap();
        let files = BTreeMap::from([
            ("report.json".to_owned(), FileEntry::of(json.as_bytes())),
            ("samples.jsonl".to_owned(), FileEntry::of(b"")),
        ]);
        let sealed = seal(&report.run, files, &agent.signer).unwrap();
        RunResult {
            report_json: json,
            samples_jsonl: String::new(),
            manifest_json: sealed.manifest_json,
            signature: sealed.signature,
            ..good.clone()
        }
    };
    for (bad, says) in [
        (RunResult { samples_jsonl: String::new(), ..good.clone() }, "samples.jsonl is not what was signed"),
        (RunResult { signature: flip(&good.signature, 3), ..good.clone() }, "signature"),
        (RunResult { signature: String::new(), ..good.clone() }, "signature"),
        (by_other, "another key"),
        (of_seed(41), "another suite or seed"),
        (result_of(&agent, run, &of_suite, "", &agent.signer), "another suite or seed"),
        (result_of(&agent, run, &signed_cut, "", &agent.signer), "cut off"),
        (two_runs, "two runs"),
    ] {
        let message = put(&agent, &bad).refused(400, BAD_REQUEST);
        assert!(message.contains(says), "{message:?} does not say {says:?}");
    }
    assert!(matches!(state(&site), RunState::Ordered), "{:?}", state(&site));
    site.until("an audit line", || site.audited("refused", "S1 signature"));
    assert_eq!(put(&agent, &good).status, 204);
}

#[test]
fn a_result_of_no_run_of_another_blades_run_or_of_a_run_given_up_is_refused() {
    let site = Site::start(2);
    let (agent, other) = (site.joined("S1"), site.joined("S2"));
    let run = run(&site, 42);
    let report = report_of("b-1", 42, Outcome::Pass);
    let of_other = result_of(&other, run, &report, "", &other.signer);
    put(&other, &of_other).refused(404, NO_SUCH_RUN);
    let none = RunId(run.0 + 1);
    put(&agent, &result_of(&agent, none, &report, "", &agent.signer)).refused(404, NO_SUCH_RUN);
    let good = result_of(&agent, run, &report, "", &agent.signer);
    // Addressed to one run, speaking of another; of another blade.
    let astray = RunResult { run: none, ..good.clone() };
    agent.put_result(run.0, &pack(&astray)).refused(400, BAD_REQUEST);
    put(&agent, &RunResult { serial: other.serial.clone(), ..good.clone() }).refused(403, WRONG_BLADE);
    Answer::of(agent.http.put(format!("{}/v1/runs/x/result", agent.url)).send(&[0u8][..]))
        .refused(404, NO_SUCH_RUN);

    let lost = whetstone_store::RunEndState::Lost { why: "silent".into() };
    assert!(site.wait(site.store.end_run(run, &lost, now_ms())).unwrap());
    put(&agent, &good).refused(404, NO_SUCH_RUN);
    assert!(matches!(state(&site), RunState::Lost { .. }));
}

#[test]
fn a_result_that_unpacks_without_end_is_refused() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    let run = run(&site, 42);
    let bomb =
        zstd::encode_all(std::io::Read::take(std::io::repeat(b' '), MAX_RESULT as u64 + 1), 3).unwrap();
    assert!(bomb.len() < 100_000);
    agent.put_result(run.0, &bomb).refused(413, BAD_REQUEST);
    let agent = {
        let mut agent = agent;
        agent.take(agent.certificate.clone().unwrap());
        agent
    };
    for bad in [&b"not zstd"[..], b"", &bomb[..bomb.len() / 2]] {
        agent.put_result(run.0, bad).refused(400, BAD_REQUEST);
    }
    agent.put_result(run.0, &vec![0; MAX_RESULT_SENT + 1]).refused(413, BAD_REQUEST);
    assert!(matches!(state(&site), RunState::Ordered));
}

/// The operator's own run of `S1`, and a passed report of it.
fn own_run(site: &Site) -> (RunId, Report) {
    let row = site.wait(site.store.load_site()).unwrap().blades.remove(0);
    let blade = view::blade(&row, Default::default(), None);
    let new = site::new_run(&BTreeMap::new(), &blade, "quick", "a burn-in").unwrap();
    let mut report = report_of("b-1", new.seed, Outcome::Pass);
    report.suite.sha256 = sha256(&new.suite_text);
    (start(site, "S1", &new), report)
}

#[test]
fn the_result_of_an_old_run_is_none_of_a_new_one() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    let (old, report) = own_run(&site);
    let good = result_of(&agent, old, &report, "", &agent.signer);
    assert_eq!(put(&agent, &good).status, 204);

    let (new, _) = own_run(&site);
    assert!(new > old);
    let news = site.heard().len();
    let message = put(&agent, &RunResult { run: new, ..good.clone() }).refused(400, BAD_REQUEST);
    assert!(message.contains("another suite or seed"), "{message}");
    assert_eq!(site.refused("signature"), 1.0);
    site.until("an audit line", || site.audited("refused", "S1 signature"));
    assert!(matches!(state(&site), RunState::Ordered), "{:?}", state(&site));
    assert_eq!(site.heard().len(), news);
    let history = site.wait(site.store.history("S1")).unwrap().unwrap();
    assert_eq!(history.verdicts.len(), 1, "a verdict was made of it");
}

#[test]
fn one_bundle_is_the_result_of_one_run_even_if_another_has_its_seed() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    let old = run(&site, 42);
    let good = result_of(&agent, old, &report_of("b-1", 42, Outcome::Pass), "", &agent.signer);
    assert_eq!(put(&agent, &good).status, 204);
    let new = run(&site, 42);
    let message = put(&agent, &RunResult { run: new, ..good.clone() }).refused(400, BAD_REQUEST);
    assert!(message.contains(&format!("the result of run {old}")), "{message}");
    assert!(matches!(state(&site), RunState::Ordered), "{:?}", state(&site));
    // An old run is over and done with once there is a new one: nobody reads what comes of it.
    put(&agent, &good).refused(404, NO_SUCH_RUN);
    let fresh = result_of(&agent, new, &report_of("b-1", 42, Outcome::Fail), "", &agent.signer);
    assert_eq!(put(&agent, &fresh).status, 204);
    assert_eq!(put(&agent, &fresh).status, 204, "the answer may have been lost");
}

/// A result that comes in byte by byte.
fn trickle(agent: &Agent, run: RunId) -> u16 {
    let body = ureq::SendBody::from_owned_reader(crate::bodies::Trickle(0));
    let request = agent.http.put(format!("{}/v1/runs/{run}/result", agent.url));
    // The server may hang up while the client still sends.
    request.header("content-encoding", "zstd").send(body).map_or(0, |answer| answer.status().as_u16())
}

#[test]
fn a_result_that_trickles_in_keeps_nobody_out_and_is_cut_off() {
    let pace = intake::Pace { grace: Duration::from_secs(3), bytes_per_s: 1 << 20 };
    let site = Site::with(2, intake::Config { result_pace: pace, results: 1, ..Default::default() });
    let (slow, other) = (site.joined("S2"), site.joined("S1"));
    let run = run(&site, 42);
    let of_slow = run_of(&site, "S2", 7);
    let second = {
        let mut second = Agent::new(&site, "S2");
        (second.instance, second.key) =
            (slow.instance.clone(), rcgen::KeyPair::try_from(slow.key.serialize_der()).unwrap());
        second.take(slow.certificate.clone().unwrap());
        second
    };
    let begun = std::time::Instant::now();
    std::thread::scope(|scope| {
        let trickling = scope.spawn(|| trickle(&slow, of_slow));
        // As soon as the first is on its way, a second of the same blade is not let in.
        site.until("a refusal", || {
            let answer = second.put_result(of_slow.0, b"");
            answer.status == 503 && site.refused("busy") >= 1.0
        });
        let good = result_of(&other, run, &report_of("b-1", 42, Outcome::Pass), "", &other.signer);
        assert_eq!(put(&other, &good).status, 204, "one agent has shut out another");
        assert!(!trickling.is_finished(), "it was over before the other one was tried");
        assert!(matches!(trickling.join().unwrap(), 0 | 408));
    });
    assert!(begun.elapsed() < Duration::from_secs(9), "it was let finish");
    site.until("the slow body to be counted", || site.refused("slow") == 1.0);
}
