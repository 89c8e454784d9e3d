//! Builds the acceptance report of a tranche from the store, and signs it.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use whetstone_bundle::manifest::{FileEntry, seal};
use whetstone_model::action::{Action, Severity};
use whetstone_model::device::{Device, DeviceId};
use whetstone_model::evidence::Finding;
use whetstone_model::ids::{BladeName, RackName, RunId, Serial, TrancheName};
use whetstone_model::lifecycle::PhaseName;
use whetstone_model::report::{Blade, SuiteRef, Versions};
use whetstone_model::verdict::{Outcome, Verdict};
use whetstone_store::{BladeRow, RunState, Store, StoreError};

use super::answers::evidence_id;
use super::data::*;
use super::distribution::distributions;
use super::page;

/// What the tranche's object says that the store does not.
#[derive(Debug, Clone, PartialEq)]
pub struct TrancheTerms {
    /// Name of the suite.
    pub suite: Option<String>,
    /// For the fleet judge.
    pub fpr: f64,
    /// Serials of its manifest that another tranche has.
    pub duplicates: Vec<(Serial, TrancheName)>,
    /// Lines of its manifest that could not be entered: they count as missing.
    pub refused: Vec<Refused>,
    pub due_ms: Option<i64>,
}

/// A line of a tranche's manifest that the store does not take.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    pub serial: Serial,
    pub name: BladeName,
    pub rack: Option<RackName>,
    pub why: String,
}

impl Default for TrancheTerms {
    fn default() -> Self {
        TrancheTerms { suite: None, fpr: 0.01, duplicates: Vec::new(), refused: Vec::new(), due_ms: None }
    }
}

/// Findings of a returned blade that are listed; the rest is in its own report.
const MAX_FINDINGS: usize = 20;
/// Strangers that are listed.
const MAX_UNEXPECTED: u32 = 1_000;
/// Sentences about what could not be read.
const MAX_NOTES: usize = 50;

/// What of a run's report is needed here; the long rest is passed over.
#[derive(Deserialize)]
struct Slim {
    run: String,
    blade: Blade,
    simulated: bool,
    suite: SuiteRef,
    versions: Versions,
    devices: Vec<Device>,
    verdict: Verdict,
    findings: Vec<Finding>,
}

impl Slim {
    fn device(&self, id: Option<&DeviceId>) -> Option<&Device> {
        self.devices.iter().find(|device| Some(&device.id) == id)
    }

    fn label(&self, id: Option<&DeviceId>) -> Option<String> {
        let known = self.device(id).map(|device| device.label.clone());
        known.or_else(|| id.map(|id| id.as_str().to_owned()))
    }
}

/// What is gathered while the runs' reports are read one after the other.
#[derive(Default)]
struct Gathered {
    simulated: bool,
    suites: BTreeMap<(String, String), usize>,
    versions: BTreeMap<VersionsLine, usize>,
    /// Labels by (blade, device id).
    labels: BTreeMap<(String, String), String>,
    samples: Vec<u8>,
    notes: Vec<String>,
}

/// The report of a tranche as the store has it now; `None` if no blade is of it.
pub async fn acceptance(
    store: &Store,
    tranche: &TrancheName,
    terms: &TrancheTerms,
    made_ms: i64,
) -> Result<Option<AcceptanceReport>, StoreError> {
    let site = store.load_site().await?;
    let rows: Vec<BladeRow> =
        site.blades.into_iter().filter(|blade| blade.tranche.as_ref() == Some(tranche)).collect();
    if rows.is_empty() {
        return Ok(None);
    }
    let mut gathered = Gathered::default();
    let (mut blades, mut returns) = (Vec::new(), Vec::new());
    for row in &rows {
        let standing = standing(row);
        let (slim, signer, sha256) = match &row.run {
            Some(run) if matches!(run.state, RunState::Finished { .. }) => {
                read_run(store, run.run, &mut gathered).await?
            }
            _ => (None, None, None),
        };
        let line = blade_line(row, standing, slim.as_ref());
        if standing == Standing::Returned {
            returns.push(return_line(store, row, &line, slim.as_ref(), (signer, sha256)).await?);
        }
        blades.push(line);
    }
    let missing = rows.iter().zip(&blades).filter(|(_, line)| line.standing == Standing::Missing);
    let missing = missing.map(|(row, _)| (&row.serial, &row.name, &row.rack));
    let refused = terms.refused.iter().map(|line| (&line.serial, &line.name, &line.rack));
    let missing: Vec<MissingLine> = missing
        .chain(refused)
        .map(|(serial, name, rack)| MissingLine {
            serial: serial.clone(),
            name: name.clone(),
            rack: rack.clone(),
        })
        .collect();
    let duplicates: Vec<DuplicateLine> = terms
        .duplicates
        .iter()
        .map(|(serial, tranche)| DuplicateLine { serial: serial.clone(), tranche: tranche.clone() })
        .collect();
    let unexpected: Vec<UnexpectedLine> = store
        .list_unexpected(MAX_UNEXPECTED)
        .await?
        .into_iter()
        .map(|u| UnexpectedLine {
            serial: u.serial,
            what: u.what,
            first_ms: u.first_ms,
            last_ms: u.last_ms,
            times: u.times,
        })
        .collect();
    let mut counts = count(&blades);
    (counts.duplicates, counts.unexpected) = (duplicates.len(), unexpected.len());
    counts.expected += terms.refused.len();
    counts.missing += terms.refused.len();
    let Gathered { simulated, suites, versions, labels, samples, mut notes } = gathered;
    let not_entered =
        terms.refused.iter().map(|line| format!("{} could not be entered: {}", line.serial, line.why));
    notes.splice(0..0, not_entered);
    let fpr = terms.fpr;
    let judged = tokio::task::spawn_blocking(move || distributions(&samples, &labels, fpr)).await;
    let distributions = judged.unwrap_or_else(|error| {
        notes.push(format!("the distributions could not be made: {error}"));
        Vec::new()
    });
    notes.truncate(MAX_NOTES);
    Ok(Some(AcceptanceReport {
        schema: SCHEMA.to_owned(),
        tranche: tranche.clone(),
        made_ms,
        due_ms: terms.due_ms,
        simulated,
        counts,
        yield_percent: yield_percent(&counts),
        racks: racks(&blades),
        blades,
        returns,
        missing,
        duplicates,
        unexpected,
        suite: terms.suite.clone(),
        suites: suites.into_iter().map(|((name, sha256), runs)| SuiteLine { name, sha256, runs }).collect(),
        versions: versions.into_iter().map(|(line, runs)| VersionsLine { runs, ..line }).collect(),
        fpr,
        distributions,
        notes,
    }))
}

fn standing(row: &BladeRow) -> Standing {
    let passed = row.run.as_ref().is_some_and(|run| {
        matches!(run.state, RunState::Finished { outcome: Outcome::Pass, .. })
            && run.cohort.as_ref().is_none_or(|cohort| cohort.outcome != Outcome::Fail)
    });
    match row.phase.name() {
        PhaseName::Expected => Standing::Missing,
        PhaseName::Quarantined | PhaseName::Repairing | PhaseName::Retired => Standing::Returned,
        PhaseName::Ready | PhaseName::InService if passed => Standing::Accepted,
        PhaseName::Discovered
        | PhaseName::Preparing
        | PhaseName::BurningIn
        | PhaseName::Ready
        | PhaseName::InService
        | PhaseName::Draining
        | PhaseName::Sanitising => Standing::Undecided,
    }
}

/// The part of a run's report that counts, who signed it and its hash. What cannot be read becomes a note.
async fn read_run(
    store: &Store,
    run: RunId,
    gathered: &mut Gathered,
) -> Result<(Option<Slim>, Option<String>, Option<String>), StoreError> {
    let Some(stored) = store.report_of(run).await? else {
        gathered.notes.push(format!("the report of run {run} is not in the store any more"));
        return Ok((None, None, None));
    };
    let parsed = tokio::task::spawn_blocking(move || {
        let slim: Result<Slim, _> = serde_json::from_slice(&stored.report_json);
        (slim, crate::pki::sha256_hex(&stored.report_json), stored)
    })
    .await;
    let (slim, sha256, stored) = match parsed {
        Ok((Ok(slim), sha256, stored)) => (slim, sha256, stored),
        Ok((Err(error), ..)) => {
            gathered.notes.push(format!("the report of run {run} cannot be read: {error}"));
            return Ok((None, None, None));
        }
        Err(error) => {
            gathered.notes.push(format!("the report of run {run} cannot be read: {error}"));
            return Ok((None, None, None));
        }
    };
    gathered.simulated |= slim.simulated;
    *gathered.suites.entry((slim.suite.name.clone(), slim.suite.sha256.clone())).or_default() += 1;
    let versions = VersionsLine {
        whet: slim.versions.whet.clone(),
        driver: slim.versions.driver.clone(),
        vbios: slim.versions.vbios.clone(),
        cuda: slim.versions.cuda.clone(),
        nccl: slim.versions.nccl.clone(),
        kernel: slim.blade.kernel.clone(),
        runs: 0,
    };
    *gathered.versions.entry(versions).or_default() += 1;
    for device in &slim.devices {
        let key = (slim.blade.name.clone(), device.id.as_str().to_owned());
        gathered.labels.insert(key, device.label.clone());
    }
    gathered.samples.extend_from_slice(&stored.samples_jsonl);
    gathered.samples.push(b'\n');
    Ok((Some(slim), Some(stored.signer), Some(sha256)))
}

fn blade_line(row: &BladeRow, standing: Standing, slim: Option<&Slim>) -> BladeLine {
    let (outcome, code, why, action) = match row.run.as_ref().map(|run| &run.state) {
        Some(RunState::Finished { outcome, code, why, action }) => {
            (Some(*outcome), Some(code.clone()), Some(why.clone()), Some(*action))
        }
        Some(RunState::Lost { why } | RunState::Cancelled { why }) => (None, None, Some(why.clone()), None),
        Some(RunState::Ordered | RunState::Running) | None => (None, None, None, None),
    };
    let run = row.run.as_ref();
    BladeLine {
        serial: row.serial.clone(),
        name: row.name.clone(),
        rack: row.rack.clone(),
        domain: row.domain.clone(),
        sku: row.sku.clone().or_else(|| row.agent.sku.clone()),
        phase: row.phase.name(),
        phase_why: row.why.clone(),
        standing,
        run: run.map(|run| run.run),
        outcome,
        code,
        why,
        action,
        device: slim.and_then(|slim| slim.label(slim.verdict.device.as_ref())),
        cohort: run
            .and_then(|run| run.cohort.as_ref())
            .map(|cohort| CohortLine { outcome: cohort.outcome, why: cohort.why.clone() }),
        started_ms: run.and_then(|run| run.started_ms),
        ended_ms: run.and_then(|run| run.ended_ms),
    }
}

/// The gravest reason counts: the run's own verdict where it failed, else what its cohort said, else why it is withheld.
async fn return_line(
    store: &Store,
    row: &BladeRow,
    line: &BladeLine,
    slim: Option<&Slim>,
    (signer, report_sha256): (Option<String>, Option<String>),
) -> Result<ReturnLine, StoreError> {
    let cases = store.history(row.serial.as_str()).await?.map(|history| history.cases).unwrap_or_default();
    let not_passed = line.outcome.is_some_and(|outcome| outcome != Outcome::Pass);
    let outlier = line.cohort.as_ref().filter(|cohort| cohort.outcome == Outcome::Fail);
    let open = row.cases.last();
    let (code, why, action) = if not_passed {
        let code = line.code.clone().unwrap_or_default();
        (code, line.why.clone().unwrap_or_default(), line.action.unwrap_or(Action::ContactSupport))
    } else if let Some(outlier) = outlier {
        ("outlier".to_owned(), outlier.why.clone(), open.map_or(Action::Replace, |case| case.action))
    } else if let Some(case) = open {
        (case.code.clone(), case.detail.clone(), case.action)
    } else {
        (line.phase.as_str().to_owned(), row.why.clone(), Action::ContactSupport)
    };
    let device =
        not_passed.then(|| slim.and_then(|slim| slim.device(slim.verdict.device.as_ref()))).flatten();
    let findings = slim.iter().flat_map(|slim| {
        slim.findings.iter().filter(|finding| finding.severity == Severity::Fault).take(MAX_FINDINGS).map(
            |finding| FindingLine {
                code: finding.code.clone(),
                device: slim.label(finding.device.as_ref()),
                detail: finding.detail.clone(),
            },
        )
    });
    Ok(ReturnLine {
        serial: row.serial.clone(),
        name: row.name.clone(),
        rack: row.rack.clone(),
        code,
        device: if not_passed { line.device.clone() } else { open.and_then(|case| case.device.clone()) },
        device_serial: device.and_then(|device| device.serial.clone()),
        why,
        action,
        run: line.run,
        report: slim.map(|slim| slim.run.clone()),
        signer,
        report_sha256,
        evidence: slim.iter().flat_map(|s| &s.verdict.evidence).map(|id| evidence_id(*id)).collect(),
        findings: findings.collect(),
        cases: cases
            .into_iter()
            .map(|case| CaseLine {
                case: case.case,
                code: case.code,
                device: case.device,
                detail: case.detail,
                opened_ms: case.opened_ms,
                closed_ms: case.closed_ms,
            })
            .collect(),
    })
}

fn count<'a>(blades: impl IntoIterator<Item = &'a BladeLine>) -> Counts {
    let mut counts = Counts::default();
    for blade in blades {
        counts.expected += 1;
        match blade.standing {
            Standing::Accepted => counts.accepted += 1,
            Standing::Returned => counts.returned += 1,
            Standing::Undecided => counts.undecided += 1,
            Standing::Missing => counts.missing += 1,
        }
    }
    counts.delivered = counts.expected - counts.missing;
    counts
}

fn yield_percent(counts: &Counts) -> Option<f64> {
    (counts.delivered > 0).then(|| 100.0 * counts.accepted as f64 / counts.delivered as f64)
}

fn racks(blades: &[BladeLine]) -> Vec<RackLine> {
    let mut racks: BTreeMap<_, Vec<&BladeLine>> = BTreeMap::new();
    for blade in blades {
        racks.entry(blade.rack.clone()).or_default().push(blade);
    }
    racks
        .into_iter()
        .map(|(rack, blades)| {
            let counts = count(blades);
            RackLine { rack, counts, yield_percent: yield_percent(&counts) }
        })
        .collect()
}

/// The report's files, signed: written to a folder they are what `whet report verify` checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptanceBundle {
    /// Text by name: `report.json`, `report.html`, `manifest.json`, `manifest.sig`.
    pub files: BTreeMap<String, String>,
}

impl AcceptanceBundle {
    pub fn sign(report: &AcceptanceReport, key: &SigningKey) -> Result<AcceptanceBundle, serde_json::Error> {
        let mut json = serde_json::to_string_pretty(report)?;
        json.push('\n');
        let mut files = BTreeMap::from([
            ("report.json".to_owned(), json),
            ("report.html".to_owned(), page::render(report)),
        ]);
        let entries =
            files.iter().map(|(name, text)| (name.clone(), FileEntry::of(text.as_bytes()))).collect();
        let sealed = seal(&format!("tranche-{}-{}", report.tranche, report.made_ms), entries, key)?;
        files.insert("manifest.json".to_owned(), sealed.manifest_json);
        files.insert("manifest.sig".to_owned(), sealed.signature);
        Ok(AcceptanceBundle { files })
    }
}
