//! The physical network ports as sysfs shows them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use whetstone_model::device::DeviceId;

/// Ports looked at; a bound on what a strange sysfs could make of it.
const MAX_PORTS: usize = 256;

/// Counters of the medium (`Documentation/ABI/testing/sysfs-class-net-statistics`). Drops are not among them: a busy host drops
/// packets that arrived whole.
const ERRORS: [&str; 7] = [
    "rx_errors",
    "rx_crc_errors",
    "rx_frame_errors",
    "rx_length_errors",
    "tx_errors",
    "tx_carrier_errors",
    "tx_aborted_errors",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// `eth0`.
    pub name: String,
    /// PCI address, where it has one.
    pub device: Option<DeviceId>,
    pub up: bool,
    /// Megabits per second; none for ports that do not say (virtual ones, ports that are down).
    pub speed_mbps: Option<u32>,
    pub carrier_changes: u64,
    pub errors: BTreeMap<String, u64>,
}

/// Every port with a device behind it; `sys` is `/sys` but in tests.
pub fn physical(sys: &Path) -> Vec<Port> {
    let Ok(entries) = fs::read_dir(sys.join("class/net")) else { return Vec::new() };
    let mut ports: Vec<Port> =
        entries.flatten().take(MAX_PORTS).filter_map(|entry| port(&entry.path())).collect();
    ports.sort_by(|a, b| a.name.cmp(&b.name));
    ports
}

fn port(at: &Path) -> Option<Port> {
    // Bridges, bonds and tunnels have no device.
    let device = fs::canonicalize(at.join("device")).ok()?;
    let text = |file: &str| Some(fs::read_to_string(at.join(file)).ok()?.trim().to_owned());
    let number = |file: &str| text(file)?.parse::<u64>().ok();
    let is_pci = |name: &str| name.len() == 12 && name.as_bytes()[4] == b':' && name.as_bytes()[10] == b'.';
    let address = device.file_name()?.to_str().filter(|name| name.is_ascii() && is_pci(name));
    Some(Port {
        name: at.file_name()?.to_str()?.to_owned(),
        device: address.and_then(|address| DeviceId::new(address.to_ascii_lowercase()).ok()),
        up: text("operstate").is_some_and(|state| state == "up"),
        speed_mbps: number("speed").and_then(|speed| u32::try_from(speed).ok()).filter(|speed| *speed > 0),
        carrier_changes: number("carrier_changes").unwrap_or(0),
        errors: ERRORS
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), number(&format!("statistics/{name}"))?)))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ports_with_a_device_are_read() {
        let sys = tempfile::tempdir().unwrap();
        let pci = sys.path().join("devices/pci0000:00/0000:3B:00.1");
        let net = sys.path().join("class/net");
        for (name, real) in [("eth0", true), ("lo", false)] {
            fs::create_dir_all(net.join(name).join("statistics")).unwrap();
            fs::write(net.join(name).join("operstate"), "up\n").unwrap();
            fs::write(net.join(name).join("speed"), if real { "100000\n" } else { "-1\n" }).unwrap();
            fs::write(net.join(name).join("carrier_changes"), "2\n").unwrap();
            fs::write(net.join(name).join("statistics/rx_crc_errors"), "5\n").unwrap();
        }
        fs::create_dir_all(&pci).unwrap();
        std::os::unix::fs::symlink(&pci, net.join("eth0/device")).unwrap();
        let ports = physical(sys.path());
        let expected = Port {
            name: "eth0".into(),
            device: DeviceId::new("0000:3b:00.1").ok(),
            up: true,
            speed_mbps: Some(100_000),
            carrier_changes: 2,
            errors: [("rx_crc_errors".to_owned(), 5)].into(),
        };
        assert_eq!(ports, [expected]);
    }
}
