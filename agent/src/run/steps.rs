//! A run as it goes: what is known so far, one test after the other.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use ed25519_dalek::SigningKey;
use whetstone_burnin::protocol::{Event, GpuTarget, Request};
use whetstone_burnin::suite::{Scope, Test, TestKind};
use whetstone_burnin::verdict::{Gap, Input, decide};
use whetstone_burnin::{agreement, inventory};
use whetstone_model::action::{Action, Severity};
use whetstone_model::device::DeviceId;
use whetstone_model::evidence::{Body, Evidence, Finding};
use whetstone_model::facts::Facts;
use whetstone_model::health::{self, Counters};
use whetstone_model::report::{DeviceOutcome, Report, TestOutcome, TestResult};
use whetstone_model::threshold::{Judged, Table};

use super::record::Recorder;
use super::watch::Watch;
use super::{Backend, Cancel, Observer, RunOptions, begin, child, now_ms, samples};
use crate::bundle::{Bundle, BundleError};
use crate::probe::{self, Probe};

/// A run between its begin and its end.
pub(super) struct Run<'a> {
    options: &'a RunOptions,
    bundle: Bundle,
    report: Report,
    findings: Vec<(u64, Finding)>,
    gaps: Vec<Gap>,
    table: Table,
    /// The last look at the blade; each test's counters are compared with the look before it.
    facts: Facts,
    looked: Instant,
    /// Devices that hung or crashed a test, with the test's name: they are not touched again in this run.
    out_of_use: BTreeMap<DeviceId, String>,
    watch: Watch,
}

impl<'a> Run<'a> {
    /// Looks at the blade and writes the first checkpoint.
    pub fn begin(
        options: &'a RunOptions,
        mut bundle: Bundle,
        observer: &mut dyn Observer,
    ) -> Result<Run<'a>, BundleError> {
        let table = Table::built_in().map_err(|e| BundleError::Malformed {
            path: "built-in thresholds".into(),
            what: e.to_string(),
        })?;
        bundle.raw("suite.toml", options.suite_text.as_bytes())?;
        let Probe { facts, findings } = probe::probe(&options.probe);
        let report = begin::report(options, &facts, &table);
        begin::keep_facts(&bundle, "facts-before.json", &facts)?;
        bundle.checkpoint(&report)?;
        let watch = Watch::start(options, &facts, report.started_ms);
        let mut run = Run {
            options,
            bundle,
            report,
            findings: Vec::new(),
            gaps: begin::gaps(options.backend, &facts, &findings),
            table,
            facts,
            looked: Instant::now(),
            out_of_use: BTreeMap::new(),
            watch,
        };
        for finding in findings {
            run.found(observer, "probe", finding)?;
        }
        if let Some(why) = run.watch.blind().map(str::to_owned) {
            run.cannot_read_kernel_log(observer, why)?;
        }
        Ok(run)
    }

    /// Runs one test of the suite and keeps what it gave.
    pub fn step(
        &mut self,
        test: &Test,
        cancel: &Cancel,
        observer: &mut dyn Observer,
    ) -> Result<&TestResult, BundleError> {
        let before_test = self.watch.test_begins(&self.facts);
        for finding in before_test {
            self.found(observer, "kmsg", finding)?;
        }
        let mut recorder =
            Recorder::new(&mut self.bundle, TestResult::empty(&test.name, test.kind.name(), now_ms()));
        let labels = &self.report.devices;
        let label = |id: &Option<DeviceId>| {
            id.as_ref().and_then(|id| labels.iter().find(|d| d.id == *id)).map(|d| d.label.as_str())
        };
        let (requests, left_out, not_applicable) =
            requests(self.options, &self.facts, &self.out_of_use, test);
        let mut failed: Option<BundleError> = None;
        let mut ends = Vec::new();
        if let TestKind::Inventory(_) = test.kind {
            let profile = self.report.blade.sku.as_deref().and_then(|sku| self.table.profile(sku));
            for finding in inventory::check(&self.facts, profile) {
                observer.found(&finding, label(&finding.device));
                recorder.finding("probe", finding)?;
            }
            recorder.result.outcome = TestOutcome::Pass;
            recorder.result.detail.clear();
            if profile.is_none() && !self.facts.gpus.is_empty() {
                recorder
                    .result
                    .notes
                    .push("no SKU profile fits this blade: GPUs were compared with each other only".into());
            }
        } else {
            for request in &requests {
                std::fs::create_dir_all(&request.scratch).map_err(BundleError::io(&request.scratch))?;
            }
            let parts = requests.len().max(1) as f64;
            let mut done = vec![0.0; requests.len()];
            let watch = &mut self.watch;
            ends = child::run_all(&self.options.launcher, &requests, cancel, &mut |index, event| {
                watch.poll();
                match &event {
                    Event::Progress { done: part, doing } => {
                        done[index] = part.clamp(0.0, 1.0);
                        observer.progress(done.iter().sum::<f64>() / parts, doing);
                    }
                    Event::Finding(finding) => observer.found(finding, label(&finding.device)),
                    _ => {}
                }
                if let Err(e) = recorder.event(source(&test.kind), event) {
                    cancel.request();
                    failed.get_or_insert(e);
                }
            });
        }
        if let Some(e) = failed {
            return Err(e);
        }
        remove_scratch(&self.options.out)?;
        for (request, end) in requests.iter().zip(&ends) {
            if !end.stderr.is_empty() {
                let of = request
                    .gpus
                    .first()
                    .filter(|_| request.gpus.len() == 1)
                    .map_or("all", |g| g.label.as_str());
                recorder.bundle.raw(&format!("{}.{of}.stderr.txt", test.name), &end.stderr)?;
            }
            if let [gpu] = request.gpus.as_slice() {
                let (outcome, detail) = (end.outcome, end.detail.clone());
                recorder.result.devices.push(DeviceOutcome { device: gpu.uuid.clone(), outcome, detail });
                if end.broken && !cancel.requested() {
                    self.out_of_use.insert(gpu.uuid.clone(), test.name.clone());
                }
            }
        }
        recorder.result.devices.extend(left_out);
        outcome(&mut recorder.result, &ends, not_applicable);

        // What happened meanwhile: counters, telemetry, the kernel log, devices that disagree, floors.
        let seconds = self.looked.elapsed().as_secs_f64();
        let Probe { facts, findings: now } = probe::probe(&self.options.probe);
        let sku = self.report.blade.sku.as_deref();
        let (before, after) = (Counters::of(&self.facts), Counters::of(&facts));
        let mut more = health::deltas(&before, &after, seconds, sku, &self.table);
        more.extend(health::vanished(&self.facts, &facts, &self.table));
        more.extend(now.into_iter().filter(|f| !self.findings.iter().any(|(_, old)| same(old, f))));
        more.extend(agreement::disagreements(&recorder.result.digests));
        let load = self.watch.test_ended(&test.kind, &facts, sku, &self.table);
        for reading in load.readings {
            recorder.event("nvml", Event::Reading(reading))?;
        }
        for (device, line) in load.kernel_lines {
            recorder.evidence("kmsg", device, Body::KernelLine { line })?;
        }
        more.extend(load.findings);
        more.extend(floors(&self.table, sku, &recorder.result));
        for finding in more {
            let old = recorder.result.findings.iter().any(|f| same(f, &finding));
            if !old {
                observer.found(&finding, label(&finding.device));
                recorder.finding("runner", finding)?;
            }
        }
        if recorder.result.outcome == TestOutcome::Fail && !has_fault(&recorder.result) {
            let detail = format!("{}: {}", test.name, recorder.result.detail);
            recorder.finding("runner", failed_without_finding(detail))?;
        }
        self.facts = facts;
        self.looked = Instant::now();

        let (mut result, findings) = recorder.end();
        settle(&mut result);
        result.ended_ms = now_ms();
        self.findings.extend(findings);
        self.report.tests.push(result);
        self.refresh();
        self.report.incomplete_because = Some(format!(
            "running: {} of {} tests done",
            self.report.tests.len(),
            self.options.suite.tests.len()
        ));
        self.bundle.checkpoint(&self.report)?;
        Ok(&self.report.tests[self.report.tests.len() - 1])
    }

    /// The last look, the verdict, the signature.
    pub fn finish(
        mut self,
        cancel: &Cancel,
        observer: &mut dyn Observer,
        key: &SigningKey,
    ) -> Result<Report, BundleError> {
        let Probe { facts, findings } = probe::probe(&self.options.probe);
        begin::keep_facts(&self.bundle, "facts-after.json", &facts)?;
        let gaps = begin::gaps(self.options.backend, &facts, &findings);
        for finding in findings {
            if !self.findings.iter().any(|(_, old)| same(old, &finding)) {
                self.found(observer, "probe", finding)?;
            }
        }
        for gap in gaps {
            if !self.gaps.contains(&gap) {
                self.gaps.push(gap);
            }
        }
        self.report.series = self.watch.stop();
        let (done, of) = (self.report.tests.len(), self.options.suite.tests.len());
        let interrupted = cancel.requested();
        self.report.complete = !interrupted && done == of;
        self.report.incomplete_because =
            (!self.report.complete).then(|| format!("interrupted: {done} of {of} tests were begun"));
        self.report.ended_ms = Some(now_ms());
        self.refresh();
        let samples = samples::samples(&self.report);
        self.bundle.finish(&self.report, &samples, key)?;
        Ok(self.report)
    }

    /// Some faults of a GPU are told by the kernel log alone: without it, GPUs cannot pass.
    fn cannot_read_kernel_log(
        &mut self,
        observer: &mut dyn Observer,
        why: String,
    ) -> Result<(), BundleError> {
        let (code, action) = ("kernel-log-unreadable", Action::UpdateSoftware);
        if !self.facts.gpus.is_empty() && self.options.backend != Backend::Cpu {
            self.gaps.push(Gap { device: None, code: code.to_owned(), why: why.clone(), action });
        }
        let severity = Severity::Warning;
        let finding =
            Finding { code: code.into(), device: None, severity, action, detail: why, reading: None };
        self.found(observer, "kmsg", finding)
    }

    fn found(
        &mut self,
        observer: &mut dyn Observer,
        source: &str,
        finding: Finding,
    ) -> Result<(), BundleError> {
        let id = self.bundle.record(Evidence {
            id: 0,
            at_ms: now_ms(),
            test: None,
            device: finding.device.clone(),
            source: source.to_owned(),
            body: Body::Finding(finding.clone()),
        })?;
        let known = self.report.devices.iter().find(|d| Some(&d.id) == finding.device.as_ref());
        observer.found(&finding, known.map(|d| d.label.as_str()));
        self.findings.push((id, finding));
        Ok(())
    }

    /// Verdicts and findings of the report from what is known now.
    fn refresh(&mut self) {
        let mut gaps = self.gaps.clone();
        if !self.report.complete {
            let why = self.report.incomplete_because.clone().unwrap_or_else(|| "running".to_owned());
            gaps.push(Gap { device: None, code: "not-complete".into(), why, action: Action::DrainAndTest });
        }
        let (blade, each) = decide(&Input {
            devices: &self.report.devices,
            findings: &self.findings,
            tests: &self.report.tests,
            gaps: &gaps,
        });
        self.report.verdict = blade;
        self.report.device_verdicts = each;
        let mut findings: Vec<Finding> = self.findings.iter().map(|(_, f)| f.clone()).collect();
        findings.sort_by_key(|f| std::cmp::Reverse((f.severity, f.action)));
        self.report.findings = findings;
    }
}

/// Two looks at the same thing.
fn same(a: &Finding, b: &Finding) -> bool {
    a.code == b.code && a.device == b.device && a.severity == b.severity
}

/// Where test processes may put files; gone after each test, whatever they left.
const SCRATCH: &str = "scratch";

fn remove_scratch(bundle: &Path) -> Result<(), BundleError> {
    let scratch = bundle.join(SCRATCH);
    match std::fs::remove_dir_all(&scratch) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(BundleError::io(&scratch)(e)),
        _ => Ok(()),
    }
}

/// The processes of a test, the devices that are left out of it, and why it may not apply at all.
fn requests(
    options: &RunOptions,
    facts: &Facts,
    out_of_use: &BTreeMap<DeviceId, String>,
    test: &Test,
) -> (Vec<Request>, Vec<DeviceOutcome>, Option<String>) {
    let request = |gpus: Vec<GpuTarget>| Request {
        name: test.name.clone(),
        kind: test.kind.clone(),
        seed: options.seed,
        budget_s: test.budget_s,
        // A GPU's own, since its test runs beside those of the others.
        scratch: match gpus.as_slice() {
            [gpu] => options.out.join(SCRATCH).join(&test.name).join(&gpu.label),
            _ => options.out.join(SCRATCH).join(&test.name),
        },
        gpus,
    };
    let scope = test.kind.scope();
    if matches!(scope, Scope::Facts) {
        return (Vec::new(), Vec::new(), None);
    }
    if matches!(scope, Scope::Host) {
        return (vec![request(Vec::new())], Vec::new(), None);
    }
    if options.backend == Backend::Cpu {
        return (Vec::new(), Vec::new(), Some("GPUs left out by --backend cpu".to_owned()));
    }
    if facts.gpus.is_empty() && facts.gpu_gaps.is_empty() {
        return (Vec::new(), Vec::new(), Some("no GPU".to_owned()));
    }
    let (unusable, usable): (Vec<_>, Vec<_>) =
        facts.gpus.iter().partition(|g| out_of_use.contains_key(&g.uuid));
    let mut left_out: Vec<DeviceOutcome> = unusable
        .iter()
        .map(|gpu| DeviceOutcome {
            device: gpu.uuid.clone(),
            outcome: TestOutcome::Inconclusive,
            detail: format!("left out: it did not come back from test {}", out_of_use[&gpu.uuid]),
        })
        .collect();
    left_out.extend(facts.gpu_gaps.iter().filter_map(|gap| {
        let detail = format!("left out: {}", gap.detail);
        Some(DeviceOutcome { device: gap.device()?, outcome: TestOutcome::Inconclusive, detail })
    }));
    let mut targets = usable.iter().map(|g| GpuTarget { uuid: g.uuid.clone(), label: g.label() });
    let requests = match scope {
        Scope::EachGpu => targets.map(|gpu| request(vec![gpu])).collect(),
        _ if targets.len() > 0 => vec![request(targets.by_ref().collect())],
        _ => Vec::new(),
    };
    (requests, left_out, None)
}

fn source(kind: &TestKind) -> &'static str {
    match kind {
        TestKind::GpuCollectives(_) => "nccl",
        kind if kind.scope() == Scope::Host => "cpu",
        _ => "cuda",
    }
}

/// The test's outcome from those of its processes.
fn outcome(result: &mut TestResult, ends: &[child::End], not_applicable: Option<String>) {
    if let Some(why) = not_applicable {
        (result.outcome, result.detail) = (TestOutcome::NotApplicable, why);
        return;
    }
    if result.kind == "inventory" {
        return;
    }
    let parts = ends
        .iter()
        .map(|e| (e.outcome, &e.detail))
        .chain(result.devices.iter().map(|d| (d.outcome, &d.detail)));
    let rank = |outcome: TestOutcome| match outcome {
        TestOutcome::Fail => 3,
        TestOutcome::Inconclusive => 2,
        TestOutcome::Pass => 1,
        TestOutcome::NotApplicable => 0,
    };
    // `min_by_key` takes the first of several equal ones, `max_by_key` would take the last.
    let worst = parts.min_by_key(|(outcome, _)| std::cmp::Reverse(rank(*outcome)));
    (result.outcome, result.detail) = worst
        .map(|(outcome, detail)| (outcome, detail.clone()))
        .unwrap_or_else(|| (TestOutcome::Inconclusive, "no device could be used".to_owned()));
}

fn has_fault(result: &TestResult) -> bool {
    result.findings.iter().any(|f| f.severity == Severity::Fault)
}

/// A verdict rests on findings, so a failure that named none gets one.
fn failed_without_finding(detail: String) -> Finding {
    let (device, action) = (None, Action::DrainAndTest);
    Finding { code: "test-failed".into(), device, severity: Severity::Fault, action, detail, reading: None }
}

/// A fault found during a test fails the test, whatever the test itself said.
fn settle(result: &mut TestResult) {
    let fault = result.findings.iter().find(|f| f.severity == Severity::Fault);
    if let Some(fault) = fault
        && result.outcome != TestOutcome::Fail
    {
        result.detail = fault.detail.clone();
        result.outcome = TestOutcome::Fail;
    }
    for device in &mut result.devices {
        if result
            .findings
            .iter()
            .any(|f| f.severity == Severity::Fault && f.device.as_ref() == Some(&device.device))
        {
            device.outcome = TestOutcome::Fail;
        }
    }
}

/// Readings under their floor (or over their ceiling) as findings. A unit that does not fit is a finding too.
fn floors(table: &Table, sku: Option<&str>, result: &TestResult) -> Vec<Finding> {
    let judge = |r: &whetstone_model::report::DeviceReading| {
        let (severity, action, detail) = match table.judge(sku, &r.reading) {
            Ok(judgement) => {
                let severity = match judgement.judged {
                    Judged::Fail => Severity::Fault,
                    Judged::Warn => Severity::Warning,
                    Judged::Pass | Judged::NotJudged(_) => return None,
                };
                (severity, Action::DrainAndTest, format!("{} {}", r.reading.metric, judgement.sentence()))
            }
            Err(e) => (Severity::Warning, Action::ContactSupport, e.to_string()),
        };
        Some(Finding {
            code: format!("threshold-{}", r.reading.metric.replace(['.', '_'], "-")),
            device: r.device.clone(),
            severity,
            action,
            detail,
            reading: Some(r.reading.clone()),
        })
    };
    result.readings.iter().filter_map(judge).collect()
}
