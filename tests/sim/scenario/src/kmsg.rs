//! The blade's kernel log: a file that grows, in the record form of `/dev/kmsg` (`priority,sequence,microseconds,-;text`).

use std::io::Write;
use std::path::Path;

/// Name of the file in a blade's directory; the agent reads it through `WHETSTONE_KMSG`.
pub const KMSG_FILE: &str = "kmsg";

/// Appends one record. `priority` is syslog's level (facility kernel): 3 error, 4 warning, 6 info.
pub fn append(dir: &Path, sequence: u64, at_us: u64, priority: u8, text: &str) -> std::io::Result<()> {
    // One write call of one line: appends of several processes do not mix.
    let line = format!("{priority},{sequence},{at_us},-;{}\n", text.replace('\n', "\\x0a"));
    std::fs::File::options().append(true).create(true).open(dir.join(KMSG_FILE))?.write_all(line.as_bytes())
}

/// What the NVIDIA driver prints for an XID about the GPU at `pci` (`dddd:bb:dd.f`).
pub fn xid_line(pci: &str, code: u32, text: &str) -> String {
    let slot = pci.split('.').next().unwrap_or(pci);
    format!("NVRM: Xid (PCI:{slot}): {code}, {}", if text.is_empty() { usual_text(code) } else { text })
}

/// The words that usually follow the commonest codes.
fn usual_text(code: u32) -> &'static str {
    match code {
        13 => {
            "pid=4711, name=python3, Graphics SM Warp Exception on (GPC 3, TPC 2, SM 1): Out Of Range Address"
        }
        31 => {
            "pid=4711, name=python3, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_0 faulted @ 0x7f2a_a0000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ"
        }
        43 => "pid=4711, name=python3, Ch 00000008",
        45 => "pid=4711, name=python3, Ch 00000008",
        48 => {
            "pid='<unknown>', name=<unknown>, An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer at partition 6, subpartition 0."
        }
        63 => {
            "pid='<unknown>', name=<unknown>, Row Remapper: New row (0x000000000d3a7c51) marked for remapping, reset gpu to activate."
        }
        64 => "pid='<unknown>', name=<unknown>, Row Remapper: failed to remap a row",
        74 => {
            "pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 4(0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)"
        }
        79 => "pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
        92 => "pid='<unknown>', name=<unknown>, High single-bit ECC error rate",
        94 => "pid='<unknown>', name=<unknown>, Contained: SM (0x1). RST: No, D-RST: No",
        95 => "pid='<unknown>', name=<unknown>, Uncontained: LTC TAG (0x2,0x0). RST: Yes, D-RST: No",
        119 => {
            "pid=4711, name=nvidia-smi, Timeout after 6s of waiting for RPC response from GPU0 GSP! Expected function 76 (GSP_RM_CONTROL) (0x20800a81 0x4)."
        }
        _ => "pid='<unknown>', name=<unknown>, unknown error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_whatever_the_text() {
        let dir = tempfile::tempdir().unwrap();
        append(dir.path(), 7, 1_500_000, 3, &xid_line("0000:5d:00.0", 79, "")).unwrap();
        append(dir.path(), 8, 1_600_000, 6, "two\nlines").unwrap();
        let text = std::fs::read_to_string(dir.path().join(KMSG_FILE)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "3,7,1500000,-;NVRM: Xid (PCI:0000:5d:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
        );
        assert_eq!(lines.len(), 2);
    }
}
