//! One test's result as its events come in, with the evidence that goes to the bundle on the way.

use whetstone_burnin::protocol::Event;
use whetstone_model::action::Severity;
use whetstone_model::evidence::{Body, Evidence, Finding};
use whetstone_model::report::TestResult;

use crate::bundle::{Bundle, BundleError};

/// Bounds on what one test may report; what is over is counted in a note. A broken test must not fill the disk.
const MAX_READINGS: usize = 5_000;
const MAX_FINDINGS: usize = 1_000;
const MAX_OTHERS: usize = 2_000;

/// Collects events of one test.
pub(super) struct Recorder<'a> {
    pub bundle: &'a mut Bundle,
    pub result: TestResult,
    /// Findings with their evidence ids, to be added to the run's.
    pub findings: Vec<(u64, Finding)>,
    pub nccl: Option<String>,
    dropped: usize,
}

impl<'a> Recorder<'a> {
    pub fn new(bundle: &'a mut Bundle, result: TestResult) -> Self {
        Self { bundle, result, findings: Vec::new(), nccl: None, dropped: 0 }
    }

    /// Keeps what an event says; progress and the end are the caller's business.
    pub fn event(&mut self, source: &str, event: Event) -> Result<(), BundleError> {
        match event {
            Event::Reading(reading) if self.result.readings.len() < MAX_READINGS => {
                let body = Body::Reading(reading.reading.clone());
                self.evidence(source, reading.device.clone(), body)?;
                self.result.readings.push(reading);
            }
            Event::Finding(finding) => return self.finding(source, finding),
            Event::Matrix(m) if self.result.matrices.len() < MAX_OTHERS => self.result.matrices.push(m),
            Event::Profile(p) if self.result.profiles.len() < MAX_OTHERS => self.result.profiles.push(p),
            Event::Digest(d) if self.result.digests.len() < MAX_READINGS => self.result.digests.push(d),
            Event::Note { text } if self.result.notes.len() < MAX_OTHERS => self.result.notes.push(text),
            Event::NcclVersion { version } => self.nccl = Some(version),
            Event::Progress { .. } | Event::Done { .. } => {}
            _ => self.dropped += 1,
        }
        Ok(())
    }

    pub fn finding(&mut self, source: &str, finding: Finding) -> Result<(), BundleError> {
        // Faults have a limit of their own: what decides a verdict is not crowded out by warnings.
        let is_fault = finding.severity == Severity::Fault;
        let alike = self.findings.iter().filter(|(_, f)| (f.severity == Severity::Fault) == is_fault).count();
        if alike >= MAX_FINDINGS {
            self.dropped += 1;
            return Ok(());
        }
        let id = self.evidence(source, finding.device.clone(), Body::Finding(finding.clone()))?;
        self.result.findings.push(finding.clone());
        self.findings.push((id, finding));
        Ok(())
    }

    pub fn evidence(
        &mut self,
        source: &str,
        device: Option<whetstone_model::device::DeviceId>,
        body: Body,
    ) -> Result<u64, BundleError> {
        let test = Some(self.result.name.clone());
        self.bundle.record(Evidence {
            id: 0,
            at_ms: super::now_ms(),
            test,
            device,
            source: source.to_owned(),
            body,
        })
    }

    /// The result and the findings, with a note on what was too much.
    pub fn end(mut self) -> (TestResult, Vec<(u64, Finding)>) {
        if self.dropped > 0 {
            self.result
                .notes
                .push(format!("{} more results of this test were not kept: over the limit", self.dropped));
        }
        (self.result, self.findings)
    }
}
