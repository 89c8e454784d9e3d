//! The PCI tree: GPUs, NVSwitches, NICs, NVMe drives and the ports directly above them.

use std::collections::BTreeMap;

use whetstone_model::facts::{PciDevice, PciKind, PciLink, PciLinkMax};

use super::{Look, Root, is_pci_address};

const DEVICES: &str = "sys/bus/pci/devices";

const NVIDIA: u64 = 0x10de;

/// Devices listed at most.
const MAX_DEVICES: usize = 1024;

/// Reads the tree. `before` is an earlier look: what cannot change while a device stays in its slot is taken
/// from it.
pub fn read(root: &Root, before: &[PciDevice]) -> Look<Vec<PciDevice>> {
    root.source(DEVICES, |names| {
        let mut devices: Vec<PciDevice> = Vec::new();
        let mut ports: Vec<String> = Vec::new();
        // An address that was not of interest before is not looked at again unless the count of names changed,
        // which a caller shows by passing no earlier look.
        for address in names.iter().filter(|name| is_pci_address(name)) {
            let device = match before.iter().find(|known| known.address == *address) {
                Some(known) => Some(known.clone()),
                None if before.is_empty() => identify(root, address),
                None => None,
            };
            let Some(mut device) = device.filter(|device| device.kind != PciKind::Port) else { continue };
            refresh(root, &mut device);
            ports.extend(device.parent.clone());
            devices.push(device);
            if devices.len() == MAX_DEVICES {
                break;
            }
        }
        ports.sort();
        ports.dedup();
        for address in ports {
            let mut port = match before.iter().find(|known| known.address == address) {
                Some(known) => known.clone(),
                None => PciDevice { kind: PciKind::Port, ..describe(root, &address) },
            };
            refresh(root, &mut port);
            devices.push(port);
        }
        devices
    })
}

/// The device, if it is one of a kind that matters here.
fn identify(root: &Root, address: &str) -> Option<PciDevice> {
    let class = root.hex(&format!("{DEVICES}/{address}/class"))?;
    let vendor = root.hex(&format!("{DEVICES}/{address}/vendor"))?;
    let kind = kind_of(class, vendor)?;
    Some(PciDevice { kind, ..describe(root, address) })
}

/// Class codes: PCI Code and ID Assignment Specification.
fn kind_of(class: u64, vendor: u64) -> Option<PciKind> {
    match (class >> 8, vendor) {
        (0x0300 | 0x0302, NVIDIA) => Some(PciKind::Gpu),
        (0x0680, NVIDIA) => Some(PciKind::NvSwitch),
        (0x0200 | 0x0207 | 0x0280, _) => Some(PciKind::Nic),
        (0x0108, _) => Some(PciKind::Nvme),
        _ => None,
    }
}

fn describe(root: &Root, address: &str) -> PciDevice {
    let at = |name: &str| format!("{DEVICES}/{address}/{name}");
    let pair = |vendor: &str, device: &str| {
        Some(format!("{:04x}:{:04x}", root.hex(&at(vendor))?, root.hex(&at(device))?))
    };
    let parent = parent(root, address);
    let parent_max = parent.as_ref().map_or_else(PciLinkMax::default, |parent| PciLinkMax {
        speed_gts: speed(root, &format!("{DEVICES}/{parent}/max_link_speed")),
        width: width(root, &format!("{DEVICES}/{parent}/max_link_width")),
    });
    PciDevice {
        address: address.to_ascii_lowercase(),
        id: pair("vendor", "device").unwrap_or_default(),
        subsystem_id: pair("subsystem_vendor", "subsystem_device"),
        class: root.hex(&at("class")).map(|class| format!("{class:06x}")).unwrap_or_default(),
        driver: root.link_name(&at("driver")),
        numa_node: root.number(&at("numa_node")).filter(|node: &i32| *node >= 0),
        link: PciLink {
            max_speed_gts: speed(root, &at("max_link_speed")),
            max_width: width(root, &at("max_link_width")),
            ..PciLink::default()
        },
        parent,
        parent_max,
        has_aer: root.exists(&at("aer_dev_correctable")),
        ..PciDevice::default()
    }
}

/// The bridge directly above, read from where the device's link points: `…/0000:00:01.0/0000:01:00.0`.
fn parent(root: &Root, address: &str) -> Option<String> {
    let target = root.link(&format!("{DEVICES}/{address}"))?;
    let above = target.parent()?.file_name()?.to_str()?;
    is_pci_address(above).then(|| above.to_ascii_lowercase())
}

fn refresh(root: &Root, device: &mut PciDevice) {
    let base = format!("{DEVICES}/{}", device.address);
    device.link.speed_gts = speed(root, &format!("{base}/current_link_speed"));
    device.link.width = width(root, &format!("{base}/current_link_width"));
    if device.has_aer {
        device.aer_correctable = counters(root, &format!("{base}/aer_dev_correctable"));
        device.aer_non_fatal = counters(root, &format!("{base}/aer_dev_nonfatal"));
        device.aer_fatal = counters(root, &format!("{base}/aer_dev_fatal"));
    }
    if matches!(device.kind, PciKind::Gpu | PciKind::NvSwitch) {
        device.config_readable = config_readable(root, &base);
    }
}

/// A device that has left the bus answers every read with ones. The kernel makes the vendor id 0xffff then.
fn config_readable(root: &Root, base: &str) -> Option<bool> {
    use std::io::Read;
    let mut first = [0u8; 4];
    std::fs::File::open(root.path(&format!("{base}/config"))).ok()?.read_exact(&mut first).ok()?;
    Some(first != [0xff; 4])
}

/// `32.0 GT/s PCIe` → 32.0; `Unknown` → `None`.
fn speed(root: &Root, path: &str) -> Option<f64> {
    let text = root.text(path)?;
    let speed: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    (speed > 0.0 && speed < 1000.0).then_some(speed)
}

/// 0 and 255 mean that there is no link to speak of.
fn width(root: &Root, path: &str) -> Option<u32> {
    root.number(path).filter(|width| (1..=64).contains(width))
}

/// `NAME count` per line; zeros left out.
fn counters(root: &Root, path: &str) -> BTreeMap<String, u64> {
    let text = root.text(path).unwrap_or_default();
    text.lines()
        .take(64)
        .filter_map(|line| {
            let (name, count) = line.rsplit_once(char::is_whitespace)?;
            let count: u64 = count.parse().ok()?;
            (count > 0).then(|| (name.trim().to_owned(), count))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{link, plant};
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let port = "sys/devices/pci0000:15/0000:15:01.0";
        let gpu = format!("{port}/0000:17:00.0");
        let files = [
            (format!("{port}/class"), "0x060400\n"),
            (format!("{port}/vendor"), "0x8086\n"),
            (format!("{port}/device"), "0x352a\n"),
            (format!("{port}/max_link_speed"), "32.0 GT/s PCIe\n"),
            (format!("{port}/max_link_width"), "16\n"),
            (format!("{gpu}/class"), "0x030200\n"),
            (format!("{gpu}/vendor"), "0x10de\n"),
            (format!("{gpu}/device"), "0x2330\n"),
            (format!("{gpu}/subsystem_vendor"), "0x10de\n"),
            (format!("{gpu}/subsystem_device"), "0x16c1\n"),
            (format!("{gpu}/numa_node"), "0\n"),
            (format!("{gpu}/current_link_speed"), "32.0 GT/s PCIe\n"),
            (format!("{gpu}/max_link_speed"), "32.0 GT/s PCIe\n"),
            (format!("{gpu}/current_link_width"), "8\n"),
            (format!("{gpu}/max_link_width"), "16\n"),
            (format!("{gpu}/aer_dev_correctable"), "RxErr 0\nBadTLP 4\nTOTAL_ERR_COR 4\n"),
            (format!("{gpu}/aer_dev_nonfatal"), "Undefined 0\nTOTAL_ERR_NONFATAL 0\n"),
            (format!("{gpu}/aer_dev_fatal"), "DLP 1\nTOTAL_ERR_FATAL 1\n"),
            ("sys/devices/pci0000:00/0000:00:1f.0/class".to_owned(), "0x060100\n"),
            ("sys/devices/pci0000:00/0000:00:1f.0/vendor".to_owned(), "0x8086\n"),
        ];
        for (path, text) in &files {
            plant(dir.path(), &[(path, text)]);
        }
        std::fs::write(dir.path().join(format!("{gpu}/config")), [0xde, 0x10, 0x30, 0x23, 0, 0]).unwrap();
        link(dir.path(), "sys/bus/pci/devices/0000:15:01.0", "../../../devices/pci0000:15/0000:15:01.0");
        link(
            dir.path(),
            "sys/bus/pci/devices/0000:17:00.0",
            "../../../devices/pci0000:15/0000:15:01.0/0000:17:00.0",
        );
        link(dir.path(), "sys/bus/pci/devices/0000:00:1f.0", "../../../devices/pci0000:00/0000:00:1f.0");
        dir
    }

    fn devices(root: &Root, before: &[PciDevice]) -> Vec<PciDevice> {
        match read(root, before) {
            Look::Found(devices) => devices,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_gpu_is_read_with_its_port_and_nothing_else_is_listed() {
        let dir = tree();
        let found = devices(&Root::new(dir.path()), &[]);
        assert_eq!(found.len(), 2, "{found:?}");
        let gpu = &found[0];
        assert_eq!((gpu.kind, gpu.id.as_str()), (PciKind::Gpu, "10de:2330"));
        assert_eq!((gpu.link.width, gpu.link.max_width), (Some(8), Some(16)));
        assert_eq!(gpu.link.speed_gts, Some(32.0));
        assert_eq!(gpu.parent.as_deref(), Some("0000:15:01.0"));
        assert_eq!(gpu.parent_max.width, Some(16));
        assert_eq!(gpu.aer_correctable.get("BadTLP"), Some(&4));
        assert_eq!(gpu.aer_fatal.get("DLP"), Some(&1));
        assert!(gpu.aer_non_fatal.is_empty());
        assert_eq!(gpu.config_readable, Some(true));
        assert_eq!((found[1].kind, found[1].address.as_str()), (PciKind::Port, "0000:15:01.0"));
    }

    #[test]
    fn a_second_look_sees_what_changes_and_a_device_that_left_the_bus() {
        let dir = tree();
        let root = Root::new(dir.path());
        let first = devices(&root, &[]);
        let gpu = "sys/bus/pci/devices/0000:17:00.0";
        plant(dir.path(), &[(&format!("{gpu}/current_link_width"), "4\n")]);
        std::fs::write(dir.path().join(format!("{gpu}/config")), [0xff; 8]).unwrap();
        let second = devices(&root, &first);
        assert_eq!(second[0].link.width, Some(4));
        assert_eq!(second[0].config_readable, Some(false));
        assert_eq!(second[0].id, first[0].id);
        std::fs::remove_file(dir.path().join("sys/bus/pci/devices/0000:17:00.0")).unwrap();
        assert!(devices(&root, &first).is_empty());
    }
}
