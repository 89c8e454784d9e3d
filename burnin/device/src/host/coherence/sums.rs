//! Read-modify-write operations from all cores on the same words: nothing may get lost.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use super::{Own, Trial};
use crate::host::cores;
use crate::host::stream;

/// Operations of each kind, each core, each round: some 10 ms when all cores fight for the line.
const TIMES: u64 = 20_000;

#[derive(Default)]
struct Words {
    add: Own<AtomicU64>,
    subtract: Own<AtomicU32>,
    xor: Own<AtomicU64>,
    exchange: Own<AtomicU64>,
    /// Neighbours in one word: an operation on one must not touch the other.
    bytes: Own<[AtomicU8; 2]>,
    wide: Own<Wide>,
}

impl Trial<'_> {
    pub(super) fn sums(&self, until: Instant) -> u64 {
        let count = self.cores.len() as u64;
        let mut rounds = 0;
        while Instant::now() < until {
            let words = Words::default();
            let doing = || format!("atomic sums on {count} cores, round {}", rounds + 1);
            let finished = cores::on_each(self.bench, self.cores, &doing, |index, _| {
                (0..TIMES).all(|turn| {
                    words.turn(stream::at(self.bench.seed ^ rounds, (index as u64) * TIMES + turn));
                    turn % 256 != 0 || Instant::now() < until
                })
            });
            if finished.iter().any(|all| *all != Some(true)) {
                return rounds;
            }
            let key = |i| stream::at(self.bench.seed ^ rounds, i);
            let all = count * TIMES;
            let xor = (0..all).map(key).fold(0, |sum, k| sum ^ k);
            let expected = [
                ("sum by fetch-and-add", all, words.add.0.load(Ordering::SeqCst)),
                (
                    "sum by fetch-and-subtract",
                    u64::from(0u32.wrapping_sub(all as u32)),
                    u64::from(words.subtract.0.load(Ordering::SeqCst)),
                ),
                ("sum by fetch-and-xor", xor, words.xor.0.load(Ordering::SeqCst)),
                ("sum by compare-and-exchange", all.wrapping_mul(3), words.exchange.0.load(Ordering::SeqCst)),
                ("sum in the lower byte", all & 0xff, u64::from(words.bytes.0[0].load(Ordering::SeqCst))),
                (
                    "sum in the byte beside it",
                    0u64.wrapping_sub(all) & 0xff,
                    u64::from(words.bytes.0[1].load(Ordering::SeqCst)),
                ),
                ("sum in the lower half of 16 bytes", words.wide.0.expected(all).0, words.wide.0.halves().0),
                ("sum in the upper half of 16 bytes", words.wide.0.expected(all).1, words.wide.0.halves().1),
            ];
            for (what, expected, got) in expected {
                let got = self.seen(what, got);
                if got != expected {
                    let detail = format!(
                        "{what} over {count} cores: expected {expected:#x}, got {got:#x}, flipped {:#x}; which of them lost \
                         it is not known",
                        expected ^ got
                    );
                    self.fault(&self.cores[0], detail);
                }
            }
            rounds += 1;
        }
        rounds
    }
}

impl Words {
    fn turn(&self, key: u64) {
        self.add.0.fetch_add(1, Ordering::Relaxed);
        self.subtract.0.fetch_sub(1, Ordering::Relaxed);
        self.xor.0.fetch_xor(key, Ordering::Relaxed);
        self.bytes.0[0].fetch_add(1, Ordering::Relaxed);
        self.bytes.0[1].fetch_sub(1, Ordering::Relaxed);
        let mut old = self.exchange.0.load(Ordering::Relaxed);
        while let Err(now) = self.exchange.0.compare_exchange_weak(
            old,
            old.wrapping_add(3),
            Ordering::AcqRel,
            Ordering::Relaxed,
        ) {
            old = now;
        }
        self.wide.0.add();
    }
}

/// 16 bytes changed as one: the lower half counts up by one, the upper by an odd constant.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(target_arch = "x86_64")]
#[derive(Default)]
#[repr(align(16))]
struct Wide(std::cell::UnsafeCell<u128>);

// SAFETY: every access to the cell while it is shared is one atomic instruction; it is read plainly only after all
// threads have been joined.
#[cfg(target_arch = "x86_64")]
unsafe impl Sync for Wide {}

#[cfg(target_arch = "x86_64")]
impl Wide {
    fn add(&self) {
        if is_x86_feature_detected!("cmpxchg16b") {
            // SAFETY: the CPU has just said that it has the instruction.
            unsafe { self.exchange() }
        }
    }

    /// # Safety
    /// The CPU has `cmpxchg16b`.
    unsafe fn exchange(&self) {
        let (mut low, mut high) = (0u64, 0u64);
        loop {
            let (found_low, found_high): (u64, u64);
            // SAFETY: the cell is 16 bytes, aligned to 16, and all access to it while it is shared is by this instruction.
            // rbx, which the instruction needs and the compiler keeps to itself, is put back. In assembly, because the
            // compiler's own intrinsic becomes a call into a library that is not linked.
            unsafe {
                std::arch::asm!(
                    "xchg {new_low}, rbx",
                    "lock cmpxchg16b xmmword ptr [rdi]",
                    "mov rbx, {new_low}",
                    new_low = inout(reg) low.wrapping_add(1) => _,
                    in("rcx") high.wrapping_add(STRIDE),
                    inout("rax") low => found_low,
                    inout("rdx") high => found_high,
                    in("rdi") self.0.get(),
                    options(nostack),
                );
            }
            if (found_low, found_high) == (low, high) {
                return;
            }
            (low, high) = (found_low, found_high);
        }
    }

    fn halves(&self) -> (u64, u64) {
        // SAFETY: called after the threads were joined: nobody else has access.
        let value = unsafe { *self.0.get() };
        (value as u64, (value >> 64) as u64)
    }

    fn expected(&self, times: u64) -> (u64, u64) {
        let has = is_x86_feature_detected!("cmpxchg16b");
        if has { (times, STRIDE.wrapping_mul(times)) } else { (0, 0) }
    }
}

/// Elsewhere there is no stable 16-byte exchange: two words stand for it.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Default)]
struct Wide(AtomicU64, AtomicU64);

#[cfg(not(target_arch = "x86_64"))]
impl Wide {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        self.1.fetch_add(STRIDE, Ordering::SeqCst);
    }
    fn halves(&self) -> (u64, u64) {
        (self.0.load(Ordering::SeqCst), self.1.load(Ordering::SeqCst))
    }
    fn expected(&self, times: u64) -> (u64, u64) {
        (times, STRIDE.wrapping_mul(times))
    }
}
