//! `state.json`: what a site consists of, so that a later command acts on exactly that.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::process::Process;
use crate::site::tranche::secret_file;

/// Of the file; a command refuses one that it does not know.
const VERSION: u32 = 1;
/// Largest file: 512 blades take 100 KiB.
const MAX_BYTES: u64 = 8 << 20;
const FILE: &str = "state.json";

/// A site as recorded.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub version: u32,
    pub dir: PathBuf,
    /// Label of all that it makes in a cluster; no two sites have the same.
    #[serde(default)]
    pub id: String,
    /// Milliseconds since the Unix epoch.
    pub started_ms: i64,
    /// `whet-local`, if the Kubernetes is ours.
    pub whet_local: Option<PathBuf>,
    /// Objects that it makes in its cluster, recorded before they are there. Taken away again where the cluster is not ours,
    /// if they have our label.
    pub made: Vec<Made>,
    pub operator_url: String,
    /// Health and metrics of the operator.
    pub operator_http: String,
    pub tranche: String,
    pub blades: Vec<Blade>,
    pub processes: Vec<Recorded>,
    /// It once came up as a whole.
    pub ready: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    pub kind: MadeKind,
    pub name: String,
}

impl Made {
    /// The object's name; a policy's record has its kind before it.
    pub fn object(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or(&self.name)
    }
}

/// In the order in which they are taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MadeKind {
    Blade,
    Tranche,
    Lease,
    Node,
    Secret,
    Policy,
    Crd,
    Namespace,
}

impl MadeKind {
    /// As kubectl calls it.
    pub fn word(self) -> &'static str {
        match self {
            MadeKind::Blade => "blade",
            MadeKind::Tranche => "tranche",
            MadeKind::Lease => "lease",
            MadeKind::Node => "node",
            MadeKind::Secret => "secret",
            MadeKind::Policy => "policy",
            MadeKind::Crd => "crd",
            MadeKind::Namespace => "namespace",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blade {
    pub name: String,
    pub serial: String,
    /// A kubelet registered its node; else the node is a hollow object.
    pub kubelet: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// `operator`, or `agent-` and the blade's name.
    pub name: String,
    #[serde(flatten)]
    pub process: Process,
    pub log: PathBuf,
}

impl State {
    pub fn new(dir: &Path, started_ms: i64) -> State {
        State { version: VERSION, dir: dir.to_owned(), started_ms, ..State::default() }
    }

    /// With an id of its own.
    pub fn fresh(dir: &Path, started_ms: i64) -> anyhow::Result<State> {
        use std::io::Read as _;
        let mut bytes = [0_u8; 8];
        std::fs::File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes))?;
        let id = bytes.map(|byte| format!("{byte:02x}")).concat();
        Ok(State { id, ..State::new(dir, started_ms) })
    }

    /// What is recorded in a folder; `None` if nothing is.
    pub fn load(dir: &Path) -> anyhow::Result<Option<State>> {
        let path = dir.join(FILE);
        let size = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        };
        if size > MAX_BYTES {
            bail!("{}: {size} bytes; a site's record has at most {MAX_BYTES}", path.display());
        }
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let state: State = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        if state.version != VERSION {
            bail!("{}: version {}, this program knows version {VERSION}", path.display(), state.version);
        }
        if state.dir != dir {
            bail!("{}: is of a site in {}", path.display(), state.dir.display());
        }
        Ok(Some(state))
    }

    /// Old or new, never half of it.
    pub fn save(&self) -> anyhow::Result<()> {
        let path = self.dir.join(FILE);
        let text = serde_json::to_string_pretty(self)? + "\n";
        secret_file(&path, text.as_bytes()).with_context(|| path.display().to_string())
    }

    /// Changes it and its file together.
    pub fn change(&mut self, change: impl FnOnce(&mut State)) -> anyhow::Result<()> {
        change(self);
        self.save()
    }

    /// Whether there may be something beyond its folder.
    pub fn leaves_anything(&self) -> bool {
        self.whet_local.is_some() || !self.made.is_empty() || !self.processes.is_empty()
    }

    pub fn living(&self) -> impl Iterator<Item = &Recorded> {
        self.processes.iter().filter(|recorded| recorded.process.lives())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(dir: &Path) -> State {
        let mut state = State::new(dir, 7);
        state.blades.push(Blade { name: "b-001".into(), serial: "SIM1".into(), kubelet: false });
        state.processes.push(Recorded {
            name: "operator".into(),
            process: Process { pid: 4, start: 9 },
            log: dir.join("log/operator.log"),
        });
        state.made.push(Made { kind: MadeKind::Crd, name: "blades.whetstone.dev".into() });
        state
    }

    #[test]
    fn what_is_saved_is_loaded_and_the_rest_is_refused_with_the_files_name() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(State::load(dir.path()).unwrap(), None);
        let saved = state(dir.path());
        saved.save().unwrap();
        assert_eq!(State::load(dir.path()).unwrap(), Some(saved));
        let file = dir.path().join(FILE);
        let good = std::fs::read_to_string(&file).unwrap();
        for (bad, word) in [
            (good.replace("\"version\": 1", "\"version\": 2"), "version 2"),
            (good.replace("\"dir\": \"", "\"dir\": \"/elsewhere"), "is of a site in /elsewhere"),
            (good.replace("\"pid\": 4", "\"pid\": \"4\""), "state.json"),
            (good[..good.len() / 2].to_owned(), "state.json"),
            (String::new(), "state.json"),
        ] {
            std::fs::write(&file, bad).unwrap();
            let error = format!("{:#}", State::load(dir.path()).unwrap_err());
            assert!(error.contains("state.json") && error.contains(word), "{error}");
        }
    }
}
