//! Runs that the operator orders: one at a time, in a thread; each ends in a signed result, whatever happens to it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use whetstone_burnin::suite::{Suite, Test};
use whetstone_model::evidence::Finding;
use whetstone_model::ids::{BladeName, RunId};
use whetstone_model::report::{Blade, TestResult, Versions};
use whetstone_model::threshold::Table;
use whetstone_model::wire::{BladeFacts, BurnInOrder, Order, RunProgress};

use super::log;
use super::packet::{self, Packet};
use super::shared::{Shared, lock, thread};
use super::state::{self, StateDir, StateError};
use crate::bundle::{BundleError, key, manifest};
use crate::probe::ProbeOptions;
use crate::run::unfinished::{Untested, cut_off, untested};
use crate::run::{self, Backend, Cancel, Launcher, Observer, RunError, RunOptions, SkuChoice};

const ORDER: &str = "order.json";
const BUNDLE: &str = "bundle";
const LAST_RUN: &str = "last-run";
/// A result that was delivered this long ago and is asked for again is sent again.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// How runs are executed.
#[derive(Debug, Clone)]
pub struct RunSettings {
    pub probe: ProbeOptions,
    pub kmsg: PathBuf,
    pub backend: Backend,
    pub launcher: Launcher,
    /// Key that signs results.
    pub key: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum RunsError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Packet(#[from] packet::PacketError),
}

struct Current {
    run: RunId,
    cancel: Cancel,
    thread: JoinHandle<()>,
}

/// All runs of this blade: the one that goes on and those whose results are kept.
pub(super) struct Runs {
    work: Arc<Work>,
    current: Mutex<Option<Current>>,
}

/// What a run's thread needs.
struct Work {
    settings: RunSettings,
    shared: Arc<Shared>,
    state: Arc<StateDir>,
    packet: Packet,
}

impl Runs {
    pub fn new(settings: RunSettings, shared: Arc<Shared>, state: Arc<StateDir>, packet: Packet) -> Runs {
        Runs { work: Arc::new(Work { settings, shared, state, packet }), current: Mutex::new(None) }
    }

    /// Brings runs that an earlier agent left to an end. None of them is run again.
    pub fn recover(&self) {
        for (run, dir) in packet::runs(&self.work.state.path(packet::RUNS)) {
            if packet::is_settled(&dir) {
                continue;
            }
            let why = "agent restarted in the middle of the run";
            log::warn("a run was cut off", &[("run", &run), ("why", &why)]);
            self.work.shared.note(format!("run {run}: {why}"));
            self.work.end_left_over(run, &dir, "agent-restarted", why);
        }
    }

    /// Does what an order says. Orders are repeated until they show in a report: one that is known changes nothing.
    pub fn take(&self, order: Order, blade: &BladeName) {
        self.tidy();
        match order {
            Order::BurnIn(order) => self.begin(order),
            Order::CancelRun { run } => self.cancel(run, blade),
        }
    }

    fn begin(&self, order: BurnInOrder) {
        let run = order.run;
        let mut current = lock(&self.current);
        if current.as_ref().is_some_and(|current| current.run == run) {
            return;
        }
        if run.0 <= self.work.last_run() {
            drop(current);
            self.work.known(run, &order);
            return;
        }
        // Two at once would test each other; the order comes again.
        if current.is_some() {
            return;
        }
        let dir = self.work.dir(run);
        if let Err(error) = self.work.register(&dir, &order) {
            log::error("a run cannot be begun", &[("run", &run), ("why", &error)]);
            return;
        }
        let suite = match self.work.read(&order) {
            Ok(suite) => suite,
            Err(why) => {
                log::error("a run is refused", &[("run", &run), ("why", &why)]);
                self.work.shared.note(format!("run {run} is refused: {why}"));
                self.work.not_begun(&dir, &order, "refused", &why);
                return;
            }
        };
        log::info("run begins", &[("run", &run), ("suite", &suite.name), ("seed", &order.seed)]);
        let first = suite.tests.first().map_or(String::new(), |test| test.name.clone());
        *lock(&self.work.shared.progress) = Some(RunProgress {
            run,
            test: first,
            number: 1,
            of: u32::try_from(suite.tests.len()).unwrap_or(u32::MAX),
            done: 0.0,
            doing: "looking at the blade".to_owned(),
        });
        let cancel = Cancel::default();
        let (work, asked) = (self.work.clone(), cancel.clone());
        match thread("run", move || work.execute(&dir, &order, suite, &asked)) {
            Ok(thread) => *current = Some(Current { run, cancel, thread }),
            // It is on disk as begun: the next start brings it to an end.
            Err(_) => *lock(&self.work.shared.progress) = None,
        }
        drop(current);
        // That it goes on is told at once, or the order would come again.
        self.work.shared.urge();
    }

    fn cancel(&self, run: RunId, blade: &BladeName) {
        if let Some(current) = lock(&self.current).as_ref().filter(|current| current.run == run) {
            if !current.cancel.requested() {
                log::info("run is cancelled", &[("run", &run)]);
                current.cancel.request();
            }
            return;
        }
        let order = BurnInOrder { run, blade: blade.clone(), suite: String::new(), seed: 0, sku: None };
        if run.0 <= self.work.last_run() {
            self.work.known(run, &order);
            return;
        }
        let dir = self.work.dir(run);
        match self.work.register(&dir, &order) {
            Ok(()) => self.work.not_begun(&dir, &order, "cancelled", "cancelled before it began"),
            Err(error) => log::error("a run cannot be ended", &[("run", &run), ("why", &error)]),
        }
    }

    /// Brings a run whose thread failed to an end.
    pub fn tidy(&self) {
        let mut current = lock(&self.current);
        if current.as_ref().is_some_and(|current| current.thread.is_finished()) {
            // A panic has been told on standard error; the run is brought to an end here.
            if let Some(ended) = current.take()
                && ended.thread.join().is_err()
            {
                *lock(&self.work.shared.progress) = None;
                self.work.end_left_over(
                    ended.run,
                    &self.work.dir(ended.run),
                    "agent-failed",
                    "the agent failed",
                );
            }
        }
    }

    /// The agent is to stop: a run that goes on begins to end.
    pub fn request_stop(&self) {
        if let Some(current) = lock(&self.current).as_ref().filter(|current| !current.thread.is_finished()) {
            log::info("run is ended: the agent stops", &[("run", &current.run)]);
            current.cancel.request();
        }
    }

    /// Waits until the run has ended and its result is kept, if that can be done in time.
    pub fn stop(&self, limit: Duration) {
        let Some(current) = lock(&self.current).take() else { return };
        if current.thread.is_finished() {
            return;
        }
        current.cancel.request();
        let end = Instant::now() + limit;
        while !current.thread.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Work {
    fn dir(&self, run: RunId) -> PathBuf {
        self.state.path(packet::RUNS).join(run.to_string())
    }

    fn last_run(&self) -> i64 {
        let kept = self.state.load::<i64>(LAST_RUN).unwrap_or_default().unwrap_or(0);
        let on_disk = packet::runs(&self.state.path(packet::RUNS)).last().map_or(0, |(run, _)| run.0);
        kept.max(on_disk)
    }

    /// On disk before anything is done: a run that is begun is never begun again.
    fn register(&self, dir: &Path, order: &BurnInOrder) -> Result<(), StateError> {
        std::fs::create_dir_all(dir).map_err(StateError::io(dir))?;
        state::save(&dir.join(ORDER), order, 0o644)?;
        self.state.save(LAST_RUN, &order.run.0, 0o644)
    }

    fn read(&self, order: &BurnInOrder) -> Result<Suite, String> {
        if let Some(sku) = &order.sku {
            let table = Table::built_in().map_err(|e| e.to_string())?;
            if table.profile(sku).is_none() {
                return Err(format!("SKU {:?} is not known to this agent", short(sku)));
            }
        }
        Suite::parse("suite", &order.suite).map_err(|e| short(&e.to_string()))
    }

    fn execute(&self, dir: &Path, order: &BurnInOrder, suite: Suite, cancel: &Cancel) {
        let settings = &self.settings;
        let options = RunOptions {
            suite,
            suite_text: order.suite.clone(),
            backend: settings.backend,
            seed: order.seed,
            out: dir.join(BUNDLE),
            blade: Some(order.blade.to_string()),
            sku: order.sku.clone().map_or(SkuChoice::Recognised, SkuChoice::Named),
            probe: settings.probe.clone(),
            kmsg: settings.kmsg.clone(),
            key: settings.key.clone(),
            launcher: settings.launcher.clone(),
        };
        let run = order.run;
        match run::run(&options, cancel, &mut Progress { run, shared: &self.shared }) {
            Ok(report) => {
                let (outcome, why) = (report.verdict.outcome, report.verdict.why);
                log::info("run ended", &[("run", &run), ("verdict", &outcome), ("why", &why)]);
                self.pack(run, dir);
            }
            Err(RunError::Refused(error)) => {
                log::error("a run could not be begun", &[("run", &run), ("why", &error)]);
                self.not_begun(dir, order, "refused", &error.to_string());
            }
            Err(error @ RunError::Broken(_)) => {
                log::error("a run was cut off", &[("run", &run), ("why", &error)]);
                self.end_left_over(run, dir, "cut-off", &error.to_string());
            }
        }
        *lock(&self.shared.progress) = None;
        self.shared.urge();
    }

    fn key(&self) -> Result<SigningKey, BundleError> {
        key::load_or_create(&self.settings.key).map_err(BundleError::from)
    }

    /// A result for a run that was not begun.
    fn not_begun(&self, dir: &Path, order: &BurnInOrder, code: &str, why: &str) {
        if let Err(error) = self.write_untested(dir, order, code, why) {
            log::error("a result cannot be written", &[("run", &order.run), ("why", &error)]);
            return;
        }
        self.pack(order.run, dir);
    }

    fn write_untested(
        &self,
        dir: &Path,
        order: &BurnInOrder,
        code: &str,
        why: &str,
    ) -> Result<(), RunsError> {
        let facts = self.shared.facts().map(|(_, facts)| facts).unwrap_or_default();
        let bundle = dir.join(BUNDLE);
        // Without a report there is nothing in it that anybody could use.
        match std::fs::remove_dir_all(&bundle) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(StateError::io(&bundle)(e).into());
            }
            _ => {}
        }
        let key = self.key()?;
        let run = Untested {
            blade: Blade {
                name: order.blade.to_string(),
                serial: facts.serial.clone().or_else(|| Some(self.packet.serial.to_string())),
                sku: order.sku.clone().or_else(|| facts.sku.clone()),
                kernel: facts.kernel.clone().unwrap_or_default(),
            },
            versions: versions(&facts),
            simulated: facts.simulated,
            suite_name: "not begun",
            suite_text: &order.suite,
            seed: order.seed,
            code,
            why,
        };
        untested(&bundle, &run, &key)?;
        Ok(())
    }

    /// Ends what was begun and left: as it is if it was signed, cut off if it has a report, else as never begun.
    fn end_left_over(&self, run: RunId, dir: &Path, code: &str, why: &str) {
        let bundle = dir.join(BUNDLE);
        let order: Option<BurnInOrder> = state::load(&dir.join(ORDER)).unwrap_or_else(|error| {
            log::warn("an order cannot be read", &[("run", &run), ("why", &error)]);
            None
        });
        let Some(order) = order else {
            // Made and not yet filled when the agent ended: the operator sends the order again.
            let _ = std::fs::remove_dir_all(dir);
            return;
        };
        if manifest::verify(&bundle, &[]).is_ok() {
            self.pack(run, dir);
            return;
        }
        let ended = self.key().and_then(|key| cut_off(&bundle, code, why, &key));
        match ended {
            Ok(_) => self.pack(run, dir),
            Err(_) => self.not_begun(dir, &order, code, why),
        }
    }

    fn pack(&self, run: RunId, dir: &Path) {
        match self.packet.write(dir, &dir.join(BUNDLE), run) {
            Ok(()) => {}
            Err(packet::PacketError::TooLarge { bytes }) => {
                let why = format!("the result has {bytes} bytes, more than an operator takes");
                log::error("a result cannot be sent", &[("run", &run), ("why", &why)]);
                self.too_large(run, dir, &why);
            }
            Err(error) => log::error("a result cannot be kept", &[("run", &run), ("why", &error)]),
        }
        self.shared.stir();
    }

    /// The bundle stays beside it for a person to read.
    fn too_large(&self, run: RunId, dir: &Path, why: &str) {
        let Ok(Some(order)) = state::load::<BurnInOrder>(&dir.join(ORDER)) else { return };
        let kept = std::fs::rename(dir.join(BUNDLE), dir.join("bundle-too-large"));
        let written = kept.is_ok() && self.write_untested(dir, &order, "result-too-large", why).is_ok();
        if written && let Err(error) = self.packet.write(dir, &dir.join(BUNDLE), run) {
            log::error("a result cannot be kept", &[("run", &run), ("why", &error)]);
        }
    }

    /// An order of a run that this agent knows: its result is on its way, or the operator lost it.
    fn known(&self, run: RunId, order: &BurnInOrder) {
        let dir = self.dir(run);
        if dir.join(ORDER).exists() {
            if packet::delivered_before(&dir, AGAIN_AFTER) {
                log::warn("a result is wanted again", &[("run", &run)]);
                packet::undo_delivered(&dir);
                self.pack(run, &dir);
            }
            return;
        }
        let why = "this run was done before and its result is no longer kept";
        log::warn("a run is refused", &[("run", &run), ("why", &why)]);
        match self.register_old(&dir, order) {
            Ok(()) => self.not_begun(&dir, order, "result-gone", why),
            Err(error) => log::error("a run cannot be ended", &[("run", &run), ("why", &error)]),
        }
    }

    fn register_old(&self, dir: &Path, order: &BurnInOrder) -> Result<(), StateError> {
        std::fs::create_dir_all(dir).map_err(StateError::io(dir))?;
        state::save(&dir.join(ORDER), order, 0o644)
    }
}

fn versions(facts: &BladeFacts) -> Versions {
    Versions {
        whet: env!("CARGO_PKG_VERSION").to_owned(),
        driver: facts.driver.clone(),
        cuda: None,
        nccl: None,
        vbios: None,
        kernels: None,
    }
}

fn short(text: &str) -> String {
    text.chars().take(300).collect()
}

/// Tells the reporter how a run goes on.
struct Progress<'a> {
    run: RunId,
    shared: &'a Shared,
}

impl Observer for Progress<'_> {
    fn test_started(&mut self, test: &Test, number: usize, of: usize) {
        let number_of = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        log::info("test", &[("run", &self.run), ("test", &test.name), ("number", &number), ("of", &of)]);
        *lock(&self.shared.progress) = Some(RunProgress {
            run: self.run,
            test: test.name.clone(),
            number: number_of(number),
            of: number_of(of),
            done: 0.0,
            doing: "begins".to_owned(),
        });
    }

    fn progress(&mut self, done: f64, doing: &str) {
        if let Some(progress) = lock(&self.shared.progress).as_mut() {
            progress.done = if done.is_finite() { done.clamp(0.0, 1.0) } else { 0.0 };
            progress.doing = short(doing);
        }
    }

    // What a run finds comes with its result, signed.
    fn found(&mut self, _finding: &Finding, _device_label: Option<&str>) {}

    fn test_ended(&mut self, result: &TestResult) {
        let outcome = serde_json::to_value(result.outcome).unwrap_or_default();
        let outcome = outcome.as_str().unwrap_or_default();
        let fields: [(&str, &dyn std::fmt::Display); 4] =
            [("run", &self.run), ("test", &result.name), ("outcome", &outcome), ("detail", &result.detail)];
        log::info("test ended", &fields);
    }
}
