//! Signed bundles: a directory of files with a manifest of sizes and hashes, signed with ed25519.
//!
//! An agent signs its runs, the operator the acceptance report of a tranche; `whet report verify` reads both.
//!
//! ```text
//! manifest.json    size and SHA-256 of every other file, and the signer's public key
//! manifest.sig     ed25519 over manifest.json, hex
//! ```

pub mod key;
pub mod manifest;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that cannot be read or written, or holds something else than it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {what}", path = .path.display())]
    Malformed { path: PathBuf, what: String },
}

impl Error {
    /// For `map_err`: an IO error with the path it is about.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
        |source| Error::Io { path: path.to_owned(), source }
    }
}

/// Old or new content, never half of it, even when the power goes.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = path.with_added_extension("partial");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // The new name is durable with its directory.
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        Error::Io { path: path.to_owned(), source }
    })
}
