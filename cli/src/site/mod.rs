//! The verbs that speak with a site: its Kubernetes API for objects, its operator for history, tokens and reports.

mod access;
mod audit;
mod blades;
mod breaker;
mod burnins;
mod cases;
mod explain;
mod failure;
mod forward;
mod history;
mod intent;
pub mod local;
mod ops;
mod row;
mod table;
mod tokens;
mod tranche;
mod unexpected;

use std::process::ExitCode;

pub use failure::Failure;

/// What a person does with a site, from anywhere. All of it is there as `kubectl whet` too.
#[derive(clap::Subcommand)]
pub enum Verb {
    /// The blades: where each is, who has it, and why
    Blades(blades::Args),
    /// Deliveries: make, list, watch, pause; join tokens; the acceptance report
    Tranche(tranche::Args),
    /// Where a blade is, since when, what it waits for, who must act, and its history
    Explain(explain::Args),
    /// Withhold a blade from service
    Quarantine(intent::QuarantineArgs),
    /// End a blade's quarantine, or ask for the burn-in that ends it
    Release(intent::ReleaseArgs),
    /// A blade has left the site for good
    Retire(intent::RetireArgs),
    /// The faults that are open: one line each
    Cases(cases::Args),
    /// The burn-in runs
    Burnins(burnins::Args),
    /// A blade's identity: make it join anew
    Tokens(tokens::Args),
    /// Machines that spoke up and are on no manifest
    Unexpected(unexpected::Args),
    /// How many blades faults may take out of service at once, and a person's word that more is right
    Breaker(breaker::Args),
    /// Who asked the operator for what, and whom it refused
    Audit(audit::Args),
}

pub fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Blades(args) => blades::run(args),
        Verb::Tranche(args) => tranche::run(args),
        Verb::Explain(args) => explain::run(args),
        Verb::Quarantine(args) => intent::quarantine(args),
        Verb::Release(args) => intent::release(args),
        Verb::Retire(args) => intent::retire(args),
        Verb::Cases(args) => cases::run(args),
        Verb::Burnins(args) => burnins::run(args),
        Verb::Tokens(args) => tokens::run(args),
        Verb::Unexpected(args) => unexpected::run(args),
        Verb::Breaker(args) => breaker::run(args),
        Verb::Audit(args) => audit::run(args),
    }
}

/// Runs what has to wait for the network. One thread: a command waits for one thing at a time.
fn wait_for<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// A document on standard output.
fn print_json(document: &impl serde::Serialize) -> anyhow::Result<()> {
    say(&format!("{}\n", serde_json::to_string_pretty(document)?))
}

/// To standard output. A reader that has gone away (`| head`) is no failure: it has read what it wanted.
fn say(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => Ok(result?),
    }
}
