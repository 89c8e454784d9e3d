//! A site's folder: one command at a time, and never a folder that is not ours.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};

use crate::input_error;

/// Says that the folder is a site's and may be deleted.
const MARKER: &str = ".whetstone-site";

/// A folder that this command alone works on, until it is dropped.
pub struct Folder {
    pub dir: PathBuf,
    _lock: File,
}

/// What is there before a site is made.
pub enum Found {
    /// Nothing, or an empty folder.
    Free,
    /// A site of ours, whole or not.
    Site,
    /// Somebody's files.
    Strange,
}

pub fn look(dir: &Path) -> anyhow::Result<Found> {
    let items = match fs::read_dir(dir) {
        Ok(mut items) => items.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Free),
        Err(e) => return Err(input_error(format!("{}: {e}", dir.display()))),
    };
    Ok(match (items, dir.join(MARKER).is_file()) {
        (_, true) => Found::Site,
        (false, false) => Found::Free,
        (true, false) => Found::Strange,
    })
}

impl Folder {
    /// Makes the folder, with its mark.
    pub fn make(dir: &Path) -> anyhow::Result<Folder> {
        let bad = |e: std::io::Error| input_error(format!("{}: {e}", dir.display()));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(bad)?;
        fs::write(dir.join(MARKER), "A site of `whet site up`; `whet site down` deletes this folder.\n")
            .map_err(bad)?;
        Folder::open(dir)
    }

    /// A folder that has the mark.
    pub fn open(dir: &Path) -> anyhow::Result<Folder> {
        let path = dir.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.with_context(|| path.display().to_string())?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(input_error(format!("{}: another `whet site` is at work on it", dir.display())));
        }
        Ok(Folder { dir: dir.to_owned(), _lock: lock })
    }

    /// Deletes it with all that is in it.
    pub fn delete(self) -> anyhow::Result<()> {
        if !matches!(look(&self.dir)?, Found::Site) {
            return Err(input_error(format!("{}: has no {MARKER}; it is left alone", self.dir.display())));
        }
        fs::remove_dir_all(&self.dir).with_context(|| self.dir.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_folder_with_the_mark_is_deleted_and_one_command_works_on_it() {
        let dir = tempfile::tempdir().unwrap();
        let site = dir.path().join("site");
        assert!(matches!(look(&site).unwrap(), Found::Free));
        let folder = Folder::make(&site).unwrap();
        assert!(matches!(look(&site).unwrap(), Found::Site));
        let error = Folder::open(&site).err().unwrap();
        assert!(error.is::<crate::InputError>() && error.to_string().contains("at work"), "{error}");
        folder.delete().unwrap();
        assert!(!site.exists());

        fs::create_dir(&site).unwrap();
        fs::write(site.join("thesis.txt"), "years of work").unwrap();
        assert!(matches!(look(&site).unwrap(), Found::Strange));
        assert!(Folder::open(&site).unwrap().delete().is_err());
        assert!(site.join("thesis.txt").is_file());
    }
}
