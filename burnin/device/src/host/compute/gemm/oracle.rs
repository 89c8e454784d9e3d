//! Operands that make a product exact, and the check of every element of it.
//!
//! All operands are integers (times a power of two per row of A) and small enough that every partial sum is an exact
//! number of the accumulator, so the result is the same bits in any order, tiling or unit. The check is Freivalds' over
//! the integers: `C·x = A·(B·x)` with odd random 56-bit `x`, in wrapping 128-bit integer arithmetic, row by row.
//! A single wrong element of a row is always seen (odd `x` is invertible), several at once are missed with a
//! probability below 2^-55. It costs O(n²) on the scalar integer unit, which is not the unit under test.

use crate::host::pages::Plain;
use crate::host::stream;

use super::block::Shape;

/// Largest magnitude of an exact element that the check reads, exclusive: see [`Answer::exact`] for f64.
const LIMIT: i64 = 1 << 51;

/// Wrong elements that are spelt out.
const SPELT: usize = 4;

/// What the operands are: integers from -`limit` to `limit` (A from 0 on, if `unsigned`), times `2^e` for each row of A.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    pub shape: Shape,
    pub limit_a: u32,
    pub limit_b: u32,
    pub unsigned: bool,
    /// Exponents of A's rows run from -`exponents` to `exponents`; 0 for integer formats.
    pub exponents: u32,
    pub seed: u64,
}

/// An operand of a format: made from the integer `value` times `2^exponent`, exactly.
pub trait Operand: Plain {
    fn from_exact(value: i32, exponent: i32) -> Self;
}

/// A result of a format.
pub trait Answer: Plain {
    /// The integer it is when its row's `2^exponent` is taken out, and whether it is one at all: not if it has a fraction, is
    /// too large, not a number, or a negative zero (sums start at +0, so one cannot come about).
    fn exact(self, unscale: f64) -> (i64, bool);
    /// The bits that the exact integer has in this format.
    fn bits_of(value: i64, scale: f64) -> u64;
    fn bits(self) -> u64;
}

impl Operand for f64 {
    fn from_exact(value: i32, exponent: i32) -> f64 {
        f64::from(value) * power_of_two(exponent)
    }
}
impl Operand for f32 {
    fn from_exact(value: i32, exponent: i32) -> f32 {
        (f64::from(value) * power_of_two(exponent)) as f32
    }
}
/// bf16 as its bits: the upper half of the fp32 of the same value (exact up to 8 significant bits).
impl Operand for u16 {
    fn from_exact(value: i32, exponent: i32) -> u16 {
        (f32::from_exact(value, exponent).to_bits() >> 16) as u16
    }
}
impl Operand for u8 {
    fn from_exact(value: i32, _: i32) -> u8 {
        value as u8
    }
}
impl Operand for i8 {
    fn from_exact(value: i32, _: i32) -> i8 {
        value as i8
    }
}
impl Operand for i16 {
    fn from_exact(value: i32, _: i32) -> i16 {
        value as i16
    }
}

impl Answer for f64 {
    #[inline(always)]
    fn exact(self, unscale: f64) -> (i64, bool) {
        // 1.5 * 2^52: adding it leaves the integer in the low mantissa bits, without a conversion instruction.
        const MAGIC: f64 = 6_755_399_441_055_744.0;
        let value = self * unscale;
        let shifted = value + MAGIC;
        let integer = (shifted.to_bits() as i64).wrapping_sub(MAGIC.to_bits() as i64);
        let same = (shifted - MAGIC).to_bits() == value.to_bits();
        (integer, same & (value.abs() < LIMIT as f64))
    }
    fn bits_of(value: i64, scale: f64) -> u64 {
        (value as f64 * scale).to_bits()
    }
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

impl Answer for f32 {
    #[inline(always)]
    fn exact(self, unscale: f64) -> (i64, bool) {
        f64::from(self).exact(unscale)
    }
    fn bits_of(value: i64, scale: f64) -> u64 {
        u64::from(((value as f64 * scale) as f32).to_bits())
    }
    fn bits(self) -> u64 {
        u64::from(self.to_bits())
    }
}

impl Answer for i32 {
    #[inline(always)]
    fn exact(self, _: f64) -> (i64, bool) {
        (i64::from(self), true)
    }
    fn bits_of(value: i64, _: f64) -> u64 {
        u64::from(value as i32 as u32)
    }
    fn bits(self) -> u64 {
        u64::from(self as u32)
    }
}

/// Elements converted at a time: stays in the first-level cache.
const CHUNK: usize = 256;

/// The integers of `values`, and whether all are some; in the widest vectors that convert.
fn integers_of<C: Answer>(values: &[C], unscale: f64, to: &mut [i64; CHUNK]) -> bool {
    #[inline(always)]
    fn convert<C: Answer>(values: &[C], unscale: f64, to: &mut [i64; CHUNK]) -> bool {
        let mut all_exact = true;
        for (to, value) in to.iter_mut().zip(values) {
            let (integer, exact) = value.exact(unscale);
            *to = integer;
            all_exact &= exact;
        }
        all_exact
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn wide<C: Answer>(values: &[C], unscale: f64, to: &mut [i64; CHUNK]) -> bool {
            convert(values, unscale, to)
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has AVX2.
            return unsafe { wide(values, unscale, to) };
        }
    }
    convert(values, unscale, to)
}

fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((1023 + i64::from(exponent)) as u64) << 52)
}

/// An integer from -`limit` to `limit`, the same each time it is asked for.
#[inline(always)]
fn signed(seed: u64, index: usize, limit: u32) -> i32 {
    let part = stream::at(seed, index as u64) >> 32;
    ((part * (2 * u64::from(limit) + 1)) >> 32) as i32 - limit as i32
}

#[inline(always)]
fn unsigned(seed: u64, index: usize, limit: u32) -> i32 {
    let part = stream::at(seed, index as u64) >> 32;
    ((part * (u64::from(limit) + 1)) >> 32) as i32
}

impl Recipe {
    fn seed_a(&self) -> u64 {
        self.seed ^ 0xa5a5_0001_c3c3_0001
    }
    fn seed_b(&self) -> u64 {
        self.seed ^ 0x5a5a_0002_3c3c_0002
    }

    #[inline(always)]
    fn a(&self, row: usize, depth: usize) -> i32 {
        let index = row * self.shape.k + depth;
        match self.unsigned {
            true => unsigned(self.seed_a(), index, self.limit_a),
            false => signed(self.seed_a(), index, self.limit_a),
        }
    }

    #[inline(always)]
    fn b(&self, depth: usize, column: usize) -> i32 {
        signed(self.seed_b(), depth * self.shape.n + column, self.limit_b)
    }

    fn exponent(&self, row: usize) -> i32 {
        signed(self.seed ^ 0xe, row, self.exponents)
    }

    /// Odd and under 2^56: products with elements below 2^51 summed over up to 2^20 columns stay below 2^127.
    #[inline(always)]
    fn x(&self, column: usize) -> i64 {
        ((stream::at(self.seed ^ 0x78, column as u64) >> 8) | 1) as i64
    }

    /// Whether every partial sum, in any order, is exact with `bits` significant bits in the accumulator.
    pub fn is_exact(&self, bits: u32) -> bool {
        let largest = self.shape.k as u128 * u128::from(self.limit_a) * u128::from(self.limit_b);
        largest <= 1 << bits && largest < LIMIT as u128 && self.shape.n < 1 << 20
    }

    /// One element by definition.
    pub fn reference(&self, row: usize, column: usize) -> i64 {
        (0..self.shape.k).map(|p| i64::from(self.a(row, p)) * i64::from(self.b(p, column))).sum()
    }
}

/// The far side of the check, `A·(B·x)`, kept for as long as the operands are.
#[derive(Debug)]
pub struct Check {
    recipe: Recipe,
    /// Signed, so that a product with an element is one instruction.
    x: Vec<i64>,
    y: Vec<u128>,
}

/// Elements that are not what they must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Rows that failed the check.
    pub rows: u64,
    /// Wrong elements among those looked at one by one, in words: place, expected bits, got bits.
    pub first: String,
}

impl Check {
    /// Writes the recipe's operands into `a` and `b`, and the check's far side beside them, from the integers and not from
    /// what was stored.
    pub fn prepare<A: Operand, B: Operand>(recipe: Recipe, a: &mut [A], b: &mut [B]) -> Check {
        let Shape { m, n, k } = recipe.shape;
        let x: Vec<i64> = (0..n).map(|j| recipe.x(j)).collect();
        let mut bx = Vec::with_capacity(k);
        for (p, row) in b.chunks_exact_mut(n).take(k).enumerate() {
            let mut sum = 0i128;
            for (j, (to, x)) in row.iter_mut().zip(&x).enumerate() {
                let value = recipe.b(p, j);
                *to = B::from_exact(value, 0);
                sum = sum.wrapping_add(i128::from(value) * i128::from(*x));
            }
            bx.push(sum);
        }
        let mut y = Vec::with_capacity(m);
        for (i, row) in a.chunks_exact_mut(k).take(m).enumerate() {
            let exponent = recipe.exponent(i);
            let mut sum = 0i128;
            for (p, (to, bx)) in row.iter_mut().zip(&bx).enumerate() {
                let value = recipe.a(i, p);
                *to = A::from_exact(value, exponent);
                sum = sum.wrapping_add(i128::from(value).wrapping_mul(*bx));
            }
            y.push(sum as u128);
        }
        Check { recipe, x, y }
    }

    /// Looks at every element of `c`.
    pub fn verify<C: Answer>(&self, c: &[C]) -> Result<(), Wrong> {
        let n = self.recipe.shape.n;
        let mut rows = 0;
        let mut first = Vec::new();
        for (i, (row, y)) in c.chunks_exact(n).zip(&self.y).enumerate() {
            if self.row_holds(i, row, *y) {
                continue;
            }
            rows += 1;
            if first.len() < SPELT {
                self.spell(i, row, &mut first);
            }
        }
        if c.len() < n * self.y.len() {
            return Err(Wrong {
                rows: self.y.len() as u64,
                first: "the result is shorter than its shape".to_owned(),
            });
        }
        if rows == 0 { Ok(()) } else { Err(Wrong { rows, first: first.join("; ") }) }
    }

    fn row_holds<C: Answer>(&self, i: usize, row: &[C], y: u128) -> bool {
        let unscale = power_of_two(-self.recipe.exponent(i));
        let mut integers = [0i64; CHUNK];
        let mut sums = [0i128; 4];
        let mut all_exact = true;
        for (values, x) in row.chunks(CHUNK).zip(self.x.chunks(CHUNK)) {
            all_exact &= integers_of(values, unscale, &mut integers);
            // Several sums, so that one addition need not wait for the other.
            let mut quads = integers[..values.len()].chunks_exact(4);
            let mut x_quads = x.chunks_exact(4);
            for (v, x) in (&mut quads).zip(&mut x_quads) {
                for (sum, (v, x)) in sums.iter_mut().zip(v.iter().zip(x)) {
                    *sum = sum.wrapping_add(i128::from(*v) * i128::from(*x));
                }
            }
            for (v, x) in quads.remainder().iter().zip(x_quads.remainder()) {
                sums[0] = sums[0].wrapping_add(i128::from(*v) * i128::from(*x));
            }
        }
        all_exact && sums.iter().fold(0i128, |sum, part| sum.wrapping_add(*part)) as u128 == y
    }

    /// Finds the wrong elements of a row that failed, by definition.
    fn spell<C: Answer>(&self, i: usize, row: &[C], into: &mut Vec<String>) {
        let scale = power_of_two(self.recipe.exponent(i));
        let before = into.len();
        for (j, got) in row.iter().enumerate() {
            let (expected, got) = (C::bits_of(self.recipe.reference(i, j), scale), got.bits());
            if expected != got && into.len() < SPELT {
                let flipped = expected ^ got;
                into.push(format!("C[{i}][{j}] expected {expected:#x}, got {got:#x}, flipped {flipped:#x}"));
            }
        }
        if into.len() == before {
            into.push(format!(
                "row {i}: every element is right, the integer check sum itself came out wrong"
            ));
        }
    }
}
