//! NVMe and disks.

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::DiskParams;

use crate::{Context, Done};

pub fn run<S: Sink>(_params: &DiskParams, _context: &Context<'_, S>) -> Done {
    Done::inconclusive("not built yet")
}
