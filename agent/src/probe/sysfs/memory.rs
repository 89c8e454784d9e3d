//! Main memory as the kernel counts it.

use whetstone_model::facts::{HugePages, Memory};

use super::Root;

const HUGEPAGES: &str = "sys/kernel/mm/hugepages";

pub fn read(root: &Root) -> Memory {
    let text = root.text("proc/meminfo").unwrap_or_default();
    let mib = |key: &str| {
        text.lines().find_map(|line| {
            let rest = line.strip_prefix(key)?.strip_prefix(':')?;
            Some(rest.split_ascii_whitespace().next()?.parse::<u64>().ok()? / 1024)
        })
    };
    Memory {
        total_mib: mib("MemTotal"),
        available_mib: mib("MemAvailable"),
        swap_total_mib: mib("SwapTotal"),
        hardware_corrupted_mib: mib("HardwareCorrupted"),
        hugepages: root
            .names(HUGEPAGES)
            .into_iter()
            .filter_map(|name| {
                let size_kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
                let at = |file: &str| root.number(&format!("{HUGEPAGES}/{name}/{file}")).unwrap_or(0);
                Some(HugePages { size_kib, total: at("nr_hugepages"), free: at("free_hugepages") })
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::plant;
    use super::*;

    #[test]
    fn memory_and_hugepages_are_read() {
        let dir = tempfile::tempdir().unwrap();
        plant(
            dir.path(),
            &[
                (
                    "proc/meminfo",
                    "MemTotal:  2097152 kB\nMemAvailable: 1048576 kB\nHardwareCorrupted:  2048 kB\n",
                ),
                ("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "4\n"),
                ("sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", "1\n"),
            ],
        );
        let memory = read(&Root::new(dir.path()));
        assert_eq!((memory.total_mib, memory.available_mib), (Some(2048), Some(1024)));
        assert_eq!(memory.hardware_corrupted_mib, Some(2));
        assert_eq!(memory.hugepages, [HugePages { size_kib: 1_048_576, total: 4, free: 1 }]);
    }
}
