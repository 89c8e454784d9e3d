//! What the tests of this folder share: objects as the watches show them, and rows of the store.

use axum::Router;
use axum::http::Uri;
use kube::Client;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use whetstone_model::lifecycle::Phase;
use whetstone_plan::SiteLimits;
use whetstone_store::{AgentRow, BladeRow};

use super::memory::Memory;
use crate::cluster::drain::Drains;
use crate::cluster::precedence::Precedence;
use crate::cluster::{Fence, Seen};
use crate::dirty::Dirty;

fn client(url: &str) -> Client {
    Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap()
}

fn list(items: &[Value]) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "1" }, "items": items })
}

/// What is seen of an apiserver that has these objects, of which nothing changes any more.
pub async fn seen(blades: &[Value], nodes: &[Value]) -> Seen {
    let (blades, nodes, none) = (list(blades), list(nodes), list(&[]));
    let router = Router::new().fallback(move |uri: Uri| {
        let watches = uri.query().is_some_and(|query| query.contains("watch=true"));
        let asked = match uri.path().rsplit('/').next() {
            Some("blades") => blades.clone(),
            Some("nodes") => nodes.clone(),
            _ => none.clone(),
        };
        async move {
            if watches {
                std::future::pending::<()>().await;
            }
            axum::Json(asked)
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client(&format!("http://{}", listener.local_addr().unwrap()));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let seen = Seen::start(&client, &Dirty::default(), &TaskTracker::new(), &CancellationToken::new());
    seen.ready().await.unwrap();
    seen
}

/// A blade's object with this serial and more in its spec.
pub fn object(name: &str, serial: &str, more: Value) -> Value {
    let mut spec = json!({ "serial": serial });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({
        "apiVersion": "whetstone.dev/v1alpha1", "kind": "Blade",
        "metadata": { "name": name, "uid": name, "generation": 1 }, "spec": spec,
    })
}

pub fn row(serial: &str, name: &str, phase: Phase) -> BladeRow {
    BladeRow {
        serial: serial.parse().unwrap(),
        name: name.parse().unwrap(),
        tranche: None,
        rack: None,
        domain: None,
        sku: None,
        phase,
        why: String::new(),
        since_ms: 0,
        sequence: 1,
        retested: 0,
        passed_ms: None,
        doubted_ms: None,
        inconclusive: 0,
        agent: AgentRow::default(),
        run: None,
        faults: Vec::new(),
        cases: Vec::new(),
    }
}

/// None of which goes on.
pub fn drains() -> Drains {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    Drains::new(
        client("http://127.0.0.1:1"),
        Fence::open(),
        Dirty::default(),
        Precedence::default(),
        tasks,
        stop,
    )
}

/// The memory of a process that has just begun.
pub fn memory(rows: Vec<BladeRow>, seen: &Seen) -> Memory {
    let mut memory = Memory::new(SiteLimits::default());
    let all = rows.iter().map(|row| row.serial.clone()).collect();
    memory.update(&all, rows, seen, &drains());
    memory
}
