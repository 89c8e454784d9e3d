//! Patterns over HBM.

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::GpuMemoryParams;

use crate::{Context, Done};

pub fn run<S: Sink>(_params: &GpuMemoryParams, _context: &Context<'_, S>) -> Done {
    Done::inconclusive("not built yet")
}
