//! The cores that this process may use, which part of the blade each is, and work spread over them.

use std::fmt;
use std::fs;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use whetstone_model::device::DeviceId;

use super::bench::Bench;

/// How often the runner hears from a test that works on all cores.
const TICK: Duration = Duration::from_millis(500);

/// One logical CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    /// The kernel's number of it.
    pub cpu: usize,
    /// Physical socket.
    pub package: u32,
    /// Core inside the socket, as the firmware numbers it; two SMT threads share one.
    pub core: u32,
}

impl Core {
    /// The part that is replaced when this core is bad: its socket.
    pub fn device(&self) -> Option<DeviceId> {
        DeviceId::new(format!("cpu{}", self.package)).ok()
    }
}

impl fmt::Display for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "socket {} core {} (logical CPU {})", self.package, self.core, self.cpu)
    }
}

/// The cores in this process's affinity mask; at least one.
pub fn allowed() -> Vec<Core> {
    let set = sched_getaffinity(None).ok();
    let in_set = |cpu: usize| set.as_ref().is_some_and(|s| s.is_set(cpu));
    let mut cores: Vec<Core> = (0..CpuSet::MAX_CPU).filter(|cpu| in_set(*cpu)).map(describe).collect();
    if cores.is_empty() {
        cores.push(describe(0));
    }
    cores
}

fn describe(cpu: usize) -> Core {
    // Where sysfs is hidden (some containers), the logical number stands for the core.
    let read = |file: &str| {
        let text = fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/{file}")).ok()?;
        text.trim().parse::<u32>().ok()
    };
    let core = read("core_id").unwrap_or(u32::try_from(cpu).unwrap_or(u32::MAX));
    Core { cpu, package: read("physical_package_id").unwrap_or(0), core }
}

/// Binds the calling thread to one logical CPU.
pub fn pin(core: &Core) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core.cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// What a worker thread on one core came back with; `None` if it panicked.
pub type Results<T> = Vec<Option<T>>;

/// Runs `work` on every core at once, each on a thread bound to it, and says `doing()` to the runner meanwhile.
/// Results come in the order of `cores`.
pub fn on_each<T: Send>(
    bench: &Bench<'_>,
    cores: &[Core],
    doing: &dyn Fn() -> String,
    work: impl Fn(usize, &Core) -> T + Sync,
) -> Results<T> {
    let work = &work;
    let mut unpinned = 0;
    let results = std::thread::scope(|scope| {
        let (alive, ended) = channel::<()>();
        let threads: Vec<_> = cores
            .iter()
            .enumerate()
            .map(|(index, core)| {
                let alive = alive.clone();
                scope.spawn(move || {
                    let _alive = alive; // dropped at the end, even by a panic: that is how the end is seen
                    let pinned = pin(core).is_ok();
                    (pinned, work(index, core))
                })
            })
            .collect();
        drop(alive);
        while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(TICK) {
            bench.tick(&doing());
        }
        let join = |thread: std::thread::ScopedJoinHandle<'_, (bool, T)>| {
            let (pinned, result) = thread.join().ok()?;
            unpinned += usize::from(!pinned);
            Some(result)
        };
        threads.into_iter().map(join).collect()
    });
    if unpinned > 0 {
        bench.note(format!("{unpinned} of {} worker threads could not be bound to their core", cores.len()));
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::bench::testing::Rig;

    #[test]
    fn every_allowed_core_is_described_and_worked_on() {
        let cores = allowed();
        assert!(!cores.is_empty());
        let rig = Rig::new(1, Duration::from_secs(60));
        let seen = on_each(&rig.bench(), &cores, &|| String::new(), |index, core| (index, core.cpu));
        let expected: Vec<_> = cores.iter().enumerate().map(|(i, c)| Some((i, c.cpu))).collect();
        assert_eq!(seen, expected);
    }
}
