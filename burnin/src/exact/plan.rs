//! Which operands keep every partial sum exact, and which of them to run.
//!
//! An accumulator with p significand bits holds every integer up to 2^p. If |a| ≤ m_a, |b| ≤ m_b and at most
//! K products are not zero, every partial sum of every subset in every order is at most K·m_a·m_b. So
//! **K·m_a·m_b ≤ 2^p** makes the result independent of order, tiling, split-K and chip, and equal to the
//! integer result. Scaling a row of A or a column of B by a power of two only moves exponents.

use super::pattern::{Operands, mix64};
use crate::suite::GemmFormat;

/// Inner dimensions are multiples of it (the kernels' rule).
pub const K_STEP: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Uniform in -m..=m.
    Symmetric,
    /// Uniform in 1..=m: sums climb to the bound, every carry is used.
    SameSign,
    /// Alternating bits, turned and complemented from element to element: most mantissa bits toggle each step.
    Rotating,
    /// Symmetric, with each row and column scaled by its own power of two: the exponent logic works too.
    Scaled,
}

impl Pattern {
    pub fn as_str(self) -> &'static str {
        match self {
            Pattern::Symmetric => "symmetric",
            Pattern::SameSign => "same sign",
            Pattern::Rotating => "rotating bits",
            Pattern::Scaled => "scaled rows",
        }
    }
}

/// Operands whose GEMM is exact in an accumulator of `p` bits. Only [`ExactCase::new`] makes one, and it checks the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExactCase {
    pub format: GemmFormat,
    /// Significand bits of the accumulator that the bound was proved for.
    pub p: u32,
    /// Inner dimension, a multiple of [`K_STEP`].
    pub k: usize,
    /// Positions of k that are not zero (the same for all rows, chosen by seed).
    pub active: usize,
    /// Largest magnitude in A and in B.
    pub m_a: i64,
    pub m_b: i64,
    pub pattern: Pattern,
}

/// Operands that an accumulator of that width could round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotExact {
    #[error("{active} products of up to {m_a} x {m_b} can pass 2^{p}, the accumulator would round")]
    Bound { active: usize, m_a: i64, m_b: i64, p: u32 },
    #[error("the format holds the integers up to {limit} only, not {m}")]
    Element { m: i64, limit: i64 },
    #[error("k = {k}: a multiple of {K_STEP} with 1 to k active positions is needed")]
    Shape { k: usize },
    #[error("integers cannot be scaled by powers of two")]
    Scale,
}

impl ExactCase {
    pub fn new(
        format: GemmFormat,
        p: u32,
        k: usize,
        active: usize,
        m_a: i64,
        m_b: i64,
        pattern: Pattern,
    ) -> Result<ExactCase, NotExact> {
        if k == 0 || !k.is_multiple_of(K_STEP) || active == 0 || active > k {
            return Err(NotExact::Shape { k });
        }
        let limit = format.contiguous();
        for m in [m_a, m_b] {
            if !(1..=limit).contains(&m) {
                return Err(NotExact::Element { m, limit });
            }
        }
        if active as i128 * i128::from(m_a) * i128::from(m_b) > 1i128 << p.min(62) {
            return Err(NotExact::Bound { active, m_a, m_b, p });
        }
        if pattern == Pattern::Scaled && format.scale_range() == 0 {
            return Err(NotExact::Scale);
        }
        Ok(ExactCase { format, p, k, active, m_a, m_b, pattern })
    }

    /// The operands for a tile of `rows`×`columns`; equal seeds give equal operands.
    pub fn operands(&self, rows: usize, columns: usize, seed: u64) -> Operands {
        Operands::generate(self, rows, columns, seed)
    }

    /// What sets this case's operands apart from those of another case with the same seed.
    pub(super) fn salt(&self) -> u64 {
        [self.k as u64, self.active as u64, self.m_a as u64, self.m_b as u64, self.pattern as u64]
            .into_iter()
            .fold(0, |salt, part| mix64(salt ^ part))
    }
}

impl std::fmt::Display for ExactCase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} k={} |a|<={} |b|<={}", self.pattern.as_str(), self.k, self.m_a, self.m_b)?;
        if self.active < self.k { write!(f, " at {} positions", self.active) } else { Ok(()) }
    }
}

/// The cases worth running for an accumulator of `p` bits and an inner dimension up to `max_k`, most telling
/// first; one round of a test runs one of them. Never empty for p ≥ 6 and max_k ≥ 64.
pub fn exact_plan(format: GemmFormat, p: u32, max_k: usize) -> Vec<ExactCase> {
    let p = p.min(format.accumulator().significand());
    let room = 1i64 << p.min(62);
    let limit = format.contiguous();
    let k = (max_k / K_STEP * K_STEP).max(K_STEP);
    let root = |k: usize| ((room / k as i64) as f64).sqrt() as i64;
    let mut cases: Vec<ExactCase> = Vec::new();
    let mut add = |k: usize, active: usize, m_a: i64, m_b: i64, pattern: Pattern| {
        let case = ExactCase::new(format, p, k, active, m_a.min(limit), m_b.min(limit), pattern);
        cases.extend(case.ok().filter(|case| !cases.contains(case)));
    };
    // One side with its whole mantissa, the other as wide as the bound leaves: over all of k when that is at
    // least one, else over as many positions as fit.
    let wide = |k: usize| {
        let m_a = limit.min(room / k as i64);
        (m_a, (room / (k as i64 * m_a.max(1))).max(1))
    };
    let (m_a, m_b) = wide(k);
    add(k, k, m_a, m_b, Pattern::Rotating);
    add(k, k, m_b, m_a, Pattern::Scaled);
    add(k, k, root(k), root(k), Pattern::SameSign);
    add(k, k, root(k), root(k), Pattern::Symmetric);
    // Both sides with their whole mantissa and few products: the short-K corner, spread over the whole of k.
    let few = |k: usize| ((room / (limit * limit).max(1)) as usize).clamp(1, k);
    add(k, few(k), limit, limit, Pattern::Rotating);
    add(k, few(k), limit, limit, Pattern::Scaled);
    // A short inner dimension, where the widest operands fit without zeros.
    add(K_STEP, K_STEP, root(K_STEP), root(K_STEP), Pattern::Rotating);
    let (m_a, m_b) = wide(K_STEP);
    add(K_STEP, K_STEP, m_b, m_a, Pattern::Symmetric);
    // An accumulator too narrow for all of k.
    if cases.is_empty() {
        let active = (room as usize).min(k);
        cases.extend(ExactCase::new(format, p, k, active, 1, 1, Pattern::SameSign));
    }
    cases
}
