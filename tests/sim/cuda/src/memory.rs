//! HBM of one simulated GPU: mapped host memory that is handed out first-fit from its start, so that the place of a
//! planted bad cell is the place in the test's allocation.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

use crate::error::{Error, Result};

/// As the real driver aligns.
const ALIGN: u64 = 256;

pub struct Memory {
    base: u64,
    bytes: u64,
    /// Start → length, as offsets.
    allocated: BTreeMap<u64, u64>,
}

impl Memory {
    /// Maps `bytes`; the host gives pages as they are touched.
    pub fn map(bytes: u64) -> Result<Memory> {
        let length = usize::try_from(bytes.max(ALIGN)).map_err(|_| Error::OUT_OF_MEMORY)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice; it lives until the process ends.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, flags)
        };
        let base = base.map_err(|_| Error::OUT_OF_MEMORY)?;
        Ok(Memory { base: base.expose_provenance() as u64, bytes, allocated: BTreeMap::new() })
    }

    pub fn free_bytes(&self) -> u64 {
        self.bytes - self.allocated.values().sum::<u64>()
    }

    /// Address of `bytes` new bytes.
    pub fn allocate(&mut self, bytes: u64) -> Result<u64> {
        if bytes == 0 {
            return Err(Error::INVALID_VALUE);
        }
        let length = bytes.checked_next_multiple_of(ALIGN).ok_or(Error::OUT_OF_MEMORY)?;
        let mut at = 0;
        for (start, used) in &self.allocated {
            if start - at >= length {
                break;
            }
            at = start + used;
        }
        if self.bytes - at < length {
            return Err(Error::OUT_OF_MEMORY);
        }
        self.allocated.insert(at, length);
        Ok(self.base + at)
    }

    /// Length of what was freed.
    pub fn free(&mut self, address: u64) -> Result<u64> {
        let offset = address.checked_sub(self.base).ok_or(Error::INVALID_VALUE)?;
        self.allocated.remove(&offset).ok_or(Error::INVALID_VALUE)
    }

    /// True if the address lies in this GPU's memory, allocated or not.
    pub fn holds(&self, address: u64) -> bool {
        address >= self.base && address - self.base < self.bytes
    }

    /// `address..address + bytes` must lie in one allocation.
    pub fn check(&self, address: u64, bytes: u64) -> Result<()> {
        let offset = address.checked_sub(self.base).ok_or(Error::INVALID_VALUE)?;
        let (start, length) = self.allocated.range(..=offset).next_back().ok_or(Error::INVALID_VALUE)?;
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= start + length);
        if inside { Ok(()) } else { Err(Error::INVALID_VALUE) }
    }

    /// Start and length of the allocation that holds `address`.
    pub fn range(&self, address: u64) -> Result<(u64, u64)> {
        self.check(address, 0)?;
        let found = self.allocated.range(..=address - self.base).next_back();
        found.map(|(start, length)| (self.base + start, *length)).ok_or(Error::INVALID_VALUE)
    }

    /// The 64-bit word number `word` of the HBM, if some allocation covers it.
    pub fn word(&self, word: u64) -> Option<&AtomicU64> {
        let address = self.base.checked_add(word.checked_mul(8)?)?;
        self.check(address, 8).ok()?;
        // SAFETY: inside the mapping, which is never unmapped, and 8-byte aligned; atomics allow shared access.
        Some(unsafe { &*std::ptr::with_exposed_provenance::<AtomicU64>(address as usize) })
    }

    /// A cell that cannot hold a 0 in `bit`.
    pub fn stick(&self, word: u64, bit: u32) {
        if let Some(cell) = self.word(word) {
            cell.fetch_or(1 << (bit % 64), Relaxed);
        }
    }

    /// Inverts `bit`; false if no allocation covers the word.
    pub fn invert(&self, word: u64, bit: u32) -> bool {
        self.word(word).map(|cell| cell.fetch_xor(1 << (bit % 64), Relaxed)).is_some()
    }
}
