//! How a run goes on, on standard error: a bar on a terminal, a line per test elsewhere.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use whetstone_agent::run::Observer;
use whetstone_burnin::suite::{Suite, Test};
use whetstone_model::action::Severity;
use whetstone_model::evidence::Finding;
use whetstone_model::report::{TestOutcome, TestResult};

const STEPS_PER_TEST: u64 = 1000;

pub struct Progress {
    bar: Option<ProgressBar>,
    /// Seconds of all tests before this one, for a bar that moves evenly.
    before_s: u64,
    this_s: u64,
    prefix: String,
}

impl Progress {
    pub fn new(suite: &Suite) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(suite.budget_s() * STEPS_PER_TEST);
            let style = ProgressStyle::with_template(
                "{prefix:<22} {bar:30} {percent:>3} %  {elapsed:>5}  {wide_msg}",
            );
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(std::time::Duration::from_millis(500));
            bar
        });
        Progress { bar, before_s: 0, this_s: 0, prefix: String::new() }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn line(&self, text: String) {
        match &self.bar {
            Some(bar) => bar.println(text),
            // Nobody may be reading any more; the run goes on.
            None => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }
}

impl Observer for Progress {
    fn test_started(&mut self, test: &Test, number: usize, of: usize) {
        self.before_s += self.this_s;
        self.this_s = test.budget_s;
        self.prefix = format!("[{number}/{of}] {}", test.name);
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(self.prefix.clone());
                bar.set_message("");
                bar.set_position(self.before_s * STEPS_PER_TEST);
            }
            None => self.line(format!("{} (up to {} s)", self.prefix, test.budget_s)),
        }
    }

    fn progress(&mut self, done: f64, doing: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(
                ((self.before_s as f64 + self.this_s as f64 * done) * STEPS_PER_TEST as f64) as u64,
            );
            bar.set_message(doing.to_owned());
        }
    }

    fn found(&mut self, finding: &Finding, device_label: Option<&str>) {
        if finding.severity == Severity::Info {
            return;
        }
        let device = device_label.or(finding.device.as_ref().map(|d| d.as_str())).unwrap_or("blade");
        self.line(format!(
            "  {}: {device}: {} [{}]",
            finding.severity.as_str(),
            finding.detail,
            finding.code
        ));
    }

    fn test_ended(&mut self, result: &TestResult) {
        if self.bar.is_none() || matches!(result.outcome, TestOutcome::Fail | TestOutcome::Inconclusive) {
            let seconds = (result.ended_ms - result.started_ms) as f64 / 1000.0;
            let outcome = match result.outcome {
                TestOutcome::Pass => "pass",
                TestOutcome::Fail => "FAIL",
                TestOutcome::Inconclusive => "inconclusive",
                TestOutcome::NotApplicable => "does not apply",
            };
            let detail =
                if result.detail.is_empty() { String::new() } else { format!(": {}", result.detail) };
            self.line(format!("  {} {outcome} in {seconds:.1} s{detail}", result.name));
        }
    }
}
