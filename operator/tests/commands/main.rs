//! `whetstone-operator backup` and `restore` as a person runs them: what they say, how they end, and what they leave alone.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a broken promise is a failed test"
)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use tokio::runtime::Runtime;
use whetstone_model::ids::{BladeName, Serial};
use whetstone_store::{ExpectedBlade, Store, StoreOptions};

struct Ended {
    code: i32,
    out: String,
    err: String,
}

fn operator(arguments: &[&str]) -> Ended {
    let output = Command::new(env!("CARGO_BIN_EXE_whetstone-operator"))
        .args(arguments)
        .env_remove("WHETSTONE_STORE")
        .output()
        .unwrap();
    Ended {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ended {
    /// Wrong input: said in a line, and nothing was done.
    fn refused(&self, says: &str) {
        assert_eq!(self.code, 2, "{}", self.err);
        assert_eq!(self.out, "");
        assert!(self.err.starts_with("whetstone-operator: ") && self.err.contains(says), "{}", self.err);
    }

    fn done(&self) -> &str {
        assert_eq!((self.code, self.err.as_str()), (0, ""));
        &self.out
    }
}

struct Site {
    dir: TempDir,
    runtime: Runtime,
}

impl Site {
    fn new() -> Site {
        Site { dir: tempfile::tempdir().unwrap(), runtime: Runtime::new().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn url(&self, name: &str) -> String {
        format!("sqlite:{}?mode=rwc", self.path(name))
    }

    fn open(&self, name: &str) -> Store {
        self.runtime.block_on(Store::open(&self.url(name))).unwrap()
    }

    fn enter(&self, store: &Store, from: usize, to: usize) {
        let blades: Vec<_> = (from..to)
            .map(|number| ExpectedBlade {
                serial: Serial::new(format!("SN{number}")).unwrap(),
                name: BladeName::new(format!("b-{number}")).unwrap(),
                tranche: None,
                rack: None,
                domain: None,
                sku: None,
            })
            .collect();
        self.runtime.block_on(store.upsert_moving(&blades, &BTreeSet::new(), 1)).unwrap();
    }

    fn blades(&self, store: &Store) -> usize {
        self.runtime.block_on(store.load_site()).unwrap().blades.len()
    }

    fn backup(&self, store: &str, out: &str) -> Ended {
        operator(&["backup", "--store", &self.url(store), "--out", &self.path(out)])
    }

    fn restore(&self, store: &str, from: &str) -> Ended {
        operator(&["restore", "--store", &self.url(store), "--from", &self.path(from)])
    }
}

#[test]
fn a_backup_beside_the_operator_is_whole_and_fills_a_new_store() {
    let site = Site::new();
    let store = site.open("store.db");
    site.enter(&store, 0, 50);
    // The operator writes on while the backup is made.
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let writer = {
        let (store, handle) = (store.clone(), site.runtime.handle().clone());
        std::thread::spawn(move || {
            let mut lines = 0;
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                handle.block_on(store.audit("kind", "who", "what", lines)).unwrap();
                lines += 1;
            }
            lines
        })
    };
    let said = site.backup("store.db", "backup");
    stop.send(()).unwrap();
    assert!(writer.join().unwrap() > 0);
    // A row, a place and a transition of each blade, and some of the audit's lines.
    let said = said.done().to_owned();
    let rows: usize = said.split(' ').next().unwrap().parse().unwrap();
    assert!(rows >= 150 && said.ends_with(&format!(" in {}\n", site.path("backup"))), "{said}");

    let read = site.restore("new.db", "backup");
    assert!(read.done().starts_with(&format!("{rows} rows (schema ")), "{}", read.out);
    let copy = site.open("new.db");
    assert_eq!(site.blades(&copy), 50);
    // Numbers leap to the time of the restore: agents and objects know of later ones than the backup.
    let row = site.runtime.block_on(copy.load_site()).unwrap().blades.remove(0);
    assert!(row.sequence > 1_700_000_000, "{}", row.sequence);
}

#[test]
fn a_restore_goes_over_no_store_that_has_something_in_it() {
    let site = Site::new();
    let store = site.open("store.db");
    site.enter(&store, 0, 3);
    site.backup("store.db", "backup").done();
    site.enter(&store, 3, 5);
    site.restore("store.db", "backup").refused("database is not empty: table blades holds 5 rows");
    assert_eq!(site.blades(&store), 5);
    // Nor a backup over a file.
    site.backup("store.db", "backup").refused("file ");
    // A file that is no backup makes no store.
    std::fs::write(site.path("other"), "hello").unwrap();
    for (from, says) in [("other", "backup cannot be read"), ("nothing", "nothing")] {
        site.restore("new.db", from).refused(says);
        assert!(!Path::new(&site.path("new.db")).exists(), "{from}");
    }
}

#[test]
fn a_mistyped_store_is_no_empty_site() {
    let site = Site::new();
    site.backup("stroe.db", "backup").refused("no database can be opened there");
    // A database, and nobody's.
    std::fs::write(site.path("empty.db"), "").unwrap();
    site.backup("empty.db", "backup").refused("none of whetstone's");
    assert_eq!(std::fs::read(site.path("empty.db")).unwrap(), b"");
    for url in ["store.db", "mysql://h/d", ""] {
        operator(&["backup", "--store", url, "--out", &site.path("backup")]).refused("bad database url");
    }
    let mut left: Vec<_> =
        std::fs::read_dir(site.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["empty.db"]);
    // No store named at all, an option that there is not: clap says so.
    for arguments in [&["backup", "--out", "x"][..], &["backup", "--storage", "x"], &["nothing"]] {
        let ended = operator(arguments);
        assert_eq!(ended.code, 2, "{}", ended.err);
    }
}

/// The newer image's backup beside an operator of the older one.
#[test]
fn a_backup_leaves_an_older_schema_as_it_is() {
    let site = Site::new();
    let older = StoreOptions { schema: 2, ..StoreOptions::default() };
    let url = site.url("store.db");
    let store = site.runtime.block_on(Store::open_with(&url, &older)).unwrap();
    let said = site.backup("store.db", "backup");
    assert_eq!(said.done(), format!("0 rows (schema 2) in {}\n", site.path("backup")));
    let pool = site.runtime.block_on(sqlx::SqlitePool::connect(&url)).unwrap();
    let version: i64 = site
        .runtime
        .block_on(sqlx::query_scalar("SELECT MAX(version) FROM schema_versions").fetch_one(&pool))
        .unwrap();
    assert_eq!(version, 2);
    drop(store);
}
