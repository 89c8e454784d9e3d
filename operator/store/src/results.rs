//! Results of runs: the verdict exactly once, and the signed files behind it.

use whetstone_model::action::Action;
use whetstone_model::ids::{RunId, Serial};
use whetstone_model::verdict::Outcome;
use whetstone_model::wire::MAX_RESULT;

use crate::aside::aside;
use crate::db::Store;
use crate::error::StoreError;
use crate::sql::{CHUNK, LINE, WORD, clean, col, json, sql, word};

/// A checked result. The files are stored byte for byte (compressed).
#[derive(Debug, Clone, PartialEq)]
pub struct RunResultRow {
    pub run: RunId,
    pub serial: Serial,
    pub report_json: Vec<u8>,
    pub samples_jsonl: Vec<u8>,
    pub manifest_json: String,
    pub signature: String,
    pub outcome: Outcome,
    pub code: String,
    pub why: String,
    pub action: Action,
    /// Ids of the evidence in the report.
    pub evidence: Vec<u64>,
    /// The key that signed it, 64 hex digits.
    pub signer: String,
    /// SHA-256 over the upload, hex: tells a repeated upload from a different one.
    pub sha256: String,
}

/// What became of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultStored {
    New,
    /// This very result is stored already.
    Same,
    /// Another result is stored; it stands.
    Different,
    /// The blade has no such run.
    NoSuchRun,
    /// The run was given up or taken back before; its result counts no more.
    Over,
    /// It is the result of an earlier run of this blade, byte for byte.
    OfOtherRun(RunId),
}

/// The files of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredReport {
    pub run: RunId,
    pub serial: Serial,
    pub report_json: Vec<u8>,
    pub samples_jsonl: Vec<u8>,
    pub manifest_json: String,
    pub signature: String,
    pub signer: String,
    pub sha256: String,
}

fn pack(bytes: &[u8]) -> Result<Vec<u8>, StoreError> {
    zstd::bulk::compress(bytes, 3).map_err(|error| StoreError::Bug(sqlx::Error::Encode(Box::new(error))))
}

fn unpack(run: RunId, bytes: &[u8]) -> Result<Vec<u8>, StoreError> {
    use std::io::Read;
    let mut out = Vec::new();
    if bytes.is_empty() {
        // Retention was here.
        return Ok(out);
    }
    zstd::stream::read::Decoder::new(bytes)
        .and_then(|decoder| decoder.take(MAX_RESULT as u64).read_to_end(&mut out))
        .map_err(|error| StoreError::Corrupt(format!("result of run {run}: {error}")))?;
    Ok(out)
}

fn broken(error: tokio::task::JoinError) -> StoreError {
    StoreError::Bug(sqlx::Error::Encode(Box::new(error)))
}

impl Store {
    /// Stores a result, and with it the run's only verdict. The caller has checked the signature.
    pub async fn store_result(&self, result: RunResultRow, at_ms: i64) -> Result<ResultStored, StoreError> {
        self.within(async {
            let (report, samples) = (result.report_json, result.samples_jsonl);
            let (report, samples) = aside(move || Ok((pack(&report)?, pack(&samples)?)), broken).await?;
            let mut db = self.write().await?;
            let mut query = sql("SELECT state FROM runs WHERE run = $1 AND serial = $2");
            query.push(self.for_update());
            let state = query.bind(result.run.0).bind(result.serial.as_str()).maybe(&mut db).await?;
            let Some(state) = state else { return Ok(ResultStored::NoSuchRun) };
            match col::<&str>(&state, 0)? {
                "ordered" | "running" => {}
                "finished" => {
                    let row = sql("SELECT sha256 FROM verdicts WHERE run = $1")
                        .bind(result.run.0)
                        .one(&mut db)
                        .await?;
                    let same = col::<&str>(&row, 0)? == result.sha256;
                    return Ok(if same { ResultStored::Same } else { ResultStored::Different });
                }
                _ => return Ok(ResultStored::Over),
            }
            let of_other = sql("SELECT run FROM verdicts WHERE serial = $1 AND sha256 = $2 LIMIT 1")
                .bind(result.serial.as_str())
                .bind(clean(&result.sha256, WORD))
                .maybe(&mut db)
                .await?;
            if let Some(row) = of_other {
                return Ok(ResultStored::OfOtherRun(RunId(col(&row, 0)?)));
            }
            sql("INSERT INTO verdicts (run, serial, outcome, code, why, action, evidence, signer, sha256, at_ms) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)")
            .bind(result.run.0)
            .bind(result.serial.as_str())
            .bind(result.outcome.as_str())
            .bind(clean(&result.code, WORD))
            .bind(clean(&result.why, LINE))
            .bind(result.action.as_str())
            .bind(json(&result.evidence)?)
            .bind(clean(&result.signer, WORD))
            .bind(clean(&result.sha256, WORD))
            .bind(at_ms)
            .run(&mut db)
            .await?;
            sql("INSERT INTO results (run, report, samples, manifest, signature) VALUES ($1, $2, $3, $4, $5)")
                .bind(result.run.0)
                .bind(report)
                .bind(samples)
                .bind(clean(&result.manifest_json, usize::MAX))
                .bind(clean(&result.signature, usize::MAX))
                .run(&mut db)
                .await?;
            sql("UPDATE runs SET state = 'finished', ended_ms = $1, heard_ms = $2, \
                 started_ms = COALESCE(started_ms, $3) WHERE run = $4")
            .bind(at_ms)
            .bind(at_ms)
            .bind(at_ms)
            .bind(result.run.0)
            .run(&mut db)
            .await?;
            let inconclusive = match result.outcome {
                Outcome::Pass | Outcome::Fail => "UPDATE blades SET inconclusive = 0 WHERE serial = $1",
                Outcome::Inconclusive => {
                    "UPDATE blades SET inconclusive = inconclusive + 1 WHERE serial = $1"
                }
            };
            sql(inconclusive).bind(result.serial.as_str()).run(&mut db).await?;
            db.commit().await?;
            Ok(ResultStored::New)
        })
        .await
    }

    /// The files of a run's result; `None` if there is none.
    pub async fn report_of(&self, run: RunId) -> Result<Option<StoredReport>, StoreError> {
        self.within(async {
            let mut db = self.read().await?;
            let row =
                sql("SELECT v.serial, v.signer, v.sha256, r.report, r.samples, r.manifest, r.signature \
                 FROM results r JOIN verdicts v ON v.run = r.run WHERE r.run = $1")
                .bind(run.0)
                .maybe(&mut db)
                .await?;
            let Some(row) = row else { return Ok(None) };
            let (report, samples): (Vec<u8>, Vec<u8>) = (col(&row, 3)?, col(&row, 4)?);
            let (report_json, samples_jsonl) =
                aside(move || Ok((unpack(run, &report)?, unpack(run, &samples)?)), broken).await?;
            Ok(Some(StoredReport {
                run,
                serial: word(&row, 0)?,
                report_json,
                samples_jsonl,
                manifest_json: col(&row, 5)?,
                signature: col(&row, 6)?,
                signer: col(&row, 1)?,
                sha256: col(&row, 2)?,
            }))
        })
        .await
    }

    /// `samples.jsonl` of finished runs, for the fleet judge, by run. A run without a result, or whose samples retention
    /// has removed, is left out; so is one whose samples cannot be read: all others can be compared without it.
    pub async fn samples_of(&self, runs: &[RunId]) -> Result<Vec<(RunId, Vec<u8>)>, StoreError> {
        self.within(async {
            let mut packed = Vec::with_capacity(runs.len());
            let mut db = self.read().await?;
            for chunk in runs.chunks(CHUNK) {
                let mut query = sql("SELECT run, samples FROM results WHERE run IN ");
                query.list(chunk.iter().map(|run| run.0));
                for row in query.all(&mut db).await? {
                    packed.push((RunId(col(&row, 0)?), col::<Vec<u8>>(&row, 1)?));
                }
            }
            drop(db);
            packed.retain(|(_, samples)| !samples.is_empty());
            packed.sort_by_key(|(run, _)| *run);
            packed.dedup_by_key(|(run, _)| *run);
            let read = |(run, samples): (RunId, Vec<u8>)| match unpack(run, &samples) {
                Ok(samples) => Some((run, samples)),
                Err(error) => {
                    tracing::error!(%error, "the samples of a run are left out of the comparison");
                    None
                }
            };
            aside(move || Ok(packed.into_iter().filter_map(read).collect()), broken).await
        })
        .await
    }
}
