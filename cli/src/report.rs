//! `whet report`: the bundle of a run, verified, shown or drawn again.

use std::path::PathBuf;
use std::process::ExitCode;

use whetstone_agent::bundle::manifest::{VerifyError, verify};
use whetstone_agent::bundle::{html, key, read_report};

use crate::input_error;

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
                print!("{}", crate::burnin::summary(&report, &dir));
            }
            Ok(ExitCode::SUCCESS)
        }
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
