//! Silent data corruption.

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::GpuGemmParams;

use crate::{Context, Done};

pub fn run<S: Sink>(_params: &GpuGemmParams, _context: &Context<'_, S>) -> Done {
    Done::inconclusive("not built yet")
}
