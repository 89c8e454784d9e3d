//! `whet-sim demo`: burns in the machine it runs on, then has a simulated tranche accepted by a real control plane, and compares
//! what was found with what was planted.

mod page;
mod run;
mod score;
mod site;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use whetstone_scenario::tranche;

use crate::input_error;

/// The suite of the simulated blades, unless another is named.
const SUITE: &str = include_str!("../../../../suites/tranche.toml");
/// Says that a directory is a demonstration's: only then is it cleared for the next one.
const MARKER: &str = ".whet-sim-demo";

#[derive(clap::Args)]
pub struct Args {
    /// The `whet` to run
    #[arg(long)]
    whet: PathBuf,
    /// Directory of the simulated libraries (`whet-sim libs`)
    #[arg(long, default_value = "target/sim")]
    libs: PathBuf,
    #[arg(long, default_value_t = 7)]
    seed: u64,
    #[arg(long, default_value_t = 16)]
    blades: usize,
    /// SKU of the simulated blades
    #[arg(long, default_value = "h100")]
    sku: String,
    /// Where reports go; the last demonstration's are replaced
    #[arg(long, default_value = "runs")]
    out: PathBuf,
    /// Suite of the simulated blades, TOML; has to be small
    #[arg(long)]
    suite: Option<PathBuf>,
    /// Probability that the judge accuses a healthy device
    #[arg(long, default_value_t = 0.01)]
    fpr: f64,
    /// Blades burned in at once
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Seconds within which the tranche has to be decided
    #[arg(long, default_value_t = 1800)]
    limit_s: u64,
    /// End the site at the end; without it, it stays to be looked at
    #[arg(long)]
    down: bool,
    /// Suite for the machine this runs on; "none" leaves it out
    #[arg(long, default_value = "quick")]
    own_suite: String,
    /// One JSON document instead of the table
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    check(args)?;
    site::Site::down(&std::path::absolute(&args.whet)?, &args.out)?;
    let out = prepare(&args.out)?;
    let suite = match &args.suite {
        Some(file) => std::path::absolute(file).context("suite")?,
        None => {
            let file = out.join("tranche.toml");
            std::fs::write(&file, SUITE).with_context(|| file.display().to_string())?;
            file
        }
    };
    let setting = run::Setting {
        whet: std::path::absolute(&args.whet)?,
        libs: std::path::absolute(&args.libs)?,
        out,
        suite,
    };

    let own = (args.own_suite != "none").then(|| run::own(&setting, &args.own_suite)).transpose()?;
    if let Some(own) = &own {
        eprintln!("this machine: {} {}", own.word(), own.why());
    }
    let site = site::Site::up(&setting, args.seed, args.blades, &args.sku, args.jobs.max(1))?;
    let planted: tranche::Planted = read_planted(&site.dir)?;
    std::fs::copy(site.dir.join(tranche::PLANTED_FILE), setting.out.join(tranche::PLANTED_FILE))?;
    let faults: usize = planted.blades.iter().map(|b| b.faults.len()).sum();
    let bad = planted.blades.iter().filter(|b| !b.faults.is_empty()).count();
    eprintln!(
        "{} simulated blades, {faults} faults planted on {bad} of them (seed {})",
        planted.blades.len(),
        args.seed
    );

    site.decided(Duration::from_secs(args.limit_s))?;
    let names: Vec<String> = planted.blades.iter().map(|b| b.blade.clone()).collect();
    let reports = site.fetch(&setting.out, &names)?;
    let judgement = judge(&setting, &names, args.fpr)?;
    let result = score::score(&planted, &reports, &judgement);
    let wrong = disagreements(&result, &site)?;
    let acceptance = site.acceptance(&setting.out)?;

    let json = serde_json::to_string_pretty(&result)?;
    std::fs::write(setting.out.join("demo.json"), &json)?;
    let index = setting.out.join("index.html");
    std::fs::write(&index, page::html(&result, own.as_ref()))?;
    if args.json {
        crate::say(json + "\n")?;
    } else {
        crate::say(table::text(&result, &args.out.join("index.html")))?;
        crate::say(look_around(args, &site, &acceptance)?)?;
    }
    for wrong in &wrong {
        eprintln!("control plane: {wrong}");
    }
    if args.down {
        site::Site::down(&setting.whet, &setting.out)?;
    }
    Ok(if result.perfect() && wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(10) })
}

fn read_planted(site: &Path) -> anyhow::Result<tranche::Planted> {
    let path = site.join(tranche::PLANTED_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// Where the cluster shows a blade otherwise than its burn-in says: every bad one out and its node withheld, every good one
/// ready and its node free.
fn disagreements(score: &score::Score, site: &site::Site) -> anyhow::Result<Vec<String>> {
    let tainted = site.tainted()?;
    let phases: BTreeMap<String, String> =
        site.blades()?.into_iter().map(|blade| (blade.name, blade.phase.unwrap_or_default())).collect();
    let mut wrong = Vec::new();
    for blade in &score.blades {
        let phase = phases.get(&blade.blade).map_or("no object", String::as_str);
        let (wanted, withheld) =
            if blade.verdict == "pass" { ("Ready", None) } else { ("Quarantined", Some(&true)) };
        if phase != wanted {
            wrong.push(format!("{}: {}, but {phase}", blade.blade, blade.verdict));
        }
        if tainted.get(&blade.blade) != withheld {
            wrong.push(format!("{}: {phase}, but its node is {:?}", blade.blade, tainted.get(&blade.blade)));
        }
    }
    Ok(wrong)
}

/// What the control plane shows, and how to go on from here.
fn look_around(args: &Args, site: &site::Site, acceptance: &Path) -> anyhow::Result<String> {
    let blades = site.kubectl(&["get", "blades"])?;
    let columns = "custom-columns=NODE:.metadata.name,TAINTS:.spec.taints[*].value,CORDONED:.spec.unschedulable,WHOSE:.metadata.annotations.whetstone\\.dev/withheld-by";
    let nodes = site.kubectl(&["get", "nodes", "-o", columns])?;
    let whet = args.whet.display();
    let on = format!(
        "the site goes on; look around:\n  \
         export KUBECONFIG={} WHETSTONE_SITE={dir}\n  \
         {whet} blades\n  {whet} tranche show t-01\n  {whet} explain b-001\n  \
         end it: {whet} site down --dir {dir}\n",
        site.kubeconfig.display(),
        dir = site.dir.display(),
    );
    Ok(format!(
        "\n$ kubectl get blades\n{blades}\n$ kubectl get nodes   (taint, cordon, and whose they are)\n{nodes}\n\
         acceptance report: {} (signed; {whet} report verify {})\n{}",
        acceptance.join("report.html").display(),
        acceptance.display(),
        if args.down { "" } else { &on },
    ))
}

fn check(args: &Args) -> anyhow::Result<()> {
    if !args.whet.is_file() {
        return Err(input_error(format!("{}: no such program (make build)", args.whet.display())));
    }
    for library in crate::libs::names() {
        let path = args.libs.join(library);
        if !path.is_file() {
            return Err(input_error(format!("{}: not there (whet-sim libs)", path.display())));
        }
    }
    match &args.suite {
        Some(suite) if !suite.is_file() => Err(input_error(format!("{}: no such suite", suite.display()))),
        _ => Ok(()),
    }
}

/// An empty directory: new, or the last demonstration's cleared. Anything else is not ours to clear.
fn prepare(out: &Path) -> anyhow::Result<PathBuf> {
    let bad = |e: std::io::Error| input_error(format!("{}: {e}", out.display()));
    let filled = out.exists() && std::fs::read_dir(out).map_err(bad)?.next().is_some();
    if filled {
        if !out.join(MARKER).is_file() {
            let what =
                format!("{}: not empty, and no demonstration made it; name another --out", out.display());
            return Err(input_error(what));
        }
        std::fs::remove_dir_all(out).map_err(bad)?;
    }
    std::fs::create_dir_all(out).map_err(bad)?;
    std::fs::write(out.join(MARKER), "made by whet-sim demo, which may clear it\n").map_err(bad)?;
    Ok(std::path::absolute(out)?)
}

/// Joins all blades' samples and runs `whet judge` on them. A run that left none is simply not in it.
fn judge(setting: &run::Setting, names: &[String], fpr: f64) -> anyhow::Result<score::Judgement> {
    let mut all = String::new();
    for name in names {
        if let Ok(text) = std::fs::read_to_string(setting.out.join(name).join("samples.jsonl")) {
            all += &text;
        }
    }
    let samples = setting.out.join("samples.jsonl");
    std::fs::write(&samples, &all)?;
    if all.is_empty() {
        eprintln!("no run left samples: nothing to judge");
        return Ok(score::Judgement::default());
    }
    let output = Command::new(&setting.whet)
        .args(["judge", "--json", "--fpr", &fpr.to_string(), "--samples"])
        .arg(&samples)
        .stderr(Stdio::inherit())
        .output()
        .context("whet judge")?;
    std::fs::write(setting.out.join("judgement.json"), &output.stdout)?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("whet judge ({})", output.status))
}
