//! `whet unexpected`: machines that want to join and are on no manifest.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::access::Access;
use super::failure::OrExit as _;
use super::table::{Table, age, now_ms};
use super::{print_json, say, wait_for};

#[derive(clap::Args)]
#[command(after_help = "Example:\n  whet unexpected")]
pub struct Args {
    /// A JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: Access,
}

/// As the ops API answers. Times are milliseconds since the Unix epoch.
#[derive(Serialize, Deserialize)]
struct Seen {
    serial: String,
    #[serde(default)]
    what: String,
    #[serde(default)]
    first_ms: Option<i64>,
    #[serde(default)]
    last_ms: Option<i64>,
    #[serde(default)]
    times: Option<i64>,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    wait_for(async {
        let ops = args.access.connect().await?.ops().await.or_exit()?;
        let seen: Vec<Seen> = ops.get("/v1/ops/unexpected").await.or_exit()?;
        if args.json {
            print_json(&seen)?;
        } else if seen.is_empty() {
            eprintln!("nothing unexpected");
        } else {
            let (mut table, now) = (Table::new(&["SERIAL", "TIMES", "FIRST", "LAST", "WHAT"]), now_ms());
            for one in seen {
                let times = one.times.map_or(String::new(), |times| times.to_string());
                table.row([one.serial, times, age(one.first_ms, now), age(one.last_ms, now), one.what]);
            }
            say(&table.to_string())?;
        }
        Ok(ExitCode::SUCCESS)
    })
}
