//! The opened blade: what the simulated libraries ask.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use rustix::time::{ClockId, clock_gettime};

use crate::blade::{BLADE_FILE, BLADE_VERSION, BladeScenario, GpuScenario};
use crate::fault::Fault;
use crate::kmsg;
use crate::sku::SimSku;
use crate::state::{GpuState, Layout, MAX_GPUS, MAX_XIDS, STATE_FILE, State};

/// Environment variable that names the blade's directory.
pub const DIR_VARIABLE: &str = "WHETSTONE_SIM";
/// Largest `blade.json` that is read; a real one has about 20 KB.
const MAX_BLADE_BYTES: u64 = 4 << 20;

/// Why a simulated library has no blade to simulate.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    #[error(
        "{DIR_VARIABLE} is not set: it names the directory of a simulated blade (make one with `whet-sim blade`)"
    )]
    NotSet,
    #[error("{path}: {what}", path = .path.display())]
    Bad { path: PathBuf, what: String },
}

/// A simulated blade as one process has it open.
pub struct Sim {
    dir: PathBuf,
    blade: BladeScenario,
    state: State,
}

/// One GPU of it.
#[derive(Clone, Copy)]
pub struct Gpu<'a> {
    pub(crate) sim: &'a Sim,
    pub index: usize,
    pub scenario: &'a GpuScenario,
}

impl Sim {
    /// The blade named by [`DIR_VARIABLE`].
    pub fn open() -> Result<Sim, SimError> {
        let dir = std::env::var_os(DIR_VARIABLE).filter(|d| !d.is_empty()).ok_or(SimError::NotSet)?;
        Sim::open_dir(Path::new(&dir))
    }

    /// This process's blade, opened once. The first failure is also said on standard error.
    pub fn shared() -> Result<&'static Sim, &'static SimError> {
        static SIM: OnceLock<Result<Sim, SimError>> = OnceLock::new();
        SIM.get_or_init(|| Sim::open().inspect_err(|e| eprintln!("simulated silicon: {e}"))).as_ref()
    }

    pub fn open_dir(dir: &Path) -> Result<Sim, SimError> {
        let path = dir.join(BLADE_FILE);
        let bad = |path: &Path, what: String| SimError::Bad { path: path.to_owned(), what };
        let size = std::fs::metadata(&path).map_err(|e| bad(&path, e.to_string()))?.len();
        if size > MAX_BLADE_BYTES {
            return Err(bad(&path, format!("{size} bytes; a blade has at most {MAX_BLADE_BYTES}")));
        }
        let text = std::fs::read_to_string(&path).map_err(|e| bad(&path, e.to_string()))?;
        let blade: BladeScenario = serde_json::from_str(&text).map_err(|e| bad(&path, e.to_string()))?;
        if blade.version != BLADE_VERSION {
            return Err(bad(&path, format!("version {}, this library reads {BLADE_VERSION}", blade.version)));
        }
        if blade.gpus.len() > MAX_GPUS {
            return Err(bad(&path, format!("{} GPUs; at most {MAX_GPUS}", blade.gpus.len())));
        }
        let path = dir.join(STATE_FILE);
        let state = State::open(&path).map_err(|e| bad(&path, e.to_string()))?;
        // Zero stays zero for whoever comes later; monotonic_ns is never 0.
        let _ = state.get().zero_ns.compare_exchange(0, monotonic_ns(), AcqRel, Acquire);
        Ok(Sim { dir: dir.to_owned(), blade, state })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn blade(&self) -> &BladeScenario {
        &self.blade
    }

    pub fn sku(&self) -> &SimSku {
        &self.blade.sku
    }

    pub fn state(&self) -> &Layout {
        self.state.get()
    }

    /// The GPU at `index` in the blade's list (the order of NVML and CUDA), `None` beyond the last.
    pub fn gpu(&self, index: usize) -> Option<Gpu<'_>> {
        self.blade.gpus.get(index).map(|scenario| Gpu { sim: self, index, scenario })
    }

    pub fn gpus(&self) -> impl Iterator<Item = Gpu<'_>> {
        (0..self.blade.gpus.len()).filter_map(|i| self.gpu(i))
    }

    /// Nanoseconds since the blade was first opened, real time.
    pub fn now_ns(&self) -> u64 {
        monotonic_ns().saturating_sub(self.state().zero_ns.load(Acquire))
    }

    /// True once `at_s` seconds have passed.
    pub fn reached(&self, at_s: f64) -> bool {
        self.now_ns() as f64 / 1e9 >= at_s
    }

    /// Makes happen what is due: each timed fault once, whoever notices first. Cheap; call it on every library call.
    pub fn tick(&self) {
        for (i, fault) in self.blade.faults.iter().enumerate().take(64) {
            if let Fault::KernelLine { text, at_s } = fault
                && self.reached(*at_s)
                && first(&self.state().fired, i)
            {
                self.kernel_line(4, text);
            }
        }
        for gpu in self.gpus() {
            for (i, fault) in gpu.scenario.faults.iter().enumerate().take(64) {
                let due = match fault {
                    Fault::Xid { at_s, under_load: true, .. } => gpu.loaded_ns() as f64 / 1e9 >= *at_s,
                    _ => fault.at_s().is_some_and(|at| self.reached(at)),
                };
                if due && first(&gpu.state().fired, i) {
                    self.happen(gpu, fault);
                }
            }
        }
    }

    fn happen(&self, gpu: Gpu<'_>, fault: &Fault) {
        let pci = &gpu.scenario.pci;
        match fault {
            Fault::Xid { code, text, .. } => self.raise_xid(gpu, *code, text),
            Fault::EccUncorrectable { .. } => self.raise_xid(gpu, 94, ""),
            Fault::GpuLost { .. } => {
                gpu.state().lost.store(1, Release);
                self.raise_xid(gpu, 79, "");
                self.kernel_line(3, &format!("NVRM: GPU {pci}: GPU has fallen off the bus."));
            }
            _ => {}
        }
    }

    /// Writes an XID of `gpu` to the kernel log and to the event list. An empty `text` gets the driver's usual words.
    pub fn raise_xid(&self, gpu: Gpu<'_>, code: u32, text: &str) {
        self.kernel_line(3, &kmsg::xid_line(&gpu.scenario.pci, code, text));
        let place = self.state().xid_count.fetch_add(1, AcqRel) as usize;
        if let Some(slot) = self.state().xids.get(place) {
            slot.store(1 << 63 | (gpu.index as u64) << 32 | u64::from(code), Release);
        }
    }

    /// The XIDs raised so far from number `from` on, as (GPU index, code); the caller goes on at `from` + their count.
    pub fn xids_from(&self, from: u64) -> Vec<(usize, u32)> {
        let count = self.state().xid_count.load(Acquire).min(MAX_XIDS as u64);
        let slots = self.state().xids.iter().take(count as usize).skip(from as usize);
        slots
            .map(|slot| slot.load(Acquire))
            .take_while(|packed| *packed != 0)
            .map(|packed| ((packed >> 32 & 0xffff) as usize, packed as u32))
            .collect()
    }

    /// Appends a line to the blade's kernel log.
    pub fn kernel_line(&self, priority: u8, text: &str) {
        let sequence = 10_000 + self.state().kmsg_lines.fetch_add(1, Relaxed);
        if let Err(error) = kmsg::append(&self.dir, sequence, monotonic_ns() / 1000, priority, text) {
            eprintln!("simulated silicon: {}: {error}", self.dir.join(kmsg::KMSG_FILE).display());
        }
    }

    /// Never returns if a [`Fault::Hang`] for `call` (or for all of `library`: `nvml`, `cuda`, `nccl`) is due on `gpu` or the blade.
    pub fn hang_if_planted(&self, gpu: Option<usize>, library: &str, call: &str) {
        let own = gpu.and_then(|i| self.blade.gpus.get(i)).map(|g| g.faults.as_slice()).unwrap_or_default();
        let due = own.iter().chain(&self.blade.faults).any(|fault| {
            matches!(fault, Fault::Hang { call: which, at_s }
                if (which == library || which == call) && self.reached(*at_s))
        });
        if due {
            loop {
                std::thread::sleep(std::time::Duration::from_secs(3600));
            }
        }
    }
}

/// True for the first caller that sets bit `i`.
fn first(bits: &std::sync::atomic::AtomicU64, i: usize) -> bool {
    bits.fetch_or(1 << i, AcqRel) & 1 << i == 0
}

/// CLOCK_MONOTONIC: the same in all processes of the machine.
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64
}

impl<'a> Gpu<'a> {
    pub fn state(&self) -> &'a GpuState {
        &self.sim.state().gpus[self.index]
    }

    pub fn sku(&self) -> &'a SimSku {
        &self.sim.blade.sku
    }

    pub fn sim(&self) -> &'a Sim {
        self.sim
    }

    pub fn faults(&self) -> &'a [Fault] {
        &self.scenario.faults
    }

    /// Fallen off the bus: every call about it fails from now on.
    pub fn lost(&self) -> bool {
        self.state().lost.load(Acquire) != 0
    }

    /// HBM that can be written, bytes.
    pub fn backed_bytes(&self) -> u64 {
        let busy: u64 =
            self.faults().iter().map(|f| if let Fault::MemoryBusy { mib } = f { *mib } else { 0 }).sum();
        self.sim.blade.hbm_backed_mib.saturating_sub(busy) << 20
    }
}
