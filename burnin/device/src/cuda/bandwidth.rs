//! Copies.

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::GpuBandwidthParams;

use crate::{Context, Done};

pub fn run<S: Sink>(_params: &GpuBandwidthParams, _context: &Context<'_, S>) -> Done {
    Done::inconclusive("not built yet")
}
