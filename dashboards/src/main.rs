//! `whetstone-dashboards`: writes the dashboards and alert rules, and tries them on a Prometheus.
//! Exit codes: 0 fine, 10 something does not fit, 2 wrong usage or input, 1 anything else.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use whetstone_dashboards::{RUNBOOKS, alerts, boards, check, docs, exposition, files, lint};

/// Largest exposition that is read, bytes.
const MAX_TEXT: u64 = 64 << 20;

#[derive(Parser)]
#[command(name = "whetstone-dashboards", version, about = "Grafana dashboards and alert rules of a site")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Write DIR/grafana/*.json and DIR/alerts/whetstone.rules.yaml
    Generate {
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Folder or address that the alerts' runbook_url begins with
        #[arg(long, value_name = "BASE", default_value = RUNBOOKS)]
        runbooks: String,
        /// Write the page of metrics to this folder too
        #[arg(long, value_name = "DIR")]
        docs: Option<PathBuf>,
    },
    /// Run every query on a Prometheus; those that are not valid are printed
    Check {
        #[arg(long, value_name = "URL")]
        prometheus: String,
        /// Takes the place of Grafana's intervals; a few scrapes long
        #[arg(long, default_value = "5m")]
        window: String,
        /// Also print queries that return no data
        #[arg(long)]
        all: bool,
    },
    /// Hold what a process answers at /metrics (on standard input) against the catalogue
    Compare {
        /// A metric whose first event has not happened yet is wrong too
        #[arg(long)]
        complete: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(problems) if problems.is_empty() => ExitCode::SUCCESS,
        Ok(problems) => {
            for problem in problems {
                println!("{problem}");
            }
            ExitCode::from(10)
        }
        Err(error) => {
            eprintln!("whetstone-dashboards: {error:#}");
            ExitCode::from(1)
        }
    }
}

/// What does not fit, one line each.
fn run(verb: Verb) -> anyhow::Result<Vec<String>> {
    match verb {
        Verb::Generate { out, runbooks, docs: pages } => {
            // Nothing is written that the lints refuse.
            let problems = lint::all(&boards::all(), &alerts::all());
            if problems.is_empty() {
                for (path, text) in files(&runbooks)? {
                    write(&out.join(path), &text)?;
                }
                if let Some(pages) = pages {
                    write(&pages.join("operator-metrics.md"), &docs::page())?;
                }
            }
            Ok(problems)
        }
        Verb::Check { prometheus, window, all } => {
            let expect: &[check::Expect<'_>] = if all { &[check::Expect::All] } else { &[] };
            Ok(check::against_with(&prometheus, &window, expect)?.problems)
        }
        Verb::Compare { complete } => {
            let mut text = String::new();
            std::io::stdin()
                .take(MAX_TEXT)
                .read_to_string(&mut text)
                .context("cannot read standard input")?;
            let problems = exposition::compare(&text);
            Ok(problems.iter().filter(|p| complete || p.is_error()).map(ToString::to_string).collect())
        }
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
