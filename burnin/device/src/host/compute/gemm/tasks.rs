//! The products that a core is asked for, one task for each of its vector units.

use std::io;
use std::time::Duration;

use whetstone_burnin::suite::CpuFamily;

use super::block::{Micro, Shape, Workspace, multiply};
use super::oracle::{Answer, Operand, Recipe};
use super::product::Product;
use super::units;
use crate::host::bench::Tap;
use crate::host::compute::task::{Mismatch, Task, Work};
use crate::host::pages::{Pages, Plain, bytes_of};
use crate::host::stream::{self, Stream};

/// Edge of the products of the widest unit of each format. The three matrices (14 MB in fp64) pass through all levels of
/// cache, and a step stays below 0.1 s on slow cores.
const WIDE: usize = 768;
/// Edge for the narrower units, which every core also has and which older code uses.
const NARROW: usize = 384;
/// Times a product is computed on the same operands.
const REPEATS: u32 = 3;

/// Largest magnitudes in A and B, exponents of A's rows: rotated, so that different bits of the multiplier work.
type Limits = (u32, u32, u32);

/// Significant bits in which every partial sum must stay exact, with the limits that do at a depth of [`WIDE`].
const F64: (u32, &[Limits]) =
    (51, &[(1 << 20, 1 << 20, 40), ((1 << 30) - 1, 1 << 10, 0), (1 << 10, (1 << 30) - 1, 9)]);
const F32: (u32, &[Limits]) = (24, &[(127, 127, 20), (4095, 5, 0), (5, 4095, 3), (16_383, 1, 0)]);
/// bf16 holds integers of up to 8 significant bits.
const BF16: (u32, &[Limits]) = (24, &[(127, 127, 20), (255, 85, 0), (85, 255, 3)]);
const INT8: (u32, &[Limits]) = (31, &[(255, 127, 0), (127, 127, 0)]);
const INT16: (u32, &[Limits]) = (31, &[(1600, 1600, 0), (32_767, 80, 0), (80, 32_767, 0)]);

/// A task for each vector unit of this CPU, and one of full-range operands on the widest of fp64 and fp32.
pub fn tasks(seed: u64) -> io::Result<Vec<Box<dyn Task>>> {
    let mut tasks: Vec<Box<dyn Task>> = Vec::new();
    let edge = |i: usize| if i == 0 { WIDE } else { NARROW };
    for (i, unit) in units::f64_units().into_iter().enumerate() {
        tasks.push(Box::new(Exact::new(unit, edge(i), F64, false, seed)?));
    }
    for (i, unit) in units::f32_units().into_iter().enumerate() {
        tasks.push(Box::new(Exact::new(unit, edge(i), F32, false, seed)?));
    }
    for (i, unit) in units::bf16_units().into_iter().enumerate() {
        tasks.push(Box::new(Exact::new(unit, edge(i), BF16, false, seed)?));
    }
    for (i, unit) in units::int8_units().into_iter().enumerate() {
        tasks.push(Box::new(Exact::new(unit, edge(i), INT8, true, seed)?));
    }
    for (i, unit) in units::int16_units().into_iter().enumerate() {
        tasks.push(Box::new(Exact::new(unit, edge(i), INT16, false, seed)?));
    }
    if let Some(unit) = units::f64_units().first() {
        tasks.push(Box::new(FullRange::new(unit, seed)?));
    }
    if let Some(unit) = units::f32_units().first() {
        tasks.push(Box::new(FullRange::new(unit, seed)?));
    }
    Ok(tasks)
}

/// Exact integers: every element is known.
struct Exact<A: Plain, B: Plain, C: Plain> {
    name: String,
    product: Product<A, B, C>,
    shape: Shape,
    limits: &'static [Limits],
    unsigned: bool,
    seed: u64,
}

impl<A, B, C> Exact<A, B, C>
where
    A: Operand + Default,
    B: Operand + Default,
    C: Answer + Default + std::ops::Add<Output = C>,
{
    fn new(
        unit: &'static Micro<A, B, C>,
        edge: usize,
        (bits, limits): (u32, &'static [Limits]),
        unsigned: bool,
        seed: u64,
    ) -> io::Result<Self> {
        let shape = Shape { m: edge, n: edge, k: edge };
        // SAFETY: `unit` comes from `units`, which lists only what this CPU has.
        let product = unsafe { Product::new(unit, shape) }?;
        let task = Self { name: format!("gemm {}", unit.name), product, shape, limits, unsigned, seed };
        debug_assert!((0..limits.len() as u64).all(|round| task.recipe(round).is_exact(bits)));
        Ok(task)
    }

    fn recipe(&self, round: u64) -> Recipe {
        let (limit_a, limit_b, exponents) = self.limits[round as usize % self.limits.len()];
        let seed = stream::at(self.seed, round);
        Recipe { shape: self.shape, limit_a, limit_b, unsigned: self.unsigned, exponents, seed }
    }
}

impl<A, B, C> Task for Exact<A, B, C>
where
    A: Operand + Default,
    B: Operand + Default,
    C: Answer + Default + std::ops::Add<Output = C>,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn family(&self) -> CpuFamily {
        CpuFamily::Gemm
    }

    fn step(&mut self, round: u64, tap: &dyn Tap) -> Result<Work, Mismatch> {
        // New operands each time: a store that got lost leaves the last step's result, which is then wrong.
        self.product.prepare(self.recipe(round));
        let mut busy = Duration::ZERO;
        for repeat in 0..REPEATS {
            busy += self.product.compute();
            tap.produced(&self.name, bytes_of(self.product.result()));
            self.product.verify().map_err(|wrong| {
                let rows = wrong.rows;
                Mismatch(format!(
                    "round {round}.{repeat}: {rows} of {} rows wrong: {}",
                    self.shape.m, wrong.first
                ))
            })?;
        }
        Ok(Work { amount: f64::from(REPEATS) * self.shape.operations(), busy, digest: None })
    }
}

/// A number of full range: random sign, mantissa and some exponent.
trait FullRangeOperand: Operand {
    fn random(bits: u64) -> Self;
    fn bits(self) -> u64;
}

impl FullRangeOperand for f64 {
    fn random(bits: u64) -> f64 {
        // Exponents 2^-8 to 2^7: rounding and alignment at every distance, never an overflow.
        f64::from_bits((bits & 0x800f_ffff_ffff_ffff) | ((1015 + (bits >> 52 & 15)) << 52))
    }
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

impl FullRangeOperand for f32 {
    fn random(bits: u64) -> f32 {
        let bits = (bits >> 32) as u32;
        f32::from_bits((bits & 0x807f_ffff) | ((119 + (bits >> 23 & 15)) << 23))
    }
    fn bits(self) -> u64 {
        u64::from(self.to_bits())
    }
}

/// Operands of full range: the result is rounded, and therefore only known to be the same each time and on each core
/// (all run the same instructions in the same order). This works the mantissa bits that small integers leave zero.
struct FullRange<T: Plain> {
    name: String,
    unit: &'static Micro<T, T, T>,
    shape: Shape,
    work: Workspace<T, T, T>,
    a: Pages<T>,
    b: Pages<T>,
    c: Pages<T>,
    seed: u64,
}

impl<T: FullRangeOperand + Default + std::ops::Add<Output = T>> FullRange<T> {
    fn new(unit: &'static Micro<T, T, T>, seed: u64) -> io::Result<Self> {
        let shape = Shape { m: WIDE, n: WIDE, k: WIDE };
        Ok(Self {
            name: format!("full-range gemm {}", unit.name),
            unit,
            shape,
            work: Workspace::new(unit, shape)?,
            a: Pages::new(WIDE * WIDE)?,
            b: Pages::new(WIDE * WIDE)?,
            c: Pages::new(WIDE * WIDE)?,
            seed,
        })
    }

    /// Every bit of every element weighs in, each place with its own odd factor: one wrong element always shows.
    fn digest(&self) -> u64 {
        let weigh = |(i, value): (usize, &T)| value.bits().wrapping_mul(stream::at(1, i as u64) | 1);
        self.c.iter().enumerate().map(weigh).fold(0, u64::wrapping_add)
    }
}

impl<T: FullRangeOperand + Default + std::ops::Add<Output = T>> Task for FullRange<T> {
    fn name(&self) -> &str {
        &self.name
    }

    fn family(&self) -> CpuFamily {
        CpuFamily::Gemm
    }

    fn step(&mut self, round: u64, tap: &dyn Tap) -> Result<Work, Mismatch> {
        let mut stream = Stream::new(stream::at(self.seed, round));
        self.a.iter_mut().chain(self.b.iter_mut()).for_each(|value| *value = T::random(stream.word()));
        let mut busy = Duration::ZERO;
        let mut first = None;
        for repeat in 0..REPEATS {
            let started = std::time::Instant::now();
            // SAFETY: `unit` comes from `units`, which lists only what this CPU has; the buffers have the shape.
            unsafe { multiply(self.unit, self.shape, (&self.a, &self.b, &mut self.c), &mut self.work) };
            busy += started.elapsed();
            tap.produced(&self.name, bytes_of(&mut self.c));
            let digest = self.digest();
            let before = *first.get_or_insert(digest);
            if before != digest {
                return Err(Mismatch(format!(
                    "round {round}: repetition {repeat} of the same product differs from the first: digest expected \
                     {before:#018x}, got {digest:#018x}"
                )));
            }
        }
        Ok(Work { amount: f64::from(REPEATS) * self.shape.operations(), busy, digest: first })
    }
}
