//! Clocks.

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::ClockParams;

use crate::{Context, Done};

pub fn run<S: Sink>(_params: &ClockParams, _context: &Context<'_, S>) -> Done {
    Done::inconclusive("not built yet")
}
