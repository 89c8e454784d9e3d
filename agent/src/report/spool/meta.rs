//! What a spool must remember beside its records: stream, how far `seq` was given out, what was acknowledged, forgotten and
//! lost.
//!
//! Two slots of one file are written in turns and in place: a write that is cut off leaves the other slot, and a
//! full disk does not stop it, since no new block is needed (but on file systems that copy on write).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: &[u8; 8] = b"WSMETA2\n";
/// Of a slot that ends before [`Numbers::told`].
const FORMER: &[u8; 8] = b"WSMETA1\n";
/// One sector each, so that a torn write touches one slot only.
const SLOT: usize = 512;
const USED: usize = 8 + 8 + 16 + 6 * 8 + 4;

/// The remembered numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers {
    pub stream: [u8; 16],
    /// `seq` up to this one may have been used.
    pub reserved: u64,
    /// Up to this one everything is forgotten here: it is stored, or was given up.
    pub acked: u64,
    /// Details that had to go.
    pub dropped: u64,
    /// Findings that had to go: beyond every bound, or unreadable.
    pub lost: u64,
    /// Bytes of records that were cut off.
    pub torn: u64,
    /// Up to this one the operator has said that everything is stored.
    pub told: u64,
}

impl Numbers {
    fn fresh() -> Numbers {
        Numbers { stream: rand::random(), reserved: 0, acked: 0, dropped: 0, lost: 0, torn: 0, told: 0 }
    }

    fn encode(&self, generation: u64) -> [u8; SLOT] {
        let mut slot = [0; SLOT];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            slot[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(MAGIC);
        put(&generation.to_le_bytes());
        put(&self.stream);
        for number in [self.reserved, self.acked, self.dropped, self.lost, self.torn, self.told] {
            put(&number.to_le_bytes());
        }
        let crc = crc32fast::hash(&slot[..USED - 4]);
        slot[USED - 4..USED].copy_from_slice(&crc.to_le_bytes());
        slot
    }

    fn decode(slot: &[u8]) -> Option<(u64, Numbers)> {
        let used = if slot.starts_with(MAGIC) {
            USED
        } else if slot.starts_with(FORMER) {
            USED - 8
        } else {
            return None;
        };
        let slot = slot.get(..used)?;
        let crc = u32::from_le_bytes(slot[used - 4..].try_into().ok()?);
        if crc32fast::hash(&slot[..used - 4]) != crc {
            return None;
        }
        let number = |at: usize| Some(u64::from_le_bytes(slot.get(at..at + 8)?.try_into().ok()?));
        let acked = number(40)?;
        let numbers = Numbers {
            stream: slot[16..32].try_into().ok()?,
            reserved: number(32)?,
            acked,
            dropped: number(48)?,
            lost: number(56)?,
            torn: number(64)?,
            told: if used == USED { number(72)? } else { acked },
        };
        Some((number(8)?, numbers))
    }
}

/// The open file.
#[derive(Debug)]
pub(super) struct Meta {
    file: File,
    generation: u64,
    pub numbers: Numbers,
    /// `reserved` as it is on disk: no `seq` above it may be used.
    safe: u64,
}

impl Meta {
    /// Opens or makes the file; the flag is true where what was there was lost, or nothing was.
    pub fn open(path: &Path) -> io::Result<(Meta, bool)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut slots = [0; 2 * SLOT];
        let mut read = 0;
        while read < slots.len() {
            match file.read_at(&mut slots[read..], read as u64) {
                Ok(0) => break,
                Ok(bytes) => read += bytes,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let found = [&slots[..SLOT], &slots[SLOT..]].into_iter().filter_map(Numbers::decode);
        match found.max_by_key(|(generation, _)| *generation) {
            Some((generation, numbers)) => {
                Ok((Meta { file, generation, numbers, safe: numbers.reserved }, false))
            }
            None => {
                let mut meta = Meta { file, generation: 0, numbers: Numbers::fresh(), safe: 0 };
                // Both slots, so that every later write is in place.
                meta.save()?;
                meta.save()?;
                Ok((meta, true))
            }
        }
    }

    /// Makes `numbers` durable.
    pub fn save(&mut self) -> io::Result<()> {
        let generation = self.generation + 1;
        let at = (generation % 2) * SLOT as u64;
        self.file.write_all_at(&self.numbers.encode(generation), at)?;
        self.file.sync_data()?;
        self.generation = generation;
        self.safe = self.numbers.reserved;
        Ok(())
    }

    /// Makes sure that `seq` will never be given out again, whatever happens after this.
    pub fn reserve(&mut self, seq: u64, ahead: u64) -> io::Result<()> {
        if seq <= self.safe {
            return Ok(());
        }
        let before = self.numbers.reserved;
        self.numbers.reserved = seq + ahead;
        self.save().inspect_err(|_| self.numbers.reserved = before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_is_cut_off_at_any_byte_leaves_the_numbers_of_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta");
        let (mut meta, new) = Meta::open(&path).unwrap();
        assert!(new);
        meta.reserve(1, 99).unwrap();
        meta.numbers.acked = 7;
        meta.save().unwrap();
        let before = (std::fs::read(&path).unwrap(), meta.numbers);
        meta.numbers.acked = 50;
        meta.save().unwrap();
        let after = std::fs::read(&path).unwrap();
        let at = (0..after.len()).find(|i| before.0[*i] != after[*i]).unwrap();
        for cut in at + 1..at + USED - 8 {
            let mut torn = before.0.clone();
            torn[..cut].copy_from_slice(&after[..cut]);
            if torn == after {
                continue;
            }
            std::fs::write(&path, &torn).unwrap();
            let (meta, new) = Meta::open(&path).unwrap();
            assert!(!new);
            assert_eq!(meta.numbers.stream, before.1.stream);
            assert!(meta.numbers.acked == 7 && meta.numbers.reserved == 100, "cut at {cut}: {meta:?}");
        }
        std::fs::write(&path, &after).unwrap();
        assert_eq!(Meta::open(&path).unwrap().0.numbers.acked, 50);
    }

    #[test]
    fn numbers_that_a_former_version_wrote_are_read() {
        let numbers = Numbers { reserved: 100, acked: 7, torn: 5, told: 7, ..Numbers::fresh() };
        let mut slot = numbers.encode(3);
        slot[..8].copy_from_slice(FORMER);
        let crc = crc32fast::hash(&slot[..USED - 12]);
        slot[USED - 12..USED - 8].copy_from_slice(&crc.to_le_bytes());
        slot[USED - 8..].fill(0);
        assert_eq!(Numbers::decode(&slot), Some((3, numbers)));
    }

    #[test]
    fn what_cannot_be_read_is_a_new_stream() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta");
        let first = Meta::open(&path).unwrap().0.numbers.stream;
        assert_eq!(Meta::open(&path).unwrap().0.numbers.stream, first);
        std::fs::write(&path, [0xff; 1024]).unwrap();
        let (meta, new) = Meta::open(&path).unwrap();
        assert!(new && meta.numbers.stream != first);
    }
}
