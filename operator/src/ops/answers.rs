//! What the ops API answers: rows of the store in the words of JSON. Times are milliseconds since the epoch.

use serde::Serialize;
use whetstone_model::action::Action;
use whetstone_model::ids::{BladeName, CaseId, RunId, Serial};
use whetstone_model::lifecycle::Phase;
use whetstone_model::verdict::Outcome;
use whetstone_model::wire::ItemBody;
use whetstone_store::{
    AuditRow, BladeHistory, BladeRow, CaseRow, EvidenceRow, PastCase, RunRow, RunState, StoredReport,
    UnexpectedRow,
};

#[derive(Serialize)]
pub(super) struct History {
    serial: Serial,
    name: Option<BladeName>,
    names: Vec<Place>,
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<String>,
    transitions: Vec<Transition>,
    verdicts: Vec<Verdict>,
    cases: Vec<Case>,
    runs: Vec<Run>,
}

#[derive(Serialize)]
struct Place {
    name: BladeName,
    tranche: Option<String>,
    rack: Option<String>,
    domain: Option<String>,
    from_ms: i64,
}

#[derive(Serialize)]
struct Transition {
    sequence: i64,
    from: Option<Phase>,
    to: Phase,
    why: String,
    run: Option<RunId>,
    case: Option<CaseId>,
    at_ms: i64,
}

#[derive(Serialize)]
struct Verdict {
    run: RunId,
    outcome: Outcome,
    code: String,
    why: String,
    action: Action,
    evidence: Vec<String>,
    signer: String,
    at_ms: i64,
}

#[derive(Serialize)]
struct Run {
    run: RunId,
    suite: String,
    state: &'static str,
    created_ms: i64,
    started_ms: Option<i64>,
    ended_ms: Option<i64>,
    progress: String,
    end_why: Option<String>,
    cohort: Option<Cohort>,
}

#[derive(Serialize)]
struct Cohort {
    outcome: Outcome,
    why: String,
    at_ms: i64,
}

/// As `e-8812`.
pub(super) fn evidence_id(id: u64) -> String {
    format!("e-{id}")
}

impl Run {
    fn of(row: RunRow) -> Self {
        let (state, end_why) = match row.state {
            RunState::Ordered => ("ordered", None),
            RunState::Running => ("running", None),
            RunState::Finished { why, .. } => ("finished", Some(why)),
            RunState::Lost { why } => ("lost", Some(why)),
            RunState::Cancelled { why } => ("cancelled", Some(why)),
        };
        Run {
            run: row.run,
            suite: row.suite,
            state,
            created_ms: row.created_ms,
            started_ms: row.started_ms,
            ended_ms: row.ended_ms,
            progress: row.progress,
            end_why,
            cohort: row.cohort.map(|c| Cohort { outcome: c.outcome, why: c.why, at_ms: c.at_ms }),
        }
    }
}

impl History {
    pub fn of(history: BladeHistory, explain: Option<String>) -> Self {
        let names: Vec<Place> = history
            .places
            .into_iter()
            .map(|place| Place {
                name: place.name,
                tranche: place.tranche.map(String::from),
                rack: place.rack.map(String::from),
                domain: place.domain.map(String::from),
                from_ms: place.from_ms,
            })
            .collect();
        History {
            serial: history.serial,
            name: names.last().map(|place| place.name.clone()),
            names,
            explain,
            transitions: history
                .transitions
                .into_iter()
                .map(|t| Transition {
                    sequence: t.sequence,
                    from: t.from,
                    to: t.to,
                    why: t.why,
                    run: t.run,
                    case: t.case,
                    at_ms: t.at_ms,
                })
                .collect(),
            verdicts: history
                .verdicts
                .into_iter()
                .map(|v| Verdict {
                    run: v.run,
                    outcome: v.outcome,
                    code: v.code,
                    why: v.why,
                    action: v.action,
                    evidence: v.evidence.into_iter().map(evidence_id).collect(),
                    signer: v.signer,
                    at_ms: v.at_ms,
                })
                .collect(),
            cases: history.cases.into_iter().map(Case::past).collect(),
            runs: history.runs.into_iter().map(Run::of).collect(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct Case {
    pub case: CaseId,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<Serial>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blade: Option<BladeName>,
    code: String,
    device: Option<String>,
    reason: String,
    detail: String,
    action: Action,
    opened_ms: i64,
    closed_ms: Option<i64>,
    close_why: Option<String>,
}

impl Case {
    pub fn open(case: &CaseRow) -> Self {
        Case {
            case: case.case,
            serial: None,
            blade: None,
            code: case.code.clone(),
            device: case.device.clone(),
            reason: case.reason.clone(),
            detail: case.detail.clone(),
            action: case.action,
            opened_ms: case.opened_ms,
            closed_ms: None,
            close_why: None,
        }
    }

    pub fn past(case: PastCase) -> Self {
        Case {
            case: case.case,
            serial: None,
            blade: None,
            code: case.code,
            device: case.device,
            reason: case.reason,
            detail: case.detail,
            action: case.action,
            opened_ms: case.opened_ms,
            closed_ms: case.closed_ms,
            close_why: case.close_why,
        }
    }

    pub fn of_blade(self, blade: &BladeRow) -> Self {
        Case { serial: Some(blade.serial.clone()), blade: Some(blade.name.clone()), ..self }
    }
}

#[derive(Serialize)]
pub(super) struct Unexpected {
    serial: String,
    what: String,
    first_ms: i64,
    last_ms: i64,
    times: i64,
}

impl Unexpected {
    pub fn of(row: UnexpectedRow) -> Self {
        let UnexpectedRow { serial, what, first_ms, last_ms, times } = row;
        Unexpected { serial, what, first_ms, last_ms, times }
    }
}

#[derive(Serialize)]
pub(super) struct Audit {
    id: i64,
    at_ms: i64,
    kind: String,
    who: String,
    what: String,
}

impl Audit {
    pub fn of(row: AuditRow) -> Self {
        let AuditRow { id, at_ms, kind, who, what } = row;
        Audit { id, at_ms, kind, who, what }
    }
}

/// A piece of evidence, as it was stored.
#[derive(Serialize)]
pub(super) struct Evidence {
    stream: String,
    seq: i64,
    /// By the blade's clock.
    at_ms: i64,
    received_ms: i64,
    kind: &'static str,
    code: String,
    device: Option<String>,
    value: Option<f64>,
    unit: Option<String>,
    /// All of it; none of a reading.
    body: Option<ItemBody>,
}

impl Evidence {
    pub fn of(row: EvidenceRow) -> Self {
        let EvidenceRow { stream, seq, at_ms, received_ms, kind, code, device, value, unit, body } = row;
        Evidence { stream, seq, at_ms, received_ms, kind: kind.as_str(), code, device, value, unit, body }
    }
}

/// The signed files of a run, as they came in.
#[derive(Serialize)]
pub(super) struct RunFiles {
    run: RunId,
    serial: Serial,
    signer: String,
    files: std::collections::BTreeMap<&'static str, String>,
}

impl RunFiles {
    pub fn of(stored: StoredReport) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        RunFiles {
            run: stored.run,
            serial: stored.serial,
            signer: stored.signer,
            files: [
                ("report.json", text(stored.report_json)),
                ("samples.jsonl", text(stored.samples_jsonl)),
                ("manifest.json", stored.manifest_json),
                ("manifest.sig", stored.signature),
            ]
            .into(),
        }
    }
}

/// The circuit breaker. Counts are blades.
#[derive(Serialize)]
pub(super) struct Breaker {
    /// It holds back.
    open: bool,
    /// A person has said that a mass quarantine is right.
    #[serde(rename = "override")]
    overridden: bool,
    /// Withheld for faults within the window.
    withheld: usize,
    /// To be withheld for faults now.
    wanted: usize,
    /// May be withheld within the window.
    limit: usize,
}

impl Breaker {
    pub fn of(decision: &whetstone_plan::Breaker, overridden: bool) -> Self {
        let whetstone_plan::Breaker { withheld, wanted, limit, .. } = *decision;
        // The decision may have been made before the word was given or taken back.
        Breaker { open: !overridden && withheld + wanted > limit, overridden, withheld, wanted, limit }
    }
}
