//! What the agent itself costs.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use whetstone_model::wire::AgentUsage;

/// `None` where procfs does not say.
pub(super) fn now(started: Instant) -> Option<AgentUsage> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    Some(AgentUsage {
        resident_bytes: pages.saturating_mul(rustix::param::page_size() as u64),
        cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
        up_seconds: started.elapsed().as_secs_f64(),
    })
}
