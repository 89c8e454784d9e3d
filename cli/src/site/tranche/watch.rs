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
use crate::site::access::{Access, Site};
use crate::site::table::{cell, clean};
use crate::site::{say, wait_for};
use crate::{complain, input_error};

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
    let (mut last, mut listed) = (None, false);
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                complain(format_args!("{error}; trying again"));
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        match news(event, &mut listed) {
            News::Is(row) => {
                if last.as_ref() != Some(&row) {
                    say(&line(&row, args.json)?)?;
                }
                if row.ready {
                    return Ok(ExitCode::SUCCESS);
                }
                last = Some(row);
            }
            News::Gone => return Err(input_error(format!("{} was deleted", text(&args.name)))),
            News::None => {}
        }
    }
    bail!("the watch of {} ended", text(&args.name))
}

/// What an event says of the one tranche that is watched.
#[derive(Debug, PartialEq)]
enum News {
    Is(Box<TrancheRow>),
    Gone,
    None,
}

/// `listed`: whether the list that is being read has had it. One that went between two watches is told of by no `Delete`.
fn news(event: Event<Tranche>, listed: &mut bool) -> News {
    if matches!(event, Event::Init | Event::InitApply(_)) {
        *listed = matches!(event, Event::InitApply(_));
    }
    match event {
        Event::InitApply(tranche) | Event::Apply(tranche) => News::Is(Box::new(TrancheRow::from(&tranche))),
        Event::Delete(_) => News::Gone,
        Event::InitDone if !*listed => News::Gone,
        Event::Init | Event::InitDone => News::None,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tranche_that_went_while_nobody_watched_is_not_waited_for() {
        let spec = serde_json::json!({"blades": [], "suite": "quick"});
        let tranche = || Tranche::new("t-07", serde_json::from_value(spec.clone()).unwrap());
        let is = || News::Is(Box::new(TrancheRow::from(&tranche())));
        let mut listed = false;
        let mut told = |event| news(event, &mut listed);
        // There from the beginning, and changed.
        assert_eq!(
            [told(Event::Init), told(Event::InitApply(tranche())), told(Event::InitDone)],
            [News::None, is(), News::None]
        );
        assert_eq!(told(Event::Apply(tranche())), is());
        // The watch expired, and it is listed anew: there, then not.
        assert_eq!(
            [told(Event::Init), told(Event::InitApply(tranche())), told(Event::InitDone)],
            [News::None, is(), News::None]
        );
        assert_eq!([told(Event::Init), told(Event::InitDone)], [News::None, News::Gone]);
        assert_eq!(told(Event::Delete(tranche())), News::Gone);
    }
}
