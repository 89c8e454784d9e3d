//! The spool: evidence on its way to the operator, on disk until the operator has stored it.
//!
//! Items are appended to segment files and forgotten when they are acknowledged. What it promises:
//! - An item that was appended survives the end of this process at any instruction, since it was handed to the kernel
//!   before `append` returned. It survives a power cut from the next [`Spool::sync`] on; the agent calls that for a
//!   finding within a second, for details every half minute. A record that was cut off in the middle is cut away when
//!   the spool is opened, and counted.
//! - `seq` is never used twice: blocks of it are reserved on disk before the first of a block is used. If that memory
//!   is lost, the stream gets a new id, and the records that are left are sent under it.
//! - The segments never take more than `max_bytes` (one that is being written anew lies beside them for a moment, a
//!   sixteenth of that at most). When they would, the oldest details go first and are counted. If
//!   findings alone are too much, each (code, device) keeps its latest state only. If even that is too much, the
//!   oldest findings go and are counted apart: a person has to act.
//! - A disk that is full or broken keeps the latest findings in memory, up to [`MAX_IN_MEMORY`], until it can be
//!   written again.

mod fit;
mod meta;
mod segment;
mod shrink;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use whetstone_model::wire::{Item, ItemBody};

use fit::fit;
use meta::Meta;
use segment::{FILE_HEADER, Found, Segment};

/// Findings that wait in memory at most while the disk cannot be written.
pub const MAX_IN_MEMORY: usize = 2_000;
/// `seq` that is reserved at a time; what is left of a block is skipped at the next start.
const RESERVE: u64 = 1 << 16;
/// Smallest and largest segment: small enough to be read into memory, large enough that there are few.
const SEGMENT: (u64, u64) = (16 << 10, 1 << 20);
/// What is acknowledged is remembered this often at least; what is forgotten of it is sent again, to no effect.
const REMEMBER_EVERY: Duration = Duration::from_secs(30);
/// The bounds of `max_bytes`.
pub const MIN_BYTES: u64 = 256 << 10;

#[derive(Debug, thiserror::Error)]
#[error("spool {path}: {what}: {source}", path = .path.display())]
pub struct SpoolError {
    pub path: PathBuf,
    what: &'static str,
    source: io::Error,
}

/// What was found when the spool was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Opened {
    /// The stream is a new one: this is the first start, or the spool's memory was lost.
    pub new_stream: bool,
    /// Records of an earlier stream that are sent again under the new one.
    pub taken_over: u64,
    /// Bytes of records that were cut off.
    pub torn: u64,
}

/// Where an item went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Disk,
    /// The disk cannot be written: it waits in memory.
    Memory,
    /// A detail that found no room.
    Dropped,
    /// A finding that found no room, or has no form that can be sent.
    Lost,
}

/// What the spool holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    pub items: u64,
    /// Of those, in memory only.
    pub in_memory: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Details that had to go, in all of this stream.
    pub dropped: u64,
    /// Findings that had to go, in all of this stream.
    pub lost: u64,
    pub torn: u64,
}

#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    max_bytes: u64,
    meta: Meta,
    segments: VecDeque<Segment>,
    /// The last segment, open for appending.
    active: Option<File>,
    next_index: u64,
    next_seq: u64,
    /// Findings that could not be written, all younger than what is on disk.
    memory: VecDeque<Item>,
    unsynced: bool,
    unsynced_finding: bool,
    remembered: Instant,
}

impl Spool {
    /// Opens the spool in `dir`, or makes it; `max_bytes` is at least [`MIN_BYTES`].
    pub fn open(dir: &Path, max_bytes: u64) -> Result<(Spool, Opened), SpoolError> {
        let fail = |what| move |source| SpoolError { path: dir.to_owned(), what, source };
        fs::create_dir_all(dir).map_err(fail("cannot be made"))?;
        let (mut meta, new_stream) = Meta::open(&dir.join("meta")).map_err(fail("numbers"))?;
        let mut opened = Opened { new_stream, ..Opened::default() };
        let (mut segments, mut orphans, mut next_index) = (VecDeque::new(), Vec::new(), 0);
        for (index, path) in list(dir).map_err(fail("cannot be listed"))? {
            next_index = next_index.max(index + 1);
            match Segment::load(path, &meta.numbers.stream, meta.numbers.acked).map_err(fail("segment"))? {
                Found::Ours { segment, torn } => {
                    opened.torn += torn;
                    segments.push_back(segment);
                }
                Found::Orphan(path) => orphans.push(path),
                Found::Nothing { torn } => opened.torn += torn,
            }
        }
        meta.numbers.torn += opened.torn;
        let highest = segments.iter().map(|segment: &Segment| segment.last).max().unwrap_or(0);
        let next_seq = meta.numbers.reserved.max(highest).max(meta.numbers.acked) + 1;
        let mut spool = Spool {
            dir: dir.to_owned(),
            max_bytes: max_bytes.max(MIN_BYTES),
            meta,
            segments,
            active: None,
            next_index,
            next_seq,
            memory: VecDeque::new(),
            unsynced: false,
            unsynced_finding: false,
            remembered: Instant::now(),
        };
        spool.forget_acked().map_err(fail("segment"))?;
        for path in orphans {
            opened.taken_over += spool.take_over(&path).map_err(fail("segment of an earlier stream"))?;
        }
        Ok((spool, opened))
    }

    /// 32 hex digits.
    pub fn stream(&self) -> String {
        hex::encode(self.meta.numbers.stream)
    }

    /// Up to where the operator has said that everything is stored.
    pub fn told(&self) -> u64 {
        self.meta.numbers.told
    }

    pub fn status(&self) -> Status {
        let numbers = &self.meta.numbers;
        let in_memory = self.memory.len() as u64;
        Status {
            items: self.segments.iter().map(Segment::waiting).sum::<u64>() + in_memory,
            in_memory,
            bytes: self.bytes(),
            dropped: numbers.dropped,
            lost: numbers.lost,
            torn: numbers.torn,
        }
    }

    /// Takes an item in, giving it the next `seq`. Too long texts are cut.
    pub fn append(&mut self, at_ms: i64, body: ItemBody) -> Kept {
        let seq = self.next_seq;
        let item = Item { seq, at_ms, body: fit(body) };
        if self.meta.reserve(seq, RESERVE).is_err() {
            // Not even its own numbers: an item without a safe seq could be taken for another one.
            return self.gone(item.body.is_detail());
        }
        self.next_seq += 1;
        self.write_memory();
        if self.memory.is_empty() && self.write(&item).is_ok() {
            return Kept::Disk;
        }
        self.hold(item)
    }

    /// Makes all that was appended durable.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        self.write_memory();
        let synced = match &self.active {
            Some(file) if self.unsynced => file.sync_data(),
            _ => Ok(()),
        };
        synced.map_err(|source| self.error("sync", source))?;
        (self.unsynced, self.unsynced_finding) = (false, false);
        Ok(())
    }

    /// Whether a finding waits for [`Spool::sync`].
    pub fn finding_waits(&self) -> bool {
        self.unsynced_finding || !self.memory.is_empty()
    }

    /// The oldest items, ascending by `seq`: at most `max_items`, and about `max_bytes` of JSON, but one at the least.
    pub fn batch(&mut self, max_items: usize, max_bytes: usize) -> Result<Vec<Item>, SpoolError> {
        let (acked, mut items, mut bytes) = (self.meta.numbers.acked, Vec::new(), 0);
        let mut full = false;
        let mut unreadable = 0;
        for segment in self.segments.iter().filter(|segment| segment.waiting() > 0) {
            segment::walk(&segment.path, segment.start, |record| {
                if record.seq <= acked {
                    return true;
                }
                bytes += record.json.len() + 1;
                full = items.len() >= max_items || (bytes > max_bytes && !items.is_empty());
                if full {
                    return false;
                }
                match serde_json::from_slice::<Item>(record.json) {
                    Ok(item) => items.push(item),
                    Err(_) => unreadable += 1,
                }
                true
            })
            .map_err(|source| SpoolError {
                path: segment.path.clone(),
                what: "read",
                source,
            })?;
            if full {
                break;
            }
        }
        if items.is_empty() && unreadable > 0 {
            // Whole but of another version of this program: they will not become readable.
            self.meta.numbers.lost += unreadable;
            for segment in std::mem::take(&mut self.segments) {
                self.active = None;
                fs::remove_file(&segment.path).map_err(|source| self.error("remove", source))?;
            }
        }
        for item in self.memory.iter().take(if full { 0 } else { max_items - items.len().min(max_items) }) {
            bytes += segment::encode(item).map_or(0, |record| record.len());
            if bytes > max_bytes && !items.is_empty() {
                break;
            }
            items.push(item.clone());
        }
        Ok(items)
    }

    /// Everything up to `seq` is stored: it is forgotten here.
    pub fn ack(&mut self, seq: u64) -> Result<(), SpoolError> {
        // Nothing that was never given out can be acknowledged.
        let seq = seq.min(self.next_seq - 1);
        self.meta.numbers.told = self.meta.numbers.told.max(seq);
        self.give_up(seq)
    }

    /// Everything up to `seq` is forgotten here, stored or not.
    pub fn give_up(&mut self, seq: u64) -> Result<(), SpoolError> {
        if seq <= self.meta.numbers.acked {
            return Ok(());
        }
        self.meta.numbers.acked = seq;
        while self.memory.front().is_some_and(|item| item.seq <= seq) {
            self.memory.pop_front();
        }
        self.forget_acked().map_err(|source| self.error("forget", source))?;
        if self.remembered.elapsed() >= REMEMBER_EVERY { self.remember() } else { Ok(()) }
    }

    /// Makes the numbers durable: what was acknowledged is not sent again after a restart.
    pub fn remember(&mut self) -> Result<(), SpoolError> {
        self.meta.save().map_err(|source| self.error("numbers", source))?;
        self.remembered = Instant::now();
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    fn error(&self, what: &'static str, source: io::Error) -> SpoolError {
        SpoolError { path: self.dir.clone(), what, source }
    }

    fn gone(&mut self, detail: bool) -> Kept {
        let numbers = &mut self.meta.numbers;
        let (counter, kept) =
            if detail { (&mut numbers.dropped, Kept::Dropped) } else { (&mut numbers.lost, Kept::Lost) };
        *counter += 1;
        kept
    }

    /// Writes one record to the end of the last segment, within the bound.
    fn write(&mut self, item: &Item) -> io::Result<()> {
        let Some(record) = segment::encode(item) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "item over the limit"));
        };
        let size = record.len() as u64;
        if self.bytes() + size + FILE_HEADER > self.max_bytes {
            self.shrink(size + FILE_HEADER);
            if self.bytes() + size + FILE_HEADER > self.max_bytes {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        let segment_size = (self.max_bytes / 16).clamp(SEGMENT.0, SEGMENT.1);
        let full = self.segments.back().is_none_or(|last| last.bytes + size > segment_size);
        if self.active.is_none() || full {
            self.rotate()?;
        }
        let (Some(file), Some(last)) = (&mut self.active, self.segments.back_mut()) else {
            return Err(io::Error::other("no segment"));
        };
        if let Err(error) = file.write_all(&record) {
            // Half of it may be there; if it cannot be cut off now, it is cut off at the next start.
            if file.set_len(last.bytes).is_err() {
                self.active = None;
            }
            return Err(error);
        }
        last.bytes += size;
        last.last = item.seq;
        *(if item.body.is_detail() { &mut last.details } else { &mut last.findings }) += 1;
        self.unsynced = true;
        self.unsynced_finding |= !item.body.is_detail();
        Ok(())
    }

    /// Closes the last segment durably and begins another.
    fn rotate(&mut self) -> io::Result<()> {
        if let Some(file) = &self.active
            && self.unsynced
        {
            file.sync_data()?;
        }
        let (segment, file) = Segment::create(&self.dir, self.next_index, &self.meta.numbers.stream)?;
        self.next_index += 1;
        self.segments.push_back(segment);
        self.active = Some(file);
        self.unsynced = true;
        Ok(())
    }

    /// Keeps what could not be written, within bounds.
    fn hold(&mut self, item: Item) -> Kept {
        if item.body.is_detail() {
            return self.gone(true);
        }
        if segment::encode(&item).is_none() {
            return self.gone(false);
        }
        if self.memory.len() >= MAX_IN_MEMORY {
            shrink::latest(&mut self.memory);
        }
        let mut kept = Kept::Memory;
        if self.memory.len() >= MAX_IN_MEMORY {
            self.memory.pop_front();
            kept = self.gone(false);
        }
        self.memory.push_back(item);
        kept
    }

    /// Tries the disk again with what waits in memory.
    fn write_memory(&mut self) {
        while let Some(item) = self.memory.pop_front() {
            if self.write(&item).is_err() {
                self.memory.push_front(item);
                return;
            }
        }
    }

    /// Removes segments of which everything is acknowledged, and the beginning of the one after.
    fn forget_acked(&mut self) -> io::Result<()> {
        let acked = self.meta.numbers.acked;
        loop {
            let only = self.segments.len() == 1;
            let Some(first) = self.segments.front_mut() else { return Ok(()) };
            if first.last > acked {
                return first.forget(acked);
            }
            // One that is still written to stays until it is worth a new file.
            if only && self.active.is_some() && first.bytes < SEGMENT.0 {
                (first.start, first.details, first.findings) = (first.bytes, 0, 0);
                return Ok(());
            }
            fs::remove_file(&first.path)?;
            self.segments.pop_front();
            if only {
                (self.active, self.unsynced) = (None, false);
            }
        }
    }

    /// Sends what is left of another stream under this one.
    fn take_over(&mut self, path: &Path) -> io::Result<u64> {
        let mut items = Vec::new();
        segment::walk(path, FILE_HEADER, |record| {
            items.extend(serde_json::from_slice::<Item>(record.json));
            true
        })?;
        let count = items.len() as u64;
        for item in items {
            self.append(item.at_ms, item.body);
        }
        if let Some(file) = &self.active {
            file.sync_data()?;
        }
        fs::remove_file(path)?;
        Ok(count)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // Nothing is lost without it; it spares the operator some duplicates.
        let _ = self.sync();
        let _ = self.remember();
    }
}

/// The segment files, oldest first; what was half written beside them is removed.
fn list(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.extension().and_then(|end| end.to_str()) {
            Some("partial") => fs::remove_file(&path)?,
            Some("seg") => {
                let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
                if let Ok(index) = u64::from_str_radix(stem, 16) {
                    found.push((index, path));
                }
            }
            _ => {}
        }
    }
    found.sort();
    Ok(found)
}
