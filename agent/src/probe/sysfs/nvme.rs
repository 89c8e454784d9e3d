//! NVMe drives: what sysfs says, and the health log by `nvme` (nvme-cli) or `smartctl` where one is installed.
//! The log itself needs an administrator's ioctl, which the agent does not do on its own.

use std::time::Duration;

use whetstone_model::facts::{NvmeDrive, NvmeSmart};

use super::{Look, Root, pci_of};
use crate::probe::tool;

const CLASS: &str = "sys/class/nvme";

/// Drives asked at most.
const MAX_DRIVES: usize = 64;

/// A drive whose firmware does not answer the log in this time is left to its `state` file.
const SMART_LIMIT: Duration = Duration::from_secs(3);

/// All drives. With an earlier look, its health logs are kept: they are only asked for by a full look, and only
/// of the machine's own drives (never under another root).
pub fn read(root: &Root, before: &[NvmeDrive]) -> Look<Vec<NvmeDrive>> {
    root.source(CLASS, |names| {
        let is_drive = |name: &String| name.strip_prefix("nvme").is_some_and(|n| n.parse::<u32>().is_ok());
        let mut drives: Vec<NvmeDrive> = names
            .into_iter()
            .filter(is_drive)
            .take(MAX_DRIVES)
            .map(|name| match before.iter().find(|known| known.name == name) {
                Some(known) => {
                    let state = root.text(&format!("{CLASS}/{name}/state"));
                    NvmeDrive { state, temperature_c: temperature(root, &name), ..known.clone() }
                }
                None => drive(root, name),
            })
            .collect();
        if root.is_real() && before.is_empty() {
            for drive in &mut drives {
                if let Some((source, smart)) = smart(&drive.name) {
                    (drive.smart_source, drive.smart) = (Some(source.to_owned()), Some(smart));
                }
            }
        }
        drives
    })
}

fn drive(root: &Root, name: String) -> NvmeDrive {
    let base = format!("{CLASS}/{name}");
    let at = |file: &str| root.text(&format!("{base}/{file}"));
    // Namespaces: nvme0n1, or nvme0c0n1 with multipath; partitions are not listed here.
    let sectors: Vec<u64> = root
        .names(&base)
        .into_iter()
        .filter(|entry| entry.starts_with(&name))
        .filter_map(|entry| root.number(&format!("{base}/{entry}/size")))
        .collect();
    NvmeDrive {
        model: at("model"),
        serial: at("serial"),
        firmware: at("firmware_rev"),
        state: at("state"),
        transport: at("transport"),
        pci: at("address")
            .filter(|address| super::is_pci_address(address))
            .or_else(|| pci_of(root, &format!("{base}/device"))),
        numa_node: root.number(&format!("{base}/numa_node")).filter(|node: &i32| *node >= 0),
        // The kernel counts in 512-byte sectors whatever the drive's own.
        size_bytes: (!sectors.is_empty())
            .then(|| sectors.iter().fold(0u64, |sum, s| sum.saturating_add(*s)) * 512),
        temperature_c: temperature(root, &name),
        smart_source: None,
        smart: None,
        name,
    }
}

fn temperature(root: &Root, name: &str) -> Option<i32> {
    let base = format!("{CLASS}/{name}");
    let sensor =
        root.names(&base).into_iter().find(|entry| entry.starts_with("hwmon")).and_then(|entry| {
            // Either hwmon3 directly, or hwmon/hwmon3 on older kernels.
            let direct = format!("{base}/{entry}");
            if root.exists(&format!("{direct}/temp1_input")) {
                return Some(direct);
            }
            root.names(&direct).into_iter().map(|inner| format!("{direct}/{inner}")).next()
        })?;
    root.number::<i32>(&format!("{sensor}/temp1_input")).map(|millidegrees| millidegrees / 1000)
}

fn smart(name: &str) -> Option<(&'static str, NvmeSmart)> {
    let device = format!("/dev/{name}");
    if let Some(text) = tool::answer("nvme", &["smart-log", "--output-format=json", &device], SMART_LIMIT)
        && let Some(smart) = from_nvme_cli(&text)
    {
        return Some(("nvme", smart));
    }
    let text = tool::answer("smartctl", &["--json", "--health", "--attributes", &device], SMART_LIMIT)?;
    Some(("smartctl", from_smartctl(&text)?))
}

/// `nvme smart-log -o json`
fn from_nvme_cli(text: &str) -> Option<NvmeSmart> {
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    let number = |key: &str| json.get(key)?.as_u64().or_else(|| json.get(key)?.as_str()?.parse().ok());
    // An object in newer releases, a number in older ones.
    let warning = json.get("critical_warning")?;
    let critical_warning = warning
        .as_u64()
        .or_else(|| warning.get("value")?.as_u64())
        .and_then(|bits| u32::try_from(bits).ok())?;
    Some(NvmeSmart {
        critical_warning,
        available_spare_percent: number("avail_spare").and_then(|n| u32::try_from(n).ok()),
        spare_threshold_percent: number("spare_thresh").and_then(|n| u32::try_from(n).ok()),
        percentage_used: number("percent_used")
            .or_else(|| number("percentage_used"))
            .and_then(|n| u32::try_from(n).ok()),
        media_errors: number("media_errors"),
        error_log_entries: number("num_err_log_entries"),
        power_on_hours: number("power_on_hours"),
        unsafe_shutdowns: number("unsafe_shutdowns"),
    })
}

/// `smartctl --json -H -A`
fn from_smartctl(text: &str) -> Option<NvmeSmart> {
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    let log = json.get("nvme_smart_health_information_log")?;
    let number = |key: &str| log.get(key)?.as_u64();
    let small = |key: &str| number(key).and_then(|n| u32::try_from(n).ok());
    Some(NvmeSmart {
        critical_warning: small("critical_warning")?,
        available_spare_percent: small("available_spare"),
        spare_threshold_percent: small("available_spare_threshold"),
        percentage_used: small("percentage_used"),
        media_errors: number("media_errors"),
        error_log_entries: number("num_err_log_entries"),
        power_on_hours: number("power_on_hours"),
        unsafe_shutdowns: number("unsafe_shutdowns"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::plant;
    use super::*;

    #[test]
    fn a_drive_is_read_from_sysfs() {
        let dir = tempfile::tempdir().unwrap();
        plant(
            dir.path(),
            &[
                ("sys/class/nvme/nvme0/model", "EXAMPLE 3.84TB   \n"),
                ("sys/class/nvme/nvme0/serial", "S1\n"),
                ("sys/class/nvme/nvme0/state", "live\n"),
                ("sys/class/nvme/nvme0/address", "0000:c1:00.0\n"),
                ("sys/class/nvme/nvme0/nvme0n1/size", "7501476528\n"),
                ("sys/class/nvme/nvme0/hwmon3/temp1_input", "38850\n"),
                ("sys/class/nvme/nvme-subsys0/model", "no drive\n"),
            ],
        );
        let Look::Found(drives) = read(&Root::new(dir.path()), &[]) else { panic!("absent") };
        assert_eq!(drives.len(), 1);
        let drive = &drives[0];
        assert_eq!((drive.model.as_deref(), drive.state.as_deref()), (Some("EXAMPLE 3.84TB"), Some("live")));
        assert_eq!((drive.size_bytes, drive.temperature_c), (Some(3_840_755_982_336), Some(38)));
        assert_eq!((drive.pci.as_deref(), &drive.smart), (Some("0000:c1:00.0"), &None));
    }

    #[test]
    fn both_tools_answers_are_understood() {
        let cli = r#"{"critical_warning":{"value":4,"available_spare":0},"avail_spare":100,"spare_thresh":10,
            "percent_used":3,"media_errors":"12","num_err_log_entries":7,"power_on_hours":900,"unsafe_shutdowns":2}"#;
        let old = cli.replace(r#"{"value":4,"available_spare":0}"#, "4");
        let smartctl = r#"{"nvme_smart_health_information_log":{"critical_warning":4,"available_spare":100,
            "available_spare_threshold":10,"percentage_used":3,"media_errors":12,"num_err_log_entries":7,
            "power_on_hours":900,"unsafe_shutdowns":2}}"#;
        let expected = from_smartctl(smartctl).unwrap();
        assert_eq!((expected.critical_warning, expected.media_errors), (4, Some(12)));
        assert_eq!(from_nvme_cli(cli).unwrap(), expected);
        assert_eq!(from_nvme_cli(&old).unwrap(), expected);
        assert_eq!(from_nvme_cli("smart log failed"), None);
    }
}
