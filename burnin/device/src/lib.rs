//! What runs the tests: CPU, CUDA, NCCL. One entry, [`run`], called in a process of its own.
//!
//! `unsafe` is allowed here (vector intrinsics, driver calls); each use says why it is sound.
#![allow(unsafe_code)]

pub mod cuda;
pub mod host;
mod leave;

pub use leave::leave;

use std::path::Path;
use std::time::Instant;

use whetstone_burnin::protocol::{GpuTarget, Request, Sink};
use whetstone_burnin::suite::TestKind;
use whetstone_model::report::TestOutcome;

/// What a test is given.
pub struct Context<'a, S: Sink> {
    pub sink: &'a S,
    /// The test ends itself by then.
    pub deadline: Instant,
    pub seed: u64,
    /// A directory of the test's own; it removes what it puts there.
    pub scratch: &'a Path,
    pub gpus: &'a [GpuTarget],
}

/// How a test ended: the last event's content.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    pub outcome: TestOutcome,
    /// One line; empty for a plain pass.
    pub detail: String,
}

impl Done {
    pub fn pass() -> Done {
        Done { outcome: TestOutcome::Pass, detail: String::new() }
    }
    pub fn fail(detail: impl Into<String>) -> Done {
        Done { outcome: TestOutcome::Fail, detail: detail.into() }
    }
    pub fn inconclusive(detail: impl Into<String>) -> Done {
        Done { outcome: TestOutcome::Inconclusive, detail: detail.into() }
    }
    pub fn not_applicable(detail: impl Into<String>) -> Done {
        Done { outcome: TestOutcome::NotApplicable, detail: detail.into() }
    }
}

/// Runs one test. Never fails: what could not be tested is [`TestOutcome::Inconclusive`] with the reason.
pub fn run<S: Sink>(request: &Request, context: &Context<'_, S>) -> Done {
    match &request.kind {
        TestKind::Inventory(_) => {
            Done::inconclusive("inventory is judged by the agent, not by a device process")
        }
        TestKind::CpuCompute(params) => host::compute::run(params, context),
        TestKind::CpuCoherence(params) => host::coherence::run(params, context),
        TestKind::Dram(params) => host::dram::run(params, context),
        TestKind::Disk(params) => host::disk::run(params, context),
        TestKind::Network(params) => host::network::run(params, context),
        TestKind::Clock(params) => host::clock::run(params, context),
        TestKind::GpuMemory(params) => cuda::memory::run(params, context),
        TestKind::GpuGemm(params) => cuda::gemm::run(params, context),
        TestKind::GpuPower(params) => cuda::power::run(params, context),
        TestKind::GpuBandwidth(params) => cuda::bandwidth::run(params, context),
        TestKind::GpuCollectives(params) => cuda::collectives::run(params, context),
    }
}
