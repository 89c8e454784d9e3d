//! NCCL inside the blade.

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::GpuCollectivesParams;

use crate::{Context, Done};

pub fn run<S: Sink>(_params: &GpuCollectivesParams, _context: &Context<'_, S>) -> Done {
    Done::inconclusive("not built yet")
}
