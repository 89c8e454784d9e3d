//! Evidence: stored once, ordered by nothing but its numbers.

use std::time::Duration;

use whetstone_model::ids::RunId;
use whetstone_model::wire::error_code::*;
use whetstone_model::wire::*;
use whetstone_operator::intake::{self, What};
use whetstone_store::{EvidenceRow, NewReport, NewRun, RunState};

use crate::site::*;

fn evidence(site: &Site, of: &str) -> Vec<EvidenceRow> {
    site.wait(site.store.evidence_of(&serial(of), false, 1_000)).unwrap()
}

fn faults(site: &Site) -> Vec<String> {
    let blade = site.wait(site.store.load_site()).unwrap().blades.remove(0);
    blade.faults.into_iter().map(|fault| fault.code).collect()
}

/// A run for `S1` with this seed.
pub fn run(site: &Site, seed: u64) -> RunId {
    run_of(site, "S1", seed)
}

pub fn run_of(site: &Site, of: &str, seed: u64) -> RunId {
    let new = NewRun {
        suite_name: "quick".into(),
        suite_text: SUITE.into(),
        budget_ms: 60_000,
        why: "test".into(),
        seed,
        sku: Some("hgx-h100".into()),
    };
    start(site, of, &new)
}

/// Starts a run as the planner would.
pub fn start(site: &Site, of: &str, new: &NewRun) -> RunId {
    let (store, one) = (&site.store, serial(of));
    let row = || {
        let blades = site.wait(store.load_site()).unwrap().blades;
        blades.into_iter().find(|blade| blade.serial == one).unwrap()
    };
    if matches!(row().phase, whetstone_model::lifecycle::Phase::Expected) {
        let found = whetstone_store::NewTransition {
            serial: one.clone(),
            expect_sequence: row().sequence,
            to: whetstone_model::lifecycle::Phase::Discovered,
            why: "test".into(),
            run: None,
            case: None,
            at_ms: now_ms(),
        };
        site.wait(store.transition(&[found])).unwrap().remove(0).unwrap();
    }
    let made = [(one.clone(), row().sequence, new.clone())];
    let (run, _) = site.wait(store.start_runs(&made, now_ms())).unwrap().remove(0).unwrap();
    site.intake.order_changed(&one);
    run
}

pub const SUITE: &str = "name = \"quick\"\n";

pub fn progress(run: RunId, done: f64) -> RunProgress {
    RunProgress { run, test: "gemm-bf16".into(), number: 3, of: 9, done, doing: "tiles".into() }
}

#[test]
fn replayed_duplicate_and_out_of_order_evidence_changes_nothing() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    let first = agent.report(vec![appeared(1, "xid-79"), note(2, "a"), appeared(3, "sdc")]);
    let later = agent.report(vec![cleared(4, "xid-79"), note(7, "gap: details were dropped")]);
    let answer: ReportAnswer = agent.send(&first).json();
    assert_eq!(answer.acked, 3);
    assert!(site.has_heard("S1", What::Faults));
    assert_eq!(agent.send(&later).json::<ReportAnswer>().acked, 7);
    assert_eq!(faults(&site), ["sdc"]);
    let stored = evidence(&site, "S1");
    let news = site.heard().len();

    // The same again, in any order, whole and in part, and from a clock that is a year off.
    for _ in 0..3 {
        assert_eq!(agent.send(&later).json::<ReportAnswer>().acked, 7);
        assert_eq!(agent.send(&first).json::<ReportAnswer>().acked, 7);
        let mut part = agent.report(vec![appeared(1, "xid-79")]);
        part.now_ms -= 365 * 86_400_000;
        part.items[0].at_ms += 365 * 86_400_000;
        agent.send(&part).ok();
    }
    assert_eq!(faults(&site), ["sdc"], "a replay has raised a cleared fault");
    assert_eq!(evidence(&site, "S1"), stored);
    assert_eq!(site.heard().len(), news, "the planner was woken for nothing: {:?}", site.heard());
    assert_eq!(site.metric("whetstone_evidence_duplicates_total", &[]), 18.0);
    assert_eq!(site.metric("whetstone_evidence_items_total", &[]), 5.0);
    // An empty report knows how far the store is.
    assert_eq!(agent.send(&agent.report(vec![])).json::<ReportAnswer>().acked, 7);
}

#[test]
fn a_report_without_news_writes_a_sign_of_life_later_and_asks_for_the_next() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    let joined = site.wait(site.store.identity(&agent.serial)).unwrap().unwrap().last_seen_ms.unwrap();
    let mut report = agent.report(vec![]);
    report.usage = Some(AgentUsage { resident_bytes: 20 << 20, cpu_seconds: 1.0, up_seconds: 100.0 });
    site.until("the clock to move on", || now_ms() > joined + 1);
    let answer: ReportAnswer = agent.send(&report).json();
    assert_eq!((answer.acked, answer.order, answer.next_report_ms), (0, None, 10_000));
    assert!((answer.now_ms - now_ms()).abs() < 5_000);
    site.until("the sign of life", || {
        let identity = site.wait(site.store.identity(&agent.serial)).unwrap().unwrap();
        identity.last_seen_ms.unwrap() > joined && identity.stats.is_some_and(|s| s.usage == report.usage)
    });
    report.usage = Some(AgentUsage { resident_bytes: 20 << 20, cpu_seconds: 1.5, up_seconds: 200.0 });
    report.dropped = 7;
    agent.send(&report).ok();
    assert_eq!(site.metric("whetstone_agent_cpu_ratio", &[]), 1.0);
    assert_eq!(site.metric("whetstone_agent_dropped_items_total", &[]), 7.0);
    assert_eq!(
        site.metric("whetstone_intake_batch_requests", &[]),
        0.0,
        "a report without news was written at once"
    );
}

#[test]
fn signs_of_life_survive_an_orderly_end() {
    let config = intake::Config { flush: Duration::from_secs(3_600), ..Default::default() };
    let site = Site::with(1, config);
    let agent = site.joined("S1");
    // The first tick of the flush comes at once: this report comes after it.
    site.until("the first flush", || site.metric("whetstone_joins_total", &[("result", "joined")]) == 1.0);
    let sent = now_ms();
    agent.send(&agent.report(vec![])).ok();
    let (store, runtime, _dir) = site.stop();
    let identity = runtime.block_on(store.identity(&agent.serial)).unwrap().unwrap();
    assert!(identity.last_seen_ms.unwrap() >= sent);
}

#[test]
fn reports_past_their_bounds_are_refused_and_leave_nothing() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    let many = (1..=MAX_ITEMS as u64 + 1).map(|seq| note(seq, "x")).collect();
    let long_run = RunProgress { doing: "x".repeat(2_000), ..progress(RunId(1), 0.0) };
    for (bad, says) in [
        (agent.report(many), "501 items"),
        (agent.report(vec![note(0, "x")]), "items[0]: seq 0"),
        (agent.report(vec![note(2, "x"), note(2, "y")]), "items[1]: seq 2 after 2"),
        (agent.report(vec![note(u64::MAX, "x")]), "items[0]"),
        (ReportRequest { stream: "../x".into(), ..agent.report(vec![]) }, "stream"),
        (ReportRequest { run: Some(long_run), ..agent.report(vec![]) }, "run"),
        (
            ReportRequest {
                facts: Some(BladeFacts {
                    gpus: vec![
                        GpuFacts {
                            uuid: whetstone_model::device::DeviceId::new("GPU").unwrap(),
                            name: None,
                            serial: None,
                            pci: None
                        };
                        129
                    ],
                    ..agent.facts()
                }),
                ..agent.report(vec![])
            },
            "129 GPUs",
        ),
    ] {
        let message = agent.send(&bad).refused(400, BAD_REQUEST);
        assert!(message.contains(says), "{message:?} does not say {says:?}");
    }
    assert!(evidence(&site, "S1").is_empty());
    assert_eq!(site.refused("bad-body"), 7.0);
    site.until("an audit line", || site.audited("refused", "S1 bad-body"));
}

#[test]
fn an_order_comes_until_its_run_goes_on_and_a_strange_run_is_cancelled() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    let empty = || agent.report(vec![]);
    assert_eq!(agent.send(&empty()).json::<ReportAnswer>().order, None);
    let run = run(&site, 42);
    for _ in 0..2 {
        let Some(Order::BurnIn(order)) = agent.send(&empty()).json::<ReportAnswer>().order else {
            panic!("no order")
        };
        assert_eq!(
            (order.run, order.seed, order.suite.as_str(), order.blade.as_str()),
            (run, 42, SUITE, "b-1")
        );
    }
    let busy = |run, done| ReportRequest { run: Some(progress(run, done)), ..agent.report(vec![]) };
    assert_eq!(agent.send(&busy(run, 0.1)).json::<ReportAnswer>().order, None);
    let state = || site.wait(site.store.load_site()).unwrap().blades.remove(0).run.unwrap();
    // On record before the answer.
    assert_eq!(state().state, RunState::Running);
    assert!(site.has_heard("S1", What::PickedUp(run)));
    agent.send(&busy(run, 0.41)).ok();
    site.until("progress", || state().progress.starts_with("gemm-bf16 3/9 41 %"));
    site.until("news of progress", || site.has_heard("S1", What::Progress(run)));

    let strange = RunId(run.0 + 1);
    let order = agent.send(&busy(strange, 0.5)).json::<ReportAnswer>().order;
    assert_eq!(order, Some(Order::CancelRun { run: strange }));
    assert!(!site.has_heard("S1", What::PickedUp(strange)));

    let end = whetstone_store::RunEndState::Cancelled { why: "test".into() };
    assert!(site.wait(site.store.end_run(run, &end, now_ms())).unwrap());
    site.intake.order_changed(&agent.serial);
    assert_eq!(agent.send(&busy(run, 0.6)).json::<ReportAnswer>().order, Some(Order::CancelRun { run }));
    assert_eq!(agent.send(&empty()).json::<ReportAnswer>().order, None);
}

#[test]
fn facts_are_on_record_before_the_answer() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    let facts = BladeFacts { driver: Some("580.1".into()), ..agent.facts() };
    agent.send(&ReportRequest { facts: Some(facts.clone()), ..agent.report(vec![]) }).ok();
    assert_eq!(site.wait(site.store.identity(&agent.serial)).unwrap().unwrap().facts, Some(facts));
    assert!(site.has_heard("S1", What::Facts));
}

#[test]
fn an_agent_hears_that_the_store_lost_what_it_was_told_to_have() {
    let site = Site::start(1);
    let mut agent = site.joined("S1");
    let told = |acked, items| ReportRequest { acked: Some(acked), ..agent.report(items) };
    let again = |report: &ReportRequest| agent.send(report).json::<ReportAnswer>().say_again;
    assert!(!again(&told(0, vec![appeared(1, "sdc"), note(2, "x")])));
    assert!(!again(&told(2, vec![note(3, "x")])));
    assert!(!again(&told(3, vec![])));
    // As if an older store had been restored: what it knows ends before what the agent was told.
    let lost = told(100, vec![note(101, "x")]);
    assert!(again(&lost));
    assert!(again(&lost), "the answer may have been lost");
    assert!(again(&told(100, vec![])));
    assert!(!again(&told(101, vec![])), "it has heard of it");
    assert!(!again(&told(101, vec![appeared(102, "sdc")])));
    // Agents that do not say it are not told.
    assert!(!again(&agent.report(vec![note(103, "x")])));
    // Who leads next asks the store, and nobody for what it has.
    site.leading.send_replace(false);
    agent.send(&told(103, vec![])).refused(503, UNAVAILABLE);
    site.leading.send_replace(true);
    assert!(!again(&told(103, vec![])));
    // A new stream begins at nothing, and nothing is lost of it.
    agent.stream = hex_id();
    let fresh = ReportRequest { acked: Some(0), ..agent.report(vec![note(1, "x")]) };
    assert!(!agent.send(&fresh).json::<ReportAnswer>().say_again);
}

#[test]
fn an_agent_that_has_nothing_new_hears_of_the_loss_too() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    let told = |acked| ReportRequest { acked: Some(acked), ..agent.report(vec![]) };
    let again = |report: &ReportRequest| agent.send(report).json::<ReportAnswer>().say_again;
    let writes = || site.metric("whetstone_intake_batch_requests", &[]);
    assert!(!again(&told(0)));
    assert_eq!(writes(), 0.0);
    // The store is asked once, and every answer says it: one of them may be lost.
    for _ in 0..3 {
        assert!(again(&told(100)));
        assert_eq!(writes(), 1.0);
    }
    // It has said what stands, and was told that this is stored.
    assert!(again(&ReportRequest { items: vec![appeared(101, "sdc")], ..told(100) }));
    assert!(!again(&told(101)));
    assert_eq!(writes(), 2.0);
}

/// The items are stored, and that is all: the answer came too late, the agent had hung up, or the process was killed.
#[test]
fn an_agent_hears_of_the_loss_though_its_first_report_was_stored_and_not_answered() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    let stored = NewReport {
        serial: agent.serial.clone(),
        instance: agent.instance.clone(),
        stream: agent.stream.clone(),
        items: vec![note(101, "x")],
        acked: Some(100),
        at_ms: now_ms(),
    };
    assert_eq!(site.wait(site.store.store_reports(&[stored])).unwrap()[0].clone().unwrap().new, 1);
    let again = |acked, items| {
        let report = ReportRequest { acked: Some(acked), ..agent.report(items) };
        agent.send(&report).json::<ReportAnswer>().say_again
    };
    assert!(again(100, vec![note(101, "x")]));
    assert!(!again(101, vec![]));
}

#[test]
fn more_evidence_than_one_blade_may_send_waits_in_its_spool() {
    let slow = intake::Rate { at_once: 10.0, per_second: 5.0 };
    let config = intake::Config { items: slow, ..Default::default() };
    let site = Site::with(2, config);
    let (greedy, other) = (site.joined("S1"), site.joined("S2"));
    let notes = |from: u64| (from..from + 10).map(|seq| note(seq, "x")).collect::<Vec<_>>();
    greedy.send(&greedy.report(notes(1))).ok();
    let mut more = greedy.report(notes(11));
    more.items.push(appeared(21, "sdc"));
    let answer = greedy.send(&more);
    answer.refused(429, UNAVAILABLE);
    let wait: u64 = answer.retry_after.unwrap().parse().unwrap();
    assert!((1..=3).contains(&wait), "{wait}");
    assert_eq!(site.refused("over-budget"), 1.0);
    site.until("an audit line", || site.audited("refused", "S1 over-budget"));
    // It is heard of all the while, and nobody else is held up.
    greedy.send(&greedy.report(vec![])).ok();
    other.send(&other.report(notes(1))).ok();
    assert_eq!(evidence(&site, "S1").len(), 10);
    site.until("its turn", || greedy.send(&more).status == 200);
    assert_eq!(evidence(&site, "S1").len(), 21);

    let few = intake::Rate { at_once: 2_000.0, per_second: 0.001 };
    let site = Site::with(1, intake::Config { bytes: few, ..Default::default() });
    let agent = site.joined("S1");
    agent.send(&agent.report(vec![note(1, &"x".repeat(1_000))])).ok();
    let answer = agent.send(&agent.report(vec![note(2, &"x".repeat(1_000))]));
    answer.refused(429, UNAVAILABLE);
    assert_eq!(answer.retry_after.as_deref(), Some("60"), "it has to be heard of");
}
