//! `whet-fleet`: simulated agents for measurements and tests by hand.
//!
//! Commands on standard input, one a line: `fault N CODE` (on the first N blades), `clear`, `cut N`, `join`, `readings N` (a
//! minute of each blade), `flood N SECONDS` (full reports of the first N blades, one after the other), `stats`, `quit`. Each is
//! answered with a line of JSON: all counts so far; a flood, at its end, with what it brought.

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

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
    /// Readings that each blade has each minute, all at once; a real agent with 8 GPUs has 24
    #[arg(long, default_value_t = 0)]
    readings_per_minute: u32,
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
    fleet.command_quietly(&[], |c| c.readings_per_minute = cli.readings_per_minute);
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
            ["readings", count] => {
                let count = count.parse().with_context(|| format!("{count:?}: a number"))?;
                fleet.command_quietly(&[], |c| c.readings_per_minute = count);
            }
            ["flood", count, seconds] => {
                let seconds = seconds.parse().with_context(|| format!("{seconds:?}: a number"))?;
                println!("{}", flood(&fleet, first(count)?, Duration::from_secs(seconds)).await);
                continue;
            }
            ["stats"] => {}
            ["quit"] => break,
            [] => continue,
            _ => eprintln!(
                "{text:?}: fault N CODE, clear, cut N, join, readings N, flood N SECONDS, stats or quit"
            ),
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

/// As many full reports as the operator takes. Counted is what it said it has stored within that time.
async fn flood(fleet: &Fleet, serials: &[Serial], time: Duration) -> serde_json::Value {
    let counts = || {
        let stats = &fleet.stats;
        [&stats.acked, &stats.reports, &stats.bytes, &stats.items, &stats.failures, &stats.refused]
            .map(|counter| counter.load(Ordering::Relaxed))
    };
    let (before, begun) = (counts(), Instant::now());
    fleet.command(serials, |c| c.flood = true);
    tokio::time::sleep(time).await;
    let (after, took) = (counts(), begun.elapsed());
    fleet.command_quietly(serials, |c| c.flood = false);
    let [acked, reports, bytes, items, failures, refused] =
        std::array::from_fn(|place| after[place].saturating_sub(before[place]));
    serde_json::json!({
        "agents": serials.len(), "seconds": took.as_secs_f64(), "acked": acked, "reports": reports,
        "bytes_per_item": bytes as f64 / items.max(1) as f64, "failures": failures, "refused": refused,
    })
}

fn stats(fleet: &Fleet) -> serde_json::Value {
    let stats = &fleet.stats;
    let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    serde_json::json!({
        "joined": get(&stats.joined), "reports": get(&stats.reports), "items": get(&stats.items),
        "acked": get(&stats.acked),
        "results": get(&stats.results), "failures": get(&stats.failures), "refused": get(&stats.refused),
        "faults": get(&stats.faults), "fault_ms": get(&stats.fault_ms),
    })
}
