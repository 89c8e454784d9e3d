//! An agent for each simulated blade.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::process::{Process, start};
use super::programs::Programs;
use super::silicon::Silicon;
use crate::site::tranche::secret_file;

/// Name under which an agent is recorded.
pub fn name(blade: &str) -> String {
    format!("agent-{blade}")
}

pub fn log(site: &Path, blade: &str) -> PathBuf {
    site.join("log").join(format!("{}.log", name(blade)))
}

/// Starts the agent of a blade with its one-time token.
pub fn begin(
    programs: &Programs,
    site: &Path,
    operator: &str,
    silicon: &Silicon,
    token: &str,
) -> anyhow::Result<Process> {
    let home = site.join("blades").join(&silicon.name);
    let token_file = home.join("token");
    secret_file(&token_file, format!("{token}\n").as_bytes())
        .with_context(|| token_file.display().to_string())?;
    fs::create_dir_all(home.join("state"))?;
    let mut args: Vec<OsString> = vec![
        "run".into(),
        "--operator".into(),
        operator.into(),
        "--ca".into(),
        site.join("pki/ca.crt").into(),
        "--token-file".into(),
        token_file.into(),
        "--state".into(),
        home.join("state").into(),
        "--interval".into(),
        "2s".into(),
        "--report-interval".into(),
        "2s".into(),
        "--backend".into(),
        "cuda".into(),
    ];
    if !silicon.says_serial {
        args.extend(["--serial".into(), silicon.serial.clone().into()]);
    }
    let args: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
    let environment = [
        ("WHETSTONE_SIM", silicon.dir.clone()),
        ("WHETSTONE_ROOT", silicon.dir.join("root")),
        ("WHETSTONE_KMSG", silicon.dir.join("kmsg")),
        ("LD_LIBRARY_PATH", programs.libraries.clone()),
    ];
    start(site, &log(site, &silicon.name), false, &programs.agent, &args, &environment)
}
