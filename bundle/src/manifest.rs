//! The manifest: what a bundle holds, byte for byte, and who says so.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Error, write_atomic};

pub const MANIFEST: &str = "manifest.json";
pub const SIGNATURE: &str = "manifest.sig";
const SCHEMA: &str = "whetstone.manifest/1";
/// A bundle has some dozens of files; more than this is not one of ours.
const MAX_FILES: usize = 10_000;
const MAX_MANIFEST_BYTES: u64 = 4 << 20;

/// What `manifest.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub schema: String,
    /// What the bundle is about: a run's id, or a tranche's report.
    pub run: String,
    /// The signer's ed25519 public key, hex.
    pub key: String,
    /// By path relative to the bundle, with `/`.
    pub files: BTreeMap<String, FileEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub bytes: u64,
    /// Hex.
    pub sha256: String,
}

impl FileEntry {
    pub fn of(bytes: &[u8]) -> Self {
        FileEntry { bytes: bytes.len() as u64, sha256: hex::encode(Sha256::digest(bytes)) }
    }
}

/// `manifest.json` and `manifest.sig` as they are to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub manifest_json: String,
    pub signature: String,
}

/// Signs files that do not lie in a directory (yet).
pub fn seal(
    run: &str,
    files: BTreeMap<String, FileEntry>,
    key: &SigningKey,
) -> Result<Sealed, serde_json::Error> {
    let public = hex::encode(key.verifying_key().as_bytes());
    let manifest = Manifest { schema: SCHEMA.to_owned(), run: run.to_owned(), key: public, files };
    let mut manifest_json = serde_json::to_string_pretty(&manifest)?;
    manifest_json.push('\n');
    let signature = signature_text(&key.sign(manifest_json.as_bytes()));
    Ok(Sealed { manifest_json, signature })
}

/// Reads a manifest and checks that the key that it names has signed it. Whether that key is to be trusted, and the files,
/// are the caller's to check. The error is one sentence.
pub fn open(manifest_json: &[u8], signature: &[u8]) -> Result<(Manifest, VerifyingKey), String> {
    let manifest: Manifest = serde_json::from_slice(manifest_json).map_err(|e| format!("{MANIFEST}: {e}"))?;
    if manifest.schema != SCHEMA {
        return Err(format!("{MANIFEST}: schema {:?}, this version reads {SCHEMA:?}", manifest.schema));
    }
    let key = hex::decode(&manifest.key)
        .ok()
        .and_then(|k| VerifyingKey::from_bytes(&k.try_into().ok()?).ok())
        .ok_or_else(|| format!("{MANIFEST}: no valid public key"))?;
    let signature =
        parse_signature(signature).ok_or_else(|| format!("{SIGNATURE}: not an ed25519 signature"))?;
    if key.verify_strict(manifest_json, &signature).is_err() {
        return Err(format!("{MANIFEST} or {SIGNATURE} was changed: the signature does not fit"));
    }
    Ok((manifest, key))
}

/// A bundle whose every byte is as signed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verified {
    pub run: String,
    pub key: String,
    pub files: usize,
    /// Whether `key` is one that the reader named as trusted.
    pub trusted: bool,
}

/// Why a bundle does not verify.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Unreadable(#[from] Error),
    #[error("{dir}: not signed: the run was cut off before its end", dir = .0.display())]
    NotSigned(PathBuf),
    #[error("{dir}: {}", .problems.join("; "), dir = .dir.display())]
    Changed { dir: PathBuf, problems: Vec<String> },
}

/// Writes and signs the manifest of everything that lies in `dir` now.
pub fn sign(dir: &Path, run: &str, key: &SigningKey) -> Result<(), Error> {
    let mut files = BTreeMap::new();
    for (name, kind) in list(dir)? {
        if kind == Item::File {
            let entry = entry(&dir.join(&name), u64::MAX)?;
            files.insert(name, entry);
        }
    }
    let path = dir.join(MANIFEST);
    let sealed =
        seal(run, files, key).map_err(|e| Error::Malformed { path: path.clone(), what: e.to_string() })?;
    write_atomic(&path, sealed.manifest_json.as_bytes())?;
    write_atomic(&dir.join(SIGNATURE), sealed.signature.as_bytes())
}

/// Checks signature, every listed file, and that nothing was added. `trusted` empty = any signer.
pub fn verify(dir: &Path, trusted: &[VerifyingKey]) -> Result<Verified, VerifyError> {
    let there = |name: &str| dir.join(name).symlink_metadata().is_ok();
    if !there("report.json") && !there(MANIFEST) {
        let what = "no bundle here (neither report.json nor manifest.json)".into();
        return Err(Error::Malformed { path: dir.to_owned(), what }.into());
    }
    // The signature is the last thing that a run writes.
    if !there(SIGNATURE) {
        return Err(VerifyError::NotSigned(dir.to_owned()));
    }
    let changed = |problems| VerifyError::Changed { dir: dir.to_owned(), problems };
    let one = |what: String| changed(vec![what]);
    let bytes = read_bounded(&dir.join(MANIFEST))?;
    let signed = read_bounded(&dir.join(SIGNATURE))?;
    let (manifest, key) = open(&bytes, &signed).map_err(one)?;
    if !trusted.is_empty() && !trusted.contains(&key) {
        return Err(one(format!("signed by {}, which is not a trusted key", manifest.key)));
    }
    let mut problems = Vec::new();
    let found = list(dir)?;
    for (name, kind) in &found {
        match kind {
            Item::File if !manifest.files.contains_key(name) => problems.push(format!("{name} was added")),
            Item::Other => problems.push(format!("{name} is not a plain file")),
            Item::Folder if !manifest.files.keys().any(|file| file.starts_with(&format!("{name}/"))) => {
                problems.push(format!("{name} was added"));
            }
            Item::File | Item::Folder => {}
        }
    }
    for (name, expected) in &manifest.files {
        // Only what lies in the bundle as a plain file is opened, whatever names a manifest holds.
        if found.get(name) != Some(&Item::File) {
            problems.push(format!("{name} is missing"));
            continue;
        }
        match entry(&dir.join(name), expected.bytes) {
            Ok(found) if found == *expected => {}
            Ok(_) => problems.push(format!("{name} was changed")),
            Err(_) => problems.push(format!("{name} is unreadable")),
        }
    }
    if !problems.is_empty() {
        return Err(changed(problems));
    }
    let trusted = !trusted.is_empty();
    Ok(Verified { run: manifest.run, key: manifest.key, files: manifest.files.len(), trusted })
}

fn signature_text(signature: &Signature) -> String {
    format!("{}\n", hex::encode(signature.to_bytes()))
}

/// Exactly what [`signature_text`] writes: any other spelling of the same signature is a changed byte too.
fn parse_signature(text: &[u8]) -> Option<Signature> {
    let digits = text.strip_suffix(b"\n")?;
    let signature = Signature::from_bytes(&hex::decode(digits).ok()?.try_into().ok()?);
    (signature_text(&signature).as_bytes() == text).then_some(signature)
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, Error> {
    let meta = fs::symlink_metadata(path).map_err(Error::io(path))?;
    let what = if !meta.is_file() {
        "not a plain file".to_owned()
    } else if meta.len() > MAX_MANIFEST_BYTES {
        format!("{} bytes: too large", meta.len())
    } else {
        return fs::read(path).map_err(Error::io(path));
    };
    Err(Error::Malformed { path: path.to_owned(), what })
}

/// Size and hash of a file; one that has more than `expected` bytes is not read to its end.
fn entry(path: &Path, expected: u64) -> Result<FileEntry, Error> {
    let mut file = File::open(path).map_err(Error::io(path))?.take(expected.saturating_add(1));
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 64 << 10]);
    loop {
        let read = file.read(&mut buffer).map_err(Error::io(path))?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
    }
    Ok(FileEntry { bytes, sha256: hex::encode(hash.finalize()) })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    File,
    Folder,
    /// A link, a pipe, a device: never part of a bundle, and not opened.
    Other,
}

/// Everything below `dir` but the manifest and its signature, by relative path.
fn list(dir: &Path) -> Result<BTreeMap<String, Item>, Error> {
    let mut items = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = dir.join(&folder);
        for item in fs::read_dir(&path).map_err(Error::io(&path))? {
            let item = item.map_err(Error::io(&path))?;
            let relative = folder.join(item.file_name());
            let kind = item.file_type().map_err(Error::io(&path))?;
            let name = relative.to_string_lossy().into_owned();
            if name == MANIFEST || name == SIGNATURE {
                continue;
            }
            let kind = match kind {
                kind if kind.is_dir() => Item::Folder,
                kind if kind.is_file() => Item::File,
                _ => Item::Other,
            };
            if kind == Item::Folder {
                folders.push(relative);
            }
            items.insert(name, kind);
            if items.len() > MAX_FILES {
                return Err(Error::Malformed { path, what: format!("more than {MAX_FILES} files") });
            }
        }
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> (tempfile::TempDir, SigningKey) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("raw")).unwrap();
        fs::write(dir.path().join("report.json"), "{\"a\": 1}\n").unwrap();
        fs::write(dir.path().join("raw/x.txt"), "evidence").unwrap();
        let key = SigningKey::from_bytes(&[7; 32]);
        sign(dir.path(), "run-1", &key).unwrap();
        (dir, key)
    }

    #[test]
    fn every_changed_byte_of_every_file_is_detected() {
        let (dir, _) = bundle();
        assert_eq!(verify(dir.path(), &[]).unwrap().files, 2);
        for name in ["report.json", "raw/x.txt", MANIFEST, SIGNATURE] {
            let path = dir.path().join(name);
            let good = fs::read(&path).unwrap();
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0x20;
                fs::write(&path, &bad).unwrap();
                assert!(verify(dir.path(), &[]).is_err(), "{name} byte {at}");
            }
            fs::write(&path, &good[..good.len() - 1]).unwrap();
            assert!(verify(dir.path(), &[]).is_err(), "{name} cut");
            fs::write(&path, &good).unwrap();
        }
        verify(dir.path(), &[]).unwrap();
    }

    #[test]
    fn an_added_or_removed_file_and_a_strange_signer_are_refused() {
        let (dir, key) = bundle();
        let other = SigningKey::from_bytes(&[8; 32]).verifying_key();
        assert!(verify(dir.path(), &[other]).is_err());
        assert!(verify(dir.path(), &[other, key.verifying_key()]).unwrap().trusted);
        fs::write(dir.path().join("raw/extra"), "").unwrap();
        assert!(verify(dir.path(), &[]).unwrap_err().to_string().contains("raw/extra was added"));
        fs::remove_file(dir.path().join("raw/extra")).unwrap();
        fs::remove_file(dir.path().join("raw/x.txt")).unwrap();
        assert!(verify(dir.path(), &[]).unwrap_err().to_string().contains("raw/x.txt is missing"));
        fs::remove_file(dir.path().join(MANIFEST)).unwrap();
        fs::remove_file(dir.path().join(SIGNATURE)).unwrap();
        assert!(matches!(verify(dir.path(), &[]), Err(VerifyError::NotSigned(_))));
    }

    #[test]
    fn links_pipes_empty_folders_and_names_that_lead_outside_are_refused() {
        let (dir, key) = bundle();
        let says = |what: &str| {
            let error = verify(dir.path(), &[]).unwrap_err().to_string();
            assert!(error.contains(what), "{error:?} does not say {what:?}");
        };
        let (report, outside) = (dir.path().join("report.json"), tempfile::NamedTempFile::new().unwrap());
        fs::copy(&report, outside.path()).unwrap();
        fs::remove_file(&report).unwrap();
        std::os::unix::fs::symlink(outside.path(), &report).unwrap();
        says("report.json is not a plain file");
        fs::remove_file(&report).unwrap();
        says("report.json is missing");
        fs::write(&report, "{\"a\": 1}\n").unwrap();
        verify(dir.path(), &[]).unwrap();
        fs::create_dir(dir.path().join("raw/empty")).unwrap();
        says("raw/empty was added");
        fs::remove_dir(dir.path().join("raw/empty")).unwrap();

        // A manifest of somebody else's making, well signed.
        let manifest =
            fs::read_to_string(dir.path().join(MANIFEST)).unwrap().replace("raw/x.txt", "../../etc/hostname");
        fs::write(dir.path().join(MANIFEST), &manifest).unwrap();
        fs::write(dir.path().join(SIGNATURE), signature_text(&key.sign(manifest.as_bytes()))).unwrap();
        says("../../etc/hostname is missing");
        fs::remove_file(dir.path().join(SIGNATURE)).unwrap();
        assert!(matches!(verify(dir.path(), &[]), Err(VerifyError::NotSigned(_))));
    }
}
