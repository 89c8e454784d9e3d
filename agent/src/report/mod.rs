//! The agent as a part of a site: joins the operator, reports what it sees, runs what it is told to.
//!
//! | thread | does |
//! | --- | --- |
//! | watch | looks at the blade ([`crate::watch`]) and spools what is different |
//! | reporter | joins, renews, reports, takes orders: one call at a time |
//! | run | one ordered run ([`crate::run`]) |
//! | results | delivers results of runs |
//! | sync | makes what was spooled durable |
//! | metrics | answers scrapes, where asked for |
//!
//! The blade is watched and evidence kept from the first second, with or without an operator.

mod client;
mod facts;
mod identity;
pub mod log;
mod metrics;
mod pace;
mod packet;
mod recorder;
mod reporter;
mod runs;
mod shared;
pub mod spool;
mod state;
mod usage;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use whetstone_model::evidence::Finding;
use whetstone_model::ids::{BadName, Serial};

use crate::bundle::{BundleError, key};
use crate::probe::{now_ms, sysfs};
use crate::run::{Backend, Launcher};
use crate::watch::{WatchOptions, watch_from};
use packet::Packet;
use recorder::{Recorder, SAY_AGAIN, STANDING, say_again};
use reporter::Reporter;
use runs::{RunSettings, Runs};
use shared::{Shared, thread};
use spool::{Spool, SpoolError};
use state::StateDir;

pub use client::{BadUrl, OperatorUrl};
pub use state::StateError;

/// How the agent is to work.
#[derive(Debug, Clone)]
pub struct ReportOptions {
    pub operator: OperatorUrl,
    /// The site's CA, PEM file.
    pub ca: PathBuf,
    /// Where a join token lies when one is needed; deleted after use.
    pub token_file: PathBuf,
    /// Directory of the agent's state; made if it is not there.
    pub state: PathBuf,
    /// The blade's serial; the firmware's if `None`.
    pub serial: Option<Serial>,
    /// Between two reports, unless the operator says otherwise.
    pub report_interval: Duration,
    /// Size of the spool's files at most, bytes.
    pub spool_max: u64,
    /// Where metrics are answered, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// What to watch; its kernel log is followed in runs too.
    pub watch: WatchOptions,
    /// What ordered runs test.
    pub backend: Backend,
    pub launcher: Launcher,
}

/// Why the agent cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Wrong usage or input; nothing was changed.
    #[error("{0}")]
    Input(String),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Key(#[from] BundleError),
    #[error("{what}: {source}")]
    Start { what: &'static str, source: std::io::Error },
}

/// How long a run has to end itself when the agent is stopped; Kubernetes kills after 30 s.
const STOP_RUN: Duration = Duration::from_secs(20);

/// Works until a message comes over `stop` or its sender is gone.
pub fn run(options: &ReportOptions, stop: Receiver<()>) -> Result<(), ReportError> {
    let ca = read_ca(&options.ca)?;
    let state = Arc::new(StateDir::open(&options.state)?);
    let mut identity = identity::Identity::load(&state).unwrap_or_else(|error| {
        log::error("the identity that is kept cannot be read; a new token is needed", &[("why", &error)]);
        None
    });
    let host = sysfs::host::host(&sysfs::Root::new(options.watch.probe.root.clone()));
    let (serial, of_firmware) = serial(options, identity.as_ref(), host.serial.map(Serial::new))?;
    if let Some(identity) = identity.as_mut().filter(|identity| of_firmware && !identity.of_firmware)
        && let Err(error) = identity.confirm(&state)
    {
        log::warn("identity", &[("why", &error)]);
    }
    let signing_key = state.path("signing-key.pem");
    let key = key::load_or_create(&signing_key).map_err(BundleError::from)?;
    let report_key = hex::encode(key.verifying_key().as_bytes());
    let (spool, opened) = Spool::open(&state.path("spool"), options.spool_max)?;
    let waiting = spool.status();
    let shared = Arc::new(Shared::new(spool));
    log::info(
        "agent begins",
        &[
            ("version", &env!("CARGO_PKG_VERSION")),
            ("serial", &serial),
            ("operator", &options.operator),
            ("state", &options.state.display()),
            ("spooled", &waiting.items),
        ],
    );
    let standing = standing(&state, &shared, opened);
    let packet = Packet { serial: serial.clone(), instance: state.instance().to_owned() };
    let kmsg = options.watch.kmsg.clone().unwrap_or_else(|| PathBuf::from(crate::probe::kmsg::KMSG));
    let settings = RunSettings {
        probe: options.watch.probe.clone(),
        kmsg,
        backend: options.backend,
        launcher: options.launcher.clone(),
        key: signing_key,
    };
    let runs = Arc::new(Runs::new(settings, shared.clone(), state.clone(), packet));
    runs.recover();

    let start = |what| move |source| ReportError::Start { what, source };
    if let Some(address) = options.metrics {
        let listener = metrics::bind(address).map_err(start("metrics address"))?;
        if let Ok(bound) = listener.local_addr() {
            log::info("metrics", &[("address", &bound)]);
        }
        let shared = shared.clone();
        thread("metrics", move || metrics::serve(&listener, &shared)).map_err(start("thread"))?;
    }
    let (stop_watch, watch_stopped) = channel();
    let (watching, mut recorder) =
        (options.watch.clone(), Recorder::new(shared.clone(), state.clone(), standing.clone()));
    let watch = thread("watch", move || watch_from(&watching, standing, watch_stopped, &mut recorder))
        .map_err(start("thread"))?;
    let (results_shared, results_state) = (shared.clone(), state.clone());
    thread("results", move || packet::send_all(&results_shared, &results_state)).map_err(start("thread"))?;
    let durable = shared.clone();
    thread("sync", move || keep_durable(&durable)).map_err(start("thread"))?;
    let (stopping, stopping_runs) = (shared.clone(), runs.clone());
    thread("stop", move || {
        let _ = stop.recv();
        stopping.stop();
        stopping_runs.request_stop();
    })
    .map_err(start("thread"))?;

    let settings = reporter::Settings {
        operator: options.operator.clone(),
        ca,
        token_file: options.token_file.clone(),
        serial,
        of_firmware,
        // One that the operator would refuse must not cost a report.
        boot_id: host.boot_id.filter(|id| id.len() <= 64 && id.bytes().all(|b| b.is_ascii_graphic())),
        report_interval: options.report_interval,
        report_key,
    };
    let mut reporter = Reporter::new(settings, shared.clone(), state.clone(), &runs, identity);
    reporter.run();

    runs.stop(STOP_RUN);
    let _ = stop_watch.send(());
    // A look that hangs does not hold the end up.
    let limit = Instant::now() + Duration::from_secs(2);
    while !watch.is_finished() && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(20));
    }
    packet::deliver(&shared, &state);
    reporter.last_words();
    let kept = shared.spool().remember();
    if let Err(error) = kept {
        log::warn("spool", &[("why", &error)]);
    }
    log::info("agent stopped", &[("spooled", &shared.spool().status().items)]);
    Ok(())
}

/// Findings reach the disk within a second, details within half a minute, whatever the other threads wait for.
fn keep_durable(shared: &Shared) {
    let mut last = Instant::now();
    while !shared.rest_until_stop(Duration::from_secs(1)) {
        let finding_waits = shared.spool().finding_waits();
        if finding_waits || last.elapsed() >= Duration::from_secs(30) {
            last = Instant::now();
            shared.sync();
        }
    }
}

fn read_ca(path: &Path) -> Result<String, ReportError> {
    let input = |why: String| ReportError::Input(format!("--ca {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| input(e.to_string()))?;
    client::certificates(&text).map_err(|e| input(e.to_string()))?;
    Ok(text)
}

/// The serial that was asked for, that this directory belongs to, or that the firmware says; and whether the firmware says it.
/// A directory whose serial once came from the firmware belongs to the machine whose firmware that is, not to its disk.
fn serial(
    options: &ReportOptions,
    kept: Option<&identity::Identity>,
    firmware: Option<Result<Serial, BadName>>,
) -> Result<(Serial, bool), ReportError> {
    let input = |what: String| Err(ReportError::Input(what));
    let state = options.state.display();
    match (&options.serial, kept, firmware) {
        (Some(asked), Some(kept), _) if *asked != kept.serial => input(format!(
            "--serial {asked}: {state} belongs to {}; a blade has a state directory of its own",
            kept.serial
        )),
        // What a person says holds, whatever the firmware says.
        (Some(serial), ..) => Ok((serial.clone(), false)),
        (None, Some(kept), Some(Ok(firmware))) if kept.of_firmware && firmware != kept.serial => {
            input(format!(
                "the firmware says serial {firmware}, but {state} belongs to {}: its disk was moved to another machine, or its \
             board was replaced. Nothing is reported as {0}. Remove {state} and put a token for {firmware} into {}; if this is \
             {0} all the same, give --serial {0}",
                kept.serial,
                options.token_file.display()
            ))
        }
        (None, Some(kept), firmware) => {
            let said = firmware.is_some_and(|firmware| firmware.is_ok_and(|serial| serial == kept.serial));
            Ok((kept.serial.clone(), kept.of_firmware || said))
        }
        (None, None, Some(Ok(serial))) => Ok((serial, true)),
        (None, None, Some(Err(error))) => input(format!("the firmware's {error}; give --serial")),
        (None, None, None) => {
            input("the firmware gives no serial (it is read by root only); give --serial".to_owned())
        }
    }
}

/// What stood when the agent was last here. Where the spool lost something, or the operator has asked for it, it is said
/// again.
fn standing(state: &StateDir, shared: &Shared, opened: spool::Opened) -> Vec<Finding> {
    let standing: Vec<Finding> = state.load(STANDING).unwrap_or_default().unwrap_or_default();
    if opened.torn > 0 {
        log::warn("spool: records were cut off", &[("bytes", &opened.torn)]);
        shared.note(format!("spool: {} bytes of records were cut off", opened.torn));
    }
    if opened.taken_over > 0 {
        log::warn(
            "spool: its numbers were lost, what was left goes on under a new stream",
            &[("items", &opened.taken_over)],
        );
    }
    if opened.torn > 0 || opened.new_stream || state.path(SAY_AGAIN).exists() {
        say_again(shared, state, now_ms(), &standing);
    }
    standing
}
