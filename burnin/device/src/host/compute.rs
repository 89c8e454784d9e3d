//! Arithmetic of each core.

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::CpuComputeParams;

use crate::{Context, Done};

pub fn run<S: Sink>(_params: &CpuComputeParams, _context: &Context<'_, S>) -> Done {
    Done::inconclusive("not built yet")
}
