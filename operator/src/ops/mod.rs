//! What people ask the operator through `whet`: history, tokens, identities, the audit, reports. Certificates of the role `ops` only.

mod acceptance;
mod answers;
mod data;
mod distribution;
mod page;
mod plot;

use std::collections::HashSet;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use whetstone_model::ids::{RunId, Serial, TrancheName};

pub use acceptance::{AcceptanceBundle, Refused, TrancheTerms, acceptance};
pub use data::AcceptanceReport;

use crate::clock::now_ms;
use crate::intake::{Incoming, Intake, OPS, Refusal, Shared, answer, body, fresh_peer, parse};
use crate::pki::{PkiError, Role, random, sha256_hex};

/// What only the rest of the operator knows.
pub trait SiteInfo: Send + Sync + 'static {
    /// A tranche as its object says; `None` if there is none (any more).
    fn tranche(&self, name: &TrancheName) -> Option<TrancheTerms>;
    /// Where a blade is and what it waits for, in one line.
    fn explain(&self, serial: &Serial) -> Option<String>;
    /// What the circuit breaker decided last.
    fn breaker(&self) -> whetstone_plan::Breaker;
}

/// What the ops API needs.
#[derive(Clone)]
pub struct Ops {
    pub intake: Intake,
    /// Signs acceptance reports.
    pub report_key: SigningKey,
    pub site: Arc<dyn SiteInfo>,
    /// Set when a person says that a mass quarantine is right.
    pub breaker: watch::Sender<bool>,
}

#[derive(Clone)]
struct Context {
    ops: Ops,
    /// Acceptance reports that are made at once: each may need some hundred MiB.
    reports: Arc<Semaphore>,
}

/// Bodies of this API are short lists.
const MAX_BODY: usize = 256 << 10;
/// Serials in one call.
const MAX_SERIALS: usize = 1_000;
const MAX_TTL_S: i64 = 90 * 86_400;
/// Rows in one answer.
const MAX_ROWS: u32 = 10_000;
/// Of evidence: each may have 64 KiB.
const MAX_EVIDENCE: u32 = 1_000;

/// The routes; to be merged with those of the agents.
pub fn router(ops: Ops) -> Router {
    let context = Context { ops, reports: Arc::new(Semaphore::new(1)) };
    Router::new()
        .route("/v1/ops/blades/{name}/history", get(history))
        .route("/v1/ops/blades/{name}/evidence", get(evidence))
        .route("/v1/ops/blades/{name}/reset-identity", post(reset_identity))
        .route("/v1/ops/tokens", post(tokens))
        .route("/v1/ops/unexpected", get(unexpected))
        .route("/v1/ops/audit", get(audit))
        .route("/v1/ops/cases", get(cases))
        .route("/v1/ops/tranches/{name}/report", get(tranche_report))
        .route("/v1/ops/runs/{run}/report", get(run_report))
        .route("/v1/ops/breaker", get(breaker_state).post(breaker))
        .with_state(context)
}

/// A person's request: who it is, and the intake's shared parts.
struct Call {
    user: String,
    shared: Arc<Shared>,
    incoming: Incoming,
}

impl Call {
    async fn json<T: serde::de::DeserializeOwned>(self) -> Result<T, Refusal> {
        let bytes =
            body(&self.incoming.headers, self.incoming.body, MAX_BODY, self.shared.body_time()).await?;
        parse(&bytes)
    }
}

async fn call<F>(context: &Context, request: Request, handle: impl FnOnce(Call) -> F) -> Response
where
    F: Future<Output = Result<Response, Refusal>>,
{
    answer(context.ops.intake.shared(), OPS, request, |shared, incoming| async move {
        let user = fresh_peer(&incoming.client, Role::Ops, incoming.received_ms)?.name.clone();
        handle(Call { user, shared, incoming }).await
    })
    .await
}

fn json<T: Serialize>(value: &T) -> Response {
    axum::Json(value).into_response()
}

fn store(error: whetstone_store::StoreError) -> Refusal {
    Refusal::store(&error)
}

async fn resolve(shared: &Shared, name: &str) -> Result<Serial, Refusal> {
    let known = shared.store().resolve(name).await.map_err(store)?;
    known.ok_or_else(|| Refusal::not_found(format!("no blade has the name or serial {:?}", clip(name))))
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

async fn history(State(context): State<Context>, Path(name): Path<String>, request: Request) -> Response {
    let site = context.ops.site.clone();
    call(&context, request, |call| async move {
        let found = call.shared.store().history(&name).await.map_err(store)?;
        let found = found.ok_or_else(|| {
            Refusal::not_found(format!("no blade has the name or serial {:?}", clip(&name)))
        })?;
        let explain = site.explain(&found.serial);
        Ok(json(&answers::History::of(found, explain)))
    })
    .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokensWanted {
    serials: Vec<Serial>,
    ttl_s: i64,
}

#[derive(Serialize)]
struct Token {
    serial: Serial,
    token: String,
    expires_ms: i64,
}

async fn tokens(State(context): State<Context>, request: Request) -> Response {
    call(&context, request, |call| async move {
        let (shared, user) = (call.shared.clone(), call.user.clone());
        let wanted: TokensWanted = call.json().await?;
        if wanted.serials.is_empty() || wanted.serials.len() > MAX_SERIALS {
            return Err(Refusal::bad(format!(
                "{} serials: 1 to {MAX_SERIALS} in one call",
                wanted.serials.len()
            )));
        }
        if !(1..=MAX_TTL_S).contains(&wanted.ttl_s) {
            return Err(Refusal::bad(format!("ttl_s {}: 1 to {MAX_TTL_S}", wanted.ttl_s)));
        }
        // All of them or none: tokens of a call that is refused would be told to nobody.
        let unknown = unknown(&shared, &wanted.serials).await?;
        if !unknown.is_empty() {
            return Err(Refusal::unknown_blades(unknown));
        }
        let at_ms = now_ms();
        let expires_ms = at_ms + wanted.ttl_s * 1000;
        let mut made = Vec::with_capacity(wanted.serials.len());
        let mut rows = Vec::with_capacity(wanted.serials.len());
        for serial in wanted.serials {
            let token = new_token().map_err(|e| Refusal::internal(e.to_string()))?;
            let sha256 = sha256_hex(token.as_bytes());
            rows.push(whetstone_store::NewToken { serial: serial.clone(), sha256 });
            made.push(Token { serial, token, expires_ms });
        }
        let unknown = shared.store().new_tokens(&rows, expires_ms, &user, at_ms).await.map_err(store)?;
        // Blades are never deleted; a store that was restored this moment may have lost some.
        if !unknown.is_empty() {
            return Err(Refusal::unknown_blades(unknown));
        }
        shared.audit().write(
            "token-issued",
            &user,
            &format!("{} tokens, first for {}", made.len(), made[0].serial),
        );
        Ok(json(&made))
    })
    .await
}

/// Those of the serials that are no blades of this site.
async fn unknown(shared: &Shared, serials: &[Serial]) -> Result<Vec<Serial>, Refusal> {
    let found = shared.store().load_blades(serials).await.map_err(store)?;
    let readable = found.blades.iter().map(|blade| blade.serial.as_str());
    let known: HashSet<&str> =
        readable.chain(found.unreadable.iter().map(|(serial, _)| serial.as_str())).collect();
    Ok(serials.iter().filter(|serial| !known.contains(serial.as_str())).cloned().collect())
}

/// `wt-` and 32 random bytes in base32.
fn new_token() -> Result<String, PkiError> {
    let mut bytes = [0u8; 32];
    random(&mut bytes)?;
    Ok(format!("wt-{}", data_encoding::BASE32_NOPAD.encode(&bytes).to_lowercase()))
}

async fn reset_identity(
    State(context): State<Context>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    call(&context, request, |call| async move {
        let serial = resolve(&call.shared, &name).await?;
        let reset = call.shared.store().reset_identity(&serial, now_ms()).await.map_err(store)?;
        call.shared.identity_was_reset(&serial);
        let what = if reset { "identity reset" } else { "identity reset; there was none" };
        call.shared.audit().write("identity-reset", &call.user, &format!("{serial}: {what}"));
        Ok(StatusCode::NO_CONTENT.into_response())
    })
    .await
}

async fn unexpected(State(context): State<Context>, request: Request) -> Response {
    call(&context, request, |call| async move {
        let rows = call.shared.store().list_unexpected(MAX_ROWS).await.map_err(store)?;
        Ok(json(&rows.into_iter().map(answers::Unexpected::of).collect::<Vec<_>>()))
    })
    .await
}

#[derive(Deserialize)]
struct Limit {
    limit: Option<u32>,
}

type Asked<T> = Result<Query<T>, QueryRejection>;

fn asked<T>(query: Asked<T>) -> Result<T, Refusal> {
    query.map(|Query(query)| query).map_err(|e| Refusal::bad(e.body_text()))
}

async fn audit(State(context): State<Context>, query: Asked<Limit>, request: Request) -> Response {
    call(&context, request, |call| async move {
        let limit = asked(query)?.limit.unwrap_or(100).clamp(1, MAX_ROWS);
        let rows = call.shared.store().list_audit(limit).await.map_err(store)?;
        Ok(json(&rows.into_iter().map(answers::Audit::of).collect::<Vec<_>>()))
    })
    .await
}

#[derive(Deserialize)]
struct WhichEvidence {
    #[serde(default)]
    findings: bool,
    limit: Option<u32>,
}

/// What a blade has said, newest first; with `findings=true` no readings and notes.
async fn evidence(
    State(context): State<Context>,
    Path(name): Path<String>,
    query: Asked<WhichEvidence>,
    request: Request,
) -> Response {
    call(&context, request, |call| async move {
        let which = asked(query)?;
        let limit = which.limit.unwrap_or(100).clamp(1, MAX_EVIDENCE);
        let serial = resolve(&call.shared, &name).await?;
        let rows = call.shared.store().evidence_of(&serial, which.findings, limit).await.map_err(store)?;
        Ok(json(&rows.into_iter().map(answers::Evidence::of).collect::<Vec<_>>()))
    })
    .await
}

#[derive(Deserialize)]
struct WhichCases {
    #[serde(default)]
    all: bool,
}

/// Open cases; with `all=true` the closed ones too, which reads the history of every blade.
async fn cases(State(context): State<Context>, query: Asked<WhichCases>, request: Request) -> Response {
    call(&context, request, |call| async move {
        let which = asked(query)?;
        let site = call.shared.store().load_site().await.map_err(store)?;
        let mut rows = Vec::new();
        for blade in &site.blades {
            if which.all {
                let past = call.shared.store().history(blade.serial.as_str()).await.map_err(store)?;
                let past = past.into_iter().flat_map(|history| history.cases);
                rows.extend(past.map(|case| answers::Case::past(case).of_blade(blade)));
            } else {
                rows.extend(blade.cases.iter().map(|case| answers::Case::open(case).of_blade(blade)));
            }
        }
        rows.sort_by_key(|case| std::cmp::Reverse(case.case));
        rows.truncate(MAX_ROWS as usize);
        Ok(json(&rows))
    })
    .await
}

async fn tranche_report(
    State(context): State<Context>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    let (ops, reports) = (context.ops.clone(), context.reports.clone());
    call(&context, request, |call| async move {
        let name = TrancheName::new(name).map_err(|e| Refusal::not_found(e.to_string()))?;
        let _turn = reports.acquire_owned().await.map_err(|e| Refusal::internal(e.to_string()))?;
        let terms = ops.site.tranche(&name).unwrap_or_default();
        let report = acceptance(call.shared.store(), &name, &terms, now_ms()).await.map_err(store)?;
        let report =
            report.ok_or_else(|| Refusal::not_found(format!("no blade is, or was, of tranche {name}")))?;
        let bundle =
            tokio::task::spawn_blocking(move || AcceptanceBundle::sign(&report, &ops.report_key)).await;
        let bundle = bundle
            .map_err(|e| Refusal::internal(e.to_string()))?
            .map_err(|e| Refusal::internal(e.to_string()))?;
        call.shared.audit().write("report", &call.user, &format!("acceptance report of tranche {name}"));
        Ok(json(&bundle))
    })
    .await
}

async fn run_report(State(context): State<Context>, Path(run): Path<String>, request: Request) -> Response {
    call(&context, request, |call| async move {
        let run = run.parse().map(RunId).map_err(|_| Refusal::not_found("a run is a number"))?;
        let found = call.shared.store().report_of(run).await.map_err(store)?;
        let found = found.ok_or_else(|| Refusal::no_such_run(format!("run {run} has no result")))?;
        Ok(json(&answers::RunFiles::of(found)))
    })
    .await
}

async fn breaker_state(State(context): State<Context>, request: Request) -> Response {
    let ops = context.ops.clone();
    call(&context, request, |_call| async move {
        Ok(json(&answers::Breaker::of(&ops.site.breaker(), *ops.breaker.borrow())))
    })
    .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Breaker {
    #[serde(rename = "override")]
    overridden: bool,
}

async fn breaker(State(context): State<Context>, request: Request) -> Response {
    let breaker = context.ops.breaker.clone();
    call(&context, request, |call| async move {
        let (shared, user) = (call.shared.clone(), call.user.clone());
        let wanted: Breaker = call.json().await?;
        breaker.send_replace(wanted.overridden);
        shared.audit().write("breaker", &user, &format!("override {}", wanted.overridden));
        Ok(StatusCode::NO_CONTENT.into_response())
    })
    .await
}
