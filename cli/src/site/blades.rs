//! `whet blades`: all of them, or those that fit.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use futures::StreamExt as _;
use kube::api::ListParams;
use kube::runtime::watcher::{self, Event};
use serde::Serialize;
use whetstone_api::Blade;
use whetstone_model::ids::{RackName, TrancheName};
use whetstone_model::lifecycle::{Owner, PhaseName};

use super::access::{Access, Site};
use super::failure::OrExit as _;
use super::row::{BladeRow, table};
use super::table::now_ms;
use super::{print_json, say, wait_for};
use crate::{complain, input_error};

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  whet blades --tranche t-07 --phase Quarantined\n  whet blades --rack r-02 --watch\n  \
                        whet blades --json | jq -r '.[] | select(.verdict == \"fail\") | .serial'"
)]
pub struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Go on and show what changes
    #[arg(long, short)]
    watch: bool,
    /// A JSON array; with --watch one object per line: {"event": "listed|changed|gone", "blade": {…}}
    #[arg(long)]
    json: bool,
    /// Serial, node and what it waits for, too; nothing is cut off
    #[arg(long)]
    wide: bool,
    #[command(flatten)]
    access: Access,
}

#[derive(clap::Args, Default)]
struct Filter {
    /// Only of this tranche
    #[arg(long, value_name = "NAME")]
    tranche: Option<String>,
    /// Only in this rack
    #[arg(long, value_name = "NAME")]
    rack: Option<String>,
    /// Only in this phase: Expected, Discovered, …, InService, Quarantined
    #[arg(long)]
    phase: Option<String>,
    /// Only those that this owner has: nobody, spare, inference, slurm/CLUSTER, kubernetes/CLUSTER
    #[arg(long)]
    owner: Option<String>,
    /// Only of this SKU
    #[arg(long)]
    sku: Option<String>,
}

impl Filter {
    /// A field selector: the apiserver chooses, so that a site of thousands is not sent for a few.
    fn selector(&self) -> anyhow::Result<Option<String>> {
        let mut parts = Vec::new();
        if let Some(tranche) = &self.tranche {
            parts.push(format!("spec.tranche={}", TrancheName::new(tranche).map_err(input_error)?));
        }
        if let Some(rack) = &self.rack {
            parts.push(format!("spec.rack={}", RackName::new(rack).map_err(input_error)?));
        }
        if let Some(phase) = &self.phase {
            let known = PhaseName::ALL.iter().find(|known| known.as_str().eq_ignore_ascii_case(phase));
            let names = PhaseName::ALL.map(PhaseName::as_str).join(", ");
            let known = known.ok_or_else(|| input_error(format!("--phase {phase:?} is none of {names}")))?;
            parts.push(format!("status.phase={known}"));
        }
        if let Some(owner) = &self.owner {
            let owner: Owner = owner.parse().map_err(|e| input_error(format!("--owner: {e}")))?;
            // Nobody is the absence of an owner.
            let text = if owner == Owner::Nobody { String::new() } else { owner.to_string() };
            parts.push(format!("status.owner={text}"));
        }
        if let Some(sku) = &self.sku {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if sku.is_empty() || sku.len() > 63 || !sku.chars().all(plain) {
                return Err(input_error(format!("--sku {sku:?}: letters, digits, '-', '_' and '.'")));
            }
            parts.push(format!("spec.sku={sku}"));
        }
        Ok((!parts.is_empty()).then(|| parts.join(",")))
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let selector = args.filter.selector()?;
    wait_for(async {
        let site = args.access.connect().await?;
        if args.watch {
            return watch(&site, selector, &args).await;
        }
        let params = ListParams { field_selector: selector, ..ListParams::default() };
        let blades: Vec<Blade> = site.list(params).await.or_exit()?;
        let rows: Vec<BladeRow> = blades.iter().map(BladeRow::from).collect();
        if args.json {
            print_json(&rows)?;
        } else if rows.is_empty() {
            eprintln!("no blades{}", if args.filter.selector()?.is_some() { " that fit" } else { "" });
        } else {
            say(&table(&rows, args.wide, now_ms()).to_string())?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// A change, as a line of JSON.
#[derive(Serialize)]
struct Change<'a> {
    event: &'static str,
    blade: &'a BladeRow,
}

/// A table is drawn anew at most this often: a thousand blades may change within a second.
const REDRAW: Duration = Duration::from_millis(250);
/// Ages move on though nothing changes.
const TICK: Duration = Duration::from_secs(10);

async fn watch(site: &Site, selector: Option<String>, args: &Args) -> anyhow::Result<ExitCode> {
    let config = watcher::Config { field_selector: selector, ..watcher::Config::default() };
    let mut events = pin!(watcher::watcher(site.all::<Blade>(), config));
    let mut screen = Screen { terminal: !args.json && std::io::stdout().is_terminal(), ..Screen::default() };
    let (mut listed, mut again) = (BTreeMap::new(), false);
    let mut tick = tokio::time::interval(if screen.terminal { REDRAW } else { TICK });
    let mut quiet = 0u32;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = tick.tick() => {
                quiet += 1;
                if screen.terminal && (screen.dirty || quiet * REDRAW >= TICK) {
                    screen.draw(args.wide)?;
                    quiet = 0;
                }
                continue;
            }
        };
        let Some(event) = event else { return Ok(ExitCode::SUCCESS) };
        match event {
            Ok(Event::Init) => listed = BTreeMap::new(),
            Ok(Event::InitApply(blade)) => {
                let row = BladeRow::from(&blade);
                listed.insert(row.name.clone(), row);
            }
            Ok(Event::InitDone) => {
                // After a break in the connection: only what changed meanwhile.
                let listed = std::mem::take(&mut listed);
                let gone: Vec<BladeRow> =
                    screen.rows.values().filter(|row| !listed.contains_key(&row.name)).cloned().collect();
                for row in gone {
                    screen.gone(row, args)?;
                }
                if !again && !args.json && !screen.terminal {
                    screen.first(&listed.values().cloned().collect::<Vec<_>>(), args.wide)?;
                    screen.rows = listed;
                    again = true;
                    continue;
                }
                for row in listed.into_values() {
                    if screen.rows.get(&row.name) != Some(&row) {
                        screen.put(row, if again { "changed" } else { "listed" }, args)?;
                    }
                }
                again = true;
            }
            Ok(Event::Apply(blade)) => {
                let row = BladeRow::from(&blade);
                // Most writes to an object change nothing that is shown.
                if screen.rows.get(&row.name) != Some(&row) {
                    screen.put(row, "changed", args)?;
                }
            }
            Ok(Event::Delete(blade)) => screen.gone(BladeRow::from(&blade), args)?,
            // The first answer decides whether there is anything to watch; later the watcher comes back by itself.
            Err(error) if !again => return Err(failure(site, error).into_error()),
            Err(error) => {
                complain(format_args!("{}; trying again", failure(site, error)));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

fn failure(site: &Site, error: watcher::Error) -> super::Failure {
    match error {
        watcher::Error::InitialListFailed(e)
        | watcher::Error::WatchStartFailed(e)
        | watcher::Error::WatchFailed(e) => site.failure("blades", e),
        other => super::Failure::Apiserver { server: site.server.clone(), what: other.to_string() },
    }
}

/// What has been shown.
#[derive(Default)]
struct Screen {
    rows: BTreeMap<String, BladeRow>,
    terminal: bool,
    dirty: bool,
    /// Of the columns of lines that come one by one.
    widths: Vec<usize>,
}

impl Screen {
    fn put(&mut self, row: BladeRow, event: &'static str, args: &Args) -> anyhow::Result<()> {
        self.show(&row, event, args)?;
        self.rows.insert(row.name.clone(), row);
        Ok(())
    }

    fn gone(&mut self, row: BladeRow, args: &Args) -> anyhow::Result<()> {
        self.rows.remove(&row.name);
        self.show(&row, "gone", args)
    }

    fn show(&mut self, row: &BladeRow, event: &'static str, args: &Args) -> anyhow::Result<()> {
        self.dirty = true;
        if args.json {
            return say(&format!("{}\n", serde_json::to_string(&Change { event, blade: row })?));
        }
        if self.terminal {
            return Ok(());
        }
        let lines = table(std::slice::from_ref(row), args.wide, now_ms()).lines(&mut self.widths);
        let line = lines.last().map_or("", String::as_str);
        say(&format!("{line}{}\n", if event == "gone" { "  (gone)" } else { "" }))
    }

    /// What there is at the beginning, as a table.
    fn first(&mut self, rows: &[BladeRow], wide: bool) -> anyhow::Result<()> {
        let lines = table(rows, wide, now_ms()).lines(&mut self.widths);
        say(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())
    }

    /// The whole screen: from the top, and nothing below.
    fn draw(&mut self, wide: bool) -> anyhow::Result<()> {
        self.dirty = false;
        let rows: Vec<BladeRow> = self.rows.values().cloned().collect();
        say(&format!("\x1b[H\x1b[2J{}", table(&rows, wide, now_ms())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_becomes_a_selector_of_the_apiserver_and_slips_are_said() {
        let filter = Filter {
            tranche: Some("t-07".into()),
            phase: Some("burningin".into()),
            owner: Some("nobody".into()),
            ..Filter::default()
        };
        assert_eq!(
            filter.selector().unwrap().as_deref(),
            Some("spec.tranche=t-07,status.phase=BurningIn,status.owner=")
        );
        assert_eq!(Filter::default().selector().unwrap(), None);
        for (bad, word) in [
            (Filter { phase: Some("Burning".into()), ..Filter::default() }, "Quarantined"),
            (Filter { owner: Some("me".into()), ..Filter::default() }, "slurm/<cluster>"),
            (Filter { rack: Some("r,spec.sku=x".into()), ..Filter::default() }, "rack name"),
            (Filter { sku: Some("a=b".into()), ..Filter::default() }, "--sku"),
        ] {
            let error = bad.selector().unwrap_err();
            assert!(error.is::<crate::InputError>() && error.to_string().contains(word), "{error}");
        }
    }
}
