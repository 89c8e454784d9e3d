//! `whet-fleet`: simulated agents for measurements and tests by hand.
//!
//! Commands on standard input, one a line: `fault N CODE` (on the first N blades), `clear`, `cut N`, `join`, `stats`, `quit`.

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use whetstone_model::ids::Serial;
use whetstone_sim_fleet::{End, Fleet, FleetBlade, Options};

#[derive(Parser)]
#[command(
    name = "whet-fleet",
    version,
    about = "Thousands of simulated agents in one process",
    max_term_width = 110
)]
struct Cli {
    /// HOST:PORT of the operator
    #[arg(long)]
    operator: String,
    #[arg(long, default_value = "localhost")]
    server_name: String,
    #[arg(long)]
    ca: PathBuf,
    /// CSV with the columns serial and token
    #[arg(long)]
    tokens: PathBuf,
    /// How long a burn-in takes, ms
    #[arg(long, default_value_t = 200)]
    run_ms: u64,
    /// Reports every so many ms, whatever the operator asks for
    #[arg(long)]
    report_ms: Option<u64>,
    /// Every so-manieth blade fails its burn-in; 0 = none
    #[arg(long, default_value_t = 0)]
    fail_every: usize,
    #[arg(long, default_value_t = 8)]
    gpus: u32,
    #[arg(long, default_value = "hgx-h100")]
    sku: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let mut blades = Vec::new();
    for (place, row) in csv::Reader::from_path(&cli.tokens)?.deserialize().enumerate() {
        let row: Row = row.with_context(|| format!("{}: row {}", cli.tokens.display(), place + 2))?;
        let fails = cli.fail_every > 0 && place % cli.fail_every == cli.fail_every - 1;
        let script = if fails { vec![End::Fail] } else { Vec::new() };
        blades.push(FleetBlade { serial: row.serial, token: row.token, script });
    }
    let serials: Vec<Serial> = blades.iter().map(|blade| blade.serial.clone()).collect();
    let options = Options {
        operator: cli.operator,
        server_name: cli.server_name,
        ca_pem: std::fs::read_to_string(&cli.ca).with_context(|| cli.ca.display().to_string())?,
        run_time: Duration::from_millis(cli.run_ms),
        report_every: cli.report_ms.map(Duration::from_millis),
        gpus: cli.gpus,
        sku: cli.sku,
        machine: String::new(),
    };
    let fleet = Fleet::start(options, blades)?;
    let (line, mut lines) = tokio::sync::mpsc::channel(16);
    std::thread::spawn(move || {
        for text in std::io::stdin().lock().lines().map_while(Result::ok) {
            if line.blocking_send(text).is_err() {
                return;
            }
        }
    });
    while let Some(text) = lines.recv().await {
        let words: Vec<&str> = text.split_whitespace().collect();
        let first = |count: &str| -> anyhow::Result<&[Serial]> {
            let count: usize = count.parse().with_context(|| format!("{count:?}: a number"))?;
            Ok(&serials[..count.min(serials.len())])
        };
        match words[..] {
            ["fault", count, code] => fleet.command(first(count)?, |c| c.fault = Some(code.to_owned())),
            ["clear"] => fleet.command(&[], |c| c.fault = None),
            ["cut", count] => fleet.command(first(count)?, |c| c.cut_off = true),
            ["join"] => fleet.command(&[], |c| c.cut_off = false),
            ["stats"] => {}
            ["quit"] => break,
            [] => continue,
            _ => eprintln!("{text:?}: fault N CODE, clear, cut N, join, stats or quit"),
        }
        println!("{}", stats(&fleet));
    }
    Ok(())
}

#[derive(serde::Deserialize)]
struct Row {
    serial: Serial,
    token: String,
}

fn stats(fleet: &Fleet) -> serde_json::Value {
    let stats = &fleet.stats;
    let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    serde_json::json!({
        "joined": get(&stats.joined), "reports": get(&stats.reports), "items": get(&stats.items),
        "results": get(&stats.results), "failures": get(&stats.failures), "refused": get(&stats.refused),
        "faults": get(&stats.faults), "fault_ms": get(&stats.fault_ms),
    })
}
