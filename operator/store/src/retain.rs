//! What is kept: verdicts, transitions, cases, runs and places for ever; of readings, a day whole, then one in a while, then
//! none.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sqlx::AnyConnection;

use crate::db::{Backend, Store};
use crate::error::StoreError;
use crate::faults::LAST_MS;
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

/// Rows deleted in one transaction: some tens of milliseconds in which nobody else writes.
const BATCH: i64 = 5_000;
/// Results that lose their samples in one transaction: SQLite writes the whole row anew, with the report in it.
const RESULTS: i64 = 100;
/// Transactions of each sort in one call; a step of the thinning that was begun is brought to its end.
const BATCHES: usize = 100;

/// A piece of evidence.
type Key = (i64, i64);

impl Store {
    /// Removes what the policy does not keep, in small transactions, so that intake goes on between them. What fails stops
    /// nothing of the rest.
    ///
    /// # Errors
    /// The first failure; what went well beside it is done.
    pub async fn retain(&self, policy: &RetainPolicy, now_ms: i64) -> Result<Retained, StoreError> {
        use EvidenceKind::{Appeared, Cleared, Kernel, Note, Reading};
        let mut retained = Retained { done: true, ..Retained::default() };
        let mut tried = Tried::default();
        let raw_ms = now_ms - policy.raw_evidence_ms;
        let findings_ms = now_ms - policy.findings_ms;
        for kind in [Reading, Note] {
            retained.raw += tried.rows(self.delete_old(kind, raw_ms, &mut retained.done).await);
        }
        for kind in [Appeared, Cleared, Kernel] {
            retained.findings += tried.rows(self.delete_old(kind, findings_ms, &mut retained.done).await);
        }
        retained.thinned = tried.rows(self.thin(policy, now_ms, &mut retained.done).await);
        let faults = format!(
            "DELETE FROM faults WHERE (serial, code, device, source) IN \
             (SELECT serial, code, device, source FROM faults WHERE standing = 0 AND {LAST_MS} < $1 LIMIT $2)"
        );
        for (rows, text, before_ms, batch) in [
            (
                Some(&mut retained.samples),
                "UPDATE results SET samples = $1 WHERE run IN (SELECT x.run FROM results x JOIN runs r ON r.run = x.run \
                 WHERE LENGTH(x.samples) > 0 AND r.ended_ms < $2 LIMIT $3)",
                now_ms - policy.samples_ms,
                RESULTS,
            ),
            (
                Some(&mut retained.tokens),
                "DELETE FROM tokens WHERE sha256 IN (SELECT sha256 FROM tokens WHERE expires_ms < $1 LIMIT $2)",
                // A used token still tells a second machine from the first for a while.
                now_ms - 90 * DAY,
                BATCH,
            ),
            (
                Some(&mut retained.certificates),
                "DELETE FROM certificates WHERE cert_serial IN \
                 (SELECT cert_serial FROM certificates WHERE not_after_ms < $1 LIMIT $2)",
                // One that has run out is still good for its renewal, 30 days long; the day more is for clocks that differ.
                now_ms - 31 * DAY,
                BATCH,
            ),
            // Faults that went, and streams that ended, without any evidence left of them.
            (None, faults.as_str(), findings_ms, BATCH),
            (
                None,
                "DELETE FROM streams WHERE id IN (SELECT s.id FROM streams s WHERE s.last_ms < $1 AND s.items = 0 \
                 AND NOT EXISTS (SELECT 1 FROM evidence e WHERE e.stream = s.id) LIMIT $2)",
                findings_ms,
                BATCH,
            ),
        ] {
            let done = tried.rows(self.clean_up(text, before_ms, batch, &mut retained.done).await);
            if let Some(rows) = rows {
                *rows = done;
            }
        }
        tried.failed.map_or(Ok(retained), Err)
    }

    /// One statement again and again, each time for a batch of what is older.
    async fn clean_up(
        &self,
        text: &str,
        before_ms: i64,
        batch: i64,
        done: &mut bool,
    ) -> Result<u64, StoreError> {
        let mut changed = 0;
        for _ in 0..BATCHES {
            let rows = self
                .within(async {
                    let mut db = self.write().await?;
                    let mut statement = sql(text);
                    if text.starts_with("UPDATE") {
                        statement = statement.bind(Vec::<u8>::new());
                    }
                    let rows = statement.bind(before_ms).bind(batch).run(&mut db).await?;
                    if rows > 0 {
                        db.commit().await?;
                    }
                    Ok(rows)
                })
                .await?;
            changed += rows;
            if rows < batch.cast_unsigned() {
                return Ok(changed);
            }
        }
        *done = false;
        Ok(changed)
    }

    async fn delete_old(
        &self,
        kind: EvidenceKind,
        before_ms: i64,
        done: &mut bool,
    ) -> Result<u64, StoreError> {
        let mut deleted = 0;
        for _ in 0..BATCHES {
            let keys = self
                .within(async {
                    let mut db = self.read().await?;
                    let rows = sql("SELECT stream, seq FROM evidence WHERE kind = $1 AND received_ms < $2 \
                         ORDER BY received_ms, stream, seq LIMIT $3")
                    .bind(kind.number())
                    .bind(before_ms)
                    .bind(BATCH)
                    .all(&mut db)
                    .await?;
                    rows.iter()
                        .map(|row| Ok((col(row, 0)?, col(row, 1)?)))
                        .collect::<Result<Vec<Key>, StoreError>>()
                })
                .await?;
            deleted += self.delete(&keys).await?;
            if keys.len() < BATCH as usize {
                return Ok(deleted);
            }
        }
        *done = false;
        Ok(deleted)
    }

    /// Thins step by step from where the last call ended. The mark moves when a step is done; one that was cut short is
    /// begun anew, and keeps the same readings.
    async fn thin(&self, policy: &RetainPolicy, now_ms: i64, done: &mut bool) -> Result<u64, StoreError> {
        let step = policy.thin_step_ms.max(1);
        let end = (now_ms - policy.thin_after_ms).div_euclid(step) * step;
        let (mut thinned, mut batches) = (0, 0);
        while batches < BATCHES {
            let (from, oldest) = self.thin_from().await?;
            // Straight to the first step that has readings.
            let Some(oldest) = oldest else { return Ok(thinned) };
            let from = from.max(oldest.div_euclid(step) * step);
            if from >= end {
                return Ok(thinned);
            }
            let mut kept = Kept::default();
            let mut after = (from, i64::MIN, i64::MIN);
            loop {
                let (surplus, last) = self.surplus(after, from + step, &mut kept).await?;
                thinned += self.delete(&surplus).await?;
                batches += 1;
                let Some(last) = last else { break };
                after = last;
            }
            self.set_thinned(from + step).await?;
        }
        *done = false;
        Ok(thinned)
    }

    /// Of the readings that follow `after` a batch: those that are not their step's first of their sort, and the last one
    /// looked at; `None` if there are no more before `end`.
    async fn surplus(
        &self,
        after: (i64, i64, i64),
        end: i64,
        kept: &mut Kept,
    ) -> Result<(Vec<Key>, Option<(i64, i64, i64)>), StoreError> {
        self.within(async {
            let mut db = self.read().await?;
            // The first bound is for the index, which knows no other column of the second.
            let rows = sql("SELECT received_ms, stream, seq, code, device FROM evidence WHERE kind = $1 \
                 AND received_ms >= $2 AND received_ms < $3 AND (received_ms, stream, seq) > ($4, $5, $6) \
                 ORDER BY received_ms, stream, seq LIMIT $7")
            .bind(EvidenceKind::Reading.number())
            .bind(after.0)
            .bind(end)
            .bind(after.0)
            .bind(after.1)
            .bind(after.2)
            .bind(BATCH)
            .all(&mut db)
            .await?;
            drop(db);
            let mut surplus = Vec::new();
            let mut last = None;
            for row in &rows {
                let (received_ms, stream, seq): (i64, i64, i64) = (col(row, 0)?, col(row, 1)?, col(row, 2)?);
                if !kept.first(stream, col(row, 3)?, col(row, 4)?) {
                    surplus.push((stream, seq));
                }
                last = Some((received_ms, stream, seq));
            }
            Ok((surplus, last.filter(|_| rows.len() >= BATCH as usize)))
        })
        .await
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

    /// Deletes a batch of evidence, and raises its streams' floors, so that a replay stays known. What another has deleted
    /// meanwhile is not counted twice.
    async fn delete(&self, keys: &[Key]) -> Result<u64, StoreError> {
        if keys.is_empty() {
            return Ok(0);
        }
        self.within(async {
            let mut db = self.write().await?;
            self.lock_streams(&mut db, keys).await?;
            let mut gone: Vec<Key> = Vec::with_capacity(keys.len());
            for chunk in keys.chunks(CHUNK) {
                let mut delete = sql("DELETE FROM evidence WHERE (stream, seq) IN (VALUES ");
                delete.rows(chunk, |fields, (stream, seq)| {
                    fields.put(*stream).put(*seq);
                });
                delete.push(") RETURNING stream, seq");
                for row in delete.all(&mut db).await? {
                    gone.push((col(&row, 0)?, col(&row, 1)?));
                }
            }
            let mut floors: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
            for (stream, seq) in &gone {
                let (floor, count) = floors.entry(*stream).or_insert((*seq, 0));
                *floor = (*floor).max(*seq);
                *count += 1;
            }
            let floors: Vec<_> = floors.into_iter().collect();
            for chunk in floors.chunks(CHUNK) {
                let mut update = sql("WITH v (id, floor, gone) AS (VALUES ");
                update.rows(chunk, |fields, (stream, (floor, count))| {
                    fields.put(*stream).put(*floor).put(*count);
                });
                update.push(
                    ") UPDATE streams SET items = streams.items - v.gone, floor_seq = \
                     CASE WHEN streams.floor_seq > v.floor THEN streams.floor_seq ELSE v.floor END \
                     FROM v WHERE streams.id = v.id",
                );
                update.run(&mut db).await?;
            }
            db.commit().await?;
            Ok(gone.len() as u64)
        })
        .await
    }

    /// In the order in which intake locks them: the two cannot wait for each other.
    async fn lock_streams(&self, db: &mut AnyConnection, keys: &[Key]) -> Result<(), StoreError> {
        if self.backend == Backend::Sqlite {
            return Ok(());
        }
        let streams: BTreeSet<i64> = keys.iter().map(|(stream, _)| *stream).collect();
        let mut query = sql("SELECT id FROM streams WHERE id IN ");
        query.list(streams);
        query.push(" ORDER BY serial, name").push(self.for_update());
        query.all(db).await?;
        Ok(())
    }
}

/// What went wrong so far; the rest goes on.
#[derive(Default)]
struct Tried {
    failed: Option<StoreError>,
}

impl Tried {
    fn rows(&mut self, rows: Result<u64, StoreError>) -> u64 {
        rows.unwrap_or_else(|error| {
            tracing::warn!(%error, "a part of the retention failed, the others go on");
            self.failed.get_or_insert(error);
            0
        })
    }
}

/// Which readings of one step have their first. A large site has some hundred thousand sorts: texts are kept once.
#[derive(Default)]
struct Kept {
    words: HashMap<String, u32>,
    /// Stream, metric, device.
    sorts: HashSet<(i64, u32, u32)>,
}

impl Kept {
    /// True for the first of its sort.
    fn first(&mut self, stream: i64, code: &str, device: &str) -> bool {
        let sort = (stream, self.word(code), self.word(device));
        self.sorts.insert(sort)
    }

    fn word(&mut self, text: &str) -> u32 {
        if let Some(number) = self.words.get(text) {
            return *number;
        }
        let number = u32::try_from(self.words.len()).unwrap_or(u32::MAX);
        self.words.insert(text.to_owned(), number);
        number
    }
}
