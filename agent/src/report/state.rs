//! The agent's directory: what it must know after a restart. One agent at a time has it.
//!
//! ```text
//! agent.lock        held while an agent runs
//! instance          32 hex digits, made with the directory: two machines with one serial have two
//! signing-key.pem   ed25519, signs reports of runs
//! next-key.pem      the key of a join or renewal that is under way (0600)
//! identity.json     key, certificate, CA and blade of the last join or renewal, in one piece (0600)
//! standing.json     findings that were there at the last look
//! say-again         here while they have to be said again
//! spool/            evidence on its way
//! runs/<run>/       order.json, bundle/, result.json.zst, delivered
//! last-run          highest run ever seen
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Nothing that the agent keeps is larger.
const MAX_FILE: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: another agent has this directory", path = .0.display())]
    Taken(PathBuf),
    #[error("{path}: {what}", path = .path.display())]
    Malformed { path: PathBuf, what: String },
}

impl StateError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> StateError + '_ {
        |source| StateError::Io { path: path.to_owned(), source }
    }

    /// For metrics.
    pub fn category(&self) -> &'static str {
        match self {
            StateError::Io { .. } => "state_io",
            StateError::Taken(_) => "state_taken",
            StateError::Malformed { .. } => "state_malformed",
        }
    }
}

/// The open directory.
#[derive(Debug)]
pub struct StateDir {
    dir: PathBuf,
    /// Lets go of the lock when it is closed, however the process ends.
    _lock: File,
    instance: String,
}

impl StateDir {
    pub fn open(dir: &Path) -> Result<StateDir, StateError> {
        fs::create_dir_all(dir).map_err(StateError::io(dir))?;
        let path = dir.join("agent.lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(StateError::io(&path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StateError::Taken(dir.to_owned())),
            Err(e) => return Err(StateError::io(&path)(e.into())),
        }
        let path = dir.join("instance");
        let instance = match read(&path)? {
            Some(text) => String::from_utf8_lossy(&text).trim().to_owned(),
            None => {
                let new = hex::encode(rand::random::<[u8; 16]>());
                write(&path, new.as_bytes(), 0o644)?;
                new
            }
        };
        if instance.len() != 32 || !instance.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(StateError::Malformed { path, what: "not 32 hex digits".into() });
        }
        Ok(StateDir { dir: dir.to_owned(), _lock: lock, instance })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// `None` if the file is not there.
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        load(&self.path(name))
    }

    pub fn save<T: Serialize>(&self, name: &str, value: &T, mode: u32) -> Result<(), StateError> {
        save(&self.path(name), value, mode)
    }
}

pub(super) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    let Some(text) = read(path)? else { return Ok(None) };
    serde_json::from_slice(&text)
        .map(Some)
        // Serde's own words could quote a key.
        .map_err(|e| StateError::Malformed {
            path: path.to_owned(),
            what: format!("line {}: not what the agent wrote", e.line()),
        })
}

pub(super) fn save<T: Serialize>(path: &Path, value: &T, mode: u32) -> Result<(), StateError> {
    let json = serde_json::to_vec_pretty(value)
        .map_err(|e| StateError::Malformed { path: path.to_owned(), what: e.to_string() })?;
    write(path, &json, mode)
}

/// A file's bytes; `None` if it is not there.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StateError::io(path)(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(StateError::io(path))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(StateError::Malformed { path: path.to_owned(), what: format!("over {MAX_FILE} bytes") });
    }
    Ok(Some(bytes))
}

/// Old or new content, never half of it, even when the power goes; never readable by more than `mode` says.
pub(super) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StateError> {
    let temporary = path.with_added_extension("partial");
    let written = (|| -> io::Result<()> {
        // One that an earlier attempt left may have another mode.
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    })();
    written.map_err(|source| {
        let _ = fs::remove_file(&temporary);
        StateError::Io { path: path.to_owned(), source }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_agent_at_a_time_and_the_instance_stays() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        assert!(matches!(StateDir::open(dir.path()), Err(StateError::Taken(_))));
        let instance = first.instance().to_owned();
        drop(first);
        assert_eq!(StateDir::open(dir.path()).unwrap().instance(), instance);
        fs::write(dir.path().join("instance"), "x").unwrap();
        assert!(matches!(StateDir::open(dir.path()), Err(StateError::Malformed { .. })));
    }

    #[test]
    fn a_secret_is_never_readable_by_others_and_damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let path = state.path("identity.json");
        fs::write(path.with_added_extension("partial"), "left over").unwrap();
        state.save("identity.json", &"secret", 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(state.load::<String>("identity.json").unwrap().as_deref(), Some("secret"));
        fs::write(&path, "\"sec").unwrap();
        let error = state.load::<String>("identity.json").unwrap_err().to_string();
        assert!(error.contains("identity.json") && !error.contains("sec\""), "{error}");
    }
}
