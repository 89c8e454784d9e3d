//! Power and heat.

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::GpuPowerParams;

use crate::{Context, Done};

pub fn run<S: Sink>(_params: &GpuPowerParams, _context: &Context<'_, S>) -> Done {
    Done::inconclusive("not built yet")
}
