//! The tranche on a real control plane: `whet site up`, a tranche that is accepted, the blades' own reports fetched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;
use whetstone_model::report::Report;

use super::run::{Ran, Setting, report};

/// The tranche that `whet site up` makes.
const TRANCHE: &str = "t-01";
/// Between two looks at the site.
const LOOK: Duration = Duration::from_secs(1);

/// A site that was started.
pub struct Site {
    whet: PathBuf,
    pub dir: PathBuf,
    pub kubeconfig: PathBuf,
    kubectl: PathBuf,
}

#[derive(Deserialize)]
struct Up {
    kubeconfig: PathBuf,
    seconds: f64,
}

/// What is used of a line of `whet blades --json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BladeNow {
    pub name: String,
    pub phase: Option<String>,
    pub reason: Option<String>,
    pub since_ms: Option<i64>,
}

#[derive(Deserialize)]
struct Nodes {
    items: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    taints: Vec<Taint>,
    #[serde(default)]
    unschedulable: bool,
}

#[derive(Deserialize)]
struct Taint {
    key: String,
}

/// Our taint, as the operator's API names it.
const OUR_TAINT: &str = "whetstone.dev/withheld";

impl Site {
    /// Where the demonstration's site is, running or not.
    pub fn dir(out: &Path) -> PathBuf {
        out.join("site")
    }

    /// Starts it, with the tranche of this seed.
    pub fn up(setting: &Setting, seed: u64, blades: usize, sku: &str, jobs: usize) -> anyhow::Result<Site> {
        let dir = Self::dir(&setting.out);
        let output = Command::new(&setting.whet)
            .args(["site", "up", "--json", "--dir"])
            .arg(&dir)
            .args(["--blades", &blades.to_string(), "--seed", &seed.to_string(), "--sku", sku])
            .args(["--concurrency", &jobs.to_string(), "--suite"])
            .arg(&setting.suite)
            .arg("--sim-libs")
            .arg(&setting.libs)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("whet site up")?;
        if !output.status.success() {
            bail!("whet site up: {}", output.status);
        }
        let up: Up = serde_json::from_slice(&output.stdout).context("whet site up --json")?;
        eprintln!("site up in {:.1} s", up.seconds);
        let beside = setting.whet.parent().unwrap_or(Path::new("."));
        let kubectl = [beside.join("kubectl"), beside.join("../local/bin/kubectl")];
        let kubectl = kubectl.into_iter().find(|path| path.is_file()).unwrap_or_else(|| "kubectl".into());
        Ok(Site { whet: setting.whet.clone(), dir, kubeconfig: up.kubeconfig, kubectl })
    }

    /// Ends a site of an earlier demonstration, if there is one.
    pub fn down(whet: &Path, out: &Path) -> anyhow::Result<()> {
        let dir = Self::dir(out);
        if !dir.exists() {
            return Ok(());
        }
        let status = Command::new(whet)
            .args(["site", "down", "--dir"])
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .context("whet site down")?;
        if status.success() { Ok(()) } else { bail!("whet site down: {status}") }
    }

    fn whet(&self, args: &[&str]) -> anyhow::Result<Vec<u8>> {
        let output = Command::new(&self.whet)
            .args(args)
            .env("WHETSTONE_SITE", &self.dir)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("whet {}", args.join(" ")))?;
        if !output.status.success() {
            bail!(
                "whet {}: {}: {}",
                args.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(output.stdout)
    }

    /// What `kubectl` prints.
    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.kubectl)
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .output()
            .context("kubectl")?;
        if !output.status.success() {
            bail!("kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn blades(&self) -> anyhow::Result<Vec<BladeNow>> {
        serde_json::from_slice(&self.whet(&["blades", "--json"])?).context("whet blades --json")
    }

    /// Waits until the tranche is decided; says on the way what becomes of its blades.
    pub fn decided(&self, limit: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut before: BTreeMap<String, String> = BTreeMap::new();
        loop {
            let blades = self.blades()?;
            for blade in &blades {
                let phase = blade.phase.clone().unwrap_or_default();
                if before.insert(blade.name.clone(), phase.clone()).as_ref() != Some(&phase) {
                    let reason =
                        if phase == "Quarantined" { blade.reason.as_deref().unwrap_or("") } else { "" };
                    eprintln!("{:>4} s  {}  {phase:<12} {reason}", begun.elapsed().as_secs(), blade.name);
                }
            }
            let done = blades
                .iter()
                .all(|b| matches!(b.phase.as_deref(), Some("Ready" | "InService" | "Quarantined")));
            if done && !blades.is_empty() {
                break;
            }
            if begun.elapsed() > limit {
                bail!(
                    "the tranche is not decided after {} s; the site is in {}",
                    limit.as_secs(),
                    self.dir.display()
                );
            }
            std::thread::sleep(LOOK);
        }
        let condition = format!("tranche/{TRANCHE}");
        self.kubectl(&["wait", "--for=condition=Ready", &condition, "--timeout=30s"])?;
        Ok(())
    }

    /// Each blade's last run: its bundle comes to `out/<blade>`, as if the blade had been burned in by hand.
    ///
    /// A blade that was withheld before any run has the reason for it in place of a report.
    pub fn fetch(&self, out: &Path, names: &[String]) -> anyhow::Result<Vec<Ran>> {
        let blades = self.blades()?;
        let reason =
            |name: &str| blades.iter().find(|blade| blade.name == name).and_then(|b| b.reason.clone());
        Ok(names.iter().map(|name| self.fetch_one(out, name, reason(name))).collect())
    }

    fn fetch_one(&self, out: &Path, name: &str, reason: Option<String>) -> Ran {
        let bundle = self.last_bundle(name).and_then(|bundle| {
            let to = out.join(name);
            copy(&bundle, &to)?;
            Ok(to)
        });
        let report = match bundle {
            Ok(bundle) => report(&bundle, None),
            Err(error) => Err(reason.unwrap_or_else(|| format!("{error:#}"))),
        };
        let took = report.as_ref().map_or(0, took_ms);
        Ran { took: Duration::from_millis(took), report }
    }

    fn last_bundle(&self, name: &str) -> anyhow::Result<PathBuf> {
        let runs = self.dir.join("blades").join(name).join("state/runs");
        let number =
            |entry: &std::fs::DirEntry| entry.file_name().to_str().and_then(|n| n.parse::<u64>().ok());
        let last = std::fs::read_dir(&runs)
            .with_context(|| runs.display().to_string())?
            .flatten()
            .filter_map(|entry| number(&entry).map(|number| (number, entry.path())))
            .max();
        let (_, path) = last.with_context(|| format!("{name}: no run"))?;
        Ok(path.join("bundle"))
    }

    /// The signed acceptance report; `whet tranche report` verifies it.
    pub fn acceptance(&self, out: &Path) -> anyhow::Result<PathBuf> {
        let to = out.join("acceptance");
        let to_text = to.to_string_lossy().into_owned();
        self.whet(&["tranche", "report", TRANCHE, "--out", &to_text])?;
        Ok(to)
    }

    /// Nodes that carry our taint, and whether they are cordoned.
    pub fn tainted(&self) -> anyhow::Result<BTreeMap<String, bool>> {
        let nodes: Nodes = serde_json::from_str(&self.kubectl(&["get", "nodes", "-o", "json"])?)?;
        let ours = nodes
            .items
            .into_iter()
            .filter(|node| node.spec.taints.iter().any(|taint| taint.key == OUR_TAINT));
        Ok(ours.map(|node| (node.metadata.name, node.spec.unschedulable)).collect())
    }
}

fn took_ms(report: &Report) -> u64 {
    report.ended_ms.and_then(|ended| u64::try_from(ended - report.started_ms).ok()).unwrap_or(0)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target).with_context(|| target.display().to_string())?;
        }
    }
    Ok(())
}
