//! What is kept, and how much there is of it. Verdicts, transitions, cases, runs and places are kept for ever; of
//! readings, a day whole, then one in a while, then none.

use crate::db::Store;
use crate::error::StoreError;
use crate::items::EvidenceKind;
use crate::sql::{CHUNK, col, sql};

/// How long evidence is kept, ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetainPolicy {
    /// Readings and notes older than this are deleted.
    pub raw_evidence_ms: i64,
    /// Of readings older than this, one per metric, device and `thin_step_ms` stays.
    pub thin_after_ms: i64,
    pub thin_step_ms: i64,
    /// Findings (appeared, cleared, kernel) older than this are deleted.
    pub findings_ms: i64,
    /// Samples of runs, which only the comparison of a cohort needs, are dropped when older; reports stay.
    pub samples_ms: i64,
}

const DAY: i64 = 24 * 3_600_000;

impl Default for RetainPolicy {
    fn default() -> Self {
        RetainPolicy {
            raw_evidence_ms: 30 * DAY,
            thin_after_ms: 2 * DAY,
            thin_step_ms: 3_600_000,
            // Longer than the time in which a supplier takes a blade back.
            findings_ms: 730 * DAY,
            samples_ms: 365 * DAY,
        }
    }
}

/// What a call of [`Store::retain`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retained {
    pub thinned: u64,
    pub raw: u64,
    pub findings: u64,
    pub samples: u64,
    pub tokens: u64,
    pub certificates: u64,
    /// False if there is more to do: call again.
    pub done: bool,
}

/// Rows deleted in one transaction: a few milliseconds in which nobody else writes.
const BATCH: i64 = 5_000;
/// Transactions of each sort in one call.
const BATCHES: usize = 100;

impl Store {
    /// Removes what the policy does not keep, in small transactions, so that intake goes on between them.
    pub async fn retain(&self, policy: &RetainPolicy, now_ms: i64) -> Result<Retained, StoreError> {
        use EvidenceKind::{Appeared, Cleared, Kernel, Note, Reading};
        let mut retained = Retained { done: true, ..Retained::default() };
        for kind in [Reading, Note] {
            retained.raw +=
                self.delete_old(kind, now_ms - policy.raw_evidence_ms, &mut retained.done).await?;
        }
        for kind in [Appeared, Cleared, Kernel] {
            retained.findings +=
                self.delete_old(kind, now_ms - policy.findings_ms, &mut retained.done).await?;
        }
        retained.thinned = self.thin(policy, now_ms, &mut retained.done).await?;
        self.within(async {
            let mut db = self.write().await?;
            retained.samples = sql("UPDATE results SET samples = $1 WHERE LENGTH(samples) > 0 AND run IN \
                 (SELECT run FROM runs WHERE ended_ms < $2)")
            .bind(Vec::<u8>::new())
            .bind(now_ms - policy.samples_ms)
            .run(&mut db)
            .await?;
            // A used token still tells a second machine from the first for a while.
            retained.tokens =
                sql("DELETE FROM tokens WHERE expires_ms < $1").bind(now_ms - 90 * DAY).run(&mut db).await?;
            // One that has run out is still good for its renewal, 30 days long; the day more is for clocks that differ.
            retained.certificates = sql("DELETE FROM certificates WHERE not_after_ms < $1")
                .bind(now_ms - 31 * DAY)
                .run(&mut db)
                .await?;
            // Faults that went, and streams that ended, without any evidence left of them.
            sql("DELETE FROM faults WHERE standing = 0 AND since_ms < $1")
                .bind(now_ms - policy.findings_ms)
                .run(&mut db)
                .await?;
            sql("DELETE FROM streams WHERE last_ms < $1 AND items = 0 \
                 AND NOT EXISTS (SELECT 1 FROM evidence e WHERE e.stream = streams.id)")
            .bind(now_ms - policy.findings_ms)
            .run(&mut db)
            .await?;
            db.commit().await?;
            Ok(())
        })
        .await?;
        Ok(retained)
    }

    async fn delete_old(
        &self,
        kind: EvidenceKind,
        before_ms: i64,
        done: &mut bool,
    ) -> Result<u64, StoreError> {
        let mut deleted = 0;
        for _ in 0..BATCHES {
            let rows = self
                .delete_some(
                    "SELECT stream, seq FROM evidence WHERE kind = $1 AND received_ms < $2 \
                     ORDER BY received_ms, stream, seq LIMIT $3",
                    &[kind.number(), before_ms, BATCH],
                )
                .await?;
            deleted += rows;
            if rows < BATCH.cast_unsigned() {
                return Ok(deleted);
            }
        }
        *done = false;
        Ok(deleted)
    }

    /// Thins step by step from where the last call ended.
    async fn thin(&self, policy: &RetainPolicy, now_ms: i64, done: &mut bool) -> Result<u64, StoreError> {
        let step = policy.thin_step_ms.max(1);
        let end = (now_ms - policy.thin_after_ms).div_euclid(step) * step;
        let mut thinned = 0;
        for _ in 0..BATCHES {
            let (from, oldest) = self.thin_from().await?;
            // Straight to the first step that has readings.
            let Some(oldest) = oldest else { return Ok(thinned) };
            let from = from.max(oldest.div_euclid(step) * step);
            if from >= end {
                return Ok(thinned);
            }
            thinned += self
                .delete_some(
                    "SELECT stream, seq FROM (SELECT stream, seq, ROW_NUMBER() OVER \
                     (PARTITION BY stream, code, device ORDER BY seq) AS n FROM evidence \
                     WHERE kind = $1 AND received_ms >= $2 AND received_ms < $3) AS numbered WHERE n > 1",
                    &[EvidenceKind::Reading.number(), from, from + step],
                )
                .await?;
            self.set_thinned(from + step).await?;
        }
        *done = false;
        Ok(thinned)
    }

    async fn thin_from(&self) -> Result<(i64, Option<i64>), StoreError> {
        self.within(async {
            let mut db = self.read().await?;
            let row = sql("SELECT value FROM marks WHERE name = 'thinned_ms'").maybe(&mut db).await?;
            let from = row.map(|row| col(&row, 0)).transpose()?.unwrap_or(i64::MIN);
            let row = sql("SELECT MIN(received_ms) FROM evidence WHERE kind = $1 AND received_ms >= $2")
                .bind(EvidenceKind::Reading.number())
                .bind(from)
                .one(&mut db)
                .await?;
            Ok((from, col(&row, 0)?))
        })
        .await
    }

    async fn set_thinned(&self, to_ms: i64) -> Result<(), StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            sql("INSERT INTO marks (name, value) VALUES ('thinned_ms', $1) \
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value")
            .bind(to_ms)
            .run(&mut db)
            .await?;
            db.commit().await?;
            Ok(())
        })
        .await
    }

    /// Deletes the evidence that a query names, and raises its streams' floors, so that a replay stays known.
    async fn delete_some(&self, which: &str, arguments: &[i64]) -> Result<u64, StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            let mut query = sql(which);
            for argument in arguments {
                query = query.bind(*argument);
            }
            let mut keys: Vec<(i64, i64)> = Vec::new();
            for row in query.all(&mut db).await? {
                keys.push((col(&row, 0)?, col(&row, 1)?));
            }
            keys.sort_unstable();
            let mut floors: Vec<(i64, i64, i64)> = Vec::new();
            for (stream, seq) in &keys {
                match floors.last_mut().filter(|(last, ..)| last == stream) {
                    Some((_, floor, count)) => {
                        *floor = *seq;
                        *count += 1;
                    }
                    None => floors.push((*stream, *seq, 1)),
                }
            }
            for chunk in floors.chunks(CHUNK) {
                let mut update = sql("WITH v (id, floor, gone) AS (VALUES ");
                update.rows(chunk, |fields, (stream, floor, count)| {
                    fields.put(*stream).put(*floor).put(*count);
                });
                update.push(
                    ") UPDATE streams SET items = streams.items - v.gone, floor_seq = \
                     CASE WHEN streams.floor_seq > v.floor THEN streams.floor_seq ELSE v.floor END \
                     FROM v WHERE streams.id = v.id",
                );
                update.run(&mut db).await?;
            }
            let mut deleted = 0;
            for chunk in keys.chunks(CHUNK) {
                let mut delete = sql("DELETE FROM evidence WHERE (stream, seq) IN (VALUES ");
                delete.rows(chunk, |fields, (stream, seq)| {
                    fields.put(*stream).put(*seq);
                });
                delete.push(")");
                deleted += delete.run(&mut db).await?;
            }
            db.commit().await?;
            Ok(deleted)
        })
        .await
    }

    /// Rows per table, for metrics. Evidence is counted as it comes and goes, not by reading it.
    pub async fn counts(&self) -> Result<Vec<(&'static str, i64)>, StoreError> {
        self.within(async {
            let mut db = self.read().await?;
            let row = sql("SELECT (SELECT COUNT(*) FROM blades), (SELECT COUNT(*) FROM transitions), \
                 (SELECT COUNT(*) FROM runs), (SELECT COUNT(*) FROM verdicts), (SELECT COUNT(*) FROM cases), \
                 (SELECT COUNT(*) FROM streams), (SELECT COUNT(*) FROM faults), \
                 (SELECT COUNT(*) FROM unexpected), (SELECT COUNT(*) FROM audit), \
                 (SELECT CAST(COALESCE(SUM(items), 0) AS BIGINT) FROM streams)")
            .one(&mut db)
            .await?;
            let names = [
                "blades",
                "transitions",
                "runs",
                "verdicts",
                "cases",
                "streams",
                "faults",
                "unexpected",
                "audit",
                "evidence",
            ];
            names.into_iter().enumerate().map(|(number, name)| Ok((name, col(&row, number)?))).collect()
        })
        .await
    }
}
