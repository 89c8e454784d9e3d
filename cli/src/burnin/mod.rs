//! `whet burnin`: a suite on this machine, no cluster needed.

mod progress;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use whetstone_agent::bundle::key;
use whetstone_agent::run::{self, Backend, Cancel, Launcher, RunError, RunOptions, SkuChoice};
use whetstone_burnin::suite::{BUILT_IN, Suite};
use whetstone_model::report::Report;
use whetstone_model::threshold::Table;

use crate::input_error;
use progress::Progress;

#[derive(clap::Args)]
pub struct Args {
    /// quick (3 min), standard (30 min), soak (hours), or a suite file
    #[arg(long, default_value = "quick", value_name = "NAME|FILE")]
    suite: String,
    /// What to test: auto = host and any GPUs; cuda = the GPUs must be there; cpu = the host alone
    #[arg(long, value_enum, default_value = "auto")]
    backend: BackendArg,
    /// Directory of the report; made, or empty [default: burnin-<UTC time>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the report as one JSON document on standard output
    #[arg(long)]
    json: bool,
    /// Seed of all test patterns: the same seed gives the same operands
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Name of this blade in the report [default: the host's name]
    #[arg(long, value_name = "NAME")]
    blade: Option<String>,
    /// SKU profile to hold this blade against; none compares its GPUs with each other only [default: the one they fit]
    #[arg(long, value_name = "SKU|none")]
    sku: Option<String>,
    #[command(flatten)]
    places: crate::probe::Places,
    /// Kernel log to follow during the tests
    #[arg(long, env = "WHETSTONE_KMSG", default_value = "/dev/kmsg", value_name = "FILE")]
    kmsg: PathBuf,
    /// Key that signs the report, PKCS#8 PEM; made if it is not there [default: /var/lib/whetstone or the user's state]
    #[arg(long, env = "WHETSTONE_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum BackendArg {
    Auto,
    Cuda,
    Cpu,
}

/// A suite file is a page of text; more than this is something else.
const MAX_SUITE_BYTES: u64 = 1 << 20;

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (suite, suite_text) = load_suite(&args.suite)?;
    let cancel = Cancel::default();
    let on_signal = cancel.clone();
    ctrlc::set_handler(move || on_signal.request())?;
    let options = RunOptions {
        suite,
        suite_text,
        backend: match args.backend {
            BackendArg::Auto => Backend::Auto,
            BackendArg::Cuda => Backend::Cuda,
            BackendArg::Cpu => Backend::Cpu,
        },
        seed: args.seed,
        out: args.out.unwrap_or_else(default_out),
        blade: args.blade.map(blade_name).transpose()?,
        sku: args.sku.map_or(Ok(SkuChoice::Recognised), sku_choice)?,
        probe: args.places.options()?,
        kmsg: args.kmsg,
        key: args.key.unwrap_or_else(key::default_path),
        // By this name it is this very image, even if the file was replaced by an update in the middle of a soak.
        launcher: Launcher { program: "/proc/self/exe".into(), args: vec!["device-test".into()] },
    };
    let mut progress = Progress::new(&options.suite);
    let report = run::run(&options, &cancel, &mut progress).map_err(|error| match error {
        RunError::Refused(_) => input_error(error),
        // Its words hold their causes already.
        RunError::Broken(_) => anyhow::anyhow!("{error}"),
    })?;
    progress.finish();
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&report)?)
    } else {
        with_page(&report, &options.out)
    };
    // The bundle is whole and signed; a reader who went away changes nothing about the verdict.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::from(report.verdict.outcome.exit_code()))
}

fn load_suite(name: &str) -> anyhow::Result<(Suite, String)> {
    if let Some((_, text)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
        return Ok((Suite::parse(name, text).map_err(input_error)?, (*text).to_owned()));
    }
    let names = BUILT_IN.map(|(name, _)| name).join(", ");
    let file = std::fs::File::open(name)
        .map_err(|e| input_error(format!("suite {name:?} is none of {names}, and as a file: {e}")))?;
    let mut text = String::new();
    file.take(MAX_SUITE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|e| input_error(format!("{name}: {e}")))?;
    if text.len() as u64 > MAX_SUITE_BYTES {
        return Err(input_error(format!("{name}: over {MAX_SUITE_BYTES} bytes, not a suite")));
    }
    Ok((Suite::parse(name, &text).map_err(input_error)?, text))
}

fn sku_choice(name: String) -> anyhow::Result<SkuChoice> {
    if name == "none" {
        return Ok(SkuChoice::None);
    }
    let table = Table::built_in()?;
    if table.profile(&name).is_none() {
        let known: Vec<&str> = table.profiles.iter().map(|p| p.sku.as_str()).collect();
        return Err(input_error(format!("--sku {name:?} is not known; known: {}, none", known.join(", "))));
    }
    Ok(SkuChoice::Named(name))
}

/// Names go into file names and labels.
fn blade_name(name: String) -> anyhow::Result<String> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if (1..=63).contains(&name.len()) && name.bytes().all(legal) {
        Ok(name)
    } else {
        Err(input_error(format!("--blade {name:?}: 1 to 63 letters, digits, '-', '_' or '.'")))
    }
}

fn default_out() -> PathBuf {
    PathBuf::from(format!("burnin-{}", jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ")))
}

/// [`summary`], and where the page with all of it lies.
pub fn with_page(report: &Report, dir: &Path) -> String {
    format!("{}  report: {}\n", summary(report), dir.join("report.html").display())
}

/// What a person reads at the end.
pub fn summary(report: &Report) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let verdict = &report.verdict;
    if report.simulated {
        text.push_str("SIMULATED: not a hardware result\n");
    }
    let sku = report.blade.sku.as_deref().unwrap_or("no GPU profile");
    let _ = writeln!(text, "{}: {} ({sku}, suite {})", report.blade.name, verdict.outcome, report.suite.name);
    if !verdict.why.is_empty() {
        let _ = writeln!(text, "  why:  {}\n  next: {}", verdict.why, verdict.action.next_step());
    }
    for (device, verdict) in report.devices.iter().zip(&report.device_verdicts) {
        if !verdict.why.is_empty() {
            let _ = writeln!(
                text,
                "  {:<8} {:<13} {} [{}]",
                device.label, verdict.outcome, verdict.why, verdict.code
            );
        }
    }
    for test in &report.tests {
        let seconds = (test.ended_ms - test.started_ms) as f64 / 1000.0;
        let outcome = serde_json::to_value(test.outcome).ok();
        let outcome = outcome.as_ref().and_then(|o| o.as_str()).unwrap_or("").replace('_', " ");
        let _ = writeln!(text, "  {:<14} {outcome:<15} {seconds:>6.1} s  {}", test.name, test.detail);
    }
    text
}
