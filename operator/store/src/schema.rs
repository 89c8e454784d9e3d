//! The schema's versions and how a database gets from one to the next.

use sqlx::AnyConnection;
use sqlx::AssertSqlSafe;

use crate::db::Backend;
use crate::error::StoreError;
use crate::sql::{col, sql};

/// The newest schema: what this program works with.
pub(crate) const VERSION: i64 = 5;

struct Step {
    name: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

/// In order; the first makes version 1. A released one is never changed: its checksum is on record in each database.
const STEPS: [Step; VERSION as usize] = [
    Step {
        name: "base",
        sqlite: include_str!("../migrations/sqlite/0001_base.sql"),
        postgres: include_str!("../migrations/postgres/0001_base.sql"),
    },
    Step {
        name: "retention",
        sqlite: include_str!("../migrations/sqlite/0002_retention.sql"),
        postgres: include_str!("../migrations/postgres/0002_retention.sql"),
    },
    Step {
        name: "boots",
        sqlite: include_str!("../migrations/sqlite/0003_boots.sql"),
        postgres: include_str!("../migrations/postgres/0003_boots.sql"),
    },
    Step {
        name: "faults",
        sqlite: include_str!("../migrations/sqlite/0004_faults.sql"),
        postgres: include_str!("../migrations/postgres/0004_faults.sql"),
    },
    Step {
        name: "lost",
        sqlite: include_str!("../migrations/sqlite/0005_lost.sql"),
        postgres: include_str!("../migrations/postgres/0005_lost.sql"),
    },
];

impl Step {
    fn text(&self, backend: Backend) -> &'static str {
        match backend {
            Backend::Sqlite => self.sqlite,
            Backend::Postgres => self.postgres,
        }
    }
}

fn checksum(text: &str) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(text.as_bytes()))
}

/// The version that a database has; 0 = none of ours. Refuses one that is newer than this program, or was changed by
/// somebody else.
pub(crate) async fn current(db: &mut AnyConnection, backend: Backend) -> Result<i64, StoreError> {
    if !table_exists(db, backend, "schema_versions").await? {
        return Ok(0);
    }
    let rows = sql("SELECT version, checksum FROM schema_versions ORDER BY version").all(db).await?;
    let mut version = 0;
    for row in &rows {
        let (number, stored): (i64, String) = (col(row, 0)?, col(row, 1)?);
        if number > VERSION {
            return Err(StoreError::Schema(format!(
                "database has schema {number}, this program knows up to {VERSION}: use a newer program, or a backup"
            )));
        }
        let step = usize::try_from(number - 1).ok().and_then(|index| STEPS.get(index));
        if number != version + 1 || step.is_none_or(|step| checksum(step.text(backend)) != stored) {
            return Err(StoreError::Schema(format!(
                "database's schema {number} is not the one that this program knows under that number"
            )));
        }
        version = number;
    }
    Ok(version)
}

/// Brings a database up to version `to`, in the transaction that `db` is in.
pub(crate) async fn migrate(db: &mut AnyConnection, backend: Backend, to: i64) -> Result<(), StoreError> {
    if backend == Backend::Postgres {
        // Two operators that start at once: the second waits here, then finds nothing to do. The number is ours.
        sql("SELECT pg_advisory_xact_lock(7738219)").all(db).await?;
    }
    sql("CREATE TABLE IF NOT EXISTS schema_versions \
         (version BIGINT PRIMARY KEY NOT NULL, name TEXT NOT NULL, checksum TEXT NOT NULL)")
    .run(db)
    .await?;
    let from = current(db, backend).await?;
    for version in from + 1..=to.min(VERSION) {
        let Some(step) = usize::try_from(version - 1).ok().and_then(|index| STEPS.get(index)) else {
            continue;
        };
        let text = step.text(backend);
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *db).await?;
        sql("INSERT INTO schema_versions (version, name, checksum) VALUES ($1, $2, $3)")
            .bind(version)
            .bind(step.name)
            .bind(checksum(text))
            .run(db)
            .await?;
        tracing::info!(version, name = step.name, "database schema migrated");
    }
    Ok(())
}

pub(crate) async fn table_exists(
    db: &mut AnyConnection,
    backend: Backend,
    table: &str,
) -> Result<bool, StoreError> {
    let text = match backend {
        Backend::Sqlite => "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = $1",
        Backend::Postgres => {
            "SELECT COUNT(*) FROM pg_catalog.pg_tables WHERE schemaname = current_schema() AND tablename = $1"
        }
    };
    let row = sql(text).bind(table).one(db).await?;
    Ok(col::<i64>(&row, 0)? > 0)
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Int,
    Real,
    Text,
    Blob,
}

/// The columns of a table, in the order in which they were made.
pub(crate) async fn columns(
    db: &mut AnyConnection,
    backend: Backend,
    table: &str,
) -> Result<Vec<(String, Kind)>, StoreError> {
    let text = match backend {
        Backend::Sqlite => "SELECT name, type FROM pragma_table_info($1) ORDER BY cid",
        Backend::Postgres => {
            "SELECT CAST(column_name AS TEXT), CAST(data_type AS TEXT) FROM information_schema.columns \
             WHERE table_schema = current_schema() AND table_name = $1 ORDER BY ordinal_position"
        }
    };
    let mut columns = Vec::new();
    for row in sql(text).bind(table).all(db).await? {
        let kind = match col::<String>(&row, 1)?.to_ascii_lowercase().as_str() {
            "bigint" | "integer" => Kind::Int,
            "double precision" => Kind::Real,
            "bytea" | "blob" => Kind::Blob,
            _ => Kind::Text,
        };
        columns.push((col(&row, 0)?, kind));
    }
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Databases in the field hold these. A change of the schema is a new version, never a new text for an old one.
    const RELEASED: [(&str, &str); 5] = [
        (
            "36c683f50cf794776d7ed1594feb93cd6f961826751161066fb64a7f20a23cf5",
            "ec35df3751f2aa7c011cbf9e43130d50d71300d8b3b6bad7f07f882a21ca6dd4",
        ),
        (
            "43cbaf3bf573b35956474b851febfd281fa61e51a5912987f70312f90dcdb9ff",
            "43cbaf3bf573b35956474b851febfd281fa61e51a5912987f70312f90dcdb9ff",
        ),
        (
            "eaf6daf5bb9c514ebde2e08102e293c9b785aa9aae9f6c692b311a23d5a92850",
            "eaf6daf5bb9c514ebde2e08102e293c9b785aa9aae9f6c692b311a23d5a92850",
        ),
        (
            "c39e59d307b5a24ea4ac38975d736223921c44ee2f0de883a6e56cd4ac93f1fa",
            "c39e59d307b5a24ea4ac38975d736223921c44ee2f0de883a6e56cd4ac93f1fa",
        ),
        (
            "997c32136c99da8840107b0e89c0f19a8a7474e14c16e1b77b0afe1875ddeb26",
            "997c32136c99da8840107b0e89c0f19a8a7474e14c16e1b77b0afe1875ddeb26",
        ),
    ];

    #[test]
    fn a_released_schema_is_never_changed() {
        for (step, (sqlite, postgres)) in STEPS.iter().zip(RELEASED) {
            assert_eq!(checksum(step.sqlite), sqlite, "sqlite {}", step.name);
            assert_eq!(checksum(step.postgres), postgres, "postgres {}", step.name);
        }
    }
}
