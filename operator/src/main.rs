//! `whetstone-operator`. Exit codes: 0 stopped or done, 2 wrong usage or input (nothing was changed), 1 anything else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use whetstone_operator::clock::now_ms;
use whetstone_operator::pki::{self, SiteCa};
use whetstone_operator::run::{RunOptions, run};
use whetstone_store::{Store, StoreError};

/// Thousands of connections and rows come and go: with the C library's allocator half of the CPU time at rest went into it, and
/// four tenths more memory (docs/benchmarks/fleet.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(
    name = "whetstone-operator",
    version,
    about = "The brain of a site of GPU blades",
    max_term_width = 110
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Take agents' reports, plan, act on the cluster, until told to stop
    Run(Box<Run>),
    /// Write the custom resource definitions
    Crds {
        /// Into this directory, a file each; without it to standard output
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// The site's certificate authority
    #[command(subcommand)]
    Pki(Pki),
    /// Write everything in the store to one portable file
    Backup {
        #[command(flatten)]
        store: StoreArg,
        /// A new file
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Read a backup into an empty store (SQLite or PostgreSQL, whichever wrote it)
    Restore {
        #[command(flatten)]
        store: StoreArg,
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
    },
}

#[derive(clap::Args)]
struct StoreArg {
    /// sqlite:FILE?mode=rwc or postgres://USER@HOST/DATABASE
    #[arg(long, value_name = "URL", env = "WHETSTONE_STORE", hide_env_values = true)]
    store: String,
}

#[derive(clap::Args)]
struct Run {
    #[command(flatten)]
    store: StoreArg,
    /// Holds ca.crt and ca.key
    #[arg(long, value_name = "DIR", env = "WHETSTONE_PKI_DIR")]
    pki_dir: PathBuf,
    /// Make a certificate authority there if there is none
    #[arg(long)]
    pki_create: bool,
    /// The cluster; without it the one that this runs in, or the user's
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Agents and whet, with mutual TLS
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8443")]
    listen: SocketAddr,
    /// Health and metrics, plain HTTP
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9443")]
    http: SocketAddr,
    /// A name or address by which agents call this; may be repeated
    #[arg(long = "server-name", value_name = "NAME", default_value = "localhost")]
    server_names: Vec<String>,
    /// Of several replicas one leads
    #[arg(long)]
    leader_elect: bool,
    /// Where the lease is
    #[arg(long, default_value = "whetstone", env = "POD_NAMESPACE")]
    namespace: String,
    /// Name of this replica
    #[arg(long, env = "POD_NAME", default_value_t = default_identity())]
    identity: String,
    /// How often agents report: 500ms, 10s, 5m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    report_interval: Duration,
    /// An agent that was silent for longer counts as away
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = duration)]
    agent_away: Duration,
    /// A run of which nothing was heard for longer is lost, and tried again
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = duration)]
    run_lost: Duration,
    /// Connections at once. When three quarters are taken, further ones end with each answer: more agents than that cost a
    /// TLS handshake a report, and no memory
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    connections: u32,
    /// Logs as JSON, one object a line
    #[arg(long)]
    json_logs: bool,
    /// Ends this process after so many steps, for tests
    #[cfg(debug_assertions)]
    #[arg(long, hide = true, default_value_t = 0)]
    abort_after_steps: i64,
}

#[derive(Subcommand)]
enum Pki {
    /// Make the certificate authority and the key that signs reports; existing ones are never replaced
    Init {
        #[arg(long, value_name = "DIR")]
        pki_dir: PathBuf,
    },
    /// Make credentials with which whet asks the operator: ca.crt, tls.crt, tls.key, url
    OpsCert {
        #[arg(long, value_name = "DIR")]
        pki_dir: PathBuf,
        /// Who it is for; stands in the audit
        #[arg(long)]
        user: String,
        /// Where the operator is: https://HOST:PORT
        #[arg(long)]
        url: String,
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        #[arg(long, default_value_t = 90)]
        days: u32,
    },
}

fn default_identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}

/// `500ms`, `10s`, `5m`; from a tenth of a second to an hour.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let what = || format!("{text:?}: a whole number with ms, s or m, from 100ms to 60m");
    let number: u64 = number.parse().map_err(|_| what())?;
    let factor = match unit {
        "ms" => 1,
        "s" | "" => 1000,
        "m" => 60_000,
        _ => return Err(what()),
    };
    match number.checked_mul(factor) {
        Some(milliseconds @ 100..=3_600_000) => Ok(Duration::from_millis(milliseconds)),
        _ => Err(what()),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("whetstone-operator: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(go(cli.verb)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("whetstone-operator: {error:#}");
            if is_input(&error) { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// What was given cannot be used; nothing was changed.
fn is_input(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind;
    let by_input = |error: &StoreError| match error {
        StoreError::Url(_) | StoreError::Schema(_) | StoreError::NotEmpty { .. } | StoreError::Backup(_) => {
            true
        }
        StoreError::File { source, .. } => {
            !matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::Interrupted)
        }
        _ => false,
    };
    error.chain().any(|error| error.downcast_ref::<StoreError>().is_some_and(by_input))
}

async fn go(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Run(args) => serve(*args).await,
        Verb::Crds { out } => crds(out),
        Verb::Pki(Pki::Init { pki_dir }) => {
            SiteCa::create(&pki_dir, now_ms())?;
            pki::report_key(&pki_dir)?;
            Ok(())
        }
        Verb::Pki(Pki::OpsCert { pki_dir, user, url, out, days }) => {
            let ca = SiteCa::load(&pki_dir, now_ms()).context("--pki-dir")?;
            Ok(pki::ops_cert(&ca, &user, &url, &out, now_ms(), i64::from(days) * 86_400_000)?)
        }
        Verb::Backup { store, out } => {
            // As it is: a file that is not there is not made, and an operator of an older version goes on beside this.
            let store = Store::open_existing(&store.store).await.context("--store")?;
            let written = store.backup(&out).await?;
            println!("{} rows (schema {}) in {}", written.rows, written.schema, out.display());
            Ok(())
        }
        Verb::Restore { store, from } => {
            let read = whetstone_store::restore(&store.store, &from, now_ms()).await?;
            println!("{} rows (schema {}) from {}", read.rows, read.schema, from.display());
            Ok(())
        }
    }
}

fn crds(out: Option<PathBuf>) -> anyhow::Result<()> {
    for manifest in whetstone_api::manifests()? {
        match &out {
            Some(folder) => {
                let path = folder.join(&manifest.file);
                std::fs::write(&path, &manifest.text).with_context(|| path.display().to_string())?;
            }
            None => print!("---\n{}", manifest.text),
        }
    }
    Ok(())
}

async fn serve(args: Run) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("WHETSTONE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,kube_client=warn,kube_runtime=warn"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if args.json_logs {
        logs.json().init();
    } else {
        logs.with_ansi(false).init();
    }
    let stop = CancellationToken::new();
    let on_signal = stop.clone();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        on_signal.cancel();
    });
    let options = RunOptions {
        store: args.store.store,
        pki_dir: args.pki_dir,
        pki_create: args.pki_create,
        kubeconfig: args.kubeconfig,
        listen: args.listen,
        http: args.http,
        server_names: args.server_names,
        leader_elect: args.leader_elect,
        namespace: args.namespace,
        identity: args.identity,
        report_interval: args.report_interval,
        agent_away: args.agent_away,
        run_lost: args.run_lost,
        connections: args.connections as usize,
        #[cfg(debug_assertions)]
        abort_after_steps: args.abort_after_steps,
        #[cfg(not(debug_assertions))]
        abort_after_steps: 0,
    };
    run(options, stop).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_bounds() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "s", "2h", "1ms", "61m", "-1s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
