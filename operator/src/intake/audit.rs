//! Refusals on record: who was sent away, and why. Bounded per peer, per minute and in memory.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use whetstone_store::Store;

use super::Metrics;
use super::limits::Now;
use super::refusal::Reason;
use crate::clock::now_ms;

/// The same refusal of the same peer is written once in this time.
const EVERY: Duration = Duration::from_secs(60);
/// Different ones in that time.
const MOST: usize = 600;
/// Lines that wait for the database.
const WAITING: usize = 1_000;
/// Longest `who` and `what`, characters: parts of them come from outside.
const MAX_TEXT: usize = 200;

pub(crate) struct Line {
    at_ms: i64,
    kind: &'static str,
    who: String,
    what: String,
}

/// Takes lines from request handlers without holding them up.
pub(crate) struct Audit {
    lines: mpsc::Sender<Line>,
    now: Now<(String, Reason)>,
    metrics: Arc<Metrics>,
}

impl Audit {
    pub fn new(metrics: Arc<Metrics>) -> (Audit, mpsc::Receiver<Line>) {
        let (lines, waiting) = mpsc::channel(WAITING);
        (Audit { lines, now: Now::new(EVERY, MOST), metrics }, waiting)
    }

    /// A refusal.
    pub fn refused(&self, who: &str, reason: Reason, what: &str) {
        if self.now.lets((who.to_owned(), reason)) {
            self.write("refused", who, &format!("{}: {what}", reason.as_str()));
        } else {
            self.metrics.audit_dropped();
        }
    }

    /// Something that a person did, or that happens seldom.
    pub fn write(&self, kind: &'static str, who: &str, what: &str) {
        let clip = |text: &str| text.chars().take(MAX_TEXT).collect();
        let line = Line { at_ms: now_ms(), kind, who: clip(who), what: clip(what) };
        if self.lines.try_send(line).is_err() {
            self.metrics.audit_dropped();
        }
    }
}

/// Writes lines until `cancel`, and then what is left. While the database is away a line is tried again.
pub(super) async fn run(store: Store, mut lines: mpsc::Receiver<Line>, cancel: CancellationToken) {
    loop {
        let line = tokio::select! {
            biased;
            line = lines.recv() => line,
            () = cancel.cancelled() => {
                lines.close();
                lines.recv().await
            }
        };
        let Some(line) = line else { return };
        while let Err(error) = store.audit(line.kind, &line.who, &line.what, line.at_ms).await {
            tracing::warn!(%error, kind = line.kind, who = line.who, what = line.what, "not audited yet");
            if cancel.is_cancelled() || !error.is_transient() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
