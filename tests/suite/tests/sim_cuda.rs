//! The product's GPU tests on simulated silicon: the shipped binary and its own kernel images, against planted faults.
//!
//! Without kernel images (`make kernels`) there is nothing to run, and the tests say so.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use whetstone_burnin::protocol::{Event, GpuTarget, Request};
use whetstone_burnin::suite::Suite;
use whetstone_model::device::DeviceId;
use whetstone_model::evidence::Finding;
use whetstone_model::report::TestOutcome;
use whetstone_scenario::Sim;
use whetstone_suite::{sim_blade, whet_on};

/// What one device test said.
struct Said {
    events: Vec<Event>,
    outcome: TestOutcome,
    detail: String,
}

impl Said {
    fn findings(&self) -> Vec<&Finding> {
        let findings = self.events.iter().filter_map(|event| match event {
            Event::Finding(finding) => Some(finding),
            _ => None,
        });
        findings.collect()
    }

    fn reading(&self, metric: &str) -> Option<f64> {
        self.events.iter().find_map(|e| match e {
            Event::Reading(r) if r.reading.metric == metric => Some(r.reading.value),
            _ => None,
        })
    }
}

/// Runs the test `kind` with `params` (TOML) as the runner would; `None` if the build has no kernels.
fn device_test(blade: &Path, kind: &str, params: &str) -> Option<Said> {
    let suite = format!(
        "name = \"one\"\ndescription = \"\"\n[[test]]\nname = \"one\"\nkind = \"{kind}\"\nbudget_s = 8\nparams = {{ {params} }}\n"
    );
    let test = Suite::parse("one.toml", &suite).unwrap().tests.remove(0);
    let sim = Sim::open_dir(blade).unwrap();
    let target = |(i, gpu): (usize, &whetstone_scenario::GpuScenario)| GpuTarget {
        uuid: DeviceId::try_from(gpu.uuid.clone()).unwrap(),
        label: format!("gpu{i}"),
    };
    let request = Request {
        name: test.name,
        kind: test.kind,
        seed: 7,
        budget_s: test.budget_s,
        scratch: blade.to_owned(),
        gpus: sim.blade().gpus.iter().enumerate().map(target).collect(),
    };
    let mut child =
        whet_on(blade).arg("device-test").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // The pipe stays open until the child has ended: a closed one tells it that its runner is gone.
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "{}", serde_json::to_string(&request).unwrap()).unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut events: Vec<Event> = lines.map(|l| serde_json::from_str(&l.unwrap()).unwrap()).collect();
    child.wait().unwrap();
    let Some(Event::Done { outcome, detail }) = events.pop() else {
        panic!("{kind} ended without its last event")
    };
    if detail.contains("no GPU kernels") {
        eprintln!("skipped: {detail}");
        return None;
    }
    Some(Said { events, outcome, detail })
}

/// A small H100 blade with `gpus` GPUs.
fn blade(dir: &Path, gpus: u32, faults: &str) -> std::path::PathBuf {
    sim_blade(
        dir,
        &format!("name = \"b-001\"\nsku = \"h100\"\nsms = 8\nhbm_backed_mib = 8\ngpus = {gpus}\n{faults}"),
    )
}

const GEMM: &str =
    "formats = [\"bf16\", \"fp8_e4m3\"], max_k = 64, iterations = 2, blocks_per_sm = 1, min_rounds = 1";
const MEMORY: &str = "patterns = [\"address\", \"random\"], fade_s = 0, min_fraction_of_total = 0.0";
const COPIES: &str = "mib = 1, repeats = 2";

#[test]
fn a_healthy_blade_passes_and_says_that_it_is_simulated() {
    let dir = tempfile::tempdir().unwrap();
    let blade = blade(dir.path(), 1, "");
    let Some(said) = device_test(&blade, "gpu_gemm", GEMM) else { return };
    assert_eq!((said.outcome, said.findings().len()), (TestOutcome::Pass, 0), "{}", said.detail);
    // Measured by the product on the chip: FP8 keeps 14 bits on Hopper.
    assert_eq!(said.reading("gemm.fp8_e4m3.accumulator_bits"), Some(14.0));
    assert_eq!(said.reading("gemm.bf16.accumulator_bits"), Some(24.0));
    let digests: Vec<&String> = said
        .events
        .iter()
        .filter_map(|e| if let Event::Digest(d) = e { Some(&d.key) } else { None })
        .collect();
    assert!(!digests.is_empty() && digests.iter().all(|key| key.contains("(sim)")), "{digests:?}");

    let said = device_test(&blade, "gpu_memory", MEMORY).unwrap();
    assert_eq!((said.outcome, said.findings().len()), (TestOutcome::Pass, 0), "{}", said.detail);
}

#[test]
fn a_wrong_sm_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let fault = "[[fault]]\ngpu = 0\nkind = \"sm_flip\"\nsm = 5\nbit = 9\nformat = \"bf16\"\n";
    let Some(said) = device_test(&blade(dir.path(), 1, fault), "gpu_gemm", GEMM) else { return };
    assert_eq!(said.outcome, TestOutcome::Fail);
    assert!(said.detail.contains("bf16") && said.detail.contains("SM 5"), "{}", said.detail);
    assert!(said.findings().iter().all(|f| f.detail.contains("bf16")), "{:?}", said.findings());
}

#[test]
fn a_bad_cell_is_named_with_its_bit() {
    let dir = tempfile::tempdir().unwrap();
    let fault = "[[fault]]\ngpu = 0\nkind = \"hbm_flip\"\nword = 300000\nbit = 33\n";
    let Some(said) = device_test(&blade(dir.path(), 1, fault), "gpu_memory", MEMORY) else { return };
    assert_eq!(said.outcome, TestOutcome::Fail, "{}", said.detail);
    assert!(said.findings().iter().any(|f| f.detail.contains("bit 33")), "{:?}", said.findings());
}

#[test]
fn what_the_driver_blames_on_hardware_fails_and_a_lost_gpu_is_inconclusive() {
    let dir = tempfile::tempdir().unwrap();
    let fault = "[[fault]]\ngpu = 0\nkind = \"launch_error\"\ncode = 214\nnth = 5\n";
    let Some(said) = device_test(&blade(dir.path(), 1, fault), "gpu_gemm", GEMM) else { return };
    assert_eq!(said.outcome, TestOutcome::Fail, "{}", said.detail);
    assert!(said.findings().iter().any(|f| f.code == "ecc-uncorrectable"), "{:?}", said.findings());

    let dir = tempfile::tempdir().unwrap();
    let fault = "[[fault]]\ngpu = 0\nkind = \"gpu_lost\"\nat_s = 0.0\n";
    let said = device_test(&blade(dir.path(), 1, fault), "gpu_gemm", GEMM).unwrap();
    assert_eq!(said.outcome, TestOutcome::Inconclusive, "{}", said.detail);
}

#[test]
fn a_corrupting_link_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let fault = "[[fault]]\ngpu = 1\nkind = \"copy_flip\"\ndirection = \"peer\"\nbit = 3\nevery_n = 1\n";
    let Some(said) = device_test(&blade(dir.path(), 2, fault), "gpu_bandwidth", COPIES) else { return };
    assert_eq!(said.outcome, TestOutcome::Fail, "{}", said.detail);
    let corrupt: Vec<_> = said.findings().into_iter().filter(|f| f.code == "copy-corruption").collect();
    assert!(!corrupt.is_empty() && corrupt.iter().all(|f| f.detail.contains("gpu1")), "{corrupt:?}");
}
