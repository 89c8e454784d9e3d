//! Blocked matrix product: operands are packed so that a register tile reads them in order, and cut so that
//! each level of cache holds what the level above asks for (Goto and van de Geijn 2008).

use std::io;

use crate::host::pages::{Pages, Plain};

/// A register tile: the innermost kernel of one vector unit, and the block sizes that suit it.
///
/// `A` and `B` are what it multiplies, `C` what it accumulates in. `group` elements of one row of A and one column of
/// B lie side by side (1 for FMA, 2 or 4 for dot-product instructions).
pub struct Micro<A, B, C> {
    /// Names the vector unit in findings: `fp64 avx512`.
    pub name: &'static str,
    pub rows: usize,
    pub columns: usize,
    pub group: usize,
    /// Depth of a block, a multiple of `group`: `kc * columns` elements of B stay in the first-level cache.
    pub kc: usize,
    /// Rows of a block, a multiple of `rows`: `mc * kc` elements of A stay in the second-level cache.
    pub mc: usize,
    /// `run(groups, a, b, c, ldc, first)`: C (`rows` x `columns`, row stride `ldc`) becomes A·B, or grows by it unless
    /// `first`.
    ///
    /// # Safety
    /// The CPU has the unit; `a` holds `groups * rows * group` and `b` holds `groups * columns * group` elements;
    /// `c` is valid for `rows` rows of `columns` elements at stride `ldc`.
    pub run: unsafe fn(usize, *const A, *const B, *mut C, usize, bool),
}

/// C is m x n, A is m x k, B is k x n, all row after row without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl Shape {
    pub fn operations(self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }
}

/// Columns of B that are packed at once; bounds the panel (8 MiB of fp64 at the deepest block).
const NC: usize = 4096;

/// Room for packed operands, made once and used for many products.
pub struct Workspace<A: Plain, B: Plain, C: Plain> {
    a: Pages<A>,
    b: Pages<B>,
    /// One tile, for the ragged right and lower edges.
    edge: Pages<C>,
}

impl<A: Plain, B: Plain, C: Plain> Workspace<A, B, C> {
    pub fn new(micro: &Micro<A, B, C>, shape: Shape) -> io::Result<Self> {
        let columns = shape.n.min(NC).next_multiple_of(micro.columns);
        Ok(Self {
            a: Pages::new(micro.mc.next_multiple_of(micro.rows) * micro.kc)?,
            b: Pages::new(columns * micro.kc)?,
            edge: Pages::new(micro.rows * micro.columns)?,
        })
    }
}

/// `c = a · b`.
///
/// # Safety
/// The CPU has `micro`'s vector unit.
///
/// # Panics
/// When a slice is shorter than the shape says, or the workspace was made for a smaller one.
pub unsafe fn multiply<A, B, C>(
    micro: &Micro<A, B, C>,
    shape: Shape,
    (a, b, c): (&[A], &[B], &mut [C]),
    work: &mut Workspace<A, B, C>,
) where
    A: Plain + Default,
    B: Plain + Default,
    C: Plain + Default + std::ops::Add<Output = C>,
{
    let Shape { m, n, k } = shape;
    assert!(
        a.len() >= m * k && b.len() >= k * n && c.len() >= m * n,
        "operands are smaller than their shape"
    );
    for j0 in (0..n).step_by(NC) {
        let columns = NC.min(n - j0);
        for k0 in (0..k).step_by(micro.kc) {
            let depth = micro.kc.min(k - k0);
            let groups = depth.div_ceil(micro.group);
            pack_columns(micro, &b[k0 * n + j0..], n, depth, columns, &mut work.b);
            for i0 in (0..m).step_by(micro.mc) {
                let rows = micro.mc.min(m - i0);
                pack_rows(micro, &a[i0 * k + k0..], k, depth, rows, &mut work.a);
                let block = Block { groups, rows, columns, stride: n, first: k0 == 0 };
                // SAFETY: the caller vouches for the vector unit; both panels were just packed for this block.
                unsafe { tiles(micro, block, &work.a, &work.b, &mut c[i0 * n + j0..], &mut work.edge) };
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Block {
    groups: usize,
    rows: usize,
    columns: usize,
    /// Row stride of C.
    stride: usize,
    first: bool,
}

/// All register tiles of one block of C.
///
/// # Safety
/// As [`multiply`]; `a` and `b` hold the packed panels of `block`.
unsafe fn tiles<A, B, C>(micro: &Micro<A, B, C>, block: Block, a: &[A], b: &[B], c: &mut [C], edge: &mut [C])
where
    A: Plain,
    B: Plain,
    C: Plain + std::ops::Add<Output = C>,
{
    let Block { groups, rows, columns, stride, first } = block;
    let (a_tile, b_tile) = (groups * micro.group * micro.rows, groups * micro.group * micro.columns);
    assert!(c.len() >= (rows - 1) * stride + columns, "C is smaller than its block");
    assert!(
        a.len() >= rows.div_ceil(micro.rows) * a_tile && b.len() >= columns.div_ceil(micro.columns) * b_tile
    );
    for (j, b_panel) in (0..columns).step_by(micro.columns).zip(b.chunks_exact(b_tile)) {
        for (i, a_panel) in (0..rows).step_by(micro.rows).zip(a.chunks_exact(a_tile)) {
            let (height, width) = (micro.rows.min(rows - i), micro.columns.min(columns - j));
            let at = i * stride + j;
            if height == micro.rows && width == micro.columns {
                // SAFETY: the panels hold one tile each, and rows i.. and columns j.. of the block are whole.
                unsafe {
                    (micro.run)(
                        groups,
                        a_panel.as_ptr(),
                        b_panel.as_ptr(),
                        c[at..].as_mut_ptr(),
                        stride,
                        first,
                    )
                };
                continue;
            }
            // SAFETY: `edge` is one dense tile.
            unsafe {
                (micro.run)(
                    groups,
                    a_panel.as_ptr(),
                    b_panel.as_ptr(),
                    edge.as_mut_ptr(),
                    micro.columns,
                    true,
                )
            };
            for row in 0..height {
                let target = &mut c[at + row * stride..][..width];
                for (t, e) in target.iter_mut().zip(&edge[row * micro.columns..]) {
                    *t = if first { *e } else { *t + *e };
                }
            }
        }
    }
}

/// `rows` rows of A, `depth` deep, as tiles of `micro.rows`: for each group of depth, each row's group.
fn pack_rows<A: Plain + Default, B, C>(
    micro: &Micro<A, B, C>,
    a: &[A],
    stride: usize,
    depth: usize,
    rows: usize,
    to: &mut [A],
) {
    let group = micro.group;
    let tile = depth.div_ceil(group) * group * micro.rows;
    for (i0, to) in (0..rows).step_by(micro.rows).zip(to.chunks_exact_mut(tile)) {
        let height = micro.rows.min(rows - i0);
        if height == ROWS && micro.rows == ROWS && group == 1 {
            interleave(std::array::from_fn(|row| &a[(i0 + row) * stride..][..depth]), to);
            continue;
        }
        if height < micro.rows || !depth.is_multiple_of(group) {
            to.fill(A::default());
        }
        for row in 0..height {
            let from = &a[(i0 + row) * stride..][..depth];
            if group == 1 {
                for (to, value) in to[row..].iter_mut().step_by(micro.rows).zip(from) {
                    *to = *value;
                }
            } else {
                for (p, values) in from.chunks(group).enumerate() {
                    to[(p * micro.rows + row) * group..][..values.len()].copy_from_slice(values);
                }
            }
        }
    }
}

/// Rows of the widest tiles, for which packing has a path of its own.
const ROWS: usize = 8;

/// Element p of every row, then element p + 1 of every row: whole lines are written.
fn interleave<A: Plain>(rows: [&[A]; ROWS], to: &mut [A]) {
    let depth = rows[0].len();
    for (p, to) in to.chunks_exact_mut(ROWS).take(depth).enumerate() {
        for (to, row) in to.iter_mut().zip(&rows) {
            *to = row[p];
        }
    }
}

/// `columns` columns of B, `depth` deep, as tiles of `micro.columns`: for each group of depth, each column's group.
fn pack_columns<A, B: Plain + Default, C>(
    micro: &Micro<A, B, C>,
    b: &[B],
    stride: usize,
    depth: usize,
    columns: usize,
    to: &mut [B],
) {
    let group = micro.group;
    let tile = depth.div_ceil(group) * group * micro.columns;
    for (j0, to) in (0..columns).step_by(micro.columns).zip(to.chunks_exact_mut(tile)) {
        let width = micro.columns.min(columns - j0);
        if width < micro.columns || !depth.is_multiple_of(group) {
            to.fill(B::default());
        }
        for p in 0..depth {
            let from = &b[p * stride + j0..][..width];
            let to = &mut to[(p / group) * micro.columns * group..][..micro.columns * group];
            if group == 1 {
                to[..width].copy_from_slice(from);
            } else {
                for (to, value) in to[p % group..].iter_mut().step_by(group).zip(from) {
                    *to = *value;
                }
            }
        }
    }
}
