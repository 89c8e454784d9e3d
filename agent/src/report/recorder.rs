//! What the watch sees, as items for the operator.

use std::sync::Arc;
use std::time::{Duration, Instant};

use whetstone_model::action::Severity;
use whetstone_model::evidence::Finding;
use whetstone_model::facts::Facts;
use whetstone_model::threshold::Table;
use whetstone_model::wire::ItemBody;

use super::facts::{blade_facts, readings};
use super::log::{self, Lasting, Level};
use super::shared::{Shared, lock};
use super::state::StateDir;
use crate::watch::{Event, Watcher, What, changes};

pub(super) const STANDING: &str = "standing.json";
/// There while what stands has to be said again.
pub(super) const SAY_AGAIN: &str = "say-again";
/// Between two sets of readings.
const READINGS_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Recorder {
    shared: Arc<Shared>,
    state: Arc<StateDir>,
    table: Table,
    standing: Vec<Finding>,
    last_readings: Option<Instant>,
    trouble: Lasting,
}

impl Recorder {
    /// `standing` is what stood when the agent was last here.
    pub fn new(shared: Arc<Shared>, state: Arc<StateDir>, standing: Vec<Finding>) -> Recorder {
        // The same tables as the watch's; an unreadable one gives no SKU, and the watch says so.
        let table = Table::built_in().unwrap_or_default();
        Recorder { shared, state, table, standing, last_readings: None, trouble: Lasting::default() }
    }

    /// After a restart only differences are said. What stands must be on disk before it is called known, or a
    /// finding that was lost with the power would never be said.
    fn remember(&mut self, found: &[Finding]) {
        if changes(&self.standing, found).is_empty() {
            return;
        }
        self.shared.sync();
        match self.state.save(STANDING, &found, 0o644) {
            Ok(()) => {
                self.standing = found.to_vec();
                self.trouble.well("standing findings are kept again");
            }
            Err(error) => {
                self.trouble.failed(
                    Level::Error,
                    "standing findings cannot be kept",
                    &[],
                    &error.to_string(),
                );
            }
        }
    }
}

impl Watcher for Recorder {
    fn say(&mut self, event: Event) {
        let (body, urgent) = match event.what {
            What::Started { gpus, simulated } => {
                log::info("watching", &[("gpus", &gpus), ("simulated", &simulated)]);
                let sim = if simulated { ", simulated" } else { "" };
                let text = format!("agent {} watches, {gpus} GPUs{sim}", env!("CARGO_PKG_VERSION"));
                (ItemBody::Note { text }, false)
            }
            What::Stopped => (ItemBody::Note { text: "agent stopped".to_owned() }, false),
            What::KernelGap { why } => {
                log::warn("kernel log", &[("why", &why)]);
                (ItemBody::Note { text: format!("kernel log: {why}") }, false)
            }
            What::Appeared { finding } | What::Changed { finding } => {
                let urgent = finding.severity == Severity::Fault;
                tell("finding", &finding);
                (ItemBody::Appeared { finding }, urgent)
            }
            What::Cleared { finding } => {
                tell("cleared", &finding);
                (ItemBody::Cleared { finding }, false)
            }
            What::Kernel { finding, line } => {
                let urgent = finding.severity == Severity::Fault;
                tell("kernel", &finding);
                (ItemBody::Kernel { finding, line }, urgent)
            }
        };
        self.shared.append(event.at_ms, body);
        if urgent {
            self.shared.urge();
        }
    }

    fn looked(&mut self, facts: &Facts, found: &[Finding], took: Duration) {
        self.remember(found);
        if self.shared.take_again() {
            say_again(&self.shared, &self.state, facts.at_ms, found);
            if found.iter().any(|finding| finding.severity == Severity::Fault) {
                self.shared.urge();
            }
        }
        self.shared.learn(blade_facts(facts, &self.table));
        if self.last_readings.is_none_or(|at| at.elapsed() >= READINGS_EVERY) {
            self.last_readings = Some(Instant::now());
            for (device, reading) in readings(facts) {
                self.shared.append(facts.at_ms, ItemBody::Reading { device, reading });
            }
        }
        let mut counts = lock(&self.shared.counts);
        counts.look_s = took.as_secs_f64();
        counts.findings = Default::default();
        for finding in found {
            *counts.findings.entry(finding.severity.as_str()).or_default() += 1;
        }
    }
}

/// Says all that stands, to an operator that may not know of it.
pub(super) fn say_again(shared: &Shared, state: &StateDir, at_ms: i64, standing: &[Finding]) {
    for finding in standing {
        shared.append(at_ms, ItemBody::Appeared { finding: finding.clone() });
    }
    shared.sync();
    // What is not on disk yet may be lost: then the next start says it.
    if !shared.spool().finding_waits() {
        // Mostly nobody has asked, and there is none.
        let _ = std::fs::remove_file(state.path(SAY_AGAIN));
    }
}

fn tell(what: &str, finding: &Finding) {
    let device = finding.device.as_ref().map_or("", |device| device.as_str());
    let fields: [(&str, &dyn std::fmt::Display); 4] = [
        ("severity", &finding.severity.as_str()),
        ("code", &finding.code),
        ("device", &device),
        ("detail", &finding.detail),
    ];
    // A fault of the blade is the operator's to act on, not of whoever reads the agent's log.
    log::say(if finding.severity == Severity::Info { Level::Info } else { Level::Warn }, what, &fields);
}
