//! Seeded operands: integers, scaled by powers of two per row and per column.

use super::plan::{ExactCase, Pattern};
use crate::suite::GemmFormat;

/// The finaliser of SplitMix64: a bijection of 64-bit words, the same as in the kernels.
pub fn mix64(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// 2^64 divided by the golden ratio: SplitMix64's step.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64: small, seeded, the same on every machine.
#[derive(Debug, Clone)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix64(self.0)
    }

    /// Uniform in `0..bound` (bound > 0; the bias of 2^-32 at these bounds does not matter for patterns).
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound.max(1))) >> 64) as u64
    }

    /// Uniform in `low..=high`.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below(high.abs_diff(low) + 1) as i64
    }
}

/// Operands of D = A·Bᵀ: A is `rows`×`k`, B is `columns`×`k`, both row-major.
/// Element (i, x) of A stands for `a[i·k + x] · 2^row_exponents[i]`, of B likewise with `column_exponents`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operands {
    pub format: GemmFormat,
    pub rows: usize,
    pub columns: usize,
    pub k: usize,
    pub a: Vec<i32>,
    pub b: Vec<i32>,
    pub row_exponents: Vec<i32>,
    pub column_exponents: Vec<i32>,
}

impl Operands {
    pub(super) fn generate(case: &ExactCase, rows: usize, columns: usize, seed: u64) -> Operands {
        let mut random = SplitMix64::new(mix64(seed ^ case.salt()));
        let active = active_positions(case.k, case.active, &mut random);
        let a = side(case, rows, case.m_a, &active, &mut random);
        let b = side(case, columns, case.m_b, &active, &mut random);
        let range = i64::from(if case.pattern == Pattern::Scaled { case.format.scale_range() } else { 0 });
        let mut exponents =
            |n: usize| (0..n).map(|_| random.between(-range, range) as i32).collect::<Vec<_>>();
        let (row_exponents, column_exponents) = (exponents(rows), exponents(columns));
        Operands { format: case.format, rows, columns, k: case.k, a, b, row_exponents, column_exponents }
    }

    /// A as the kernel reads it.
    pub fn a_bytes(&self) -> Vec<u8> {
        encode(self.format, &self.a, &self.row_exponents, self.k)
    }

    /// B as the kernel reads it.
    pub fn b_bytes(&self) -> Vec<u8> {
        encode(self.format, &self.b, &self.column_exponents, self.k)
    }

    /// A's values as doubles (exact), row-major.
    pub fn a_values(&self) -> Vec<f64> {
        values(&self.a, &self.row_exponents, self.k)
    }

    /// B's values as doubles (exact), row-major, `columns`×`k`.
    pub fn b_values(&self) -> Vec<f64> {
        values(&self.b, &self.column_exponents, self.k)
    }
}

fn values(integers: &[i32], exponents: &[i32], k: usize) -> Vec<f64> {
    integers.iter().enumerate().map(|(i, v)| f64::from(*v) * 2f64.powi(exponents[i / k])).collect()
}

fn encode(format: GemmFormat, integers: &[i32], exponents: &[i32], k: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(integers.len() * format.element_bytes());
    for (i, integer) in integers.iter().enumerate() {
        // Always exact: the case's m and scale are within the format's table (tested there).
        let bits = format.encode(i64::from(*integer), exponents[i / k]).unwrap_or(0);
        format.push(bits, &mut out);
    }
    out
}

/// `count` of the positions `0..k`, in ascending order.
fn active_positions(k: usize, count: usize, random: &mut SplitMix64) -> Vec<bool> {
    if count >= k {
        return vec![true; k];
    }
    let mut positions: Vec<usize> = (0..k).collect();
    for i in 0..count {
        let other = i + random.below((k - i) as u64) as usize;
        positions.swap(i, other);
    }
    let mut active = vec![false; k];
    positions[..count].iter().for_each(|p| active[*p] = true);
    active
}

fn side(case: &ExactCase, rows: usize, m: i64, active: &[bool], random: &mut SplitMix64) -> Vec<i32> {
    let mut out = Vec::with_capacity(rows * case.k);
    // Width of the largest all-ones integer within m, for the rotating pattern.
    let width = 63 - (m + 1).leading_zeros();
    let mask = (1u64 << width) - 1;
    for row in 0..rows {
        for (x, active) in active.iter().enumerate() {
            let integer = match case.pattern {
                _ if !active => 0,
                Pattern::Symmetric | Pattern::Scaled => random.between(-m, m),
                Pattern::SameSign => random.between(1, m),
                Pattern::Rotating => {
                    // 0101… turned by one bit per pair, complemented on every second element: neighbours in k
                    // differ in every mantissa bit.
                    let turn = ((row + x / 2) as u32) % width.max(1);
                    let base = 0x5555_5555_5555_5555u64 & mask;
                    let turned = ((base << turn) | (base >> (width - turn).min(63))) & mask;
                    let word = if x % 2 == 1 { !turned & mask } else { turned };
                    let sign = if random.next_u64() & 1 == 1 { -1 } else { 1 };
                    sign * word as i64
                }
            };
            out.push(integer as i32);
        }
    }
    out
}

/// `rows`×`k` random finite elements of the format, as the kernel reads them: for the layer whose results are
/// only compared with each other.
pub fn full_range_bytes(format: GemmFormat, rows: usize, k: usize, seed: u64) -> Vec<u8> {
    let mut random = SplitMix64::new(seed);
    let mut out = Vec::with_capacity(rows * k * format.element_bytes());
    for _ in 0..rows * k {
        format.push(format.random_bits(random.next_u64()), &mut out);
    }
    out
}
