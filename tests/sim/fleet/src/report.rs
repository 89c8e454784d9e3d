//! The signed result of a simulated burn-in.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ed25519_dalek::SigningKey;
use sha2::{Digest, Sha256};
use whetstone_bundle::manifest::{self, FileEntry};
use whetstone_model::action::{Action, Severity};
use whetstone_model::device::{Device, DeviceId, DeviceKind};
use whetstone_model::evidence::Finding;
use whetstone_model::ids::Serial;
use whetstone_model::report::{Blade, Report, SCHEMA, SuiteRef, Versions};
use whetstone_model::verdict::{Outcome, Verdict};
use whetstone_model::wire::{BurnInOrder, RunResult};

use crate::{End, now_ms};

/// What the result says of a blade.
pub struct Run<'a> {
    pub serial: &'a Serial,
    pub instance: &'a str,
    pub key: &'a SigningKey,
    pub order: &'a BurnInOrder,
    pub end: End,
    pub gpus: u32,
    pub sku: &'a str,
    pub started_ms: i64,
}

/// The id of a GPU of a simulated blade.
pub fn gpu(serial: &Serial, index: u32) -> anyhow::Result<DeviceId> {
    Ok(DeviceId::new(format!("GPU-sim-{serial}-{index}"))?)
}

pub fn result(run: &Run<'_>) -> anyhow::Result<RunResult> {
    let report = report(run)?;
    let report_json = serde_json::to_string(&report)?;
    let samples_jsonl = samples(run)?;
    let files = BTreeMap::from([
        ("report.json".to_owned(), FileEntry::of(report_json.as_bytes())),
        ("samples.jsonl".to_owned(), FileEntry::of(samples_jsonl.as_bytes())),
    ]);
    let sealed = manifest::seal(&report.run, files, run.key)?;
    Ok(RunResult {
        run: run.order.run,
        serial: run.serial.clone(),
        instance: run.instance.to_owned(),
        report_json,
        samples_jsonl,
        manifest_json: sealed.manifest_json,
        signature: sealed.signature,
    })
}

fn report(run: &Run<'_>) -> anyhow::Result<Report> {
    let bad = gpu(run.serial, 5 % run.gpus.max(1))?;
    let (outcome, code, why, action) = match run.end {
        End::Pass | End::Slow => (Outcome::Pass, "ok", "", Action::None),
        End::Fail => (Outcome::Fail, "sdc", "gpu5 sdc: wrong bits on SM 41 (sim)", Action::Replace),
        End::Inconclusive | End::Lost => {
            (Outcome::Inconclusive, "source-timeout", "nvml: no answer within 10 s (sim)", Action::Reboot)
        }
    };
    let verdict = |device: Option<DeviceId>, outcome: Outcome| Verdict {
        device,
        outcome,
        code: code.to_owned(),
        why: why.to_owned(),
        action,
        evidence: if outcome == Outcome::Pass { Vec::new() } else { vec![1] },
    };
    let gpus: Vec<DeviceId> = (0..run.gpus).map(|index| gpu(run.serial, index)).collect::<Result<_, _>>()?;
    let finding = Finding {
        code: code.to_owned(),
        device: Some(bad.clone()),
        severity: Severity::Fault,
        action,
        detail: why.to_owned(),
        reading: None,
    };
    Ok(Report {
        schema: SCHEMA.to_owned(),
        run: format!("{}-{}-sim", run.order.blade, run.order.run),
        blade: Blade {
            name: run.order.blade.to_string(),
            serial: Some(run.serial.to_string()),
            sku: Some(run.sku.to_owned()),
            kernel: "sim".to_owned(),
        },
        simulated: true,
        suite: SuiteRef {
            name: "sim".to_owned(),
            sha256: hex::encode(Sha256::digest(run.order.suite.as_bytes())),
            seed: run.order.seed,
        },
        versions: Versions {
            whet: env!("CARGO_PKG_VERSION").to_owned(),
            driver: Some("580.0".to_owned()),
            cuda: None,
            nccl: None,
            vbios: None,
            kernels: None,
        },
        started_ms: run.started_ms,
        ended_ms: Some(now_ms()),
        complete: run.end != End::Inconclusive,
        incomplete_because: None,
        devices: gpus
            .iter()
            .enumerate()
            .map(|(index, id)| Device {
                id: id.clone(),
                kind: DeviceKind::Gpu,
                label: format!("gpu{index}"),
                model: "H100 (sim)".to_owned(),
                serial: None,
                pci: None,
            })
            .collect(),
        verdict: verdict(None, outcome),
        device_verdicts: gpus
            .iter()
            .map(|id| {
                let own = if *id == bad { outcome } else { Outcome::Pass };
                verdict(Some(id.clone()), own)
            })
            .collect(),
        tests: Vec::new(),
        findings: if outcome == Outcome::Fail { vec![finding] } else { Vec::new() },
        series: Vec::new(),
    })
}

/// Two metrics of each GPU, under names that real agents leave samples of: healthy values with a spread of half a percent, from
/// the serial alone.
fn samples(run: &Run<'_>) -> anyhow::Result<String> {
    let mut lines = String::new();
    for index in 0..run.gpus {
        let id = gpu(run.serial, index)?;
        // What the noise follows from is no name: the same blades have the same values whatever a metric is called.
        for (test, metric, noise, center, unit) in [
            ("gemm", "gemm.bf16.throughput", "gemm.bf16.throughput", 780.0, "TFLOP/s"),
            ("bandwidth", "hbm.bandwidth", "hbm.copy", 2900.0, "GB/s"),
        ] {
            let noise = Sha256::digest(format!("{id}{noise}").as_bytes());
            let part: f64 = noise.iter().take(12).map(|byte| f64::from(*byte) / 255.0).sum::<f64>() - 6.0;
            let weak = if run.end == End::Slow && index == 0 { 0.8 } else { 1.0 };
            let value = weak * center * (1.0 + 0.005 * part);
            writeln!(
                lines,
                "{}",
                serde_json::json!({
                    "blade": run.order.blade, "device": id, "test": test, "metric": metric, "value": value,
                    "unit": unit, "better": "higher", "sku": run.sku, "driver": "580.0",
                })
            )?;
        }
    }
    Ok(lines)
}
