//! Files of the PKI that others read: keys with tight permissions, credentials for people, the key that signs reports.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::{PkiError, Role, SiteCa};

const REPORT_KEY: &str = "report-signing.pem";

/// The key that signs acceptance reports; made at first use.
pub fn report_key(pki_dir: &Path) -> Result<ed25519_dalek::SigningKey, PkiError> {
    Ok(whetstone_bundle::key::load_or_create(&pki_dir.join(REPORT_KEY))?)
}

/// Writes a person's credentials to `out`: `ca.crt`, `tls.crt`, `tls.key` and `url`, as `whet --site DIR` reads them. Files that are
/// there are replaced.
pub fn ops_cert(
    ca: &SiteCa,
    user: &str,
    url: &str,
    out: &Path,
    now_ms: i64,
    lifetime_ms: i64,
) -> Result<(), PkiError> {
    let is_name = !user.is_empty()
        && user.len() <= 63
        && user.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b));
    if !is_name {
        return Err(PkiError::BadRequest(format!(
            "user {:?} is not 1 to 63 letters, digits, '-', '_', '.' and '@'",
            user.chars().take(80).collect::<String>()
        )));
    }
    fs::create_dir_all(out).map_err(PkiError::io(out))?;
    let (issued, key) = ca.issue_with_key(Role::Ops, user, now_ms, lifetime_ms)?;
    publish(&out.join("ca.crt"), issued.ca_pem.as_bytes(), 0o644)?;
    publish(&out.join("tls.key"), key.as_bytes(), 0o600)?;
    publish(&out.join("tls.crt"), issued.certificate_pem.as_bytes(), 0o644)?;
    publish(&out.join("url"), format!("{}\n", url.trim()).as_bytes(), 0o644)
}

fn write_partial(path: &Path, bytes: &[u8], mode: u32) -> Result<PathBuf, PkiError> {
    let partial = path.with_added_extension(format!("{}.partial", std::process::id()));
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    match write() {
        Ok(()) => Ok(partial),
        Err(e) => {
            let _ = fs::remove_file(&partial);
            Err(PkiError::io(path)(e))
        }
    }
}

fn sync_folder(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// A file that only its owner reads and that must not have been there; whole or not at all.
pub(super) fn create_new(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    let partial = write_partial(path, bytes, 0o600)?;
    // A link fails where a rename would replace.
    let made = fs::hard_link(&partial, path).and_then(|()| sync_folder(path));
    let _ = fs::remove_file(&partial);
    made.map_err(PkiError::io(path))
}

/// Old or new content, never half of it.
pub(super) fn publish(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    let partial = write_partial(path, bytes, mode)?;
    fs::rename(&partial, path).and_then(|()| sync_folder(path)).map_err(|e| {
        let _ = fs::remove_file(&partial);
        PkiError::io(path)(e)
    })
}
