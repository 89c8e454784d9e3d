//! `whet`: the command line of Whetstone. Exit codes: 0 fine, 2 wrong usage or input, 10 a fault was found,
//! 20 inconclusive, 1 anything else.

mod burnin;
mod classify;
mod device_test;
mod judge;
mod probe;
mod report;
mod thresholds;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "whet",
    version,
    about = "Burn in GPU blades and keep the faulty ones out",
    max_term_width = 110
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a burn-in suite on this machine and write a signed report
    Burnin(burnin::Args),
    /// Verify, show or redraw the bundle of a run
    Report(report::Args),
    /// Find slow or odd devices among the samples of many blades
    Judge(judge::Args),
    /// Say what the lines of a kernel log mean
    Classify(classify::Args),
    /// What this blade is and how it feels now
    Probe(probe::Args),
    /// Show the thresholds, or check a threshold file for slips
    Thresholds(thresholds::Args),
    /// One device test in this process: request on stdin, events on stdout (the runner calls it)
    #[command(hide = true)]
    DeviceTest(device_test::Args),
}

/// Wrong usage or input: exit code 2, and nothing was changed.
#[derive(Debug)]
pub struct InputError(pub String);

impl std::fmt::Display for InputError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InputError {}

/// An [`InputError`] as `anyhow::Error`.
pub fn input_error(what: impl std::fmt::Display) -> anyhow::Error {
    InputError(what.to_string()).into()
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Burnin(args) => burnin::run(args),
        Verb::Report(args) => report::run(args),
        Verb::Judge(args) => judge::run(args),
        Verb::Classify(args) => classify::run(args),
        Verb::Probe(args) => probe::run(args),
        Verb::Thresholds(args) => thresholds::run(args),
        Verb::DeviceTest(args) => device_test::run(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("whet: {error:#}");
        ExitCode::from(if error.is::<InputError>() { 2 } else { 1 })
    })
}
