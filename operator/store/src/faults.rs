//! The faults that stand now, by evidence.

use std::collections::{BTreeSet, HashMap};

use sqlx::AnyConnection;
use whetstone_model::action::Severity;
use whetstone_model::evidence::Finding;
use whetstone_model::ids::Serial;
use whetstone_model::wire::{Item, ItemBody};

use crate::db::Store;
use crate::error::StoreError;
use crate::evidence::NewReport;
use crate::sql::{CHUNK, LINE, WORD, clean, col, sql, word};

/// Different findings that are kept of one blade, gone ones included. A sick blade has a few dozen; a sick agent may make
/// up any number, and its blade is unfit long before this.
const MAX_FINDINGS: usize = 1_000;

/// When a fault was last heard of. An operator from before schema 4, beside this one while it is replaced, writes no
/// `last_ms`: then since when it stands.
pub(crate) const LAST_MS: &str = "CASE WHEN last_ms < since_ms THEN since_ms ELSE last_ms END";

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    serial: String,
    code: String,
    device: String,
    source: &'static str,
}

struct Fault {
    standing: bool,
    action: String,
    detail: String,
    since_ms: i64,
    /// When the newest item that it rests on came in, not before the blade's last run was made. Never goes back: a clock that
    /// was set back makes no news old.
    last_ms: i64,
    /// (stream, seq) of that item.
    order: (i64, i64),
    changed: bool,
}

/// Applies new items, which may come in any order. Answers the reports that changed a fault.
pub(crate) async fn apply(
    db: &mut AnyConnection,
    reports: &[NewReport],
    fresh: &[(i64, usize, &Item)],
) -> Result<BTreeSet<usize>, StoreError> {
    let findings: Vec<_> = fresh
        .iter()
        .filter_map(|(stream, report, item)| Some((*stream, *report, *item, said(&item.body)?)))
        .collect();
    let mut changed = BTreeSet::new();
    if findings.is_empty() {
        return Ok(changed);
    }
    let serials: BTreeSet<&Serial> =
        findings.iter().map(|(_, report, ..)| &reports[*report].serial).collect();
    let serials: Vec<&Serial> = serials.into_iter().collect();
    let mut faults = stored(db, &serials).await?;
    let runs = runs_made(db, &serials).await?;
    let mut counts: HashMap<String, usize> = HashMap::new();
    for key in faults.keys() {
        *counts.entry(key.serial.clone()).or_default() += 1;
    }
    for (stream, report, item, said) in findings {
        let (serial, at_ms) = (reports[report].serial.as_str(), reports[report].at_ms);
        let key = Key {
            serial: serial.to_owned(),
            code: clean(&said.finding.code, WORD),
            device: said.finding.device.as_ref().map_or(String::new(), |device| device.as_str().to_owned()),
            source: said.source,
        };
        let order = (stream, item.seq.cast_signed());
        let last_ms = runs.get(serial).map_or(at_ms, |made_ms| at_ms.max(*made_ms));
        let next = Fault {
            standing: said.standing,
            action: said.finding.action.as_str().to_owned(),
            detail: clean(&said.finding.detail, LINE),
            since_ms: at_ms,
            last_ms,
            order,
            changed: true,
        };
        match faults.get_mut(&key) {
            None => {
                let count = counts.entry(serial.to_owned()).or_default();
                if *count >= MAX_FINDINGS {
                    tracing::warn!(blade = serial, code = key.code, "more findings than are kept");
                    continue;
                }
                *count += 1;
                if next.standing {
                    changed.insert(report);
                }
                faults.insert(key, next);
            }
            // Older than what is known: came late, changes nothing.
            Some(fault) if fault.order >= order => {}
            Some(fault) => {
                // Said again is news, too: whoever believes that it is gone has to look anew.
                if fault.standing || next.standing {
                    changed.insert(report);
                }
                let since_ms = if fault.standing && next.standing { fault.since_ms } else { at_ms };
                *fault = Fault { since_ms, last_ms: fault.last_ms.max(last_ms), ..next };
            }
        }
    }
    write(db, &faults).await?;
    Ok(changed)
}

struct Said<'a> {
    finding: &'a Finding,
    source: &'static str,
    standing: bool,
}

fn said(body: &ItemBody) -> Option<Said<'_>> {
    match body {
        // Also where its severity fell: it is no fault any more.
        ItemBody::Appeared { finding } => {
            Some(Said { finding, source: "probe", standing: finding.severity == Severity::Fault })
        }
        ItemBody::Cleared { finding } => Some(Said { finding, source: "probe", standing: false }),
        // A log says that something happened, never that it is over.
        ItemBody::Kernel { finding, .. } if finding.severity == Severity::Fault => {
            Some(Said { finding, source: "kernel", standing: true })
        }
        ItemBody::Kernel { .. } | ItemBody::Reading { .. } | ItemBody::Note { .. } => None,
    }
}

async fn stored(db: &mut AnyConnection, serials: &[&Serial]) -> Result<HashMap<Key, Fault>, StoreError> {
    let mut faults = HashMap::new();
    for chunk in serials.chunks(CHUNK) {
        let mut query = sql(&format!(
            "SELECT serial, code, device, source, standing, action, detail, since_ms, stream, seq, {LAST_MS} \
             FROM faults WHERE serial IN ",
        ));
        query.list(chunk.iter().map(|serial| serial.as_str()));
        for row in query.all(db).await? {
            let key = Key {
                serial: col(&row, 0)?,
                code: col(&row, 1)?,
                device: col(&row, 2)?,
                source: if col::<&str>(&row, 3)? == "kernel" { "kernel" } else { "probe" },
            };
            let fault = Fault {
                standing: col::<i64>(&row, 4)? == 1,
                action: col(&row, 5)?,
                detail: col(&row, 6)?,
                since_ms: col(&row, 7)?,
                last_ms: col(&row, 10)?,
                order: (col(&row, 8)?, col(&row, 9)?),
                changed: false,
            };
            faults.insert(key, fault);
        }
    }
    Ok(faults)
}

/// When the last run of each of these blades was made, of those that had one.
async fn runs_made(db: &mut AnyConnection, serials: &[&Serial]) -> Result<HashMap<String, i64>, StoreError> {
    let mut made = HashMap::new();
    for chunk in serials.chunks(CHUNK) {
        let mut query = sql("SELECT b.serial, r.created_ms FROM blades b JOIN runs r ON r.run = b.last_run \
             WHERE b.serial IN ");
        query.list(chunk.iter().map(|serial| serial.as_str()));
        for row in query.all(db).await? {
            made.insert(col(&row, 0)?, col(&row, 1)?);
        }
    }
    Ok(made)
}

/// When a fault of each of these blades was heard of last, of those that had one.
pub(crate) async fn last_heard(
    db: &mut AnyConnection,
    serials: &[&Serial],
) -> Result<HashMap<Serial, i64>, StoreError> {
    let mut heard = HashMap::new();
    for chunk in serials.chunks(CHUNK) {
        let mut query = sql(&format!("SELECT serial, MAX({LAST_MS}) FROM faults WHERE serial IN "));
        query.list(chunk.iter().map(|serial| serial.as_str()));
        query.push(" GROUP BY serial");
        for row in query.all(db).await? {
            heard.insert(word(&row, 0)?, col(&row, 1)?);
        }
    }
    Ok(heard)
}

async fn write(db: &mut AnyConnection, faults: &HashMap<Key, Fault>) -> Result<(), StoreError> {
    let mut changed: Vec<_> = faults.iter().filter(|(_, fault)| fault.changed).collect();
    changed.sort_by_key(|(key, _)| *key);
    for chunk in changed.chunks(CHUNK) {
        let mut upsert = sql("INSERT INTO faults \
             (serial, code, device, source, standing, action, detail, since_ms, stream, seq, last_ms) VALUES ");
        upsert.rows(chunk, |fields, (key, fault)| {
            fields.put(key.serial.as_str()).put(key.code.as_str()).put(key.device.as_str()).put(key.source);
            fields.put(i64::from(fault.standing)).put(fault.action.as_str()).put(fault.detail.as_str());
            fields.put(fault.since_ms).put(fault.order.0).put(fault.order.1).put(fault.last_ms);
        });
        upsert.push(
            " ON CONFLICT (serial, code, device, source) DO UPDATE SET standing = excluded.standing, \
             action = excluded.action, detail = excluded.detail, since_ms = excluded.since_ms, \
             stream = excluded.stream, seq = excluded.seq, last_ms = excluded.last_ms",
        );
        upsert.run(db).await?;
    }
    Ok(())
}

impl Store {
    /// Forgets the faults that stand and were last heard of before `before_ms`: a run that was made then has proven the
    /// blade anew. What was said later stands. Evidence that came before cannot bring the others back; what the agent says
    /// from now on can. Answers how many went.
    pub async fn clear_faults(&self, serial: &Serial, before_ms: i64) -> Result<u64, StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            // A report of this blade that is being stored comes before or after this, never beside it.
            self.places_for_update(&mut db, &[serial]).await?;
            let text = format!(
                "UPDATE faults SET standing = 0 WHERE serial = $1 AND standing = 1 AND {LAST_MS} < $2"
            );
            let cleared = sql(&text).bind(serial.as_str()).bind(before_ms).run(&mut db).await?;
            db.commit().await?;
            Ok(cleared)
        })
        .await
    }
}
