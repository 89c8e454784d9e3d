//! The driver of this process: the blade, its GPUs as this process holds them, and all handles.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release,
};
use std::sync::{Arc, Mutex, OnceLock};

use whetstone_scenario::{Fault, FlipMode, Gpu, Sim};

use crate::error::{Error, Result};
use crate::handles::{Handles, lock};
use crate::image;
use crate::memory::Memory;
use crate::runtime;
use crate::timeline::Timeline;

pub struct Driver {
    pub sim: &'static Sim,
    pub devices: Vec<Device>,
    pub timeline: Timeline,
    pub streams: Handles<Stream>,
    pub events: Handles<Event>,
    pub modules: Handles<Module>,
    pub functions: Handles<Function>,
    /// Pinned host memory: address → layout.
    pub pinned: Mutex<std::collections::HashMap<usize, std::alloc::Layout>>,
}

/// One GPU in this process.
pub struct Device {
    pub index: usize,
    /// Mapped when the first context is made.
    memory: OnceLock<Mutex<Memory>>,
    pub opened: AtomicBool,
    /// Once not 0, every call about this GPU answers it.
    sticky: AtomicU32,
    pub launches: AtomicU64,
    /// Kernels and copies of one GPU run one after the other.
    pub busy: Mutex<()>,
    /// Speed of each SM, 1 = nominal.
    pub sm_speed: OnceLock<Vec<f64>>,
    /// Tiles that each planted SM fault has seen, by fault.
    pub tiles: Vec<AtomicU32>,
    /// Bytes that this process holds, as counted in the shared state.
    pub held: AtomicU64,
    /// Bit i: memory of device i may be reached from kernels here.
    pub peers: AtomicU64,

    pub default_stream: Stream,
}

pub struct Stream {
    pub device: usize,
    /// Virtual time at which all that was put into it is done.
    pub done_ps: AtomicU64,
}

pub struct Event {
    pub device: usize,
    /// 0 = never recorded.
    pub at_ps: AtomicU64,
}

pub struct Module {
    pub device: usize,
    pub kernels: Vec<image::Kernel>,
}

pub struct Function {
    pub device: usize,
    pub name: String,
    pub kernel: runtime::Kernel,
}

static DRIVER: OnceLock<Result<Driver>> = OnceLock::new();

thread_local! {
    /// The current context's device.
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// `cuInit`.
pub fn init() -> Result<()> {
    DRIVER.get_or_init(start).as_ref().map(|_| ()).map_err(|e| *e)
}

/// The driver after `cuInit`.
pub fn get() -> Result<&'static Driver> {
    DRIVER.get().ok_or(Error::NOT_INITIALIZED)?.as_ref().map_err(|e| *e)
}

fn start() -> Result<Driver> {
    if !processor_suits() {
        eprintln!(
            "simulated silicon: this libcuda was built for a processor with AVX2 and FMA; build it here"
        );
        return Err(Error::UNKNOWN);
    }
    let sim = Sim::shared().map_err(|_| Error::NO_DEVICE)?;
    let devices: Vec<Device> = sim.gpus().map(Device::new).collect();
    if devices.is_empty() {
        return Err(Error::NO_DEVICE);
    }
    let now = sim.gpus().map(|gpu| gpu.virtual_ns()).max().unwrap_or(0).max(1) * 1000;
    Ok(Driver {
        sim,
        devices,
        timeline: Timeline::starting_at(now),
        streams: Handles::new(0x1000_0000),
        events: Handles::new(0x2000_0000),
        modules: Handles::new(0x3000_0000),
        functions: Handles::new(0x4000_0000),
        pinned: Mutex::default(),
    })
}

/// False on a machine that lacks what the kernels were compiled for.
fn processor_suits() -> bool {
    #[cfg(needs_fma)]
    {
        std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2")
    }
    #[cfg(not(needs_fma))]
    true
}

impl Device {
    fn new(gpu: Gpu<'_>) -> Device {
        Device {
            index: gpu.index,
            memory: OnceLock::new(),
            opened: AtomicBool::new(false),
            sticky: AtomicU32::new(0),
            launches: AtomicU64::new(0),
            busy: Mutex::new(()),
            sm_speed: OnceLock::new(),
            tiles: gpu.faults().iter().map(|_| AtomicU32::new(0)).collect(),
            held: AtomicU64::new(0),
            peers: AtomicU64::new(0),
            default_stream: Stream { device: gpu.index, done_ps: AtomicU64::new(0) },
        }
    }

    /// This GPU's HBM; an error before its first context.
    pub fn memory(&self) -> Result<&Mutex<Memory>> {
        self.memory.get().ok_or(Error::INVALID_CONTEXT)
    }

    pub fn fail(&self, error: Error) -> Error {
        // The first error stays.
        let _ = self.sticky.compare_exchange(0, error.0, AcqRel, Acquire);
        error
    }

    pub fn count_held(&self, gpu: Gpu<'_>, bytes: u64, more: bool) {
        let (own, all) = (&self.held, &gpu.state().allocated_bytes);
        for counter in [own, all] {
            if more {
                counter.fetch_add(bytes, AcqRel);
            } else {
                counter.fetch_sub(bytes, AcqRel);
            }
        }
    }
}

impl Driver {
    pub fn gpu(&self, device: usize) -> Result<Gpu<'static>> {
        self.sim.gpu(device).ok_or(Error::INVALID_DEVICE)
    }

    /// The device, if it still answers.
    pub fn device(&self, index: usize) -> Result<&Device> {
        let device = self.devices.get(index).ok_or(Error::INVALID_DEVICE)?;
        if self.gpu(index)?.lost() {
            return Err(if device.opened.load(Acquire) {
                Error::LAUNCH_FAILED
            } else {
                Error::DEVICE_UNAVAILABLE
            });
        }
        match device.sticky.load(Acquire) {
            0 => Ok(device),
            code => Err(Error(code)),
        }
    }

    /// Opens a context: maps the memory.
    pub fn open(&self, index: usize) -> Result<&Device> {
        let device = self.device(index)?;
        let gpu = self.gpu(index)?;
        if device.memory.get().is_none() {
            let fresh = Memory::map(gpu.backed_bytes())?;
            // Another thread may have been first; its mapping is the one.
            let _ = device.memory.set(Mutex::new(fresh));
        }
        device.opened.store(true, Release);
        Ok(device)
    }

    /// The current context's device.
    pub fn current(&self) -> Result<&Device> {
        let index = current().ok_or(Error::INVALID_CONTEXT)?;
        self.device(index)
    }

    /// A stream by its handle; 0, 1 and 2 are the default streams.
    pub fn stream(&self, handle: *mut c_void) -> Result<StreamRef<'_>> {
        if handle.addr() <= 2 {
            Ok(StreamRef::Default(self.current()?))
        } else {
            Ok(StreamRef::Own(self.streams.get(handle)?))
        }
    }

    /// The device whose memory an address lies in; `None` for host memory.
    pub fn owner(&self, address: u64) -> Option<&Device> {
        self.devices.iter().find(|d| d.memory.get().is_some_and(|m| lock(m).holds(address)))
    }

    /// What bad cells make of what was just written.
    pub fn apply_bad_cells(&self, device: &Device, after_kernel: bool) {
        let (Ok(gpu), Some(memory)) = (self.gpu(device.index), device.memory.get()) else { return };
        for (i, fault) in gpu.faults().iter().enumerate().take(64) {
            let Fault::HbmFlip { word, bit, mode } = fault else { continue };
            let memory = lock(memory);
            match mode {
                FlipMode::Sticky => memory.stick(*word, *bit),
                FlipMode::Transient
                    if after_kernel && gpu.state().driver_done.load(Acquire) >> i & 1 == 0 =>
                {
                    if memory.invert(*word, *bit) {
                        gpu.state().driver_done.fetch_or(1 << i, AcqRel);
                    }
                }
                FlipMode::Transient => {}
            }
        }
    }
}

/// A stream that a handle named.
pub enum StreamRef<'a> {
    Default(&'a Device),
    Own(Arc<Stream>),
}

impl std::ops::Deref for StreamRef<'_> {
    type Target = Stream;
    fn deref(&self) -> &Stream {
        match self {
            StreamRef::Default(device) => &device.default_stream,
            StreamRef::Own(stream) => stream,
        }
    }
}

/// Context handles are made from the device's number: `(index + 1) << 16`.
pub fn context_handle(device: Option<usize>) -> *mut c_void {
    std::ptr::without_provenance_mut(device.map_or(0, |d| (d + 1) << 16))
}

/// The device of a context handle; null is no context.
pub fn context_device(driver: &Driver, handle: *mut c_void) -> Result<Option<usize>> {
    match handle.addr() {
        0 => Ok(None),
        address => {
            let device = (address >> 16).wrapping_sub(1);
            let known = address & 0xffff == 0 && device < driver.devices.len();
            if known { Ok(Some(device)) } else { Err(Error::INVALID_CONTEXT) }
        }
    }
}

pub fn current() -> Option<usize> {
    CURRENT.with(Cell::get)
}

pub fn set_current(device: Option<usize>) {
    CURRENT.with(|c| c.set(device));
}

/// Memory that a process still holds when it ends is no longer in use.
extern "C" fn at_end() {
    let Ok(driver) = get() else { return };
    for device in &driver.devices {
        if let Ok(gpu) = driver.gpu(device.index) {
            let held = device.held.swap(0, AcqRel);
            gpu.state().allocated_bytes.fetch_sub(held, AcqRel);
        }
    }
}

#[used]
#[unsafe(link_section = ".fini_array")]
static AT_END: extern "C" fn() = at_end;
