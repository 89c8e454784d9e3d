//! One leader at a time, by a Lease. Who loses it ends: a process that once led and goes on could act on an old view.
//!
//! A leader that has heard nothing of its renewals for some time acts no more ([`Fence`]), before anybody else can have it.

use std::time::Instant;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::fence::Fence;
use super::lease::{CALL, Candidate, Held, PERIOD, Term, take};
use super::{ClusterError, within_of};

/// The lease's name, in the operator's namespace.
pub const LEASE: &str = "whetstone-operator";

/// Waits for the lead, for as long as it takes, and opens the fence. `say`: what keeps it from asking, or that it stands by.
pub async fn lead(
    client: Client,
    namespace: &str,
    identity: &str,
    fence: &Fence,
    say: impl Fn(Result<(), &ClusterError>),
) -> Lead {
    let calls = Calls { api: Api::namespaced(client, namespace) };
    let mut candidate = Candidate::new(identity);
    loop {
        match calls.try_take(&mut candidate, identity).await {
            Ok(Some((held, asked))) => {
                info!(identity, "leading");
                return Lead::keep(calls, held, asked, fence.clone());
            }
            Ok(None) => say(Ok(())),
            Err(error) => {
                warn!(%error, "the lease cannot be looked at, it is tried again");
                say(Err(&error));
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Calls of the apiserver that concern the lease, each with a limit.
struct Calls {
    api: Api<Lease>,
}

impl Calls {
    async fn get(&self) -> Result<Option<Lease>, ClusterError> {
        within_of("get lease", CALL, self.api.get_opt(LEASE)).await
    }

    async fn patch(&self, what: &str, patch: &Value) -> Result<Lease, ClusterError> {
        let parameters =
            PatchParams { field_manager: Some(whetstone_api::FIELD_MANAGER.into()), ..Default::default() };
        within_of(what, CALL, self.api.patch(LEASE, &parameters, &Patch::Merge(patch))).await
    }

    /// The lease, if it could be had, and when it was asked for.
    async fn try_take(
        &self,
        candidate: &mut Candidate,
        identity: &str,
    ) -> Result<Option<(Held, Instant)>, ClusterError> {
        let lease = match self.get().await? {
            Some(lease) => lease,
            None => {
                let empty = json!({ "metadata": { "name": LEASE }, "spec": {} });
                let empty: Lease = serde_json::from_value(empty).unwrap_or_default();
                match within_of("create lease", CALL, self.api.create(&PostParams::default(), &empty)).await {
                    Ok(lease) => lease,
                    // Another one was faster.
                    Err(error) if error.code() == Some(409) => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
        };
        if !candidate.may_take(&lease, Instant::now()) {
            return Ok(None);
        }
        // Not before it was looked at: how long that took is no time of the holder's.
        let asked = Instant::now();
        match self.patch("take lease", &take(&lease, identity, Timestamp::now())).await {
            Ok(lease) => Ok(Held::of(&lease, identity).map(|held| (held, asked))),
            Err(error) if error.code() == Some(409) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// It is ours still, and says so: when that was asked for. `None`: it is another's, or gone.
    async fn renew(&self, held: &mut Held) -> Result<Option<Instant>, ClusterError> {
        let asked = Instant::now();
        match self.patch("renew lease", &held.renew(Timestamp::now())).await {
            Ok(lease) => Ok(held.still(&lease).then_some(asked)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) if error.code() == Some(409) => match self.get().await? {
                // A call of ours that got no answer, or somebody's label on it.
                Some(lease) if held.still(&lease) => {
                    let asked = Instant::now();
                    let lease = self.patch("renew lease", &held.renew(Timestamp::now())).await?;
                    Ok(held.still(&lease).then_some(asked))
                }
                _ => Ok(None),
            },
            Err(error) => Err(error),
        }
    }
}

/// Having the lead.
pub struct Lead {
    calls: Calls,
    /// Ends the renewals.
    enough: Option<oneshot::Sender<()>>,
    lost: oneshot::Receiver<String>,
    /// Answers the lease as it was renewed last; `None` if it is lost.
    renewing: JoinHandle<Option<Held>>,
}

impl Lead {
    fn keep(calls: Calls, held: Held, asked: Instant, fence: Fence) -> Lead {
        let term = Term::of(asked);
        fence.extend(term.until);
        let (enough, ended) = oneshot::channel();
        let (losing, lost) = oneshot::channel();
        let own = Calls { api: calls.api.clone() };
        let renewing = tokio::spawn(async move {
            let mut held = held;
            tokio::select! {
                why = renew(&own, &mut held, term, &fence) => {
                    fence.close();
                    // Nobody listens where this process ends anyway.
                    let _ = losing.send(why);
                    None
                }
                _ = ended => Some(held),
            }
        });
        Lead { calls, enough: Some(enough), lost, renewing }
    }

    /// Waits until the lead is lost, and says why.
    pub async fn lost(&mut self) -> String {
        (&mut self.lost).await.unwrap_or_else(|_| "nobody renews it".to_owned())
    }

    /// Gives the lead back, so that another need not wait for its end. Only for one that has nothing under way any more.
    pub async fn release(mut self) {
        drop(self.enough.take());
        let Ok(Some(held)) = self.renewing.await else { return };
        match self.calls.patch("release lease", &held.release()).await {
            Ok(_) => info!("the lead is given back"),
            Err(error) => info!(%error, "the lead could not be given back, it runs out by itself"),
        }
    }
}

/// Renews it until it is lost: why.
async fn renew(calls: &Calls, held: &mut Held, mut term: Term, fence: &Fence) -> String {
    loop {
        let next = tokio::time::sleep_until(term.next.into());
        let over = tokio::time::sleep_until(term.until.into());
        tokio::select! {
            // First: a process that was paused for long must not renew what may be another's by now.
            biased;
            () = over => return silent(),
            () = next => {}
        }
        let renewed = tokio::time::timeout_at(term.until.into(), calls.renew(held)).await;
        match renewed {
            Ok(Ok(Some(asked))) => {
                term = Term::of(asked);
                fence.extend(term.until);
            }
            Ok(Ok(None)) => return "another one has the lease, or it is gone".to_owned(),
            Ok(Err(error)) => {
                warn!(%error, "the lease could not be renewed, it is tried again");
                term.again(Instant::now());
            }
            Err(_) => return silent(),
        }
    }
}

fn silent() -> String {
    "no renewal was confirmed in time".to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::extract::State;
    use axum::http::{Method, StatusCode};
    use axum::response::{IntoResponse, Response};
    use axum::routing::any;

    use super::*;

    /// An apiserver that knows one lease.
    struct OneLease {
        lease: Value,
        /// So many calls to come get no answer.
        hang: usize,
    }

    type Server = Arc<Mutex<OneLease>>;

    async fn answer(State(server): State<Server>, request: axum::extract::Request) -> Response {
        let (method, body) = (request.method().clone(), request.into_body());
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let answer = answer_now(&mut server.lock().unwrap(), &method, &body);
        match answer {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    fn answer_now(server: &mut OneLease, method: &Method, body: &Value) -> Option<Response> {
        if server.hang > 0 {
            server.hang -= 1;
            return None;
        }
        let lease = &mut server.lease;
        if *method == Method::PATCH {
            if body["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"] {
                let status = json!({ "status": "Failure", "reason": "Conflict", "code": 409 });
                return Some((StatusCode::CONFLICT, axum::Json(status)).into_response());
            }
            write(lease, &body["spec"]);
        }
        Some(axum::Json(lease.clone()).into_response())
    }

    /// Somebody's write: another version.
    fn write(lease: &mut Value, spec: &Value) {
        let version: u64 = lease["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        lease["metadata"]["resourceVersion"] = json!((version + 1).to_string());
        for (key, value) in spec.as_object().into_iter().flatten() {
            lease["spec"][key] = value.clone();
        }
    }

    async fn apiserver() -> (Server, Client) {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": LEASE, "resourceVersion": "1" }, "spec": {},
        });
        let server: Server = Arc::new(Mutex::new(OneLease { lease, hang: 0 }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(any(answer)).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let mut config = kube::Config::new(url.parse().unwrap());
        config.default_retry = false;
        (server, Client::try_from(config).unwrap())
    }

    fn holder(server: &Server) -> Value {
        server.lock().unwrap().lease["spec"]["holderIdentity"].clone()
    }

    fn version(server: &Server) -> Value {
        server.lock().unwrap().lease["metadata"]["resourceVersion"].clone()
    }

    /// Waits until somebody has written it.
    async fn written(server: &Server) {
        let before = version(server);
        while version(server) == before {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn it_is_renewed_and_given_back_and_the_next_one_leads_at_once() {
        let (server, client) = apiserver().await;
        let fence = Fence::shut();
        let lead = lead(client.clone(), "w", "a", &fence, |_| ()).await;
        assert!(fence.holds());
        assert_eq!(holder(&server), json!("a"));
        // Somebody puts a label on it.
        write(&mut server.lock().unwrap().lease, &json!({}));
        written(&server).await;
        fence.close();
        lead.release().await;
        assert_eq!(holder(&server), Value::Null);
        let (begun, other) = (Instant::now(), Fence::shut());
        super::lead(client, "w", "b", &other, |_| ()).await;
        assert!(begun.elapsed() < PERIOD, "it waited for nobody");
    }

    /// The apiserver takes calls and answers none: whoever leads ends before another one could lead.
    #[tokio::test]
    async fn an_apiserver_that_says_nothing_ends_it_in_time() {
        let (server, client) = apiserver().await;
        let fence = Fence::shut();
        let begun = Instant::now();
        let mut lead = lead(client, "w", "a", &fence, |_| ()).await;
        server.lock().unwrap().hang = usize::MAX;
        let why = lead.lost().await;
        assert!(why.contains("no renewal"), "{why}");
        assert!(!fence.holds());
        let took = begun.elapsed();
        assert!(took < super::super::lease::DURATION, "{took:?}");
        // It may answer again: who has lost it does not give back what may be another's.
        server.lock().unwrap().hang = 0;
        lead.release().await;
        assert_eq!(holder(&server), json!("a"));
    }

    #[tokio::test]
    async fn a_renewal_that_hangs_does_not_cost_the_lead() {
        let (server, client) = apiserver().await;
        let fence = Fence::shut();
        let mut lead = lead(client, "w", "a", &fence, |_| ()).await;
        server.lock().unwrap().hang = 1;
        // The one after it, and one that is later than all that the lease was taken for.
        let renewed = async {
            written(&server).await;
            written(&server).await;
        };
        tokio::select! {
            why = lead.lost() => panic!("{why}"),
            () = renewed => {}
        }
        assert_eq!(server.lock().unwrap().hang, 0, "that one was not written");
        assert!(fence.holds());
    }

    #[tokio::test]
    async fn who_finds_another_one_on_it_has_lost_it() {
        let (server, client) = apiserver().await;
        let fence = Fence::shut();
        let mut lead = lead(client, "w", "a", &fence, |_| ()).await;
        write(&mut server.lock().unwrap().lease, &json!({ "holderIdentity": "b" }));
        let why = lead.lost().await;
        assert!(why.contains("another one"), "{why}");
        assert!(!fence.holds());
        lead.release().await;
        assert_eq!(holder(&server), json!("b"), "it took the lease from the one that has it");
    }
}
