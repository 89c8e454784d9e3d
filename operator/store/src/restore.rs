//! Restore: a backup into an empty database, all of it or nothing.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;
use sha2::Digest;
use sqlx::AnyConnection;

use crate::backup::{Backup, EndLine, FORMAT, Header, TABLES, TableLine};
use crate::db::{Backend, Journal, Store, StoreOptions};
use crate::error::StoreError;
use crate::schema::{self, Kind};
use crate::sql::{CHUNK, Fields, col, sql};

/// Longest line: one result with its report and samples, base64.
const MAX_LINE: u64 = 256 << 20;
/// Bytes of rows that go into one statement.
const MAX_STATEMENT: usize = 8 << 20;

/// Numbers go on at least so far above those of the backup.
const LEAP: i64 = 10_000;

/// Fills an empty database from a backup of either kind of database; one of an older schema is brought up to date. The
/// file's checksum is verified before anything is changed, and all changes are one transaction.
///
/// What was numbered after the backup is forgotten here, but not elsewhere: agents refuse a run whose number is not above
/// that of their last one, and the schema of the blades' objects a sequence below the one that they show. So the numbers of
/// runs and cases and the blades' sequences go on from the time of the restore in seconds since 1970: far above whatever was
/// given after the backup, and after an earlier restore of the same one, as long as fewer than one a second are given.
///
/// # Errors
/// `corrupt` for a file that is no whole backup, `schema` for one of a newer program, `conflict` for a database that holds
/// rows.
pub async fn restore(url: &str, from: &Path, now_ms: i64) -> Result<Backup, StoreError> {
    let backup = verify(from)?;
    let store = Store::connect(url, &StoreOptions::default(), Journal::Wal).await?;
    let mut db = store.write().await?;
    make_empty(&mut db, store.backend).await?;
    schema::migrate(&mut db, store.backend, backup.schema).await?;
    let mut lines = Lines::open(from)?;
    let mut loader =
        Loader { backend: store.backend, table: None, kinds: HashMap::new(), rows: Vec::new(), bytes: 0 };
    lines.next()?;
    while let Some(line) = lines.next()? {
        let line = line.to_owned();
        if line.starts_with('[') {
            loader.row(&mut db, &line).await?;
        } else if line.starts_with("{\"table\"") {
            loader.begin(&mut db, parsed(&line)?).await?;
        }
    }
    loader.flush(&mut db).await?;
    count_on(&mut db, store.backend, now_ms / 1000).await?;
    schema::migrate(&mut db, store.backend, schema::VERSION).await?;
    db.commit().await?;
    store.close().await;
    Ok(backup)
}

/// Sets the counters of numbers that were given: the next is above all of them, and above those that the backup knows
/// nothing of. Streams are told by their names and the audit's numbers stay here: these two leave no gap.
async fn count_on(db: &mut AnyConnection, backend: Backend, now_s: i64) -> Result<(), StoreError> {
    for (table, column, leaps) in
        [("runs", "run", true), ("cases", "id", true), ("streams", "id", false), ("audit", "id", false)]
    {
        let last = sql(&format!("SELECT COALESCE(MAX({column}), 0) FROM {table}")).one(db).await?;
        let last: i64 = col(&last, 0)?;
        let last = if leaps { last.saturating_add(LEAP).max(now_s) } else { last };
        match backend {
            Backend::Postgres => {
                let next = last.saturating_add(1);
                let counter = format!("pg_get_serial_sequence('{table}', '{column}')");
                sql(&format!("SELECT setval({counter}, {next}, false)")).all(db).await?;
            }
            Backend::Sqlite => {
                sql("DELETE FROM sqlite_sequence WHERE name = $1").bind(table).run(db).await?;
                sql("INSERT INTO sqlite_sequence (name, seq) VALUES ($1, $2)")
                    .bind(table)
                    .bind(last)
                    .run(db)
                    .await?;
            }
        }
    }
    sql("UPDATE blades SET sequence = CASE WHEN sequence + $1 > $2 THEN sequence + $3 ELSE $4 END")
        .bind(LEAP)
        .bind(now_s)
        .bind(LEAP)
        .bind(now_s)
        .run(db)
        .await?;
    Ok(())
}

/// Removes the tables of a database that has none of our rows: another version's, perhaps.
async fn make_empty(db: &mut AnyConnection, backend: Backend) -> Result<(), StoreError> {
    // Also refuses a database that a newer program has made.
    schema::current(db, backend).await?;
    for (table, _) in TABLES {
        if schema::table_exists(db, backend, table).await? {
            let rows: i64 = col(&sql(&format!("SELECT COUNT(*) FROM {table}")).one(db).await?, 0)?;
            if rows > 0 {
                return Err(StoreError::NotEmpty { table: table.to_owned(), rows });
            }
        }
    }
    for table in TABLES.iter().rev().map(|(table, _)| *table).chain(["schema_versions"]) {
        sql(&format!("DROP TABLE IF EXISTS {table}")).run(db).await?;
    }
    Ok(())
}

fn parsed<T: serde::de::DeserializeOwned>(line: &str) -> Result<T, StoreError> {
    serde_json::from_str(line).map_err(|error| {
        let start: String = line.chars().take(80).collect();
        StoreError::Backup(format!("{error} in {start:?}"))
    })
}

/// The lines of a backup, each with a bound.
struct Lines {
    input: BufReader<zstd::stream::read::Decoder<'static, BufReader<File>>>,
    line: Vec<u8>,
    path: std::path::PathBuf,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let file_error = |source| StoreError::File { path: path.to_owned(), source };
        let file = File::open(path).map_err(file_error)?;
        let input = zstd::stream::read::Decoder::new(file).map_err(file_error)?;
        Ok(Lines { input: BufReader::new(input), line: Vec::new(), path: path.to_owned() })
    }

    fn bad(&self, what: impl std::fmt::Display) -> StoreError {
        StoreError::Backup(format!("{}: {what}", self.path.display()))
    }

    /// The next line without its end.
    fn next(&mut self) -> Result<Option<&str>, StoreError> {
        self.line.clear();
        let read = (&mut self.input).take(MAX_LINE).read_until(b'\n', &mut self.line);
        if let Err(error) = read {
            return Err(self.bad(error));
        }
        if self.line.is_empty() {
            return Ok(None);
        }
        if self.line.pop() != Some(b'\n') {
            return Err(self.bad("cut off, or a line is too long"));
        }
        match std::str::from_utf8(&self.line) {
            Ok(line) => Ok(Some(line)),
            Err(error) => Err(StoreError::Backup(format!("{}: {error}", self.path.display()))),
        }
    }
}

fn verify(path: &Path) -> Result<Backup, StoreError> {
    let mut lines = Lines::open(path)?;
    let mut hash = sha2::Sha256::new();
    let header = match lines.next()? {
        Some(line) => {
            hash.update(line.as_bytes());
            hash.update(b"\n");
            serde_json::from_str::<Header>(line).ok()
        }
        None => None,
    };
    let Some(header) = header.filter(|header| header.whetstone == "backup") else {
        return Err(lines.bad("not a backup of whetstone"));
    };
    if header.format != FORMAT || !(1..=schema::VERSION).contains(&header.schema) {
        return Err(StoreError::Schema(format!(
            "{}: backup has format {} and schema {}; this program knows format {FORMAT} and schemas 1 to {}",
            path.display(),
            header.format,
            header.schema,
            schema::VERSION
        )));
    }
    let mut rows = 0;
    loop {
        let Some(line) = lines.next()? else { return Err(lines.bad("cut off: its end line is missing")) };
        if line.starts_with("{\"end\"") {
            let end: EndLine = parsed(line)?;
            if end.sha256 != hex::encode(hash.finalize()) || end.rows != rows {
                return Err(lines.bad("checksum is wrong: the file was changed or damaged"));
            }
            break;
        }
        rows += u64::from(line.starts_with('['));
        hash.update(line.as_bytes());
        hash.update(b"\n");
    }
    if lines.next()?.is_some() {
        return Err(lines.bad("something comes after its end line"));
    }
    Ok(Backup { rows, schema: header.schema })
}

struct Loader {
    backend: Backend,
    table: Option<TableLine>,
    /// Of the current table's columns.
    kinds: HashMap<String, Kind>,
    rows: Vec<Vec<Value>>,
    bytes: usize,
}

impl Loader {
    async fn begin(&mut self, db: &mut AnyConnection, table: TableLine) -> Result<(), StoreError> {
        self.flush(db).await?;
        if !TABLES.iter().any(|(name, _)| *name == table.table) {
            return Err(StoreError::Backup(format!("backup has an unknown table {:?}", table.table)));
        }
        self.kinds = schema::columns(db, self.backend, &table.table).await?.into_iter().collect();
        if let Some(column) = table.columns.iter().find(|column| !self.kinds.contains_key(*column)) {
            return Err(StoreError::Backup(format!("backup has an unknown column {}.{column}", table.table)));
        }
        self.table = Some(table);
        Ok(())
    }

    async fn row(&mut self, db: &mut AnyConnection, line: &str) -> Result<(), StoreError> {
        self.rows.push(parsed(line)?);
        self.bytes += line.len();
        if self.rows.len() >= CHUNK || self.bytes >= MAX_STATEMENT {
            self.flush(db).await?;
        }
        Ok(())
    }

    async fn flush(&mut self, db: &mut AnyConnection) -> Result<(), StoreError> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        let Some(table) = self.table.as_ref().filter(|_| !rows.is_empty()) else {
            return if rows.is_empty() {
                Ok(())
            } else {
                Err(StoreError::Backup("backup has rows without a table".into()))
            };
        };
        let kinds: Vec<Kind> =
            table.columns.iter().filter_map(|column| self.kinds.get(column).copied()).collect();
        let fit = |row: &Vec<Value>| {
            row.len() == kinds.len() && row.iter().zip(&kinds).all(|(value, kind)| fits(value, *kind))
        };
        if let Some(row) = rows.iter().find(|row| !fit(row)) {
            let start: String = format!("{row:?}").chars().take(80).collect();
            return Err(StoreError::Backup(format!(
                "backup has a row that does not fit {}: {start}",
                table.table
            )));
        }
        // Names were compared with the schema's own.
        let mut insert = sql(&format!("INSERT INTO {} ({}) VALUES ", table.table, table.columns.join(", ")));
        insert.rows(rows, |fields, row| {
            for (value, kind) in row.into_iter().zip(&kinds) {
                put(fields, value, *kind);
            }
        });
        insert.run(db).await?;
        Ok(())
    }
}

fn fits(value: &Value, kind: Kind) -> bool {
    value.is_null()
        || match kind {
            Kind::Int => value.is_i64(),
            Kind::Real => value.is_number(),
            Kind::Text => value.is_string(),
            Kind::Blob => blob(value).is_some(),
        }
}

fn blob(value: &Value) -> Option<Vec<u8>> {
    data_encoding::BASE64.decode(value.as_str()?.as_bytes()).ok()
}

fn put(fields: &mut Fields<'_>, value: Value, kind: Kind) {
    match kind {
        Kind::Int => fields.put(value.as_i64()),
        Kind::Real => fields.put(value.as_f64()),
        Kind::Blob => fields.put(blob(&value)),
        Kind::Text => fields.put(match value {
            Value::String(text) => Some(text),
            _ => None,
        }),
    };
}
