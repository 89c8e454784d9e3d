//! What became of a blade since it was first expected. The serial is the thread: names, racks and tranches change.

use whetstone_model::action::Action;
use whetstone_model::ids::{BladeName, CaseId, DomainName, RackName, RunId, Serial, TrancheName};
use whetstone_model::lifecycle::Phase;
use whetstone_model::verdict::Outcome;

use crate::db::Store;
use crate::error::StoreError;
use crate::runs::RunRow;
use crate::site::{device, run};
use crate::sql::{col, from_json, from_word, maybe_word, sql, word};
use crate::transitions::phase;

/// Everything on record about one blade, oldest first.
#[derive(Debug, Clone, PartialEq)]
pub struct BladeHistory {
    pub serial: Serial,
    /// What it was called and where it was, each from a time on.
    pub places: Vec<PlaceRow>,
    pub transitions: Vec<TransitionRow>,
    pub runs: Vec<RunRow>,
    pub verdicts: Vec<VerdictRow>,
    pub cases: Vec<PastCase>,
}

/// What a blade was called and where it was, from a time on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceRow {
    pub name: BladeName,
    pub tranche: Option<TrancheName>,
    pub rack: Option<RackName>,
    pub domain: Option<DomainName>,
    pub from_ms: i64,
}

/// One step of its life.
#[derive(Debug, Clone, PartialEq)]
pub struct TransitionRow {
    pub sequence: i64,
    /// `None` for the first.
    pub from: Option<Phase>,
    pub to: Phase,
    pub why: String,
    pub run: Option<RunId>,
    pub case: Option<CaseId>,
    pub at_ms: i64,
}

/// The verdict of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct VerdictRow {
    pub run: RunId,
    pub outcome: Outcome,
    pub code: String,
    pub why: String,
    pub action: Action,
    pub evidence: Vec<u64>,
    pub signer: String,
    pub at_ms: i64,
}

/// A case, open or closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastCase {
    pub case: CaseId,
    pub code: String,
    pub device: Option<String>,
    pub reason: String,
    pub detail: String,
    pub action: Action,
    pub opened_ms: i64,
    pub closed_ms: Option<i64>,
    pub close_why: Option<String>,
}

/// The latest rows of each sort that are read: a blade that was burned in daily for ten years has fewer.
const MOST: i64 = 5_000;

impl Store {
    /// The serial of a blade by its serial, by the name it has, or by a name it once had (the last to have had it).
    pub async fn resolve(&self, name_or_serial: &str) -> Result<Option<Serial>, StoreError> {
        self.within(async {
            let mut db = self.read().await?;
            for text in [
                "SELECT serial FROM blades WHERE serial = $1",
                "SELECT serial FROM blades WHERE name = $1 \
                 ORDER BY CASE WHEN phase_name = 'Retired' THEN 1 ELSE 0 END, since_ms DESC, serial LIMIT 1",
                "SELECT serial FROM places WHERE name = $1 ORDER BY from_ms DESC, serial LIMIT 1",
            ] {
                if let Some(row) = sql(text).bind(name_or_serial.replace('\0', "")).maybe(&mut db).await? {
                    return Ok(Some(word(&row, 0)?));
                }
            }
            Ok(None)
        })
        .await
    }

    /// Everything on record about a blade; `None` if nobody knows it. See [`Store::resolve`] for what it goes by.
    pub async fn history(&self, name_or_serial: &str) -> Result<Option<BladeHistory>, StoreError> {
        let Some(serial) = self.resolve(name_or_serial).await? else { return Ok(None) };
        self.within(async {
            let mut db = self.read().await?;
            let fetch = |text: &str| sql(text).bind(serial.as_str().to_owned()).bind(MOST);
            let mut history = BladeHistory {
                serial: serial.clone(),
                places: Vec::new(),
                transitions: Vec::new(),
                runs: Vec::new(),
                verdicts: Vec::new(),
                cases: Vec::new(),
            };
            for row in fetch("SELECT name, tranche, rack, domain, from_ms FROM places WHERE serial = $1 \
                 ORDER BY number DESC LIMIT $2")
            .all(&mut db)
            .await?
            .iter()
            .rev()
            {
                history.places.push(PlaceRow {
                    name: word(row, 0)?,
                    tranche: maybe_word(row, 1)?,
                    rack: maybe_word(row, 2)?,
                    domain: maybe_word(row, 3)?,
                    from_ms: col(row, 4)?,
                });
            }
            for row in fetch("SELECT sequence, from_phase, to_phase, why, run, case_id, at_ms FROM transitions \
                 WHERE serial = $1 ORDER BY sequence DESC LIMIT $2")
            .all(&mut db)
            .await?
            .iter()
            .rev()
            {
                history.transitions.push(TransitionRow {
                    sequence: col(row, 0)?,
                    from: col::<Option<&str>>(row, 1)?.map(phase).transpose()?,
                    to: phase(col(row, 2)?)?,
                    why: col(row, 3)?,
                    run: col::<Option<i64>>(row, 4)?.map(RunId),
                    case: col::<Option<i64>>(row, 5)?.map(CaseId),
                    at_ms: col(row, 6)?,
                });
            }
            for row in fetch("SELECT r.run, r.suite, r.state, r.end_why, r.created_ms, r.started_ms, r.heard_ms, \
                 r.ended_ms, r.budget_ms, r.progress, r.cohort_outcome, r.cohort_why, r.cohort_ms, v.outcome, \
                 v.code, v.why, v.action, v.evidence, v.signer, v.at_ms \
                 FROM runs r LEFT JOIN verdicts v ON v.run = r.run WHERE r.serial = $1 ORDER BY r.run DESC LIMIT $2")
            .all(&mut db)
            .await?
            .iter()
            .rev()
            {
                let run = run(row, 0)?;
                if let Some(outcome) = col::<Option<&str>>(row, 13)? {
                    history.verdicts.push(VerdictRow {
                        run: run.run,
                        outcome: from_word(outcome)?,
                        code: col(row, 14)?,
                        why: col(row, 15)?,
                        action: from_word(col(row, 16)?)?,
                        evidence: from_json(col(row, 17)?)?,
                        signer: col(row, 18)?,
                        at_ms: col(row, 19)?,
                    });
                }
                history.runs.push(run);
            }
            for row in fetch("SELECT id, code, device, reason, detail, action, opened_ms, closed_ms, close_why \
                 FROM cases WHERE serial = $1 ORDER BY id DESC LIMIT $2")
            .all(&mut db)
            .await?
            .iter()
            .rev()
            {
                history.cases.push(PastCase {
                    case: CaseId(col(row, 0)?),
                    code: col(row, 1)?,
                    device: device(row, 2)?,
                    reason: col(row, 3)?,
                    detail: col(row, 4)?,
                    action: from_word(col(row, 5)?)?,
                    opened_ms: col(row, 6)?,
                    closed_ms: col(row, 7)?,
                    close_why: col(row, 8)?,
                });
            }
            Ok(Some(history))
        })
        .await
    }
}
