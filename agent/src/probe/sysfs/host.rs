//! Names and serials of the machine, its kernel, the limits that the probe runs under, and its clock.

use whetstone_model::facts::{Cgroup, ClockSync, Host, Kernel};

use super::{Look, Root};

const DMI: &str = "sys/class/dmi/id";

pub fn host(root: &Root) -> Host {
    let dmi = |name: &str| {
        // Boards without a serial carry one of these.
        let placeholder = ["Default string", "To Be Filled By O.E.M.", "Not Specified", "None", "0123456789"];
        root.text(&format!("{DMI}/{name}")).filter(|text| !placeholder.contains(&text.as_str()))
    };
    let of_tree = |name: &str| root.text(&format!("proc/device-tree/{name}"));
    Host {
        hostname: root.text("proc/sys/kernel/hostname"),
        machine_id: root.text("etc/machine-id"),
        boot_id: root.text("proc/sys/kernel/random/boot_id"),
        uptime_s: root
            .text("proc/uptime")
            .and_then(|text| text.split_ascii_whitespace().next()?.parse::<f64>().ok())
            .filter(|uptime| uptime.is_finite()),
        vendor: dmi("sys_vendor"),
        product: dmi("product_name").or_else(|| of_tree("model")),
        serial: dmi("product_serial").or_else(|| of_tree("serial-number")),
        board_name: dmi("board_name"),
        board_serial: dmi("board_serial"),
        chassis_serial: dmi("chassis_serial"),
        bios_version: dmi("bios_version"),
        bios_date: dmi("bios_date"),
    }
}

pub fn kernel(root: &Root) -> Kernel {
    Kernel {
        release: root.text("proc/sys/kernel/osrelease"),
        version: root.text("proc/sys/kernel/version"),
        cmdline: root.text("proc/cmdline"),
        tainted: root.number("proc/sys/kernel/tainted"),
    }
}

/// Limits of this process's own group; every group above it may set a tighter one.
pub fn cgroup(root: &Root) -> Look<Cgroup> {
    let Some(groups) = root.text("proc/self/cgroup") else {
        return Look::Absent("no /proc/self/cgroup".to_owned());
    };
    // "0::/path" is the unified hierarchy.
    let unified = groups.lines().find_map(|line| line.strip_prefix("0::"));
    if let Some(path) = unified
        && root.exists("sys/fs/cgroup/cgroup.controllers")
    {
        return Look::Found(version_2(root, path));
    }
    let of = |controller: &str| {
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            controllers.split(',').any(|c| c == controller).then(|| path.to_owned())
        })
    };
    Look::Found(version_1(root, of))
}

/// Levels of groups walked at most.
const MAX_LEVELS: usize = 64;

fn version_2(root: &Root, path: &str) -> Cgroup {
    let mut group = Cgroup {
        version: Some(2),
        path: Some(path.to_owned()),
        cpu_limit: None,
        memory_limit_mib: None,
        cpuset: None,
    };
    let mut level = path.trim_matches('/').to_owned();
    for _ in 0..MAX_LEVELS {
        // In a container the path may be the host's view and lie outside of what is mounted: only the root is left.
        let base =
            if level.is_empty() { "sys/fs/cgroup".to_owned() } else { format!("sys/fs/cgroup/{level}") };
        let cpu = root.text(&format!("{base}/cpu.max")).and_then(|text| {
            let (quota, period) = text.split_once(' ')?;
            Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
        });
        group.cpu_limit = least(group.cpu_limit, cpu.filter(|limit| limit.is_finite() && *limit > 0.0));
        let memory = root.number::<u64>(&format!("{base}/memory.max")).map(|bytes| bytes >> 20);
        group.memory_limit_mib = group.memory_limit_mib.into_iter().chain(memory).min();
        if group.cpuset.is_none() {
            group.cpuset = root.text(&format!("{base}/cpuset.cpus.effective"));
        }
        if level.is_empty() {
            break;
        }
        level = level.rsplit_once('/').map(|(above, _)| above.to_owned()).unwrap_or_default();
    }
    group
}

fn version_1(root: &Root, of: impl Fn(&str) -> Option<String>) -> Cgroup {
    // Inside a container the host's path is not there, and the mount's own root is the container's group.
    let number = |controller: &str, file: &str| -> Option<i64> {
        let path = of(controller).unwrap_or_default();
        let path = path.trim_matches('/');
        root.number(&format!("sys/fs/cgroup/{controller}/{path}/{file}"))
            .or_else(|| root.number(&format!("sys/fs/cgroup/{controller}/{file}")))
    };
    let cpu_limit = number("cpu", "cpu.cfs_quota_us").filter(|quota| *quota > 0).and_then(|quota| {
        let period = number("cpu", "cpu.cfs_period_us").filter(|period| *period > 0)?;
        Some(quota as f64 / period as f64)
    });
    Cgroup {
        version: Some(1),
        path: of("memory"),
        cpu_limit,
        memory_limit_mib: number("memory", "memory.limit_in_bytes")
            .and_then(|bytes| u64::try_from(bytes).ok())
            // "No limit" is the largest page-aligned number.
            .filter(|bytes| *bytes < 1 << 60)
            .map(|bytes| bytes >> 20),
        cpuset: root.text("sys/fs/cgroup/cpuset/cpuset.cpus"),
    }
}

fn least(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

const CLOCKSOURCE: &str = "sys/devices/system/clocksource/clocksource0";

/// What files say about the clock: `systemd-timesyncd` leaves a stamp when it has set it. The kernel's own answer
/// is a system call and is asked by the caller.
pub fn clock(root: &Root) -> ClockSync {
    let available = root.text(&format!("{CLOCKSOURCE}/available_clocksource")).unwrap_or_default();
    ClockSync {
        synchronised: root.exists("run/systemd/timesync/synchronized").then_some(true),
        clocksource: root.text(&format!("{CLOCKSOURCE}/current_clocksource")),
        clocksources_available: available.split_ascii_whitespace().take(16).map(str::to_owned).collect(),
        ..ClockSync::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::plant;
    use super::*;

    #[test]
    fn serials_are_read_and_placeholders_are_not() {
        let dir = tempfile::tempdir().unwrap();
        plant(
            dir.path(),
            &[
                ("sys/class/dmi/id/product_serial", "J100XYZ\n"),
                ("sys/class/dmi/id/chassis_serial", "Default string\n"),
                ("proc/uptime", "12.5 20.0\n"),
                ("proc/sys/kernel/hostname", "b-003\n"),
            ],
        );
        let host = host(&Root::new(dir.path()));
        assert_eq!(host.serial.as_deref(), Some("J100XYZ"));
        assert_eq!(host.chassis_serial, None);
        assert_eq!((host.uptime_s, host.hostname.as_deref()), (Some(12.5), Some("b-003")));
    }

    #[test]
    fn the_tightest_limit_on_the_way_up_holds() {
        let dir = tempfile::tempdir().unwrap();
        plant(
            dir.path(),
            &[
                ("proc/self/cgroup", "0::/a/b\n"),
                ("sys/fs/cgroup/cgroup.controllers", "cpu memory\n"),
                ("sys/fs/cgroup/a/cpu.max", "200000 100000\n"),
                ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
                ("sys/fs/cgroup/a/b/memory.max", "1073741824\n"),
                ("sys/fs/cgroup/a/memory.max", "max\n"),
                ("sys/fs/cgroup/cpuset.cpus.effective", "0-7\n"),
            ],
        );
        let Look::Found(group) = cgroup(&Root::new(dir.path())) else { panic!("absent") };
        assert_eq!(
            (group.version, group.cpu_limit, group.memory_limit_mib),
            (Some(2), Some(2.0), Some(1024))
        );
        assert_eq!(group.cpuset.as_deref(), Some("0-7"));
    }

    #[test]
    fn the_first_version_of_control_groups_is_understood_too() {
        let dir = tempfile::tempdir().unwrap();
        plant(
            dir.path(),
            &[
                ("proc/self/cgroup", "4:memory:/job\n3:cpu,cpuacct:/job\n"),
                ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000\n"),
                ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ],
        );
        let Look::Found(group) = cgroup(&Root::new(dir.path())) else { panic!("absent") };
        assert_eq!((group.version, group.cpu_limit, group.memory_limit_mib), (Some(1), Some(1.5), None));
    }
}
