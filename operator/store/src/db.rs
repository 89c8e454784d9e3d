//! The connection to the database: opening it, transactions, time limits.

use std::future::Future;
use std::time::Duration;

use sqlx::AnyConnection;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{Any, AnyPool, ConnectOptions, Connection, Transaction};

use crate::error::StoreError;
use crate::schema;
use crate::sql::{col, sql};
use crate::writes::{Write, Writes};

/// Which database it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Sqlite,
    Postgres,
}

/// How a database is opened. The defaults are for production.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// How long a statement waits for another writer's lock.
    pub busy: Duration,
    /// How long one call of the store may take in all; beyond it, the database counts as away.
    pub limit: Duration,
    /// SQLite: pages of 4 KiB that the file may have; a bound below the disk's size keeps room for everything else.
    pub max_pages: Option<u32>,
    /// Stop at this version of the schema; for tests of migrations.
    pub schema: i64,
    /// How long writes have to go well before one that found no room is forgotten: small ones may still fit on a full disk.
    pub recovery: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            busy: Duration::from_secs(5),
            // Longer than `busy`, shorter than what Kubernetes waits before it calls a probe failed three times over.
            limit: Duration::from_secs(30),
            max_pages: None,
            schema: schema::VERSION,
            recovery: Duration::from_secs(30),
        }
    }
}

/// Readers of an SQLite file beside its one writer; connections to PostgreSQL in all.
const READERS: u32 = 4;
const POSTGRES_CONNECTIONS: u32 = 8;

/// The site's books. Cheap to clone; all clones share the connections.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) backend: Backend,
    /// SQLite: one connection, so that writers queue here and not inside SQLite, where the luckiest goes first.
    writer: AnyPool,
    reader: AnyPool,
    limit: Duration,
    writes: Writes,
}

impl Store {
    /// Opens `sqlite:PATH?mode=rwc` or `postgres://USER@HOST/DATABASE` and brings its schema up to date.
    ///
    /// # Errors
    /// Category `schema` for a database that is newer than this program, `away` if there is none.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Self::open_with(url, &StoreOptions::default()).await
    }

    /// [`Store::open`] with other settings.
    pub async fn open_with(url: &str, options: &StoreOptions) -> Result<Self, StoreError> {
        let store = Self::connect(url, options, Journal::Wal).await?;
        let mut db = store.writer.begin_with(store.begin_write()).await?;
        let version = schema::current(&mut db, store.backend).await?;
        if version < options.schema {
            schema::migrate(&mut db, store.backend, options.schema).await?;
            db.commit().await?;
        }
        Ok(store)
    }

    /// Opens a database that is there, as it is: nothing is made or migrated, so that a look from outside does not change
    /// what an operator of another version works with.
    ///
    /// # Errors
    /// Category `schema` if there is none, or none of ours, or one that is newer than this program.
    pub async fn open_existing(url: &str) -> Result<Self, StoreError> {
        let there = match url.strip_prefix("sqlite:") {
            Some(path) => format!("sqlite:{}", not_created(path)),
            None => url.to_owned(),
        };
        let store = match Self::connect(&there, &StoreOptions::default(), Journal::AsItIs).await {
            Err(StoreError::Away(error)) if there.starts_with("sqlite:") => {
                return Err(StoreError::Schema(format!("no database can be opened there: {error}")));
            }
            store => store?,
        };
        if store.schema_version().await? == 0 {
            return Err(StoreError::Schema(
                "that database is none of whetstone's: it has no schema_versions".into(),
            ));
        }
        Ok(store)
    }

    /// Opens the database and touches nothing in it.
    pub(crate) async fn connect(
        url: &str,
        options: &StoreOptions,
        journal: Journal,
    ) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let backend = match url.split_once(':') {
            Some(("sqlite", path)) if path.contains(":memory:") || path.contains("mode=memory") => {
                return Err(StoreError::Url("a database in memory forgets everything; name a file".into()));
            }
            Some(("sqlite", _)) => Backend::Sqlite,
            Some(("postgres" | "postgresql", _)) => Backend::Postgres,
            _ => {
                return Err(StoreError::Url("neither sqlite:PATH nor postgres://HOST/DATABASE".into()));
            }
        };
        // Batches are statements of many kilobytes: no use in a log.
        let connect: AnyConnectOptions = url.parse::<AnyConnectOptions>()?.disable_statement_logging();
        let (busy, max_pages) = (options.busy.as_millis(), options.max_pages);
        // A pool would try until its time is up, and then say no more than that.
        let mut first = AnyConnection::connect_with(&connect).await?;
        set_up(&mut first, backend, busy, max_pages, journal).await?;
        first.close().await?;
        let pool = |connections: u32| {
            AnyPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(options.busy + Duration::from_secs(5))
                // A round trip per call; a file does not go away.
                .test_before_acquire(backend == Backend::Postgres)
                .after_connect(move |db, _| Box::pin(set_up(db, backend, busy, max_pages, journal)))
        };
        let (writer, reader) = match backend {
            Backend::Sqlite => {
                let writer = pool(1).connect_with(connect.clone()).await?;
                (writer, pool(READERS).connect_lazy_with(connect))
            }
            Backend::Postgres => {
                let both = pool(POSTGRES_CONNECTIONS).connect_with(connect).await?;
                (both.clone(), both)
            }
        };
        let writes = Writes::new(options.recovery);
        Ok(Store { backend, writer, reader, limit: options.limit, writes })
    }

    fn begin_write(&self) -> &'static str {
        match self.backend {
            // Takes the lock at once: a read that later becomes a write cannot wait, it fails.
            Backend::Sqlite => "BEGIN IMMEDIATE",
            Backend::Postgres => "BEGIN",
        }
    }

    /// A transaction that writes. Dropped without `commit`, it changes nothing.
    pub(crate) async fn write(&self) -> Result<Write, StoreError> {
        Ok(self.writes.of(self.begin().await?))
    }

    async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        match self.writer.begin_with(self.begin_write()).await {
            Err(error @ sqlx::Error::PoolTimedOut) if self.backend == Backend::Sqlite => {
                Err(StoreError::Locked(error))
            }
            Err(error) => match StoreError::from(error) {
                // A commit that failed (full disk) leaves a connection that can neither end its transaction nor begin
                // another. There is only one that writes: it would stay so for ever.
                StoreError::Bug(_) => {
                    self.writer.acquire().await?.close().await?;
                    Ok(self.writer.begin_with(self.begin_write()).await?)
                }
                error => Err(error),
            },
            Ok(transaction) => Ok(transaction),
        }
    }

    /// A transaction that sees one moment.
    pub(crate) async fn read(&self) -> Result<Transaction<'static, Any>, StoreError> {
        let begin = match self.backend {
            Backend::Sqlite => "BEGIN",
            Backend::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        Ok(self.reader.begin_with(begin).await?)
    }

    /// Bounds one call in time. PostgreSQL behind a cut network says nothing at all.
    pub(crate) async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(self.limit, call).await {
            Ok(answer) => answer.inspect_err(|error| self.writes.failed(error)),
            Err(_) => Err(StoreError::Slow { seconds: self.limit.as_secs() }),
        }
    }

    /// Why the database takes no writes, where the last ones failed for it: it is full, or read only. A sign of life does
    /// not tell: it needs no room.
    pub fn write_trouble(&self) -> Option<String> {
        self.writes.trouble()
    }

    /// Locks the rows that a statement reads, where the database has other writers than this one; not against those who
    /// only refer to them.
    pub(crate) fn for_update(&self) -> &'static str {
        match self.backend {
            Backend::Sqlite => "",
            Backend::Postgres => " FOR NO KEY UPDATE",
        }
    }

    /// Asks the database for a sign of life, through the connection that writes; another's lock on it is none. Where the last
    /// writes found no room it tries a small one: who is not ready gets no others that could show that there is room again.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            if self.write_trouble().is_some() {
                sql("INSERT INTO marks (name, value) VALUES ('tried', 1) \
                     ON CONFLICT (name) DO UPDATE SET value = marks.value + 1")
                .run(&mut db)
                .await?;
                return db.commit().await;
            }
            sql("SELECT 1").all(&mut db).await?;
            db.rollback().await
        })
        .await
    }

    /// The version of the database's schema.
    pub async fn schema_version(&self) -> Result<i64, StoreError> {
        self.within(async {
            let mut db = self.read().await?;
            schema::current(&mut db, self.backend).await
        })
        .await
    }

    /// Bytes that the database takes.
    pub async fn size_bytes(&self) -> Result<i64, StoreError> {
        self.within(async {
            let mut db = self.read().await?;
            let text = match self.backend {
                Backend::Sqlite => {
                    "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
                }
                Backend::Postgres => "SELECT pg_database_size(current_database())",
            };
            col(&sql(text).one(&mut db).await?, 0)
        })
        .await
    }

    /// Ends all connections; what was committed is safe without it.
    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

/// What becomes of an SQLite file's journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Journal {
    /// Readers beside the writer; it stays so in the file.
    Wal,
    /// The file may be anybody's.
    AsItIs,
}

/// The rest of an SQLite URL, such that a file which is not there is not made.
fn not_created(path: &str) -> String {
    let (file, options) = path.split_once('?').unwrap_or((path, ""));
    let kept = options.split('&').filter(|option| !option.is_empty() && *option != "mode=rwc");
    let mut options: Vec<&str> = kept.collect();
    if !options.iter().any(|option| option.starts_with("mode=")) {
        options.push("mode=rw");
    }
    format!("{file}?{}", options.join("&"))
}

async fn set_up(
    db: &mut AnyConnection,
    backend: Backend,
    busy_ms: u128,
    max_pages: Option<u32>,
    journal: Journal,
) -> Result<(), sqlx::Error> {
    let text = match backend {
        // WAL with NORMAL: a crash of the machine may lose the last commits, never the consistency; agents send again
        // what was not acknowledged.
        Backend::Sqlite => {
            let wal = if journal == Journal::Wal { "PRAGMA journal_mode = WAL;" } else { "" };
            let mut text = format!(
                "PRAGMA busy_timeout = {busy_ms}; {wal} PRAGMA synchronous = NORMAL; \
                 PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY;"
            );
            if let Some(pages) = max_pages {
                text.push_str(&format!(" PRAGMA max_page_count = {pages};"));
            }
            text
        }
        Backend::Postgres => {
            format!("SET lock_timeout = {busy_ms}; SET idle_in_transaction_session_timeout = 60000")
        }
    };
    sqlx::raw_sql(sqlx::AssertSqlSafe(text)).execute(db).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_opened_as_it_is_is_never_made() {
        assert_eq!(not_created("/x/store.db?mode=rwc"), "/x/store.db?mode=rw");
        assert_eq!(not_created("store.db"), "store.db?mode=rw");
        assert_eq!(not_created("//x?cache=shared&mode=rwc"), "//x?cache=shared&mode=rw");
        assert_eq!(not_created("x?mode=ro"), "x?mode=ro");
    }
}
