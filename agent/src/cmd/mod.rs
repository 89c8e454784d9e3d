//! The verbs, and what they share.

pub mod run;
pub mod watch;

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::Context;
use whetstone_agent::probe::{ProbeOptions, check_root};
use whetstone_agent::watch::WatchOptions;

/// Wrong usage or input: exit code 2, and nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InputError(pub String);

/// What to look at, and how often.
#[derive(clap::Args)]
pub struct Places {
    /// Between two looks: 500ms, 10s, 5m
    #[arg(long, default_value = "10s", value_parser = interval)]
    interval: Duration,
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

impl Places {
    pub fn options(self) -> anyhow::Result<WatchOptions> {
        check_root(&self.root).map_err(|e| InputError(e.to_string()))?;
        let timeout = Duration::from_secs(self.timeout.clamp(1, 600));
        Ok(WatchOptions {
            probe: ProbeOptions { nvml_lib: self.nvml_lib, root: self.root, timeout },
            interval: self.interval,
            kmsg: Some(self.kmsg),
        })
    }
}

/// A channel that hears of SIGINT, SIGTERM and SIGHUP.
pub fn signals() -> anyhow::Result<(Sender<()>, Receiver<()>)> {
    let (stop, stopped) = channel();
    let handler = stop.clone();
    ctrlc::set_handler(move || {
        let _ = handler.send(());
    })
    .context("cannot handle signals")?;
    Ok((stop, stopped))
}

/// Ends the process this long after the first signal, whatever it still waits for: all that matters is on disk, and
/// Kubernetes would kill it at 30 s.
pub fn end_in_time(limit: Duration, stopped: Receiver<()>) -> anyhow::Result<Receiver<()>> {
    let (forward, forwarded) = channel();
    let wait = move || {
        let _ = stopped.recv();
        let _ = forward.send(());
        std::thread::sleep(limit);
        eprintln!("whetstone-agent: not everything ended in time");
        std::process::exit(0);
    };
    std::thread::Builder::new().name("end".to_owned()).spawn(wait).context("cannot start a thread")?;
    Ok(forwarded)
}

/// `500ms`, `10s`, `5m`; from a tenth of a second to a day.
pub fn interval(text: &str) -> Result<Duration, String> {
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

/// `512KiB`, `64MiB`, `2GiB`, or plain bytes.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let bad = || format!("{text:?}: a whole number with KiB, MiB or GiB");
    let number: u64 = number.parse().map_err(|_| bad())?;
    let scale = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(bad()),
    };
    match number.checked_mul(scale) {
        Some(bytes) if (MIN_SPOOL..=MAX_SPOOL).contains(&bytes) => Ok(bytes),
        _ => Err(format!("{text:?}: 256KiB to 16GiB")),
    }
}

const MIN_SPOOL: u64 = whetstone_agent::report::spool::MIN_BYTES;
const MAX_SPOOL: u64 = 16 << 30;

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

    #[test]
    fn sizes_have_a_unit_and_bounds() {
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("262144"), Ok(256 << 10));
        assert_eq!(size("1GiB"), Ok(1 << 30));
        for bad in ["", "MiB", "64MB", "1KiB", "17GiB", "99999999999999999999MiB", "-1MiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
