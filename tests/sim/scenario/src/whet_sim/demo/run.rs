//! Runs `whet burnin` on this machine, and reads reports.

use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use whetstone_model::report::Report;

/// What all runs share. Paths are absolute.
pub struct Setting {
    pub whet: PathBuf,
    pub libs: PathBuf,
    pub out: PathBuf,
    pub suite: PathBuf,
}

/// How one run ended.
pub struct Ran {
    pub took: Duration,
    /// The report, or why there is none.
    pub report: Result<Report, String>,
}

impl Ran {
    /// `pass`, `fail`, `inconclusive`, or `no report`.
    pub fn word(&self) -> &'static str {
        self.report.as_ref().map_or("no report", |r| r.verdict.outcome.as_str())
    }

    pub fn why(&self) -> &str {
        match &self.report {
            Ok(report) => &report.verdict.why,
            Err(why) => why,
        }
    }
}

/// Largest report that is read back.
const MAX_REPORT_BYTES: u64 = 64 << 20;

/// Burns in the machine that this runs on; its progress goes to this terminal.
pub fn own(setting: &Setting, suite: &str) -> anyhow::Result<Ran> {
    eprintln!("this machine, for real: whet burnin --suite {suite}");
    let start = Instant::now();
    let dir = setting.out.join("this-machine");
    let status = Command::new(&setting.whet)
        .args(["burnin", "--suite", suite, "--json", "--out"])
        .arg(&dir)
        .env("WHETSTONE_KEY", setting.out.join("signing-key.pem"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("whet burnin")?;
    Ok(Ran { took: start.elapsed(), report: report(&dir, Some(status)) })
}

/// The report of the bundle in `dir`, or why there is none.
pub fn report(dir: &std::path::Path, status: Option<ExitStatus>) -> Result<Report, String> {
    let how = status.map_or("no report".to_owned(), |s| s.to_string());
    let path = dir.join("report.json");
    let size = std::fs::metadata(&path).map_err(|e| format!("{how}; {}: {e}", path.display()))?.len();
    if size > MAX_REPORT_BYTES {
        return Err(format!("{}: {size} bytes", path.display()));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{how}; {}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}
