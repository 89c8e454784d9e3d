//! Backup: the whole of the books in one file that both databases can be filled from.
//!
//! The file is zstd-compressed lines of JSON: a header, then for each table its columns and an array per row (a blob is
//! base64), then an end line with the number of rows and the SHA-256 of everything before it. A file without its end line
//! is no backup.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::Digest;
use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;

use crate::db::Store;
use crate::error::StoreError;
use crate::schema::{self, Kind};
use crate::sql::{col, json};

/// All tables with the columns that order them, parents first; `schema_versions` is in the header.
pub(crate) const TABLES: [(&str, &str); 16] = [
    ("blades", "serial"),
    ("places", "serial, number"),
    ("transitions", "serial, sequence"),
    ("runs", "run"),
    ("verdicts", "run"),
    ("results", "run"),
    ("streams", "id"),
    ("evidence", "stream, seq"),
    ("faults", "serial, code, device, source"),
    ("cases", "id"),
    ("tokens", "sha256"),
    ("identities", "serial"),
    ("certificates", "cert_serial"),
    ("unexpected", "serial"),
    ("audit", "id"),
    ("marks", "name"),
];

/// The format of the lines.
pub(crate) const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) whetstone: String,
    pub(crate) format: u32,
    pub(crate) schema: i64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TableLine {
    pub(crate) table: String,
    pub(crate) columns: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EndLine {
    pub(crate) end: bool,
    pub(crate) rows: u64,
    pub(crate) sha256: String,
}

/// What was written or read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backup {
    pub rows: u64,
    /// The schema that the file was written from.
    pub schema: i64,
}

struct Lines<'a> {
    out: zstd::stream::write::Encoder<'a, std::io::BufWriter<File>>,
    hash: sha2::Sha256,
}

impl Lines<'_> {
    fn put(&mut self, line: &str) -> std::io::Result<()> {
        for part in [line.as_bytes(), b"\n"] {
            self.hash.update(part);
            self.out.write_all(part)?;
        }
        Ok(())
    }
}

impl Store {
    /// Writes everything as of one moment to a new file, which appears under its name only when it is whole and on disk.
    /// The store can be used meanwhile. Reads and compresses on the calling thread: for a command, not for a server.
    ///
    /// # Errors
    /// A file error if `out` exists or cannot be written.
    pub async fn backup(&self, out: &Path) -> Result<Backup, StoreError> {
        let file_error = |source| StoreError::File { path: out.to_owned(), source };
        if out.exists() {
            return Err(file_error(std::io::ErrorKind::AlreadyExists.into()));
        }
        let mut partial = out.as_os_str().to_owned();
        partial.push(".partial");
        let partial = Path::new(&partial);
        let written = self.write_backup(partial, &file_error).await.and_then(|backup| {
            std::fs::rename(partial, out).map_err(file_error)?;
            Ok(backup)
        });
        if written.is_err() {
            // What went wrong is the news; that the rest of it stays may be told by the next attempt.
            let _ = std::fs::remove_file(partial);
        }
        written
    }

    async fn write_backup(
        &self,
        partial: &Path,
        file_error: &impl Fn(std::io::Error) -> StoreError,
    ) -> Result<Backup, StoreError> {
        // It holds what the database holds: not for everybody's eyes.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(partial)
            .map_err(file_error)?;
        let out = zstd::stream::write::Encoder::new(std::io::BufWriter::new(file), 3).map_err(file_error)?;
        let mut lines = Lines { out, hash: sha2::Sha256::new() };
        let mut db = self.read().await?;
        let version = schema::current(&mut db, self.backend).await?;
        let header = Header { whetstone: "backup".into(), format: FORMAT, schema: version };
        lines.put(&json(&header)?).map_err(file_error)?;
        let mut count = 0;
        for (table, order) in TABLES {
            let columns = schema::columns(&mut db, self.backend, table).await?;
            let (names, kinds): (Vec<String>, Vec<Kind>) = columns.into_iter().unzip();
            if names.is_empty() {
                // An older schema has no such table.
                continue;
            }
            let text = format!("SELECT {} FROM {table} ORDER BY {order}", names.join(", "));
            let mut rows = sqlx::query(AssertSqlSafe(text)).fetch(&mut *db);
            let mut first = true;
            while let Some(row) = rows.try_next().await? {
                if std::mem::take(&mut first) {
                    let line = TableLine { table: table.to_owned(), columns: names.clone() };
                    lines.put(&json(&line)?).map_err(file_error)?;
                }
                lines.put(&json(&fields(&row, &kinds)?)?).map_err(file_error)?;
                count += 1;
            }
        }
        drop(db);
        let sha256 = hex::encode(lines.hash.clone().finalize());
        lines.put(&json(&EndLine { end: true, rows: count, sha256 })?).map_err(file_error)?;
        let buffer = lines.out.finish().map_err(file_error)?;
        let file = buffer.into_inner().map_err(|error| file_error(error.into_error()))?;
        file.sync_all().map_err(file_error)?;
        Ok(Backup { rows: count, schema: version })
    }
}

fn fields(row: &AnyRow, kinds: &[Kind]) -> Result<Vec<Value>, StoreError> {
    kinds
        .iter()
        .enumerate()
        .map(|(number, kind)| {
            Ok(match kind {
                Kind::Int => col::<Option<i64>>(row, number)?.into(),
                Kind::Real => col::<Option<f64>>(row, number)?.into(),
                Kind::Text => col::<Option<String>>(row, number)?.into(),
                Kind::Blob => col::<Option<Vec<u8>>>(row, number)?
                    .map(|bytes| data_encoding::BASE64.encode(&bytes))
                    .into(),
            })
        })
        .collect()
}
