//! What has to be looked at again. Whoever learns something says of which blade; what it was is looked up anew.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use whetstone_model::ids::Serial;

/// Handle to the set; cheap to clone.
#[derive(Clone, Default)]
pub struct Dirty(Arc<Inner>);

#[derive(Default)]
struct Inner {
    work: Mutex<Work>,
    wake: Notify,
}

/// What was said since the last look.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Work {
    pub serials: BTreeSet<Serial>,
    /// Names of blades whose objects changed.
    pub blades: BTreeSet<String>,
    /// Names of nodes that changed.
    pub nodes: BTreeSet<String>,
    /// A tranche or the set of blades changed: manifests are compared with the store.
    pub manifests: bool,
    /// Everything.
    pub all: bool,
}

impl Work {
    pub fn is_empty(&self) -> bool {
        *self == Work::default()
    }
}

impl Dirty {
    fn change(&self, change: impl FnOnce(&mut Work)) {
        change(&mut self.lock());
        self.0.wake.notify_one();
    }

    // A panic elsewhere cannot leave a set half changed.
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.0.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn serial(&self, serial: &Serial) {
        self.change(|work| {
            work.serials.insert(serial.clone());
        });
    }
    pub fn serials(&self, serials: impl IntoIterator<Item = Serial>) {
        self.change(|work| work.serials.extend(serials));
    }
    pub fn blade(&self, name: &str) {
        self.change(|work| {
            work.blades.insert(name.to_owned());
        });
    }
    pub fn node(&self, name: &str) {
        self.change(|work| {
            work.nodes.insert(name.to_owned());
        });
    }
    pub fn manifests(&self) {
        self.change(|work| work.manifests = true);
    }
    pub fn all(&self) {
        self.change(|work| work.all = true);
    }

    /// Waits until there is something.
    pub async fn wait(&self) {
        loop {
            let waiting = self.0.wake.notified();
            if !self.lock().is_empty() {
                return;
            }
            waiting.await;
        }
    }

    pub fn take(&self) -> Work {
        std::mem::take(&mut self.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_said_before_the_wait_is_not_lost() {
        let dirty = Dirty::default();
        dirty.node("a");
        dirty.wait().await;
        assert!(dirty.take().nodes.contains("a"));
        assert!(dirty.take().is_empty());
        let other = dirty.clone();
        let waiter = tokio::spawn(async move { other.wait().await });
        dirty.all();
        waiter.await.unwrap();
        assert!(dirty.take().all);
    }
}
