//! `whet-sim`: makes simulated blades and runs the demonstration. Not shipped.
//!
//! Exit codes are `whet`'s: 0 fine, 2 wrong usage or input (nothing was written), 10 the demonstration missed a fault
//! or accused a healthy device, 1 anything else.

mod demo;
mod libs;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use whetstone_scenario::{BladeScenario, home, tranche};

/// Largest scenario file that is read.
const MAX_SCENARIO_BYTES: u64 = 1 << 20;
/// Memory of each GPU of a tranche that can be written, MiB: 128 GPUs are tested in minutes on two cores.
const TRANCHE_HBM_MIB: u64 = 64;

#[derive(Parser)]
#[command(name = "whet-sim", version, about = "Simulated blades for Whetstone", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make the directory of one blade from a scenario file
    Blade {
        /// Scenario, TOML
        #[arg(long)]
        scenario: PathBuf,
        /// Directory to make; must not exist or be empty
        #[arg(long)]
        out: PathBuf,
    },
    /// Make the directories of a tranche with faults planted from a seed, and planted.json
    Tranche {
        #[arg(long, default_value_t = 7)]
        seed: u64,
        #[arg(long, default_value_t = 16)]
        blades: usize,
        #[arg(long, default_value = "h100")]
        sku: String,
        /// Directory to make; must not exist or be empty
        #[arg(long)]
        out: PathBuf,
    },
    /// Burn in this machine, then a simulated tranche, and compare what was found with what was planted
    Demo(demo::Args),
    /// Build the simulated libraries and put them where a loader finds them
    Libs(libs::Args),
}

/// Wrong usage or input: exit code 2, and nothing was changed.
#[derive(Debug)]
struct InputError(String);

impl std::fmt::Display for InputError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InputError {}

fn input_error(what: impl std::fmt::Display) -> anyhow::Error {
    InputError(what.to_string()).into()
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Blade { scenario, out } => blade(&scenario, &out),
        Verb::Tranche { seed, blades, sku, out } => tranche(seed, blades, sku, &out),
        Verb::Demo(args) => demo::run(&args),
        Verb::Libs(args) => libs::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("whet-sim: {error:#}");
        ExitCode::from(if error.is::<InputError>() { 2 } else { 1 })
    })
}

fn blade(scenario: &Path, out: &Path) -> anyhow::Result<ExitCode> {
    let blade = read(scenario)?;
    home::make(&blade, out).map_err(|e| input_error(format!("{}: {e}", out.display())))?;
    let (name, gpus) = (&blade.name, blade.gpus.len());
    say(format!(
        "{name}: {} with {gpus} GPUs in {}\n{}\n",
        blade.sku.name,
        out.display(),
        libs::environment(out)
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// To standard output; a reader that has gone away is an error, not a crash.
fn say(text: String) -> anyhow::Result<()> {
    std::io::stdout().lock().write_all(text.as_bytes()).context("standard output")
}

fn tranche(seed: u64, blades: usize, sku: String, out: &Path) -> anyhow::Result<ExitCode> {
    let plan = tranche::Plan { seed, blades, sku, hbm_backed_mib: TRANCHE_HBM_MIB };
    let made = tranche::plan(&plan).map_err(|e| input_error(e.what))?;
    let planted =
        tranche::write(seed, &made, out).map_err(|e| input_error(format!("{}: {e}", out.display())))?;
    let mut text = String::new();
    for blade in planted.blades {
        let faults: Vec<String> =
            blade.faults.iter().map(|f| format!("{} {}", f.device, f.fault.kind())).collect();
        text += &format!("{}  {}\n", blade.blade, faults.join(", "));
    }
    say(text)?;
    Ok(ExitCode::SUCCESS)
}

fn read(scenario: &Path) -> anyhow::Result<BladeScenario> {
    let bad = |e: std::io::Error| input_error(format!("{}: {e}", scenario.display()));
    let size = std::fs::metadata(scenario).map_err(bad)?.len();
    if size > MAX_SCENARIO_BYTES {
        let what =
            format!("{}: {size} bytes; a scenario has at most {MAX_SCENARIO_BYTES}", scenario.display());
        return Err(input_error(what));
    }
    let text = std::fs::read_to_string(scenario).map_err(bad)?;
    BladeScenario::parse(&scenario.display().to_string(), &text).map_err(input_error)
}
