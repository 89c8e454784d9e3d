//! A run as it goes: what is known so far, one test after the other.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use whetstone_burnin::protocol::{Event, Request};
use whetstone_burnin::suite::{Scope, Test, TestKind};
use whetstone_burnin::verdict::{Gap, Input, decide};
use whetstone_burnin::{agreement, inventory};
use whetstone_model::action::{Action, Severity};
use whetstone_model::device::DeviceId;
use whetstone_model::evidence::{Body, Evidence, Finding};
use whetstone_model::report::{DeviceOutcome, DeviceReading, Report, TestOutcome, TestResult};
use whetstone_model::threshold::{Judged, Table};

use super::blade::Blade;
use super::plan::{make_scratch, plan, remove_scratch};
use super::record::Recorder;
use super::watch::{Under, Watch};
use super::{Backend, Cancel, Observer, RunOptions, SkuChoice, begin, child, now_ms, samples};
use crate::bundle::{Bundle, BundleError};

/// A run between its begin and its end.
pub(super) struct Run<'a> {
    options: &'a RunOptions,
    bundle: Bundle,
    report: Report,
    findings: Vec<(u64, Finding)>,
    gaps: Vec<Gap>,
    blade: Blade,
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
        let mut table = Table::built_in().map_err(|e| BundleError::Malformed {
            path: "built-in thresholds".into(),
            what: e.to_string(),
        })?;
        // One place decides the profile: the health rules, which recognise it themselves, see no other.
        match &options.sku {
            SkuChoice::Recognised => {}
            SkuChoice::Named(sku) => table.profiles.retain(|profile| profile.sku == *sku),
            SkuChoice::None => table.profiles.clear(),
        }
        bundle.raw("suite.toml", options.suite_text.as_bytes())?;
        let (blade, findings) = Blade::first_look(&options.probe, table);
        let report = begin::report(options, &blade.facts, &blade.table);
        begin::keep_facts(&bundle, "facts-before.json", &blade.facts)?;
        bundle.checkpoint(&report)?;
        let watch = Watch::start(options, &blade.facts, report.started_ms);
        let gaps = begin::gaps(options.backend, &blade.facts, &findings);
        let (findings_so_far, out_of_use) = (Vec::new(), BTreeMap::new());
        let mut run =
            Run { options, bundle, report, findings: findings_so_far, gaps, blade, out_of_use, watch };
        for finding in findings {
            run.found(observer, "probe", finding)?;
        }
        run.cannot_read_kernel_log(observer)?;
        Ok(run)
    }

    /// Runs one test of the suite and keeps what it gave.
    pub fn step(
        &mut self,
        test: &Test,
        cancel: &Cancel,
        observer: &mut dyn Observer,
    ) -> Result<&TestResult, BundleError> {
        self.before_test(observer)?;
        let plan = plan(self.options, &self.blade, &self.out_of_use, test);
        let result = TestResult::empty(&test.name, test.kind.name(), now_ms());
        let mut recorder = Recorder::new(&mut self.bundle, result);
        let labels = &self.report.devices;
        let label = |id: &Option<DeviceId>| {
            id.as_ref().and_then(|id| labels.iter().find(|d| d.id == *id)).map(|d| d.label.as_str())
        };
        let sku = self.report.blade.sku.as_deref();

        let mut ends = Vec::new();
        if test.kind.scope() == Scope::Facts {
            let profile = sku.and_then(|sku| self.blade.table.profile(sku));
            for finding in inventory::check(&self.blade.facts, profile) {
                observer.found(&finding, label(&finding.device));
                recorder.finding("probe", finding)?;
            }
            recorder.result.outcome = TestOutcome::Pass;
            recorder.result.detail.clear();
            if profile.is_none() && !self.blade.gpus.is_empty() {
                let note = "held against no SKU profile: GPUs were compared with each other only";
                recorder.result.notes.push(note.into());
            }
        } else {
            make_scratch(&plan.requests)?;
            let parts = plan.requests.len().max(1) as f64;
            let mut done = vec![0.0; plan.requests.len()];
            let mut failed: Option<BundleError> = None;
            let watch = &mut self.watch;
            ends = child::run_all(&self.options.launcher, &plan.requests, cancel, &mut |index, event| {
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
            // What follows is no longer the test's load.
            self.watch.poll();
            recorder.result.notes.extend(remove_scratch(&self.options.out));
            if let Some(e) = failed {
                return Err(e);
            }
        }
        for (request, end) in plan.requests.iter().zip(&ends) {
            keep_end(&mut recorder, test, request, end)?;
            if let ([gpu], true) = (request.gpus.as_slice(), end.broken && !cancel.requested()) {
                self.out_of_use.insert(gpu.uuid.clone(), test.name.clone());
            }
        }
        recorder.result.devices.extend(plan.left_out);
        outcome(&mut recorder.result, &ends, plan.not_applicable);

        // What happened meanwhile: telemetry, the kernel log, counters, devices that disagree, floors.
        let killed = cancel.requested() || ends.iter().any(|end| end.broken);
        let load = self.watch.test_ended(&Under {
            kind: &test.kind,
            result: &recorder.result,
            devices: &self.report.devices,
            gpus: &self.blade.facts.gpus,
            sku,
            table: &self.blade.table,
            killed,
        });
        let looked = self.blade.look(sku);
        let gaps = begin::gaps(self.options.backend, &self.blade.facts, &looked.now);
        for reading in load.readings {
            recorder.event("nvml", Event::Reading(reading))?;
        }
        for (device, line) in load.kernel_lines {
            recorder.evidence("kmsg", device, Body::KernelLine { line })?;
        }
        for device in load.not_judged {
            if let Some(of) = recorder.result.devices.iter_mut().find(|d| d.device == device) {
                of.outcome = TestOutcome::Inconclusive;
                of.detail = "its power could not be read".to_owned();
            }
        }
        let new_state = |f: &Finding| !self.findings.iter().any(|(_, old)| same_state(old, f));
        let mut more = looked.since;
        more.extend(looked.now.into_iter().filter(new_state));
        more.extend(load.findings);
        more.extend(agreement::disagreements(&recorder.result.digests));
        more.extend(floors(&self.blade.table, sku, &recorder.result.readings));
        for finding in more {
            if !recorder.result.findings.contains(&finding) {
                observer.found(&finding, label(&finding.device));
                recorder.finding("runner", finding)?;
            }
        }
        if recorder.result.outcome == TestOutcome::Fail && !has_fault(&recorder.result) {
            let detail = format!("{}: {}", test.name, recorder.result.detail);
            recorder.finding("runner", failed_without_finding(detail))?;
        }

        let nccl = recorder.nccl.take();
        let (mut result, findings) = recorder.end();
        settle(&mut result);
        result.ended_ms = now_ms();
        self.findings.extend(findings);
        self.report.tests.push(result);
        self.report.versions.nccl = nccl.or(self.report.versions.nccl.take());
        self.learn(gaps);
        self.report.incomplete_because = Some(format!(
            "running: {} of {} tests done",
            self.report.tests.len(),
            self.options.suite.tests.len()
        ));
        self.refresh();
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
        let looked = self.blade.look(self.report.blade.sku.as_deref());
        begin::keep_facts(&self.bundle, "facts-after.json", &self.blade.facts)?;
        let gaps = begin::gaps(self.options.backend, &self.blade.facts, &looked.now);
        let ended = self.watch.stop(&self.report.devices);
        self.report.series = ended.series;
        for finding in looked.now.into_iter().chain(looked.since).chain(ended.findings) {
            if !self.findings.iter().any(|(_, old)| same_state(old, &finding)) {
                self.found(observer, "runner", finding)?;
            }
        }
        self.learn(gaps);
        if let Some(why) = ended.log_gap {
            self.kernel_log_gap(why);
        }
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

    /// What the kernel log said between two tests is nobody's doing, but it is said.
    fn before_test(&mut self, observer: &mut dyn Observer) -> Result<(), BundleError> {
        let (lines, findings) = self.watch.test_begins(&self.report.devices);
        for (device, line) in lines {
            let body = Body::KernelLine { line };
            let source = "kmsg".to_owned();
            self.bundle.record(Evidence { id: 0, at_ms: now_ms(), test: None, device, source, body })?;
        }
        findings.into_iter().try_for_each(|finding| self.found(observer, "kmsg", finding))
    }

    /// Gaps and devices that a later look brought.
    fn learn(&mut self, gaps: Vec<Gap>) {
        for gap in gaps {
            if !self.gaps.iter().any(|old| old.code == gap.code && old.device == gap.device) {
                self.gaps.push(gap);
            }
        }
        self.report.simulated |= self.blade.facts.simulated();
        for device in begin::devices(self.options.backend, &self.blade.facts) {
            if !self.report.devices.iter().any(|old| old.id == device.id) {
                self.report.devices.push(device);
            }
        }
    }

    fn cannot_read_kernel_log(&mut self, observer: &mut dyn Observer) -> Result<(), BundleError> {
        let Some(why) = self.watch.blind().map(str::to_owned) else { return Ok(()) };
        self.kernel_log_gap(why.clone());
        let (code, severity) = ("kernel-log-unreadable".to_owned(), Severity::Warning);
        let action = Action::UpdateSoftware;
        self.found(
            observer,
            "kmsg",
            Finding { code, device: None, severity, action, detail: why, reading: None },
        )
    }

    /// Some faults of a GPU are told by the kernel log alone: without all of it, GPUs cannot pass.
    fn kernel_log_gap(&mut self, why: String) {
        if !self.blade.gpus.is_empty() && self.options.backend != Backend::Cpu {
            let (code, action) = ("kernel-log-unreadable".to_owned(), Action::UpdateSoftware);
            self.gaps.push(Gap { device: None, code, why, action });
        }
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

/// Two looks at the same state of the same device. A device-less finding is told apart by its words: it may be
/// about another source or part.
fn same_state(a: &Finding, b: &Finding) -> bool {
    let alike = a.code == b.code && a.device == b.device && a.severity == b.severity;
    alike && (a.device.is_some() || a.detail == b.detail)
}

fn source(kind: &TestKind) -> &'static str {
    match kind {
        TestKind::GpuCollectives(_) => "nccl",
        kind if kind.scope() == Scope::Host => "cpu",
        _ => "cuda",
    }
}

/// How one process ended, for each GPU that it had.
fn keep_end(
    recorder: &mut Recorder<'_>,
    test: &Test,
    request: &Request,
    end: &child::End,
) -> Result<(), BundleError> {
    let alone = request.gpus.len() == 1;
    if !end.stderr.is_empty() {
        let of = request.gpus.first().filter(|_| alone).map_or("all", |g| g.label.as_str());
        recorder.bundle.raw(&format!("{}.{of}.stderr.txt", test.name), &end.stderr)?;
    }
    for gpu in &request.gpus {
        // Of several, the findings say which one failed (`settle`).
        let outcome = match end.outcome {
            TestOutcome::Fail if !alone => TestOutcome::Pass,
            outcome => outcome,
        };
        let detail = if outcome == TestOutcome::Pass { String::new() } else { end.detail.clone() };
        recorder.result.devices.push(DeviceOutcome { device: gpu.uuid.clone(), outcome, detail });
    }
    Ok(())
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
    let left_out = result.devices.iter().map(|d| (d.outcome, &d.detail));
    let parts = ends.iter().map(|e| (e.outcome, &e.detail)).chain(left_out);
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

/// A fault found during a test fails the test, whatever the test itself said; a device that could not be judged
/// leaves it open.
fn settle(result: &mut TestResult) {
    let fault = result.findings.iter().find(|f| f.severity == Severity::Fault);
    let open = result.devices.iter().find(|d| d.outcome == TestOutcome::Inconclusive);
    match (fault, open) {
        (Some(fault), _) if result.outcome != TestOutcome::Fail => {
            (result.outcome, result.detail) = (TestOutcome::Fail, fault.detail.clone());
        }
        (None, Some(open)) if result.outcome == TestOutcome::Pass => {
            (result.outcome, result.detail) = (TestOutcome::Inconclusive, open.detail.clone());
        }
        _ => {}
    }
    for device in &mut result.devices {
        let mine = |f: &&Finding| f.severity == Severity::Fault && f.device.as_ref() == Some(&device.device);
        if let Some(fault) = result.findings.iter().find(mine) {
            device.outcome = TestOutcome::Fail;
            device.detail = fault.detail.clone();
        }
    }
}

/// Readings under their floor (or over their ceiling) as findings. A unit that does not fit is a finding too.
fn floors(table: &Table, sku: Option<&str>, readings: &[DeviceReading]) -> Vec<Finding> {
    let judge = |r: &DeviceReading| {
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
    readings.iter().filter_map(judge).collect()
}
