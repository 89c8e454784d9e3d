//! GPUs through NVML: one thread per GPU, so that one that hangs does not hide the others.

mod field;
mod link;
mod raw;
mod read;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use whetstone_model::device::DeviceId;
use whetstone_model::facts::*;

use super::Depth;
use super::source::{Answer, Slot};
use super::sysfs::Root;

/// Names that the dynamic loader is asked for when no path is given; `.so.1` is what drivers install.
const LIBRARY_NAMES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// GPUs of one blade at most; a bound on what a library may claim.
const MAX_GPUS: u32 = 64;

/// The library, open, with what is known of its GPUs.
pub struct Gpus {
    library: Option<PathBuf>,
    opening: Slot<Result<Open, OpenError>>,
    open: Option<Open>,
    slots: Vec<GpuSlot>,
    /// GPUs (by index) for which the library was opened anew already: a GPU that stays lost must not have it
    /// closed and opened at every look.
    reopened_for: Vec<u32>,
    /// GPUs that have answered since this prober was made: one that is gone later is still named.
    known: Vec<Known>,
}

struct Open {
    nvml: Arc<Nvml>,
    driver: GpuDriver,
}

#[derive(Debug, Clone, PartialEq)]
struct Known {
    index: u32,
    uuid: DeviceId,
    pci: Option<String>,
}

struct GpuSlot {
    read: Slot<Result<GpuFacts, read::Broken>>,
    /// What the thread has learnt so far: names a GPU that then hangs.
    met: Arc<Mutex<Option<Known>>>,
    last: Option<GpuFacts>,
}

/// Why NVML could not be opened.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OpenError {
    #[error("no NVIDIA driver: {0}")]
    Absent(String),
    #[error("NVML: {0}")]
    VersionMismatch(String),
    #[error("NVML: {0}")]
    NoPermission(String),
    #[error("NVML: {0}")]
    Other(String),
}

/// Why there is nothing from NVML, as the source's status says it.
pub struct NotOpen {
    pub state: SourceState,
    pub detail: String,
    pub code: Option<String>,
}

impl From<OpenError> for NotOpen {
    fn from(error: OpenError) -> Self {
        let (state, code) = match error {
            OpenError::Absent(_) => (SourceState::Absent, None),
            OpenError::VersionMismatch(_) => (SourceState::Error, Some("nvml-version-mismatch")),
            OpenError::NoPermission(_) => (SourceState::Error, Some("nvml-no-permission")),
            OpenError::Other(_) => (SourceState::Error, None),
        };
        Self { state, detail: error.to_string(), code: code.map(str::to_owned) }
    }
}

/// What one look at all GPUs gave.
#[derive(Default)]
pub struct Seen {
    pub driver: Option<GpuDriver>,
    pub gpus: Vec<GpuFacts>,
    pub gaps: Vec<GpuGap>,
}

impl Gpus {
    pub fn new(library: Option<PathBuf>) -> Self {
        Self {
            library,
            opening: Slot::new("nvml"),
            open: None,
            slots: Vec::new(),
            reopened_for: Vec::new(),
            known: Vec::new(),
        }
    }

    /// Asks every GPU that is not still busy with an earlier question. Call [`Gpus::collect`] next.
    pub fn ask(&mut self, depth: Depth, deadline: Instant) -> Result<(), NotOpen> {
        if self.open.is_none() {
            let library = self.library.clone();
            self.opening.ask(move || open(library.as_deref()));
            match self.opening.wait(deadline) {
                Answer::Done(Ok(opened), _) => self.open = Some(opened),
                Answer::Done(Err(error), _) => return Err(error.into()),
                Answer::Timeout(for_so_long) => {
                    let detail = format!("no answer in {:.1} s", for_so_long.as_secs_f64());
                    return Err(NotOpen { state: SourceState::Timeout, detail, code: None });
                }
                Answer::Failed(detail) => {
                    return Err(NotOpen { state: SourceState::Error, detail, code: None });
                }
            }
        }
        let Some(open) = &self.open else { return Ok(()) };
        let count = open.driver.device_count.unwrap_or(0).min(MAX_GPUS);
        while self.slots.len() < count as usize {
            self.slots.push(GpuSlot { read: Slot::new("gpu"), met: Arc::default(), last: None });
        }
        for (index, slot) in (0..count).zip(&mut self.slots) {
            let (nvml, met, before) = (open.nvml.clone(), slot.met.clone(), slot.last.clone());
            let simulated = open.driver.simulated;
            slot.read.ask(move || one_gpu(&nvml, index, &met, simulated, depth, before));
        }
        Ok(())
    }

    /// What the GPUs answered by `deadline`.
    pub fn collect(&mut self, deadline: Instant) -> Seen {
        let Some(open) = &self.open else { return Seen::default() };
        let mut seen = Seen { driver: Some(open.driver.clone()), ..Seen::default() };
        let count = open.driver.device_count.unwrap_or(0).min(MAX_GPUS);
        let mut reopen = false;
        for (index, slot) in (0..count).zip(&mut self.slots) {
            let gap = match slot.read.wait(deadline) {
                Answer::Done(Ok(gpu), _) => {
                    let known = Known { index, uuid: gpu.uuid.clone(), pci: gpu.identity.pci.clone() };
                    self.known.retain(|old| old.uuid != known.uuid);
                    self.known.push(known);
                    slot.last = Some(gpu.clone());
                    self.reopened_for.retain(|other| *other != index);
                    seen.gpus.push(gpu);
                    continue;
                }
                Answer::Done(Err((kind, detail)), _) => {
                    // Handles of a GPU that was lost or reset stay bad: the library is opened anew next time.
                    if !self.reopened_for.contains(&index) {
                        self.reopened_for.push(index);
                        reopen = true;
                    }
                    (kind, detail)
                }
                Answer::Timeout(for_so_long) => {
                    (GapKind::Timeout, format!("no answer in {:.1} s", for_so_long.as_secs_f64()))
                }
                Answer::Failed(why) => (GapKind::Error, why),
            };
            slot.last = None;
            let met = slot.met.lock().ok().and_then(|met| met.clone());
            let who = met.or_else(|| self.known.iter().find(|known| known.index == index).cloned());
            seen.gaps.push(GpuGap {
                index,
                uuid: who.as_ref().map(|known| known.uuid.clone()),
                pci: who.and_then(|known| known.pci),
                kind: gap.0,
                detail: gap.1,
            });
        }
        for known in &self.known {
            let answered = seen.gpus.iter().any(|gpu| gpu.uuid == known.uuid);
            let counted = seen.gaps.iter().any(|gap| gap.uuid.as_ref() == Some(&known.uuid));
            if !answered && !counted {
                seen.gaps.push(GpuGap {
                    index: known.index,
                    uuid: Some(known.uuid.clone()),
                    pci: known.pci.clone(),
                    kind: GapKind::Lost,
                    detail: "it answered before and NVML does not list it any more".to_owned(),
                });
            }
        }
        if reopen {
            self.close();
        }
        seen
    }

    /// Lets go of the library. Its shutdown runs on a thread of its own: it may hang like any other call.
    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            let _ = std::thread::Builder::new().name("nvml-close".to_owned()).spawn(move || drop(open));
        }
    }

    /// An independent handle to the open library, for the telemetry sampler.
    pub fn library(&self) -> Option<Arc<Nvml>> {
        self.open.as_ref().map(|open| open.nvml.clone())
    }
}

impl Drop for Gpus {
    fn drop(&mut self) {
        self.close();
    }
}

fn open(library: Option<&Path>) -> Result<Open, OpenError> {
    let nvml = load(library)?;
    let version = nvml.sys_driver_version().ok();
    let driver = GpuDriver {
        simulated: version.as_deref().is_some_and(|version| version.to_ascii_lowercase().contains("sim")),
        version,
        nvml_version: nvml.sys_nvml_version().ok(),
        cuda_version: nvml.sys_cuda_driver_version().ok().map(|version| {
            let (major, minor) = (
                nvml_wrapper::cuda_driver_version_major(version),
                nvml_wrapper::cuda_driver_version_minor(version),
            );
            format!("{major}.{minor}")
        }),
        device_count: Some(nvml.device_count().map_err(open_error)?),
    };
    Ok(Open { nvml: Arc::new(nvml), driver })
}

fn load(library: Option<&Path>) -> Result<Nvml, OpenError> {
    if let Some(path) = library {
        // A path that was asked for and cannot be loaded is an error, not a blade without GPUs.
        return Nvml::builder().lib_path(path.as_os_str()).init().map_err(|error| match error {
            NvmlError::LibloadingError(error) => OpenError::Other(format!("{}: {error}", path.display())),
            other => open_error(other),
        });
    }
    let mut absent = String::new();
    for name in LIBRARY_NAMES {
        match Nvml::builder().lib_path(name.as_ref()).init() {
            Ok(nvml) => return Ok(nvml),
            Err(NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound) => {
                absent = format!("{name} is not there")
            }
            Err(error) => return Err(open_error(error)),
        }
    }
    Err(OpenError::Absent(absent))
}

fn open_error(error: NvmlError) -> OpenError {
    match error {
        NvmlError::DriverNotLoaded => OpenError::Absent(error.to_string()),
        NvmlError::LibRmVersionMismatch => OpenError::VersionMismatch(
            "driver/library version mismatch: the loaded kernel module is of another release".to_owned(),
        ),
        NvmlError::NoPermission => OpenError::NoPermission(error.to_string()),
        other => OpenError::Other(other.to_string()),
    }
}

fn one_gpu(
    nvml: &Nvml,
    index: u32,
    met: &Mutex<Option<Known>>,
    simulated: bool,
    depth: Depth,
    before: Option<GpuFacts>,
) -> Result<GpuFacts, read::Broken> {
    let broken = |call: &str, error: NvmlError| (read::gap_kind(&error), read::words(call, &error));
    let device = nvml.device_by_index(index).map_err(|error| broken("device_by_index", error))?;
    let uuid = device.uuid().map_err(|error| broken("uuid", error))?;
    let uuid = DeviceId::new(uuid).map_err(|error| (GapKind::Error, error.to_string()))?;
    let unknown = met.lock().is_ok_and(|known| known.as_ref().is_none_or(|known| known.uuid != uuid));
    if unknown {
        if let Ok(mut known) = met.lock() {
            *known = Some(Known { index, uuid: uuid.clone(), pci: None });
        }
        let pci = device.pci_info().ok().map(|info| read::pci_address(&info));
        if let Ok(mut known) = met.lock() {
            *known = Some(Known { index, uuid: uuid.clone(), pci });
        }
    }
    read::gpu(&device, index, uuid, simulated, depth, before)
}

/// Gives names to GPUs that NVML could not name, so that a person finds them: a GPU on the PCI bus that no other
/// GPU of NVML's claims is one of them, in the order of both; the kernel module knows its UUID from better days.
pub fn name_gaps(root: &Root, facts: &mut Facts) {
    let claimed = |address: &str| {
        let of = |pci: &Option<String>| pci.as_deref() == Some(address);
        facts.gpus.iter().any(|gpu| of(&gpu.identity.pci)) || facts.gpu_gaps.iter().any(|gap| of(&gap.pci))
    };
    let free: Vec<String> = facts
        .pci
        .iter()
        .filter(|pci| pci.kind == PciKind::Gpu && !claimed(&pci.address))
        .map(|pci| pci.address.clone())
        .collect();
    let nameless = facts.gpu_gaps.iter().filter(|gap| gap.pci.is_none()).count();
    // With more candidates than gaps it would be a guess.
    if free.len() == nameless {
        for (gap, address) in facts.gpu_gaps.iter_mut().filter(|gap| gap.pci.is_none()).zip(free) {
            gap.pci = Some(address);
        }
    }
    for gap in facts.gpu_gaps.iter_mut().filter(|gap| gap.uuid.is_none()) {
        let Some(pci) = &gap.pci else { continue };
        let text = root.text(&format!("proc/driver/nvidia/gpus/{pci}/information")).unwrap_or_default();
        let uuid = text.lines().find_map(|line| line.strip_prefix("GPU UUID:")).map(str::trim);
        // A GPU that the module lost early reads as question marks.
        gap.uuid = uuid.filter(|uuid| !uuid.contains('?')).and_then(|uuid| DeviceId::new(uuid).ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::sysfs::testing::plant;

    fn gap(index: u32) -> GpuGap {
        GpuGap { index, uuid: None, pci: None, kind: GapKind::Lost, detail: String::new() }
    }

    fn on_bus(address: &str) -> PciDevice {
        PciDevice { address: address.into(), kind: PciKind::Gpu, ..PciDevice::default() }
    }

    #[test]
    fn a_nameless_gpu_is_named_by_its_place_on_the_bus_and_by_the_kernel_module() {
        let dir = tempfile::tempdir().unwrap();
        let file = "proc/driver/nvidia/gpus/0000:18:00.0/information";
        plant(dir.path(), &[(file, "Model: \t\t NVIDIA\nGPU UUID: \t GPU-1234\n")]);
        let root = Root::new(dir.path());
        let mut facts =
            Facts { pci: vec![on_bus("0000:18:00.0")], gpu_gaps: vec![gap(0)], ..Facts::default() };
        name_gaps(&root, &mut facts);
        assert_eq!(facts.gpu_gaps[0].pci.as_deref(), Some("0000:18:00.0"));
        assert_eq!(facts.gpu_gaps[0].device().unwrap().as_str(), "GPU-1234");
        // Two on the bus, one gap: nobody can say which of them it is.
        let pci = vec![on_bus("0000:18:00.0"), on_bus("0000:2a:00.0")];
        let mut facts = Facts { pci, gpu_gaps: vec![gap(0)], ..Facts::default() };
        name_gaps(&root, &mut facts);
        assert_eq!(facts.gpu_gaps[0].device(), None);
    }
}
