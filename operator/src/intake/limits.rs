//! Bounds per peer: requests at once, and lines in the audit.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Peers that are counted at once at most; more are refused.
const MAX_PEERS: usize = 50_000;

/// How many requests of one peer are under way.
#[derive(Debug)]
pub(super) struct AtOnce<K> {
    counts: Mutex<HashMap<K, usize>>,
    limit: usize,
}

/// One request; ends when dropped.
#[derive(Debug)]
pub(super) struct Turn<K: Hash + Eq> {
    of: Arc<AtOnce<K>>,
    key: K,
}

impl<K: Hash + Eq + Clone> AtOnce<K> {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(AtOnce { counts: Mutex::new(HashMap::new()), limit })
    }

    /// `None` if the peer has its limit under way already.
    pub fn begin(self: &Arc<Self>, key: K) -> Option<Turn<K>> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= MAX_PEERS && !counts.contains_key(&key) {
            return None;
        }
        let count = counts.entry(key.clone()).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Turn { of: self.clone(), key })
    }
}

impl<K: Hash + Eq> Drop for Turn<K> {
    fn drop(&mut self) {
        let mut counts = self.of.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// Lets the same thing through once per `every`, and `most` different things in that time.
#[derive(Debug)]
pub(super) struct Now<K> {
    seen: Mutex<(HashMap<K, ()>, Instant)>,
    every: Duration,
    most: usize,
}

impl<K: Hash + Eq> Now<K> {
    pub fn new(every: Duration, most: usize) -> Self {
        Now { seen: Mutex::new((HashMap::new(), Instant::now())), every, most }
    }

    pub fn lets(&self, key: K) -> bool {
        let mut guard = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, since) = &mut *guard;
        if since.elapsed() >= self.every {
            seen.clear();
            *since = Instant::now();
        }
        seen.len() < self.most && seen.insert(key, ()).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_its_limit_and_gets_it_back() {
        let at_once = AtOnce::new(2);
        let first = at_once.begin("a").unwrap();
        let second = at_once.begin("a").unwrap();
        assert!(at_once.begin("a").is_none());
        assert!(at_once.begin("b").is_some(), "one peer held up another");
        drop(first);
        let third = at_once.begin("a");
        assert!(third.is_some());
        drop((second, third));
        assert!(at_once.counts.lock().unwrap().is_empty(), "peers are kept for ever");
    }

    #[test]
    fn the_same_thing_comes_once_and_many_things_have_an_end() {
        let now = Now::new(Duration::from_secs(3_600), 3);
        assert!(now.lets(1));
        assert!(!now.lets(1));
        assert!(now.lets(2) && now.lets(3));
        assert!(!now.lets(4));
        let soon = Now::new(Duration::ZERO, 3);
        assert!(soon.lets(1) && soon.lets(1));
    }
}
