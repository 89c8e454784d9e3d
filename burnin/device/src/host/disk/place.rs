//! Which disk a directory lies on, and how full it is.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{major, minor, statfs, statvfs};
use whetstone_model::device::DeviceId;

pub struct Place {
    /// The drive's serial number, if the file system is on one drive that has one.
    pub device: Option<DeviceId>,
    /// For people.
    pub name: String,
    pub in_memory: bool,
    /// Bytes that this process may still write, and all bytes of the file system.
    pub free: u64,
    pub total: u64,
}

/// `f_type` of tmpfs and ramfs (Linux `magic.h`).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// `sys` is `/sys` but in tests.
pub fn of(directory: &Path, sys: &Path) -> io::Result<Place> {
    let space = statvfs(directory)?;
    let kind = statfs(directory)?.f_type as u64;
    let number = fs::metadata(directory)?.dev();
    let (name, device) = drive(sys, major(number), minor(number));
    Ok(Place {
        device,
        name,
        in_memory: IN_MEMORY.contains(&(kind & 0xffff_ffff)),
        free: space.f_bavail.saturating_mul(space.f_frsize),
        total: space.f_blocks.saturating_mul(space.f_frsize),
    })
}

fn drive(sys: &Path, major: u32, minor: u32) -> (String, Option<DeviceId>) {
    // Overlay, btrfs and network file systems have a number that belongs to no block device.
    let Ok(block) = fs::canonicalize(sys.join(format!("dev/block/{major}:{minor}"))) else {
        return (format!("no block device of its own ({major}:{minor})"), None);
    };
    let file_name =
        |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // A partition's directory lies in its disk's.
    let disk = if block.join("partition").exists() { block.parent().unwrap_or(&block) } else { &block };
    let text = |file: &str| {
        Some(fs::read_to_string(disk.join(file)).ok()?.trim().to_owned()).filter(|t| !t.is_empty())
    };
    let serial = text("device/serial").or_else(|| text("serial"));
    let name = match text("device/model") {
        Some(model) => format!("{} ({model})", file_name(disk)),
        None => file_name(disk),
    };
    (name, serial.and_then(|serial| DeviceId::new(serial).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_named_after_its_drive_and_known_by_its_serial() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("devices/pci/nvme/nvme0/nvme0n1");
        let part = disk.join("nvme0n1p2");
        fs::create_dir_all(disk.join("device")).unwrap();
        fs::create_dir_all(&part).unwrap();
        fs::create_dir_all(sys.path().join("dev/block")).unwrap();
        fs::write(part.join("partition"), "2\n").unwrap();
        fs::write(disk.join("device/serial"), "S6XN   \n").unwrap();
        fs::write(disk.join("device/model"), "A DRIVE \n").unwrap();
        std::os::unix::fs::symlink(&part, sys.path().join("dev/block/259:3")).unwrap();
        let (name, device) = drive(sys.path(), 259, 3);
        assert_eq!((name.as_str(), device.unwrap().as_str()), ("nvme0n1 (A DRIVE)", "S6XN"));
        assert_eq!(drive(sys.path(), 0, 44).1, None);
    }
}
