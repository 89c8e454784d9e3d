//! Taints and cordons go before everything else that is written to the apiserver: a status, an event or a drain waits while they
//! are on their way.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Whoever is not first waits so long at most: one write that hangs must not silence all objects.
const LONGEST: Duration = Duration::from_secs(1);
/// A drain waits longer: each that ends beside a burst is a list of pods and two more writes, and takes them from nodes that are
/// still open. A thousand nodes take seconds.
const LONGEST_OF_DRAINS: Duration = Duration::from_secs(10);

/// Counts the writes to nodes that go on or wait. Cheap to clone.
#[derive(Clone)]
pub struct Precedence {
    nodes: Arc<watch::Sender<usize>>,
}

/// A write to a node, until it is dropped.
pub struct First(Arc<watch::Sender<usize>>);

impl Default for Precedence {
    fn default() -> Self {
        Precedence { nodes: Arc::new(watch::Sender::new(0)) }
    }
}

impl Precedence {
    /// A write to a node is wanted.
    pub fn first(&self) -> First {
        self.nodes.send_modify(|count| *count += 1);
        First(self.nodes.clone())
    }

    /// A status or an event waits until no write to a node is wanted, or [`LONGEST`].
    pub async fn after_nodes(&self) {
        self.after_nodes_or(LONGEST).await;
    }

    /// The same for a drain, or [`LONGEST_OF_DRAINS`].
    pub async fn drain_after_nodes(&self) {
        self.after_nodes_or(LONGEST_OF_DRAINS).await;
    }

    async fn after_nodes_or(&self, longest: Duration) {
        let mut nodes = self.nodes.subscribe();
        // Late is better than never; the sender lives as long as this.
        let _ = tokio::time::timeout(longest, nodes.wait_for(|count| *count == 0)).await;
    }
}

impl Drop for First {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn others_wait_for_nodes_but_not_for_ever() {
        let precedence = Precedence::default();
        precedence.after_nodes().await;
        let (first, second) = (precedence.first(), precedence.first());
        let waiting = tokio::spawn({
            let precedence = precedence.clone();
            async move { precedence.after_nodes().await }
        });
        drop(first);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(second);
        waiting.await.unwrap();
        let _hangs = precedence.first();
        precedence.after_nodes_or(Duration::from_millis(1)).await;
    }
}
