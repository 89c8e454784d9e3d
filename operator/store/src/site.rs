//! The whole site, or some of its blades, as the planner's view needs it: in four queries of one moment.

use std::collections::HashMap;

use sqlx::AnyConnection;
use sqlx::any::AnyRow;
use whetstone_model::action::Action;
use whetstone_model::ids::{BladeName, CaseId, DomainName, RackName, RunId, Serial, TrancheName};
use whetstone_model::lifecycle::Phase;
use whetstone_model::verdict::Outcome;

use crate::db::Store;
use crate::error::StoreError;
use crate::faults::LAST_MS;
use crate::runs::{CohortRow, RunRow, RunState};
use crate::sql::{CHUNK, Sql, col, from_word, maybe_word, sql, word};
use crate::transitions::phase;

/// Blades with all that belongs to them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SiteRows {
    /// In the order of their serials.
    pub blades: Vec<BladeRow>,
    /// Blades whose rows cannot be understood: serial and why. The others are not held up by them.
    pub unreadable: Vec<(String, String)>,
}

/// One blade.
#[derive(Debug, Clone, PartialEq)]
pub struct BladeRow {
    pub serial: Serial,
    pub name: BladeName,
    pub tranche: Option<TrancheName>,
    pub rack: Option<RackName>,
    pub domain: Option<DomainName>,
    /// From the manifest.
    pub sku: Option<String>,
    pub phase: Phase,
    /// Why it is in this phase: the line of its last transition.
    pub why: String,
    pub since_ms: i64,
    /// Counts the transitions.
    pub sequence: i64,
    /// The wish for a burn-in that was last acted on.
    pub retested: i64,
    pub passed_ms: Option<i64>,
    pub doubted_ms: Option<i64>,
    /// Runs in a row that ended without a conclusive result.
    pub inconclusive: u32,
    pub agent: AgentRow,
    /// The latest run.
    pub run: Option<RunRow>,
    /// Faults that stand now, oldest first.
    pub faults: Vec<FaultRow>,
    /// Open cases, oldest first.
    pub cases: Vec<CaseRow>,
}

/// What is known of a blade's agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentRow {
    /// It has joined, and its identity was not reset since.
    pub joined: bool,
    pub last_seen_ms: Option<i64>,
    /// Two machines claim the serial: what was seen.
    pub conflict: Option<String>,
    /// SKU profile by its own facts.
    pub sku: Option<String>,
    pub gpus: usize,
}

/// A fault that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultRow {
    pub code: String,
    pub device: Option<String>,
    pub detail: String,
    pub action: Action,
    /// True if the kernel log said it: it does not clear by itself.
    pub kernel: bool,
    pub since_ms: i64,
    /// When it was last said (by the operator's clock): later than `since_ms` where it came again while it stood.
    pub last_ms: i64,
}

/// An open case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseRow {
    pub case: CaseId,
    pub code: String,
    pub device: Option<String>,
    /// Reason of the quarantine, as the planner named it.
    pub reason: String,
    pub detail: String,
    pub action: Action,
    pub opened_ms: i64,
}

impl Store {
    /// Everything that the planner needs of the store.
    pub async fn load_site(&self) -> Result<SiteRows, StoreError> {
        self.within(async {
            let mut db = self.read().await?;
            let mut site = SiteRows::default();
            load(&mut db, None, &mut site).await?;
            Ok(site)
        })
        .await
    }

    /// The same of some blades; those that are not known are left out.
    pub async fn load_blades(&self, serials: &[Serial]) -> Result<SiteRows, StoreError> {
        self.within(async {
            let mut db = self.read().await?;
            let mut site = SiteRows::default();
            for chunk in serials.chunks(CHUNK) {
                load(&mut db, Some(chunk), &mut site).await?;
            }
            site.blades.sort_by(|a, b| a.serial.cmp(&b.serial));
            site.blades.dedup_by(|a, b| a.serial == b.serial);
            Ok(site)
        })
        .await
    }
}

/// Adds ` AND column IN (…)` where only some blades are wanted.
fn only(query: &mut Sql, column: &str, serials: Option<&[Serial]>) {
    if let Some(serials) = serials {
        query.push(" AND ").push(column).push(" IN ").list(serials.iter().map(Serial::as_str));
    }
}

async fn load(
    db: &mut AnyConnection,
    serials: Option<&[Serial]>,
    site: &mut SiteRows,
) -> Result<(), StoreError> {
    let mut faults: HashMap<String, Vec<FaultRow>> = HashMap::new();
    let mut query = sql(&format!(
        "SELECT serial, code, device, source, action, detail, since_ms, {LAST_MS} FROM faults \
         WHERE standing = 1"
    ));
    only(&mut query, "serial", serials);
    query.push(" ORDER BY since_ms, code, device, source");
    for row in query.all(db).await? {
        let list = faults.entry(col(&row, 0)?).or_default();
        list.push(FaultRow {
            code: col(&row, 1)?,
            device: device(&row, 2)?,
            detail: col(&row, 5)?,
            // A word of a newer or older program: what to do is for a person then.
            action: from_word(col(&row, 4)?).unwrap_or(Action::ContactSupport),
            kernel: col::<&str>(&row, 3)? == "kernel",
            since_ms: col(&row, 6)?,
            last_ms: col(&row, 7)?,
        });
    }
    let mut cases: HashMap<String, Vec<CaseRow>> = HashMap::new();
    let mut query = sql("SELECT serial, id, code, device, reason, detail, action, opened_ms FROM cases \
         WHERE closed_ms IS NULL");
    only(&mut query, "serial", serials);
    query.push(" ORDER BY id");
    for row in query.all(db).await? {
        cases.entry(col(&row, 0)?).or_default().push(CaseRow {
            case: CaseId(col(&row, 1)?),
            code: col(&row, 2)?,
            device: device(&row, 3)?,
            reason: col(&row, 4)?,
            detail: col(&row, 5)?,
            action: from_word(col(&row, 6)?).unwrap_or(Action::ContactSupport),
            opened_ms: col(&row, 7)?,
        });
    }
    let mut query = sql(
        "SELECT b.serial, b.name, b.tranche, b.rack, b.domain, b.sku, b.phase, b.why, b.since_ms, \
         b.sequence, b.retested, b.passed_ms, b.doubted_ms, b.inconclusive, \
         i.joined, i.last_seen_ms, i.conflict, i.sku, i.gpus, \
         r.run, r.suite, r.state, r.end_why, r.created_ms, r.started_ms, r.heard_ms, r.ended_ms, r.budget_ms, \
         r.progress, r.cohort_outcome, r.cohort_why, r.cohort_ms, v.outcome, v.code, v.why, v.action \
         FROM blades b LEFT JOIN identities i ON i.serial = b.serial \
         LEFT JOIN runs r ON r.run = b.last_run LEFT JOIN verdicts v ON v.run = b.last_run WHERE 1 = 1",
    );
    only(&mut query, "b.serial", serials);
    query.push(" ORDER BY b.serial");
    for row in query.all(db).await? {
        let serial: String = col(&row, 0)?;
        let belongings =
            (faults.remove(&serial).unwrap_or_default(), cases.remove(&serial).unwrap_or_default());
        match blade(&row, belongings) {
            Ok(blade) => site.blades.push(blade),
            Err(error) => site.unreadable.push((serial, error.to_string())),
        }
    }
    // PostgreSQL's order of texts is that of its locale.
    site.blades.sort_by(|a, b| a.serial.cmp(&b.serial));
    Ok(())
}

fn blade(row: &AnyRow, (faults, cases): (Vec<FaultRow>, Vec<CaseRow>)) -> Result<BladeRow, StoreError> {
    Ok(BladeRow {
        serial: word(row, 0)?,
        name: word(row, 1)?,
        tranche: maybe_word(row, 2)?,
        rack: maybe_word(row, 3)?,
        domain: maybe_word(row, 4)?,
        sku: col(row, 5)?,
        phase: phase(col(row, 6)?)?,
        why: col(row, 7)?,
        since_ms: col(row, 8)?,
        sequence: col(row, 9)?,
        retested: col(row, 10)?,
        passed_ms: col(row, 11)?,
        doubted_ms: col(row, 12)?,
        inconclusive: small(col(row, 13)?),
        agent: AgentRow {
            joined: col::<Option<i64>>(row, 14)? == Some(1),
            last_seen_ms: col(row, 15)?,
            conflict: col(row, 16)?,
            sku: col(row, 17)?,
            gpus: small(col::<Option<i64>>(row, 18)?.unwrap_or(0)) as usize,
        },
        run: if col::<Option<i64>>(row, 19)?.is_some() { Some(run(row, 19)?) } else { None },
        faults,
        cases,
    })
}

/// A run with its verdict, from the columns `run, suite, state, end_why, created_ms, started_ms, heard_ms, ended_ms,
/// budget_ms, progress, cohort_outcome, cohort_why, cohort_ms` and the verdict's `outcome, code, why, action`.
pub(crate) fn run(row: &AnyRow, at: usize) -> Result<RunRow, StoreError> {
    let end_why = || Ok::<_, StoreError>(col::<Option<String>>(row, at + 3)?.unwrap_or_default());
    let state = match col::<&str>(row, at + 2)? {
        "ordered" => RunState::Ordered,
        "running" => RunState::Running,
        "finished" => RunState::Finished {
            outcome: from_word(col(row, at + 13)?)?,
            code: col(row, at + 14)?,
            why: col(row, at + 15)?,
            action: from_word(col(row, at + 16)?)?,
        },
        "lost" => RunState::Lost { why: end_why()? },
        "cancelled" => RunState::Cancelled { why: end_why()? },
        other => return Err(StoreError::Corrupt(format!("{other:?} is no state of a run"))),
    };
    let cohort = match col::<Option<&str>>(row, at + 10)? {
        Some(outcome) => Some(CohortRow {
            outcome: from_word::<Outcome>(outcome)?,
            why: col::<Option<String>>(row, at + 11)?.unwrap_or_default(),
            at_ms: col::<Option<i64>>(row, at + 12)?.unwrap_or(0),
        }),
        None => None,
    };
    Ok(RunRow {
        run: RunId(col(row, at)?),
        suite: col(row, at + 1)?,
        state,
        created_ms: col(row, at + 4)?,
        started_ms: col(row, at + 5)?,
        heard_ms: col(row, at + 6)?,
        ended_ms: col(row, at + 7)?,
        budget_ms: col(row, at + 8)?,
        cohort,
        progress: col(row, at + 9)?,
    })
}

/// An empty device is the blade as a whole.
pub(crate) fn device(row: &AnyRow, number: usize) -> Result<Option<String>, StoreError> {
    let text: &str = col(row, number)?;
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn small(number: i64) -> u32 {
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}
