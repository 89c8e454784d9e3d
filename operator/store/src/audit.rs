//! What people and machines did or tried: the audit log, and blades that nobody expects.

use sqlx::AnyConnection;

use crate::db::Store;
use crate::error::StoreError;
use crate::sql::{LINE, WORD, clean, col, sql};

/// Rows of the audit log that are kept: weeks of an ordinary site, and a bound for one under attack.
const AUDIT_KEPT: i64 = 100_000;
/// Serials that claimed to be of this site; anybody who reaches the port can make them up.
const UNEXPECTED_KEPT: i64 = 10_000;

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    pub id: i64,
    pub at_ms: i64,
    /// A few fixed words: `token-issued`, `evidence-refused`.
    pub kind: String,
    /// Who did it: a person's name, a serial.
    pub who: String,
    pub what: String,
}

/// A machine that is on no manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnexpectedRow {
    /// As claimed; not a checked serial.
    pub serial: String,
    pub what: String,
    pub first_ms: i64,
    pub last_ms: i64,
    pub times: i64,
}

impl Store {
    /// Adds a line to the audit log; beyond `AUDIT_KEPT` the oldest goes.
    pub async fn audit(&self, kind: &str, who: &str, what: &str, at_ms: i64) -> Result<(), StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            let row = sql("INSERT INTO audit (at_ms, kind, who, what) VALUES ($1, $2, $3, $4) RETURNING id")
                .bind(at_ms)
                .bind(clean(kind, WORD))
                .bind(clean(who, WORD))
                .bind(clean(what, LINE))
                .one(&mut db)
                .await?;
            trim_audit(&mut db, col(&row, 0)?, AUDIT_KEPT).await?;
            db.commit().await?;
            Ok(())
        })
        .await
    }

    /// The latest lines, newest first.
    pub async fn list_audit(&self, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        self.within(async {
            let mut db = self.read().await?;
            let rows = sql("SELECT id, at_ms, kind, who, what FROM audit ORDER BY id DESC LIMIT $1")
                .bind(i64::from(limit))
                .all(&mut db)
                .await?;
            rows.iter()
                .map(|row| {
                    Ok(AuditRow {
                        id: col(row, 0)?,
                        at_ms: col(row, 1)?,
                        kind: col(row, 2)?,
                        who: col(row, 3)?,
                        what: col(row, 4)?,
                    })
                })
                .collect()
        })
        .await
    }

    /// Notes a machine that claims to be a blade which nobody expects. It is forgotten once its serial is expected, or
    /// when `UNEXPECTED_KEPT` others came after it.
    pub async fn unexpected(&self, serial: &str, what: &str, at_ms: i64) -> Result<(), StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            let row = sql("INSERT INTO unexpected (serial, what, first_ms, last_ms, times) \
                 VALUES ($1, $2, $3, $4, 1) ON CONFLICT (serial) DO UPDATE SET what = excluded.what, \
                 last_ms = excluded.last_ms, times = unexpected.times + 1 RETURNING times")
            .bind(clean(serial, WORD))
            .bind(clean(what, LINE))
            .bind(at_ms)
            .bind(at_ms)
            .one(&mut db)
            .await?;
            if col::<i64>(&row, 0)? == 1 {
                sql("DELETE FROM unexpected WHERE serial IN \
                     (SELECT serial FROM unexpected ORDER BY last_ms DESC, serial LIMIT 100000 OFFSET $1)")
                .bind(UNEXPECTED_KEPT)
                .run(&mut db)
                .await?;
            }
            db.commit().await?;
            Ok(())
        })
        .await
    }

    /// Machines that nobody expects, latest first.
    pub async fn list_unexpected(&self, limit: u32) -> Result<Vec<UnexpectedRow>, StoreError> {
        self.within(async {
            let mut db = self.read().await?;
            let rows = sql("SELECT serial, what, first_ms, last_ms, times FROM unexpected \
                 ORDER BY last_ms DESC, serial LIMIT $1")
            .bind(i64::from(limit))
            .all(&mut db)
            .await?;
            rows.iter()
                .map(|row| {
                    Ok(UnexpectedRow {
                        serial: col(row, 0)?,
                        what: col(row, 1)?,
                        first_ms: col(row, 2)?,
                        last_ms: col(row, 3)?,
                        times: col(row, 4)?,
                    })
                })
                .collect()
        })
        .await
    }
}

/// Deletes what is older than the last `kept` lines. Ids may have gaps: then fewer are kept.
async fn trim_audit(db: &mut AnyConnection, newest: i64, kept: i64) -> Result<(), StoreError> {
    sql("DELETE FROM audit WHERE id <= $1").bind(newest - kept).run(db).await?;
    Ok(())
}
