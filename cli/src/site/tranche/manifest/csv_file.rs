//! `serial,name,rack,slot,sku,nvlink_domain` in any order; all but `serial` may be missing.

use csv::{ReaderBuilder, Trim};

use super::{FIELDS, Found, Raw};

pub fn read(bytes: &[u8]) -> Found {
    let mut found = Found::default();
    // Spreadsheets write one.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(Trim::All)
        .comment(Some(b'#'))
        .from_reader(bytes);
    let mut columns: Option<Vec<Option<usize>>> = None;
    let mut record = csv::ByteRecord::new();
    loop {
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(e) => {
                let line = e.position().map_or(1, csv::Position::line);
                found.problems.push((line, e.to_string()));
                break;
            }
        }
        let line = record.position().map_or(1, |at| line_of(bytes, at));
        let Ok(cells) = record.iter().map(std::str::from_utf8).collect::<Result<Vec<_>, _>>() else {
            found.problems.push((line, "is not UTF-8 text".to_owned()));
            if columns.is_none() {
                break;
            }
            continue;
        };
        // A line of blanks is an empty line.
        if matches!(cells.as_slice(), [""]) {
            continue;
        }
        let Some(columns) = &columns else {
            match header(&cells) {
                Ok(known) => columns = Some(known),
                Err(what) => {
                    found.problems.extend(what.into_iter().map(|what| (line, what)));
                    // Without it no line can be understood.
                    break;
                }
            }
            continue;
        };
        if cells.len() != columns.len() {
            let what = format!("has {} fields, the header has {}", cells.len(), columns.len());
            found.problems.push((line, what));
            continue;
        }
        let mut fields: [String; 6] = Default::default();
        for (cell, column) in cells.iter().zip(columns) {
            if let Some(field) = column.and_then(|column| fields.get_mut(column)) {
                *field = (*cell).to_owned();
            }
        }
        found.raws.push(Raw { line, fields });
    }
    found
}

/// The reader's place of a record is where the one before it ended: empty lines and comments lie in between.
fn line_of(bytes: &[u8], at: &csv::Position) -> u64 {
    let start = usize::try_from(at.byte()).unwrap_or(usize::MAX);
    let mut rest = bytes.get(start..).unwrap_or_default();
    let mut line = at.line();
    while let [b'\n' | b'\r' | b'#', ..] = rest {
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { break };
        line += 1;
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    line
}

/// Which field each column is.
fn header(cells: &[&str]) -> Result<Vec<Option<usize>>, Vec<String>> {
    let (mut columns, mut problems) = (Vec::with_capacity(cells.len()), Vec::new());
    for cell in cells {
        let name = cell.to_ascii_lowercase();
        let field = FIELDS.iter().position(|field| *field == name);
        match field {
            None => {
                let shown: String = cell.chars().take(40).collect();
                problems.push(format!("column {shown:?} is none of {}", FIELDS.join(", ")));
            }
            Some(_) if columns.contains(&field) => problems.push(format!("column {name} stands twice")),
            Some(_) => {}
        }
        columns.push(field);
    }
    if !columns.contains(&Some(0)) {
        problems.push("the first line has to name the columns, serial among them".to_owned());
    }
    if problems.is_empty() { Ok(columns) } else { Err(problems) }
}
