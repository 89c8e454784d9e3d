//! The runner: a suite on this blade, each device test in a process of its own, everything written to a bundle.
//!
//! The order of a run: check what was asked for (an error here starts nothing), read the facts, run the tests one
//! after the other while telemetry and the kernel log are watched, read the facts again, decide, sign.

mod begin;
mod blade;
mod child;
pub mod device_test;
mod kernel_log;
mod plan;
mod record;
mod samples;
mod steps;
pub mod unfinished;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use whetstone_burnin::suite::{Suite, Test};
use whetstone_model::evidence::Finding;
use whetstone_model::report::{Report, TestResult};

use crate::bundle::{Bundle, BundleError, key};
use crate::probe::ProbeOptions;

pub use child::Launcher;

/// Which devices a run tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The host, and the GPUs where there are any.
    Auto,
    /// As `Auto`, but a blade whose GPUs cannot be tested is inconclusive, never "without GPUs".
    Cuda,
    /// The host alone.
    Cpu,
}

/// The SKU profile of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SkuChoice {
    /// The one that the GPUs fit.
    Recognised,
    /// This one, whatever the GPUs say.
    Named(String),
    /// None: for a machine that has only some of a blade's GPUs. They are compared with each other.
    None,
}

/// What a run needs to know.
#[derive(Debug, Clone)]
pub struct RunOptions {
    pub suite: Suite,
    /// The suite's text as it was read: kept in the bundle, hashed in the report.
    pub suite_text: String,
    pub backend: Backend,
    pub seed: u64,
    /// The bundle's directory: made by the run, or empty.
    pub out: PathBuf,
    /// Name of the blade; the host's name if `None`.
    pub blade: Option<String>,
    /// What the blade is held against.
    pub sku: SkuChoice,
    pub probe: ProbeOptions,
    /// The kernel log to follow.
    pub kmsg: PathBuf,
    /// Key that signs the bundle; made if it is not there.
    pub key: PathBuf,
    pub launcher: Launcher,
}

/// Asks a run to stop; it ends its tests, says so in the report, and signs what it has.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Who is told how a run goes on. Called from the runner's thread.
pub trait Observer {
    fn test_started(&mut self, test: &Test, number: usize, of: usize);
    /// `done` is the part done of this test, 0 to 1.
    fn progress(&mut self, done: f64, doing: &str);
    fn found(&mut self, finding: &Finding, device_label: Option<&str>);
    fn test_ended(&mut self, result: &TestResult);
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Nothing was started.
    #[error("cannot start: {0}")]
    Refused(#[source] BundleError),
    /// The bundle could not be written to the end; what is there stays readable and says how far the run got.
    #[error("the run was cut off: {0}")]
    Broken(#[source] BundleError),
}

/// Runs the suite. Whatever happens to the hardware ends in the report; only the bundle can fail.
pub fn run(options: &RunOptions, cancel: &Cancel, observer: &mut dyn Observer) -> Result<Report, RunError> {
    let bundle = Bundle::create(&options.out).map_err(RunError::Refused)?;
    let signer = match key::load_or_create(&options.key) {
        Ok(signer) => signer,
        Err(e) => {
            bundle.abandon();
            return Err(RunError::Refused(e.into()));
        }
    };
    let mut run = steps::Run::begin(options, bundle, observer).map_err(RunError::Broken)?;
    for (number, test) in options.suite.tests.iter().enumerate() {
        if cancel.requested() {
            break;
        }
        observer.test_started(test, number + 1, options.suite.tests.len());
        let result = run.step(test, cancel, observer).map_err(RunError::Broken)?;
        observer.test_ended(result);
    }
    run.finish(cancel, observer, &signer).map_err(RunError::Broken)
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
