//! `whet burnins`: the runs, as the cluster's `BurnIn` objects say; and what one of them reported, which the operator keeps.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use kube::api::ListParams;
use serde::{Deserialize, Serialize};
use whetstone_agent::bundle::manifest::{self, FileEntry, MANIFEST, SIGNATURE};
use whetstone_api::BurnIn;
use whetstone_model::ids::BladeName;
use whetstone_model::report::Report;

use super::access::Access;
use super::failure::OrExit as _;
use super::table::{Table, age, cell, cut, now_ms};
use super::{print_json, say, wait_for};
use crate::burnin::summary;
use crate::{harmless, input_error};

#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  whet burnins --blade b-003\n  whet burnins report 41"
)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Only of this blade, by its name
    #[arg(long, value_name = "NAME")]
    blade: Option<String>,
    /// A JSON array; of one run its report.json
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    access: Access,
}

#[derive(clap::Subcommand)]
enum What {
    /// What a run found, test by test, by the report that its blade signed; the whole bundle is on the blade
    Report {
        #[arg(value_name = "RUN", value_parser = clap::value_parser!(i64).range(1..))]
        run: i64,
    },
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
    match args.what {
        Some(What::Report { run }) => report(run, args.json, &args.access),
        None => list(&args),
    }
}

/// As the ops API answers.
#[derive(Deserialize)]
struct Signed {
    signer: String,
    /// Text by name.
    files: BTreeMap<String, String>,
}

fn report(run: i64, json: bool, access: &Access) -> anyhow::Result<ExitCode> {
    wait_for(async {
        let ops = access.connect().await?.ops().await.or_exit()?;
        let signed: Signed = ops.get(&format!("/v1/ops/runs/{run}/report")).await.or_exit()?;
        let report = checked(&signed).with_context(|| format!("run {run}: the operator's answer"))?;
        if json {
            print_json(&report)?;
        } else {
            say(&harmless(&format!("{}  as signed by {}\n", summary(&report), signed.signer)))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The report, if it is what the blade's key has signed.
fn checked(signed: &Signed) -> anyhow::Result<Report> {
    const REPORT: &str = "report.json";
    let file = |name: &str| signed.files.get(name).with_context(|| format!("no {name}"));
    let opened = manifest::open(file(MANIFEST)?.as_bytes(), file(SIGNATURE)?.as_bytes());
    let (manifest, _) = opened.map_err(anyhow::Error::msg)?;
    if manifest.key != signed.signer {
        bail!("signed by another key than the one that the blade joined with");
    }
    let report = file(REPORT)?;
    if manifest.files.get(REPORT) != Some(&FileEntry::of(report.as_bytes())) {
        bail!("{REPORT} is not what was signed");
    }
    serde_json::from_str(report).context(REPORT)
}

fn list(args: &Args) -> anyhow::Result<ExitCode> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_is_not_as_the_blade_signed_it_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let key = whetstone_agent::bundle::key::load_or_create(&dir.path().join("key.pem")).unwrap();
        let text = "{\"schema\": \"whetstone.report/1\"}";
        // As a blade has it: with files that it keeps to itself.
        let entry = |text: &str| FileEntry::of(text.as_bytes());
        let files =
            BTreeMap::from([("report.json".to_owned(), entry(text)), ("raw/x".to_owned(), entry("x"))]);
        let sealed = manifest::seal("run-41", files, &key).unwrap();
        let open = manifest::open(sealed.manifest_json.as_bytes(), sealed.signature.as_bytes());
        let signed = |report: &str, signer: &str| Signed {
            signer: signer.to_owned(),
            files: BTreeMap::from([
                ("report.json".to_owned(), report.to_owned()),
                (MANIFEST.to_owned(), sealed.manifest_json.clone()),
                (SIGNATURE.to_owned(), sealed.signature.clone()),
            ]),
        };
        let signer = open.unwrap().0.key;
        let why = |signed: Signed| format!("{:#}", checked(&signed).unwrap_err());
        // As signed; it is no report all the same.
        assert!(why(signed(text, &signer)).starts_with("report.json: missing field"));
        assert_eq!(why(signed("{}", &signer)), "report.json is not what was signed");
        assert!(why(signed(text, "another")).starts_with("signed by another key"));
        assert_eq!(why(Signed { signer, files: BTreeMap::new() }), "no manifest.json");
    }
}
