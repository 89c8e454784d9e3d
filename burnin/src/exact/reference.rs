//! The one right answer: exact integer GEMM, its digest, and what differs in a wrong tile.

use super::pattern::{GOLDEN, Operands, SplitMix64, mix64};

/// The accumulator bits of every element of D = A·Bᵀ (row-major, zero-extended to 64 bits), by integer
/// arithmetic. With operands of an [`super::ExactCase`] every correct machine has these bits, whatever its order.
pub fn reference(operands: &Operands) -> Vec<u64> {
    let accumulator = operands.format.accumulator();
    let k = operands.k;
    let mut out = Vec::with_capacity(operands.rows * operands.columns);
    for (a, row_exponent) in operands.a.chunks_exact(k).zip(&operands.row_exponents) {
        for (b, column_exponent) in operands.b.chunks_exact(k).zip(&operands.column_exponents) {
            // |sum| ≤ 2^53 by the case's bound, so 64 bits are enough.
            let sum: i64 = a.iter().zip(b).map(|(a, b)| i64::from(*a) * i64::from(*b)).sum();
            // In the bound every sum is representable; a sum that is not would be a bug that the tests look for.
            out.push(accumulator.bits(sum, row_exponent + column_exponent).unwrap_or(u64::MAX));
        }
    }
    out
}

/// The contribution of element `index` (row · columns + column) with accumulator bits `bits`.
pub fn digest_term(index: usize, bits: u64) -> u64 {
    mix64(bits.wrapping_add((index as u64 + 1).wrapping_mul(GOLDEN)))
}

/// The digest of a tile as the kernels compute it: a wrapping sum, so independent of the order of the threads.
/// As `mix64` is a bijection, one wrong element always changes it.
pub fn digest(bits: &[u64]) -> u64 {
    bits.iter().enumerate().fold(0, |sum, (i, bits)| sum.wrapping_add(digest_term(i, *bits)))
}

/// An element of a result that is not what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongElement {
    /// Row · columns + column.
    pub index: usize,
    pub expected: u64,
    pub got: u64,
}

impl WrongElement {
    /// The bits that differ.
    pub fn xor(&self) -> u64 {
        self.expected ^ self.got
    }
}

/// All elements in which two results differ.
pub fn diff(expected: &[u64], got: &[u64]) -> Vec<WrongElement> {
    let pairs = expected.iter().zip(got).enumerate();
    pairs
        .filter(|(_, (expected, got))| expected != got)
        .map(|(index, (expected, got))| WrongElement { index, expected: *expected, got: *got })
        .collect()
}

/// Number of flipped bits in all of them.
pub fn wrong_bits(wrong: &[WrongElement]) -> u32 {
    wrong.iter().map(|w| w.xor().count_ones()).sum()
}

/// Results as the device stores them (little-endian, 4 or 8 bytes each) → zero-extended bits.
pub fn bits_from_bytes(bytes: &[u8], element_bytes: usize) -> Vec<u64> {
    bytes
        .chunks_exact(element_bytes.clamp(1, 8))
        .map(|chunk| chunk.iter().rev().fold(0, |bits, byte| (bits << 8) | u64::from(*byte)))
        .collect()
}

/// Freivalds' check of an integer product modulo 2^64: the rows of `c` (rows×columns) that cannot be the
/// product of `a` (rows×k) and the transpose of `b` (columns×k). Costs O(n²) instead of O(n³).
///
/// The random vector is odd in every place, so a row with exactly one wrong element is always named; several
/// wrong elements in one row cancel with a probability near 2^-63.
pub fn freivalds(a: &[i32], b: &[i32], c: &[i64], k: usize, columns: usize, seed: u64) -> Vec<usize> {
    let mut random = SplitMix64::new(seed);
    let x: Vec<u64> = (0..columns).map(|_| random.next_u64() | 1).collect();
    let mut y = vec![0u64; k];
    for (row, x) in b.chunks_exact(k).zip(&x) {
        for (y, b) in y.iter_mut().zip(row) {
            *y = y.wrapping_add((i64::from(*b) as u64).wrapping_mul(*x));
        }
    }
    let dot = |words: &mut dyn Iterator<Item = (u64, u64)>| {
        words.fold(0u64, |sum, (p, q)| sum.wrapping_add(p.wrapping_mul(q)))
    };
    a.chunks_exact(k)
        .zip(c.chunks_exact(columns))
        .enumerate()
        .filter(|(_, (a, c))| {
            let left = dot(&mut c.iter().map(|c| *c as u64).zip(x.iter().copied()));
            let right = dot(&mut a.iter().map(|a| i64::from(*a) as u64).zip(y.iter().copied()));
            left != right
        })
        .map(|(row, _)| row)
        .collect()
}
