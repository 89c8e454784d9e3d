//! The test's own file: without a name, past the page cache where the file system allows that.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Advice, Mode, OFlags, fadvise, open, unlink};

pub struct Scratch {
    file: File,
    /// Reads and writes go to the device itself.
    pub direct: bool,
}

impl Scratch {
    pub fn create(directory: &Path) -> io::Result<Scratch> {
        let with_direct = nameless(directory, OFlags::DIRECT).map(|file| Scratch { file, direct: true });
        // Some file systems (tmpfs, overlay on it, ZFS of old) know no direct access.
        with_direct.or_else(|_| Ok(Scratch { file: nameless(directory, OFlags::empty())?, direct: false }))
    }

    pub fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    pub fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    /// Forces content to the medium.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Lets go of cached pages, so that the next read comes from the device. Advice: nothing to do if it is not taken.
    pub fn drop_cache(&self) {
        let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
    }
}

fn nameless(directory: &Path, more: OFlags) -> io::Result<File> {
    let (flags, mode) = (OFlags::RDWR | OFlags::CLOEXEC | more, Mode::RUSR | Mode::WUSR);
    match open(directory, flags | OFlags::TMPFILE, mode) {
        Ok(file) => Ok(file.into()),
        Err(rustix::io::Errno::NOENT) => Err(rustix::io::Errno::NOENT.into()),
        // No such files here (NFS, older overlay): one with a name, which it loses at once.
        Err(_) => {
            let path = directory.join(format!("disk-test-{}", std::process::id()));
            let file = open(&path, flags | OFlags::CREATE | OFlags::EXCL, mode);
            let _ = unlink(&path);
            Ok(file?.into())
        }
    }
}
