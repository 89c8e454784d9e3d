//! Builds the simulated libraries and copies them under the names that programs load.
//!
//! They go to a directory of their own, never to one that cargo or the system searches: a `libcuda.so.1` of ours must
//! only be found by a process that was told to look here (`LD_LIBRARY_PATH`).

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

use crate::input_error;

/// Package, library file as cargo names it, and the names to load it by. cudarc looks for `libnccl.so`, others for `.so.2`.
const LIBRARIES: [(&str, &str, &[&str]); 3] = [
    ("whetstone-sim-nvml", "libwhetstone_sim_nvml.so", &["libnvidia-ml.so.1"]),
    ("whetstone-sim-cuda", "libwhetstone_sim_cuda.so", &["libcuda.so.1"]),
    ("whetstone-sim-nccl", "libwhetstone_sim_nccl.so", &["libnccl.so.2", "libnccl.so"]),
];

/// The names that are loaded.
pub fn names() -> impl Iterator<Item = &'static str> {
    LIBRARIES.iter().filter_map(|(.., names)| names.first().copied())
}

#[derive(clap::Args)]
pub struct Args {
    /// Where to put them
    #[arg(long, default_value = "target/sim")]
    dir: PathBuf,
    /// Directory that has them built already; without it cargo builds them
    #[arg(long)]
    built: Option<PathBuf>,
    /// Build with optimisation: simulated kernels are real arithmetic
    #[arg(long)]
    release: bool,
    /// Only these, by the name that is loaded
    #[arg(long)]
    only: Vec<String>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let wanted: Vec<_> = LIBRARIES
        .iter()
        .filter(|(.., names)| args.only.is_empty() || names.iter().any(|n| args.only.iter().any(|o| o == n)))
        .collect();
    if wanted.is_empty() {
        return Err(input_error(format!("no such library: {}", args.only.join(", "))));
    }
    let built = match &args.built {
        Some(dir) => dir.clone(),
        None => {
            let packages: Vec<&str> = wanted.iter().map(|(package, ..)| *package).collect();
            build(&packages, args.release)?
        }
    };
    std::fs::create_dir_all(&args.dir).map_err(|e| input_error(format!("{}: {e}", args.dir.display())))?;
    for (_, file, names) in wanted {
        for name in *names {
            put(&built.join(file), &args.dir.join(name))?;
        }
    }
    crate::say(format!("{}\n", args.dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs cargo and returns the directory with the libraries.
fn build(packages: &[&str], release: bool) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet"]).args(packages.iter().flat_map(|p| ["-p", p]));
    if release {
        command.arg("--release");
    }
    let status = command.status().context("cargo build of the simulated libraries")?;
    if !status.success() {
        bail!("cargo build of the simulated libraries: {status}");
    }
    // This program was built by the same cargo into the same place.
    let own = std::env::current_exe().context("own path")?;
    let target = own.ancestors().nth(2).context("own path has no target directory")?;
    Ok(target.join(if release { "release" } else { "debug" }))
}

/// Copies under another name first: a running program keeps the file that it has mapped.
fn put(from: &Path, to: &Path) -> anyhow::Result<()> {
    let fresh = to.with_extension(format!("new{}", std::process::id()));
    std::fs::copy(from, &fresh).with_context(|| format!("copy of {}", from.display()))?;
    std::fs::rename(&fresh, to).with_context(|| format!("{}", to.display()))
}

/// What to set to run a program on the blade in `dir`.
pub fn environment(dir: &Path) -> String {
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    format!(
        "WHETSTONE_SIM={0} WHETSTONE_ROOT={0}/root WHETSTONE_KMSG={0}/kmsg LD_LIBRARY_PATH=target/sim",
        dir.display()
    )
}
