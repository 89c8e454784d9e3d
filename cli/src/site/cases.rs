//! `whet cases`: the faults that are open.

use std::process::ExitCode;

use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::ListParams;
use whetstone_api::Blade;

use super::access::{Access, Site};
use super::failure::{Failure, OrExit as _};
use super::history::{Case, History};
use super::ops::Ops;
use super::table::{Table, age, cell, cut, now_ms};
use super::{print_json, say, wait_for};

#[derive(clap::Args)]
#[command(after_help = "Example:\n  whet cases --json | jq -r '.[] | [.blade, .device, .action] | @tsv'")]
pub struct Args {
    /// Those that are closed, too
    #[arg(long)]
    all: bool,
    /// A JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: Access,
}

/// Histories asked for at once.
const AT_ONCE: usize = 8;

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    wait_for(async {
        let site = args.access.connect().await?;
        let ops = site.ops().await.or_exit()?;
        let mut cases = match ops.get::<Vec<Case>>(&format!("/v1/ops/cases?all={}", args.all)).await {
            Err(failure) if failure.is_not_found() => by_blades(&site, &ops).await.or_exit()?,
            other => other.or_exit()?,
        };
        cases.retain(|case| args.all || case.closed_ms.is_none());
        cases.sort_by_key(|case| case.case);
        if args.json {
            print_json(&cases)?;
        } else if cases.is_empty() {
            eprintln!("no {}cases", if args.all { "" } else { "open " });
        } else {
            say(&table(&cases, now_ms()))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// From an operator that has no list of them: the histories of the blades that have one.
async fn by_blades(site: &Site, ops: &Ops) -> Result<Vec<Case>, Failure> {
    let blades: Vec<Blade> = site.list(ListParams::default()).await?;
    let bad: Vec<(String, String)> = blades
        .into_iter()
        .filter(|blade| blade.status.as_ref().is_some_and(|status| !status.cases.is_empty()))
        .map(|blade| (blade.metadata.name.unwrap_or_default(), blade.spec.serial))
        .collect();
    let of_blade = |(name, serial): (String, String)| async move {
        let history: History = ops.get(&format!("/v1/ops/blades/{serial}/history")).await?;
        let of = |case: Case| Case { serial: Some(serial.clone()), blade: Some(name.clone()), ..case };
        Ok::<Vec<Case>, Failure>(history.cases.into_iter().map(of).collect())
    };
    let found: Vec<Vec<Case>> =
        futures::stream::iter(bad).map(of_blade).buffer_unordered(AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

fn table(cases: &[Case], now_ms: i64) -> String {
    let mut table =
        Table::new(&["CASE", "BLADE", "DEVICE", "CODE", "REASON", "NEXT", "STATE", "AGE", "DETAIL"]);
    for case in cases {
        table.row([
            case.case.to_string(),
            cell(case.blade.as_deref().or(case.serial.as_deref())),
            cell(case.device.as_deref()),
            cell(Some(&case.code)),
            cell(Some(&case.reason)),
            cell(Some(&case.action)),
            if case.closed_ms.is_some() { "closed".to_owned() } else { "open".to_owned() },
            age(Some(case.opened_ms), now_ms),
            cut(&case.detail, 60),
        ]);
    }
    table.to_string()
}
