//! Backup and restore, from and into both databases.

use std::path::Path;

use crate::common::*;
use crate::migrations::{check_v1, newest, old_schema};
use sha2::Digest;
use whetstone_model::action::Action;
use whetstone_model::lifecycle::Phase;
use whetstone_store::{NewCase, Store, StoreOptions, restore};

both!(
    numbers_go_on_far_above_those_of_the_backup,
    a_backup_fills_either_database,
    a_backup_of_an_older_schema_is_brought_up_to_date,
    a_damaged_backup_changes_nothing,
    a_backup_appears_whole_or_not_at_all,
);

/// What numbers go on above, in seconds where the clock is right.
pub const LEAP: i64 = 10_000;

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
