//! Loopback and NICs.

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::NetworkParams;

use crate::{Context, Done};

pub fn run<S: Sink>(_params: &NetworkParams, _context: &Context<'_, S>) -> Done {
    Done::inconclusive("not built yet")
}
