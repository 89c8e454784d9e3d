//! CPUs and NUMA nodes.

use std::collections::BTreeSet;

use whetstone_model::facts::{Cpu, NumaNode};

use super::Root;

const CPUS: &str = "sys/devices/system/cpu";
const NODES: &str = "sys/devices/system/node";

/// Entries read from a list of CPUs at most.
const MAX_CPUS: u32 = 65_536;

pub fn read(root: &Root) -> Cpu {
    let info = root.text("proc/cpuinfo").unwrap_or_default();
    let value = |key: &str| {
        info.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key).then(|| value.trim().to_owned()).filter(|value| !value.is_empty())
        })
    };
    let microcode: BTreeSet<&str> = info
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() == "microcode")
        .map(|(_, value)| value.trim())
        .take(MAX_CPUS as usize)
        .collect();
    let online = root.text(&format!("{CPUS}/online")).map(|list| cpu_list(&list));
    let present = root.text(&format!("{CPUS}/present")).map(|list| cpu_list(&list));
    let topology = topology(root, online.as_deref().unwrap_or_default());
    Cpu {
        architecture: std::env::consts::ARCH.to_owned(),
        // Arm's cpuinfo has no model name; the firmware's name stands in the DMI table, which the host source reads.
        model: value("model name").or_else(|| value("Model")),
        microcode: microcode.into_iter().map(str::to_owned).collect(),
        sockets: topology.sockets,
        cores: topology.cores,
        threads: online.as_ref().map(|list| list.len() as u32),
        offline: online
            .zip(present)
            .map(|(online, present)| present.len().saturating_sub(online.len()) as u32),
        core_throttle_count: topology.core_throttles,
        package_throttle_count: topology.package_throttles,
    }
}

#[derive(Default)]
struct Topology {
    sockets: Option<u32>,
    cores: Option<u32>,
    core_throttles: Option<u64>,
    package_throttles: Option<u64>,
}

fn topology(root: &Root, cpus: &[u32]) -> Topology {
    let mut sockets = BTreeSet::new();
    let mut cores = BTreeSet::new();
    let (mut core_throttles, mut package_throttles) = (None, None);
    for cpu in cpus {
        let at = |name: &str| format!("{CPUS}/cpu{cpu}/{name}");
        let Some(socket) = root.number::<i64>(&at("topology/physical_package_id")) else { continue };
        let new_socket = sockets.insert(socket);
        let core: i64 = root.number(&at("topology/core_id")).unwrap_or(i64::from(*cpu));
        let die: i64 = root.number(&at("topology/die_id")).unwrap_or(0);
        // Throttle counts are per core and per package, but every thread shows them.
        if cores.insert((socket, die, core))
            && let Some(count) = root.number::<u64>(&at("thermal_throttle/core_throttle_count"))
        {
            core_throttles = Some(core_throttles.unwrap_or(0u64).saturating_add(count));
        }
        if new_socket && let Some(count) = root.number::<u64>(&at("thermal_throttle/package_throttle_count"))
        {
            package_throttles = Some(package_throttles.unwrap_or(0u64).saturating_add(count));
        }
    }
    let count = |n: usize| (n > 0).then_some(n as u32);
    Topology { sockets: count(sockets.len()), cores: count(cores.len()), core_throttles, package_throttles }
}

/// `0-3,8` → 0, 1, 2, 3, 8. What is not understood is left out.
pub fn cpu_list(text: &str) -> Vec<u32> {
    let mut cpus = Vec::new();
    for part in text.split(',').take(4096) {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else { continue };
        if first <= last && last < MAX_CPUS {
            cpus.extend(first..=last);
        }
    }
    cpus.sort_unstable();
    cpus.dedup();
    cpus
}

pub fn numa(root: &Root) -> Vec<NumaNode> {
    let numbers =
        root.names(NODES).into_iter().filter_map(|name| name.strip_prefix("node")?.parse::<u32>().ok());
    numbers
        .take(1024)
        .map(|node| {
            let at = |name: &str| format!("{NODES}/node{node}/{name}");
            let memory = root.text(&at("meminfo")).unwrap_or_default();
            NumaNode {
                node,
                cpus: root.text(&at("cpulist")).unwrap_or_default(),
                memory_total_mib: node_memory(&memory, "MemTotal:"),
                memory_free_mib: node_memory(&memory, "MemFree:"),
                distances: root
                    .text(&at("distance"))
                    .unwrap_or_default()
                    .split_ascii_whitespace()
                    .filter_map(|distance| distance.parse().ok())
                    .collect(),
            }
        })
        .collect()
}

/// `Node 0 MemTotal:  131072 kB`
fn node_memory(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(key)?;
        Some(rest.split_ascii_whitespace().next()?.parse::<u64>().ok()? / 1024)
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::plant;
    use super::*;

    #[test]
    fn lists_of_cpus_are_read_and_nonsense_is_left_out() {
        assert_eq!(cpu_list("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(cpu_list(""), [0u32; 0]);
        assert_eq!(cpu_list("3-1,x,0-99999999"), [0u32; 0]);
    }

    #[test]
    fn two_sockets_with_mixed_microcode_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let mut info = String::new();
        for cpu in 0..4 {
            let microcode = if cpu == 3 { "0x2b000590" } else { "0x2b0005c0" };
            info += &format!(
                "processor\t: {cpu}\nmodel name\t: Example CPU @ 2.0GHz\nmicrocode\t: {microcode}\n\n"
            );
            let at = |name: &str| format!("sys/devices/system/cpu/cpu{cpu}/{name}");
            plant(dir.path(), &[(&at("topology/physical_package_id"), &format!("{}\n", cpu / 2))]);
            plant(dir.path(), &[(&at("topology/core_id"), "0\n")]);
            plant(dir.path(), &[(&at("thermal_throttle/core_throttle_count"), "5\n")]);
            plant(dir.path(), &[(&at("thermal_throttle/package_throttle_count"), "7\n")]);
        }
        plant(
            dir.path(),
            &[
                ("proc/cpuinfo", &info),
                ("sys/devices/system/cpu/online", "0-3\n"),
                ("sys/devices/system/cpu/present", "0-5\n"),
                ("sys/devices/system/node/node0/cpulist", "0-3\n"),
                ("sys/devices/system/node/node0/distance", "10 21\n"),
                (
                    "sys/devices/system/node/node0/meminfo",
                    "Node 0 MemTotal:  1048576 kB\nNode 0 MemFree: 1024 kB\n",
                ),
            ],
        );
        let root = Root::new(dir.path());
        let cpu = read(&root);
        assert_eq!(cpu.model.as_deref(), Some("Example CPU @ 2.0GHz"));
        assert_eq!(cpu.microcode.len(), 2);
        assert_eq!((cpu.sockets, cpu.cores, cpu.threads, cpu.offline), (Some(2), Some(2), Some(4), Some(2)));
        assert_eq!((cpu.core_throttle_count, cpu.package_throttle_count), (Some(10), Some(14)));
        let nodes = numa(&root);
        assert_eq!((nodes[0].memory_total_mib, nodes[0].memory_free_mib), (Some(1024), Some(1)));
        assert_eq!(nodes[0].distances, [10, 21]);
    }
}
