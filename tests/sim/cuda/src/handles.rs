//! Handles that cross the C interface: numbers that are looked up, never pointers that are believed.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// A lock whose holder died mid-way is still good here: every update is a single step.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All live handles of one kind.
pub struct Handles<T> {
    live: Mutex<(u64, HashMap<u64, Arc<T>>)>,
}

impl<T> Handles<T> {
    /// `first` sets the kinds apart, so that a handle of another kind is not found.
    pub fn new(first: u64) -> Handles<T> {
        Handles { live: Mutex::new((first, HashMap::new())) }
    }

    pub fn add(&self, value: T) -> *mut c_void {
        let mut live = lock(&self.live);
        live.0 += 16;
        let number = live.0;
        live.1.insert(number, Arc::new(value));
        std::ptr::without_provenance_mut(number as usize)
    }

    pub fn get(&self, handle: *mut c_void) -> Result<Arc<T>> {
        lock(&self.live).1.get(&(handle.addr() as u64)).cloned().ok_or(Error::INVALID_HANDLE)
    }

    pub fn remove(&self, handle: *mut c_void) -> Result<Arc<T>> {
        lock(&self.live).1.remove(&(handle.addr() as u64)).ok_or(Error::INVALID_HANDLE)
    }
}
