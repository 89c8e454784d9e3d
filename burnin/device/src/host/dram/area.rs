//! A piece of memory under test.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::lines::{self, Pattern};
use crate::host::bench::{MAX_FINDINGS, Tap};
use crate::host::pages::{Pages, bytes_of};

/// Words of the block that [`lines`] compares at a time.
const BLOCK: usize = 512;

pub struct Area(Pages<u64>);

/// The first wrong word of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    address: u64,
    physical: Option<u64>,
    expected: u64,
    got: u64,
    /// Read once more from memory, past the caches; `None` if it was overwritten by then.
    again: Option<u64>,
    /// Wrong words in its 4 KiB block; 0 if the second look found none.
    words: usize,
}

impl Wrong {
    #[cfg(test)]
    pub fn flipped(&self) -> u64 {
        self.expected ^ self.got
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wrong { address, physical, expected, got, again, words } = self;
        write!(f, "address {address:#x}")?;
        match physical {
            Some(physical) => write!(f, " (physical {physical:#x})")?,
            None => write!(f, " (physical address not readable)")?,
        }
        if *words == 0 {
            return write!(
                f,
                " and the 4 KiB from there were wrong when first read, and right when read again"
            );
        }
        write!(f, " expected {expected:#018x}, got {got:#018x}, flipped {:#x}", expected ^ got)?;
        match again {
            Some(again) if again == got => write!(f, ", the same when read again")?,
            Some(again) if again == expected => write!(f, ", right when read again")?,
            Some(again) => write!(f, ", {again:#018x} when read again")?,
            None => {}
        }
        if *words > 1 { write!(f, ", {words} words of this 4 KiB wrong") } else { Ok(()) }
    }
}

impl Area {
    /// `bytes` is a multiple of 8 KiB. Real at once, near the core that asks.
    pub fn new(bytes: u64) -> io::Result<Area> {
        Ok(Area(Pages::populated(usize::try_from(bytes / 8).map_err(|_| io::ErrorKind::OutOfMemory)?)?))
    }

    pub fn bytes(&self) -> u64 {
        self.0.len() as u64 * 8
    }

    fn base(&self) -> u64 {
        self.0.as_ptr().addr() as u64
    }

    pub fn write(&mut self, pattern: Pattern, key: u64, streaming: bool) {
        let base = self.base();
        lines::write(pattern, key, &mut self.0, base, streaming);
    }

    pub fn tap(&mut self, tap: &dyn Tap, unit: &str) {
        tap.produced(unit, bytes_of(&mut self.0));
    }

    pub fn verify(&self, pattern: Pattern, key: u64) -> Vec<Wrong> {
        compare(pattern, key, &self.0, self.base())
    }

    /// Checks for `expected` in every word and leaves its inverse.
    pub fn invert(&mut self, expected: u64, downwards: bool) -> Vec<Wrong> {
        let base = self.base();
        let blocks = lines::invert(&mut self.0, expected, downwards, MAX_FINDINGS);
        let wrong = blocks
            .iter()
            .filter_map(|(start, held)| first_wrong(held, |_| expected, base + 8 * *start as u64));
        wrong.collect()
    }

    /// The lower half over the upper one.
    pub fn copy_half(&mut self) {
        let middle = self.0.len() / 2;
        let (from, to) = self.0.split_at_mut(middle);
        lines::copy(from, to);
    }

    /// Both halves against the pattern that was written to the lower one.
    pub fn verify_halves(&self, pattern: Pattern, key: u64) -> Vec<Wrong> {
        let (lower, upper) = self.0.split_at(self.0.len() / 2);
        let mut wrong = compare(pattern, key, lower, self.base());
        wrong.extend(compare(pattern, key, upper, self.base()));
        wrong
    }
}

/// `words` against the pattern as if they began at address `base` (a copy still holds what its source's place says).
fn compare(pattern: Pattern, key: u64, words: &[u64], base: u64) -> Vec<Wrong> {
    let mut found = Vec::new();
    let mut from = 0;
    while found.len() < MAX_FINDINGS
        && let Some(start) = lines::first_wrong_block(pattern, key, words, base, from)
    {
        let block = &words[start..(start + BLOCK).min(words.len())];
        let address = block.as_ptr().addr() as u64;
        let expected = |i: usize| pattern.word(key, base + 8 * (start + i) as u64);
        let wrong = first_wrong(block, expected, address).map(|wrong| {
            let place = &block[((wrong.address - address) / 8) as usize];
            Wrong { again: Some(read_again(place)), ..wrong }
        });
        // Right on the second look: the first one was wrong, in the cache or on the way.
        found.push(wrong.unwrap_or(Wrong {
            address,
            physical: physical(address),
            expected: expected(0),
            got: expected(0),
            again: None,
            words: 0,
        }));
        from = start + BLOCK;
        if from >= words.len() {
            break;
        }
    }
    found
}

fn first_wrong(held: &[u64], expected: impl Fn(usize) -> u64, address: u64) -> Option<Wrong> {
    let differs = |(i, got): (usize, &u64)| (expected(i) != *got).then_some((i, *got));
    let mut wrong = held.iter().enumerate().filter_map(differs);
    let (i, got) = wrong.next()?;
    let at = address + 8 * i as u64;
    let words = 1 + wrong.count();
    Some(Wrong { address: at, physical: physical(at), expected: expected(i), got, again: None, words })
}

/// The word as memory has it, not as a cache does.
fn read_again(word: &u64) -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE2 is part of x86-64; flushing a line that we may read changes no content.
    unsafe {
        std::arch::x86_64::_mm_clflush(std::ptr::from_ref(word).cast());
        std::arch::x86_64::_mm_mfence();
    }
    // SAFETY: a reference is valid to read; volatile, so that the value is not the one read before.
    unsafe { std::ptr::from_ref(word).read_volatile() }
}

/// Where an address lies in physical memory; the kernel tells root only.
fn physical(address: u64) -> Option<u64> {
    let page = rustix::param::page_size() as u64;
    let mut entry = [0; 8];
    let pagemap = File::open("/proc/self/pagemap").ok()?;
    pagemap.read_exact_at(&mut entry, address / page * 8).ok()?;
    let entry = u64::from_ne_bytes(entry);
    // Bit 63: present; bits 0-54: frame number, zero without the right to see it (kernel's pagemap.rst).
    let frame = entry & ((1 << 55) - 1);
    (entry >> 63 == 1 && frame != 0).then(|| frame * page + address % page)
}
