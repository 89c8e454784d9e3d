//! What the store's tests share: databases of both kinds, and a small site.

pub mod postgres;

use std::collections::BTreeSet;

use tempfile::TempDir;
use whetstone_model::action::{Action, Severity};
use whetstone_model::device::DeviceId;
use whetstone_model::evidence::{Finding, Reading};
use whetstone_model::ids::{BladeName, CaseId, RackName, RunId, Serial, TrancheName};
use whetstone_model::lifecycle::{Phase, PrepareStep, QuarantineReason};
use whetstone_model::unit::Unit;
use whetstone_model::verdict::Outcome;
use whetstone_model::wire::{Item, ItemBody};
use whetstone_store::{
    BladeRow, ExpectedBlade, Join, NewCase, NewReport, NewRun, NewToken, NewTransition, RetainPolicy,
    RunResultRow, Stale, Store, StoreError, Stored, UpsertOutcome,
};

/// Which database it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Sqlite,
    Postgres,
}

/// A database of one test.
pub struct Db {
    pub backend: Backend,
    pub url: String,
    pub dir: TempDir,
}

impl Db {
    pub async fn new(backend: Backend) -> Db {
        let dir = tempfile::tempdir().unwrap();
        let url = match backend {
            Backend::Sqlite => format!("sqlite:{}?mode=rwc", dir.path().join("store.db").display()),
            Backend::Postgres => postgres::database().await,
        };
        Db { backend, url, dir }
    }

    pub async fn store(&self) -> Store {
        Store::open(&self.url).await.unwrap()
    }
}

/// A connection past the store.
pub async fn raw(url: &str) -> sqlx::AnyPool {
    sqlx::any::install_default_drivers();
    sqlx::any::AnyPoolOptions::new().max_connections(2).connect(url).await.unwrap()
}

pub async fn execute(pool: &sqlx::AnyPool, text: &str) -> Result<u64, sqlx::Error> {
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(text.to_owned())).execute(pool).await?;
    Ok(done.rows_affected())
}

pub async fn number(pool: &sqlx::AnyPool, text: &str) -> i64 {
    sqlx::query_scalar(sqlx::AssertSqlSafe(text.to_owned())).fetch_one(pool).await.unwrap()
}

/// How many rows a table has.
pub async fn rows_of(db: &Db, table: &str) -> i64 {
    let raw = raw(&db.url).await;
    let rows = number(&raw, &format!("SELECT COUNT(*) FROM {table}")).await;
    raw.close().await;
    rows
}

/// The same test on both databases: `both!(function, …)` for `async fn function(db: Db)`.
macro_rules! both {
    ($($test:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::common::Db::new($crate::common::Backend::Sqlite).await).await
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::common::Db::new($crate::common::Backend::Postgres).await).await
            })*
        }
    };
}

pub fn serial(number: usize) -> Serial {
    Serial::new(format!("SN{number:05}")).unwrap()
}

pub fn expected(number: usize) -> ExpectedBlade {
    ExpectedBlade {
        serial: serial(number),
        name: BladeName::new(format!("b-{number:05}")).unwrap(),
        tranche: Some(TrancheName::new("t-07").unwrap()),
        rack: Some(RackName::new(format!("r-{:02}", number / 8)).unwrap()),
        domain: None,
        sku: Some("hgx-h100".into()),
    }
}

/// Enters blades 0 to `count`.
pub async fn enter(store: &Store, count: usize) {
    let blades: Vec<_> = (0..count).map(expected).collect();
    upsert(store, &blades, 1_000).await;
}

/// Enters or updates blades; none moves to another tranche.
pub async fn upsert(store: &Store, blades: &[ExpectedBlade], now_ms: i64) -> Vec<UpsertOutcome> {
    store.upsert_moving(blades, &BTreeSet::new(), now_ms).await.unwrap()
}

/// Stores one report.
pub async fn send_at(
    store: &Store,
    number: usize,
    stream: &str,
    items: &[Item],
    at_ms: i64,
) -> Result<Stored, StoreError> {
    let report = NewReport {
        serial: serial(number),
        instance: "i".into(),
        stream: stream.into(),
        items: items.to_vec(),
        acked: None,
        at_ms,
    };
    Ok(store.store_reports(&[report]).await?.remove(0).unwrap())
}

pub async fn open_case(store: &Store, case: &NewCase) -> CaseId {
    store.open_cases(std::slice::from_ref(case)).await.unwrap().remove(0).unwrap()
}

pub async fn blade(store: &Store, number: usize) -> BladeRow {
    store.load_blades(&[serial(number)]).await.unwrap().blades.pop().unwrap()
}

pub fn step(serial: &Serial, expect_sequence: i64, to: Phase, at_ms: i64) -> NewTransition {
    NewTransition {
        serial: serial.clone(),
        expect_sequence,
        to,
        why: "test".into(),
        run: None,
        case: None,
        at_ms,
    }
}

/// Moves a blade on from wherever it is.
pub async fn go(store: &Store, number: usize, to: Phase, at_ms: i64) -> i64 {
    let sequence = blade(store, number).await.sequence;
    store.transition(&[step(&serial(number), sequence, to, at_ms)]).await.unwrap().pop().unwrap().unwrap()
}

pub fn quarantined() -> Phase {
    Phase::Quarantined { reason: QuarantineReason::Fault }
}

pub fn preparing() -> Phase {
    Phase::Preparing { step: PrepareStep::Identity }
}

pub fn new_run() -> NewRun {
    NewRun {
        suite_name: "quick".into(),
        suite_text: "name = \"quick\"\n".into(),
        budget_ms: 60_000,
        why: "first burn-in".into(),
        // Above what a signed number holds.
        seed: u64::MAX - 1,
        sku: Some("hgx-h100".into()),
    }
}

/// Takes an expected blade to its first run.
pub async fn to_run(store: &Store, number: usize, at_ms: i64) -> RunId {
    go(store, number, Phase::Discovered, at_ms).await;
    run_again(store, number, at_ms).await
}

pub async fn run_again(store: &Store, number: usize, at_ms: i64) -> RunId {
    let sequence = blade(store, number).await.sequence;
    start_run(store, number, sequence, at_ms).await.unwrap().0
}

pub async fn start_run(
    store: &Store,
    number: usize,
    sequence: i64,
    at_ms: i64,
) -> Result<(RunId, i64), Stale> {
    store.start_runs(&[(serial(number), sequence, new_run())], at_ms).await.unwrap().remove(0)
}

pub fn result(number: usize, run: RunId, outcome: Outcome) -> RunResultRow {
    RunResultRow {
        run,
        serial: serial(number),
        report_json: format!("{{\"run\":{run}}}").into_bytes(),
        samples_jsonl: format!("{{\"blade\":\"{number}\"}}\n").into_bytes(),
        manifest_json: "{}".into(),
        signature: "s".into(),
        outcome,
        code: if outcome == Outcome::Pass { "ok".into() } else { "sdc".into() },
        why: "gpu5 sdc: wrong bits on SM 41".into(),
        action: Action::Replace,
        evidence: vec![1, 8812],
        signer: "ab".repeat(32),
        sha256: format!("{run}-{outcome}"),
    }
}

pub fn finding(code: &str, device: &str, severity: Severity) -> Finding {
    Finding {
        code: code.into(),
        device: (!device.is_empty()).then(|| DeviceId::new(device).unwrap()),
        severity,
        action: Action::ResetGpu,
        detail: format!("{code} on {device}"),
        reading: None,
    }
}

pub fn appeared(code: &str, device: &str) -> ItemBody {
    ItemBody::Appeared { finding: finding(code, device, Severity::Fault) }
}

pub fn cleared(code: &str, device: &str) -> ItemBody {
    ItemBody::Cleared { finding: finding(code, device, Severity::Fault) }
}

pub fn kernel(code: &str, device: &str) -> ItemBody {
    ItemBody::Kernel { finding: finding(code, device, Severity::Fault), line: "NVRM: Xid".into() }
}

pub fn reading(value: f64) -> ItemBody {
    let device = Some(DeviceId::new("GPU-1").unwrap());
    ItemBody::Reading { device, reading: Reading::new("gpu.temperature", value, Unit::Celsius) }
}

pub fn item(seq: u64, body: ItemBody) -> Item {
    // A blade whose clock runs backwards: nothing may depend on it.
    Item { seq, at_ms: 1_000_000 - seq.min(1_000_000).cast_signed(), body }
}

/// Codes and devices of the faults that stand.
pub async fn standing(store: &Store, number: usize) -> Vec<(String, Option<String>)> {
    let mut faults: Vec<_> =
        blade(store, number).await.faults.into_iter().map(|fault| (fault.code, fault.device)).collect();
    faults.sort();
    faults
}

pub const HOUR: i64 = 3_600_000;

/// Something in every table.
pub async fn filled(store: &Store) {
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

pub async fn tables(db: &Db) -> Vec<String> {
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
