//! Retention: what is thinned, what is deleted, what stays for ever, on both databases.

use crate::common::*;
use whetstone_store::{NewToken, RetainPolicy, Retained, Store};

both!(
    evidence_is_thinned_then_deleted_and_stays_known,
    thinning_goes_in_small_batches_and_a_failure_stops_nothing_else,
    others_write_while_a_step_is_thinned,
    two_that_retain_at_once_count_once,
    what_ran_out_is_deleted,
    more_results_than_one_batch_lose_their_samples,
);

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
