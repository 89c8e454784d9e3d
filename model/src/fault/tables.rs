//! The tables of codes: tab-separated, one row per code. Data: `model/data/fault/*.tsv`.

use std::collections::BTreeMap;

use super::rules::TableError;

/// One XID of NVIDIA's catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xid {
    pub code: u32,
    pub mnemonic: String,
    /// False for codes that the catalogue calls unused.
    pub used: bool,
    /// The catalogue's immediate action, if it names one.
    pub action: Option<String>,
    /// The catalogue's investigatory action, if it names one.
    pub investigate: Option<String>,
    pub meaning: String,
}

/// One SXID of the fabric manager's guide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sxid {
    pub code: u32,
    /// Key of its row in the policy.
    pub effect: String,
    pub meaning: String,
}

/// The lowest bits of a word: `word & mask == value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bits {
    pub mask: u32,
    pub value: u32,
}

impl Bits {
    pub fn fit(self, word: u32) -> bool {
        word & self.mask == self.value
    }
}

/// One rule for an NVLink 5 error, in both layouts (`[0]` below driver R575, `[1]` from it on).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nvlink5Rule {
    pub rule: u32,
    pub xid: u32,
    pub unit: [String; 2],
    /// Bits 25..20 of intrinfo.
    pub subcode: u32,
    pub bits: [Bits; 2],
    /// Error status values that fit; empty = any.
    pub status: Vec<u32>,
    pub action: String,
    /// The same error after it was promoted: its bits and its action.
    pub promoted: Option<([Bits; 2], String)>,
    pub investigate: String,
    pub severity: String,
    pub origin: String,
}

/// Class of each known bit of the registers of XID 74, by (register 1-7, bit).
pub type RegisterBits = BTreeMap<(u8, u8), String>;

/// One row: its fields and where it stands.
struct Fields<'a> {
    file: &'static str,
    line: usize,
    fields: Vec<&'a str>,
}

impl Fields<'_> {
    fn bad(&self, column: usize, what: &str) -> TableError {
        let value: String = self.fields.get(column).unwrap_or(&"").chars().take(40).collect();
        TableError::Row {
            file: self.file,
            line: self.line,
            what: format!("column {}: {value:?} is not {what}", column + 1),
        }
    }

    fn number(&self, column: usize) -> Result<u32, TableError> {
        self.fields[column].parse().map_err(|_| self.bad(column, "a number"))
    }

    fn text(&self, column: usize) -> Result<String, TableError> {
        if self.fields[column].is_empty() {
            Err(self.bad(column, "a text"))
        } else {
            Ok(self.fields[column].to_owned())
        }
    }

    /// `-` stands for none.
    fn optional(&self, column: usize) -> Result<Option<String>, TableError> {
        if self.fields[column] == "-" { Ok(None) } else { self.text(column).map(Some) }
    }

    fn bits(&self, column: usize) -> Result<Bits, TableError> {
        let text = self.fields[column];
        // Twenty bits lie below the subcode.
        if !(1..=20).contains(&text.len()) {
            return Err(self.bad(column, "1 to 20 bits"));
        }
        let value = u32::from_str_radix(text, 2).map_err(|_| self.bad(column, "bits"))?;
        Ok(Bits { mask: (1 << text.len()) - 1, value })
    }

    fn status(&self, column: usize) -> Result<Vec<u32>, TableError> {
        if self.fields[column] == "*" {
            return Ok(Vec::new());
        }
        self.fields[column]
            .split('/')
            .map(|word| word.strip_prefix("0x").and_then(|hex| u32::from_str_radix(hex, 16).ok()))
            .collect::<Option<Vec<u32>>>()
            .ok_or_else(|| self.bad(column, "hexadecimal values"))
    }
}

/// Rows of `text` that have exactly `columns` fields; empty lines and lines with `#` are left out.
fn rows<'a>(
    file: &'static str,
    text: &'a str,
    columns: usize,
) -> impl Iterator<Item = Result<Fields<'a>, TableError>> + 'a {
    text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).map(
        move |(index, line)| {
            let fields: Vec<&str> = line.split('\t').collect();
            if fields.len() == columns {
                Ok(Fields { file, line: index + 1, fields })
            } else {
                let what = format!("has {} columns, not {columns}", fields.len());
                Err(TableError::Row { file, line: index + 1, what })
            }
        },
    )
}

/// Adds a row under its key, which must be new.
fn insert<K: Ord, V>(
    table: &mut BTreeMap<K, V>,
    key: K,
    value: V,
    row: &Fields<'_>,
) -> Result<(), TableError> {
    match table.insert(key, value) {
        None => Ok(()),
        Some(_) => Err(TableError::Row { file: row.file, line: row.line, what: "is there twice".to_owned() }),
    }
}

pub fn xids(text: &str) -> Result<BTreeMap<u32, Xid>, TableError> {
    let mut table = BTreeMap::new();
    for row in rows("xid.tsv", text, 6) {
        let row = row?;
        let used = match row.fields[2] {
            "used" => true,
            "unused" => false,
            _ => return Err(row.bad(2, "used or unused")),
        };
        let xid = Xid {
            code: row.number(0)?,
            mnemonic: row.text(1)?,
            used,
            action: row.optional(3)?,
            investigate: row.optional(4)?,
            meaning: row.text(5)?,
        };
        insert(&mut table, xid.code, xid, &row)?;
    }
    Ok(table)
}

pub fn sxids(text: &str) -> Result<BTreeMap<u32, Sxid>, TableError> {
    let mut table = BTreeMap::new();
    for row in rows("sxid.tsv", text, 3) {
        let row = row?;
        let sxid = Sxid { code: row.number(0)?, effect: row.text(1)?, meaning: row.text(2)? };
        insert(&mut table, sxid.code, sxid, &row)?;
    }
    Ok(table)
}

pub fn nvlink5(text: &str) -> Result<Vec<Nvlink5Rule>, TableError> {
    let mut table = BTreeMap::new();
    for row in rows("nvlink5.tsv", text, 15) {
        let row = row?;
        let promoted = match row.optional(11)? {
            None => None,
            Some(action) => Some(([row.bits(9)?, row.bits(10)?], action)),
        };
        let rule = Nvlink5Rule {
            rule: row.number(0)?,
            xid: row.number(1)?,
            unit: [row.text(2)?, row.text(3)?],
            subcode: row.number(4)?,
            bits: [row.bits(5)?, row.bits(6)?],
            status: row.status(7)?,
            action: row.text(8)?,
            promoted,
            investigate: row.text(12)?,
            severity: row.text(13)?,
            origin: row.text(14)?,
        };
        insert(&mut table, rule.rule, rule, &row)?;
    }
    Ok(table.into_values().collect())
}

pub fn register_bits(text: &str) -> Result<RegisterBits, TableError> {
    let mut table = BTreeMap::new();
    for row in rows("nvlink_registers.tsv", text, 3) {
        let row = row?;
        let register = u8::try_from(row.number(0)?).ok().filter(|r| (1..=7).contains(r));
        let register = register.ok_or_else(|| row.bad(0, "a register, 1 to 7"))?;
        for bit in row.fields[1].split(',') {
            let bit = bit
                .parse::<u8>()
                .ok()
                .filter(|b| *b < 32)
                .ok_or_else(|| row.bad(1, "a list of bits, 0 to 31"))?;
            insert(&mut table, (register, bit), row.text(2)?, &row)?;
        }
    }
    Ok(table)
}
