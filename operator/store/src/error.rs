//! What can go wrong between the operator and its database, sorted by what is to be done about it.

use std::path::PathBuf;

/// A failure of the store. Nothing of the call has been done unless its documentation says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another writer was in the way for too long, or two transactions crossed each other.
    #[error("database is locked by another writer")]
    Locked(#[source] sqlx::Error),
    /// The disk, or the limit set for the database, is full.
    #[error("no space left for the database")]
    Full(#[source] sqlx::Error),
    /// The database does not answer or refuses connections.
    #[error("database cannot be reached")]
    Away(#[source] sqlx::Error),
    /// The database took too long.
    #[error("database did not answer within {seconds} s")]
    Slow { seconds: u64 },
    /// What is stored cannot be read.
    #[error("stored data cannot be read: {0}")]
    Corrupt(String),
    /// A backup file is not whole, or none.
    #[error("backup cannot be read: {0}")]
    Backup(String),
    /// The database itself says that it is damaged.
    #[error("database is damaged")]
    Damaged(#[source] sqlx::Error),
    /// The schema is not one that this program can use.
    #[error("{0}")]
    Schema(String),
    /// A rule of the schema was violated: a second active run, a second verdict.
    #[error("change contradicts what is stored")]
    Conflict(#[source] sqlx::Error),
    /// A restore was asked for into a database that holds something.
    #[error("database is not empty: table {table} holds {rows} rows")]
    NotEmpty { table: String, rows: i64 },
    /// A backup file cannot be read or written.
    #[error("file {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The URL cannot be used.
    #[error("bad database url: {0}")]
    Url(String),
    /// A mistake of this program.
    #[error("database refused a statement")]
    Bug(#[source] sqlx::Error),
}

impl StoreError {
    /// For metrics: one of `locked`, `full`, `away`, `corrupt`, `schema`, `conflict`, `bug`.
    pub fn category(&self) -> &'static str {
        match self {
            StoreError::Locked(_) => "locked",
            StoreError::Full(_) => "full",
            StoreError::Away(_) | StoreError::Slow { .. } => "away",
            StoreError::Corrupt(_) | StoreError::Backup(_) | StoreError::Damaged(_) => "corrupt",
            StoreError::Schema(_) | StoreError::Url(_) => "schema",
            StoreError::Conflict(_) | StoreError::NotEmpty { .. } => "conflict",
            StoreError::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => "full",
            StoreError::File { .. } => "away",
            StoreError::Bug(_) => "bug",
        }
    }

    /// True if the database takes no writes, whatever they are: its disk is full, or it can only be read.
    pub(crate) fn refuses_writes(&self) -> bool {
        match self {
            StoreError::Full(_) => true,
            StoreError::Away(sqlx::Error::Database(error)) => read_only(&error.code().unwrap_or_default()),
            _ => false,
        }
    }

    /// True if the same call may succeed later without anybody changing this program or its data.
    pub fn is_transient(&self) -> bool {
        matches!(self.category(), "locked" | "full" | "away")
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) => {
                let code = database.code().unwrap_or_default().into_owned();
                match class(&code) {
                    Class::Locked => StoreError::Locked(error),
                    Class::Full => StoreError::Full(error),
                    Class::Away => StoreError::Away(error),
                    Class::Corrupt => StoreError::Damaged(error),
                    Class::Conflict => StoreError::Conflict(error),
                    Class::Bug => StoreError::Bug(error),
                }
            }
            sqlx::Error::Configuration(what) => StoreError::Url(what.to_string()),
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            // Seen where a connection breaks in the middle of an answer.
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed => StoreError::Away(error),
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => StoreError::Corrupt(error.to_string()),
            _ => StoreError::Bug(error),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Class {
    Locked,
    Full,
    Away,
    Corrupt,
    Conflict,
    Bug,
}

/// SQLite's extended result codes are numbers of up to four digits (low byte = primary code); PostgreSQL's SQLSTATEs have
/// five characters. Sources: sqlite.org/rescode.html; PostgreSQL manual, appendix A.
fn class(code: &str) -> Class {
    if code.len() == 5 {
        return match code {
            "53100" => Class::Full,
            "40001" | "40P01" | "55P03" | "57014" => Class::Locked,
            // A standby, or a primary that has just become one; a database that takes no connections for now.
            "25006" | "55000" => Class::Away,
            "XX001" | "XX002" => Class::Corrupt,
            _ => match &code[..2] {
                "08" | "53" | "57" | "58" | "28" | "3D" => Class::Away,
                "23" => Class::Conflict,
                _ => Class::Bug,
            },
        };
    }
    match code.parse::<u32>().map(|code| code & 0xff) {
        Ok(5 | 6) => Class::Locked,
        Ok(13) => Class::Full,
        // Out of memory, read only, interrupted, input/output, cannot open.
        Ok(7 | 8 | 9 | 10 | 14) => Class::Away,
        Ok(11 | 26) => Class::Corrupt,
        Ok(19) => Class::Conflict,
        _ => Class::Bug,
    }
}

/// SQLite: read only, input/output; PostgreSQL: a standby.
fn read_only(code: &str) -> bool {
    code == "25006" || (code.len() < 5 && code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 8 | 10)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_can_only_be_read_is_known_by_its_code() {
        for code in ["8", "1288", "778", "10", "25006"] {
            assert!(read_only(code), "{code}");
        }
        for code in ["5", "13", "14", "57P01", "08006", "00008", ""] {
            assert!(!read_only(code), "{code}");
        }
    }

    #[test]
    fn codes_of_both_databases_are_sorted_by_what_to_do() {
        for (code, expected) in [
            ("5", Class::Locked),
            ("517", Class::Locked),
            ("13", Class::Full),
            ("778", Class::Away),
            ("14", Class::Away),
            ("11", Class::Corrupt),
            ("26", Class::Corrupt),
            ("2067", Class::Conflict),
            ("1", Class::Bug),
            ("53100", Class::Full),
            ("53300", Class::Away),
            ("40P01", Class::Locked),
            ("57P01", Class::Away),
            ("08006", Class::Away),
            ("23505", Class::Conflict),
            ("42P01", Class::Bug),
            ("XX001", Class::Corrupt),
            ("", Class::Bug),
        ] {
            assert_eq!(class(code), expected, "{code}");
        }
    }
}
