//! The agents' side of the operator: joins, renewals, reports and results come in over mutual TLS, are checked and stored.
//!
//! ```text
//! connection ─ TLS, bounds ─► route ─ who is it, may it ─► report ─ queue ─► writer: one transaction for many reports
//!                                                        └ join, renew, result ─► store
//! ```
//! What the rest of the operator has to know comes as [`News`]; what the rest changes under the intake's feet is told to it
//! through [`Intake`].

mod audit;
mod batch;
mod join;
mod known;
mod limits;
mod metrics;
mod refusal;
mod remembered;
mod report;
mod request;
mod result;
mod server;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::{post, put};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use whetstone_model::ids::{RunId, Serial};
use whetstone_store::Store;

pub use limits::Rate;
pub use metrics::Metrics;
pub use refusal::{Reason, Refusal};
pub use server::{Client, ServerLimits, serve};

pub(crate) use audit::Audit;
pub use request::Pace;
pub(crate) use request::{Incoming, OPS, answer, body, fresh_peer, parse};

use crate::pki::SiteCa;
use batch::Queue;
use known::Known;
use limits::{AtOnce, Budget, Cost, Now};
use remembered::Remembered;

/// How the intake behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// When the next report of an agent is wanted, ms.
    pub report_interval_ms: u64,
    /// Lifetime of agents' certificates, ms.
    pub certificate_ms: i64,
    /// How long after its end a certificate can still be renewed, ms. Has to be what the TLS configuration allows
    /// ([`crate::pki::server_config`]).
    pub renew_grace_ms: i64,
    /// Reports that wait for the database at most; further ones get a 503.
    pub queue: usize,
    /// Requests of one agent at once.
    pub per_agent: usize,
    /// Requests without a certificate from one address at once.
    pub per_address: usize,
    /// For a body of a report, join or renewal to come in.
    pub body: Duration,
    /// For a result to come in.
    pub result_body: Duration,
    /// How fast it has to come: who sends more slowly keeps others out.
    pub result_pace: Pace,
    /// Results that come in at once, one of each agent; each is held in memory, packed: 16 MiB at most.
    pub uploads: usize,
    /// Results that are unpacked and checked at once; each may need 150 MiB.
    pub results: usize,
    /// Items of evidence, and bytes of reports, of one agent; and what else is written for it: certificates, boots, facts,
    /// streams.
    pub items: Rate,
    pub bytes: Rate,
    pub rows: Rate,
    /// For a report to be stored.
    pub store: Duration,
    /// How often signs of life and progress go to the store.
    pub flush: Duration,
}

impl Default for Config {
    fn default() -> Self {
        const DAY_MS: i64 = 86_400_000;
        const MIB: f64 = 1_048_576.0;
        Config {
            report_interval_ms: 10_000,
            certificate_ms: DAY_MS,
            renew_grace_ms: 30 * DAY_MS,
            queue: 4_096,
            per_agent: 4,
            per_address: 512,
            body: Duration::from_secs(15),
            // The largest result at the pace below, and some more.
            result_body: Duration::from_secs(300),
            result_pace: Pace { grace: Duration::from_secs(10), bytes_per_s: 64 << 10 },
            uploads: 32,
            results: 4,
            // A whole spool after a week without an operator (64 MiB, about 250,000 items) comes in at once; after that three
            // times what a blade of 128 GPUs has to say.
            items: Rate { at_once: 250_000.0, per_second: 20.0 },
            bytes: Rate { at_once: 128.0 * MIB, per_second: MIB / 32.0 },
            // A machine that is started again every few minutes, or whose agent is, for hours.
            rows: Rate { at_once: 100.0, per_second: 1.0 / 60.0 },
            store: Duration::from_secs(15),
            flush: Duration::from_secs(2),
        }
    }
}

/// What has happened to a blade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It has a certificate for the first time, or again.
    Joined,
    /// Two machines claim its serial.
    Conflict,
    /// A person has reset its identity: it has to join again.
    Reset,
    /// A standing fault appeared, changed or went.
    Faults,
    /// It said what it is.
    Facts,
    /// Its agent has taken up the run.
    PickedUp(RunId),
    Progress(RunId),
    /// The run's verdict is stored.
    Result(RunId),
}

/// News of a blade that is worth a look at it. Everything that it speaks of is in the store already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct News {
    pub what: What,
    /// When the request with it came in, ms since the epoch by our clock.
    pub received_ms: i64,
}

/// Whom the intake tells. Called from request handlers: must not block.
pub trait Poke: Send + Sync + 'static {
    fn dirty(&self, serial: &Serial, news: News);
}

/// What the intake needs.
pub struct Parts {
    pub store: Store,
    pub ca: Arc<SiteCa>,
    pub metrics: Arc<Metrics>,
    pub poke: Arc<dyn Poke>,
    /// True while this process leads; all else is answered 503.
    pub leading: watch::Receiver<bool>,
    pub config: Config,
}

/// The running intake. Cheap to clone.
#[derive(Clone)]
pub struct Intake {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    store: Store,
    ca: Arc<SiteCa>,
    metrics: Arc<Metrics>,
    poke: Arc<dyn Poke>,
    leading: watch::Receiver<bool>,
    config: Config,
    known: Known,
    remembered: Remembered,
    strangers: Now<Serial>,
    queue: Queue,
    audit: Audit,
    agents: Arc<AtOnce<String>>,
    addresses: Arc<AtOnce<IpAddr>>,
    /// Who sends a result.
    senders: Arc<AtOnce<Serial>>,
    budget: Budget<Serial>,
    uploads: Semaphore,
    results: Semaphore,
}

impl Intake {
    /// Starts the writer. It ends after `cancel`, when what was queued is stored: wait for the handle last.
    pub fn start(parts: Parts, cancel: CancellationToken) -> (Intake, JoinHandle<()>) {
        let Parts { store, ca, metrics, poke, leading, config } = parts;
        let (audit, lines) = Audit::new(metrics.clone());
        let (queue, waiting) = Queue::new(config.queue, metrics.clone());
        let shared = Arc::new(Shared {
            known: Known::default(),
            remembered: Remembered::default(),
            strangers: Now::new(Duration::from_secs(60), 200),
            agents: AtOnce::new(config.per_agent),
            addresses: AtOnce::new(config.per_address),
            senders: AtOnce::new(1),
            budget: Budget::new(config.items, config.bytes, config.rows),
            uploads: Semaphore::new(config.uploads),
            results: Semaphore::new(config.results),
            store,
            ca,
            metrics,
            poke,
            leading,
            config,
            queue,
            audit,
        });
        let writer = tokio::spawn(batch::run(shared.clone(), waiting, cancel.clone()));
        let auditor = tokio::spawn(audit::run(shared.store.clone(), lines, cancel.clone()));
        let watcher = tokio::spawn(watch_leading(shared.clone(), cancel));
        let done = tokio::spawn(async move {
            for task in [writer, auditor, watcher] {
                if let Err(error) = task.await {
                    tracing::error!(%error, "a task of the intake ended in a panic");
                }
            }
        });
        (Intake { shared }, done)
    }

    /// The agents' routes, to be served by [`serve`].
    pub fn router(&self) -> Router {
        Router::new()
            .route("/v1/join", post(join::join))
            .route("/v1/renew", post(join::renew))
            .route("/v1/report", post(report::report))
            .route("/v1/runs/{run}/result", put(result::result))
            .fallback(request::nothing_here)
            .with_state(self.shared.clone())
    }

    /// A run of this blade was made or ended: its agent is to hear of it with its next report.
    pub fn order_changed(&self, serial: &Serial) {
        self.shared.known.order_changed(serial);
    }

    /// This blade's identity was reset, or a conflict of it settled or found.
    pub fn identity_changed(&self, serial: &Serial) {
        self.shared.known.identity_changed(serial);
        self.shared.remembered.forget(serial);
    }

    /// For [`crate::ops`]: what it shares with the agents' routes.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Shared {
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn audit(&self) -> &Audit {
        &self.audit
    }

    pub(crate) fn body_time(&self) -> Duration {
        self.config.body
    }

    /// A person has settled whose serial it is: the blade is looked at again.
    pub(crate) fn identity_was_reset(&self, serial: &Serial) {
        self.known.identity_changed(serial);
        self.known.order_changed(serial);
        // Its streams begin anew.
        self.remembered.forget(serial);
        self.tell(serial, What::Reset, crate::clock::now_ms());
    }

    /// Takes out of a blade's budget what one of its requests costs.
    fn charge(&self, serial: &Serial, cost: Cost) -> Result<(), Refusal> {
        self.budget.take(serial.clone(), cost, Instant::now()).map_err(Refusal::over_budget)
    }

    fn is_leading(&self) -> bool {
        *self.leading.borrow()
    }

    fn tell(&self, serial: &Serial, what: What, received_ms: i64) {
        self.poke.dirty(serial, News { what, received_ms });
    }
}

/// Another process may have led in between: nothing is remembered across a change.
async fn watch_leading(shared: Arc<Shared>, cancel: CancellationToken) {
    let mut leading = shared.leading.clone();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = leading.changed() => match changed {
                Ok(()) => {
                    shared.known.forget_all();
                    shared.remembered.forget_all();
                }
                // The sender is gone: it stays as it is.
                Err(_) => return,
            },
        }
    }
}
