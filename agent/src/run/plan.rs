//! What a test of the suite is on this blade: which processes, for which GPUs, and who is left out.

use std::collections::BTreeMap;
use std::path::Path;

use whetstone_burnin::protocol::{GpuTarget, Request};
use whetstone_burnin::suite::{Scope, Test};
use whetstone_model::device::DeviceId;
use whetstone_model::report::{DeviceOutcome, TestOutcome};

use super::blade::Blade;
use super::{Backend, RunOptions};
use crate::bundle::BundleError;

/// A test, laid out.
pub(super) struct Plan {
    pub requests: Vec<Request>,
    /// GPUs that cannot be tested now, with the reason.
    pub left_out: Vec<DeviceOutcome>,
    /// Why the test does not apply to this blade, if so.
    pub not_applicable: Option<String>,
}

/// Where test processes may put files; gone after each test, whatever they left.
const SCRATCH: &str = "scratch";

/// Lays out `test`. `out_of_use` are GPUs that hung or crashed an earlier test, with its name.
pub(super) fn plan(
    options: &RunOptions,
    blade: &Blade,
    out_of_use: &BTreeMap<DeviceId, String>,
    test: &Test,
) -> Plan {
    let request = |gpus: Vec<GpuTarget>| Request {
        name: test.name.clone(),
        kind: test.kind.clone(),
        seed: options.seed,
        budget_s: test.budget_s,
        // A GPU's own, since its test runs beside those of the others.
        scratch: match gpus.as_slice() {
            [gpu] => options.out.join(SCRATCH).join(&test.name).join(&gpu.label),
            _ => options.out.join(SCRATCH).join(&test.name),
        },
        gpus,
    };
    let only = |requests| Plan { requests, left_out: Vec::new(), not_applicable: None };
    let not_here = |why: &str| Plan { not_applicable: Some(why.to_owned()), ..only(Vec::new()) };
    match test.kind.scope() {
        Scope::Facts => return only(Vec::new()),
        Scope::Host => return only(vec![request(Vec::new())]),
        Scope::EachGpu | Scope::AllGpus => {}
    }
    if options.backend == Backend::Cpu {
        return not_here("GPUs left out by --backend cpu");
    }
    if blade.gpus.is_empty() && blade.facts.gpu_gaps.is_empty() {
        return not_here("no GPU");
    }
    let left_out_because = |device: &DeviceId, why: String| DeviceOutcome {
        device: device.clone(),
        outcome: TestOutcome::Inconclusive,
        detail: format!("left out: {why}"),
    };
    let (mut usable, mut left_out) = (Vec::new(), Vec::new());
    for gpu in &blade.gpus {
        if let Some(earlier) = out_of_use.get(&gpu.uuid) {
            left_out.push(left_out_because(&gpu.uuid, format!("it did not come back from test {earlier}")));
        } else if !blade.facts.gpus.iter().any(|seen| seen.uuid == gpu.uuid) {
            let gap = blade.facts.gpu_gaps.iter().find(|gap| gap.uuid.as_ref() == Some(&gpu.uuid));
            let why = gap.map_or("it gave no facts before this test", |gap| gap.detail.as_str());
            left_out.push(left_out_because(&gpu.uuid, why.to_owned()));
        } else {
            usable.push(gpu.clone());
        }
    }
    // GPUs that never gave facts.
    for gap in &blade.facts.gpu_gaps {
        let Some(device) = gap.device() else { continue };
        if !blade.gpus.iter().any(|gpu| gpu.uuid == device) {
            left_out.push(left_out_because(&device, gap.detail.clone()));
        }
    }
    let requests = match test.kind.scope() {
        Scope::EachGpu => usable.into_iter().map(|gpu| request(vec![gpu])).collect(),
        _ if usable.is_empty() => Vec::new(),
        _ => vec![request(usable)],
    };
    Plan { requests, left_out, not_applicable: None }
}

pub(super) fn make_scratch(requests: &[Request]) -> Result<(), BundleError> {
    for request in requests {
        std::fs::create_dir_all(&request.scratch).map_err(BundleError::io(&request.scratch))?;
    }
    Ok(())
}

/// Removes what tests left; `Some` says what could not be removed (an unkillable process may hold a file).
pub(super) fn remove_scratch(bundle: &Path) -> Option<String> {
    let scratch = bundle.join(SCRATCH);
    match std::fs::remove_dir_all(&scratch) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Some(format!("{}: {e}", scratch.display())),
        _ => None,
    }
}
