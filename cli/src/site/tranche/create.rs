//! `whet tranche create`: from the supplier's list to an object, after everything about it was checked.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ListParams, PostParams};
use serde_json::json;
use whetstone_api::{Blade, GatesSpec, PowerSpec, Tranche, TrancheSpec};
use whetstone_burnin::suite::{BUILT_IN, Suite};
use whetstone_model::lifecycle::Owner;

use super::manifest::{Entry, Problem, read};
use super::{checked, text};
use crate::site::access::{Access, Site};
use crate::site::failure::{Failure, OrExit as _};
use crate::site::{print_json, say, wait_for};
use crate::{as_called, input_error};

#[derive(clap::Args)]
#[command(after_help = "The list, as CSV (or as YAML: a list of entries with these keys):\n  \
    serial,name,rack,slot,sku,nvlink_domain\n  1655123000042,b-003,r-02,7,hgx-h100,d-1\n\
    All but serial may be missing. Anything wrong with it is said with file and line, and nothing is made.\n\n\
    Example:\n  whet tranche create t-07 --manifest t-07.csv --suite standard --blade-watts 10200 --rack-watts 40800")]
pub struct Args {
    #[arg(value_name = "NAME")]
    name: String,
    /// The supplier's list: CSV or YAML
    #[arg(long, value_name = "FILE")]
    manifest: PathBuf,
    /// quick (3 min), standard (30 min) or soak (hours)
    #[arg(long, default_value = "standard", conflicts_with = "suite_file")]
    suite: String,
    /// A suite of your own, TOML
    #[arg(long, value_name = "FILE")]
    suite_file: Option<PathBuf>,
    /// Blades burned in at once at most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(i64).range(1..=5000))]
    concurrency: i64,
    /// What one blade draws under burn-in, W
    #[arg(long, value_name = "W", value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    blade_watts: Option<i64>,
    /// What burn-ins may draw at once in one rack, W
    #[arg(long, value_name = "W", requires = "blade_watts", value_parser = clap::value_parser!(i64).range(1..=100_000_000))]
    rack_watts: Option<i64>,
    /// What burn-ins of this tranche may draw at once, W
    #[arg(long, value_name = "W", requires = "blade_watts", value_parser = clap::value_parser!(i64).range(1..=1_000_000_000))]
    tranche_watts: Option<i64>,
    /// Part of a rack that has to have passed before any of it serves, percent; 0 = no gate
    #[arg(long, value_name = "P", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..=100))]
    rack_percent: i64,
    /// Let blades serve before all of their NVLink domain have passed
    #[arg(long)]
    broken_domains: bool,
    /// Further tries where a run was inconclusive
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i64).range(0..=10))]
    retries: i64,
    /// Who gets the blades that pass: spare, inference, slurm/CLUSTER, kubernetes/CLUSTER
    #[arg(long)]
    owner: Option<String>,
    /// When all of it has to be there (2026-12-31T12:00:00Z); what is not is called missing after it
    #[arg(long, value_name = "TIME")]
    due: Option<jiff::Timestamp>,
    /// Check everything, by the apiserver too, and make nothing
    #[arg(long)]
    dry_run: bool,
    #[arg(long)]
    json: bool,
}

/// Largest suite file, as the CRD has it.
const MAX_SUITE: u64 = 64 << 10;

/// A suite by its name or from a file: its name, and its text if it is not a built-in one.
pub fn suite(name: &str, file: Option<&Path>) -> anyhow::Result<(String, Option<String>)> {
    let Some(file) = file else {
        let known = BUILT_IN.iter().any(|(known, _)| *known == name);
        let names = BUILT_IN.map(|(name, _)| name).join(", ");
        return match known {
            true => Ok((name.to_owned(), None)),
            false => Err(input_error(format!("suite {name:?} is none of {names}; a file is --suite-file"))),
        };
    };
    let bad = |e: std::io::Error| input_error(format!("{}: {e}", file.display()));
    let size = std::fs::metadata(file).map_err(bad)?.len();
    if size > MAX_SUITE {
        return Err(input_error(format!(
            "{}: {size} bytes; a suite has at most {MAX_SUITE}",
            file.display()
        )));
    }
    let text = std::fs::read_to_string(file).map_err(bad)?;
    let parsed = Suite::parse(&file.display().to_string(), &text).map_err(input_error)?;
    Ok((parsed.name, Some(text)))
}

pub fn run(args: Args, access: &Access) -> anyhow::Result<ExitCode> {
    let name = checked(&args.name)?;
    let entries = read(&args.manifest).map_err(told)?;
    let tranche = object(&args, &entries)?;
    wait_for(async {
        let site = access.connect().await?;
        against_site(&site, name, &args.manifest, &entries).await?;
        let params = PostParams { dry_run: args.dry_run, field_manager: Some("whet".into()) };
        let made = site.all::<Tranche>().create(&params, &tranche).await;
        let made = made.map_err(|e| site.failure(&text(name), e)).or_exit()?;
        if args.json {
            print_json(&json!({
                "tranche": name, "blades": entries.len(), "made": !args.dry_run, "spec": made.spec,
            }))?;
        } else if args.dry_run {
            say(&format!("{name}: {} blades; all is well, nothing was made\n", entries.len()))?;
        } else {
            let next =
                format!("`whet tranche tokens {name} --out tokens/`, then `whet tranche watch {name}`");
            say(&format!("{name}: {} blades expected\nnext: {}\n", entries.len(), as_called(&next)))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// All problems as one error: the list is put right at one go.
fn told(problems: Vec<Problem>) -> anyhow::Error {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    input_error(format!("nothing was made\n{}", lines.join("\n")))
}

fn object(args: &Args, entries: &[Entry]) -> anyhow::Result<Tranche> {
    let (suite, suite_text) = suite(&args.suite, args.suite_file.as_deref())?;
    if let Some(owner) = &args.owner {
        let parsed: Owner = owner.parse().map_err(|e| input_error(format!("--owner: {e}")))?;
        if matches!(parsed, Owner::Nobody | Owner::BurnIn | Owner::Repair) {
            return Err(input_error(format!(
                "--owner {owner}: spare, inference, slurm/CLUSTER or kubernetes/CLUSTER"
            )));
        }
    }
    for (flag, limit) in [("--rack-watts", args.rack_watts), ("--tranche-watts", args.tranche_watts)] {
        if let (Some(limit), Some(blade)) = (limit, args.blade_watts)
            && limit < blade
        {
            return Err(input_error(format!(
                "{flag} {limit} is less than one blade draws ({blade}): nothing could ever be burned in"
            )));
        }
    }
    let power = args.blade_watts.map(|blade_watts| PowerSpec {
        blade_watts,
        rack_watts: args.rack_watts,
        tranche_watts: args.tranche_watts,
    });
    let spec = TrancheSpec {
        blades: entries.iter().map(|entry| entry.blade.clone()).collect(),
        suite,
        suite_text,
        concurrency: args.concurrency,
        power,
        gates: GatesSpec { rack_percent: args.rack_percent, whole_domain: !args.broken_domains },
        retries: args.retries,
        // As the object has it by default.
        fpr: 0.01,
        owner: args.owner.clone(),
        paused: false,
        due: args.due.map(Time),
    };
    Ok(Tranche::new(&args.name, spec))
}

/// Names that another blade of the site has, serials that are of another tranche.
async fn against_site(site: &Site, name: &str, file: &Path, entries: &[Entry]) -> anyhow::Result<()> {
    let known: Vec<Blade> = match site.list(ListParams::default()).await {
        Ok(known) => known,
        // The apiserver itself says it better when the tranche is made.
        Err(Failure::Refused(_)) => return Ok(()),
        Err(failure) => return Err(failure).or_exit(),
    };
    let by_name: HashMap<&str, &Blade> =
        known.iter().filter_map(|blade| Some((blade.metadata.name.as_deref()?, blade))).collect();
    let by_serial: HashMap<&str, &Blade> =
        known.iter().map(|blade| (blade.spec.serial.as_str(), blade)).collect();
    let mut problems = Vec::new();
    for entry in entries {
        let mut bad = |what: String| {
            problems.push(Problem { file: file.display().to_string(), line: entry.line, what });
        };
        let serial = entry.blade.serial.as_str();
        let other = by_serial.get(serial).and_then(|blade| blade.spec.tranche.as_deref());
        if let Some(other) = other.filter(|other| *other != name) {
            bad(format!("serial {serial} is of tranche {other} already"));
        }
        let wanted = entry.blade.blade_name().map(String::from).unwrap_or_default();
        let holder = by_name.get(wanted.as_str()).map(|blade| blade.spec.serial.as_str());
        if let Some(holder) = holder.filter(|holder| *holder != serial) {
            bad(format!("name {wanted} is that of blade {holder} already"));
        }
    }
    problems.truncate(100);
    if problems.is_empty() { Ok(()) } else { Err(told(problems)) }
}
