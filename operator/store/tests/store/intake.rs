//! Evidence: whatever the network repeats, loses or turns round, it is stored once, and the same faults stand.

use std::collections::{BTreeMap, BTreeSet};

use crate::common::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use whetstone_model::action::Severity;
use whetstone_model::wire::{Item, ItemBody};
use whetstone_store::{EvidenceKind, NewReport, NotStored, RetainPolicy, Store, Stored};

both!(
    an_item_is_stored_once,
    a_refused_report_stops_no_other,
    faults_come_and_go_by_what_was_said_last,
    a_kernel_fault_stands_until_it_is_proven_gone,
    a_fault_that_comes_again_outlives_the_run_that_it_came_in,
    a_fault_of_an_older_operator_was_heard_of_when_it_came,
    a_later_stream_overrules_an_earlier_one,
    a_blade_that_makes_up_findings_is_bounded,
    texts_from_a_blade_are_stored_whatever_they_hold,
    intake_does_not_depend_on_the_way,
);

async fn send(store: &Store, number: usize, stream: &str, items: &[Item]) -> Stored {
    send_at(store, number, stream, items, 500).await.unwrap()
}

async fn an_item_is_stored_once(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    let items: Vec<_> = (1..=1_700).map(|seq| item(seq, reading(seq as f64))).collect();
    let stored = send(&store, 0, "a", &items[..700]).await;
    assert_eq!((stored.new, stored.duplicates, stored.acked), (700, 0, 700));
    // Sent again, because the answer was lost, with more behind it.
    let stored = send(&store, 0, "a", &items).await;
    assert_eq!((stored.new, stored.duplicates, stored.acked), (1_000, 700, 1_700));
    let stored = send(&store, 0, "a", &[items[3].clone(), items[3].clone()]).await;
    assert_eq!((stored.new, stored.duplicates, stored.acked), (0, 2, 4));
    // A sign of life.
    assert_eq!(send(&store, 0, "a", &[]).await.acked, 1_700);
    assert_eq!(send(&store, 0, "b", &[]).await.acked, 0);
    assert_eq!(rows_of(&db, "evidence").await, 1_700);

    // Details that the spool dropped leave a gap; what comes late goes into it.
    let stored = send(&store, 0, "c", &[item(10, reading(1.0)), item(20, reading(2.0))]).await;
    assert_eq!((stored.new, stored.acked), (2, 20));
    let stored = send(&store, 0, "c", &[item(10, reading(1.0)), item(15, appeared("x", "d"))]).await;
    assert_eq!((stored.new, stored.duplicates, stored.faults_changed), (1, 1, true));

    let rows = store.evidence_of(&serial(0), false, 3).await.unwrap();
    let seqs: Vec<_> = rows.iter().map(|row| (row.stream.as_str(), row.seq)).collect();
    assert_eq!(seqs, [("c", 20), ("c", 15), ("c", 10)]);
    assert_eq!(
        (rows[0].kind, rows[0].value, rows[0].unit.as_deref()),
        (EvidenceKind::Reading, Some(2.0), Some("C"))
    );
    assert_eq!(rows[1].body, Some(appeared("x", "d")));
    assert_eq!((rows[1].received_ms, rows[1].device.as_deref()), (500, Some("d")));
    assert_eq!(store.evidence_of(&serial(0), true, 100).await.unwrap().len(), 1);
}

async fn a_refused_report_stops_no_other(db: Db) {
    let store = db.store().await;
    enter(&store, 2).await;
    let report = |number, seq| NewReport {
        serial: serial(number),
        instance: "i".into(),
        stream: "s".into(),
        items: vec![item(seq, reading(1.0))],
        acked: None,
        at_ms: 1,
    };
    let reports = [report(0, 1), report(7, 1), report(1, 0), report(1, u64::MAX), report(1, i64::MAX as u64)];
    let answers = store.store_reports(&reports).await.unwrap();
    assert_eq!(answers[0].clone().unwrap().new, 1);
    assert_eq!(answers[1], Err(NotStored::NoSuchBlade));
    assert_eq!(answers[2], Err(NotStored::BadSeq(0)));
    assert_eq!(answers[3], Err(NotStored::BadSeq(u64::MAX)));
    assert_eq!(answers[4].clone().unwrap().new, 1);
}

async fn faults_come_and_go_by_what_was_said_last(db: Db) {
    let store = db.store().await;
    enter(&store, 2).await;
    let stored =
        send(&store, 0, "s", &[item(1, appeared("ecc", "GPU-1")), item(2, appeared("ecc", ""))]).await;
    assert!(stored.faults_changed);
    let both = [("ecc".to_owned(), None), ("ecc".to_owned(), Some("GPU-1".to_owned()))];
    assert_eq!(standing(&store, 0).await, both);
    let fault = blade(&store, 0).await.faults.remove(1);
    assert_eq!((fault.since_ms, fault.kernel, fault.detail.as_str()), (500, false, "ecc on GPU-1"));
    // Another blade's word changes nothing here.
    send(&store, 1, "s", &[item(9, cleared("ecc", "GPU-1"))]).await;
    assert_eq!(standing(&store, 0).await.len(), 2);
    // Cleared overtakes the appearance that it ends.
    assert!(!send(&store, 0, "s", &[item(6, cleared("link", "nic"))]).await.faults_changed);
    assert!(!send(&store, 0, "s", &[item(5, appeared("link", "nic"))]).await.faults_changed);
    assert_eq!(standing(&store, 0).await, both);
    // It is a warning only, from now on.
    let warning = ItemBody::Appeared { finding: finding("ecc", "", Severity::Warning) };
    assert!(send(&store, 0, "s", &[item(7, warning)]).await.faults_changed);
    assert!(send(&store, 0, "s", &[item(8, cleared("ecc", "GPU-1"))]).await.faults_changed);
    assert_eq!(standing(&store, 0).await, []);
    // Replays of all of it.
    let again =
        [item(1, appeared("ecc", "GPU-1")), item(2, appeared("ecc", "")), item(5, appeared("link", "nic"))];
    let stored = send(&store, 0, "s", &again).await;
    assert_eq!((stored.new, stored.faults_changed), (0, false));
    assert_eq!(standing(&store, 0).await, []);
}

async fn a_kernel_fault_stands_until_it_is_proven_gone(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    let note = ItemBody::Kernel { finding: finding("xid-13", "d", Severity::Warning), line: "l".into() };
    send(&store, 0, "s", &[item(1, kernel("xid-79", "d")), item(2, cleared("xid-79", "d")), item(3, note)])
        .await;
    assert_eq!(standing(&store, 0).await, [("xid-79".to_owned(), Some("d".to_owned()))]);
    assert!(blade(&store, 0).await.faults[0].kernel);
    assert_eq!(store.clear_faults(&serial(0), 501).await.unwrap(), 1);
    assert_eq!(store.clear_faults(&serial(0), 501).await.unwrap(), 0);
    assert_eq!(standing(&store, 0).await, []);
    // Old news do not bring it back, new ones do.
    send(&store, 0, "s", &[item(1, kernel("xid-79", "d"))]).await;
    assert_eq!(standing(&store, 0).await, []);
    assert!(send(&store, 0, "s", &[item(4, kernel("xid-79", "d"))]).await.faults_changed);
    assert_eq!(standing(&store, 0).await.len(), 1);
}

/// A run proves gone what was said before it was made, and nothing that came since.
async fn a_fault_that_comes_again_outlives_the_run_that_it_came_in(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    let say = |seq, body, at_ms| {
        let store = store.clone();
        async move { send_at(&store, 0, "s", &[item(seq, body)], at_ms).await.unwrap() }
    };
    say(1, kernel("xid-48", "d"), 100).await;
    say(2, kernel("xid-79", "d"), 110).await;
    let (run_made, look) = (200, 300);
    // During the run: the same fault again. Somebody has to look.
    assert!(say(3, kernel("xid-79", "d"), 250).await.faults_changed);
    let times: Vec<_> =
        blade(&store, 0).await.faults.into_iter().map(|f| (f.code, f.since_ms, f.last_ms)).collect();
    assert_eq!(times, [("xid-48".to_owned(), 100, 100), ("xid-79".to_owned(), 110, 250)]);
    assert_eq!(store.clear_faults(&serial(0), run_made).await.unwrap(), 1);
    assert_eq!(standing(&store, 0).await, [("xid-79".to_owned(), Some("d".to_owned()))]);
    // Said before it, received after it; and one that came at the very moment.
    assert_eq!(store.clear_faults(&serial(0), 250).await.unwrap(), 0);
    assert_eq!(store.clear_faults(&serial(0), look).await.unwrap(), 1);
    // A clock that was set back makes no news old.
    say(4, kernel("xid-79", "d"), 120).await;
    assert_eq!(blade(&store, 0).await.faults[0].last_ms, 250);
    assert_eq!(store.clear_faults(&serial(0), 130).await.unwrap(), 0);
    // What came late and is older says nothing new.
    assert!(!say(2, kernel("xid-79", "d"), 900).await.faults_changed);
    assert_eq!(blade(&store, 0).await.faults[0].last_ms, 250);
}

/// One from before schema 4 works on beside this one while it is replaced, and says not when a fault was last heard of.
async fn a_fault_of_an_older_operator_was_heard_of_when_it_came(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    let raw = raw(&db.url).await;
    for (code, standing) in [("xid-79", 1), ("xid-48", 0)] {
        let insert = format!(
            "INSERT INTO faults (serial, code, device, source, standing, action, detail, since_ms, stream, seq) \
             VALUES ('SN00000', '{code}', 'd', 'kernel', {standing}, 'reset_gpu', 'x', 700, 0, 1)"
        );
        execute(&raw, &insert).await.unwrap();
    }
    let last_ms = async || blade(&store, 0).await.faults[0].last_ms;
    assert_eq!(last_ms().await, 700);
    assert_eq!(store.clear_faults(&serial(0), 700).await.unwrap(), 0);
    // Said again at 500, by a clock that was set back.
    send(&store, 0, "s", &[item(1, kernel("xid-79", "d"))]).await;
    assert_eq!(last_ms().await, 700);
    assert_eq!(store.clear_faults(&serial(0), 701).await.unwrap(), 1);
    let policy = RetainPolicy::default();
    for (now_ms, left) in [(policy.findings_ms + 700, 2), (policy.findings_ms + 701, 0)] {
        store.retain(&policy, now_ms).await.unwrap();
        assert_eq!(rows_of(&db, "faults").await, left);
    }
}

async fn a_later_stream_overrules_an_earlier_one(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    send(&store, 0, "old", &[item(900, appeared("x", "d"))]).await;
    // The agent lost its spool and counts from 1 again.
    send(&store, 0, "new", &[item(1, cleared("x", "d"))]).await;
    assert_eq!(standing(&store, 0).await, []);
    send(&store, 0, "old", &[item(901, appeared("x", "d"))]).await;
    assert_eq!(standing(&store, 0).await, []);
}

async fn a_blade_that_makes_up_findings_is_bounded(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    for batch in 0..3_u64 {
        let items: Vec<_> = (1..=500)
            .map(|number| item(batch * 500 + number, appeared(&format!("c-{}", batch * 500 + number), "d")))
            .collect();
        assert_eq!(send(&store, 0, "s", &items).await.new, 500);
    }
    assert_eq!(blade(&store, 0).await.faults.len(), 1_000);
    // Those that are known still change.
    send(&store, 0, "s", &[item(2_000, cleared("c-1", "d"))]).await;
    assert_eq!(blade(&store, 0).await.faults.len(), 999);
}

async fn texts_from_a_blade_are_stored_whatever_they_hold(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    let mut bad = finding("a\0b", "d", Severity::Fault);
    bad.detail = "ä\0".repeat(5_000);
    let body = ItemBody::Appeared { finding: bad };
    let note = ItemBody::Note { text: "'; DROP TABLE blades; --\0".into() };
    let stream = "s'\0".repeat(200);
    assert_eq!(send(&store, 0, &stream, &[item(1, body.clone()), item(2, note.clone())]).await.new, 2);
    assert_eq!(send(&store, 0, &stream, &[item(1, body.clone())]).await.duplicates, 1);
    let rows = store.evidence_of(&serial(0), false, 9).await.unwrap();
    assert_eq!(rows[0].body, Some(note));
    assert_eq!(rows[1].body, Some(body));
    assert_eq!(standing(&store, 0).await, [("a\u{fffd}b".to_owned(), Some("d".to_owned()))]);
}

/// One thing that a blade says: about which of three faults, and what.
#[derive(Debug, Clone)]
struct Say {
    fault: usize,
    what: u8,
}

fn body(say: &Say) -> ItemBody {
    let (code, device) = [("x", "d-1"), ("x", "d-2"), ("y", "")][say.fault];
    match say.what {
        0 => appeared(code, device),
        1 => cleared(code, device),
        2 => kernel(code, device),
        3 => ItemBody::Appeared { finding: finding(code, device, Severity::Warning) },
        _ => reading(1.0),
    }
}

/// Two blades with two streams each, what each stream says, and how it travels: (stream, from, to) of each report, with
/// repetitions, overlaps and overtaking, grouped into transactions.
#[derive(Debug, Clone)]
struct Way {
    says: Vec<Vec<Say>>,
    trips: Vec<(usize, usize, usize)>,
    group: usize,
}

fn ways() -> impl Strategy<Value = Way> {
    let say = (0..3_usize, 0..5_u8).prop_map(|(fault, what)| Say { fault, what });
    let says = prop::collection::vec(prop::collection::vec(say, 1..12), 4);
    let trips = prop::collection::vec((0..4_usize, 0..12_usize, 1..8_usize), 0..30);
    (says, trips, any::<u64>(), 1..5_usize).prop_map(|(says, mut trips, shuffle, group)| {
        // Everything arrives in the end, at any place of the order.
        for (stream, said) in says.iter().enumerate() {
            for from in (0..said.len()).step_by(3) {
                let at = (shuffle.rotate_left((stream * 16 + from) as u32) as usize) % (trips.len() + 1);
                trips.insert(at, (stream, from, 3));
            }
        }
        Way { says, trips, group }
    })
}

impl Way {
    fn reports(&self) -> Vec<NewReport> {
        self.trips
            .iter()
            .map(|(stream, from, count)| {
                let said = &self.says[*stream];
                let items = said
                    .iter()
                    .enumerate()
                    .skip(*from)
                    .take(*count)
                    .map(|(index, say)| item(index as u64 + 1, body(say)))
                    .collect();
                NewReport {
                    serial: serial(stream / 2),
                    instance: "i".into(),
                    stream: format!("s{stream}"),
                    items,
                    acked: None,
                    at_ms: 1,
                }
            })
            .collect()
    }

    /// What has to stand in the end: of each blade's words about a fault, in the order of its streams' first reports and
    /// of their numbers, the last counts; the kernel's words never end.
    fn expected(&self) -> [BTreeSet<(String, Option<String>, bool)>; 2] {
        let mut order: Vec<usize> = Vec::new();
        for (stream, ..) in &self.trips {
            if !order.contains(stream) {
                order.push(*stream);
            }
        }
        let mut sets = [BTreeSet::new(), BTreeSet::new()];
        for (number, set) in sets.iter_mut().enumerate() {
            let mut probe: BTreeMap<(String, Option<String>), bool> = BTreeMap::new();
            for stream in order.iter().filter(|stream| **stream / 2 == number) {
                for say in &self.says[*stream] {
                    let (code, device) = [("x", Some("d-1")), ("x", Some("d-2")), ("y", None)][say.fault];
                    let key = (code.to_owned(), device.map(str::to_owned));
                    match say.what {
                        0 => drop(probe.insert(key, true)),
                        1 | 3 => drop(probe.insert(key, false)),
                        2 => drop(set.insert((key.0, key.1, true))),
                        _ => {}
                    }
                }
            }
            let probed = probe.into_iter().filter(|(_, stands)| *stands);
            set.extend(probed.map(|((code, device), _)| (code, device, false)));
        }
        sets
    }
}

async fn intake_does_not_depend_on_the_way(db: Db) {
    let (backend, cases) = (db.backend, if db.backend == Backend::Sqlite { 48 } else { 12 });
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]));
    let handle = tokio::runtime::Handle::current();
    // The runner's closure cannot await.
    let outcome =
        tokio::task::block_in_place(|| runner.run(&ways(), |way| handle.block_on(travel(&way, backend))));
    outcome.unwrap();
}

async fn travel(way: &Way, backend: Backend) -> Result<(), TestCaseError> {
    let db = Db::new(backend).await;
    let store = db.store().await;
    enter(&store, 2).await;
    let reports = way.reports();
    let mut new = 0;
    for group in reports.chunks(way.group) {
        for stored in store.store_reports(group).await.unwrap() {
            new += stored.unwrap().new;
        }
    }
    prop_assert_eq!(new, way.says.iter().map(Vec::len).sum::<usize>());
    let state = snapshot(&db, &store).await;
    prop_assert_eq!(&state.0, &way.expected());
    // Once more in the opposite order: all of it is known.
    for report in reports.iter().rev() {
        let stored = store.store_reports(std::slice::from_ref(report)).await.unwrap()[0].clone().unwrap();
        prop_assert_eq!((stored.new, stored.faults_changed), (0, false));
    }
    prop_assert_eq!(snapshot(&db, &store).await, state);
    store.close().await;
    Ok(())
}

type Snapshot = ([BTreeSet<(String, Option<String>, bool)>; 2], [i64; 3]);

/// The faults that stand, and how much there is of what a report leaves.
async fn snapshot(db: &Db, store: &Store) -> Snapshot {
    let mut sets = [BTreeSet::new(), BTreeSet::new()];
    for (blade, set) in store.load_site().await.unwrap().blades.into_iter().zip(&mut sets) {
        set.extend(blade.faults.into_iter().map(|fault| (fault.code, fault.device, fault.kernel)));
    }
    let raw = raw(&db.url).await;
    let mut counts = [0; 3];
    for (count, table) in counts.iter_mut().zip(["evidence", "streams", "faults"]) {
        *count = number(&raw, &format!("SELECT COUNT(*) FROM {table}")).await;
    }
    raw.close().await;
    (sets, counts)
}
