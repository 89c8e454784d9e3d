//! `PUT /v1/runs/{run}/result`: the signed outcome of a run, checked before a verdict is made of it.

use std::io::Read as _;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::sync::{Semaphore, SemaphorePermit};
use whetstone_bundle::manifest::{self, FileEntry};
use whetstone_model::ids::RunId;
use whetstone_model::report::{Report, SCHEMA};
use whetstone_model::verdict::Outcome;
use whetstone_model::wire::{MAX_RESULT, MAX_RESULT_SENT, RunResult};
use whetstone_store::{ResultStored, RunResultRow, RunTerms, aside};

use super::refusal::{Reason, Refusal};
use super::request::{Agent, Incoming, agent, answer, check_hex, paced_body, parse, same_instance};
use super::{Config, Shared, What};
use crate::pki::sha256_hex;

/// Window of zstd's decoder, as a power of two: 8 MiB, what level 19 uses. A frame that asks for more is refused.
const MAX_WINDOW_LOG: u32 = 23;

pub(super) async fn result(
    State(shared): State<Arc<Shared>>,
    Path(run): Path<String>,
    request: Request,
) -> Response {
    answer(&shared, "result", request, |shared, incoming| handle(shared, run, incoming)).await
}

async fn handle(shared: Arc<Shared>, run: String, incoming: Incoming) -> Result<Response, Refusal> {
    let agent = agent(&shared, &incoming.client, incoming.received_ms, false).await?;
    let run = run.parse().map(RunId).map_err(|_| Refusal::no_such_run("a run is a number"))?;
    // Asked before the body is read: most of what is refused is refused for little.
    let terms = shared.store.run_terms(run).await.map_err(|e| Refusal::store(&e))?;
    let terms = terms
        .filter(|terms| terms.serial == agent.serial)
        .ok_or_else(|| Refusal::no_such_run(format!("blade {} has no run {run}", agent.serial)))?;
    // The last one's upload may be repeated: its answer may have been lost.
    if !terms.active && !terms.last {
        return Err(Refusal::no_such_run(format!("run {run} is over, and there is a later one")));
    }
    let busy = |what: &str| Refusal::unavailable(Reason::Busy, what);
    let _turn = shared
        .senders
        .begin(agent.serial.clone())
        .ok_or_else(|| busy("another result of this blade is on its way"))?;
    // Queued here they cost a connection each; read they would cost their size.
    let _upload = place(&shared, &shared.uploads).await.ok_or_else(|| busy("too many results at once"))?;
    let Config { result_body, result_pace, .. } = shared.config;
    let (headers, sent) = (&incoming.headers, incoming.body);
    let bytes = paced_body(headers, sent, MAX_RESULT_SENT, result_body, Some(result_pace)).await?;
    // Only what is here is worth a place that costs much: who sends slowly holds none.
    let _place = place(&shared, &shared.results).await.ok_or_else(|| busy("too many results at once"))?;
    let result = aside(move || parse::<RunResult>(&unpack(&bytes)?), broken).await?;
    if result.run != run {
        return Err(Refusal::bad(format!("the result is of run {}, sent as that of run {run}", result.run)));
    }
    if result.serial != agent.serial {
        return Err(Refusal::wrong_blade(format!(
            "the result is of blade {}, the certificate of {}",
            result.serial, agent.serial
        )));
    }
    check_hex("instance", &result.instance, 32)?;
    same_instance(&shared, &agent, &result.instance, incoming.received_ms).await?;
    let row = check(&agent, terms, result).await?;
    let (outcome, code) = (row.outcome, row.code.clone());
    let stored =
        shared.store.store_result(row, incoming.received_ms).await.map_err(|e| Refusal::store(&e))?;
    match stored {
        ResultStored::New => {
            shared.known.order_changed(&agent.serial);
            shared.tell(&agent.serial, What::Result(run), incoming.received_ms);
            tracing::info!(blade = %agent.identity.blade, %run, %outcome, code, "result");
        }
        ResultStored::Same => {}
        ResultStored::Different => return Err(Refusal::result_differs()),
        ResultStored::OfOtherRun(other) => {
            return Err(Refusal::signature(format!("this is the result of run {other}, not of run {run}")));
        }
        ResultStored::NoSuchRun => return Err(Refusal::no_such_run(format!("no run {run} of this blade"))),
        ResultStored::Over => {
            return Err(Refusal::no_such_run(format!("run {run} was given up; its result counts no more")));
        }
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn place<'a>(shared: &Shared, places: &'a Semaphore) -> Option<SemaphorePermit<'a>> {
    tokio::time::timeout(shared.config.store, places.acquire()).await.ok()?.ok()
}

/// At most [`MAX_RESULT`] bytes, however small the frame is.
fn unpack(sent: &Bytes) -> Result<Vec<u8>, Refusal> {
    let bad = |e: std::io::Error| Refusal::bad(format!("body is not zstd: {e}"));
    let mut decoder = zstd::stream::read::Decoder::new(sent.as_ref()).map_err(bad)?;
    decoder.window_log_max(MAX_WINDOW_LOG).map_err(bad)?;
    let mut bytes = Vec::new();
    decoder.take(MAX_RESULT as u64 + 1).read_to_end(&mut bytes).map_err(bad)?;
    if bytes.len() > MAX_RESULT { Err(Refusal::too_large(MAX_RESULT)) } else { Ok(bytes) }
}

fn broken(_: tokio::task::JoinError) -> Refusal {
    Refusal::internal("the check did not end")
}

async fn check(agent: &Agent, terms: RunTerms, result: RunResult) -> Result<RunResultRow, Refusal> {
    let report_key = agent.identity.report_key.clone();
    let checked = move || {
        let report = verify(report_key.as_deref(), &terms, &result)?;
        // Over everything that is kept; each part with its length, so that no two results look alike.
        let parts = [&result.report_json, &result.samples_jsonl, &result.manifest_json, &result.signature];
        let all: String =
            parts.iter().map(|part| format!("{} {}\n", part.len(), sha256_hex(part.as_bytes()))).collect();
        Ok(RunResultRow {
            run: result.run,
            serial: result.serial,
            outcome: report.verdict.outcome,
            code: report.verdict.code,
            why: report.verdict.why,
            action: report.verdict.action,
            evidence: report.verdict.evidence,
            signer: report_key.unwrap_or_default(),
            sha256: sha256_hex(all.as_bytes()),
            report_json: result.report_json.into_bytes(),
            samples_jsonl: result.samples_jsonl.into_bytes(),
            manifest_json: result.manifest_json,
            signature: result.signature,
        })
    };
    aside(checked, broken).await
}

/// Signed by the key that the agent joined with, every byte as signed, and the report is of what was ordered.
fn verify(report_key: Option<&str>, terms: &RunTerms, result: &RunResult) -> Result<Report, Refusal> {
    let (manifest, _) = manifest::open(result.manifest_json.as_bytes(), result.signature.as_bytes())
        .map_err(Refusal::signature)?;
    if Some(manifest.key.as_str()) != report_key {
        return Err(Refusal::signature("signed by another key than the one that this blade joined with"));
    }
    for (name, text) in [("report.json", &result.report_json), ("samples.jsonl", &result.samples_jsonl)] {
        if manifest.files.get(name) != Some(&FileEntry::of(text.as_bytes())) {
            return Err(Refusal::signature(format!("{name} is not what was signed")));
        }
    }
    let report: Report = serde_json::from_str(&result.report_json).map_err(|e| {
        Refusal::bad(format!("report.json: {}", e.to_string().chars().take(300).collect::<String>()))
    })?;
    if report.schema != SCHEMA {
        return Err(Refusal::bad(format!("report.json: this operator reads {SCHEMA:?}")));
    }
    if report.run != manifest.run {
        return Err(Refusal::signature("report.json and manifest.json are of two runs"));
    }
    // The seed is random for each run (`new_run`): an old result cannot pass for a new one.
    if report.suite.seed != terms.seed || report.suite.sha256 != sha256_hex(terms.suite_text.as_bytes()) {
        return Err(Refusal::signature(
            "the report is of another suite or seed than the run that was ordered",
        ));
    }
    if !report.complete && report.verdict.outcome == Outcome::Pass {
        return Err(Refusal::bad("a run that was cut off cannot have passed"));
    }
    Ok(report)
}
