//! Migrations, retention, backup and restore, on both databases.

use std::path::Path;

use crate::common::*;
use sha2::Digest;
use whetstone_model::action::Action;
use whetstone_model::lifecycle::Phase;
use whetstone_model::verdict::Outcome;
use whetstone_store::{Join, NewCase, NewToken, RetainPolicy, Retained, Store, StoreOptions, restore};

both!(
    every_released_schema_is_brought_up_to_date,
    a_newer_or_changed_schema_is_refused,
    two_programs_may_start_at_once,
    evidence_is_thinned_then_deleted_and_stays_known,
    thinning_goes_in_small_batches_and_a_failure_stops_nothing_else,
    others_write_while_a_step_is_thinned,
    two_that_retain_at_once_count_once,
    what_ran_out_is_deleted,
    more_results_than_one_batch_lose_their_samples,
    numbers_go_on_far_above_those_of_the_backup,
    a_database_is_looked_at_as_it_is,
    a_backup_fills_either_database,
    a_backup_of_an_older_schema_is_brought_up_to_date,
    a_damaged_backup_changes_nothing,
    a_backup_appears_whole_or_not_at_all,
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

async fn old_schema(db: &Db, version: i64) {
    let options = StoreOptions { schema: version, ..StoreOptions::default() };
    let store = Store::open_with(&db.url, &options).await.unwrap();
    assert_eq!(store.schema_version().await.unwrap(), version);
    store.close().await;
    let raw = raw(&db.url).await;
    execute(&raw, V1).await.unwrap();
    raw.close().await;
}

/// The newest schema: that of a new database.
async fn newest() -> i64 {
    let db = Db::new(Backend::Sqlite).await;
    db.store().await.schema_version().await.unwrap()
}

/// `heard_ms`: when its fault was last said.
async fn check_v1(store: &Store, heard_ms: i64) {
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

const HOUR: i64 = 3_600_000;

async fn evidence_is_thinned_then_deleted_and_stays_known(db: Db) {
    let store = db.store().await;
    enter(&store, 2).await;
    // A reading a minute for six hours from each blade, and a finding in the third hour.
    let mut all = Vec::new();
    for minute in 0..360_u64 {
        for number in 0..2 {
            let body = if minute == 150 { appeared("ecc", "d") } else { reading(minute as f64) };
            let items = vec![item(minute + 1, body)];
            let (serial, at_ms) = (serial(number), minute.cast_signed() * 60_000);
            all.push(whetstone_store::NewReport {
                serial,
                instance: "i".into(),
                stream: "s".into(),
                items,
                acked: None,
                at_ms,
            });
        }
    }
    store.store_reports(&all).await.unwrap();
    let policy = RetainPolicy {
        raw_evidence_ms: 4 * HOUR,
        thin_after_ms: 2 * HOUR,
        thin_step_ms: HOUR / 2,
        findings_ms: 100 * HOUR,
        samples_ms: HOUR,
    };
    let now = 6 * HOUR;
    let retained = store.retain(&policy, now).await.unwrap();
    // Deleted: hours 0 and 1. Thinned: hours 2 and 3 to two readings each; the finding stays.
    assert_eq!(retained, Retained { raw: 240, thinned: 2 * (119 - 4), done: true, ..Retained::default() });
    let left = store.evidence_of(&serial(0), false, 1_000).await.unwrap();
    assert_eq!(left.len(), 120 + 4 + 1);
    assert_eq!(rows_of(&db, "evidence").await, 250);
    assert_eq!(store.evidence_of(&serial(0), true, 9).await.unwrap().len(), 1);
    assert_eq!(standing(&store, 0).await.len(), 1);
    // Nothing more to do at the same time; and the steps that are thinned are not looked at again.
    assert_eq!(store.retain(&policy, now).await.unwrap(), Retained { done: true, ..Retained::default() });

    // A replay of all of it brings nothing back.
    let mut new = 0;
    for stored in store.store_reports(&all).await.unwrap() {
        new += stored.unwrap().new;
    }
    assert_eq!(new, 0);
    assert_eq!(store.evidence_of(&serial(0), false, 1_000).await.unwrap().len(), 125);

    let retained = store.retain(&policy, 200 * HOUR).await.unwrap();
    assert_eq!((retained.raw, retained.findings), (248, 2));
    assert_eq!(rows_of(&db, "evidence").await, 0);
    // What stands stands, whatever became of the evidence.
    assert_eq!(standing(&store, 0).await.len(), 1);
}

async fn what_ran_out_is_deleted(db: Db) {
    let store = db.store().await;
    filled(&store).await;
    let run = store.history("SN00000").await.unwrap().unwrap().runs[0].run;
    let retained = store.retain(&RetainPolicy::default(), 3_000 * 24 * HOUR).await.unwrap();
    assert_eq!((retained.samples, retained.tokens, retained.certificates), (1, 1, 1));
    assert_eq!(store.samples_of(&[run]).await.unwrap(), []);
    let report = store.report_of(run).await.unwrap().unwrap();
    assert_eq!((report.report_json.is_empty(), report.samples_jsonl.is_empty()), (false, true));
    // For ever: verdicts, transitions, cases, runs, places.
    let history = store.history("SN00000").await.unwrap().unwrap();
    assert_eq!((history.verdicts.len(), history.runs.len(), history.cases.len()), (1, 1, 1));
    assert_eq!((history.transitions.len(), history.places.len()), (4, 1));
}

async fn more_results_than_one_batch_lose_their_samples(db: Db) {
    let store = db.store().await;
    filled(&store).await;
    let raw = raw(&db.url).await;
    for text in [
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 250) \
         INSERT INTO runs (serial, suite, suite_text, budget_ms, why, seed, state, created_ms, ended_ms) \
         SELECT 'SN00001', 's', '', 1, '', i, 'finished', 1, 2 FROM n",
        "INSERT INTO results (run, report, samples, manifest, signature) \
         SELECT r.run, x.report, x.samples, x.manifest, x.signature FROM runs r JOIN results x ON x.run <> r.run",
    ] {
        execute(&raw, text).await.unwrap();
    }
    let retained = store.retain(&RetainPolicy::default(), 3_000 * 24 * HOUR).await.unwrap();
    assert_eq!((retained.samples, retained.done), (251, true));
    assert_eq!(number(&raw, "SELECT COUNT(*) FROM results WHERE LENGTH(samples) = 0").await, 251);
}

/// `each` readings of every blade, all of one sort and of the first hour.
async fn many_readings(store: &Store, blades: usize, each: u64) {
    enter(store, blades).await;
    let reports: Vec<_> = (0..blades)
        .map(|number| whetstone_store::NewReport {
            serial: serial(number),
            instance: "i".into(),
            stream: "s".into(),
            items: (1..=each).map(|seq| item(seq, reading(seq as f64))).collect(),
            acked: None,
            at_ms: 1 + number as i64,
        })
        .collect();
    for reports in reports.chunks(10) {
        store.store_reports(reports).await.unwrap();
    }
}

/// Makes the database refuse to delete one row; whatever goes with it in one transaction stays, too.
async fn hold_fast(raw: &sqlx::AnyPool, db: &Db, stream: i64, seq: i64) {
    if db.url.starts_with("sqlite") {
        let text = format!(
            "CREATE TRIGGER hold BEFORE DELETE ON evidence WHEN OLD.stream = {stream} AND OLD.seq = {seq} \
             BEGIN SELECT RAISE(ABORT, 'held fast'); END"
        );
        execute(raw, &text).await.unwrap();
    } else {
        let text = format!(
            "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'held fast'; END $$; \
             CREATE TRIGGER hold BEFORE DELETE ON evidence FOR EACH ROW \
             WHEN (OLD.stream = {stream} AND OLD.seq = {seq}) EXECUTE FUNCTION hold()"
        );
        execute(raw, &text).await.unwrap();
    }
}

async fn let_go(raw: &sqlx::AnyPool, db: &Db) {
    let table = if db.url.starts_with("sqlite") { "" } else { " ON evidence" };
    execute(raw, &format!("DROP TRIGGER hold{table}")).await.unwrap();
}

/// One step of 40,000 readings. The row that cannot be deleted is in the fourth batch of 5,000.
async fn thinning_goes_in_small_batches_and_a_failure_stops_nothing_else(db: Db) {
    let store = db.store().await;
    many_readings(&store, 20, 2_000).await;
    let token = NewToken { serial: serial(0), sha256: "t0".into() };
    store.new_tokens(&[token], 1_000, "ann", 14).await.unwrap();
    let raw = raw(&db.url).await;
    let stream = number(&raw, "SELECT id FROM streams WHERE serial = 'SN00008'").await;
    hold_fast(&raw, &db, stream, 1_999).await;
    let now = 200 * 24 * HOUR;
    let policy = RetainPolicy { raw_evidence_ms: 10 * now, ..RetainPolicy::default() };
    for _ in 0..2 {
        let error = store.retain(&policy, now).await.unwrap_err();
        assert!(matches!(error.category(), "conflict" | "bug"), "{error:?}");
        // What came before it is done, one batch at a time; what comes after it is not, and the step is not over.
        let left = number(&raw, "SELECT COUNT(*) FROM evidence").await;
        assert!((40_000 - 4 * 5_000..=40_000 - 2 * 5_000).contains(&left), "{left} rows are left");
        assert_eq!(number(&raw, "SELECT COUNT(*) FROM marks").await, 0);
        assert_eq!(number(&raw, "SELECT COUNT(*) FROM tokens").await, 0, "the later clean-ups are done");
        assert_eq!(number(&raw, "SELECT CAST(SUM(items) AS BIGINT) FROM streams").await, left);
    }
    let_go(&raw, &db).await;
    assert!(store.retain(&policy, now).await.unwrap().done);
    // Of each blade its first reading.
    assert_eq!(number(&raw, "SELECT COUNT(*) FROM evidence").await, 20);
    assert_eq!(number(&raw, "SELECT COUNT(*) FROM evidence WHERE seq = 1").await, 20);
    assert_eq!(number(&raw, "SELECT COUNT(*) FROM streams WHERE items = 1 AND floor_seq = 2000").await, 20);
}

/// Others write between the batches: nobody waits for a whole step.
async fn others_write_while_a_step_is_thinned(db: Db) {
    let store = db.store().await;
    many_readings(&store, 30, 2_000).await;
    let policy = RetainPolicy { raw_evidence_ms: 365 * 24 * HOUR, ..RetainPolicy::default() };
    let thinning = {
        let store = store.clone();
        tokio::spawn(async move { store.retain(&policy, 200 * 24 * HOUR).await })
    };
    let raw = raw(&db.url).await;
    let mut seen = std::collections::BTreeSet::new();
    while !thinning.is_finished() {
        store.audit("k", "w", "x", 1).await.unwrap();
        seen.insert(number(&raw, "SELECT COUNT(*) FROM evidence").await);
    }
    assert_eq!(thinning.await.unwrap().unwrap().thinned, 60_000 - 30);
    // The writer saw several states between all and none.
    let between = seen.iter().filter(|left| (1_000..59_000).contains(*left)).count();
    assert!(between >= 3, "{seen:?}");
}

/// Two replicas on one PostgreSQL, for a moment both leaders: nothing is counted down twice.
async fn two_that_retain_at_once_count_once(db: Db) {
    let (a, b) = (db.store().await, db.store().await);
    many_readings(&a, 10, 2_000).await;
    let policy = RetainPolicy { raw_evidence_ms: 365 * 24 * HOUR, ..RetainPolicy::default() };
    let now = 200 * 24 * HOUR;
    let (one, other) = tokio::join!(a.retain(&policy, now), b.retain(&policy, now));
    let both = one.unwrap().thinned + other.unwrap().thinned;
    let raw = raw(&db.url).await;
    let left = number(&raw, "SELECT COUNT(*) FROM evidence").await;
    assert_eq!((left, both), (10, 20_000 - 10));
    assert_eq!(number(&raw, "SELECT CAST(SUM(items) AS BIGINT) FROM streams").await, left);
}

/// What numbers go on above, in seconds where the clock is right.
const LEAP: i64 = 10_000;

/// The site as a restore leaves it: sequences have gone on.
async fn restored(store: &Store) -> whetstone_store::SiteRows {
    let mut site = store.load_site().await.unwrap();
    for blade in &mut site.blades {
        blade.sequence += LEAP;
    }
    site
}

/// Agents refuse a run whose number is not above their last; the objects' schema refuses a lower sequence.
async fn numbers_go_on_far_above_those_of_the_backup(db: Db) {
    let store = db.store().await;
    filled(&store).await;
    let run = store.history("SN00000").await.unwrap().unwrap().runs[0].run;
    let file = db.dir.path().join("backup");
    store.backup(&file).await.unwrap();
    let case = |number: usize| NewCase {
        serial: serial(number),
        code: "x".into(),
        device: None,
        reason: "fault".into(),
        detail: String::new(),
        action: Action::Replace,
        at_ms: 60,
    };
    // After the backup: ten runs, cases and transitions of which it knows nothing.
    let mut last = run;
    for number in [1, 2] {
        go(&store, number, Phase::Discovered, 50).await;
    }
    for _ in 0..5 {
        for number in [1, 2] {
            last = run_again(&store, number, 51).await;
            let end = whetstone_store::RunEndState::Cancelled { why: "w".into() };
            store.end_run(last, &end, 52).await.unwrap();
        }
        for number in [1, 2] {
            go(&store, number, quarantined(), 53).await;
        }
    }
    let last_case = store.open_cases(&[case(1), case(2)]).await.unwrap()[1].unwrap();
    let sequence = blade(&store, 1).await.sequence;
    for backend in [Backend::Sqlite, Backend::Postgres] {
        for (now_ms, at_least) in [(0, LEAP), (1_795_000_000_000, 1_795_000_000)] {
            let other = Db::new(backend).await;
            restore(&other.url, &file, now_ms).await.unwrap();
            let copy = other.store().await;
            let row = blade(&copy, 1).await;
            assert!(row.sequence >= at_least && row.sequence > sequence, "{}", row.sequence);
            // It is also what the next transition is decided on.
            let next = to_run(&copy, 1, 70).await;
            assert!(next.0 > at_least && next > last, "{next}");
            assert_eq!(blade(&copy, 1).await.sequence, row.sequence + 2);
            let opened = copy.open_cases(&[case(1)]).await.unwrap()[0].unwrap();
            assert!(opened.0 > at_least && opened > last_case, "{opened}");
            // Streams count on without a gap.
            send_at(&copy, 1, "later", &[], 9).await.unwrap();
            let raw = raw(&other.url).await;
            assert!(number(&raw, "SELECT MAX(id) FROM streams").await < 100);
        }
    }
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

/// Something in every table.
async fn filled(store: &Store) {
    enter(store, 3).await;
    let run = to_run(store, 0, 10).await;
    store.store_result(result(0, run, Outcome::Fail), 11).await.unwrap();
    go(store, 0, quarantined(), 12).await;
    let case = NewCase {
        serial: serial(0),
        code: "sdc".into(),
        device: None,
        reason: "burn-in".into(),
        detail: "ä \" \\ line\nbreak".into(),
        action: Action::Replace,
        at_ms: 12,
    };
    open_case(store, &case).await;
    let items = [item(1, appeared("ecc", "d")), item(2, reading(0.1)), item(3, kernel("xid-79", ""))];
    send_at(store, 0, "s", &items, 13).await.unwrap();
    let token = NewToken { serial: serial(0), sha256: "t0".into() };
    store.new_tokens(&[token], 1_000, "ann", 14).await.unwrap();
    let join = Join {
        serial: serial(0),
        token_sha256: "t0".into(),
        instance: "i".into(),
        key_fingerprint: "f".into(),
        report_key: "k".into(),
        facts: Default::default(),
    };
    store.use_token(&join, 15).await.unwrap();
    store.record_certificate(&serial(0), "c", "i", 2_000, 15).await.unwrap();
    store.unexpected("X", "who", 16).await.unwrap();
    store.audit("kind", "who", "what", 17).await.unwrap();
    // One that retention deletes, so that its mark is set.
    let old = [item(1, reading(1.0)), item(2, reading(2.0))];
    send_at(store, 2, "old", &old, -HOUR).await.unwrap();
    let policy = RetainPolicy { thin_after_ms: HOUR / 2, ..RetainPolicy::default() };
    assert_eq!(store.retain(&policy, HOUR / 2).await.unwrap().thinned, 1);
}

async fn tables(db: &Db) -> Vec<String> {
    let text = if db.url.starts_with("sqlite") {
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
    } else {
        "SELECT CAST(tablename AS TEXT) FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
    };
    let raw = raw(&db.url).await;
    let names = sqlx::query_scalar(text).fetch_all(&raw).await.unwrap();
    raw.close().await;
    names
}

async fn a_backup_fills_either_database(db: Db) {
    let store = db.store().await;
    filled(&store).await;
    let file = db.dir.path().join("backup");
    let written = store.backup(&file).await.unwrap();
    assert_eq!(written.schema, newest().await);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let other = Db::new(backend).await;
        assert_eq!(restore(&other.url, &file, 0).await.unwrap(), written);
        let (from, to) = (raw(&db.url).await, raw(&other.url).await);
        for table in tables(&db).await {
            let count = format!("SELECT COUNT(*) FROM {table}");
            let rows = number(&from, &count).await;
            assert!(rows > 0, "{table} is empty: the test says nothing about it");
            assert_eq!(number(&to, &count).await, rows, "{table}");
        }
        let copy = other.store().await;
        assert_eq!(copy.load_site().await.unwrap(), restored(&store).await);
        for number in 0..3 {
            let name = serial(number).to_string();
            assert_eq!(copy.history(&name).await.unwrap(), store.history(&name).await.unwrap());
            assert_eq!(
                copy.identity(&serial(number)).await.unwrap(),
                store.identity(&serial(number)).await.unwrap()
            );
            let evidence = store.evidence_of(&serial(number), false, 100).await.unwrap();
            assert_eq!(copy.evidence_of(&serial(number), false, 100).await.unwrap(), evidence);
        }
        let run = store.history("SN00000").await.unwrap().unwrap().runs[0].run;
        assert_eq!(copy.report_of(run).await.unwrap(), store.report_of(run).await.unwrap());
        assert_eq!(copy.list_audit(9).await.unwrap(), store.list_audit(9).await.unwrap());
        // Life goes on: numbers count on, what was known stays known.
        assert!(to_run(&copy, 1, 50).await > run);
        let items = [item(1, appeared("ecc", "d")), item(4, reading(4.0))];
        let stored = send_at(&copy, 0, "s", &items, 60).await.unwrap();
        assert_eq!((stored.new, stored.duplicates), (1, 1));
        send_at(&copy, 1, "another", &items, 60).await.unwrap();
        copy.audit("kind", "who", "what", 61).await.unwrap();
        // Not over what is there.
        let error = restore(&other.url, &file, 0).await.unwrap_err();
        assert_eq!(error.to_string(), "database is not empty: table blades holds 3 rows");
        assert_eq!(error.category(), "conflict");
        assert!(blade(&copy, 1).await.run.is_some());
    }
}

async fn a_backup_of_an_older_schema_is_brought_up_to_date(db: Db) {
    old_schema(&db, 1).await;
    let options = StoreOptions { schema: 1, ..StoreOptions::default() };
    let file = db.dir.path().join("backup");
    let written = Store::open_with(&db.url, &options).await.unwrap().backup(&file).await.unwrap();
    assert_eq!(written.schema, 1);
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let other = Db::new(backend).await;
        // The operator has opened it already, with the newest schema; nothing is in it.
        other.store().await.close().await;
        restore(&other.url, &file, 0).await.unwrap();
        check_v1(&other.store().await, 6).await;
    }
}

/// A backup file with these lines, and an end line that fits them.
fn forge(path: &Path, lines: &[&str]) {
    let mut text = String::new();
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    let sha256 = hex::encode(sha2::Sha256::digest(text.as_bytes()));
    let rows = lines.iter().filter(|line| line.starts_with('[')).count();
    text.push_str(&format!("{{\"end\":true,\"rows\":{rows},\"sha256\":\"{sha256}\"}}\n"));
    std::fs::write(path, zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
}

async fn a_damaged_backup_changes_nothing(db: Db) {
    let store = db.store().await;
    filled(&store).await;
    let good = db.dir.path().join("good");
    store.backup(&good).await.unwrap();
    let bytes = std::fs::read(&good).unwrap();
    let text = String::from_utf8(zstd::decode_all(&bytes[..]).unwrap()).unwrap();
    let pack = |text: &str| zstd::encode_all(text.as_bytes(), 1).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let header = lines[0];
    let path = db.dir.path().join("bad");
    let other = Db::new(db.backend).await;

    let changed = text.replacen("b-00001", "b-00009", 1);
    let cut = lines[..lines.len() - 1].join("\n") + "\n";
    let newer = text.replacen(&format!("\"schema\":{}", newest().await), "\"schema\":77", 1);
    for (name, content, category, says) in [
        ("half a file", bytes[..bytes.len() / 2].to_vec(), "corrupt", ""),
        ("no end line", pack(&cut), "corrupt", "cut off: its end line is missing"),
        ("a changed name", pack(&changed), "corrupt", "checksum is wrong"),
        (
            "more behind its end",
            pack(&format!("{text}[]\n")),
            "corrupt",
            "something comes after its end line",
        ),
        ("empty", Vec::new(), "corrupt", ""),
        ("another file", pack("hello\n"), "corrupt", "not a backup of whetstone"),
        ("a newer program's", pack(&newer), "schema", "backup has format 1 and schema 77"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = restore(&other.url, &path, 0).await.expect_err(name);
        assert_eq!(error.category(), category, "{name}: {error}");
        assert!(error.to_string().contains(says), "{name}: {error}");
    }
    // Those are found before anything is changed; these in the middle.
    let blades = r#"{"table":"blades","columns":["serial","name","phase","phase_name","why","since_ms","sequence","created_ms"]}"#;
    let row = r#"["S","n","{}","Expected","",1,1,1]"#;
    for (lines, category) in [
        (vec![header, blades, row, row], "conflict"),
        (vec![header, blades, row, r#"["S","n"]"#], "corrupt"),
        (vec![header, blades, row, r#"["T",7,"{}","Expected","",1,1,1]"#], "corrupt"),
        (vec![header, blades, row, r#"{"table":"pg_user","columns":["x"]}"#, "[1]"], "corrupt"),
        (vec![header, blades, row, r#"{"table":"runs","columns":["run; --"]}"#, "[1]"], "corrupt"),
        (vec![header, row], "corrupt"),
    ] {
        forge(&path, &lines);
        let error = restore(&other.url, &path, 0).await.expect_err(lines[lines.len() - 1]);
        assert_eq!(error.category(), category, "{lines:?}: {error}");
        assert_eq!(tables(&other).await, Vec::<String>::new(), "{lines:?}");
    }
    let missing = restore(&other.url, &db.dir.path().join("none"), 0).await.unwrap_err();
    assert!(matches!(missing, whetstone_store::StoreError::File { .. }), "{missing:?}");
    // And after all that, the good one goes in.
    restore(&other.url, &good, 0).await.unwrap();
    assert_eq!(other.store().await.load_site().await.unwrap(), restored(&store).await);
}

async fn a_backup_appears_whole_or_not_at_all(db: Db) {
    let store = db.store().await;
    filled(&store).await;
    let file = db.dir.path().join("backup");
    std::fs::write(&file, "precious").unwrap();
    let error = store.backup(&file).await.unwrap_err();
    assert_eq!(error.category(), "away", "{error:?}");
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let nowhere = db.dir.path().join("none/backup");
    store.backup(&nowhere).await.unwrap_err();
    // Cut off by an error of the database: no file, and none half written.
    let raw = raw(&db.url).await;
    execute(&raw, "DROP TABLE audit").await.unwrap();
    execute(&raw, "CREATE VIEW audit AS SELECT 1 AS id").await.unwrap();
    execute(&raw, "DROP TABLE places").await.unwrap();
    execute(&raw, "CREATE TABLE places (number BIGINT)").await.unwrap();
    store.backup(&db.dir.path().join("second")).await.unwrap_err();
    let mut left: Vec<_> = std::fs::read_dir(db.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with("store.db"))
        .collect();
    left.sort();
    assert_eq!(left, ["backup"]);
}
