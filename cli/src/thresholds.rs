//! `whet thresholds`: show what readings are held against, and find slips in threshold files, ours or others'.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;
use whetstone_model::threshold::import::{self, Limit};
use whetstone_model::threshold::lint::{self, Issue};
use whetstone_model::threshold::{Profile, Provenance, Role, Table, Threshold};

/// Longest file that is read, bytes; the parser has the same bound.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Files, and limits of all files, that are examined together at most: every limit is compared with its neighbours.
const MAX_FILES: usize = 100;
const MAX_LIMITS: usize = 20_000;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Print the thresholds with value, unit and provenance
    Show {
        /// One SKU only, such as hgx-h100; with the generic thresholds that apply to it
        #[arg(long)]
        sku: Option<String>,
        /// A threshold file instead of the built-in ones
        file: Option<PathBuf>,
        #[arg(long)]
        json: bool,
    },
    /// Find thresholds that cannot be right; exit code 10 if there are any
    Lint {
        /// Threshold files (TOML), import tables (TSV or TOML, see docs/thresholds.md), DCGM or Azure tables;
        /// several are held against each other. None: the built-in thresholds
        files: Vec<PathBuf>,
        #[arg(long)]
        json: bool,
    },
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        What::Show { sku, file, json } => show(sku.as_deref(), file.as_deref(), json),
        What::Lint { files, json } => lint_files(&files, json),
    }
}

/// Reads a whole file, bounded; anything that is not text is the user's error, with its line.
fn read(path: &Path) -> anyhow::Result<String> {
    let name = path.display();
    let file = std::fs::File::open(path).map_err(|e| crate::input_error(format!("{name}: {e}")))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| crate::input_error(format!("{name}: {e}")))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(crate::input_error(format!("{name}:1: larger than {MAX_FILE_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..valid].iter().filter(|b| **b == b'\n').count();
        crate::input_error(format!("{name}:{line}: not text (UTF-8)"))
    })
}

/// Writes the whole answer; a reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn built_in() -> anyhow::Result<Table> {
    Table::built_in().context("built-in thresholds")
}

fn lint_files(files: &[PathBuf], as_json: bool) -> anyhow::Result<ExitCode> {
    let table = built_in()?;
    if files.len() > MAX_FILES {
        return Err(crate::input_error(format!("{} files: at most {MAX_FILES}", files.len())));
    }
    let mut limits: Vec<Limit> = Vec::new();
    let mut skipped = 0;
    let mut names: Vec<String> = Vec::new();
    // Metrics must be known in our own files only: others' tables have names of their own.
    let mut ours: Vec<Limit> = Vec::new();
    for path in files {
        let name = path.display().to_string();
        let read = import::read(&name, &read(path)?).map_err(crate::input_error)?;
        if read.own_format {
            ours.extend(read.limits.iter().cloned());
        }
        limits.extend(read.limits);
        if limits.len() > MAX_LIMITS {
            return Err(crate::input_error(format!("{name}: more than {MAX_LIMITS} limits at once")));
        }
        skipped += read.skipped;
        names.push(name);
    }
    if files.is_empty() {
        limits = import::of_table(&table);
        ours.clone_from(&limits);
        names.push("built-in".to_owned());
    }
    let mut issues = lint::lint(&limits, &table);
    issues.extend(lint::unknown_metrics(&ours));
    let mut out = String::new();
    if as_json {
        let document = json!({
            "schema": "whetstone.thresholds.lint/1",
            "files": names,
            "limits": limits.len(),
            "rows_that_are_no_limits": skipped,
            "issues": issues,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&document)?)?;
    } else {
        for issue in &issues {
            writeln!(out, "{}", line_of(issue))?;
        }
        let count =
            if issues.is_empty() { "no issue".to_owned() } else { format!("{} issues", issues.len()) };
        writeln!(out, "{count} in {} limits of {}", limits.len(), names.join(", "))?;
    }
    print(&out)?;
    Ok(ExitCode::from(if issues.is_empty() { 0 } else { 10 }))
}

fn line_of(issue: &Issue) -> String {
    let near: Vec<String> = issue
        .neighbours
        .iter()
        .map(|n| format!("{} {} {} (line {})", n.sku, n.value, n.unit, n.line))
        .collect();
    let near = if near.is_empty() { String::new() } else { format!("\n    beside it: {}", near.join("; ")) };
    format!("{}:{}: {}: {}{near}", issue.file, issue.line, issue.code.as_str(), issue.message)
}

fn show(sku: Option<&str>, file: Option<&Path>, as_json: bool) -> anyhow::Result<ExitCode> {
    let table = match file {
        None => built_in()?,
        Some(path) => Table::parse(&path.display().to_string(), &read(path)?).map_err(crate::input_error)?,
    };
    let profiles: Vec<&Profile> = match sku {
        None => table.profiles.iter().collect(),
        Some(sku) => vec![table.profile(sku).ok_or_else(|| {
            let known: Vec<&str> = table.profiles.iter().map(|p| p.sku.as_str()).collect();
            crate::input_error(format!("unknown sku {sku:?}; known: {}", known.join(", ")))
        })?],
    };
    let mut out = String::new();
    if as_json {
        let document = json!({
            "schema": "whetstone.thresholds/1",
            "profiles": profiles,
            "generic": table.generic,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&document)?)?;
        print(&out)?;
        return Ok(ExitCode::SUCCESS);
    }
    for profile in profiles {
        writeln!(out, "{}: {} ({})", profile.sku, profile.name, profile.family)?;
        writeln!(out, "  recognised by GPU name {:?}", profile.gpu_name)?;
        if let serde_json::Value::Object(expected) = serde_json::to_value(&profile.expected)? {
            let facts: Vec<String> = expected
                .iter()
                .filter(|(key, value)| !value.is_null() && *key != "sources")
                .map(|(key, value)| format!("{key} {value}"))
                .collect();
            writeln!(out, "  expected: {}", facts.join(", "))?;
        }
        rows(&mut out, &profile.thresholds)?;
        writeln!(out)?;
    }
    if !table.generic.is_empty() {
        writeln!(out, "generic: every GPU and every machine")?;
        rows(&mut out, &table.generic)?;
    }
    print(&out)?;
    Ok(ExitCode::SUCCESS)
}

/// One row per threshold; FROM says which source speaks for which number, the sources are listed below.
fn rows(out: &mut String, thresholds: &[Threshold]) -> std::fmt::Result {
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |v| v.to_string());
    writeln!(
        out,
        "  {:<30} {:>8} {:>8} {:>8} {:>8}  {:<9} {:<7} FROM",
        "METRIC", "WARN", "FAIL", "TYPICAL", "LIMIT", "UNIT", "BETTER"
    )?;
    let mut sources: Vec<&Provenance> = Vec::new();
    for t in thresholds {
        let mut from: Vec<String> = Vec::new();
        if t.unknown {
            from.push("unknown: measured, not judged".to_owned());
        }
        for source in &t.sources {
            let same = |s: &&Provenance| (&s.name, &s.date) == (&source.name, &source.date);
            let place = sources.iter().position(same).unwrap_or_else(|| {
                sources.push(source);
                sources.len() - 1
            });
            let of: Vec<&str> = source.of.iter().map(|r| r.as_str()).collect();
            from.push(format!("{} [{}]", of.join(", "), place + 1).trim_start().to_owned());
        }
        writeln!(
            out,
            "  {:<30} {:>8} {:>8} {:>8} {:>8}  {:<9} {:<7} {}",
            t.metric,
            number(t.value(Role::Warn)),
            number(t.value(Role::Fail)),
            number(t.value(Role::Typical)),
            number(t.value(Role::HardwareLimit)),
            t.unit.as_str(),
            t.better.as_str(),
            from.join(", "),
        )?;
    }
    for (i, source) in sources.iter().enumerate() {
        writeln!(out, "  [{}] {} ({}, {})", i + 1, source.name, source.kind.as_str(), source.date)?;
    }
    Ok(())
}
