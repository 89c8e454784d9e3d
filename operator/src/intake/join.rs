//! `POST /v1/join` and `POST /v1/renew`: how an agent comes to a certificate.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use ed25519_dalek::VerifyingKey;
use whetstone_model::ids::{BladeName, Serial};
use whetstone_model::wire::{JoinAnswer, JoinRequest, MAX_BODY, RenewRequest};
use whetstone_store::{Join, TokenUse};

use super::limits::Cost;
use super::refusal::{Reason, Refusal};
use super::report::check_facts;
use super::request::{Incoming, agent, answer, body, check_hex, hold, parse, same_instance, short};
use super::{Shared, What};
use crate::pki::{Issued, PkiError, Role, sha256_hex};

/// `wt-` and 52 base32 digits; anything much longer is none.
const MAX_TOKEN: usize = 128;

pub(super) async fn join(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let metrics = shared.metrics.clone();
    let response = answer(&shared, "join", request, handle_join).await;
    metrics.joined(match response.status().as_u16() {
        200 => "joined",
        403 => "refused",
        409 => "conflict",
        503 => "unavailable",
        _ => "bad",
    });
    response
}

async fn handle_join(shared: Arc<Shared>, incoming: Incoming) -> Result<Response, Refusal> {
    let _turn = shared
        .addresses
        .begin(incoming.client.address.ip())
        .ok_or_else(|| Refusal::unavailable(Reason::Busy, "too many joins from one address at once"))?;
    let at_ms = incoming.received_ms;
    let bytes = body(&incoming.headers, incoming.body, MAX_BODY, shared.config.body).await?;
    let request: JoinRequest = parse(&bytes)?;
    check_hex("instance", &request.instance, 32)?;
    check_hex("report_key", &request.report_key, 64)?;
    check_facts(&request.facts)?;
    let is_key = hex::decode(&request.report_key)
        .ok()
        .and_then(|bytes| VerifyingKey::from_bytes(&bytes.try_into().ok()?).ok())
        .is_some();
    if !is_key {
        return Err(Refusal::bad("report_key is no ed25519 public key"));
    }
    // Made before the token is used up: a request that is no good must not cost a token.
    let issued = issue(&shared, &request.serial, &request.csr_pem, at_ms)?;
    let serial = request.serial.clone();
    let known = shared.store.identity(&serial).await.map_err(|e| Refusal::store(&e))?;
    if let Some((conflict, _)) = known.and_then(|identity| identity.conflict) {
        return Err(Refusal::conflict(format!("held until a person looks: {conflict}")));
    }
    let attempt = Join {
        serial: serial.clone(),
        token_sha256: sha256_hex(request.token.as_bytes()),
        instance: request.instance,
        key_fingerprint: issued.key_fingerprint.clone(),
        report_key: request.report_key,
        facts: request.facts,
    };
    let used = if attempt.token_sha256.is_empty() || request.token.len() > MAX_TOKEN {
        TokenUse::Unknown
    } else {
        shared.store.use_token(&attempt, at_ms).await.map_err(|e| Refusal::store(&e))?
    };
    let blade = match used {
        TokenUse::Accepted { blade } | TokenUse::Repeated { blade } => blade,
        TokenUse::UsedByOther { instance } => {
            let from = incoming.client.address.ip();
            let what = match (short(&attempt.instance), short(&instance)) {
                (own, other) if own == other => {
                    format!("instance {own} joins again with its token, but with other keys, from {from}")
                }
                (own, other) => {
                    format!("instance {own} joins with the token of instance {other}, from {from}")
                }
            };
            return Err(match hold(&shared, &serial, &what, at_ms).await {
                Err(refusal) => refusal,
                Ok(()) => Refusal::conflict(what),
            });
        }
        TokenUse::Unknown | TokenUse::Expired | TokenUse::Replaced | TokenUse::WrongSerial { .. } => {
            note_stranger(&shared, &serial, &incoming.client.address.ip().to_string(), at_ms).await?;
            return Err(Refusal::token());
        }
    };
    // Only now: who has no token that is good spends nothing of the blade's.
    shared.charge(&serial, Cost::ROW)?;
    record(&shared, &serial, &attempt.instance, &issued, at_ms).await?;
    shared.known.identity_changed(&serial);
    shared.known.order_changed(&serial);
    shared.audit.write("joined", serial.as_str(), &format!("instance {}", short(&attempt.instance)));
    shared.tell(&serial, What::Joined, at_ms);
    tracing::info!(%blade, %serial, "joined");
    Ok(answer_with(blade, issued))
}

/// A machine that nobody expects goes on a list of its own: a misread label, or a blade of another tranche.
async fn note_stranger(shared: &Shared, serial: &Serial, from: &str, at_ms: i64) -> Result<(), Refusal> {
    let known =
        shared.store.load_blades(std::slice::from_ref(serial)).await.map_err(|e| Refusal::store(&e))?;
    if known.blades.is_empty() && known.unreadable.is_empty() && shared.strangers.lets(serial.clone()) {
        let what = format!("tried to join from {from}");
        shared.store.unexpected(serial.as_str(), &what, at_ms).await.map_err(|e| Refusal::store(&e))?;
    }
    Ok(())
}

pub(super) async fn renew(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let metrics = shared.metrics.clone();
    let response = answer(&shared, "renew", request, handle_renew).await;
    metrics.joined(match response.status().as_u16() {
        200 => "renewed",
        503 => "unavailable",
        _ => "renewal-refused",
    });
    response
}

async fn handle_renew(shared: Arc<Shared>, incoming: Incoming) -> Result<Response, Refusal> {
    let agent = agent(&shared, &incoming.client, incoming.received_ms, true).await?;
    let at_ms = incoming.received_ms;
    let ended_ms = incoming.client.peer.as_ref().map_or(i64::MIN, |peer| peer.not_after_ms);
    if at_ms.saturating_sub(ended_ms) > shared.config.renew_grace_ms {
        return Err(Refusal::expired());
    }
    let bytes = body(&incoming.headers, incoming.body, MAX_BODY, shared.config.body).await?;
    let request: RenewRequest = parse(&bytes)?;
    check_hex("instance", &request.instance, 32)?;
    same_instance(&shared, &agent, &request.instance, at_ms).await?;
    shared.charge(&agent.serial, Cost::ROW)?;
    let issued = issue(&shared, &agent.serial, &request.csr_pem, at_ms)?;
    record(&shared, &agent.serial, &request.instance, &issued, at_ms).await?;
    shared.known.identity_changed(&agent.serial);
    Ok(answer_with(agent.identity.blade.clone(), issued))
}

fn issue(shared: &Shared, serial: &Serial, csr_pem: &str, at_ms: i64) -> Result<Issued, Refusal> {
    let lifetime_ms = shared.config.certificate_ms;
    shared.ca.issue(Role::Agent, serial.as_str(), csr_pem, at_ms, lifetime_ms).map_err(|e| match e {
        PkiError::BadRequest(_) => Refusal::bad(e.to_string()),
        other => {
            tracing::error!(error = %other, "a certificate could not be made");
            Refusal::internal("a certificate could not be made")
        }
    })
}

/// On record before it is handed out: what is not on record cannot be revoked.
async fn record(
    shared: &Shared,
    serial: &Serial,
    instance: &str,
    issued: &Issued,
    at_ms: i64,
) -> Result<(), Refusal> {
    shared
        .store
        .record_certificate(serial, &issued.serial_number, instance, issued.not_after_ms, at_ms)
        .await
        .map_err(|e| Refusal::store(&e))
}

fn answer_with(blade: BladeName, issued: Issued) -> Response {
    Json(JoinAnswer {
        blade,
        certificate_pem: issued.certificate_pem,
        ca_pem: issued.ca_pem,
        not_before_ms: issued.not_before_ms,
        not_after_ms: issued.not_after_ms,
    })
    .into_response()
}
