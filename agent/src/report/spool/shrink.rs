//! What goes when there is no room: details first, then states that later ones replace, then the oldest findings.

use std::collections::{HashSet, VecDeque};

use sha2::{Digest as _, Sha256};
use whetstone_model::evidence::Finding;
use whetstone_model::wire::{Item, ItemBody};

use super::Spool;
use super::segment::Segment;

/// What tells two findings apart, as 16 bytes, so that a set of a million of them is small. `None` for a detail.
type Key = [u8; 16];

fn key(body: &ItemBody) -> Option<Key> {
    let of = |sort: u8, finding: &Finding| {
        let mut hash = Sha256::new();
        hash.update([sort]);
        hash.update(finding.code.as_bytes());
        hash.update([0]);
        hash.update(finding.device.as_ref().map_or("", |device| device.as_str()).as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&hash.finalize()[..16]);
        key
    };
    match body {
        // A state that came and one that went are the same state.
        ItemBody::Appeared { finding } | ItemBody::Cleared { finding } => Some(of(0, finding)),
        ItemBody::Kernel { finding, .. } => Some(of(1, finding)),
        ItemBody::Reading { .. } | ItemBody::Note { .. } => None,
    }
}

/// Keeps the latest of each state.
pub(super) fn latest(items: &mut VecDeque<Item>) {
    let mut seen = HashSet::new();
    let mut keep: VecDeque<Item> = VecDeque::with_capacity(items.len());
    while let Some(item) = items.pop_back() {
        if key(&item.body).is_none_or(|key| seen.insert(key)) {
            keep.push_front(item);
        }
    }
    *items = keep;
}

impl Spool {
    /// Makes room for `size` bytes within the bound, as far as that is possible.
    pub(super) fn shrink(&mut self, size: u64) {
        let stream = self.meta.numbers.stream;
        let before = self.meta.numbers;
        let mut at = 0;
        while self.bytes() + size > self.max_bytes && at < self.segments.len() {
            if self.segments[at].details > 0 {
                if at + 1 == self.segments.len() {
                    // The last one is no longer written to; the next record begins another.
                    self.close();
                }
                self.drop_details(at, &stream);
            }
            if self.segments.get(at).is_some_and(|segment| segment.waiting() == 0)
                && at + 1 < self.segments.len()
            {
                self.remove(at);
            } else {
                at += 1;
            }
        }
        let findings_alone = self.bytes();
        if findings_alone + size > self.max_bytes {
            self.keep_latest(&stream);
            // If that brings next to nothing, the next finding would cost the same work again.
            if self.bytes() + self.max_bytes / 16 > findings_alone {
                self.drop_oldest(self.max_bytes - self.max_bytes / 4);
            }
        }
        if self.meta.numbers != before {
            // The counts are of what is gone already; a disk that does not take them now takes them later.
            let _ = self.remember();
        }
    }

    /// Findings too: the oldest segments go until the rest takes `limit` bytes at most.
    fn drop_oldest(&mut self, limit: u64) {
        while self.bytes() > limit {
            let Some(oldest) = self.segments.front() else { return };
            let (findings, details) = (oldest.findings, oldest.details);
            if !self.remove(0) {
                return;
            }
            self.meta.numbers.lost += findings;
            self.meta.numbers.dropped += details;
        }
    }

    fn close(&mut self) {
        if let Some(file) = self.active.take() {
            let _ = file.sync_data();
        }
        self.unsynced = false;
    }

    fn drop_details(&mut self, at: usize, stream: &[u8; 16]) {
        let details = self.segments[at].details;
        // A file of details alone needs no room to go.
        if self.segments[at].findings == 0 {
            if self.remove(at) {
                self.meta.numbers.dropped += details;
            }
        } else if self.segments[at].rewrite(stream, |record| !record.detail).is_ok() {
            self.meta.numbers.dropped += details;
        }
    }

    /// Of each state the latest only, over all segments.
    fn keep_latest(&mut self, stream: &[u8; 16]) {
        self.close();
        let mut seen = HashSet::new();
        for segment in self.segments.iter_mut().rev() {
            thin(segment, stream, &mut seen);
        }
        self.segments.retain(|segment| segment.waiting() > 0 || std::fs::remove_file(&segment.path).is_err());
    }

    fn remove(&mut self, at: usize) -> bool {
        let Some(segment) = self.segments.get(at) else { return false };
        if at + 1 == self.segments.len() {
            (self.active, self.unsynced) = (None, false);
        }
        let removed = std::fs::remove_file(&segment.path).is_ok();
        if removed {
            self.segments.remove(at);
        }
        removed
    }
}

/// Removes from `segment` what a later record replaces; `seen` holds the states of all later segments.
fn thin(segment: &mut Segment, stream: &[u8; 16], seen: &mut HashSet<Key>) {
    // Backwards within the segment too: its records are read first, then judged from the last on.
    let mut keys: Vec<(u64, Option<Key>)> = Vec::new();
    let read = super::segment::walk(&segment.path, segment.start, |record| {
        let item = serde_json::from_slice::<Item>(record.json);
        keys.push((record.seq, item.ok().and_then(|item| key(&item.body))));
        true
    });
    if read.is_err() {
        return;
    }
    let replaced: HashSet<u64> = keys
        .iter()
        .rev()
        .filter(|(_, key)| key.is_some_and(|key| !seen.insert(key)))
        .map(|(seq, _)| *seq)
        .collect();
    if !replaced.is_empty() {
        let _ = segment.rewrite(stream, |record| !replaced.contains(&record.seq));
    }
}
