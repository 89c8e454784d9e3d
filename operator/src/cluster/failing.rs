//! Which watches fail, and since when.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Kinds whose watch fails, since when, ms: that another kind's works says nothing of them.
#[derive(Debug, Default)]
pub struct Failing(Mutex<BTreeMap<String, i64>>);

impl Failing {
    // A panic elsewhere cannot leave a map half changed.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn failed(&self, kind: &str, now_ms: i64) {
        self.lock().entry(kind.to_owned()).or_insert(now_ms);
    }

    pub fn works(&self, kind: &str) {
        self.lock().remove(kind);
    }

    /// The one that fails longest, and since when.
    pub fn oldest(&self) -> Option<(String, i64)> {
        let failing = self.lock();
        failing.iter().min_by_key(|(_, since_ms)| **since_ms).map(|(kind, since)| (kind.clone(), *since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_fails_is_not_hidden_by_those_that_work() {
        let failing = Failing::default();
        assert_eq!(failing.oldest(), None);
        failing.failed("Node", 10);
        failing.failed("Blade", 20);
        failing.failed("Node", 30);
        failing.works("Tranche");
        assert_eq!(failing.oldest(), Some(("Node".to_owned(), 10)), "since its first failure");
        failing.works("Node");
        assert_eq!(failing.oldest(), Some(("Blade".to_owned(), 20)));
        failing.works("Blade");
        assert_eq!(failing.oldest(), None);
    }
}
