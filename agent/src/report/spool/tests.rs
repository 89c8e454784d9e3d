use std::collections::HashMap;
use std::io::Write as _;

use proptest::prelude::*;
use whetstone_model::action::{Action, Severity};
use whetstone_model::device::DeviceId;
use whetstone_model::evidence::{Finding, Reading};
use whetstone_model::unit::Unit;

use super::*;

/// An item whose text tells it from every other one.
fn body(detail: bool, code: u8, mark: usize, size: usize) -> ItemBody {
    let text = format!("#{mark} {}", "x".repeat(size));
    if detail {
        return ItemBody::Note { text };
    }
    let finding = Finding {
        code: format!("code-{code}"),
        device: DeviceId::new("GPU-1").ok(),
        severity: Severity::Fault,
        action: Action::Reboot,
        detail: text,
        reading: None,
    };
    match mark % 3 {
        0 => ItemBody::Appeared { finding },
        1 => ItemBody::Cleared { finding },
        _ => ItemBody::Kernel { finding, line: String::new() },
    }
}

fn mark(item: &Item) -> usize {
    let text = match &item.body {
        ItemBody::Note { text } => text,
        ItemBody::Appeared { finding } | ItemBody::Cleared { finding } | ItemBody::Kernel { finding, .. } => {
            &finding.detail
        }
        ItemBody::Reading { .. } => panic!("no reading was put in"),
    };
    text[1..].split(' ').next().unwrap().parse().unwrap()
}

fn all(spool: &mut Spool) -> Vec<Item> {
    spool.batch(usize::MAX, usize::MAX).unwrap()
}

fn last_file(dir: &Path) -> Option<PathBuf> {
    list(dir).unwrap().pop().map(|(_, path)| path)
}

#[derive(Debug, Clone)]
enum Op {
    Append {
        detail: bool,
        code: u8,
        size: usize,
    },
    /// Acknowledges this part of what waits.
    Ack(f64),
    /// The process ends at once, and this many bytes of the last file with it.
    Crash {
        cut: u64,
    },
    Reopen,
    Sync,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (any::<bool>(), 0u8..4, 0usize..400).prop_map(|(detail, code, size)| Op::Append { detail, code, size }),
        2 => (0.0..=1.0).prop_map(Op::Ack),
        1 => (0u64..900).prop_map(|cut| Op::Crash { cut }),
        1 => Just(Op::Crash { cut: 0 }),
        1 => Just(Op::Reopen),
        1 => Just(Op::Sync),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(4), ..ProptestConfig::default() })]

    /// Against a list: nothing that was not cut off is lost, nothing comes twice or out of order, no seq is used twice.
    #[test]
    fn a_spool_is_a_list_that_survives(ops in prop::collection::vec(op(), 1..120)) {
        let dir = tempfile::tempdir().unwrap();
        let (mut spool, opened) = Spool::open(dir.path(), 64 << 20).unwrap();
        prop_assert!(opened.new_stream);
        let stream = spool.stream();
        let mut model: Vec<usize> = Vec::new();
        let mut used: HashMap<u64, usize> = HashMap::new();
        let (mut acked, mut next_mark) = (0, 0);
        for op in ops {
            match op {
                Op::Append { detail, code, size } => {
                    prop_assert_eq!(spool.append(1, body(detail, code, next_mark, size)), Kept::Disk);
                    model.push(next_mark);
                    next_mark += 1;
                }
                Op::Ack(part) => {
                    let items = all(&mut spool);
                    let n = (items.len() as f64 * part) as usize;
                    if n > 0 {
                        acked = items[n - 1].seq;
                        spool.ack(acked).unwrap();
                        model.drain(..n);
                    }
                }
                Op::Sync => spool.sync().unwrap(),
                Op::Reopen => {
                    drop(spool);
                    spool = Spool::open(dir.path(), 64 << 20).unwrap().0;
                }
                Op::Crash { cut } => {
                    // Not dropped: what dropping would write is not written.
                    std::mem::forget(spool);
                    if let Some(file) = last_file(dir.path()) {
                        let size = fs::metadata(&file).unwrap().len();
                        let file = fs::OpenOptions::new().write(true).open(file).unwrap();
                        file.set_len(size.saturating_sub(cut)).unwrap();
                    }
                    let opened;
                    (spool, opened) = Spool::open(dir.path(), 64 << 20).unwrap();
                    prop_assert!(!opened.new_stream && opened.taken_over == 0);
                    // What was acknowledged may come again, to no effect; what was cut off is a tail.
                    let marks: Vec<usize> =
                        all(&mut spool).iter().filter(|item| item.seq > acked).map(mark).collect();
                    prop_assert!(model.starts_with(&marks), "{:?} of {:?}", marks, model);
                    if cut == 0 {
                        prop_assert_eq!(marks.len(), model.len());
                    }
                    model.truncate(marks.len());
                    spool.ack(acked).unwrap();
                }
            }
            prop_assert_eq!(spool.stream(), stream.clone());
            let items = all(&mut spool);
            prop_assert_eq!(items.iter().map(mark).collect::<Vec<_>>(), model.clone());
            prop_assert_eq!(spool.status().items, model.len() as u64);
            prop_assert!(items.windows(2).all(|pair| pair[0].seq < pair[1].seq));
            for item in &items {
                let before = used.insert(item.seq, mark(item));
                prop_assert!(before.is_none_or(|before| before == mark(item)), "seq {} used twice", item.seq);
            }
        }
    }

    /// With a small bound: details go, oldest first and counted; findings stay; the files stay within the bound.
    #[test]
    fn details_make_room_for_findings(sizes in prop::collection::vec((prop::bool::weighted(0.93), 200usize..1900), 300..600), crash in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), MIN_BYTES).unwrap().0;
        let (mut details, mut findings) = (Vec::new(), Vec::new());
        for (mark, (detail, size)) in sizes.iter().enumerate() {
            let size = if *detail { *size } else { 20 };
            prop_assert_eq!(spool.append(1, body(*detail, (mark % 200) as u8, mark, size)), Kept::Disk);
            (if *detail { &mut details } else { &mut findings }).push(mark);
            prop_assert!(spool.status().bytes <= MIN_BYTES);
        }
        if crash {
            std::mem::forget(spool);
            spool = Spool::open(dir.path(), MIN_BYTES).unwrap().0;
        }
        let items = all(&mut spool);
        let kept = |detail: bool| items.iter().filter(|i| i.body.is_detail() == detail).map(mark).collect::<Vec<_>>();
        prop_assert_eq!(kept(false), findings);
        prop_assert!(details.ends_with(&kept(true)), "the oldest go first");
        prop_assert_eq!(spool.status().dropped as usize, details.len() - kept(true).len());
        prop_assert_eq!(spool.status().lost, 0);
    }
}

#[test]
fn findings_alone_beyond_the_bound_keep_the_latest_state_of_each() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), MIN_BYTES).unwrap().0;
    let mut latest = HashMap::new();
    for mark in 0..6_000 {
        let code = (mark % 25) as u8;
        assert_eq!(spool.append(1, body(false, code, mark, 200)), Kept::Disk);
        // A kernel line is no state that another one ends.
        latest.insert((code, mark % 3 == 2), mark);
        assert!(spool.status().bytes <= MIN_BYTES);
    }
    let marks: Vec<usize> = all(&mut spool).iter().map(mark).collect();
    assert!(marks.windows(2).all(|pair| pair[0] < pair[1]), "in order");
    for (key, mark) in latest {
        assert!(marks.contains(&mark), "the latest of {key:?} is gone");
    }
    assert!(marks.len() < 6_000);
    assert_eq!(spool.status().lost, 0);
}

#[test]
fn findings_beyond_every_bound_are_lost_oldest_first_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), MIN_BYTES).unwrap().0;
    for mark in 0..3_000 {
        let ItemBody::Kernel { mut finding, line } = body(false, 0, 2, 300) else { panic!("a kernel line") };
        finding.code = format!("code-{mark}");
        finding.detail = format!("#{mark} {}", "x".repeat(300));
        spool.append(1, ItemBody::Kernel { finding, line });
        assert!(spool.status().bytes <= MIN_BYTES);
    }
    let marks: Vec<usize> = all(&mut spool).iter().map(mark).collect();
    let lost = spool.status().lost as usize;
    assert!(lost > 0 && marks == (lost..3_000).collect::<Vec<_>>(), "{lost} lost, {} left", marks.len());
    drop(spool);
    assert_eq!(Spool::open(dir.path(), MIN_BYTES).unwrap().0.status().lost as usize, lost);
}

#[test]
fn a_disk_that_cannot_be_written_keeps_findings_in_memory_and_then_writes_them() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, _) = Spool::open(dir.path(), 1 << 20).unwrap();
    // Where the next segment is to be made there is something else.
    let in_the_way = segment::path_of(dir.path(), 0);
    fs::create_dir(&in_the_way).unwrap();
    assert_eq!(spool.append(1, body(true, 0, 0, 10)), Kept::Dropped);
    for mark in 1..=MAX_IN_MEMORY + 50 {
        assert_eq!(spool.append(1, body(false, (mark % 40) as u8, mark, 10)), Kept::Memory, "{mark}");
    }
    let status = spool.status();
    assert!(status.in_memory <= MAX_IN_MEMORY as u64 && status.in_memory == status.items, "{status:?}");
    assert_eq!((status.dropped, status.lost), (1, 0), "states that were replaced are no loss");
    let waiting = all(&mut spool);
    spool.ack(waiting[9].seq).unwrap();
    assert_eq!(all(&mut spool), waiting[10..]);

    fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(spool.append(1, body(false, 0, 9_000, 10)), Kept::Disk);
    assert_eq!(spool.status().in_memory, 0);
    drop(spool);
    let mut spool = Spool::open(dir.path(), 1 << 20).unwrap().0;
    let marks: Vec<usize> = all(&mut spool).iter().map(mark).collect();
    let expected: Vec<usize> = waiting[10..].iter().map(mark).chain([9_000]).collect();
    assert_eq!(marks, expected);
}

#[test]
fn a_lost_memory_is_a_new_stream_and_what_is_left_goes_on_under_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, _) = Spool::open(dir.path(), 1 << 20).unwrap();
    for mark in 0..20 {
        spool.append(5, body(mark % 2 == 0, 0, mark, 10));
    }
    let stream = spool.stream();
    drop(spool);
    fs::remove_file(dir.path().join("meta")).unwrap();
    let (mut spool, opened) = Spool::open(dir.path(), 1 << 20).unwrap();
    assert_eq!(opened, Opened { new_stream: true, taken_over: 20, torn: 0 });
    assert_ne!(spool.stream(), stream);
    let items = all(&mut spool);
    assert_eq!(items.iter().map(mark).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    assert!(items.iter().all(|item| item.at_ms == 5));
}

#[test]
fn what_was_given_up_was_never_said_to_be_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, _) = Spool::open(dir.path(), 1 << 20).unwrap();
    for mark in 0..4 {
        spool.append(1, body(false, 0, mark, 10));
    }
    let items = all(&mut spool);
    spool.ack(items[0].seq).unwrap();
    spool.give_up(items[1].seq).unwrap();
    assert_eq!((all(&mut spool), spool.told()), (items[2..].to_vec(), items[0].seq));
    drop(spool);
    let mut spool = Spool::open(dir.path(), 1 << 20).unwrap().0;
    assert_eq!((all(&mut spool), spool.told()), (items[2..].to_vec(), items[0].seq));
    spool.ack(items[2].seq).unwrap();
    assert_eq!((all(&mut spool), spool.told()), (items[3..].to_vec(), items[2].seq));
}

#[test]
fn damage_in_the_middle_costs_what_follows_it_in_that_file_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, _) = Spool::open(dir.path(), MIN_BYTES).unwrap();
    for mark in 0..100 {
        spool.append(1, body(false, mark as u8, mark, 400));
    }
    drop(spool);
    let (_, first) = list(dir.path()).unwrap().remove(0);
    let mut bytes = fs::read(&first).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    File::create(&first).unwrap().write_all(&bytes).unwrap();
    let (mut spool, opened) = Spool::open(dir.path(), MIN_BYTES).unwrap();
    assert!(opened.torn > 0 && !opened.new_stream);
    let marks: Vec<usize> = all(&mut spool).iter().map(mark).collect();
    assert!(
        marks.len() > 50 && marks.len() < 100 && marks[0] == 0 && marks.ends_with(&[98, 99]),
        "{marks:?}"
    );
}

#[test]
fn batches_are_bounded_and_long_texts_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, _) = Spool::open(dir.path(), 1 << 20).unwrap();
    spool.append(1, ItemBody::Note { text: "ä".repeat(100_000) });
    let long = Reading::new("m".repeat(5_000), 1.0, Unit::Watt);
    spool.append(1, ItemBody::Reading { device: None, reading: long });
    for mark in 0..50 {
        spool.append(1, body(true, 0, mark, 100));
    }
    assert_eq!(spool.batch(10, usize::MAX).unwrap().len(), 10);
    assert_eq!(spool.batch(500, 1).unwrap().len(), 1, "one at the least");
    let some = spool.batch(500, 6_000).unwrap();
    let bytes: usize = some.iter().map(|item| serde_json::to_vec(item).unwrap().len()).sum();
    assert!(bytes <= 6_000 && bytes > 5_000, "{bytes}");
    assert!(serde_json::to_vec(&some[0]).unwrap().len() < 2_200);
}
