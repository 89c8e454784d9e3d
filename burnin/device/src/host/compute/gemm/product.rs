//! One exact product on one vector unit: operands, result, check, kept to be computed many times.

use std::io;
use std::time::{Duration, Instant};

use crate::host::pages::{Pages, Plain};

use super::block::{Micro, Shape, Workspace, multiply};
use super::oracle::{Answer, Check, Operand, Recipe, Wrong};

/// Buffers and operands of products of one shape.
pub struct Product<A: Plain, B: Plain, C: Plain> {
    unit: &'static Micro<A, B, C>,
    shape: Shape,
    work: Workspace<A, B, C>,
    a: Pages<A>,
    b: Pages<B>,
    c: Pages<C>,
    check: Option<Check>,
}

impl<A, B, C> Product<A, B, C>
where
    A: Operand + Default,
    B: Operand + Default,
    C: Answer + Default + std::ops::Add<Output = C>,
{
    /// # Safety
    /// The CPU has `unit`, as it does when `units` lists it.
    pub unsafe fn new(unit: &'static Micro<A, B, C>, shape: Shape) -> io::Result<Self> {
        let Shape { m, n, k } = shape;
        Ok(Self {
            unit,
            shape,
            work: Workspace::new(unit, shape)?,
            a: Pages::new(m * k)?,
            b: Pages::new(k * n)?,
            c: Pages::new(m * n)?,
            check: None,
        })
    }

    /// New operands. The shape is the product's own, whatever the recipe says.
    pub fn prepare(&mut self, recipe: Recipe) {
        let recipe = Recipe { shape: self.shape, ..recipe };
        self.check = Some(Check::prepare(recipe, &mut self.a, &mut self.b));
    }

    /// Computes the product; the time that took.
    pub fn compute(&mut self) -> Duration {
        let started = Instant::now();
        // SAFETY: `new`'s caller vouched for the unit; the buffers were made for this shape.
        unsafe { multiply(self.unit, self.shape, (&self.a, &self.b, &mut self.c), &mut self.work) };
        started.elapsed()
    }

    /// Looks at every element.
    pub fn verify(&self) -> Result<(), Wrong> {
        self.check.as_ref().map_or(Ok(()), |check| check.verify(&self.c))
    }

    pub fn operands(&mut self) -> (&mut [A], &mut [B]) {
        (&mut self.a, &mut self.b)
    }

    pub fn result(&mut self) -> &mut [C] {
        &mut self.c
    }
}
