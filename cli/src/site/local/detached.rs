//! A process that outlives the terminal: leads its own session, then becomes the program, or watches over it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Signal, set_parent_process_death_signal, setsid};

use super::told_to_stop;

/// What fails sooner after its start has not lost its lead: a lease takes longer to run out. It would fail again.
const AT_ONCE: Duration = Duration::from_secs(5);
/// Before it is started again.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub struct Args {
    /// Start it again whenever it fails
    #[arg(long)]
    again: bool,
    /// Stay in the session, and end when who started it does
    #[arg(long, conflicts_with = "again")]
    bound: bool,
    #[arg(last = true, required = true, num_args = 1..)]
    command: Vec<OsString>,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.bound {
        set_parent_process_death_signal(Some(Signal::KILL))?;
    } else {
        // Fails only where it leads one already.
        let _ = setsid();
    }
    if args.again {
        // One thread: a child that is bound ends with the thread that started it.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(watch_over(&args.command));
    }
    let (program, rest) = args.command.split_first().context("no program")?;
    let error = Command::new(program).args(rest).exec();
    Err(error).with_context(|| program.to_string_lossy().into_owned())
}

/// Starts it until it ends in order or at once, or until told to stop. Then it was told, too: signals go to the whole group.
async fn watch_over(command: &[OsString]) -> anyhow::Result<ExitCode> {
    let mut told = std::pin::pin!(told_to_stop());
    loop {
        let begun = Instant::now();
        let mut bound = tokio::process::Command::new(std::env::current_exe().context("own path")?);
        let mut child = bound.args(["site", "detached", "--bound", "--"]).args(command).spawn()?;
        let ended = tokio::select! {
            ended = child.wait() => ended?,
            _ = &mut told => {
                child.wait().await?;
                return Ok(ExitCode::SUCCESS);
            }
        };
        if ended.success() || begun.elapsed() < AT_ONCE {
            return Ok(if ended.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        eprintln!("it ended ({ended}) and is started again");
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            _ = &mut told => return Ok(ExitCode::SUCCESS),
        }
    }
}
