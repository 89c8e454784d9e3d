//! The runs' objects by their blade: what people call theirs says nothing of it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Names of the objects, by blade.
#[derive(Debug, Default)]
pub struct Runs(Mutex<HashMap<String, BTreeSet<String>>>);

impl Runs {
    // A panic elsewhere cannot leave a map half changed.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, BTreeSet<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn insert(&self, blade: &str, name: String) {
        self.lock().entry(blade.to_owned()).or_default().insert(name);
    }

    pub fn remove(&self, blade: &str, name: &str) {
        let mut runs = self.lock();
        if let Some(names) = runs.get_mut(blade) {
            names.remove(name);
            if names.is_empty() {
                runs.remove(blade);
            }
        }
    }

    /// Drops whatever is not there any more.
    pub fn keep(&self, is_there: impl Fn(&str) -> bool) {
        self.lock().retain(|_, names| {
            names.retain(|name| is_there(name));
            !names.is_empty()
        });
    }

    /// Those of one blade, in the order of their names.
    pub fn of(&self, blade: &str) -> BTreeSet<String> {
        self.lock().get(blade).cloned().unwrap_or_default()
    }

    /// Blades that have any.
    pub fn blades(&self) -> BTreeSet<String> {
        self.lock().keys().cloned().collect()
    }
}
