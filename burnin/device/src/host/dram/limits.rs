//! How much memory may be taken without the out-of-memory killer: what the kernel has available and what every
//! control group above this process still allows.

use std::fs;
use std::path::Path;

/// Bytes that this process could take now; `None` if the kernel does not say. `root` is `/` but in tests.
pub fn available(root: &Path) -> Option<u64> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let machine = field(&meminfo, "MemAvailable:").or_else(|| field(&meminfo, "MemFree:"))? * 1024;
    Some(headrooms(root).into_iter().fold(machine, u64::min))
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// What each control group from ours up to the root still allows.
fn headrooms(root: &Path) -> Vec<u64> {
    let ours = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in ours.lines().take(64) {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (mounts, limit, usage) = if controllers.is_empty() {
            (&["sys/fs/cgroup", "sys/fs/cgroup/unified"][..], "memory.max", "memory.current")
        } else if controllers.split(',').any(|c| c == "memory") {
            (&["sys/fs/cgroup/memory"][..], "memory.limit_in_bytes", "memory.usage_in_bytes")
        } else {
            continue;
        };
        for mount in mounts {
            // In a container the path is the host's and the mount begins at our own group: the mount itself is looked at too.
            let mut group = Some(Path::new(path.trim_start_matches('/')));
            while let Some(at) = group {
                found.extend(headroom(&root.join(mount).join(at), limit, usage));
                group = at.parent();
            }
        }
    }
    found
}

fn headroom(group: &Path, limit: &str, usage: &str) -> Option<u64> {
    let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
    // "max" and absent files mean no limit of this group.
    let limit = number(limit)?;
    // Page cache counts as usage though it would give way; the kernel names the part that gives way easily.
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cache = field(&stat, "inactive_file ").unwrap_or(0);
    Some(limit.saturating_sub(number(usage)?.saturating_sub(cache)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal: 900 kB\nMemFree: 100 kB\nMemAvailable:     800 kB\n");

    #[test]
    fn without_groups_it_is_what_the_machine_has() {
        assert_eq!(available(tree(&[MEMINFO]).path()), Some(800 * 1024));
        assert_eq!(available(tree(&[]).path()), None);
    }

    #[test]
    fn the_tightest_group_on_the_way_up_decides() {
        let root = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/pod/us\n"),
            ("sys/fs/cgroup/pod/us/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/us/memory.current", "5\n"),
            ("sys/fs/cgroup/pod/memory.max", "5000\n"),
            ("sys/fs/cgroup/pod/memory.current", "1200\n"),
            ("sys/fs/cgroup/pod/memory.stat", "anon 900\ninactive_file 200\n"),
        ]);
        assert_eq!(available(root.path()), Some(4000));
    }

    #[test]
    fn version_one_groups_and_containers_own_mounts_count_too() {
        let root = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "4:memory:/docker/abc\n1:cpu:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "4096\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "96\n"),
        ]);
        assert_eq!(available(root.path()), Some(4000));
    }
}
