//! `whetstone-agent`: the daemon of one blade. Exit codes as `whet`'s: 0 stopped, 2 wrong usage, 1 anything else.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use whetstone_agent::probe::{ProbeOptions, check_root};
use whetstone_agent::watch::{Event, WatchOptions, What, watch};

#[derive(Parser)]
#[command(name = "whetstone-agent", version, about = "The daemon of one GPU blade", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Look at this blade at an interval and say what changes, until told to stop
    Watch(Watch),
}

#[derive(clap::Args)]
struct Watch {
    /// Between two looks: 500ms, 10s, 5m
    #[arg(long, default_value = "10s", value_parser = interval)]
    interval: Duration,
    /// One JSON document per line
    #[arg(long)]
    json: bool,
    /// NVML library to load; without it the loader's usual search
    #[arg(long, value_name = "PATH", env = "WHETSTONE_NVML_LIB")]
    nvml_lib: Option<PathBuf>,
    /// What stands for / when sysfs and procfs are read
    #[arg(long, value_name = "DIR", env = "WHETSTONE_ROOT", default_value = "/")]
    root: PathBuf,
    /// Kernel log to follow
    #[arg(long, value_name = "PATH", env = "WHETSTONE_KMSG", default_value = "/dev/kmsg")]
    kmsg: PathBuf,
    /// Seconds that a source has to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
}

/// `500ms`, `10s`, `5m`; from a tenth of a second to a day.
fn interval(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("{text:?}: a whole number with ms, s or m"))?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "s" | "" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        _ => return Err(format!("{text:?}: a whole number with ms, s or m")),
    };
    match milliseconds {
        Some(milliseconds @ 100..=86_400_000) => Ok(Duration::from_millis(milliseconds)),
        _ => Err(format!("{text:?}: 100ms to 1440m")),
    }
}

fn main() -> ExitCode {
    let Verb::Watch(args) = Cli::parse().verb;
    if let Err(error) = check_root(&args.root) {
        eprintln!("whetstone-agent: {error}");
        return ExitCode::from(2);
    }
    match run(args) {
        // Not by returning: a library that hangs would hold its thread.
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("whetstone-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Watch) -> anyhow::Result<()> {
    let (stop, stopped) = channel();
    let handler = stop.clone();
    // SIGINT, SIGTERM and SIGHUP alike.
    ctrlc::set_handler(move || {
        let _ = handler.send(());
    })
    .context("cannot handle signals")?;
    let timeout = Duration::from_secs(args.timeout.clamp(1, 600));
    let options = WatchOptions {
        probe: ProbeOptions { nvml_lib: args.nvml_lib, root: args.root, timeout },
        interval: args.interval,
        kmsg: Some(args.kmsg),
    };
    watch(&options, stopped, |event| {
        let line = if args.json { serde_json::to_string(&event).unwrap_or_default() } else { words(&event) };
        let mut out = std::io::stdout();
        // Whoever read this is gone: there is nobody to watch for.
        if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
            let _ = stop.send(());
        }
    });
    Ok(())
}

fn words(event: &Event) -> String {
    let at =
        jiff::Timestamp::from_millisecond(event.at_ms).map_or_else(|_| "?".to_owned(), |at| at.to_string());
    let (word, finding) = match &event.what {
        What::Started { gpus, simulated } => {
            let sim = if *simulated { ", simulated" } else { "" };
            return format!("{at} watching, {gpus} GPUs{sim}");
        }
        What::Stopped => return format!("{at} stopped"),
        What::Appeared { finding } => ("appeared", finding),
        What::Changed { finding } => ("changed", finding),
        What::Cleared { finding } => ("cleared", finding),
        What::Kernel { finding, .. } => ("kernel", finding),
        What::KernelGap { why } => return format!("{at} kernel log: {why}"),
    };
    let device = finding.device.as_ref().map_or("–", |device| device.as_str());
    format!("{at} {word} {} {} {device}: {}", finding.severity.as_str(), finding.code, finding.detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_have_a_unit_and_bounds() {
        assert_eq!(interval("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(interval("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(interval("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "s", "10h", "1ms", "99999999999999999999s", "-5s", "1.5s"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
