//! The signed bundle of one run: a directory that stays readable whatever cuts the run off.
//!
//! ```text
//! report.json      the result (schema in docs/report-schema.md); from the first second on it says how far the run got
//! report.html      the same for people, self-contained
//! samples.jsonl    readings for the fleet judge
//! evidence.jsonl   every finding, reading and kernel line, in order
//! raw/             facts before and after, the suite, what each test process said on stderr
//! manifest.json    size and SHA-256 of every file above, and the signer's public key
//! manifest.sig     ed25519 over manifest.json, hex
//! ```

pub mod html;

pub use whetstone_bundle::{key, manifest};

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use whetstone_model::evidence::Evidence;
use whetstone_model::report::Report;

/// A run refuses to start with less than this free: evidence that cannot be written is a run for nothing.
pub const MIN_FREE_BYTES: u64 = 32 << 20;

#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: not an empty directory; a run never writes into another one's bundle", path = .0.display())]
    NotEmpty(PathBuf),
    #[error("{path}: {free_mib} MiB free, a run needs {need_mib} MiB", path = .path.display(), need_mib = MIN_FREE_BYTES >> 20)]
    NoSpace { path: PathBuf, free_mib: u64 },
    #[error("{path}: {what}", path = .path.display())]
    Malformed { path: PathBuf, what: String },
    /// Signing, or a key.
    #[error(transparent)]
    Signed(#[from] whetstone_bundle::Error),
}

impl BundleError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> BundleError + '_ {
        |source| BundleError::Io { path: path.to_owned(), source }
    }
}

/// An open bundle that a run writes to.
pub struct Bundle {
    dir: PathBuf,
    evidence: BufWriter<File>,
    next_id: u64,
}

impl Bundle {
    /// Makes `dir` (or takes an empty one) and opens it for a run.
    pub fn create(dir: &Path) -> Result<Bundle, BundleError> {
        let existed = dir.exists();
        fs::create_dir_all(dir).map_err(BundleError::io(dir))?;
        if existed && fs::read_dir(dir).map_err(BundleError::io(dir))?.next().is_some() {
            return Err(BundleError::NotEmpty(dir.to_owned()));
        }
        let space = rustix::fs::statvfs(dir)
            .map_err(|e| BundleError::Io { path: dir.to_owned(), source: e.into() })?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < MIN_FREE_BYTES {
            if !existed {
                let _ = fs::remove_dir(dir);
            }
            return Err(BundleError::NoSpace { path: dir.to_owned(), free_mib: free >> 20 });
        }
        let raw = dir.join("raw");
        fs::create_dir(&raw).map_err(BundleError::io(&raw))?;
        let path = dir.join("evidence.jsonl");
        let evidence = BufWriter::new(File::create(&path).map_err(BundleError::io(&path))?);
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        for made in [Some(dir), parent].into_iter().flatten() {
            File::open(made).and_then(|d| d.sync_all()).map_err(BundleError::io(made))?;
        }
        Ok(Bundle { dir: dir.to_owned(), evidence, next_id: 1 })
    }

    /// Takes back what [`Bundle::create`] made: the run does not start.
    pub fn abandon(self) {
        let _ = fs::remove_file(self.dir.join("evidence.jsonl"));
        let _ = fs::remove_dir(self.dir.join("raw"));
        // Stays if it was there before, with something else in it.
        let _ = fs::remove_dir(&self.dir);
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Appends evidence, giving it the next id; returns that id. It reaches the disk with the next checkpoint.
    pub fn record(&mut self, mut evidence: Evidence) -> Result<u64, BundleError> {
        evidence.id = self.next_id;
        self.next_id += 1;
        let path = self.dir.join("evidence.jsonl");
        serde_json::to_writer(&mut self.evidence, &evidence)
            .map_err(io::Error::from)
            .and_then(|()| self.evidence.write_all(b"\n"))
            .map_err(BundleError::io(&path))?;
        Ok(evidence.id)
    }

    /// Keeps raw evidence as `raw/<name>`.
    pub fn raw(&self, name: &str, bytes: &[u8]) -> Result<(), BundleError> {
        write_atomic(&self.dir.join("raw").join(name), bytes)
    }

    /// Makes the run so far durable: evidence flushed, `report.json` replaced as a whole.
    pub fn checkpoint(&mut self, report: &Report) -> Result<(), BundleError> {
        let path = self.dir.join("evidence.jsonl");
        self.evidence
            .flush()
            .and_then(|()| self.evidence.get_ref().sync_data())
            .map_err(BundleError::io(&path))?;
        write_atomic(&self.dir.join("report.json"), &report_json(report, &self.dir)?)
    }

    /// Writes what is derived from the final report, then signs the whole.
    pub fn finish(mut self, report: &Report, samples: &str, key: &SigningKey) -> Result<(), BundleError> {
        self.checkpoint(report)?;
        write_atomic(&self.dir.join("samples.jsonl"), samples.as_bytes())?;
        write_atomic(&self.dir.join("report.html"), html::render(report).as_bytes())?;
        Ok(manifest::sign(&self.dir, &report.run, key)?)
    }
}

/// The report of the bundle in `dir`.
pub fn read_report(dir: &Path) -> Result<Report, BundleError> {
    let path = dir.join("report.json");
    let text = fs::read(&path).map_err(BundleError::io(&path))?;
    serde_json::from_slice(&text).map_err(|e| BundleError::Malformed { path, what: e.to_string() })
}

fn report_json(report: &Report, dir: &Path) -> Result<Vec<u8>, BundleError> {
    let mut json = serde_json::to_vec_pretty(report)
        .map_err(|e| BundleError::Malformed { path: dir.join("report.json"), what: e.to_string() })?;
    json.push(b'\n');
    Ok(json)
}

/// Old or new content, never half of it, even when the power goes.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
    Ok(whetstone_bundle::write_atomic(path, bytes)?)
}
