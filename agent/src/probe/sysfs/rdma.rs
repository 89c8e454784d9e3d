//! InfiniBand and RoCE ports.

use std::collections::BTreeMap;

use whetstone_model::facts::IbPort;

use super::{Look, Root, pci_of};

const CLASS: &str = "sys/class/infiniband";

/// Counters of one port at most; real ones have under a hundred.
const MAX_COUNTERS: usize = 512;

/// Read each time while watching; the others only by a full look. These are what health rules judge.
const WATCHED: [&str; 12] = [
    "symbol_error",
    "link_error_recovery",
    "link_downed",
    "port_rcv_errors",
    "port_rcv_remote_physical_errors",
    "port_rcv_switch_relay_errors",
    "port_xmit_discards",
    "local_link_integrity_errors",
    "excessive_buffer_overrun_errors",
    "VL15_dropped",
    "port_rcv_data",
    "port_xmit_data",
];

/// All ports. With an earlier look (`before`), only states and the watched counters are read anew.
pub fn read(root: &Root, before: &[IbPort]) -> Look<Vec<IbPort>> {
    root.source(CLASS, |adapters| {
        let mut ports = Vec::new();
        for adapter in adapters {
            for port in root.names(&format!("{CLASS}/{adapter}/ports")) {
                let Ok(number) = port.parse::<u32>() else { continue };
                let known = before.iter().find(|known| known.adapter == adapter && known.port == number);
                let mut entry = known.cloned().unwrap_or_else(|| describe(root, &adapter, number));
                refresh(root, &mut entry, known.is_none());
                ports.push(entry);
            }
        }
        ports
    })
}

fn describe(root: &Root, adapter: &str, port: u32) -> IbPort {
    let at = |name: &str| format!("{CLASS}/{adapter}/{name}");
    IbPort {
        adapter: adapter.to_owned(),
        port,
        link_layer: root.text(&at(&format!("ports/{port}/link_layer"))),
        firmware: root.text(&at("fw_ver")),
        adapter_type: root.text(&at("hca_type")),
        board_id: root.text(&at("board_id")),
        node_guid: root.text(&at("node_guid")),
        pci: pci_of(root, &at("device")),
        numa_node: root.number(&at("device/numa_node")).filter(|node: &i32| *node >= 0),
        ..IbPort::default()
    }
}

fn refresh(root: &Root, port: &mut IbPort, all: bool) {
    let base = format!("{CLASS}/{}/ports/{}", port.adapter, port.port);
    port.state = named(root, &format!("{base}/state"));
    port.phys_state = named(root, &format!("{base}/phys_state"));
    port.rate_text = root.text(&format!("{base}/rate"));
    port.rate_gbps = port.rate_text.as_deref().and_then(rate);
    if all {
        port.counters = counters(root, &format!("{base}/counters"));
        port.hw_counters = counters(root, &format!("{base}/hw_counters"));
        // How long the driver keeps a reading, milliseconds; not a counter of the port.
        port.hw_counters.remove("lifespan");
        return;
    }
    for name in WATCHED {
        if let Some(slot) = port.counters.get_mut(name)
            && let Some(value) = root.number(&format!("{base}/counters/{name}"))
        {
            *slot = value;
        }
    }
}

/// `4: ACTIVE` → `ACTIVE`.
fn named(root: &Root, path: &str) -> Option<String> {
    let text = root.text(path)?;
    Some(text.split_once(':').map_or(text.as_str(), |(_, name)| name).trim().to_owned())
}

/// `400 Gb/sec (4X NDR)` → 400.0
fn rate(text: &str) -> Option<f64> {
    let (number, rest) = text.split_once(' ')?;
    let number: f64 = number.parse().ok()?;
    rest.starts_with("Gb/sec").then_some(number).filter(|rate| *rate > 0.0)
}

fn counters(root: &Root, directory: &str) -> BTreeMap<String, u64> {
    root.names(directory)
        .into_iter()
        .take(MAX_COUNTERS)
        .filter_map(|name| {
            let value = root.number(&format!("{directory}/{name}"))?;
            Some((name, value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::plant;
    use super::*;

    fn ports(root: &Root, before: &[IbPort]) -> Vec<IbPort> {
        match read(root, before) {
            Look::Found(ports) => ports,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_port_is_read_with_all_counters_and_a_watching_look_follows_it() {
        let dir = tempfile::tempdir().unwrap();
        let port = "sys/class/infiniband/mlx5_0/ports/1";
        let put = |name: &str, text: &str| plant(dir.path(), &[(&format!("{port}/{name}"), text)]);
        put("state", "4: ACTIVE\n");
        put("phys_state", "5: LinkUp\n");
        put("rate", "400 Gb/sec (4X NDR)\n");
        put("link_layer", "InfiniBand\n");
        put("counters/symbol_error", "0\n");
        put("counters/port_xmit_wait", "99\n");
        put("hw_counters/out_of_sequence", "3\n");
        put("hw_counters/lifespan", "12\n");
        let root = Root::new(dir.path());
        let first = ports(&root, &[]);
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].id(), "mlx5_0/1");
        assert_eq!(first[0].state.as_deref(), Some("ACTIVE"));
        assert_eq!(first[0].rate_gbps, Some(400.0));
        assert_eq!(first[0].counters.get("port_xmit_wait"), Some(&99));
        assert_eq!(first[0].hw_counters.len(), 1);
        put("state", "1: DOWN\n");
        put("counters/symbol_error", "7\n");
        let second = ports(&root, &first);
        assert_eq!(second[0].state.as_deref(), Some("DOWN"));
        assert_eq!(second[0].counters.get("symbol_error"), Some(&7));
    }

    #[test]
    fn a_real_h100_tree_is_read_completely() {
        let shared = std::env::var("WHETSTONE_SHARED_DATA")
            .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data").to_owned());
        let archive = format!("{shared}/sysfs/sys-class-infiniband-h100.tar.gz");
        if !std::path::Path::new(&archive).exists() {
            eprintln!("skipped: {archive} is not there");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let class = dir.path().join("sys/class/infiniband");
        std::fs::create_dir_all(&class).unwrap();
        let done = std::process::Command::new("tar")
            .args(["--strip-components=1", "-xzf", &archive, "-C"])
            .arg(&class)
            .status()
            .unwrap();
        assert!(done.success());
        let ports = ports(&Root::new(dir.path()), &[]);
        assert_eq!(ports.len(), 9);
        let infiniband: Vec<_> =
            ports.iter().filter(|p| p.link_layer.as_deref() == Some("InfiniBand")).collect();
        assert_eq!(infiniband.len(), 8);
        assert!(
            infiniband.iter().all(|p| p.rate_gbps == Some(400.0) && p.state.as_deref() == Some("ACTIVE"))
        );
        assert_eq!(ports[8].id(), "mlx5_bond_0/1");
        assert_eq!(ports[8].rate_gbps, Some(200.0));
        // 486 files: nine adapters, each with 3 + 4 attributes, 22 counters, 25 hw_counters of which one is no counter.
        let counters: usize = ports.iter().map(|p| p.counters.len() + p.hw_counters.len() + 1).sum();
        assert_eq!(counters + 9 * 7, 486);
    }
}
