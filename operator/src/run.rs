//! `whetstone-operator run`: puts the parts together and holds them until the end.
//!
//! Every replica serves health and answers agents; who does not lead says 503, and they come again. The loop, and with it every
//! write to the cluster, is the leader's alone.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use anyhow::Context;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};
use whetstone_model::ids::Serial;
use whetstone_plan::SiteLimits;
use whetstone_store::Store;

use crate::clock::now_ms;
use crate::cluster::drain::Drains;
use crate::cluster::events::Events;
use crate::cluster::leader::Lead;
use crate::cluster::node::Nodes;
use crate::cluster::precedence::Precedence;
use crate::cluster::{self, ClusterError, Fence, Reach, Seen, leader};
use crate::dirty::Dirty;
use crate::health::{Component, Health};
use crate::intake::{self, Intake, News, Poke, ServerLimits};
use crate::metrics::Metrics;
use crate::ops::{self, Ops};
use crate::pki::{self, SiteCa};
use crate::retention::Retention;
use crate::site::{Known, Parts, Site};
use crate::upkeep::{self, Upkeep};

/// What `run` needs to know.
#[derive(Debug, Clone)]
pub struct RunOptions {
    pub store: String,
    pub pki_dir: PathBuf,
    pub pki_create: bool,
    pub kubeconfig: Option<PathBuf>,
    pub listen: SocketAddr,
    pub http: SocketAddr,
    pub server_names: Vec<String>,
    pub leader_elect: bool,
    pub namespace: String,
    pub identity: String,
    pub report_interval: Duration,
    pub agent_away: Duration,
    pub run_lost: Duration,
    pub connections: usize,
    pub abort_after_steps: i64,
}

/// How long what is under way has to end: the turn, writes to the store, answers to agents.
const SHUTDOWN: Duration = Duration::from_secs(10);

impl Poke for Dirty {
    fn dirty(&self, serial: &Serial, _news: News) {
        self.serial(serial);
    }
}

/// Runs until `stop`, or until the lead is lost: then the error says so, and whoever started this starts it again.
pub async fn run(options: RunOptions, stop: CancellationToken) -> anyhow::Result<()> {
    let registry = Registry::new();
    let metrics = Arc::new(Metrics::new(&registry)?);
    metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    let health = Health::new(metrics.clone(), registry.clone());
    let http = TcpListener::bind(options.http).await.with_context(|| format!("--http {}", options.http))?;
    let tasks = TaskTracker::new();
    let serving = health.clone().serve(http, stop.clone());
    tasks.spawn(async move {
        if let Err(error) = serving.await {
            error!(%error, "health and metrics are not served any more");
        }
    });

    let ca = Arc::new(SiteCa::open(&options.pki_dir, options.pki_create, now_ms()).context("--pki-dir")?);
    let report_key = pki::report_key(&options.pki_dir).context("--pki-dir")?;
    let store = Store::open(&options.store).await.context("--store")?;
    let client = cluster::client(options.kubeconfig.as_deref()).await.context("kubernetes")?;
    let evicting =
        cluster::client_that_asks_once(options.kubeconfig.as_deref()).await.context("kubernetes")?;
    let dirty = Dirty::default();
    let seen = Seen::start(&client, &dirty, &tasks, &stop);
    let (leading, leads) = watch::channel(false);
    let known = Arc::new(Known::default());
    let (breaker, breaker_override) = watch::channel(false);

    let config = intake::Config {
        report_interval_ms: u64::try_from(options.report_interval.as_millis()).unwrap_or(10_000),
        ..intake::Config::default()
    };
    let tls = pki::server_config(ca.clone(), options.server_names.clone(), config.renew_grace_ms)?;
    let intake_metrics = Arc::new(intake::Metrics::new(&registry)?);
    let (intake, flushing) = Intake::start(
        intake::Parts {
            store: store.clone(),
            ca: ca.clone(),
            metrics: intake_metrics.clone(),
            poke: Arc::new(dirty.clone()),
            leading: leads,
            config,
        },
        stop.clone(),
    );
    let ops = Ops { intake: intake.clone(), report_key, site: known.clone(), breaker };
    let router = intake.router().merge(ops::router(ops));
    let listener =
        TcpListener::bind(options.listen).await.with_context(|| format!("--listen {}", options.listen))?;
    let limits = ServerLimits { connections: options.connections, ..ServerLimits::default() };
    tasks.spawn(intake::serve(listener, tls, router, limits, intake_metrics, stop.clone()));

    let fence = if options.leader_elect { Fence::shut() } else { Fence::open() };
    let reach = Reach::default();
    let upkeep = Upkeep {
        store: store.clone(),
        seen: seen.clone(),
        client: client.clone(),
        reach: reach.clone(),
        health: health.clone(),
        metrics: metrics.clone(),
        ca,
        disk: upkeep::folder_of(&options.store),
    };
    tasks.spawn(upkeep.run(stop.clone()));
    let retention = Retention { store: store.clone(), metrics: metrics.clone() };
    tasks.spawn(retention.run(leading.subscribe(), stop.clone()));

    let precedence = Precedence::default();
    let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let parts = Parts {
        limits: SiteLimits {
            agent_away_ms: milliseconds(options.agent_away),
            run_lost_ms: milliseconds(options.run_lost),
            ..SiteLimits::default()
        },
        store: store.clone(),
        drains: Drains::new(
            evicting,
            fence.clone(),
            dirty.clone(),
            precedence.clone(),
            tasks.clone(),
            stop.clone(),
        ),
        nodes: Nodes::new(client.clone(), fence.clone(), reach),
        fence: fence.clone(),
        events: Events::new(
            client.clone(),
            fence.clone(),
            &options.identity,
            precedence.clone(),
            tasks.clone(),
        ),
        precedence,
        client,
        seen,
        dirty,
        intake,
        metrics: metrics.clone(),
        breaker_override,
        known,
        tasks: tasks.clone(),
        stop: stop.clone(),
        abort_after_steps: Arc::new(AtomicI64::new(options.abort_after_steps)),
    };
    let mut held = None;
    if options.leader_elect {
        held = tokio::select! {
            () = stop.cancelled() => None,
            lead = stand_by(&options, &parts, &health) => Some(lead),
        };
    }
    let result = if stop.is_cancelled() {
        // What the parts hold would be waited for.
        drop(parts);
        Ok(())
    } else {
        act(parts, held.as_mut(), &health, &leading, &stop).await
    };
    fence.close();
    leading.send_replace(false);
    metrics.leader.set(0);
    stop.cancel();
    tasks.close();
    let ended = tokio::time::timeout(SHUTDOWN, async {
        let _ = flushing.await;
        tasks.wait().await;
    });
    match (ended.await, held) {
        // Nothing of ours is on its way any more: the next one may begin.
        (Ok(()), Some(lead)) => lead.release().await,
        (Ok(()), None) => {}
        (Err(_), _) => info!("some tasks did not end in time; a lease is not given back but runs out"),
    }
    store.close().await;
    result
}

/// Waits for the lead.
async fn stand_by(options: &RunOptions, parts: &Parts, health: &Health) -> Lead {
    health.set(Component::Leader, Ok("stands by".to_owned()));
    let say = |state: Result<(), &ClusterError>| {
        let state =
            state.map(|()| "stands by".to_owned()).map_err(|error| format!("cannot stand by: {error}"));
        health.set(Component::Leader, state);
    };
    leader::lead(parts.client.clone(), &options.namespace, &options.identity, &parts.fence, say).await
}

/// Leads until told to stop, or until the lead is lost. No step is begun after this; the turn under way is one of the tasks, and
/// is waited for with them.
async fn act(
    parts: Parts,
    held: Option<&mut Lead>,
    health: &Health,
    leading: &watch::Sender<bool>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let lost = async {
        match held {
            Some(lead) => lead.lost().await,
            None => std::future::pending().await,
        }
    };
    let mut lost = std::pin::pin!(lost);
    let Parts { metrics, fence, tasks, .. } = parts.clone();
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        why = &mut lost => anyhow::bail!("the lead is lost: {why}"),
        ready = parts.seen.ready() => ready?,
    }
    let site = Site::new(parts);
    leading.send_replace(true);
    metrics.leader.set(1);
    health.set(Component::Leader, Ok("leads".to_owned()));
    let ending = CancellationToken::new();
    let turning = tasks.spawn(site.run(ending.clone()));
    let result = tokio::select! {
        ended = turning => {
            ended.context("the loop ended")?;
            anyhow::bail!("the loop ended");
        }
        () = stop.cancelled() => Ok(()),
        why = &mut lost => Err(anyhow::anyhow!("the lead is lost: {why}")),
    };
    fence.close();
    ending.cancel();
    result
}
