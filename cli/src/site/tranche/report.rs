//! `whet tranche report`: the operator's signed acceptance report, written and verified.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::Value;
use whetstone_agent::bundle::manifest::{Verified, verify};

use super::checked;
use crate::input_error;
use crate::site::access::Access;
use crate::site::failure::OrExit as _;
use crate::site::table::clean;
use crate::site::{say, wait_for};

#[derive(clap::Args)]
#[command(
    after_help = "Open DIR/report.html in a browser; `whet report verify DIR` checks it again at any time.\n\n\
    Example:\n  whet tranche report t-07 --out t-07-accepted/"
)]
pub struct Args {
    #[arg(value_name = "NAME")]
    name: String,
    /// Folder to write; must not exist or be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print report.json
    #[arg(long)]
    json: bool,
}

/// As the ops API answers.
#[derive(Deserialize)]
struct Bundle {
    /// Text by relative name.
    files: BTreeMap<String, String>,
}

/// Files of one report at most.
const MAX_FILES: usize = 1_000;

pub fn run(args: Args, access: &Access) -> anyhow::Result<ExitCode> {
    let name = checked(&args.name)?;
    let taken =
        args.out.exists() && std::fs::read_dir(&args.out).map_or(true, |mut items| items.next().is_some());
    if taken {
        return Err(input_error(format!("{}: exists and is not an empty folder", args.out.display())));
    }
    wait_for(async {
        let ops = access.connect().await?.ops().await.or_exit()?;
        let bundle: Bundle = ops.get(&format!("/v1/ops/tranches/{name}/report")).await.or_exit()?;
        let verified = write(&bundle, &args.out)?;
        let report = bundle.files.get("report.json").context("the operator's answer has no report.json")?;
        if args.json {
            return say(&format!("{}\n", report.trim_end())).map(|()| ExitCode::SUCCESS);
        }
        let document: Value = serde_json::from_str(report).context("report.json")?;
        let mut text = summary(name, &document);
        text += &format!("{}: {} files, as signed by {}\n", args.out.display(), verified.files, verified.key);
        if bundle.files.contains_key("report.html") {
            text += &format!("open {}\n", args.out.join("report.html").display());
        }
        say(&text)?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Writes the files and checks what lies there then. On an error nothing of it is left.
fn write(bundle: &Bundle, out: &Path) -> anyhow::Result<Verified> {
    if bundle.files.len() > MAX_FILES {
        bail!("the operator's answer has {} files", bundle.files.len());
    }
    let fresh = !out.exists();
    let fill = || -> anyhow::Result<Verified> {
        std::fs::create_dir_all(out).map_err(|e| input_error(format!("{}: {e}", out.display())))?;
        for (name, text) in &bundle.files {
            // Nothing outside of the folder, whatever the answer says.
            let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
            if !inside || name.is_empty() {
                bail!("the operator's answer has a file {:?}", clean(name));
            }
            let path = out.join(name);
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            }
            std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        verify(out, &[]).context("the report does not verify")
    };
    fill().inspect_err(|_| {
        // Best effort: the error that led here is the one to tell.
        if fresh {
            let _ = std::fs::remove_dir_all(out);
        } else {
            for name in bundle.files.keys() {
                let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
                if inside && !name.is_empty() {
                    let _ = std::fs::remove_file(out.join(name));
                }
            }
        }
    })
}

/// Returns that are listed; all of them are in the report.
const SHOWN: usize = 20;

/// A few lines of what stands in it.
fn summary(name: &str, report: &Value) -> String {
    let count =
        |key: &str| report.pointer(&format!("/counts/{key}")).and_then(Value::as_u64).unwrap_or_default();
    let share = report.get("yield_percent").and_then(Value::as_f64);
    let share = share.map(|share| format!(" ({share:.1} %)")).unwrap_or_default();
    let mut text = format!(
        "tranche {name}: {} of {} delivered are accepted{share}",
        count("accepted"),
        count("delivered")
    );
    for what in ["returned", "undecided", "missing", "duplicates", "unexpected"] {
        if count(what) > 0 {
            text += &format!(", {} {what}", count(what));
        }
    }
    text.push('\n');
    let returns = report.get("returns").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for one in returns.iter().take(SHOWN) {
        let word = |key: &str| one.get(key).and_then(Value::as_str).map(clean);
        let blade = word("name").or_else(|| word("serial")).unwrap_or_default();
        let device = word("device").map(|device| format!("{device}: ")).unwrap_or_default();
        let why = word("why").or_else(|| word("reason")).unwrap_or_default();
        text += &format!("  returned {blade}  {device}{why}\n");
    }
    if returns.len() > SHOWN {
        text += &format!("  and {} more\n", returns.len() - SHOWN);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(files: &[(&str, &str)]) -> Bundle {
        Bundle { files: files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect() }
    }

    #[test]
    fn a_report_that_does_not_verify_or_leaves_its_folder_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("r");
        for files in [
            &[("report.json", "{}"), ("manifest.json", "{}"), ("manifest.sig", "00")] as &[(&str, &str)],
            &[("report.json", "{}")],
            &[("../evil", "x")],
            &[("/tmp/evil", "x")],
            &[("", "x")],
        ] {
            assert!(write(&bundle(files), &out).is_err(), "{files:?}");
            assert!(!out.exists(), "{files:?}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_signed_report_is_written_and_verified() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("made");
        std::fs::create_dir(&made).unwrap();
        std::fs::write(made.join("report.json"), "{\"summary\": \"3 of 4 passed\"}").unwrap();
        let key = whetstone_agent::bundle::key::load_or_create(&dir.path().join("key.pem")).unwrap();
        whetstone_agent::bundle::manifest::sign(&made, "t-07", &key).unwrap();
        let text = |name: &str| std::fs::read_to_string(made.join(name)).unwrap();
        let names = ["report.json", "manifest.json", "manifest.sig"];
        let texts: Vec<(&str, String)> = names.iter().map(|name| (*name, text(name))).collect();
        let files: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let verified = write(&bundle(&files), &dir.path().join("out")).unwrap();
        assert_eq!((verified.run.as_str(), verified.files), ("t-07", 1));
        let report = serde_json::json!({
            "counts": {"expected": 4, "delivered": 4, "accepted": 3, "returned": 1, "missing": 0}, "yield_percent": 75.0,
            "returns": [{"name": "b-3", "device": "gpu5", "why": "wrong bits"}]
        });
        assert_eq!(
            summary("t-07", &report),
            "tranche t-07: 3 of 4 delivered are accepted (75.0 %), 1 returned\n  returned b-3  gpu5: wrong bits\n"
        );
        assert_eq!(summary("t-07", &Value::Null), "tranche t-07: 0 of 0 delivered are accepted\n");
    }
}
