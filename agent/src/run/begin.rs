//! The start of a run: which blade this is, what it is held against, what could not be asked.

use sha2::{Digest as _, Sha256};
use whetstone_burnin::verdict::Gap;
use whetstone_model::action::Action;
use whetstone_model::device::{Device, DeviceId, DeviceKind};
use whetstone_model::evidence::Finding;
use whetstone_model::facts::{Facts, SourceState};
use whetstone_model::health;
use whetstone_model::report::{Blade, Report, SCHEMA, SuiteRef, Versions};
use whetstone_model::threshold::{GpuSeen, Table};
use whetstone_model::verdict::{Outcome, Verdict};

use super::{Backend, RunOptions, SkuChoice, now_ms};
use crate::bundle::{Bundle, BundleError};

/// The report of a run that has just begun: inconclusive until it ends.
pub(super) fn report(options: &RunOptions, facts: &Facts, table: &Table) -> Report {
    let started_ms = now_ms();
    let host = facts.host.hostname.clone().unwrap_or_else(|| "localhost".to_owned());
    let name = options.blade.clone().unwrap_or(host);
    let seen: Vec<GpuSeen<'_>> = facts
        .gpus
        .iter()
        .map(|g| GpuSeen {
            name: g.name.as_deref().unwrap_or(""),
            memory_mib: g.memory.total_mib.unwrap_or(0),
        })
        .collect();
    let sku = match &options.sku {
        SkuChoice::Recognised => table.profile_for(&seen).map(|p| p.sku.clone()),
        SkuChoice::Named(sku) => Some(sku.clone()),
        SkuChoice::None => None,
    };
    let driver = facts.gpu_driver.as_ref();
    let mut vbios: Vec<&str> = facts.gpus.iter().filter_map(|g| g.identity.vbios.as_deref()).collect();
    vbios.sort_unstable();
    vbios.dedup();
    Report {
        schema: SCHEMA.to_owned(),
        run: run_id(&name, started_ms, options.seed),
        simulated: facts.simulated(),
        suite: SuiteRef {
            name: options.suite.name.clone(),
            sha256: hex::encode(Sha256::digest(options.suite_text.as_bytes())),
            seed: options.seed,
        },
        versions: Versions {
            whet: env!("CARGO_PKG_VERSION").to_owned(),
            driver: driver.and_then(|d| d.version.clone()),
            cuda: driver.and_then(|d| d.cuda_version.clone()),
            nccl: None,
            vbios: (!vbios.is_empty()).then(|| vbios.join(", ")),
            kernels: whetstone_device::cuda::kernels::sha256().map(str::to_owned),
        },
        started_ms,
        ended_ms: None,
        complete: false,
        incomplete_because: Some("running: no test done yet".to_owned()),
        devices: devices(options.backend, facts),
        verdict: Verdict {
            device: None,
            outcome: Outcome::Inconclusive,
            code: "not-complete".to_owned(),
            why: "running: no test done yet".to_owned(),
            action: Action::DrainAndTest,
            evidence: Vec::new(),
        },
        device_verdicts: Vec::new(),
        tests: Vec::new(),
        findings: Vec::new(),
        series: Vec::new(),
        blade: Blade {
            name,
            serial: facts.host.serial.clone(),
            sku,
            kernel: facts.kernel.release.clone().unwrap_or_default(),
        },
    }
}

/// `<blade>-<UTC start>-<4 hex>`; the last part keeps two runs of one second apart.
pub(super) fn run_id(blade: &str, started_ms: i64, seed: u64) -> String {
    let time = jiff::Timestamp::from_millisecond(started_ms).unwrap_or_default().strftime("%Y%m%dT%H%M%SZ");
    let distinct = Sha256::digest(format!("{blade} {started_ms} {seed} {}", std::process::id()).as_bytes());
    format!("{blade}-{time}-{}", hex::encode(&distinct[..2]))
}

/// The devices that a run is about.
pub(super) fn devices(backend: Backend, facts: &Facts) -> Vec<Device> {
    let with_gpus = backend != Backend::Cpu;
    let mut devices: Vec<Device> = facts
        .gpus
        .iter()
        .filter(|_| with_gpus)
        .map(|gpu| Device {
            id: gpu.uuid.clone(),
            kind: DeviceKind::Gpu,
            label: gpu.label(),
            model: gpu.name.clone().unwrap_or_default(),
            serial: gpu.identity.serial.clone(),
            pci: gpu.identity.pci.clone(),
        })
        .collect();
    devices.extend(facts.gpu_gaps.iter().filter(|_| with_gpus).filter_map(|gap| {
        Some(Device {
            id: gap.device()?,
            kind: DeviceKind::Gpu,
            label: format!("gpu{}", gap.index),
            model: String::new(),
            serial: None,
            pci: gap.pci.clone(),
        })
    }));
    let mut add = |id: String,
                   kind,
                   label: String,
                   model: Option<&String>,
                   serial: Option<&String>,
                   pci: Option<&String>| {
        if let Ok(id) = DeviceId::new(id) {
            let model = model.cloned().unwrap_or_default();
            devices.push(Device { id, kind, label, model, serial: serial.cloned(), pci: pci.cloned() });
        }
    };
    for socket in 0..facts.cpu.sockets.unwrap_or(0) {
        let id = format!("cpu{socket}");
        add(id.clone(), DeviceKind::Cpu, id, facts.cpu.model.as_ref(), None, None);
    }
    for port in &facts.ib_ports {
        add(port.id(), DeviceKind::NicPort, port.id(), port.adapter_type.as_ref(), None, port.pci.as_ref());
    }
    for drive in &facts.nvme {
        let id = drive.serial.clone().unwrap_or_else(|| drive.name.clone());
        add(
            id,
            DeviceKind::Nvme,
            drive.name.clone(),
            drive.model.as_ref(),
            drive.serial.as_ref(),
            drive.pci.as_ref(),
        );
    }
    devices
}

/// What could not be asked: that part of the blade is unknown, so no verdict can be a pass.
pub(super) fn gaps(backend: Backend, facts: &Facts, findings: &[Finding]) -> Vec<Gap> {
    let gap = |device, code: &str, why, action| Gap { device, code: code.to_owned(), why, action };
    let mut gaps: Vec<Gap> = facts
        .sources
        .iter()
        .filter(|source| backend != Backend::Cpu || source.name != "nvml")
        .filter_map(|source| {
            let why = format!("{}: {}", source.name, source.detail);
            match source.state {
                SourceState::Ok | SourceState::Absent => None,
                SourceState::Timeout => Some(gap(None, "source-timeout", why, Action::Reboot)),
                SourceState::Error => Some(gap(None, "source-error", why, Action::Reboot)),
            }
        })
        .collect();
    if backend == Backend::Cpu {
        return gaps;
    }
    gaps.extend(
        facts.gpu_gaps.iter().map(|g| gap(g.device(), "gpu-no-answer", g.detail.clone(), Action::Reboot)),
    );
    // Those of sources are there already, in the sources' own words.
    let others = findings.iter().filter(|f| health::is_gap(f) && !f.code.starts_with("source-"));
    gaps.extend(others.map(|f| gap(f.device.clone(), &f.code, f.detail.clone(), f.action)));
    if backend == Backend::Cuda && facts.gpus.is_empty() && gaps.is_empty() {
        let why = "--backend cuda: no NVIDIA driver answers on this machine".to_owned();
        gaps.push(gap(None, "no-gpu", why, Action::UpdateSoftware));
    }
    gaps
}

pub(super) fn keep_facts(bundle: &Bundle, name: &str, facts: &Facts) -> Result<(), BundleError> {
    let json = serde_json::to_vec_pretty(facts).map_err(|e| BundleError::Malformed {
        path: bundle.dir().join("raw").join(name),
        what: e.to_string(),
    })?;
    bundle.raw(name, &json)
}
