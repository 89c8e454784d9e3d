//! The local Kubernetes, by `whet-local`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};

use super::process::last_lines;
use crate::input_error;

/// Clusters side by side on one machine, as `whet-local` has it.
const INSTANCES: u32 = 10;

/// What a cluster is to be.
pub struct Wanted<'a> {
    pub program: &'a Path,
    pub site: &'a Path,
    /// Names of worker nodes.
    pub nodes: &'a [String],
    /// `None` = the first whose ports are free.
    pub instance: Option<u32>,
}

pub fn folder(site: &Path) -> PathBuf {
    site.join("cluster")
}

fn log(site: &Path) -> PathBuf {
    site.join("log/whet-local.log")
}

/// Starts it; the answer is its administrator's kubeconfig. Where it fails, nothing of it is left.
pub async fn up(wanted: &Wanted<'_>) -> anyhow::Result<PathBuf> {
    let (from, to) = wanted.instance.map_or((0, INSTANCES), |one| (one, one + 1));
    for instance in from..to {
        let taint = format!("{}={}:NoSchedule", whetstone_api::node::TAINT, whetstone_api::node::UNPROVEN);
        let mut args: Vec<OsString> = vec!["up".into(), "--instance".into(), instance.to_string().into()];
        if !wanted.nodes.is_empty() {
            args.extend([
                "--node-names".into(),
                wanted.nodes.join(",").into(),
                "--taint".into(),
                taint.into(),
            ]);
        }
        let code = run(wanted.program, wanted.site, &args).await?;
        let said = last_lines(&log(wanted.site));
        match code {
            Some(0) => return Ok(folder(wanted.site).join("admin.kubeconfig")),
            // Somebody else has this one's ports.
            Some(2) if said.contains("taken") && instance + 1 < to => {}
            Some(2) => return Err(input_error(format!("the local Kubernetes does not start:{said}"))),
            _ => bail!("the local Kubernetes does not start:{said}"),
        }
    }
    bail!("no instance of the local Kubernetes is free")
}

/// Takes it down; fine where there is none.
pub async fn down(program: &Path, site: &Path) -> anyhow::Result<()> {
    match run(program, site, &["down".into()]).await? {
        Some(0) => Ok(()),
        _ => bail!("the local Kubernetes does not end:{}", last_lines(&log(site))),
    }
}

/// Its output goes to a file: what it starts would hold a pipe open.
async fn run(program: &Path, site: &Path, args: &[OsString]) -> anyhow::Result<Option<i32>> {
    let path = log(site);
    let out = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    let out = out.with_context(|| path.display().to_string())?;
    let status = tokio::process::Command::new(program)
        .args(args)
        .arg("--dir")
        .arg(folder(site))
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .status()
        .await
        .with_context(|| program.display().to_string())?;
    Ok(status.code())
}
