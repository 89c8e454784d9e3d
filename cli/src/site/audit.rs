//! `whet audit`: who asked the operator for what, and whom it refused.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::access::Access;
use super::failure::OrExit as _;
use super::table::{Table, age, now_ms};
use super::{print_json, say, wait_for};

#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  whet audit --limit 20 --json | jq -r '.[] | [.kind, .who, .what] | @tsv'"
)]
pub struct Args {
    /// Lines at most, the latest
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// A JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: Access,
}

/// As the ops API answers. The time is milliseconds since the Unix epoch.
#[derive(Serialize, Deserialize)]
struct Line {
    id: i64,
    at_ms: i64,
    kind: String,
    who: String,
    what: String,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    wait_for(async {
        let ops = args.access.connect().await?.ops().await.or_exit()?;
        let lines: Vec<Line> = ops.get(&format!("/v1/ops/audit?limit={}", args.limit)).await.or_exit()?;
        if args.json {
            print_json(&lines)?;
        } else if lines.is_empty() {
            eprintln!("nothing in the audit");
        } else {
            let (mut table, now) = (Table::new(&["AGE", "KIND", "WHO", "WHAT"]), now_ms());
            for line in lines {
                table.row([age(Some(line.at_ms), now), line.kind, line.who, line.what]);
            }
            say(&table.to_string())?;
        }
        Ok(ExitCode::SUCCESS)
    })
}
