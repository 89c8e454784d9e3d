//! `/healthz`, `/readyz`, `/metrics`: plain HTTP, for kubelet and Prometheus.
//!
//! `/healthz`: the process turns over. `/readyz`: 200 if all components are well, 503 with a line for each that is not. A
//! replica that does not lead is ready: it stands by, and its intake says so to agents (503, Retry-After).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What can be unwell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    Store,
    Kube,
    Disk,
    Leader,
}

impl Component {
    pub const ALL: [Component; 4] = [Component::Store, Component::Kube, Component::Disk, Component::Leader];

    fn as_str(self) -> &'static str {
        match self {
            Component::Store => "store",
            Component::Kube => "kube",
            Component::Disk => "disk",
            Component::Leader => "leader",
        }
    }
}

/// The state of all components; cheap to clone.
#[derive(Clone)]
pub struct Health {
    states: Arc<Mutex<BTreeMap<Component, Result<String, String>>>>,
    metrics: Arc<Metrics>,
    registry: Registry,
}

impl Health {
    pub fn new(metrics: Arc<Metrics>, registry: Registry) -> Health {
        let health = Health { states: Arc::default(), metrics, registry };
        for component in Component::ALL {
            health.set(component, Err("not started".to_owned()));
        }
        health
    }

    /// `Ok` and `Err` both say how it is, in one line. Logs changes.
    pub fn set(&self, component: Component, state: Result<String, String>) {
        self.metrics.ready.with_label_values(&[component.as_str()]).set(i64::from(state.is_ok()));
        let before = self.lock().insert(component, state.clone());
        match (before.map(|state| state.is_ok()), state) {
            (Some(true), Err(what)) => tracing::error!(component = component.as_str(), what, "not well"),
            (Some(false), Ok(what)) => tracing::info!(component = component.as_str(), what, "well"),
            _ => {}
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Component, Result<String, String>>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self) -> (bool, String) {
        let states = self.lock();
        let mut page = String::new();
        for (component, state) in states.iter() {
            let (mark, text) = match state {
                Ok(text) => ("ok", text),
                Err(text) => ("NOT", text),
            };
            let _ = writeln!(page, "[{mark}] {}: {text}", component.as_str());
        }
        (states.values().all(Result::is_ok), page)
    }

    /// Serves until `stop`.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> std::io::Result<()> {
        let router = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self);
        axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}

async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    let (ready, page) = health.page();
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, page)
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    health.metrics.refresh_process();
    match TextEncoder::new().encode_to_string(&health.registry.gather()) {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain")],
            format!("metrics cannot be written: {error}\n"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_all_are() {
        let registry = Registry::new();
        let metrics = Arc::new(Metrics::new(&registry).unwrap());
        let health = Health::new(metrics.clone(), registry);
        assert!(!health.page().0);
        for component in Component::ALL {
            health.set(component, Ok("fine".into()));
        }
        assert!(health.page().0);
        health.set(Component::Disk, Err("3 MiB free".into()));
        let (ready, page) = health.page();
        assert!(!ready && page.contains("[NOT] disk: 3 MiB free"), "{page}");
        assert_eq!(metrics.ready.with_label_values(&["disk"]).get(), 0);
    }
}
