//! `whet tranche watch`: what changes, until all is decided.

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use futures::StreamExt as _;
use kube::runtime::watcher::{self, Event};
use whetstone_api::Tranche;

use super::show::TrancheRow;
use super::{checked, find, text};
use crate::input_error;
use crate::site::access::{Access, Site};
use crate::site::table::{cell, clean};
use crate::site::{say, wait_for};

#[derive(clap::Args)]
#[command(
    after_help = "Ends when the tranche's condition Ready is true.\n\nExample:\n  whet tranche watch t-07 --timeout 6h && whet tranche report t-07 --out report/"
)]
pub struct Args {
    #[arg(value_name = "NAME")]
    name: String,
    /// Give up after this time, with exit code 1: 30m, 6h
    #[arg(long, value_name = "TIME", value_parser = crate::site::tranche::tokens::duration)]
    timeout: Option<Duration>,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args, access: &Access) -> anyhow::Result<ExitCode> {
    checked(&args.name)?;
    wait_for(async {
        let site = access.connect().await?;
        // Watching nothing would wait for ever.
        find(&site, &args.name).await?;
        match args.timeout {
            None => follow(&site, &args).await,
            Some(limit) => match tokio::time::timeout(limit, follow(&site, &args)).await {
                Ok(result) => result,
                Err(_) => bail!("{} is not decided after {} s", text(&args.name), limit.as_secs()),
            },
        }
    })
}

async fn follow(site: &Site, args: &Args) -> anyhow::Result<ExitCode> {
    let config = watcher::Config {
        field_selector: Some(format!("metadata.name={}", args.name)),
        ..watcher::Config::default()
    };
    let mut events = pin!(watcher::watcher(site.all::<Tranche>(), config));
    let mut last = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::InitApply(tranche) | Event::Apply(tranche)) => {
                let row = TrancheRow::from(&tranche);
                if last.as_ref() != Some(&row) {
                    say(&line(&row, args.json)?)?;
                }
                if row.ready {
                    return Ok(ExitCode::SUCCESS);
                }
                last = Some(row);
            }
            Ok(Event::Delete(_)) => return Err(input_error(format!("{} was deleted", text(&args.name)))),
            Ok(Event::Init | Event::InitDone) => {}
            Err(error) => {
                eprintln!("whet: {error}; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    bail!("the watch of {} ended", text(&args.name))
}

fn line(row: &TrancheRow, json: bool) -> anyhow::Result<String> {
    if json {
        return Ok(format!("{}\n", serde_json::to_string(row)?));
    }
    let time = jiff::Zoned::now().strftime("%H:%M:%S").to_string();
    let c = &row.counts;
    let summary = match row.summary.as_deref() {
        Some(summary) if !summary.is_empty() => clean(summary),
        _ => format!(
            "{} expected, {} discovered, {} burning in, {} ready, {} serving, {} out, {} missing",
            c.expected, c.discovered, c.burning_in, c.ready, c.in_service, c.quarantined, c.missing
        ),
    };
    Ok(format!("{time} {} {summary}\n", cell(row.phase.as_deref())))
}
