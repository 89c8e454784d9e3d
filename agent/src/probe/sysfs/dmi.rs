//! Memory modules from the SMBIOS table (type 17; DMTF DSP0134). The file is readable by root only.

use whetstone_model::facts::Dimm;

use super::{Look, Root};

const TABLE: &str = "sys/firmware/dmi/tables/DMI";

/// Structures and modules read at most; a table is at most 64 KiB in version 2, larger in version 3.
const MAX_STRUCTURES: usize = 65_536;
const MAX_DIMMS: usize = 512;

const MEMORY_DEVICE: u8 = 17;
const END_OF_TABLE: u8 = 127;

pub fn read(root: &Root) -> Look<Vec<Dimm>> {
    match std::fs::metadata(root.path(TABLE)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Look::Absent(format!("no /{TABLE}")),
        _ => match root.bytes(TABLE) {
            Some(bytes) => Look::Found(dimms(&bytes)),
            // Not being root is not a fault of the blade: the serials are simply not to be had.
            None => Look::Absent(format!("/{TABLE}: not readable, needs root")),
        },
    }
}

/// The populated memory modules of a table; what is cut off or malformed ends the walk.
pub fn dimms(table: &[u8]) -> Vec<Dimm> {
    let mut rest = table;
    let mut found = Vec::new();
    for _ in 0..MAX_STRUCTURES {
        let [kind, length, ..] = *rest else { break };
        let length = usize::from(length);
        if length < 4 || rest.len() < length || kind == END_OF_TABLE || found.len() == MAX_DIMMS {
            break;
        }
        let (fields, tail) = rest.split_at(length);
        // Strings follow the fields, each ended by NUL, the set by another NUL.
        let Some(end) = tail.windows(2).position(|pair| pair == [0, 0]) else { break };
        if kind == MEMORY_DEVICE {
            found.extend(memory_device(fields, &tail[..end]));
        }
        rest = &tail[end + 2..];
    }
    found
}

fn memory_device(fields: &[u8], strings: &[u8]) -> Option<Dimm> {
    let byte = |at: usize| fields.get(at).copied();
    let word = |at: usize| Some(u16::from_le_bytes([byte(at)?, byte(at + 1)?]));
    let long = |at: usize| Some(u32::from_le_bytes([byte(at)?, byte(at + 1)?, byte(at + 2)?, byte(at + 3)?]));
    let text = |at: usize| {
        let number = usize::from(byte(at)?);
        let bytes = strings.split(|b| *b == 0).nth(number.checked_sub(1)?)?;
        let text: String =
            bytes.iter().filter(|b| (0x20..0x7f).contains(*b)).map(|b| char::from(*b)).collect();
        let text = text.trim();
        let placeholder = ["", "Not Specified", "Unknown", "NO DIMM", "None"];
        (!placeholder.contains(&text)).then(|| text.to_owned())
    };
    let size_mib = match word(0x0c)? {
        0 | 0xffff => return None,
        0x7fff => u64::from(long(0x1c)? & 0x7fff_ffff),
        small if small & 0x8000 != 0 => u64::from(small & 0x7fff) / 1024,
        size => u64::from(size),
    };
    let speed = |at: usize| word(at).filter(|speed| !matches!(speed, 0 | 0xffff)).map(u32::from);
    Some(Dimm {
        locator: text(0x10).unwrap_or_default(),
        bank: text(0x11),
        size_mib: Some(size_mib),
        kind: byte(0x12).and_then(kind).map(str::to_owned),
        speed_mts: speed(0x20).or_else(|| speed(0x15)),
        manufacturer: text(0x17),
        serial: text(0x18),
        part_number: text(0x1a),
    })
}

/// Memory types that a server of our day has.
fn kind(code: u8) -> Option<&'static str> {
    Some(match code {
        0x18 => "DDR3",
        0x1a => "DDR4",
        0x1e => "LPDDR4",
        0x20 => "HBM",
        0x21 => "HBM2",
        0x22 => "DDR5",
        0x23 => "LPDDR5",
        0x24 => "HBM3",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn structure(kind: u8, fields: &[u8], strings: &[&str]) -> Vec<u8> {
        let mut out = vec![kind, (fields.len() + 4) as u8, 0, 0];
        out.extend(fields);
        for text in strings {
            out.extend(text.as_bytes());
            out.push(0);
        }
        if strings.is_empty() {
            out.push(0);
        }
        out.push(0);
        out
    }

    fn module(size: u16, extended: u32) -> Vec<u8> {
        let mut fields = vec![0u8; 0x28 - 4];
        let mut put = |at: usize, bytes: &[u8]| fields[at - 4..at - 4 + bytes.len()].copy_from_slice(bytes);
        put(0x0c, &size.to_le_bytes());
        put(0x10, &[1, 2, 0x22]);
        put(0x15, &5600u16.to_le_bytes());
        put(0x17, &[3, 4, 0, 5]);
        put(0x1c, &extended.to_le_bytes());
        put(0x20, &4800u16.to_le_bytes());
        structure(MEMORY_DEVICE, &fields, &["DIMM_A1", "BANK 0", "Example", "0BADCAFE", "EX64G"])
    }

    #[test]
    fn modules_are_read_and_empty_slots_are_not() {
        let mut table = structure(0, &[1, 2, 3], &["vendor"]);
        table.extend(module(0x7fff, 65_536));
        table.extend(module(0, 0));
        table.extend(structure(END_OF_TABLE, &[], &[]));
        table.extend(module(0x7fff, 1));
        let found = dimms(&table);
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0],
            Dimm {
                locator: "DIMM_A1".into(),
                bank: Some("BANK 0".into()),
                size_mib: Some(65_536),
                kind: Some("DDR5".into()),
                speed_mts: Some(4800),
                manufacturer: Some("Example".into()),
                serial: Some("0BADCAFE".into()),
                part_number: Some("EX64G".into()),
            }
        );
    }

    #[test]
    fn any_cut_of_a_table_is_survived() {
        let mut table = module(0x7fff, 65_536);
        table.extend(module(0x0400, 0));
        for end in 0..table.len() {
            assert!(dimms(&table[..end]).len() <= 2);
        }
        assert!(dimms(&[17, 0, 0, 0, 0, 0]).is_empty());
        assert!(dimms(&[0xff; 64]).is_empty());
    }
}
