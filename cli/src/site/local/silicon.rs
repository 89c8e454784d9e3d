//! Simulated blades, made by `whet-sim`.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use whetstone_model::threshold::{GpuSeen, Table};

use crate::input_error;

/// What is made.
pub struct Wanted<'a> {
    pub sim: &'a Path,
    pub site: &'a Path,
    pub blades: usize,
    pub sku: &'a str,
    pub seed: u64,
    pub healthy: bool,
    /// Blades as described; healthy ones fill up to `blades`.
    pub scenarios: &'a [PathBuf],
}

/// One simulated blade.
#[derive(Debug, Clone)]
pub struct Silicon {
    pub name: String,
    pub serial: String,
    /// SKU profile that its GPUs fit.
    pub profile: Option<String>,
    pub dir: PathBuf,
    /// The simulated firmware says the serial.
    pub says_serial: bool,
}

/// What is read of a blade's `blade.json`.
#[derive(Deserialize)]
struct Described {
    name: String,
    serial: String,
    sku: Sku,
    gpus: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Sku {
    name: String,
    hbm_mib: u64,
}

/// Memory of each simulated GPU that can be written, MiB: 128 GPUs are tested in minutes on two cores.
const BACKED_MIB: u64 = 64;

/// Makes them under DIR/blades/NAME/silicon, in the order of their names.
pub async fn make(wanted: &Wanted<'_>) -> anyhow::Result<Vec<Silicon>> {
    let work = wanted.site.join("silicon");
    if wanted.scenarios.is_empty() && !wanted.healthy {
        let mut args: Vec<OsString> = ["tranche", "--sku", wanted.sku, "--seed"].map(OsString::from).into();
        args.extend([wanted.seed.to_string().into(), "--blades".into(), wanted.blades.to_string().into()]);
        args.extend(["--out".into(), work.clone().into()]);
        sim(wanted.sim, &args).await?;
    } else {
        described(wanted, &work).await?;
    }
    let planted = work.join("planted.json");
    if planted.is_file() {
        fs::rename(&planted, wanted.site.join("planted.json"))?;
    }
    let mut blades = Vec::with_capacity(wanted.blades);
    for item in fs::read_dir(&work).with_context(|| work.display().to_string())? {
        let made = item?.path();
        let silicon = read(&made)?;
        let home = wanted.site.join("blades").join(&silicon.name);
        fs::create_dir_all(&home)?;
        let dir = home.join("silicon");
        fs::rename(&made, &dir).with_context(|| dir.display().to_string())?;
        blades.push(Silicon { dir, ..silicon });
    }
    fs::remove_dir(&work).with_context(|| work.display().to_string())?;
    blades.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(blades)
}

/// Blades by their scenarios, healthy ones beside them.
async fn described(wanted: &Wanted<'_>, work: &Path) -> anyhow::Result<()> {
    fs::create_dir(work).with_context(|| work.display().to_string())?;
    let mut names = HashSet::new();
    let mut place = 0..;
    let mut next = || work.join(format!("{:04}", place.next().unwrap_or(0)));
    for scenario in wanted.scenarios {
        let dir = next();
        sim(wanted.sim, &blade_args(scenario, &dir)).await?;
        let name = read(&dir)?.name;
        if !names.insert(name.clone()) {
            return Err(input_error(format!("{}: blade {name} is described twice", scenario.display())));
        }
    }
    let digits = wanted.blades.to_string().len().max(3);
    let fresh =
        (1..).map(|number: usize| format!("b-{number:0digits$}")).filter(|name| !names.contains(name));
    let healthy: Vec<String> = fresh.take(wanted.blades.saturating_sub(names.len())).collect();
    let file = wanted.site.join("scenario.toml");
    for name in healthy {
        let (sku, seed) = (wanted.sku, wanted.seed);
        let text = format!(
            "name = {name:?}\nsku = {sku:?}\nseed = {seed}\nhbm_backed_mib = {BACKED_MIB}\nthermal_s = 0.5\n"
        );
        fs::write(&file, text).with_context(|| file.display().to_string())?;
        sim(wanted.sim, &blade_args(&file, &next())).await?;
    }
    let _ = fs::remove_file(&file);
    Ok(())
}

fn blade_args(scenario: &Path, out: &Path) -> Vec<OsString> {
    vec!["blade".into(), "--scenario".into(), scenario.into(), "--out".into(), out.into()]
}

async fn sim(program: &Path, args: &[OsString]) -> anyhow::Result<()> {
    let run = tokio::process::Command::new(program).args(args).stdin(Stdio::null()).output().await;
    let out = run.with_context(|| program.display().to_string())?;
    let said = String::from_utf8_lossy(&out.stderr);
    let said = said.trim().trim_start_matches("whet-sim: ");
    match out.status.code() {
        Some(0) => Ok(()),
        Some(2) => Err(input_error(said)),
        _ => bail!("whet-sim: {said}"),
    }
}

/// What a blade's directory says of it.
fn read(dir: &Path) -> anyhow::Result<Silicon> {
    let path = dir.join("blade.json");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let blade: Described = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    // It becomes a folder's and an object's name.
    whetstone_model::ids::BladeName::new(blade.name.as_str()).map_err(input_error)?;
    let gpu = GpuSeen { name: &blade.sku.name, memory_mib: blade.sku.hbm_mib };
    let gpus = vec![gpu; blade.gpus.len()];
    let table = Table::built_in().context("thresholds")?;
    let profile = table.profile_for(&gpus).map(|profile| profile.sku.clone());
    let firmware = fs::read_to_string(dir.join("root/sys/class/dmi/id/product_serial")).unwrap_or_default();
    Ok(Silicon {
        says_serial: firmware.trim() == blade.serial,
        name: blade.name,
        serial: blade.serial,
        profile,
        dir: dir.to_owned(),
    })
}
