//! The exact-integer oracle: which operands make a GEMM exact, its one right result, its digest.
//!
//! Tensor cores do not round like a chain of IEEE additions, and differ by generation. Where every partial sum
//! is an integer that the accumulator holds, nothing is ever rounded: any correct machine, in any order, has
//! the same bits as integer arithmetic on the CPU, and one flipped bit shows. No tolerance, no golden hardware.
//!
//! How it is used, on a GPU and on a CPU alike:
//! ```
//! use whetstone_burnin::exact::{self, WidthProbe};
//! use whetstone_burnin::suite::GemmFormat;
//!
//! let format = GemmFormat::Bf16;
//! let p = 24; // measured on the chip with a WidthProbe, or known (IEEE fused multiply-add: 24 or 53)
//! for case in exact::exact_plan(format, p, 256) {
//!     let operands = case.operands(64, 64, 42); // D = A·Bᵀ of a 64 × 64 tile
//!     let expected = exact::reference(&operands);
//!     let computed = expected.clone(); // ... by the machine under test, from operands.a_bytes() and b_bytes()
//!     assert_eq!(exact::digest(&computed), exact::digest(&expected));
//!     assert!(exact::diff(&expected, &computed).is_empty());
//! }
//! # assert!(WidthProbe::new(format, 64, 64, 64).is_some());
//! ```

mod format;
mod pattern;
mod plan;
mod probe;
mod reference;

pub use format::Accumulator;
pub use pattern::{GOLDEN, Operands, SplitMix64, full_range_bytes, mix64};
pub use plan::{ExactCase, K_STEP, NotExact, Pattern, exact_plan};
pub use probe::{FEWEST_BITS, ProbeError, WidthProbe};
pub use reference::{
    WrongElement, bits_from_bytes, diff, digest, digest_term, freivalds, reference, wrong_bits,
};
