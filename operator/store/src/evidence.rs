//! Evidence comes in: stored once per (serial, stream, seq), whatever the network repeats or turns round; and the faults
//! that stand by it.
//!
//! What a blade says is ordered by the streams, in the order in which they were first heard of, and within one by `seq`.
//! Blade clocks order nothing. So the faults that stand do not depend on the order in which a stream's reports arrive.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sqlx::AnyConnection;
use whetstone_model::ids::Serial;
use whetstone_model::wire::{Item, ItemBody};

use crate::db::Store;
use crate::error::StoreError;
use crate::faults;
use crate::items::EvidenceKind;
use crate::sql::{CHUNK, WORD, clean, col, json, sql, word};

/// One report of an agent.
#[derive(Debug, Clone, PartialEq)]
pub struct NewReport {
    pub serial: Serial,
    pub instance: String,
    pub stream: String,
    pub items: Vec<Item>,
    /// Up to where its agent was told that the stream is stored, where it says so.
    pub acked: Option<u64>,
    /// When it came in.
    pub at_ms: i64,
}

/// What became of a report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Items that were not known before.
    pub new: usize,
    /// Items that were, or that come twice.
    pub duplicates: usize,
    /// The greatest `seq` of the report; with no items, of the stream. Everything up to it needs no second sending.
    pub acked: u64,
    /// What stands has to be said again: the agent was told that more is stored than was. So until it was told more, since an
    /// answer may be lost, and with it whoever gave it.
    pub lost: bool,
    /// A fault appeared, changed or went, or one that stands was said again.
    pub faults_changed: bool,
}

/// Why a report was not stored. Others of the same batch were.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotStored {
    #[error("no such blade")]
    NoSuchBlade,
    /// Numbers count from 1, and end where a signed 64-bit number does.
    #[error("seq {0} is out of range")]
    BadSeq(u64),
}

/// Largest finding or note that is kept whole, bytes of JSON; a longer one keeps its columns and loses its body.
const MAX_BODY: usize = 64 << 10;

struct Stream {
    id: i64,
    floor: i64,
    max_seq: i64,
    /// Before this batch.
    max_before: i64,
    added: i64,
    last_ms: i64,
    /// What an agent was told to be stored when it was not; 0 = never.
    lost_seq: i64,
}

impl Stream {
    /// Holds what an agent was told to be stored against what was, before this batch. See [`Stored::lost`].
    fn lost(&mut self, serial: &Serial, told: u64) -> bool {
        let (told, known) = (i64::try_from(told).unwrap_or(i64::MAX), self.max_before);
        if told > known && told != self.lost_seq {
            tracing::warn!(blade = %serial, told, known, "less is stored than its agent was told: what stands is said again");
            self.lost_seq = told;
        }
        told > 0 && told == self.lost_seq
    }
}

type StreamKey = (Serial, String);

impl NewReport {
    fn key(&self) -> StreamKey {
        (self.serial.clone(), clean(&self.stream, WORD))
    }
}

impl Store {
    /// Stores reports in one transaction, in their order. Answers come in the same order; a report that is refused does
    /// not stop the others.
    pub async fn store_reports(
        &self,
        reports: &[NewReport],
    ) -> Result<Vec<Result<Stored, NotStored>>, StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            let mut answers = self.check(&mut db, reports).await?;
            let mut streams = self.streams(&mut db, reports, &answers).await?;
            let mut known = known_items(&mut db, reports, &streams).await?;
            let mut fresh: Vec<(i64, usize, &Item)> = Vec::new();
            for (index, report) in reports.iter().enumerate() {
                let Ok(answer) = &mut answers[index] else { continue };
                let Some(stream) = streams.get_mut(&report.key()) else {
                    continue;
                };
                answer.lost = report.acked.is_some_and(|told| stream.lost(&report.serial, told));
                for item in &report.items {
                    let seq = item.seq.cast_signed();
                    answer.acked = answer.acked.max(item.seq);
                    if seq <= stream.floor || !known.insert((stream.id, seq)) {
                        answer.duplicates += 1;
                        continue;
                    }
                    answer.new += 1;
                    stream.added += 1;
                    stream.max_seq = stream.max_seq.max(seq);
                    fresh.push((stream.id, index, item));
                }
                stream.last_ms = stream.last_ms.max(report.at_ms);
                if report.items.is_empty() {
                    answer.acked = stream.max_seq.cast_unsigned();
                }
            }
            insert_items(&mut db, reports, &fresh).await?;
            update_streams(&mut db, streams.values()).await?;
            let changed = faults::apply(&mut db, reports, &fresh).await?;
            for index in changed {
                if let Ok(answer) = &mut answers[index] {
                    answer.faults_changed = true;
                }
            }
            db.commit().await?;
            Ok(answers)
        })
        .await
    }

    /// Which reports can be stored at all. Locks their blades: of one blade's reports, one is stored after the other.
    async fn check(
        &self,
        db: &mut AnyConnection,
        reports: &[NewReport],
    ) -> Result<Vec<Result<Stored, NotStored>>, StoreError> {
        // In order, as all who lock blades do: two writers cannot wait for each other.
        let serials: BTreeSet<&Serial> = reports.iter().map(|report| &report.serial).collect();
        let serials: Vec<&Serial> = serials.into_iter().collect();
        let mut known: HashSet<Serial> = HashSet::with_capacity(serials.len());
        for chunk in serials.chunks(CHUNK) {
            let mut query = sql("SELECT serial FROM blades WHERE serial IN ");
            query.list(chunk.iter().map(|serial| serial.as_str()));
            query.push(" ORDER BY serial").push(self.for_update());
            for row in query.all(db).await? {
                known.insert(word(&row, 0)?);
            }
        }
        let out_of_range = |item: &&Item| item.seq == 0 || i64::try_from(item.seq).is_err();
        Ok(reports
            .iter()
            .map(|report| {
                if !known.contains(&report.serial) {
                    return Err(NotStored::NoSuchBlade);
                }
                match report.items.iter().find(out_of_range) {
                    Some(item) => Err(NotStored::BadSeq(item.seq)),
                    None => Ok(Stored::default()),
                }
            })
            .collect())
    }

    /// The batch's streams, new ones made in the order in which they come.
    async fn streams(
        &self,
        db: &mut AnyConnection,
        reports: &[NewReport],
        answers: &[Result<Stored, NotStored>],
    ) -> Result<HashMap<StreamKey, Stream>, StoreError> {
        let mut wanted: Vec<&NewReport> = Vec::new();
        let mut seen = HashSet::new();
        for (report, answer) in reports.iter().zip(answers) {
            if answer.is_ok() && seen.insert(report.key()) {
                wanted.push(report);
            }
        }
        let mut streams = HashMap::with_capacity(wanted.len());
        let mut locked = wanted.clone();
        locked.sort_by_key(|report| (&report.serial, &report.stream));
        for chunk in locked.chunks(CHUNK) {
            let mut query =
                sql("SELECT id, serial, name, floor_seq, max_seq, last_ms, lost_seq FROM streams \
                 WHERE (serial, name) IN (VALUES ");
            query.rows(chunk, |fields, report| {
                fields.put(report.serial.as_str()).put(clean(&report.stream, WORD));
            });
            query.push(") ORDER BY serial, name").push(self.for_update());
            for row in query.all(db).await? {
                let max_seq = col(&row, 4)?;
                let stream = Stream {
                    id: col(&row, 0)?,
                    floor: col(&row, 3)?,
                    max_seq,
                    max_before: max_seq,
                    added: 0,
                    last_ms: col(&row, 5)?,
                    lost_seq: col(&row, 6)?,
                };
                streams.insert((word(&row, 1)?, col(&row, 2)?), stream);
            }
        }
        for report in wanted {
            let key = report.key();
            if streams.contains_key(&key) {
                continue;
            }
            // Another writer may make it at this moment; the update takes its lock.
            let row = sql("INSERT INTO streams (serial, name, instance, max_seq, items, first_ms, last_ms) \
                 VALUES ($1, $2, $3, 0, 0, $4, $5) \
                 ON CONFLICT (serial, name) DO UPDATE SET last_ms = streams.last_ms \
                 RETURNING id, floor_seq, max_seq, last_ms, lost_seq")
            .bind(report.serial.as_str())
            .bind(clean(&report.stream, WORD))
            .bind(clean(&report.instance, WORD))
            .bind(report.at_ms)
            .bind(report.at_ms)
            .one(db)
            .await?;
            let max_seq = col(&row, 2)?;
            let stream = Stream {
                id: col(&row, 0)?,
                floor: col(&row, 1)?,
                max_seq,
                max_before: max_seq,
                added: 0,
                last_ms: col(&row, 3)?,
                lost_seq: col(&row, 4)?,
            };
            streams.insert(key, stream);
        }
        Ok(streams)
    }
}

/// Which items are stored already. An honest agent's next report lies above its stream's greatest number: no look needed.
async fn known_items(
    db: &mut AnyConnection,
    reports: &[NewReport],
    streams: &HashMap<StreamKey, Stream>,
) -> Result<HashSet<(i64, i64)>, StoreError> {
    let mut spans: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for report in reports {
        let Some(stream) = streams.get(&report.key()) else { continue };
        for item in &report.items {
            let seq = item.seq.cast_signed();
            if seq <= stream.max_before && seq > stream.floor {
                let span = spans.entry(stream.id).or_insert((seq, seq));
                *span = (span.0.min(seq), span.1.max(seq));
            }
        }
    }
    let mut known = HashSet::new();
    for (stream, (from, to)) in spans {
        let rows = sql("SELECT seq FROM evidence WHERE stream = $1 AND seq >= $2 AND seq <= $3")
            .bind(stream)
            .bind(from)
            .bind(to)
            .all(db)
            .await?;
        for row in &rows {
            known.insert((stream, col(row, 0)?));
        }
    }
    Ok(known)
}

async fn insert_items(
    db: &mut AnyConnection,
    reports: &[NewReport],
    fresh: &[(i64, usize, &Item)],
) -> Result<(), StoreError> {
    let mut rows = Vec::with_capacity(fresh.len());
    for (stream, report, item) in fresh {
        rows.push((*stream, reports[*report].at_ms, *item, columns(&item.body)?));
    }
    // The table is sorted by this key; so is the index.
    rows.sort_by_key(|(stream, _, item, _)| (*stream, item.seq));
    for chunk in rows.chunks(CHUNK) {
        let mut insert = sql("INSERT INTO evidence \
             (stream, seq, at_ms, received_ms, kind, code, device, value, unit, body) VALUES ");
        insert.rows(chunk, |fields, (stream, received_ms, item, columns)| {
            fields.put(*stream).put(item.seq.cast_signed()).put(item.at_ms).put(*received_ms);
            fields.put(EvidenceKind::of(&item.body).number());
            fields.put(columns.code.as_str()).put(columns.device);
            fields.put(columns.value).put(columns.unit).put(columns.body.clone());
        });
        insert.run(db).await?;
    }
    Ok(())
}

struct Columns<'a> {
    code: String,
    device: &'a str,
    value: Option<f64>,
    unit: Option<&'static str>,
    body: Option<String>,
}

fn columns(body: &ItemBody) -> Result<Columns<'_>, StoreError> {
    let whole = || Ok::<_, StoreError>(Some(json(body)?).filter(|text| text.len() <= MAX_BODY));
    Ok(match body {
        ItemBody::Appeared { finding } | ItemBody::Cleared { finding } | ItemBody::Kernel { finding, .. } => {
            Columns {
                code: clean(&finding.code, WORD),
                device: finding.device.as_ref().map_or("", |device| device.as_str()),
                value: None,
                unit: None,
                body: whole()?,
            }
        }
        ItemBody::Reading { device, reading } => Columns {
            code: clean(&reading.metric, WORD),
            device: device.as_ref().map_or("", |device| device.as_str()),
            value: Some(reading.value).filter(|value| value.is_finite()),
            unit: Some(reading.unit.as_str()),
            body: None,
        },
        ItemBody::Note { .. } => {
            Columns { code: String::new(), device: "", value: None, unit: None, body: whole()? }
        }
    })
}

async fn update_streams<'a>(
    db: &mut AnyConnection,
    streams: impl Iterator<Item = &'a Stream>,
) -> Result<(), StoreError> {
    let mut streams: Vec<&Stream> = streams.collect();
    streams.sort_by_key(|stream| stream.id);
    for chunk in streams.chunks(CHUNK) {
        let mut update = sql("WITH v (id, max_seq, added, last_ms, lost_seq) AS (VALUES ");
        update.rows(chunk, |fields, stream| {
            fields.put(stream.id).put(stream.max_seq).put(stream.added).put(stream.last_ms);
            fields.put(stream.lost_seq);
        });
        update.push(
            ") UPDATE streams SET max_seq = v.max_seq, items = streams.items + v.added, last_ms = v.last_ms, \
             lost_seq = v.lost_seq FROM v WHERE streams.id = v.id",
        );
        update.run(db).await?;
    }
    Ok(())
}

/// Closes a blade's streams, for a person has settled whose serial it is: a copy of its disk may have used up numbers that the
/// right machine's spool gives next. What that sends under the old name is a new stream from now on; and since it was told that
/// more is stored, it is asked for what stands.
pub(crate) async fn close_streams(db: &mut AnyConnection, serial: &Serial) -> Result<(), StoreError> {
    // No name that an agent can give.
    sql("UPDATE streams SET name = 'closed-' || CAST(id AS TEXT) WHERE serial = $1")
        .bind(serial.as_str())
        .run(db)
        .await?;
    Ok(())
}
