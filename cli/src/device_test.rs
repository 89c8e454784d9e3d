//! `whet device-test` (hidden): one device test in this process; the runner of `whet burnin` starts it.

use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    Err(crate::input_error(whetstone_agent::run::device_test::serve()))
}
