//! Bounds per peer: requests at once, what is stored in the long run, and lines in the audit.

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

/// So much at once, and so much a second in the long run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    pub at_once: f64,
    pub per_second: f64,
}

/// What a request costs its peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Items of evidence.
    pub items: usize,
    /// Of the body that they come in.
    pub bytes: usize,
    /// Other rows: certificates, boots, facts, streams.
    pub rows: usize,
}

impl Cost {
    pub const ROW: Cost = Cost { items: 0, bytes: 0, rows: 1 };
}

/// What one peer may still have stored: buckets that fill by themselves, one for each sort of [`Cost`].
#[derive(Debug)]
pub(super) struct Budget<K> {
    /// What is in them, and when that was so.
    buckets: Mutex<HashMap<K, ([f64; 3], Instant)>>,
    rates: [Rate; 3],
}

impl<K: Hash + Eq> Budget<K> {
    pub fn new(items: Rate, bytes: Rate, rows: Rate) -> Self {
        Budget { buckets: Mutex::new(HashMap::new()), rates: [items, bytes, rows] }
    }

    /// Takes all of it out, or says how long it is until it is there. What is more than a whole bucket costs a whole one.
    pub fn take(&self, key: K, cost: Cost, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, filled) = buckets.entry(key).or_insert((self.rates.map(|rate| rate.at_once), now));
        let passed = now.saturating_duration_since(*filled).as_secs_f64();
        *filled = now;
        let mut after = [0.0; 3];
        let mut missing: f64 = 0.0;
        for (sort, cost) in [cost.items, cost.bytes, cost.rows].into_iter().enumerate() {
            let rate = self.rates[sort];
            left[sort] = (left[sort] + passed * rate.per_second).min(rate.at_once);
            after[sort] = left[sort] - (cost as f64).min(rate.at_once);
            missing = missing.max(-after[sort] / rate.per_second);
        }
        if missing > 0.0 {
            return Err(Duration::try_from_secs_f64(missing).unwrap_or(Duration::MAX));
        }
        *left = after;
        Ok(())
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
    fn a_budget_is_spent_and_fills_again_for_each_peer() {
        let rate = |at_once, per_second| Rate { at_once, per_second };
        let budget = Budget::new(rate(10.0, 2.0), rate(1_000.0, 100.0), rate(2.0, 0.5));
        let now = Instant::now();
        let take = |peer, items, bytes, at| budget.take(peer, Cost { items, bytes, rows: 0 }, at);
        assert_eq!(take("a", 10, 10, now), Ok(()));
        assert_eq!(take("a", 4, 10, now), Err(Duration::from_secs(2)));
        assert_eq!(take("b", 4, 10, now), Ok(()), "one peer's budget is another's");
        // What was refused cost nothing.
        assert_eq!(take("a", 4, 10, now + Duration::from_secs(2)), Ok(()));
        // Bytes and other rows count by themselves; more than a whole bucket is one.
        assert_eq!(take("c", 0, 900, now), Ok(()));
        assert_eq!(take("c", 0, 200, now), Err(Duration::from_secs(1)));
        assert_eq!(take("d", 99, 9_999, now), Ok(()));
        for wait in [None, None, Some(Duration::from_secs(2))] {
            assert_eq!(budget.take("d", Cost::ROW, now).err(), wait);
        }
        // Nothing costs nothing, whatever is left.
        assert_eq!(budget.take("d", Cost::default(), now), Ok(()));
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
