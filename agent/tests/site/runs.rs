//! Runs that the operator orders: progress, result, and what happens when they are cut off.

use sha2::{Digest as _, Sha256};
use whetstone_model::ids::{BladeName, RunId};
use whetstone_model::report::Report;
use whetstone_model::verdict::Outcome;
use whetstone_model::wire::{BurnInOrder, ItemBody, Order, RunResult};

use super::agent::{Blade, wait};
use super::operator::{Mischief, Operator, runs_of};

const SHORT: &str = r#"
name = "short"
description = "Seconds."
[[test]]
name = "cpu"
kind = "cpu_compute"
budget_s = 3
params = { families = ["hash"] }
[[test]]
name = "clock"
kind = "clock"
budget_s = 1
"#;

/// One that would run for minutes, after a first test that is over at once.
const LONG: &str = r#"
name = "long"
description = "To be cut off."
[[test]]
name = "first"
kind = "inventory"
budget_s = 1
[[test]]
name = "cpu"
kind = "cpu_compute"
budget_s = 300
params = { families = ["hash"] }
"#;

fn order(run: i64, suite: &str) -> Order {
    let blade = BladeName::new("b-001").unwrap();
    Order::BurnIn(BurnInOrder { run: RunId(run), blade, suite: suite.to_owned(), seed: 99, sku: None })
}

/// Checks the signature as an operator does and gives the report.
fn open(operator: &Operator, result: &RunResult) -> Report {
    let (manifest, key) =
        whetstone_bundle::manifest::open(result.manifest_json.as_bytes(), result.signature.as_bytes())
            .unwrap();
    let on_record = operator.books(|books| books.joins[0].report_key.clone());
    assert_eq!(hex::encode(key.as_bytes()), on_record);
    for (name, text) in [("report.json", &result.report_json), ("samples.jsonl", &result.samples_jsonl)] {
        let entry = serde_json::to_value(&manifest.files[name]).unwrap();
        assert_eq!(entry["sha256"], hex::encode(Sha256::digest(text.as_bytes())), "{name}");
    }
    let report: Report = serde_json::from_str(&result.report_json).unwrap();
    assert_eq!((report.run.as_str(), report.blade.name.as_str()), (manifest.run.as_str(), "b-001"));
    report
}

fn result(operator: &Operator) -> RunResult {
    wait("a result", || operator.books(|books| books.results.first().cloned()))
}

fn wait_for_progress(operator: &Operator, test: &str) {
    wait(&format!("test {test}"), || {
        operator.books(|books| books.progress.iter().any(|progress| progress.test == test).then_some(()))
    });
}

#[test]
fn an_ordered_run_reports_progress_and_its_result_is_signed_and_comes_once() {
    let (operator, blade) = (Operator::start(), Blade::new());
    operator.books(|books| books.order = Some(order(41, SHORT)));
    // The first upload's answer is lost: the same bytes come again.
    let mut uploads = 0;
    operator.hook(move |call| {
        uploads += usize::from(call.path.ends_with("/result"));
        (call.path.ends_with("/result") && uploads == 1).then_some(Mischief::Drop)
    });
    let agent = blade.start(&operator, &[]);
    let result = result(&operator);
    let report = open(&operator, &result);
    assert!(report.complete, "{:?}", report.incomplete_because);
    assert_eq!((result.run, report.suite.seed, report.tests.len()), (RunId(41), 99, 2));
    assert_eq!(report.suite.sha256, hex::encode(Sha256::digest(SHORT.as_bytes())));
    operator.books(|books| {
        assert!(books.progress.iter().all(|progress| progress.run == RunId(41) && progress.of == 2));
        assert!(!books.progress.is_empty());
    });
    // The same order again, as from an operator that has not seen the result yet: nothing is run a second time.
    operator.books(|books| books.order = Some(order(41, SHORT)));
    let (reports, progress) = operator.books(|books| (books.reports, books.progress.len()));
    wait("more reports", || operator.books(|books| (books.reports > reports + 2).then_some(())));
    operator.books(|books| {
        assert_eq!(books.progress.len(), progress);
        assert_eq!(runs_of(books), [RunId(41)]);
        books.order = Some(order(42, SHORT));
    });
    wait("the next run", || operator.books(|books| (runs_of(books) == [RunId(41), RunId(42)]).then_some(())));
    assert_eq!(agent.errors(), [""; 0]);
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn a_run_can_be_cancelled_and_one_that_cannot_begin_says_why() {
    let (operator, blade) = (Operator::start(), Blade::new());
    operator.books(|books| books.order = Some(order(7, LONG)));
    let agent = blade.start(&operator, &[]);
    wait_for_progress(&operator, "cpu");
    operator.books(|books| books.order = Some(Order::CancelRun { run: RunId(7) }));
    let report = open(&operator, &result(&operator));
    assert!(!report.complete && report.verdict.outcome != Outcome::Pass);
    assert!(report.incomplete_because.unwrap().starts_with("interrupted"));

    for (run, wanted, code) in
        [(8, order(8, "name = \"x\""), "refused"), (9, Order::CancelRun { run: RunId(9) }, "cancelled")]
    {
        operator.books(|books| books.order = Some(wanted));
        let result = wait("the result", || {
            operator.books(|books| books.results.iter().find(|result| result.run == RunId(run)).cloned())
        });
        let report = open(&operator, &result);
        assert_eq!((report.verdict.outcome, report.verdict.code.as_str()), (Outcome::Inconclusive, code));
    }
    wait("a note on the refusal", || {
        operator.books(|books| {
            let refused = |body: &ItemBody| matches!(body, ItemBody::Note { text } if text.starts_with("run 8 is refused: suite"));
            books.items.values().any(|item| refused(&item.body)).then_some(())
        })
    });
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn an_agent_that_is_killed_in_a_run_reports_it_as_cut_off_and_does_not_run_it_again() {
    let (operator, blade) = (Operator::start(), Blade::new());
    operator.books(|books| books.order = Some(order(5, LONG)));
    let agent = blade.start(&operator, &[]);
    wait_for_progress(&operator, "cpu");
    agent.kill();
    operator.books(|books| books.progress.clear());
    let agent = blade.start(&operator, &[]);
    let result = result(&operator);
    let report = open(&operator, &result);
    assert_eq!(result.run, RunId(5));
    assert_eq!(report.incomplete_because.as_deref(), Some("agent restarted in the middle of the run"));
    assert_ne!(report.verdict.outcome, Outcome::Pass);
    assert_eq!(report.tests.len(), 1, "what was tested before stands");
    operator.books(|books| {
        assert!(books.progress.is_empty(), "it is not run again");
        assert_eq!(runs_of(books), [RunId(5)]);
    });
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn an_agent_that_is_stopped_in_a_run_ends_it_and_delivers_even_if_the_operator_was_away() {
    let (operator, blade) = (Operator::start(), Blade::new());
    operator.books(|books| books.order = Some(order(5, LONG)));
    let agent = blade.start(&operator, &[]);
    wait_for_progress(&operator, "cpu");
    operator.away(true);
    assert_eq!(agent.stop(), Some(0));
    assert!(blade.path("state/runs/5/result.json.zst").exists(), "kept until it is delivered");
    operator.away(false);
    let agent = blade.start(&operator, &[]);
    let report = open(&operator, &result(&operator));
    assert!(report.incomplete_because.unwrap().starts_with("interrupted"));
    wait("its mark", || blade.path("state/runs/5/delivered").exists().then_some(()));
    wait("it to be forgotten", || (!blade.path("state/runs/5/result.json.zst").exists()).then_some(()));
    assert_eq!(agent.stop(), Some(0));
    operator.books(|books| assert_eq!(runs_of(books), [RunId(5)]));
}
