//! Thins old evidence, on the leader alone and in a task of its own: it may take minutes, in which the health of the rest is
//! asked for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use whetstone_store::{RetainPolicy, Store};

use crate::clock::now_ms;
use crate::metrics::Metrics;

/// Between two thinnings of the store.
const EVERY: Duration = Duration::from_secs(3600);
/// Until the first one: a start has other work, and one that starts every half hour is to thin, too. And after one that
/// failed.
const FIRST: Duration = Duration::from_secs(300);
/// Where there is more to do.
const MORE: Duration = Duration::from_secs(1);

pub struct Retention {
    pub store: Store,
    pub metrics: Arc<Metrics>,
}

impl Retention {
    /// Runs until `stop`, while this replica leads: two at once do the work twice.
    pub async fn run(self, leading: watch::Receiver<bool>, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = while_leading(leading, FIRST, || self.retain()) => {}
        }
    }

    /// Answers when to come again.
    async fn retain(&self) -> Duration {
        match self.store.retain(&RetainPolicy::default(), now_ms()).await {
            Ok(retained) => {
                info!(?retained, "old evidence thinned");
                if retained.done { EVERY } else { MORE }
            }
            Err(error) => {
                self.metrics.store_errors.with_label_values(&[error.category()]).inc();
                warn!(%error, "old evidence could not all be thinned, it is tried again");
                FIRST
            }
        }
    }
}

/// Does `work` again and again while this replica leads: for the first time `first` after it took the lead, then after the
/// pause that `work` asks for. Ends it in the middle where the lead is lost, and altogether with the process.
async fn while_leading<F>(mut leading: watch::Receiver<bool>, first: Duration, work: impl Fn() -> F)
where
    F: Future<Output = Duration>,
{
    let mut pause = first;
    while leading.wait_for(|leads| *leads).await.is_ok() {
        let lost = async { leading.wait_for(|leads| !*leads).await.is_ok() };
        let turn = async {
            tokio::time::sleep(pause).await;
            work().await
        };
        pause = tokio::select! {
            biased;
            lost = lost => if lost { first } else { return },
            next = turn => next,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Waits for a condition that other tasks bring about.
    async fn until(what: impl Fn() -> bool) {
        let waiting = async {
            while !what() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
    }

    #[tokio::test]
    async fn the_leader_alone_thins_and_comes_again_at_once_while_there_is_more() {
        let (leads, leading) = watch::channel(false);
        let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let count = |number: &Arc<AtomicUsize>| number.load(Ordering::SeqCst);
        let task = {
            let (begun, ended, sees) = (begun.clone(), ended.clone(), leading.clone());
            tokio::spawn(while_leading(leading, Duration::ZERO, move || {
                assert!(*sees.borrow(), "it works while another leads");
                let number = begun.fetch_add(1, Ordering::SeqCst) + 1;
                let ended = ended.clone();
                async move {
                    if number == 5 {
                        // Takes long: the lead is lost meanwhile.
                        std::future::pending::<()>().await;
                    }
                    ended.fetch_add(1, Ordering::SeqCst);
                    // More to do three times, then nothing for long.
                    if number == 4 || number == 8 { EVERY } else { Duration::ZERO }
                }
            }))
        };
        // It stands by, for as long as its turn would have taken many times over.
        let early = tokio::time::timeout(Duration::from_millis(50), until(|| count(&begun) > 0)).await;
        assert!(early.is_err());
        leads.send_replace(true);
        until(|| count(&ended) == 4).await;
        // A lead that is lost and won again begins anew; what was going on ends with it.
        leads.send_replace(false);
        tokio::task::yield_now().await;
        leads.send_replace(true);
        until(|| count(&begun) == 5).await;
        leads.send_replace(false);
        tokio::task::yield_now().await;
        leads.send_replace(true);
        until(|| count(&ended) == 7).await;
        assert_eq!(count(&begun), 8);
        drop(leads);
        task.await.unwrap();
    }
}
