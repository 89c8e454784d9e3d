//! Probes: read facts, change nothing, answer within a time limit.
//!
//! Each source runs in a thread of its own and is given up when its time is over; what the others say is reported
//! all the same, and the one that is missing is a finding. `docs/probe.md` lists what is read from where.

mod clock;
pub mod kmsg;
pub mod nvml;
pub mod source;
pub mod sysfs;
pub mod telemetry;
mod tool;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use whetstone_model::evidence::Finding;
use whetstone_model::facts::*;
use whetstone_model::health;
use whetstone_model::threshold::Table;

use source::{Answer, Slot};
use sysfs::{Look, Root};

/// Time that a source has to answer, unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where to look, and for how long.
#[derive(Debug, Clone)]
pub struct ProbeOptions {
    /// The NVML library; `None` = by the loader's search, and its absence is normal.
    pub nvml_lib: Option<PathBuf>,
    /// What stands for `/` when sysfs and procfs are read.
    pub root: PathBuf,
    /// Per source. NVML has it twice: to open, and to read the GPUs.
    pub timeout: Duration,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self { nvml_lib: None, root: PathBuf::from("/"), timeout: DEFAULT_TIMEOUT }
    }
}

impl ProbeOptions {
    /// Defaults, with `WHETSTONE_NVML_LIB` and `WHETSTONE_ROOT` where they are set.
    pub fn from_env() -> Self {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            nvml_lib: variable("WHETSTONE_NVML_LIB"),
            root: variable("WHETSTONE_ROOT").unwrap_or_else(|| PathBuf::from("/")),
            timeout: DEFAULT_TIMEOUT,
        }
    }
}

/// What a blade is and how it feels.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Probe {
    pub facts: Facts,
    /// Gravest first.
    pub findings: Vec<Finding>,
}

/// How thorough a look is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Everything.
    Full,
    /// What changes; the rest is taken from the last full look.
    Watch,
}

/// One full look with the thresholds that the binary carries. Takes up to twice the time limit if sources hang.
pub fn probe(options: &ProbeOptions) -> Probe {
    let facts = Prober::new(options.clone()).look(Depth::Full);
    let table = Table::built_in().unwrap_or_default();
    let findings = health::findings(&facts, &table);
    Probe { facts, findings }
}

/// Keeps the library open and remembers what does not change between looks.
pub struct Prober {
    options: ProbeOptions,
    root: Root,
    gpus: nvml::Gpus,
    slots: Slots,
    last: Option<Facts>,
    watch_looks: u32,
}

/// A source of facts under the root.
struct Slots {
    host: Slot<Look<Host>>,
    kernel: Slot<Look<Kernel>>,
    cpu: Slot<Look<(Cpu, Vec<NumaNode>)>>,
    memory: Slot<Look<Memory>>,
    dimms: Slot<Look<Vec<Dimm>>>,
    edac: Slot<Look<Vec<MemoryController>>>,
    cgroup: Slot<Look<Cgroup>>,
    clock: Slot<Look<ClockSync>>,
    pci: Slot<Look<Vec<PciDevice>>>,
    infiniband: Slot<Look<Vec<IbPort>>>,
    net: Slot<Look<Vec<Nic>>>,
    nvme: Slot<Look<Vec<NvmeDrive>>>,
}

/// A watching look reads everything anew once in so many looks: at ten seconds each, every ten minutes.
const FULL_EVERY: u32 = 60;

impl Prober {
    pub fn new(options: ProbeOptions) -> Self {
        let root = Root::new(options.root.clone());
        let gpus = nvml::Gpus::new(options.nvml_lib.clone());
        let slots = Slots {
            host: Slot::new("host"),
            kernel: Slot::new("kernel"),
            cpu: Slot::new("cpu"),
            memory: Slot::new("memory"),
            dimms: Slot::new("dimms"),
            edac: Slot::new("edac"),
            cgroup: Slot::new("cgroup"),
            clock: Slot::new("clock"),
            pci: Slot::new("pci"),
            infiniband: Slot::new("infiniband"),
            net: Slot::new("net"),
            nvme: Slot::new("nvme"),
        };
        Self { options, root, gpus, slots, last: None, watch_looks: 0 }
    }

    /// Reads the blade. A source that hung in an earlier look and still does is reported at once, not waited for.
    pub fn look(&mut self, depth: Depth) -> Facts {
        let depth = match (&self.last, depth) {
            (Some(_), Depth::Watch) if self.watch_looks < FULL_EVERY => Depth::Watch,
            _ => Depth::Full,
        };
        self.watch_looks = if depth == Depth::Full { 0 } else { self.watch_looks + 1 };
        let start = Instant::now();
        let before = self.last.take().filter(|_| depth == Depth::Watch);
        self.ask_files(before.as_ref());
        let mut facts = before.unwrap_or_default();
        facts.at_ms = now_ms();
        let mut sources = Vec::with_capacity(16);
        self.look_at_gpus(depth, &mut facts, &mut sources);
        self.collect_files(depth, start + self.options.timeout, &mut facts, &mut sources);
        if depth == Depth::Watch {
            // What was not asked this time stays as it was.
            let old = std::mem::take(&mut facts.sources);
            sources.extend(old.into_iter().filter(|old| SELDOM.contains(&old.name.as_str())));
        }
        facts.sources = sources;
        nvml::name_gaps(&self.root, &mut facts);
        self.last = Some(facts.clone());
        facts
    }

    fn ask_files(&mut self, before: Option<&Facts>) {
        let root = &self.root;
        let slots = &mut self.slots;
        macro_rules! ask {
            ($slot:ident, $read:expr) => {{
                let root = root.clone();
                slots.$slot.ask(move || $read(&root));
            }};
        }
        let (pci, ports, drives) = before.map_or_else(Default::default, |facts| {
            (facts.pci.clone(), facts.ib_ports.clone(), facts.nvme.clone())
        });
        ask!(pci, |root: &Root| sysfs::pci::read(root, &pci));
        ask!(infiniband, |root: &Root| sysfs::rdma::read(root, &ports));
        ask!(nvme, |root: &Root| sysfs::nvme::read(root, &drives));
        ask!(edac, sysfs::edac::read);
        ask!(net, sysfs::net::read);
        if before.is_none() {
            ask!(host, |root: &Root| Look::Found(sysfs::host::host(root)));
            ask!(kernel, |root: &Root| Look::Found(sysfs::host::kernel(root)));
            ask!(cpu, |root: &Root| Look::Found((sysfs::cpu::read(root), sysfs::cpu::numa(root))));
            ask!(memory, |root: &Root| Look::Found(sysfs::memory::read(root)));
            ask!(dimms, sysfs::dmi::read);
            ask!(cgroup, sysfs::host::cgroup);
            ask!(clock, |root: &Root| Look::Found(clock::read(root)));
        }
    }

    fn collect_files(
        &mut self,
        depth: Depth,
        deadline: Instant,
        facts: &mut Facts,
        sources: &mut Vec<SourceStatus>,
    ) {
        let slots = &mut self.slots;
        macro_rules! collect {
            ($slot:ident, $into:expr) => {
                // A source that gave nothing leaves nothing behind: facts are of this look or of none.
                $into = wait(stringify!($slot), &mut slots.$slot, deadline, sources).unwrap_or_default()
            };
        }
        collect!(pci, facts.pci);
        collect!(infiniband, facts.ib_ports);
        collect!(nvme, facts.nvme);
        collect!(edac, facts.edac);
        collect!(net, facts.nics);
        if depth == Depth::Full {
            collect!(host, facts.host);
            collect!(kernel, facts.kernel);
            collect!(cpu, (facts.cpu, facts.numa));
            collect!(memory, facts.memory);
            collect!(dimms, facts.dimms);
            collect!(cgroup, facts.cgroup);
            collect!(clock, facts.clock);
        }
    }

    fn look_at_gpus(&mut self, depth: Depth, facts: &mut Facts, sources: &mut Vec<SourceStatus>) {
        let start = Instant::now();
        let asked = self.gpus.ask(depth, start + self.options.timeout);
        let (state, detail, code) = match asked {
            Ok(()) => {
                let seen = self.gpus.collect(Instant::now() + self.options.timeout);
                (facts.gpu_driver, facts.gpus, facts.gpu_gaps) = (seen.driver, seen.gpus, seen.gaps);
                let hangs = facts.gpu_gaps.iter().filter(|gap| gap.kind == GapKind::Timeout).count();
                let silent = facts.gpus.is_empty() && hangs > 0;
                let state = if silent { SourceState::Timeout } else { SourceState::Ok };
                let detail = if hangs > 0 { format!("{hangs} GPUs gave no answer") } else { String::new() };
                (state, detail, None)
            }
            Err(nvml::NotOpen { state, detail, code }) => {
                (facts.gpu_driver, facts.gpus, facts.gpu_gaps) = (None, Vec::new(), Vec::new());
                (state, detail, code)
            }
        };
        sources.push(SourceStatus {
            name: "nvml".to_owned(),
            state,
            detail,
            code,
            took_ms: millis(start.elapsed()),
        });
    }

    /// The open library, for a telemetry sampler of its own.
    pub fn gpus(&self) -> &nvml::Gpus {
        &self.gpus
    }
}

/// Sources that only a full look asks.
const SELDOM: [&str; 7] = ["host", "kernel", "cpu", "memory", "dimms", "cgroup", "clock"];

fn wait<T: Send + 'static>(
    name: &str,
    slot: &mut Slot<Look<T>>,
    deadline: Instant,
    sources: &mut Vec<SourceStatus>,
) -> Option<T> {
    let (state, detail, took, value) = match slot.wait(deadline) {
        Answer::Done(Look::Found(value), took) => (SourceState::Ok, String::new(), took, Some(value)),
        Answer::Done(Look::Absent(why), took) => (SourceState::Absent, why, took, None),
        Answer::Done(Look::Error(why), took) => (SourceState::Error, why, took, None),
        Answer::Timeout(took) => {
            (SourceState::Timeout, format!("no answer in {:.1} s", took.as_secs_f64()), took, None)
        }
        Answer::Failed(why) => (SourceState::Error, why, Duration::ZERO, None),
    };
    sources.push(SourceStatus { name: name.to_owned(), state, detail, code: None, took_ms: millis(took) });
    value
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// A root that cannot be read is wrong usage, not a blade without parts.
pub fn check_root(root: &Path) -> Result<(), RootError> {
    match std::fs::read_dir(root) {
        Ok(_) => Ok(()),
        Err(source) => Err(RootError { root: root.to_owned(), source }),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("root {root}: {source}", root = .root.display())]
pub struct RootError {
    root: PathBuf,
    source: std::io::Error,
}
