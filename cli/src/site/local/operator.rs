//! The operator of a site, as a process of this machine.

use std::ffi::{OsStr, OsString};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::KUBECONFIG;
use super::process::{Process, last_lines, start};
use crate::site::ops::NAMESPACE;

/// Below the ports that the system hands out, so that no connection of somebody's sits on them.
const PORTS: std::ops::Range<u16> = 18_440..18_640;
/// Until it is ready: it opens its store, makes its certificates and lists a cluster.
const READY: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Where it listens.
#[derive(Debug, Clone, PartialEq)]
pub struct Ports {
    pub intake: u16,
    pub http: u16,
}

impl Ports {
    /// Two that are free now.
    pub fn free() -> anyhow::Result<Ports> {
        let mut held: Vec<(u16, TcpListener)> = Vec::new();
        for port in PORTS {
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
                held.push((port, listener));
            }
            if let [(intake, _), (http, _)] = held.as_slice() {
                return Ok(Ports { intake: *intake, http: *http });
            }
        }
        bail!("no two free ports from {} to {}", PORTS.start, PORTS.end)
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.intake)
    }

    pub fn http(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }
}

pub fn log(site: &Path) -> PathBuf {
    site.join("log/operator.log")
}

/// Starts it. With an `identity` it waits for the cluster's lease: there may be others. It ends when it loses that, and is started
/// again.
pub fn begin(
    program: &Path,
    site: &Path,
    store: Option<&str>,
    ports: &Ports,
    identity: Option<&str>,
) -> anyhow::Result<Process> {
    let store = match store {
        Some(url) => url.to_owned(),
        None => format!("sqlite:{}?mode=rwc", site.join("store.db").display()),
    };
    let mut args: Vec<OsString> = vec![
        "run".into(),
        "--pki-dir".into(),
        site.join("pki").into(),
        "--pki-create".into(),
        "--kubeconfig".into(),
        site.join(KUBECONFIG).into(),
        "--listen".into(),
        format!("127.0.0.1:{}", ports.intake).into(),
        "--http".into(),
        format!("127.0.0.1:{}", ports.http).into(),
        "--server-name".into(),
        "127.0.0.1".into(),
        "--server-name".into(),
        "localhost".into(),
        "--namespace".into(),
        NAMESPACE.into(),
        // A person looks on.
        "--report-interval".into(),
        "2s".into(),
    ];
    if let Some(identity) = identity {
        args.extend(["--leader-elect".into(), "--identity".into(), identity.into()]);
    }
    let args: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
    // By environment: a database's URL may hold a password, and everybody sees a command line.
    start(site, &log(site), identity.is_some(), program, &args, &[("WHETSTONE_STORE", store.into())])
}

/// Waits until it says that it is ready.
pub async fn ready(site: &Path, process: Process, ports: &Ports) -> anyhow::Result<()> {
    let url = format!("{}/readyz", ports.http());
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(2)))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into();
    let until = tokio::time::Instant::now() + READY;
    let mut last = String::from("no answer");
    while tokio::time::Instant::now() < until {
        if !process.lives() {
            bail!("the operator ended:{}", last_lines(&log(site)));
        }
        let (agent, url) = (agent.clone(), url.clone());
        let answer = tokio::task::spawn_blocking(move || {
            let mut answer = agent.get(&url).call()?;
            let text = answer.body_mut().with_config().limit(4096).read_to_string()?;
            Ok::<_, ureq::Error>((answer.status().as_u16(), text))
        });
        match answer.await? {
            Ok((200, _)) => return Ok(()),
            Ok((status, text)) => last = format!("{status} {}", crate::site::table::clean(&text)),
            Err(e) => last = e.to_string(),
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("the operator is not ready after {} s ({last}):{}", READY.as_secs(), last_lines(&log(site)))
}

/// Makes the credentials that `whet` uses, in DIR/ops.
pub async fn credentials(program: &Path, site: &Path, ports: &Ports) -> anyhow::Result<()> {
    let out = tokio::process::Command::new(program)
        .args(["pki", "ops-cert", "--user", "whet", "--url", &ports.url(), "--pki-dir"])
        .arg(site.join("pki"))
        .arg("--out")
        .arg(site.join(crate::site::ops::FOLDER))
        .output()
        .await
        .with_context(|| program.display().to_string())?;
    if !out.status.success() {
        bail!("{}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}
