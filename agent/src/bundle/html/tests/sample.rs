//! Reports to draw: eight GPUs with faults, and a host without GPUs. Used by the tests and by
//! `examples/report_page.rs`.

use whetstone_model::action::{Action, Severity};
use whetstone_model::device::{Device, DeviceId, DeviceKind};
use whetstone_model::evidence::{Finding, Reading};
use whetstone_model::report::*;
use whetstone_model::unit::Unit;
use whetstone_model::verdict::{Outcome, Verdict};

pub const START: i64 = 1_795_334_400_000;

pub fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn gpu(n: usize) -> DeviceId {
    id(&format!("GPU-4b1e0c2a-77d1-4e5b-9c10-0000000000{n:02}"))
}

/// A little noise that is the same every time.
fn noise(a: usize, b: usize) -> f64 {
    let mut x = (a as u64 * 7919 + b as u64 * 104_729 + 12345).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 31;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((x >> 40) as f64 / (1u64 << 24) as f64) - 0.5
}

fn verdict(device: Option<DeviceId>, outcome: Outcome, code: &str, why: &str, action: Action) -> Verdict {
    Verdict { device, outcome, code: code.into(), why: why.into(), action, evidence: vec![] }
}

fn test(name: &str, kind: &str, outcome: TestOutcome, from_s: i64, to_s: i64) -> TestResult {
    TestResult {
        outcome,
        detail: String::new(),
        ended_ms: START + to_s * 1000,
        ..TestResult::empty(name, kind, START + from_s * 1000)
    }
}

fn reading(device: Option<DeviceId>, metric: &str, value: f64, unit: Unit) -> DeviceReading {
    DeviceReading { device, reading: Reading::new(metric, value, unit) }
}

/// A host without GPUs that passed.
pub fn host_only() -> Report {
    let mut compute = test("cpu", "cpu_compute", TestOutcome::Pass, 2, 42);
    compute.readings.push(reading(None, "cpu.gemm.throughput", 212.4, Unit::Gflops));
    compute.profiles.push(Profile {
        device: None,
        metric: "cpu.gemm.throughput".into(),
        unit: Unit::Gflops,
        index: "core".into(),
        values: (0..16).map(|c| Some(13.2 + 0.3 * noise(c, 1))).collect(),
    });
    let mut dram = test("dram", "dram", TestOutcome::Pass, 42, 80);
    dram.readings.push(reading(None, "dram.bandwidth", 21.7, Unit::GBps));
    let mut gemm = test("gemm", "gpu_gemm", TestOutcome::NotApplicable, 80, 80);
    gemm.detail = "no GPU".into();
    Report {
        schema: SCHEMA.into(),
        run: "lab-1-1795334400-9f03".into(),
        blade: Blade { name: "lab-1".into(), serial: None, sku: None, kernel: "6.1.0-28-amd64".into() },
        simulated: false,
        suite: SuiteRef { name: "quick".into(), sha256: "5a".repeat(32), seed: 1 },
        versions: Versions {
            whet: "0.1.0".into(),
            driver: None,
            cuda: None,
            nccl: None,
            vbios: None,
            kernels: None,
        },
        started_ms: START,
        ended_ms: Some(START + 81_000),
        complete: true,
        incomplete_because: None,
        devices: vec![],
        verdict: verdict(None, Outcome::Pass, "ok", "", Action::None),
        device_verdicts: vec![],
        tests: vec![compute, dram, gemm],
        findings: vec![],
        series: vec![],
    }
}

/// Eight simulated H100s: wrong bits and a slow SM on gpu5, a downtrained PCIe link on gpu2.
pub fn eight_gpus() -> Report {
    let mut report = host_only();
    report.blade = Blade {
        name: "b-003".into(),
        serial: Some("SN-1652823000417".into()),
        sku: Some("hgx-h100".into()),
        kernel: "6.1.0-28-amd64".into(),
    };
    report.run = "b-003-1795334400-1c7e".into();
    report.simulated = true;
    report.versions = Versions {
        whet: "0.1.0".into(),
        driver: Some("580.65.06 (sim)".into()),
        cuda: Some("13.0".into()),
        nccl: Some("2.27.3".into()),
        vbios: Some("96.00.74.00.01".into()),
        kernels: Some("c4".repeat(32)),
    };
    report.devices = (0..8)
        .map(|n| Device {
            id: gpu(n),
            kind: DeviceKind::Gpu,
            label: format!("gpu{n}"),
            model: "NVIDIA H100 80GB HBM3 (sim)".into(),
            serial: Some(format!("16528230{n:05}")),
            pci: Some(format!("0000:{:02x}:00.0", 0x1b + 0x11 * n)),
        })
        .collect();
    let wrong = Finding {
        code: "sdc".into(),
        device: Some(gpu(5)),
        severity: Severity::Fault,
        action: Action::Replace,
        detail: "gemm bf16: 3 wrong bits in 2 tiles, all on SM 41 (bit-exact test); bits 14, 14, 22".into(),
        reading: None,
    };
    let width = Finding {
        code: "pcie-width".into(),
        device: Some(gpu(2)),
        severity: Severity::Fault,
        action: Action::CheckLink,
        detail: "PCIe Gen5 x8, SKU says x16".into(),
        reading: Some(Reading::new("pcie.width", 8.0, Unit::Count)),
    };
    let warm = Finding {
        code: "temperature".into(),
        device: Some(gpu(7)),
        severity: Severity::Warning,
        action: Action::None,
        detail: "83 C under load, 6 C above the median of its neighbours".into(),
        reading: Some(Reading::new("temperature.gpu", 83.0, Unit::Celsius)),
    };
    report.device_verdicts = (0..8)
        .map(|n| match n {
            5 => verdict(Some(gpu(n)), Outcome::Fail, "sdc", &wrong.detail, Action::Replace),
            2 => verdict(Some(gpu(n)), Outcome::Fail, "pcie-width", &width.detail, Action::CheckLink),
            6 => verdict(
                Some(gpu(n)),
                Outcome::Inconclusive,
                "could-not-test",
                "memory: no answer for 20 s",
                Action::DrainAndTest,
            ),
            _ => verdict(Some(gpu(n)), Outcome::Pass, "ok", "", Action::None),
        })
        .collect();
    report.verdict = verdict(None, Outcome::Fail, "sdc", &format!("gpu5: {}", wrong.detail), Action::Replace);

    let mut inventory = test("inventory", "inventory", TestOutcome::Fail, 0, 3);
    inventory.detail = "gpu2: PCIe Gen5 x8, SKU says x16".into();
    inventory.findings.push(width.clone());
    let mut memory = test("memory", "gpu_memory", TestOutcome::Inconclusive, 3, 48);
    memory.detail = "7 of 8 GPUs tested".into();
    memory.devices.push(DeviceOutcome {
        device: gpu(6),
        outcome: TestOutcome::Inconclusive,
        detail: "no answer for 20 s; its process was ended".into(),
    });
    for n in 0..8 {
        memory.readings.push(reading(Some(gpu(n)), "hbm.bandwidth", 2790.0 + 30.0 * noise(n, 3), Unit::GBps));
    }
    let mut gemm = test("gemm", "gpu_gemm", TestOutcome::Fail, 48, 112);
    gemm.detail = "gpu5: 3 wrong bits".into();
    gemm.findings.push(wrong.clone());
    gemm.notes.push("accumulator of e4m3 measured at 14 bits".into());
    for (f, (format, tflops)) in
        [("fp64", 58.0), ("tf32", 371.0), ("bf16", 712.0), ("fp8_e4m3", 1392.0)].into_iter().enumerate()
    {
        for n in 0..8 {
            let slow = if n == 5 && format == "bf16" { 0.92 } else { 1.0 };
            let metric = format!("gemm.{format}.throughput");
            let value = tflops * slow * (1.0 + 0.008 * noise(n, f));
            gemm.readings.push(reading(Some(gpu(n)), &metric, value, Unit::Tflops));
            gemm.digests.push(Digest {
                device: gpu(n),
                key: format!("gemm {format} wgmma seed 1 hopper"),
                value: format!("{:016x}", 77 + f),
            });
            if f >= 2 {
                let values = (0..132)
                    .map(|sm| {
                        let bad = n == 5 && sm == 41;
                        let share = tflops / 132.0
                            * (1.0 + 0.004 * noise(n * 200 + sm, f))
                            * if bad { 0.88 } else { 1.0 };
                        (!(n == 1 && sm == 130)).then_some(share)
                    })
                    .collect();
                gemm.profiles.push(Profile {
                    device: Some(gpu(n)),
                    metric,
                    unit: Unit::Tflops,
                    index: "sm".into(),
                    values,
                });
            }
        }
    }
    let mut bandwidth = test("bandwidth", "gpu_bandwidth", TestOutcome::Pass, 112, 140);
    let labels: Vec<String> = (0..8).map(|n| format!("gpu{n}")).collect();
    bandwidth.matrices.push(Matrix {
        metric: "p2p.bandwidth".into(),
        unit: Unit::GBps,
        rows: labels.clone(),
        columns: labels.clone(),
        values: (0..8)
            .map(|a| {
                (0..8)
                    .map(|b| {
                        (a != b).then(|| {
                            392.0 + 6.0 * noise(a * 8 + b, 9) - if a == 3 && b == 4 { 121.0 } else { 0.0 }
                        })
                    })
                    .collect()
            })
            .collect(),
    });
    bandwidth.matrices.push(Matrix {
        metric: "p2p.latency".into(),
        unit: Unit::Microsecond,
        rows: labels.clone(),
        columns: labels,
        values: (0..8)
            .map(|a| (0..8).map(|b| (a != b).then(|| 2.1 + 0.2 * noise(a * 8 + b, 11))).collect())
            .collect(),
    });
    for n in 0..8 {
        let share = if n == 2 { 0.5 } else { 1.0 };
        bandwidth.readings.push(reading(
            Some(gpu(n)),
            "pcie.h2d.bandwidth",
            share * (55.1 + 0.4 * noise(n, 5)),
            Unit::GBps,
        ));
        bandwidth.readings.push(reading(
            Some(gpu(n)),
            "pcie.d2h.bandwidth",
            share * (54.2 + 0.4 * noise(n, 6)),
            Unit::GBps,
        ));
    }
    let mut power = test("power", "gpu_power", TestOutcome::Pass, 140, 172);
    for n in 0..8 {
        power.readings.push(reading(Some(gpu(n)), "power.mean", 691.0 + 6.0 * noise(n, 7), Unit::Watt));
        power.readings.push(reading(
            Some(gpu(n)),
            "temperature.gpu",
            if n == 7 { 83.0 } else { 72.0 + 4.0 * noise(n, 8) },
            Unit::Celsius,
        ));
    }
    let mut cpu = report.tests.swap_remove(0);
    (cpu.started_ms, cpu.ended_ms) = (START + 172_000, START + 180_000);
    cpu.profiles[0].values =
        (0..96).map(|c| Some(if c == 37 { 11.6 } else { 13.2 + 0.3 * noise(c, 1) })).collect();
    report.tests = vec![inventory, memory, gemm, bandwidth, power, cpu];
    report.ended_ms = Some(START + 181_000);
    report.findings = vec![wrong, width, warm];
    let load = |t: f64| {
        if (48.0..172.0).contains(&t) {
            1.0
        } else if t > 3.0 {
            0.45
        } else {
            0.0
        }
    };
    for n in 0..8 {
        let mut heat = 34.0;
        let (mut temperature, mut power, mut clock) = (vec![], vec![], vec![]);
        for s in 0..181usize {
            let (ms, l) = (s as u64 * 1000, load(s as f64));
            let hot = if n == 7 { 52.0 } else { 41.0 + n as f64 * 0.6 };
            heat += (34.0 + hot * l - heat) * 0.06;
            temperature.push((ms, heat + 0.6 * noise(n, s)));
            power.push((ms, 75.0 + 615.0 * l + 22.0 * noise(n + 8, s)));
            let dip = if n == 7 && heat > 82.0 { 165.0 } else { 0.0 };
            clock.push((
                ms,
                if l > 0.0 {
                    1980.0 - 90.0 * l - dip + 15.0 * (2.0 * noise(n + 16, s)).round()
                } else {
                    345.0
                },
            ));
        }
        for (metric, unit, points) in [
            ("temperature.gpu", Unit::Celsius, temperature),
            ("power.draw", Unit::Watt, power),
            ("clock.sm", Unit::MegaHertz, clock),
        ] {
            report.series.push(Series { device: Some(gpu(n)), metric: metric.into(), unit, points });
        }
    }
    report
}
