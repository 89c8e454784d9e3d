//! Runs, their orders, progress and results, on both databases.

use crate::common::*;
use whetstone_model::action::Action;
use whetstone_model::ids::RunId;
use whetstone_model::lifecycle::Phase;
use whetstone_model::verdict::Outcome;
use whetstone_model::wire::{Order, RunProgress};
use whetstone_store::{CohortRow, ResultStored, RunEndState, RunState, Stale};

both!(
    a_run_is_made_with_its_transition_or_not_at_all,
    a_run_is_made_after_what_it_has_to_answer,
    an_order_stands_until_it_is_taken_up,
    progress_counts_for_ones_own_run_alone,
    a_verdict_is_stored_exactly_once,
    tries_without_a_result_are_counted,
    samples_that_cannot_be_read_hold_up_nobody,
);

async fn a_run_is_made_with_its_transition_or_not_at_all(db: Db) {
    let store = db.store().await;
    enter(&store, 3).await;
    for number in 0..3 {
        go(&store, number, Phase::Discovered, 2).await;
    }
    let run = |sequence| (serial(0), sequence, new_run());
    let stale = store.start_runs(&[run(1)], 3).await.unwrap();
    assert_eq!(stale, [Err(Stale::Moved { sequence: 2 })]);
    assert_eq!(rows_of(&db, "runs").await, 0);

    let answers = store
        .start_runs(&[run(2), run(3), (serial(9), 1, new_run()), (serial(1), 2, new_run())], 3)
        .await
        .unwrap();
    let (first, sequence) = answers[0].clone().unwrap();
    assert_eq!(sequence, 3);
    assert_eq!(answers[1], Err(Stale::ActiveRun { run: first }));
    assert_eq!(answers[2], Err(Stale::NoSuchBlade));
    let (second, _) = answers[3].clone().unwrap();
    assert!(second > first);
    let row = blade(&store, 0).await;
    assert_eq!(row.phase, Phase::BurningIn { run: first });
    let made = row.run.unwrap();
    assert_eq!((made.run, made.state, made.suite.as_str()), (first, RunState::Ordered, "quick"));
    assert_eq!((made.created_ms, made.budget_ms, made.started_ms), (3, 60_000, None));
    assert_eq!(row.why, "first burn-in");
}

/// The operator's clock was ahead for a while.
async fn a_run_is_made_after_what_it_has_to_answer(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    go(&store, 0, Phase::Discovered, 10).await;
    let made = async || blade(&store, 0).await.run.unwrap().created_ms;
    let say = async |seq, code: &str, at_ms| {
        send_at(&store, 0, "s", &[item(seq, kernel(code, "d"))], at_ms).await.unwrap();
    };
    say(1, "xid-48", 8_000).await;
    say(2, "xid-79", 9_000).await;
    let run = run_again(&store, 0, 100).await;
    assert_eq!(made().await, 9_001);
    // While it goes on: one that stood comes again, and a new one.
    say(3, "xid-48", 120).await;
    say(4, "xid-94", 130).await;
    assert_eq!(store.clear_faults(&serial(0), 9_001).await.unwrap(), 1);
    let left: Vec<_> = blade(&store, 0).await.faults.into_iter().map(|f| (f.code, f.last_ms)).collect();
    assert_eq!(left, [("xid-94".to_owned(), 9_001), ("xid-48".to_owned(), 9_001)]);
    store.end_run(run, &RunEndState::Cancelled { why: "w".into() }, 140).await.unwrap();
    // The next answers those, too, and the doubt that a clock ahead has put into it.
    go(&store, 0, quarantined(), 20_000).await;
    run_again(&store, 0, 150).await;
    assert_eq!(made().await, 20_001);
    assert_eq!(store.clear_faults(&serial(0), 20_001).await.unwrap(), 2);
}

async fn an_order_stands_until_it_is_taken_up(db: Db) {
    let store = db.store().await;
    enter(&store, 2).await;
    assert_eq!(store.current_order(&serial(0), None).await.unwrap(), None);
    assert_eq!(store.run_terms(RunId(1)).await.unwrap(), None);
    let run = to_run(&store, 0, 10).await;
    let terms = store.run_terms(run).await.unwrap().unwrap();
    assert_eq!((terms.serial, terms.seed, terms.active), (serial(0), u64::MAX - 1, true));
    assert_eq!(terms.suite_text, new_run().suite_text);
    for _ in 0..2 {
        let Some(Order::BurnIn(order)) = store.current_order(&serial(0), None).await.unwrap() else {
            panic!("no order")
        };
        assert_eq!((order.run, order.seed, order.blade.as_str()), (run, u64::MAX - 1, "b-00000"));
        assert_eq!(order.suite, new_run().suite_text);
        assert_eq!(order.sku, Some("hgx-h100".into()));
    }
    assert_eq!(store.current_order(&serial(0), Some(run)).await.unwrap(), None);
    store.run_progress(&[(serial(0), progress(run, 0.0))], 11).await.unwrap();
    assert_eq!(store.current_order(&serial(0), None).await.unwrap(), None);
    // A run that we do not know, or do not want any more.
    let cancel = |run| Some(Order::CancelRun { run });
    assert_eq!(store.current_order(&serial(0), Some(RunId(999))).await.unwrap(), cancel(RunId(999)));
    assert!(store.end_run(run, &RunEndState::Cancelled { why: "w".into() }, 12).await.unwrap());
    assert!(!store.end_run(run, &RunEndState::Lost { why: "w".into() }, 13).await.unwrap());
    assert!(!store.run_terms(run).await.unwrap().unwrap().active);
    for number in [0, 1] {
        assert_eq!(store.current_order(&serial(number), Some(run)).await.unwrap(), cancel(run));
    }
    assert_eq!(blade(&store, 0).await.run.unwrap().state, RunState::Cancelled { why: "w".into() });
}

fn progress(run: RunId, done: f64) -> RunProgress {
    RunProgress { run, test: "gemm-bf16".into(), number: 3, of: 9, done, doing: String::new() }
}

async fn progress_counts_for_ones_own_run_alone(db: Db) {
    let store = db.store().await;
    enter(&store, 2).await;
    let run = to_run(&store, 0, 10).await;
    store.run_progress(&[(serial(1), progress(run, 0.5))], 20).await.unwrap();
    assert_eq!(blade(&store, 0).await.run.unwrap().state, RunState::Ordered);
    let heard = [(serial(0), progress(run, 0.1)), (serial(0), progress(run, 0.41))];
    store.run_progress(&heard, 30).await.unwrap();
    store.run_progress(&[(serial(0), progress(run, f64::NAN))], 40).await.unwrap();
    let row = blade(&store, 0).await.run.unwrap();
    assert_eq!((row.state, row.started_ms, row.heard_ms), (RunState::Running, Some(30), Some(40)));
    assert_eq!(row.progress, "gemm-bf16 3/9 0 %");
    store.end_run(run, &RunEndState::Lost { why: "silent".into() }, 50).await.unwrap();
    store.run_progress(&[(serial(0), progress(run, 0.9))], 60).await.unwrap();
    let row = blade(&store, 0).await.run.unwrap();
    assert_eq!((row.state, row.heard_ms), (RunState::Lost { why: "silent".into() }, Some(40)));
}

async fn a_verdict_is_stored_exactly_once(db: Db) {
    let store = db.store().await;
    enter(&store, 3).await;
    let run = to_run(&store, 0, 10).await;
    let fail = result(0, run, Outcome::Fail);
    let mut foreign = fail.clone();
    foreign.serial = serial(1);
    assert_eq!(store.store_result(foreign, 11).await.unwrap(), ResultStored::NoSuchRun);
    // The same upload from two connections at once.
    let (a, b) = (store.clone(), db.store().await);
    let (one, other) = tokio::join!(a.store_result(fail.clone(), 12), b.store_result(fail.clone(), 12));
    let mut both = [one.unwrap(), other.unwrap()];
    both.sort_by_key(|stored| format!("{stored:?}"));
    assert_eq!(both, [ResultStored::New, ResultStored::Same]);
    assert_eq!(store.store_result(fail.clone(), 13).await.unwrap(), ResultStored::Same);
    let pass = result(0, run, Outcome::Pass);
    assert_eq!(store.store_result(pass, 14).await.unwrap(), ResultStored::Different);

    let row = blade(&store, 0).await.run.unwrap();
    let finished = RunState::Finished {
        outcome: Outcome::Fail,
        code: "sdc".into(),
        why: "gpu5 sdc: wrong bits on SM 41".into(),
        action: Action::Replace,
    };
    assert_eq!((row.state, row.ended_ms), (finished, Some(12)));
    let report = store.report_of(run).await.unwrap().unwrap();
    assert_eq!((report.report_json, report.samples_jsonl), (fail.report_json, fail.samples_jsonl));
    assert_eq!((report.serial, report.signature.as_str()), (serial(0), "s"));
    assert_eq!(store.report_of(RunId(999)).await.unwrap(), None);

    // A run that was given up: its result counts no more.
    let late = to_run(&store, 1, 20).await;
    store.end_run(late, &RunEndState::Lost { why: "w".into() }, 21).await.unwrap();
    assert_eq!(store.store_result(result(1, late, Outcome::Pass), 22).await.unwrap(), ResultStored::Over);
    assert_eq!(store.history("SN00001").await.unwrap().unwrap().verdicts, []);

    let third = to_run(&store, 2, 30).await;
    store.store_result(result(2, third, Outcome::Pass), 31).await.unwrap();
    let samples = store.samples_of(&[third, run, RunId(999)]).await.unwrap();
    assert_eq!(samples, [(run, b"{\"blade\":\"0\"}\n".to_vec()), (third, b"{\"blade\":\"2\"}\n".to_vec())]);
    let judged = CohortRow { outcome: Outcome::Fail, why: "apart".into(), at_ms: 40 };
    store.store_cohort(&[(third, judged.clone()), (late, judged.clone())]).await.unwrap();
    assert_eq!(blade(&store, 2).await.run.unwrap().cohort, Some(judged));
    assert_eq!(blade(&store, 1).await.run.unwrap().cohort, None);
}

async fn tries_without_a_result_are_counted(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    let run = to_run(&store, 0, 10).await;
    store.store_result(result(0, run, Outcome::Inconclusive), 11).await.unwrap();
    assert_eq!(blade(&store, 0).await.inconclusive, 1);
    let run = run_again(&store, 0, 12).await;
    store.end_run(run, &RunEndState::Lost { why: "w".into() }, 13).await.unwrap();
    assert_eq!(blade(&store, 0).await.inconclusive, 2);
    let run = run_again(&store, 0, 14).await;
    store.end_run(run, &RunEndState::Cancelled { why: "w".into() }, 15).await.unwrap();
    assert_eq!(blade(&store, 0).await.inconclusive, 2);
    let run = run_again(&store, 0, 16).await;
    store.store_result(result(0, run, Outcome::Fail), 17).await.unwrap();
    assert_eq!(blade(&store, 0).await.inconclusive, 0);
}

async fn samples_that_cannot_be_read_hold_up_nobody(db: Db) {
    let store = db.store().await;
    enter(&store, 2).await;
    let runs = [to_run(&store, 0, 10).await, to_run(&store, 1, 10).await];
    for (number, run) in runs.into_iter().enumerate() {
        store.store_result(result(number, run, Outcome::Pass), 11).await.unwrap();
    }
    let raw = raw(&db.url).await;
    let broken = match db.backend {
        Backend::Sqlite => "X'0123456789'",
        Backend::Postgres => "'\\x0123456789'::bytea",
    };
    execute(&raw, &format!("UPDATE results SET samples = {broken} WHERE run = {}", runs[0])).await.unwrap();
    let samples = store.samples_of(&runs).await.unwrap();
    assert_eq!(samples, [(runs[1], b"{\"blade\":\"1\"}\n".to_vec())]);
}
