//! A driver that fails, hangs or is not there: never a crash, never a pass, and only the hardware's fault is a fault.

use std::process::Command;
use std::time::Duration;

use serde_json::json;
use whetstone_burnin::protocol::GpuTarget;
use whetstone_burnin::suite::TestKind;
use whetstone_model::device::DeviceId;
use whetstone_model::report::TestOutcome;
use whetstone_suite::{whet, whet_on};

use crate::child::h100;
use crate::compute::{gemm, kind};
use crate::has_kernels;

fn all() -> Vec<TestKind> {
    vec![
        gemm(&["bf16"]),
        kind("gpu_memory", json!({})),
        kind("gpu_power", json!({})),
        kind("gpu_bandwidth", json!({})),
        kind("gpu_collectives", json!({})),
    ]
}

#[test]
fn no_driver_is_inconclusive_in_every_test() {
    let blade = h100("");
    for kind in all() {
        let name = kind.name();
        let gpus = vec![blade.target(0), blade.target(1)];
        let said = blade.start_with(Command::new(whet()), kind, gpus).into_end();
        assert_eq!(said.outcome, TestOutcome::Inconclusive, "{name}");
        assert!(said.detail.contains("libcuda.so.1"), "{name}: {}", said.detail);
    }
}

#[test]
fn no_gpu_is_not_applicable() {
    let blade = h100("");
    for kind in all() {
        let said = blade.start_with(Command::new(whet()), kind, Vec::new()).into_end();
        assert_eq!(said.outcome, TestOutcome::NotApplicable);
    }
}

#[test]
fn a_gpu_that_cuda_does_not_see_is_inconclusive() {
    let blade = h100("");
    let uuid = DeviceId::new("GPU-00000000-0000-0000-0000-000000000000").unwrap();
    let gpus = vec![GpuTarget { uuid, label: "gpu9".into() }];
    let mut command = whet_on(std::path::Path::new("."));
    command.env("WHETSTONE_SIM", blade.directory());
    let said = blade.start_with(command, gemm(&["bf16"]), gpus).into_end();
    assert_eq!(said.outcome, TestOutcome::Inconclusive);
    assert!(said.detail.contains("none of them is GPU-00000000"), "{}", said.detail);
}

#[test]
fn an_uncorrectable_error_is_the_gpus_fault_and_an_exception_is_not_proven() {
    if !has_kernels() {
        return;
    }
    let blade = h100("[[fault]]\nkind = \"launch_error\"\ngpu = 4\ncode = 214\nnth = 2\n");
    let said = blade.run(gemm(&["bf16"]), &[4]);
    said.assert_fault("ecc-uncorrectable", &blade.uuid(4));
    let blade = h100("[[fault]]\nkind = \"launch_error\"\ngpu = 4\ncode = 719\nnth = 2\n");
    let said = blade.run(gemm(&["bf16"]), &[4]);
    assert_eq!(said.outcome, TestOutcome::Inconclusive, "{}", said.detail);
    assert_eq!(said.findings()[0].code, "gpu-exception");
}

#[test]
fn a_lost_gpu_cannot_be_tested() {
    let blade = h100("[[fault]]\nkind = \"gpu_lost\"\ngpu = 2\nat_s = 0.0\n");
    let said = blade.run(kind("gpu_bandwidth", json!({ "mib": 1, "repeats": 1 })), &[1, 2]);
    assert_eq!(said.outcome, TestOutcome::Inconclusive, "{}", said.detail);
    assert!(said.detail.starts_with("gpu2: "), "{}", said.detail);
}

/// The runner ends a test that says nothing for long; it must indeed say nothing when a call hangs.
#[test]
fn a_hanging_call_makes_the_test_fall_silent() {
    let blade = h100("[[fault]]\nkind = \"hang\"\ngpu = 0\ncall = \"cuMemcpyHtoDAsync_v2\"\n");
    let mut running = blade.start(kind("gpu_bandwidth", json!({ "mib": 1, "repeats": 1 })), &[0]);
    assert!(running.falls_silent(Duration::from_secs(3)));
}
