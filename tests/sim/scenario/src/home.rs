//! A blade's directory: made here, opened by the simulated libraries.

use std::path::Path;

use crate::blade::{BLADE_FILE, BladeScenario};
use crate::{kmsg, root};

/// Writes `dir` (which must not exist, or be empty): `blade.json`, `root/` and the boot's kernel log.
/// On an error nothing of it is left.
pub fn make(blade: &BladeScenario, dir: &Path) -> std::io::Result<()> {
    if dir.exists() && std::fs::read_dir(dir)?.next().is_some() {
        return Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, "exists and is not empty"));
    }
    std::fs::create_dir_all(dir)?;
    fill(blade, dir).inspect_err(|_| {
        // Best effort: the error that led here is the one to tell.
        let _ = std::fs::remove_dir_all(dir);
    })
}

fn fill(blade: &BladeScenario, dir: &Path) -> std::io::Result<()> {
    let text = serde_json::to_string_pretty(blade).map_err(std::io::Error::other)?;
    std::fs::write(dir.join(BLADE_FILE), text + "\n")?;
    root::write(blade, dir)?;
    for (i, (priority, line)) in boot_lines(blade).into_iter().enumerate() {
        // A boot prints these within its first minute.
        kmsg::append(dir, i as u64, 400_000 * (i as u64 + 1), priority, &line)?;
    }
    Ok(())
}

/// What the kernel of such a blade prints as it starts: none of it is a fault.
fn boot_lines(blade: &BladeScenario) -> Vec<(u8, String)> {
    let mut lines = vec![
        (5, "Linux version 6.8.0-90-sim (simulated)".to_owned()),
        (6, "Command line: BOOT_IMAGE=/vmlinuz root=/dev/nvme0n1p2 ro quiet iommu=pt".to_owned()),
        (6, "ACPI: Interpreter enabled".to_owned()),
        (6, "pcieport 0040:00:00.0: AER: enabled with IRQ 34".to_owned()),
        (6, "EDAC MC: Ver: 3.0.0".to_owned()),
        (6, "nvme nvme0: pci function 0000:e0:00.0".to_owned()),
        (6, "mlx5_core 0000:c0:00.0: firmware version: 28.43.2026".to_owned()),
    ];
    if !blade.gpus.is_empty() {
        lines.push((4, "nvidia: module license 'Dual MIT/GPL' taints kernel.".to_owned()));
        lines.push((6, format!("NVRM: loading NVIDIA UNIX Open Kernel Module  {}", blade.driver)));
        lines.push((6, "nvidia-uvm: Loaded the UVM driver, major device number 510.".to_owned()));
    }
    lines
}
