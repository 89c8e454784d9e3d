//! Opening a database: migrations from every released schema, and what is refused, on both databases.

use crate::backup::LEAP;
use crate::common::*;
use whetstone_model::lifecycle::Phase;
use whetstone_store::{RetainPolicy, Store, StoreOptions};

both!(
    every_released_schema_is_brought_up_to_date,
    a_newer_or_changed_schema_is_refused,
    two_programs_may_start_at_once,
    a_database_is_looked_at_as_it_is,
);

/// Rows as the first schema had them.
const V1: &str = "INSERT INTO blades (serial, name, tranche, phase, phase_name, why, since_ms, sequence, created_ms) \
    VALUES ('SN00000', 'b-00000', 't-07', '{\"phase\":\"Discovered\"}', 'Discovered', 'joined', 7, 2, 1); \
    INSERT INTO places (serial, number, name, tranche, from_ms) VALUES ('SN00000', 1, 'b-00000', 't-07', 1); \
    INSERT INTO transitions (serial, sequence, to_phase, to_name, why, at_ms) \
    VALUES ('SN00000', 1, '{\"phase\":\"Expected\"}', 'Expected', 'on the manifest', 1); \
    INSERT INTO streams (id, serial, name, instance, max_seq, items, first_ms, last_ms) \
    VALUES (1, 'SN00000', 's', 'i', 1, 1, 5, 6); \
    INSERT INTO evidence (stream, seq, at_ms, received_ms, kind, code, device, body) VALUES (1, 1, 1, 6, 1, 'ecc', 'd', \
    '{\"type\":\"note\",\"text\":\"n\"}'); \
    INSERT INTO faults (serial, code, device, source, standing, action, detail, since_ms, stream, seq) \
    VALUES ('SN00000', 'ecc', 'd', 'probe', 1, 'reset_gpu', 'x', 5, 1, 1);";

pub async fn old_schema(db: &Db, version: i64) {
    let options = StoreOptions { schema: version, ..StoreOptions::default() };
    let store = Store::open_with(&db.url, &options).await.unwrap();
    assert_eq!(store.schema_version().await.unwrap(), version);
    store.close().await;
    let raw = raw(&db.url).await;
    execute(&raw, V1).await.unwrap();
    raw.close().await;
}

/// The newest schema: that of a new database.
pub async fn newest() -> i64 {
    let db = Db::new(Backend::Sqlite).await;
    db.store().await.schema_version().await.unwrap()
}

/// `heard_ms`: when its fault was last said.
pub async fn check_v1(store: &Store, heard_ms: i64) {
    assert_eq!(store.schema_version().await.unwrap(), newest().await);
    let row = blade(store, 0).await;
    assert_eq!((row.phase, row.since_ms, row.sequence % LEAP), (Phase::Discovered, 7, 2));
    assert_eq!(row.faults.len(), 1);
    assert_eq!((row.faults[0].since_ms, row.faults[0].last_ms), (5, heard_ms));
    assert_eq!(store.history("b-00000").await.unwrap().unwrap().transitions.len(), 1);
    // Old rows and new code: the item is known, the next is not.
    let items = [item(1, appeared("ecc", "d")), item(2, reading(1.0))];
    let stored = send_at(store, 0, "s", &items, 9).await.unwrap();
    assert_eq!((stored.new, stored.duplicates), (1, 1));
    // Numbers go on where they were.
    send_at(store, 0, "another stream", &[], 9).await.unwrap();
    store.retain(&RetainPolicy::default(), 10).await.unwrap();
}

async fn every_released_schema_is_brought_up_to_date(db: Db) {
    let backend = db.backend;
    for version in 1..newest().await {
        let db = Db::new(backend).await;
        old_schema(&db, version).await;
        if backend == Backend::Postgres {
            let raw = raw(&db.url).await;
            let text = "SELECT setval(pg_get_serial_sequence('streams', 'id'), 1)";
            execute(&raw, text).await.unwrap();
        }
        // When its item came in; where an older program wrote it beside a newer one, since when it stands.
        check_v1(&db.store().await, if version < 4 { 6 } else { 5 }).await;
        // Opening it once more finds nothing to do.
        check_again(&db).await;
    }
}

async fn check_again(db: &Db) {
    let newest = newest().await;
    assert_eq!(db.store().await.schema_version().await.unwrap(), newest);
    assert_eq!(rows_of(db, "schema_versions").await, newest);
}

async fn a_newer_or_changed_schema_is_refused(db: Db) {
    db.store().await.close().await;
    let raw = raw(&db.url).await;
    let newer = "INSERT INTO schema_versions (version, name, checksum) VALUES (99, 'later', 'x')";
    execute(&raw, newer).await.unwrap();
    let error = Store::open(&db.url).await.unwrap_err();
    assert_eq!((error.category(), error.is_transient()), ("schema", false));
    assert!(error.to_string().starts_with("database has schema 99, this program knows up to"), "{error}");
    execute(&raw, "DELETE FROM schema_versions WHERE version = 99").await.unwrap();
    execute(&raw, "UPDATE schema_versions SET checksum = 'x' WHERE version = 1").await.unwrap();
    let error = Store::open(&db.url).await.unwrap_err();
    assert_eq!(error.category(), "schema");
    assert!(error.to_string().contains("schema 1 is not the one"), "{error}");
}

async fn two_programs_may_start_at_once(db: Db) {
    let opened = futures::future::join_all((0..4).map(|_| Store::open(&db.url))).await;
    for store in opened {
        assert_eq!(store.unwrap().schema_version().await.unwrap(), newest().await);
    }
    check_again(&db).await;
}

async fn a_database_is_looked_at_as_it_is(db: Db) {
    let file = db.dir.path().join("backup");
    // None there: none is made.
    let missing = format!("sqlite:{}?mode=rwc", db.dir.path().join("mistyped.db").display());
    let error = Store::open_existing(&missing).await.unwrap_err();
    assert_eq!(error.category(), "schema", "{error:?}");
    assert!(!db.dir.path().join("mistyped.db").exists());
    // There, but empty: none of ours.
    raw(&db.url).await.acquire().await.unwrap();
    let error = Store::open_existing(&db.url).await.unwrap_err();
    assert!(error.to_string().contains("none of whetstone's"), "{error}");
    assert_eq!(tables(&db).await, Vec::<String>::new());
    // An older program's stays as it is: that one still runs.
    old_schema(&db, 1).await;
    let store = Store::open_existing(&db.url).await.unwrap();
    assert_eq!(store.backup(&file).await.unwrap().schema, 1);
    assert_eq!(store.schema_version().await.unwrap(), 1);
    let raw = raw(&db.url).await;
    let newer = "INSERT INTO schema_versions (version, name, checksum) VALUES (99, 'later', 'x')";
    execute(&raw, newer).await.unwrap();
    let error = Store::open_existing(&db.url).await.unwrap_err();
    assert!(error.to_string().starts_with("database has schema 99"), "{error}");
}
