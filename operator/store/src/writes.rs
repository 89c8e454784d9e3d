//! Writes that find no room: remembered, because a sign of life needs none.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{Any, AnyConnection, Transaction};

use crate::error::StoreError;

/// How the latest writes went; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Writes {
    /// The last one that was refused, and why.
    refused: Arc<Mutex<Option<(Instant, String)>>>,
    recovery: Duration,
}

impl Writes {
    pub(crate) fn new(recovery: Duration) -> Self {
        Writes { refused: Arc::default(), recovery }
    }

    pub(crate) fn of(&self, transaction: Transaction<'static, Any>) -> Write {
        Write { transaction, writes: self.clone() }
    }

    /// Remembers an error if it says that the database takes no writes.
    pub(crate) fn failed(&self, error: &StoreError) {
        if error.refuses_writes() {
            *self.lock() = Some((Instant::now(), error.to_string()));
        }
    }

    fn went_well(&self) {
        let mut refused = self.lock();
        if refused.as_ref().is_some_and(|(at, _)| at.elapsed() >= self.recovery) {
            *refused = None;
        }
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        self.lock().as_ref().map(|(_, why)| why.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Instant, String)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transaction that writes.
pub(crate) struct Write {
    transaction: Transaction<'static, Any>,
    writes: Writes,
}

impl Write {
    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        self.transaction.commit().await?;
        self.writes.went_well();
        Ok(())
    }

    pub(crate) async fn rollback(self) -> Result<(), StoreError> {
        Ok(self.transaction.rollback().await?)
    }
}

impl Deref for Write {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        &self.transaction
    }
}

impl DerefMut for Write {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        &mut self.transaction
    }
}
