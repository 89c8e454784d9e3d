//! Disks that are full, databases that are locked, gone or broken: said in one word, nothing lost, and on by itself.

use std::time::{Duration, Instant};

use crate::common::*;
use whetstone_model::lifecycle::Phase;
use whetstone_store::{NewReport, Store, StoreError, StoreOptions};

both!(
    a_locked_database_is_transient_and_loses_nothing,
    a_url_that_cannot_be_used_is_said,
    a_database_without_room_is_told_from_one_that_is_well,
);

/// Makes PostgreSQL refuse evidence as on a full disk; of SQLite the limit on pages does it.
async fn fill_up(raw: &sqlx::AnyPool, backend: Backend) {
    match backend {
        Backend::Sqlite => {}
        Backend::Postgres => {
            let text = "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$; \
                 CREATE TRIGGER no_room BEFORE INSERT ON evidence FOR EACH ROW EXECUTE FUNCTION no_room()";
            execute(raw, text).await.unwrap();
        }
    }
}

/// A sign of life needs no room; what the last writes said does tell.
async fn a_database_without_room_is_told_from_one_that_is_well(db: Db) {
    enter(&db.store().await, 1).await;
    for (recovery, forgotten) in [(Duration::ZERO, true), (Duration::from_secs(3_600), false)] {
        let options = StoreOptions { recovery, max_pages: Some(150), ..StoreOptions::default() };
        let store = Store::open_with(&db.url, &options).await.unwrap();
        assert_eq!(store.write_trouble(), None);
        let raw = raw(&db.url).await;
        fill_up(&raw, db.backend).await;
        let mut seq = 0;
        let error = loop {
            let items: Vec<_> = (seq + 1..=seq + 100).map(|seq| item(seq, reading(1.0))).collect();
            match send_at(&store, 0, if forgotten { "a" } else { "b" }, &items, 5).await {
                Ok(_) => seq += 100,
                Err(error) => break error,
            }
            assert!(seq < 100_000, "never full");
        };
        assert_eq!(error.category(), "full", "{error:?}");
        store.load_site().await.unwrap();
        assert_eq!(store.write_trouble().as_deref(), Some("no space left for the database"));
        // A small one still fits: it counts once the trouble is some time ago. The sign of life makes one itself, as nobody
        // else writes to an operator that is not ready.
        store.ping().await.unwrap();
        assert_eq!(number(&raw, "SELECT COUNT(*) FROM marks WHERE name = 'tried'").await, 1);
        assert_eq!(store.write_trouble().is_none(), forgotten);
        if db.backend == Backend::Postgres {
            execute(&raw, "DROP TRIGGER no_room ON evidence; DROP FUNCTION no_room()").await.unwrap();
        }
        store.close().await;
    }
}

async fn a_locked_database_is_transient_and_loses_nothing(db: Db) {
    let options = StoreOptions { busy: Duration::from_millis(50), ..StoreOptions::default() };
    let store = Store::open_with(&db.url, &options).await.unwrap();
    enter(&store, 2).await;
    let raw = raw(&db.url).await;
    let mut other = raw.acquire().await.unwrap();
    let lock = match db.backend {
        Backend::Sqlite => "BEGIN IMMEDIATE",
        Backend::Postgres => "BEGIN; LOCK TABLE blades IN ACCESS EXCLUSIVE MODE",
    };
    sqlx::raw_sql(lock).execute(&mut *other).await.unwrap();
    let report = [item(1, appeared("ecc", "d")), item(2, reading(1.0))];
    for _ in 0..2 {
        let error = send_at(&store, 0, "s", &report, 5).await.unwrap_err();
        assert_eq!((error.category(), error.is_transient()), ("locked", true), "{error:?}");
        let error = store.transition(&[step(&serial(0), 1, Phase::Discovered, 6)]).await.unwrap_err();
        assert_eq!(error.category(), "locked", "{error:?}");
    }
    sqlx::raw_sql("ROLLBACK").execute(&mut *other).await.unwrap();
    let stored = send_at(&store, 0, "s", &report, 7).await.unwrap();
    assert_eq!((stored.new, stored.duplicates), (2, 0));
    assert_eq!(store.transition(&[step(&serial(0), 1, Phase::Discovered, 8)]).await.unwrap(), [Ok(2)]);
}

async fn a_url_that_cannot_be_used_is_said(db: Db) {
    for url in
        ["sqlite::memory:", "sqlite:x.db?mode=memory", "mysql://h/d", "", "/var/store.db", "postgres://h:x/"]
    {
        let error = Store::open(url).await.unwrap_err();
        assert_eq!((error.category(), error.is_transient()), ("schema", false), "{url}: {error:?}");
    }
    let gone = format!("sqlite:{}/none/store.db?mode=rwc", db.dir.path().display());
    let error = Store::open(&gone).await.unwrap_err();
    assert_eq!((error.category(), error.is_transient()), ("away", true), "{error:?}");
    let gone = format!("postgres://postgres@localhost/x?host={}", db.dir.path().display());
    let error = Store::open(&gone).await.unwrap_err();
    assert_eq!((error.category(), error.is_transient()), ("away", true), "{error:?}");
}

/// The limit on pages stands for the disk's end: SQLite takes the same way through its code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_transient_and_loses_nothing() {
    let db = Db::new(Backend::Sqlite).await;
    enter(&db.store().await, 4).await;
    let full = StoreOptions { max_pages: Some(150), ..StoreOptions::default() };
    let store = Store::open_with(&db.url, &full).await.unwrap();
    let report = |batch: u64| NewReport {
        serial: serial(batch as usize % 4),
        instance: "i".into(),
        stream: "s".into(),
        items: (1..=100)
            .map(|number| {
                let body =
                    if number == 50 { appeared(&format!("c-{batch}"), "d") } else { reading(number as f64) };
                item(batch * 1_000 + number, body)
            })
            .collect(),
        acked: None,
        at_ms: batch.cast_signed(),
    };
    let mut stored = 0;
    let error = loop {
        match store.store_reports(&[report(stored)]).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 1_000, "never full");
    };
    assert_eq!((error.category(), error.is_transient()), ("full", true), "{error:?}");
    assert!(stored > 0);
    // Again and again: the connection does not break by it, and what was acknowledged is there, the rest not at all.
    for _ in 0..5 {
        let error = store.store_reports(&[report(stored)]).await.unwrap_err();
        assert_eq!(error.category(), "full", "{error:?}");
        assert_eq!(rows_of(&db, "evidence").await, 100 * stored as i64);
        store.ping().await.unwrap();
    }
    let faults: usize = store.load_site().await.unwrap().blades.iter().map(|blade| blade.faults.len()).sum();
    assert_eq!(faults, stored as usize);
    // There is room again.
    store.close().await;
    let store = db.store().await;
    let again = store.store_reports(&[report(stored), report(stored + 1)]).await.unwrap();
    assert!(again.iter().all(|stored| stored.clone().unwrap().new == 100));
    assert_eq!(rows_of(&db, "evidence").await, 100 * (stored as i64 + 2));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_corrupt() {
    let db = Db::new(Backend::Sqlite).await;
    std::fs::write(
        db.dir.path().join("store.db"),
        "not a database, and long enough to be looked at. ".repeat(200),
    )
    .unwrap();
    let error = Store::open(&db.url).await.unwrap_err();
    assert_eq!((error.category(), error.is_transient()), ("corrupt", false), "{error:?}");
}

/// A database that takes no connections for a while, as during a restart or a failover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_gone_is_used_again() {
    let db = Db::new(Backend::Postgres).await;
    let store = db.store().await;
    enter(&store, 1).await;
    let name = db.url.split('?').next().unwrap().rsplit('/').next().unwrap();
    let admin = raw(&db.url.replace(name, "postgres")).await;
    let gone = format!(
        "ALTER DATABASE {name} ALLOW_CONNECTIONS false; \
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    );
    execute(&admin, &gone).await.unwrap();
    for _ in 0..3 {
        let error = store.ping().await.unwrap_err();
        assert_eq!((error.category(), error.is_transient()), ("away", true), "{error:?}");
        let error = store.load_site().await.unwrap_err();
        assert_eq!(error.category(), "away", "{error:?}");
    }
    execute(&admin, &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match store.transition(&[step(&serial(0), 1, Phase::Discovered, 6)]).await {
            Ok(answers) => break assert_eq!(answers, [Ok(2)]),
            Err(error) => assert!(error.is_transient() && Instant::now() < deadline, "{error:?}"),
        }
    }
}

/// A connection that breaks in the middle of a transaction: nothing of it stays, and the error is transient.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_changes_nothing() {
    let db = Db::new(Backend::Postgres).await;
    let options = StoreOptions { busy: Duration::from_secs(20), ..StoreOptions::default() };
    let store = Store::open_with(&db.url, &options).await.unwrap();
    enter(&store, 1).await;
    let raw = raw(&db.url).await;
    let mut other = raw.acquire().await.unwrap();
    // The report waits for this lock after it has made its stream.
    sqlx::raw_sql("BEGIN; LOCK TABLE evidence IN ACCESS EXCLUSIVE MODE").execute(&mut *other).await.unwrap();
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { send_at(&store, 0, "s", &[item(1, appeared("ecc", "d"))], 5).await })
    };
    let blocked = "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    let deadline = Instant::now() + Duration::from_secs(20);
    while number(&raw, blocked).await == 0 {
        assert!(Instant::now() < deadline, "the report does not wait");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE wait_event_type = 'Lock' AND datname = current_database()";
    execute(&raw, terminate).await.unwrap();
    let error: StoreError = waiting.await.unwrap().unwrap_err();
    assert_eq!((error.category(), error.is_transient()), ("away", true), "{error:?}");
    sqlx::raw_sql("ROLLBACK").execute(&mut *other).await.unwrap();
    assert_eq!(rows_of(&db, "streams").await, 0);
    let stored = send_at(&store, 0, "s", &[item(1, appeared("ecc", "d"))], 6).await;
    assert_eq!(stored.unwrap().new, 1);
}
