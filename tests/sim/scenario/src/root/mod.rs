//! The blade's `/sys` and `/proc` as a directory tree, for programs that take another root than `/`.
//!
//! Only what a burn-in looks at. Written once, when the blade is made: faults of links, ports and DIMMs are in it,
//! what changes with time is in NVML and the kernel log.

mod bus;
mod machine;

use std::path::{Path, PathBuf};

use crate::blade::BladeScenario;

/// Name of the directory in a blade's directory; the agent reads it through `WHETSTONE_ROOT`.
pub const ROOT_DIR: &str = "root";

/// A tree under construction; the first error is kept and ends the rest.
struct Tree {
    base: PathBuf,
}

impl Tree {
    /// Writes a file of one line (sysfs ends each value with a newline).
    fn value(&self, path: &str, value: impl std::fmt::Display) -> std::io::Result<()> {
        self.text(path, &format!("{value}\n"))
    }

    fn text(&self, path: &str, text: &str) -> std::io::Result<()> {
        let path = self.base.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, text)
    }

    /// A symbolic link as sysfs has them, relative. Its target need not exist yet.
    fn link(&self, path: &str, target: &str) -> std::io::Result<()> {
        let up = "../".repeat(path.matches('/').count());
        let path = self.base.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::os::unix::fs::symlink(format!("{up}{target}"), path)
    }
}

/// Writes the tree of `blade` to `dir/root`, which must not exist yet.
pub fn write(blade: &BladeScenario, dir: &Path) -> std::io::Result<()> {
    let tree = Tree { base: dir.join(ROOT_DIR) };
    machine::write(&tree, blade)?;
    bus::write(&tree, blade)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dir: &Path, path: &str) -> String {
        std::fs::read_to_string(dir.join(ROOT_DIR).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    #[test]
    fn faults_of_links_ports_and_dimms_are_in_the_tree_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let text =
            "name='b'\nsku='h100'\nfault=[{gpu=2, kind='pcie_width', now=8}, {gpu=4, kind='gpu_missing'},
            {kind='ib_down', port=3}, {kind='dimm_errors', dimm=9, correctable=77}]";
        let blade = BladeScenario::parse("s", text).unwrap();
        write(&blade, dir.path()).unwrap();
        let pci = "sys/bus/pci/devices";
        assert_eq!(read(dir.path(), &format!("{pci}/0000:3a:00.0/current_link_width")), "8\n");
        assert_eq!(read(dir.path(), &format!("{pci}/0000:3a:00.0/max_link_width")), "16\n");
        assert_eq!(read(dir.path(), &format!("{pci}/0000:2a:00.0/current_link_width")), "16\n");
        assert!(!dir.path().join(ROOT_DIR).join(pci).join("0000:9a:00.0").exists());
        assert_eq!(read(dir.path(), "sys/class/infiniband/mlx5_3/ports/1/state"), "1: DOWN\n");
        assert_eq!(read(dir.path(), "sys/class/infiniband/mlx5_2/ports/1/state"), "4: ACTIVE\n");
        assert_eq!(read(dir.path(), "sys/devices/system/edac/mc/mc1/dimm1/dimm_ce_count"), "77\n");
        assert_eq!(read(dir.path(), "sys/devices/system/edac/mc/mc0/dimm1/dimm_ce_count"), "0\n");
        // Links lead somewhere.
        assert_eq!(read(dir.path(), "sys/class/infiniband/mlx5_0/device/vendor"), "0x15b3\n");
    }

    #[test]
    fn every_sku_has_a_tree() {
        for sku in crate::SimSku::names() {
            let dir = tempfile::tempdir().unwrap();
            let blade = BladeScenario::parse("s", &format!("name='b'\nsku='{sku}'")).unwrap();
            write(&blade, dir.path()).unwrap();
            for gpu in &blade.gpus {
                assert!(dir.path().join("root/sys/bus/pci/devices").join(&gpu.pci).join("class").exists());
            }
        }
    }
}
