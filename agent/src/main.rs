//! `whetstone-agent`: the daemon of one blade. Exit codes as `whet`'s: 0 stopped, 2 wrong usage or input, 1 anything else.

mod cmd;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "whetstone-agent", version, about = "The daemon of one GPU blade", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Join the site's operator, report what this blade does, run what the operator orders, until told to stop
    Run(cmd::run::Args),
    /// Look at this blade at an interval and say what changes, until told to stop; no operator needed
    Watch(cmd::watch::Args),
    /// One device test in this process: request on stdin, events on stdout (runs call it)
    #[command(hide = true)]
    DeviceTest,
}

fn main() -> ExitCode {
    let ended = match Cli::parse().verb {
        Verb::Run(args) => cmd::run::run(args),
        Verb::Watch(args) => cmd::watch::run(args),
        Verb::DeviceTest => {
            Err(cmd::InputError(whetstone_agent::run::device_test::serve().to_string()).into())
        }
    };
    match ended {
        // Not by returning: a library that hangs would hold its thread.
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("whetstone-agent: {error:#}");
            std::process::exit(if error.is::<cmd::InputError>() { 2 } else { 1 })
        }
    }
}
