//! sysfs and procfs under a root that can be chosen: `/`, a container's mount of the host, a simulated blade.

pub mod cpu;
pub mod dmi;
pub mod edac;
pub mod host;
pub mod memory;
pub mod net;
pub mod nvme;
pub mod pci;
pub mod rdma;

use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest attribute file that is read; sysfs attributes are at most a page, `/proc/cpuinfo` of a large machine
/// is the longest by far.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Entries of one directory at most.
const MAX_ENTRIES: usize = 8192;

/// What a source has to say.
#[derive(Debug, Clone, PartialEq)]
pub enum Look<T> {
    Found(T),
    /// This machine does not have it.
    Absent(String),
    Error(String),
}

/// Where `/` is.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Root {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// True if this is the machine's own root: only then may programs be run to learn about it.
    pub fn is_real(&self) -> bool {
        self.0 == Path::new("/")
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.0.join(relative.trim_start_matches('/'))
    }

    /// Bytes of a file, `None` if it cannot be read. Bounded.
    pub fn bytes(&self, relative: &str) -> Option<Vec<u8>> {
        let file = std::fs::File::open(self.path(relative)).ok()?;
        let mut bytes = Vec::new();
        // Some attributes (a NIC's speed while it is down) fail on read, not on open.
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Text of a file without the white space around it; `None` if it is not there or empty. Bytes that are not
    /// UTF-8 and control characters other than line breaks and tabs are replaced: it ends up on terminals.
    pub fn text(&self, relative: &str) -> Option<String> {
        let bytes = self.bytes(relative)?;
        let text = String::from_utf8_lossy(&bytes);
        let clean = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
        // DMI strings and device-tree values end in NUL.
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        (!text.is_empty()).then(|| text.chars().map(clean).collect())
    }

    pub fn number<T: std::str::FromStr>(&self, relative: &str) -> Option<T> {
        let file = std::fs::File::open(self.path(relative)).ok()?;
        let mut buffer = [0u8; 64];
        // One read is one attribute: sysfs gives it whole.
        let length = (&file).take(64).read(&mut buffer).ok()?;
        std::str::from_utf8(&buffer[..length]).ok()?.trim().parse().ok()
    }

    /// Hexadecimal with or without `0x`.
    pub fn hex(&self, relative: &str) -> Option<u64> {
        let text = self.text(relative)?;
        u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
    }

    /// Names in a directory, sorted; numbers within names in their order (`mlx5_2` before `mlx5_10`).
    pub fn list(&self, relative: &str) -> Result<Vec<String>, std::io::Error> {
        let mut names: Vec<String> = std::fs::read_dir(self.path(relative))?
            .take(MAX_ENTRIES)
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort_by_cached_key(|name| natural(name));
        Ok(names)
    }

    /// Names in a directory; none if it is not there.
    pub fn names(&self, relative: &str) -> Vec<String> {
        self.list(relative).unwrap_or_default()
    }

    pub fn exists(&self, relative: &str) -> bool {
        self.path(relative).exists()
    }

    /// Where a symbolic link points, as it is written there.
    pub fn link(&self, relative: &str) -> Option<PathBuf> {
        std::fs::read_link(self.path(relative)).ok()
    }

    /// Last part of where a symbolic link points: `device/driver` → `nvme`.
    pub fn link_name(&self, relative: &str) -> Option<String> {
        self.link(relative)?.file_name()?.to_str().map(str::to_owned)
    }

    /// A directory that holds a source, or what its absence means.
    pub fn source<T>(&self, relative: &str, read: impl FnOnce(Vec<String>) -> T) -> Look<T> {
        match self.list(relative) {
            Ok(names) => Look::Found(read(names)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Look::Absent(format!("no /{relative}"))
            }
            Err(error) => Look::Error(format!("/{relative}: {error}")),
        }
    }
}

/// Sort key: runs of digits compare as numbers.
fn natural(name: &str) -> Vec<(u64, String)> {
    let mut key: Vec<(u64, String)> = vec![(0, String::new())];
    for c in name.chars() {
        let last = key.len() - 1;
        if let Some(digit) = c.to_digit(10) {
            if key[last].1.is_empty() && last > 0 {
                key[last].0 = key[last].0.saturating_mul(10).saturating_add(u64::from(digit));
            } else {
                key.push((u64::from(digit), String::new()));
            }
        } else {
            key[last].1.push(c);
        }
    }
    key
}

/// A PCI address as sysfs writes it, `dddd:bb:dd.f`.
pub fn is_pci_address(text: &str) -> bool {
    let shape = |part: &str, len: std::ops::RangeInclusive<usize>| {
        len.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit())
    };
    let mut parts = text.splitn(3, ':');
    let (Some(domain), Some(bus), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let Some((device, function)) = rest.split_once('.') else { return false };
    shape(domain, 4..=8) && shape(bus, 2..=2) && shape(device, 2..=2) && shape(function, 1..=1)
}

/// The PCI address that a `device` link ends in, if it is a PCI device: NICs of a bond, for instance, are not.
pub fn pci_of(root: &Root, device_link: &str) -> Option<String> {
    let target = root.link(device_link)?;
    // NVMe and RDMA devices hang directly below their PCI function; some classes have a level in between.
    target
        .components()
        .rev()
        .take(3)
        .filter_map(|part| part.as_os_str().to_str())
        .find(|part| is_pci_address(part))
        .map(|address| address.to_ascii_lowercase())
}

#[cfg(test)]
pub(crate) mod testing {
    //! Trees for tests.

    use std::path::Path;

    /// Writes `path: text` pairs below a directory.
    pub fn plant(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    /// A symbolic link, with its directory.
    pub fn link(root: &Path, at: &str, target: &str) {
        let at = root.join(at);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, at).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_by_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["mlx5_10", "mlx5_2", "mlx5_bond_0", "mlx5_1"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let root = Root::new(dir.path());
        assert_eq!(root.list("").unwrap(), ["mlx5_1", "mlx5_2", "mlx5_10", "mlx5_bond_0"]);
    }

    #[test]
    fn a_missing_directory_is_absent_and_a_file_in_its_place_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        testing::plant(dir.path(), &[("sys/class/infiniband", "not a directory")]);
        let root = Root::new(dir.path());
        assert!(matches!(root.source("sys/class/nvme", |_| ()), Look::Absent(_)));
        assert!(matches!(root.source("sys/class/infiniband", |_| ()), Look::Error(_)));
    }

    #[test]
    fn hostile_text_is_made_harmless() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("serial"), b"AB\x1b[2J\xff\0\n").unwrap();
        assert_eq!(Root::new(dir.path()).text("serial").unwrap(), "AB\u{fffd}[2J\u{fffd}");
    }

    #[test]
    fn pci_addresses_are_recognised() {
        assert!(is_pci_address("0000:1b:00.0"));
        assert!(is_pci_address("10000:01:00.0"));
        assert!(!is_pci_address("pci0000:00"));
        assert!(!is_pci_address("0000:1b:00"));
    }
}
