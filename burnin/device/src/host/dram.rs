//! Main memory.

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::DramParams;

use crate::{Context, Done};

pub fn run<S: Sink>(_params: &DramParams, _context: &Context<'_, S>) -> Done {
    Done::inconclusive("not built yet")
}
