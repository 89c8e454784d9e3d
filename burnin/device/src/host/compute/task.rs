//! One thing that a core computes and that is checked at once.

use std::time::Duration;

use whetstone_burnin::suite::CpuFamily;

use crate::host::bench::Tap;

/// A unit of a core under test. One per core: it keeps its own buffers and runs on its own core only.
pub trait Task: Send {
    /// Names the unit in findings: `gemm fp64 avx512`, `sha256`.
    fn name(&self) -> &str;
    fn family(&self) -> CpuFamily;
    /// Computes something new for each `round` (the same on every core), and checks all of it. Some ten milliseconds.
    fn step(&mut self, round: u64, tap: &dyn Tap) -> Result<Work, Mismatch>;
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Floating-point or integer operations for GEMM, bytes for the rest.
    pub amount: f64,
    /// Time that the unit itself worked, without the check.
    pub busy: Duration,
    /// What every core must get for this round, if cores are compared.
    pub digest: Option<u64>,
}

/// A wrong answer, in words: place, expected and got bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch(pub String);

/// Where two byte strings that should be equal differ first, and in how many bytes.
pub fn compare(what: &str, expected: &[u8], got: &[u8]) -> Result<(), Mismatch> {
    if expected == got {
        return Ok(());
    }
    if expected.len() != got.len() {
        return Err(Mismatch(format!("{what}: expected {} bytes, got {}", expected.len(), got.len())));
    }
    let differ = |(i, (e, g)): (usize, (&u8, &u8))| (e != g).then_some((i, *e, *g));
    let mut wrong = expected.iter().zip(got).enumerate().filter_map(differ);
    let first = wrong.next();
    let count = wrong.count() + usize::from(first.is_some());
    let (at, e, g) = first.unwrap_or_default();
    Err(Mismatch(format!(
        "{what}: byte {at} expected {e:#04x}, got {g:#04x}, flipped {:#04x}; {count} of {} bytes wrong",
        e ^ g,
        expected.len()
    )))
}
