//! What every route does: who asks, may it ask now, read the body within its bounds, count and answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use serde::de::DeserializeOwned;
use whetstone_model::ids::Serial;
use whetstone_store::{BootSeen, Identity};

use super::limits::{Cost, Turn};
use super::refusal::{Reason, Refusal};
use super::server::Client;
use super::{Shared, What};
use crate::clock::now_ms;
use crate::pki::{Peer, Role};

/// The routes for people, as a metric's label.
pub(crate) const OPS: &str = "ops";

/// A request on its way through a route.
pub(crate) struct Incoming {
    pub client: Arc<Client>,
    pub headers: HeaderMap,
    pub body: Body,
    pub received_ms: i64,
}

/// Serves a request by `handle`; counts, times and audits whatever comes of it.
pub(crate) async fn answer<F>(
    shared: &Arc<Shared>,
    route: &'static str,
    request: Request,
    handle: impl FnOnce(Arc<Shared>, Incoming) -> F,
) -> Response
where
    F: Future<Output = Result<Response, Refusal>>,
{
    let begun = Instant::now();
    let received_ms = now_ms();
    let (mut parts, body) = request.into_parts();
    let response = match parts.extensions.remove::<Arc<Client>>() {
        None => refuse(shared, route, "?", Refusal::no_certificate("no connection behind the request")),
        Some(client) => {
            let who = match &client.peer {
                Ok(peer) => peer.name.clone(),
                Err(_) => client.address.ip().to_string(),
            };
            let incoming = Incoming { client, headers: parts.headers, body, received_ms };
            let served = if shared.is_leading() {
                handle(shared.clone(), incoming).await
            } else {
                Err(Refusal::unavailable(Reason::NotLeading, "this operator does not lead"))
            };
            served.unwrap_or_else(|refusal| refuse(shared, route, &who, refusal))
        }
    };
    shared.metrics.answered(route, response.status().as_u16(), begun.elapsed());
    response
}

fn refuse(shared: &Shared, route: &'static str, who: &str, refusal: Refusal) -> Response {
    // What people mistype is no refused evidence.
    if route != OPS {
        shared.metrics.refused(refusal.reason);
    }
    if refusal.reason.is_audited() {
        shared.audit.refused(who, refusal.reason, &refusal.message);
    }
    tracing::debug!(who, reason = refusal.reason.as_str(), message = refusal.message, "refused");
    refusal.into_response()
}

pub(super) async fn nothing_here(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    answer(&shared, "none", request, |_, _| async { Err(Refusal::not_found("no such route")) }).await
}

/// The holder of a certificate of this role that is in force now.
pub(crate) fn fresh_peer(client: &Client, role: Role, now_ms: i64) -> Result<&Peer, Refusal> {
    let peer = peer(client, role)?;
    // Connections may outlive certificates.
    if now_ms > peer.not_after_ms { Err(Refusal::expired()) } else { Ok(peer) }
}

/// The same, in force or not.
pub(super) fn peer(client: &Client, role: Role) -> Result<&Peer, Refusal> {
    let peer = client.peer.as_ref().map_err(|why| Refusal::no_certificate(why.clone()))?;
    if peer.role != role {
        let message = format!(
            "a certificate for {:?} is needed, this one is for {:?}",
            role.as_str(),
            peer.role.as_str()
        );
        return Err(Refusal::wrong_role(message));
    }
    Ok(peer)
}

/// An agent whose word counts: its certificate stands, and no second machine claims its serial.
pub(super) struct Agent {
    pub serial: Serial,
    pub identity: Arc<Identity>,
    pub from: IpAddr,
    _turn: Turn<String>,
}

/// Checks who asks. `may_be_expired` is for renewals alone.
pub(super) async fn agent(
    shared: &Arc<Shared>,
    client: &Client,
    received_ms: i64,
    may_be_expired: bool,
) -> Result<Agent, Refusal> {
    let peer = if may_be_expired {
        peer(client, Role::Agent)?
    } else {
        fresh_peer(client, Role::Agent, received_ms)?
    };
    let turn = shared
        .agents
        .begin(peer.name.clone())
        .ok_or_else(|| Refusal::unavailable(Reason::Busy, "too many requests of this blade at once"))?;
    let serial = Serial::new(peer.name.clone()).map_err(|e| Refusal::no_certificate(e.to_string()))?;
    let identity = shared.known.identity(&shared.store, &serial).await.map_err(|e| Refusal::store(&e))?;
    let identity = identity.ok_or_else(Refusal::unknown_blade)?;
    if !identity.joined || identity.is_revoked(&peer.serial_number) {
        return Err(Refusal::revoked());
    }
    if let Some((conflict, _)) = &identity.conflict {
        return Err(Refusal::conflict(format!("held until a person looks: {conflict}")));
    }
    Ok(Agent { serial, identity, from: client.address.ip(), _turn: turn })
}

/// A certificate that stands, shown by another machine than the one that it was made for: both are held.
pub(super) async fn same_instance(
    shared: &Arc<Shared>,
    agent: &Agent,
    instance: &str,
    received_ms: i64,
) -> Result<(), Refusal> {
    if agent.identity.instance.as_deref() == Some(instance) {
        return Ok(());
    }
    let what = format!(
        "instance {} speaks with the certificate of instance {}, from {}",
        short(instance),
        short(agent.identity.instance.as_deref().unwrap_or("?")),
        agent.from,
    );
    hold(shared, &agent.serial, &what, received_ms).await
}

/// Two machines may have the same state directory, its keys and all: what tells them apart is which boot of its kernel each
/// speaks of. A new one is a machine that was started again; one that comes back after that is another machine's.
pub(super) async fn same_boot(
    shared: &Arc<Shared>,
    agent: &Agent,
    boot_id: Option<&str>,
    received_ms: i64,
) -> Result<(), Refusal> {
    let before = agent.identity.boot_id.as_deref();
    let Some(boot_id) = boot_id.filter(|boot_id| before != Some(*boot_id)) else { return Ok(()) };
    shared.charge(&agent.serial, Cost::ROW)?;
    match shared.store.boot_seen(&agent.serial, boot_id).await.map_err(|e| Refusal::store(&e))? {
        BootSeen::Same | BootSeen::New => {
            shared.known.identity_changed(&agent.serial);
            Ok(())
        }
        BootSeen::Returned => {
            let what = format!(
                "boot {} speaks again after boot {}, both as instance {}, from {}: a copied state directory",
                short(boot_id),
                short(before.unwrap_or("?")),
                short(agent.identity.instance.as_deref().unwrap_or("?")),
                agent.from,
            );
            hold(shared, &agent.serial, &what, received_ms).await
        }
    }
}

/// Puts a conflict on record and tells whoever withholds the blade. Always an error: that of the request.
pub(super) async fn hold(
    shared: &Arc<Shared>,
    serial: &Serial,
    what: &str,
    received_ms: i64,
) -> Result<(), Refusal> {
    shared.store.set_conflict(serial, what, received_ms).await.map_err(|e| Refusal::store(&e))?;
    shared.known.identity_changed(serial);
    shared.audit.write("conflict", serial.as_str(), what);
    shared.tell(serial, What::Conflict, received_ms);
    tracing::error!(blade = %serial, what, "two machines claim one serial: both are held");
    Err(Refusal::conflict(format!("held until a person looks: {what}")))
}

/// Enough to tell two instances apart in a line of text.
pub(super) fn short(instance: &str) -> &str {
    instance.get(..8).unwrap_or(instance)
}

/// Random ids of agents and spools.
pub(super) fn check_hex(field: &str, text: &str, digits: usize) -> Result<(), Refusal> {
    let fits = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if fits { Ok(()) } else { Err(Refusal::bad(format!("{field} is not {digits} lower-case hex digits"))) }
}

/// What is over a limit is read on, up to so many times the limit, and thrown away: who is cut off in the middle of sending
/// never reads why.
const PATIENCE: usize = 3;

/// How fast a body has to come: `bytes_per_s` on the whole, after a time of grace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    pub grace: Duration,
    pub bytes_per_s: u64,
}

impl Pace {
    /// How long it may take until there are more than so many bytes.
    fn time_for(self, bytes: usize) -> Duration {
        let seconds = bytes as u64 / self.bytes_per_s.max(1);
        self.grace.saturating_add(Duration::from_secs(seconds))
    }
}

/// The whole body, at most `limit` bytes within `time`.
pub(crate) async fn body(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    time: Duration,
) -> Result<Bytes, Refusal> {
    paced_body(headers, body, limit, time, None).await
}

/// The same, and at a pace.
pub(super) async fn paced_body(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    time: Duration,
    pace: Option<Pace>,
) -> Result<Bytes, Refusal> {
    let length =
        headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
    if length.is_some_and(|length| length > limit.saturating_mul(PATIENCE)) {
        return Err(Refusal::too_large(limit));
    }
    let begun = tokio::time::Instant::now();
    let read = async {
        let mut stream = body.into_data_stream();
        let mut kept = Vec::with_capacity(length.unwrap_or(0).min(limit));
        let mut total = 0_usize;
        loop {
            let until = pace.map_or(time, |pace| pace.time_for(total).min(time));
            let next = tokio::time::timeout_at(begun + until, stream.next()).await;
            let Some(chunk) = next.map_err(|_| Refusal::slow())? else { break };
            let chunk = chunk.map_err(|e| Refusal::bad(format!("body: {e}")))?;
            total += chunk.len();
            if total <= limit {
                kept.extend_from_slice(&chunk);
            } else if total > limit.saturating_mul(PATIENCE) {
                break;
            } else {
                kept = Vec::new();
            }
        }
        if total > limit { Err(Refusal::too_large(limit)) } else { Ok(Bytes::from(kept)) }
    };
    read.await
}

/// JSON, with where it is wrong.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|e| {
        let what: String = e.to_string().chars().take(300).collect();
        Refusal::bad(format!("body: {what}"))
    })
}
