//! Network interfaces.

use whetstone_model::facts::Nic;

use super::{Look, Root, pci_of};

const CLASS: &str = "sys/class/net";

/// Interfaces listed at most: a node full of containers has thousands of virtual ones.
const MAX_INTERFACES: usize = 256;

/// Error counters that are kept when they are not zero.
const ERRORS: [&str; 8] = [
    "rx_errors",
    "tx_errors",
    "rx_dropped",
    "tx_dropped",
    "rx_crc_errors",
    "rx_frame_errors",
    "rx_missed_errors",
    "tx_carrier_errors",
];

/// `IFF_UP`.
const FLAG_UP: u64 = 1;

/// Interfaces of hardware, and bonds; not loopback, bridges, tunnels and containers' pairs.
pub fn read(root: &Root) -> Look<Vec<Nic>> {
    root.source(CLASS, |names| {
        names
            .into_iter()
            .filter(|name| {
                root.exists(&format!("{CLASS}/{name}/device"))
                    || root.exists(&format!("{CLASS}/{name}/bonding"))
            })
            .take(MAX_INTERFACES)
            .map(|name| interface(root, name))
            .collect()
    })
}

fn interface(root: &Root, name: String) -> Nic {
    let at = |attribute: &str| format!("{CLASS}/{name}/{attribute}");
    Nic {
        mac: root.text(&at("address")),
        operstate: root.text(&at("operstate")),
        admin_up: root.hex(&at("flags")).map(|flags| flags & FLAG_UP != 0),
        // Reading it fails while the link is down, and is -1 for some drivers.
        speed_mbps: root
            .number::<i64>(&at("speed"))
            .and_then(|speed| u64::try_from(speed).ok())
            .filter(|s| *s > 0),
        mtu: root.number(&at("mtu")),
        driver: root.link_name(&at("device/driver")),
        pci: pci_of(root, &at("device")),
        carrier_changes: root.number(&at("carrier_changes")),
        errors: ERRORS
            .iter()
            .filter_map(|error| {
                let count: u64 = root.number(&at(&format!("statistics/{error}")))?;
                (count > 0).then(|| ((*error).to_owned(), count))
            })
            .collect(),
        name,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{link, plant};
    use super::*;

    #[test]
    fn interfaces_of_hardware_are_listed_and_virtual_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        plant(
            dir.path(),
            &[
                ("sys/class/net/lo/mtu", "65536\n"),
                ("sys/class/net/eth0/mtu", "9000\n"),
                ("sys/class/net/eth0/flags", "0x1003\n"),
                ("sys/class/net/eth0/operstate", "down\n"),
                ("sys/class/net/eth0/speed", "-1\n"),
                ("sys/class/net/eth0/carrier_changes", "5\n"),
                ("sys/class/net/eth0/statistics/rx_crc_errors", "12\n"),
                ("sys/class/net/eth0/statistics/tx_errors", "0\n"),
            ],
        );
        std::fs::create_dir_all(dir.path().join("sys/devices/0000:3b:00.0")).unwrap();
        link(dir.path(), "sys/class/net/eth0/device", "../../../devices/0000:3b:00.0");
        let Look::Found(nics) = read(&Root::new(dir.path())) else { panic!("not found") };
        assert_eq!(nics.len(), 1);
        let nic = &nics[0];
        assert_eq!((nic.name.as_str(), nic.pci.as_deref()), ("eth0", Some("0000:3b:00.0")));
        assert_eq!((nic.admin_up, nic.speed_mbps, nic.carrier_changes), (Some(true), None, Some(5)));
        assert_eq!(nic.errors.len(), 1);
        assert_eq!(nic.errors.get("rx_crc_errors"), Some(&12));
    }
}
