//! Memory errors as EDAC counts them.

use whetstone_model::facts::{EdacDimm, MemoryController};

use super::{Look, Root};

const CONTROLLERS: &str = "sys/devices/system/edac/mc";

/// Memory controllers and DIMMs of one controller at most.
const MAX_PARTS: usize = 256;

pub fn read(root: &Root) -> Look<Vec<MemoryController>> {
    root.source(CONTROLLERS, |names| {
        let is_controller = |name: &String| name.strip_prefix("mc").is_some_and(|n| n.parse::<u32>().is_ok());
        names.into_iter().filter(is_controller).take(MAX_PARTS).map(|name| controller(root, name)).collect()
    })
}

fn controller(root: &Root, name: String) -> MemoryController {
    let base = format!("{CONTROLLERS}/{name}");
    // Older drivers name them rank*, not dimm*.
    let is_dimm = |part: &String| part.starts_with("dimm") || part.starts_with("rank");
    let dimms = root
        .names(&base)
        .into_iter()
        .filter(is_dimm)
        .take(MAX_PARTS)
        .map(|dimm| {
            let at = |file: &str| format!("{base}/{dimm}/{file}");
            EdacDimm {
                label: root.text(&at("dimm_label")),
                size_mib: root.number(&at("size")),
                corrected: root.number(&at("dimm_ce_count")),
                uncorrected: root.number(&at("dimm_ue_count")),
                name: format!("{name}/{dimm}"),
            }
        })
        .collect();
    MemoryController {
        driver: root.text(&format!("{base}/mc_name")),
        corrected: root.number(&format!("{base}/ce_count")),
        uncorrected: root.number(&format!("{base}/ue_count")),
        dimms,
        name,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::plant;
    use super::*;

    #[test]
    fn errors_are_read_by_controller_and_dimm() {
        let dir = tempfile::tempdir().unwrap();
        plant(
            dir.path(),
            &[
                ("sys/devices/system/edac/mc/mc0/mc_name", "Intel_10nm\n"),
                ("sys/devices/system/edac/mc/mc0/ce_count", "3\n"),
                ("sys/devices/system/edac/mc/mc0/ue_count", "0\n"),
                ("sys/devices/system/edac/mc/mc0/dimm0/dimm_label", "CPU_SrcID#0_MC#0_Chan#0_DIMM#0\n"),
                ("sys/devices/system/edac/mc/mc0/dimm0/dimm_ce_count", "3\n"),
                ("sys/devices/system/edac/mc/mc0/dimm0/dimm_ue_count", "0\n"),
                ("sys/devices/system/edac/mc/power/control", "auto\n"),
            ],
        );
        let Look::Found(controllers) = read(&Root::new(dir.path())) else { panic!("not found") };
        assert_eq!(controllers.len(), 1);
        assert_eq!((controllers[0].corrected, controllers[0].uncorrected), (Some(3), Some(0)));
        let dimm = &controllers[0].dimms[0];
        assert_eq!((dimm.name.as_str(), dimm.corrected), ("mc0/dimm0", Some(3)));
        assert_eq!(dimm.label.as_deref(), Some("CPU_SrcID#0_MC#0_Chan#0_DIMM#0"));
    }
}
