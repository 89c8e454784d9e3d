//! `whet burnins`: the runs, as the cluster's `BurnIn` objects say.

use std::process::ExitCode;

use kube::api::ListParams;
use serde::Serialize;
use whetstone_api::BurnIn;
use whetstone_model::ids::BladeName;

use super::access::Access;
use super::failure::OrExit as _;
use super::table::{Table, age, cell, cut, now_ms};
use super::{print_json, say, wait_for};
use crate::input_error;

#[derive(clap::Args)]
#[command(after_help = "Example:\n  whet burnins --blade b-003")]
pub struct Args {
    /// Only of this blade, by its name
    #[arg(long, value_name = "NAME")]
    blade: Option<String>,
    /// A JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: Access,
}

/// Times are milliseconds since the Unix epoch.
#[derive(Serialize)]
struct Row {
    name: String,
    blade: String,
    suite: String,
    run: Option<i64>,
    phase: Option<String>,
    progress: Option<String>,
    why: Option<String>,
    created_ms: Option<i64>,
    started_ms: Option<i64>,
    ended_ms: Option<i64>,
}

impl From<BurnIn> for Row {
    fn from(burnin: BurnIn) -> Row {
        let status = burnin.status.unwrap_or_default();
        Row {
            name: burnin.metadata.name.unwrap_or_default(),
            blade: burnin.spec.blade,
            suite: burnin.spec.suite,
            run: status.run,
            phase: status.phase.map(|phase| format!("{phase:?}")),
            progress: status.progress,
            why: status.why,
            created_ms: burnin.metadata.creation_timestamp.map(|time| time.0.as_millisecond()),
            started_ms: status.started.map(|time| time.0.as_millisecond()),
            ended_ms: status.ended.map(|time| time.0.as_millisecond()),
        }
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut params = ListParams::default();
    if let Some(blade) = &args.blade {
        params = params.fields(&format!("spec.blade={}", BladeName::new(blade).map_err(input_error)?));
    }
    wait_for(async {
        let site = args.access.connect().await?;
        let mut rows: Vec<Row> =
            site.list::<BurnIn>(params).await.or_exit()?.into_iter().map(Row::from).collect();
        rows.sort_by_key(|row| (row.run.is_none(), row.run, row.created_ms));
        if args.json {
            print_json(&rows)?;
        } else if rows.is_empty() {
            eprintln!("no burn-ins");
        } else {
            say(&table(&rows, now_ms()))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn table(rows: &[Row], now_ms: i64) -> String {
    let mut table = Table::new(&["RUN", "BLADE", "SUITE", "PHASE", "PROGRESS", "AGE", "WHY"]);
    for row in rows {
        table.row([
            cell(row.run.map(|run| run.to_string()).as_deref()),
            row.blade.clone(),
            row.suite.clone(),
            cell(row.phase.as_deref()),
            cell(row.progress.as_deref()),
            age(row.created_ms, now_ms),
            cut(row.why.as_deref().unwrap_or_default(), 80),
        ]);
    }
    table.to_string()
}
