//! Cores against each other.

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::CpuCoherenceParams;

use crate::{Context, Done};

pub fn run<S: Sink>(_params: &CpuCoherenceParams, _context: &Context<'_, S>) -> Done {
    Done::inconclusive("not built yet")
}
