//! `whet site`: a whole site on this machine: a real Kubernetes, the operator, simulated blades with their agents.
//!
//! ```text
//! DIR/.whetstone-site     mark: this folder is ours, `down` deletes it
//! DIR/state.json          what runs (pid and start time), what was made
//! DIR/admin.kubeconfig    DIR/cluster/ (the local Kubernetes)    DIR/pki/    DIR/ops/    DIR/store.db    DIR/log/
//! DIR/blades/NAME/{silicon,state,token}
//! ```

mod agents;
mod cluster;
mod detached;
mod down;
mod folder;
mod objects;
mod operator;
mod others;
mod process;
mod programs;
mod silicon;
mod state;
mod status;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

/// The administrator's kubeconfig, in a site's folder.
pub const KUBECONFIG: &str = "admin.kubeconfig";

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Start a site: Kubernetes, operator, simulated blades that are burned in
    Up(Box<up::Args>),
    /// End it and leave nothing behind; fine where there is none
    Down(down::Args),
    /// What runs, and how much memory it takes
    Status(status::Args),
    /// Become a process of its own session (`up` calls it)
    #[command(hide = true)]
    Detached(detached::Args),
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        What::Up(args) => up::run(&args),
        What::Down(args) => down::run(&args),
        What::Status(args) => status::run(&args),
        What::Detached(args) => detached::run(args),
    }
}

/// Which folder.
#[derive(clap::Args)]
struct Place {
    /// Folder of the site [env: WHETSTONE_SITE] [default: whetstone/site below $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Place {
    fn path(&self) -> anyhow::Result<PathBuf> {
        let named = self.dir.clone().or_else(|| variable("WHETSTONE_SITE")).or_else(default_dir);
        let dir =
            named.ok_or_else(|| crate::input_error("neither --dir nor HOME says where the site is to be"))?;
        std::path::absolute(&dir).map_err(|e| crate::input_error(format!("{}: {e}", dir.display())))
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Where a site is if nobody says: below the user's state folder.
pub fn default_dir() -> Option<PathBuf> {
    let state = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
    Some(state?.join("whetstone/site"))
}

/// Until a signal says so; the error that a command ends with then.
pub async fn told_to_stop() -> anyhow::Error {
    let wait = async |kind| match signal(kind) {
        Ok(mut stream) => drop(stream.recv().await),
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::hangup()) => {}
    }
    anyhow::anyhow!("told to stop")
}
