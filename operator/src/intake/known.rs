//! What the intake remembers of each blade, so that a report that brings nothing new asks the database nothing.
//!
//! Only the leader serves, and only this process changes identities and runs: whoever does so says it here
//! ([`Known::identity_changed`], [`Known::order_changed`]). What was missed is put right after [`MAX_AGE`]. When the database is
//! away, what is remembered is used past its age.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use whetstone_model::ids::{RunId, Serial};
use whetstone_model::wire::Order;
use whetstone_store::{Identity, Store, StoreError};

use std::sync::Arc;

/// How long something is believed without asking again.
const MAX_AGE: Duration = Duration::from_secs(60);

struct Entry<V> {
    value: V,
    loaded: Instant,
}

/// Values by serial. `epoch` counts the changes: what was loaded before a change is not kept after it.
struct Cache<V> {
    entries: HashMap<Serial, Entry<V>>,
    epoch: u64,
}

impl<V> Default for Cache<V> {
    fn default() -> Self {
        Cache { entries: HashMap::new(), epoch: 0 }
    }
}

/// Answer of the cache: fresh, too old, or none; with the epoch to load for.
struct Found<V> {
    fresh: Option<V>,
    stale: Option<V>,
    epoch: u64,
}

impl<V: Clone> Cache<V> {
    fn find(&self, serial: &Serial) -> Found<V> {
        let entry = self.entries.get(serial);
        let (fresh, stale) = match entry {
            Some(entry) if entry.loaded.elapsed() < MAX_AGE => (Some(entry.value.clone()), None),
            Some(entry) => (None, Some(entry.value.clone())),
            None => (None, None),
        };
        Found { fresh, stale, epoch: self.epoch }
    }

    fn keep(&mut self, serial: &Serial, value: V, epoch: u64) {
        if self.epoch == epoch {
            self.entries.insert(serial.clone(), Entry { value, loaded: Instant::now() });
        }
    }

    fn forget(&mut self, serial: &Serial) {
        self.entries.remove(serial);
        self.epoch += 1;
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.epoch += 1;
    }
}

type Going = (Option<RunId>, Option<Arc<Order>>);

/// See the module.
#[derive(Default)]
pub(super) struct Known {
    identities: Mutex<Cache<Option<Arc<Identity>>>>,
    orders: Mutex<Cache<Going>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Known {
    /// `None` = no such blade, or it never joined.
    pub async fn identity(
        &self,
        store: &Store,
        serial: &Serial,
    ) -> Result<Option<Arc<Identity>>, StoreError> {
        let found = lock(&self.identities).find(serial);
        if let Some(identity) = found.fresh {
            return Ok(identity);
        }
        match store.identity(serial).await {
            Ok(identity) => {
                let identity = identity.map(Arc::new);
                // Who is not known is asked for again: certificates for such serials are few.
                if identity.is_some() {
                    lock(&self.identities).keep(serial, identity.clone(), found.epoch);
                }
                Ok(identity)
            }
            Err(error) => found.stale.ok_or(error),
        }
    }

    /// What the agent that is busy with `going_on` has to do.
    pub async fn order(
        &self,
        store: &Store,
        serial: &Serial,
        going_on: Option<RunId>,
    ) -> Result<Option<Arc<Order>>, StoreError> {
        let found = lock(&self.orders).find(serial);
        if let Some((busy, order)) = &found.fresh
            && *busy == going_on
        {
            return Ok(order.clone());
        }
        match store.current_order(serial, going_on).await {
            Ok(order) => {
                let order = order.map(Arc::new);
                lock(&self.orders).keep(serial, (going_on, order.clone()), found.epoch);
                Ok(order)
            }
            Err(error) => match found.stale.or(found.fresh) {
                Some((busy, order)) if busy == going_on => Ok(order),
                _ => Err(error),
            },
        }
    }

    pub fn identity_changed(&self, serial: &Serial) {
        lock(&self.identities).forget(serial);
    }

    pub fn order_changed(&self, serial: &Serial) {
        lock(&self.orders).forget(serial);
    }

    pub fn forget_all(&self) {
        lock(&self.identities).clear();
        lock(&self.orders).clear();
    }
}
