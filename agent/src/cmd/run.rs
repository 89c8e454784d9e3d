//! `whetstone-agent run`: the daemon of a blade that belongs to a site.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use whetstone_agent::report::{self, OperatorUrl, ReportError, ReportOptions, log};
use whetstone_agent::run::{Backend, Launcher};
use whetstone_model::ids::Serial;

use super::{InputError, Places, end_in_time, interval, signals, size};

/// From a signal to the end at the most.
const END: Duration = Duration::from_secs(28);

#[derive(clap::Args)]
pub struct Args {
    /// The site's operator
    #[arg(long, value_name = "https://HOST:PORT", env = "WHETSTONE_OPERATOR")]
    operator: OperatorUrl,
    /// The site's CA certificate, PEM
    #[arg(long, value_name = "FILE", env = "WHETSTONE_CA")]
    ca: PathBuf,
    /// Where the one-time join token lies when one is needed; deleted after use
    #[arg(long, value_name = "FILE", env = "WHETSTONE_TOKEN_FILE")]
    token_file: PathBuf,
    /// Directory of what the agent keeps: identity, spool, results of runs
    #[arg(long, value_name = "DIR", env = "WHETSTONE_STATE", default_value = "/var/lib/whetstone")]
    state: PathBuf,
    /// Serial of this blade [default: the firmware's]
    #[arg(long, value_name = "SERIAL", env = "WHETSTONE_SERIAL", value_parser = |text: &str| Serial::new(text))]
    serial: Option<Serial>,
    /// Between two reports, unless the operator says otherwise
    #[arg(long, default_value = "10s", value_parser = interval)]
    report_interval: Duration,
    /// Evidence that is kept on disk while the operator is away, at most
    #[arg(long, default_value = "64MiB", value_name = "SIZE", value_parser = size)]
    spool_max: u64,
    /// Answer Prometheus at this address, such as 127.0.0.1:9444 [default: not]
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,
    /// What ordered runs test: auto = host and any GPUs; cuda = the GPUs must be there; cpu = the host alone
    #[arg(long, value_enum, default_value = "auto")]
    backend: BackendArg,
    /// Log one JSON document per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    places: Places,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum BackendArg {
    Auto,
    Cuda,
    Cpu,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    log::as_json(args.json);
    let options = ReportOptions {
        operator: args.operator,
        ca: args.ca,
        token_file: args.token_file,
        state: args.state,
        serial: args.serial,
        report_interval: args.report_interval,
        spool_max: args.spool_max,
        metrics: args.metrics,
        watch: args.places.options()?,
        backend: match args.backend {
            BackendArg::Auto => Backend::Auto,
            BackendArg::Cuda => Backend::Cuda,
            BackendArg::Cpu => Backend::Cpu,
        },
        // By this name it is this very image, even if the file was replaced by an update in the middle of a soak.
        launcher: Launcher { program: "/proc/self/exe".into(), args: vec!["device-test".into()] },
    };
    // Held to the end: a closed channel would be taken for a signal.
    let (_stop, stopped) = signals()?;
    let stopped = end_in_time(END, stopped)?;
    report::run(&options, stopped).map_err(|error| match error {
        ReportError::Input(what) => InputError(what).into(),
        other => other.into(),
    })
}
