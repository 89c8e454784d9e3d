//! How many significand bits does this chip keep while it adds? One launch answers it.
//!
//! Every element of the tile is ±(2^n + 1) for some n, made of products that are all powers of two, with the
//! one beside the large part, before it or after it in k. 2^n + 1 needs n + 1 bits: the largest n up to which
//! every element survives gives p = n + 1. Published: 24 for f16, bf16 and tf32; about 14 for the FP8 pipe of
//! Ada and Hopper; trusted is only what the chip itself shows.

use super::pattern::Operands;
use crate::suite::GemmFormat;

/// Fewer bits than this are no narrow accumulator but a broken one: fp8 pipes keep 13 or 14.
pub const FEWEST_BITS: u32 = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WidthProbe {
    pub operands: Operands,
    /// n of each element, row-major; element = sign · (2^n + 1).
    exponents: Vec<u32>,
    negative: Vec<bool>,
}

/// A result that no accumulator width explains.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum ProbeError {
    #[error("the result has {got} elements, the probe {expected}")]
    Size { got: usize, expected: usize },
    #[error("2^{n} + 1 came back as {got}: no accumulator is that narrow")]
    TooNarrow { n: u32, got: f64 },
}

impl WidthProbe {
    /// A probe for a tile of `rows`×`columns` with inner dimension `k` (a multiple of 64). `None` for integers,
    /// whose accumulator wraps exactly and has no width to measure.
    pub fn new(format: GemmFormat, rows: usize, columns: usize, k: usize) -> Option<WidthProbe> {
        if format == GemmFormat::S8 || k < 64 {
            return None;
        }
        let top = format.probe_exponent();
        // Repeats of the large product, as a power of two: fp8 needs them to reach beyond 2^16.
        let most_repeats = (k / 4).ilog2().min(9);
        let (mut a, mut b) = (vec![0i32; rows * k], vec![0i32; columns * k]);
        let (mut row_n, mut column_n) = (Vec::new(), Vec::new());
        for row in 0..rows {
            let (placement, rest) = (row % 3, row / 3);
            let exponent = if rest % 2 == 0 { 0 } else { top };
            let repeats = (rest as u32 / 2) % (most_repeats + 1);
            row_n.push(exponent + repeats);
            let a = &mut a[row * k..(row + 1) * k];
            // Places of the one: 1 (beside or before the large part) or k-1 (after it). Of the large part:
            // from 0 upwards, or from k-2 downwards.
            a[if placement == 1 { k - 1 } else { 1 }] = 1;
            let large = (0..k - 1).filter(|x| *x != 1);
            let places: Vec<usize> = if placement == 2 {
                large.rev().take(1 << repeats).collect()
            } else {
                large.take(1 << repeats).collect()
            };
            places.into_iter().for_each(|x| a[x] = 1 << exponent);
        }
        let mut negative_column = Vec::new();
        for column in 0..columns {
            let exponent = column as u32 % (top + 1);
            let negative = (column as u32 / (top + 1)) % 2 == 1;
            column_n.push(exponent);
            negative_column.push(negative);
            let sign = if negative { -1 } else { 1 };
            let b = &mut b[column * k..(column + 1) * k];
            b.fill(sign * (1 << exponent));
            b[1] = sign;
            b[k - 1] = sign;
        }
        let pairs = |f: &dyn Fn(usize, usize) -> u32| -> Vec<u32> {
            (0..rows * columns).map(|i| f(i / columns, i % columns)).collect()
        };
        let exponents = pairs(&|row, column| row_n[row] + column_n[column]);
        let negative = (0..rows * columns).map(|i| negative_column[i % columns]).collect();
        let operands = Operands {
            format,
            rows,
            columns,
            k,
            a,
            b,
            row_exponents: vec![0; rows],
            column_exponents: vec![0; columns],
        };
        Some(WidthProbe { operands, exponents, negative })
    }

    /// p from the accumulator bits of the whole tile: at most the width of the stored type, and a lower bound
    /// where the probe could not reach further.
    pub fn width(&self, results: &[u64]) -> Result<u32, ProbeError> {
        if results.len() != self.exponents.len() {
            return Err(ProbeError::Size { got: results.len(), expected: self.exponents.len() });
        }
        let accumulator = self.operands.format.accumulator();
        let stored = accumulator.significand();
        let reach = self.exponents.iter().copied().max().unwrap_or(0);
        let mut lost: Option<(u32, f64)> = None;
        for ((n, negative), bits) in self.exponents.iter().zip(&self.negative).zip(results) {
            let magnitude = (1i64 << n.min(&62)) + 1;
            let exact = accumulator.bits(if *negative { -magnitude } else { magnitude }, 0);
            if exact != Some(*bits) && lost.is_none_or(|(least, _)| *n < least) {
                lost = Some((*n, accumulator.value(*bits)));
            }
        }
        match lost {
            Some((n, got)) if n < FEWEST_BITS => Err(ProbeError::TooNarrow { n, got }),
            Some((n, _)) => Ok(n.min(stored)),
            None => Ok((reach + 1).min(stored)),
        }
    }
}
