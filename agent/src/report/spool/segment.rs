//! A file of records: header, then records that each carry their length and checksum.
//!
//! ```text
//! file    "WSPOOL1\n", 16 bytes of the stream's id, records
//! record  u32 length of the JSON, u32 CRC-32 of all that follows, u8 kind (1 = detail), u64 seq, JSON of the item
//! ```
//! Numbers are little-endian. What follows the first record that does not fit its checksum is cut off.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use whetstone_model::wire::Item;

const MAGIC: &[u8; 8] = b"WSPOOL1\n";
pub(super) const FILE_HEADER: u64 = 24;
const RECORD_HEADER: usize = 17;
/// Texts are cut before they come here; an item of this size is a mistake, and a length above it is no length.
pub(super) const MAX_RECORD: usize = 64 << 10;

/// One record as it lies in its file.
pub(super) struct Record<'a> {
    pub seq: u64,
    pub detail: bool,
    pub json: &'a [u8],
    /// Where the next record begins.
    pub end: u64,
}

/// The bytes of a record. `None` if it is over the limit or has no JSON form.
pub(super) fn encode(item: &Item) -> Option<Vec<u8>> {
    let mut bytes = vec![0; RECORD_HEADER];
    serde_json::to_writer(&mut bytes, item).ok()?;
    let length = bytes.len() - RECORD_HEADER;
    if length > MAX_RECORD {
        return None;
    }
    bytes[8] = u8::from(item.body.is_detail());
    bytes[9..17].copy_from_slice(&item.seq.to_le_bytes());
    let crc = crc32fast::hash(&bytes[8..]);
    bytes[..4].copy_from_slice(&u32::try_from(length).ok()?.to_le_bytes());
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    Some(bytes)
}

/// Where a walk through a file ended.
pub(super) struct Walked {
    /// End of the last whole record.
    pub end: u64,
    /// Something that is no whole record follows.
    pub torn: bool,
}

/// Calls `each` for every whole record from `start` on, until it says to stop with `false`.
pub(super) fn walk(path: &Path, start: u64, mut each: impl FnMut(Record<'_>) -> bool) -> io::Result<Walked> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let mut reader = BufReader::with_capacity(32 << 10, file);
    let mut at = start;
    let mut body = Vec::new();
    loop {
        let mut header = [0; 8];
        match fill(&mut reader, &mut header)? {
            0 => return Ok(Walked { end: at, torn: false }),
            8 => {}
            _ => return Ok(Walked { end: at, torn: true }),
        }
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes);
        let (length, crc) = (number(&header[..4]) as usize, number(&header[4..]));
        if length > MAX_RECORD {
            return Ok(Walked { end: at, torn: true });
        }
        body.resize(length + RECORD_HEADER - 8, 0);
        if fill(&mut reader, &mut body)? < body.len() || crc32fast::hash(&body) != crc {
            return Ok(Walked { end: at, torn: true });
        }
        let end = at + (RECORD_HEADER + length) as u64;
        let seq = body[1..9].try_into().map_or(0, u64::from_le_bytes);
        if !each(Record { seq, detail: body[0] == 1, json: &body[9..], end }) {
            return Ok(Walked { end: at, torn: false });
        }
        at = end;
    }
}

/// Reads as much as there is; less than asked only at the end of the file.
fn fill(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < into.len() {
        match from.read(&mut into[have..]) {
            Ok(0) => break,
            Ok(bytes) => have += bytes,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}

/// What is known of one file without reading it.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub path: PathBuf,
    /// Size of the file, which ends with a whole record.
    pub bytes: u64,
    /// The first record that is not acknowledged.
    pub start: u64,
    /// Highest `seq` in it; 0 while there is none.
    pub last: u64,
    /// Records from `start` on.
    pub details: u64,
    pub findings: u64,
}

/// A file found at start.
pub(super) enum Found {
    Ours {
        segment: Segment,
        torn: u64,
    },
    /// Of another stream: the spool's own memory was lost. Its records still count.
    Orphan(PathBuf),
    /// Not even a header.
    Nothing {
        torn: u64,
    },
}

pub(super) fn path_of(dir: &Path, index: u64) -> PathBuf {
    dir.join(format!("{index:016x}.seg"))
}

impl Segment {
    /// Makes an empty one.
    pub fn create(dir: &Path, index: u64, stream: &[u8; 16]) -> io::Result<(Segment, File)> {
        let path = path_of(dir, index);
        let made = (|| -> io::Result<File> {
            let mut file = OpenOptions::new().append(true).create_new(true).open(&path)?;
            let mut header = [0; FILE_HEADER as usize];
            header[..8].copy_from_slice(MAGIC);
            header[8..].copy_from_slice(stream);
            file.write_all(&header)?;
            // The name is durable with its directory, and records of a file without a name are lost.
            File::open(dir)?.sync_all()?;
            Ok(file)
        })();
        let file = made.inspect_err(|_| drop(std::fs::remove_file(&path)))?;
        let segment =
            Segment { path, bytes: FILE_HEADER, start: FILE_HEADER, last: 0, details: 0, findings: 0 };
        Ok((segment, file))
    }

    /// Reads one from disk and cuts off what is no whole record; records up to `acked` count as gone.
    pub fn load(path: PathBuf, stream: &[u8; 16], acked: u64) -> io::Result<Found> {
        let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
        let size = file.metadata()?.len();
        let mut header = [0; FILE_HEADER as usize];
        if fill(&mut file, &mut header)? < header.len() || &header[..8] != MAGIC {
            std::fs::remove_file(&path)?;
            return Ok(Found::Nothing { torn: size });
        }
        if header[8..] != stream[..] {
            return Ok(Found::Orphan(path));
        }
        let mut segment = Segment { path, bytes: 0, start: FILE_HEADER, last: 0, details: 0, findings: 0 };
        let walked = walk(&segment.path.clone(), FILE_HEADER, |record| {
            segment.count(&record, acked);
            true
        })?;
        segment.bytes = walked.end;
        if walked.torn {
            file.set_len(walked.end)?;
            file.sync_all()?;
        }
        Ok(Found::Ours { segment, torn: size.saturating_sub(walked.end) })
    }

    fn count(&mut self, record: &Record<'_>, acked: u64) {
        self.last = self.last.max(record.seq);
        if record.seq <= acked {
            self.start = record.end;
        } else if record.detail {
            self.details += 1;
        } else {
            self.findings += 1;
        }
    }

    pub fn waiting(&self) -> u64 {
        self.details + self.findings
    }

    /// Forgets the records up to `acked`.
    pub fn forget(&mut self, acked: u64) -> io::Result<()> {
        let (mut details, mut findings, mut start) = (0, 0, self.start);
        walk(&self.path, self.start, |record| {
            if record.seq > acked {
                return false;
            }
            *(if record.detail { &mut details } else { &mut findings }) += 1;
            start = record.end;
            true
        })?;
        self.start = start;
        self.details = self.details.saturating_sub(details);
        self.findings = self.findings.saturating_sub(findings);
        Ok(())
    }

    /// Writes the file anew with the waiting records that `keep` wants: the old file or the new one, never half of it.
    pub fn rewrite(
        &mut self,
        stream: &[u8; 16],
        mut keep: impl FnMut(&Record<'_>) -> bool,
    ) -> io::Result<()> {
        let temporary = self.path.with_extension("partial");
        let mut new = Segment { start: FILE_HEADER, last: 0, details: 0, findings: 0, ..self.clone() };
        let write = (|| -> io::Result<()> {
            let mut out = io::BufWriter::with_capacity(64 << 10, File::create(&temporary)?);
            out.write_all(MAGIC)?;
            out.write_all(stream)?;
            let (mut end, mut failed) = (FILE_HEADER, None);
            walk(&self.path, self.start, |record| {
                if !keep(&record) {
                    return true;
                }
                let mut head = [0; RECORD_HEADER];
                head[8] = u8::from(record.detail);
                head[9..17].copy_from_slice(&record.seq.to_le_bytes());
                let mut crc = crc32fast::Hasher::new();
                crc.update(&head[8..]);
                crc.update(record.json);
                // Within MAX_RECORD, or it would not have been read.
                let length = u32::try_from(record.json.len()).unwrap_or(0);
                head[..4].copy_from_slice(&length.to_le_bytes());
                head[4..8].copy_from_slice(&crc.finalize().to_le_bytes());
                end += (RECORD_HEADER + record.json.len()) as u64;
                new.count(&Record { end, ..record }, 0);
                failed = out.write_all(&head).and_then(|()| out.write_all(record.json)).err();
                failed.is_none()
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            new.bytes = end;
            std::fs::rename(&temporary, &self.path)?;
            self.path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
        })();
        write.inspect_err(|_| drop(std::fs::remove_file(&temporary)))?;
        *self = new;
        Ok(())
    }
}
