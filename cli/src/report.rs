//! `whet report`: the bundle of a run, verified, shown or drawn again.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use whetstone_agent::bundle::manifest::{VerifyError, verify};
use whetstone_agent::bundle::{html, key, read_report};

use whetstone_model::verdict::Outcome;

use crate::input_error;

/// Bundles on one page at most.
const MAX_BUNDLES: usize = 10_000;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Check signature and every byte. Exit 0 as signed, 10 changed, 20 not signed (the run was cut off)
    Verify {
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Accept only bundles signed by this key (public key in hex or PEM); may be repeated
        #[arg(long = "key", value_name = "FILE")]
        keys: Vec<PathBuf>,
        #[arg(long)]
        json: bool,
    },
    /// Print the result
    Show {
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        #[arg(long)]
        json: bool,
    },
    /// One page over all bundles in a folder, worst first: a tranche at a glance
    Index {
        /// Folder that holds bundles, each in a folder of its own
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// [default: DIR/index.html]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Print one JSON document: {"html": FILE, "blades": [{"blade","outcome","device","why","next","link"}]}
        #[arg(long)]
        json: bool,
    },
    /// Draw report.html anew from report.json, for a run that was cut off before it could
    Html {
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Where to write it; not into the bundle, whose files are signed [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Print {"html": FILE} when done
        #[arg(long, requires = "out")]
        json: bool,
    },
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        What::Verify { dir, keys, json } => {
            let trusted = keys
                .iter()
                .map(|k| key::read_public(k))
                .collect::<Result<Vec<_>, _>>()
                .map_err(input_error)?;
            let (code, document, line) = match verify(&dir, &trusted) {
                Ok(ok) => {
                    let trust = if ok.trusted { "a trusted key" } else { "any key: none was given to trust" };
                    let line = format!("{}: {} files as signed by {} ({trust})", ok.run, ok.files, ok.key);
                    (0, serde_json::json!({"valid": true, "bundle": ok}), line)
                }
                Err(VerifyError::Unreadable(e)) => return Err(input_error(e)),
                Err(e @ VerifyError::NotSigned(_)) => (
                    20,
                    serde_json::json!({"valid": false, "signed": false, "problems": [e.to_string()]}),
                    e.to_string(),
                ),
                Err(VerifyError::Changed { dir, problems }) => {
                    let line = format!("{}: NOT as signed: {}", dir.display(), problems.join("; "));
                    (10, serde_json::json!({"valid": false, "signed": true, "problems": problems}), line)
                }
            };
            if json {
                println!("{}", serde_json::to_string_pretty(&document)?);
            } else {
                println!("{line}");
            }
            Ok(ExitCode::from(code))
        }
        What::Show { dir, json } => {
            let report = read_report(&dir).map_err(input_error)?;
            if json {
                println!("{}", serde_json::to_string_pretty(&report)?);
            } else {
                print!("{}", crate::burnin::with_page(&report, &dir));
            }
            Ok(ExitCode::SUCCESS)
        }
        What::Index { dir, out, json } => index(&dir, out, json),
        What::Html { dir, out, json } => {
            let text = html::render(&read_report(&dir).map_err(input_error)?);
            match out {
                Some(path) => {
                    std::fs::write(&path, text)
                        .map_err(|e| input_error(format!("{}: {e}", path.display())))?;
                    if json {
                        println!("{}", serde_json::json!({ "html": path }));
                    }
                }
                None => print!("{text}"),
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Reads every bundle right below `dir`; folders without one are passed over, a broken one is an error.
fn index(dir: &Path, out: Option<PathBuf>, json: bool) -> anyhow::Result<ExitCode> {
    let unreadable = |e: std::io::Error| input_error(format!("{}: {e}", dir.display()));
    let mut names = Vec::new();
    for item in std::fs::read_dir(dir).map_err(unreadable)? {
        let item = item.map_err(unreadable)?;
        if item.path().join("report.json").is_file() {
            names.push(item.file_name().to_string_lossy().into_owned());
        }
        if names.len() > MAX_BUNDLES {
            return Err(input_error(format!("{}: more than {MAX_BUNDLES} bundles", dir.display())));
        }
    }
    if names.is_empty() {
        return Err(input_error(format!("{}: holds no bundles (folders with a report.json)", dir.display())));
    }
    names.sort();
    let mut rows = Vec::with_capacity(names.len());
    for name in names {
        let report = read_report(&dir.join(&name)).map_err(input_error)?;
        let verdict = &report.verdict;
        let faulty: Vec<&str> = report
            .devices
            .iter()
            .zip(&report.device_verdicts)
            .filter(|(_, v)| v.outcome == verdict.outcome && v.outcome != Outcome::Pass)
            .map(|(d, _)| d.label.as_str())
            .collect();
        let device = match faulty.len() {
            0 => None,
            1..=3 => Some(faulty.join(", ")),
            many => Some(format!("{many} devices")),
        };
        let pass = verdict.outcome == Outcome::Pass;
        rows.push(html::IndexRow {
            blade: report.blade.name.clone(),
            outcome: verdict.outcome,
            device,
            why: verdict.why.clone(),
            next: if pass { String::new() } else { verdict.action.next_step().to_owned() },
            link: format!("{name}/report.html"),
            simulated: report.simulated,
        });
    }
    let path = out.unwrap_or_else(|| dir.join("index.html"));
    std::fs::write(&path, html::render_index(&rows))
        .map_err(|e| input_error(format!("{}: {e}", path.display())))?;
    if json {
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "html": path, "blades": rows }))?);
    } else {
        println!("{}: {} blades", path.display(), rows.len());
    }
    Ok(ExitCode::SUCCESS)
}
