//! What tells two machines with the same keys apart, two runs with the same result, and a store from an older one; on both
//! databases.

use crate::common::*;
use whetstone_model::verdict::Outcome;
use whetstone_model::wire::{BladeFacts, Item};
use whetstone_store::{BootSeen, Join, NewReport, NewToken, ResultStored, RunState, Store, Stored};

both!(
    a_boot_that_comes_back_is_another_machines,
    the_result_of_one_run_is_none_of_another,
    what_is_lost_is_said_until_the_agent_has_heard_of_it,
    a_reset_closes_what_a_copy_may_have_filled,
);

/// Blade 0 joins with a token of its own.
async fn join(store: &Store, token: &str, at_ms: i64) {
    let made = NewToken { serial: serial(0), sha256: token.into() };
    store.new_tokens(&[made], 1_000, "ann", at_ms).await.unwrap();
    let join = Join {
        serial: serial(0),
        token_sha256: token.into(),
        instance: "a".into(),
        key_fingerprint: "fp".into(),
        report_key: "key".into(),
        facts: BladeFacts::default(),
    };
    store.use_token(&join, at_ms).await.unwrap();
}

async fn a_boot_that_comes_back_is_another_machines(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    let seen = async |boot: &str| store.boot_seen(&serial(0), boot).await.unwrap();
    let last = async || store.identity(&serial(0)).await.unwrap().unwrap().boot_id;
    assert_eq!(seen("b0").await, BootSeen::New, "who never joined has no boots");
    join(&store, "t0", 1).await;
    assert_eq!(last().await, None);
    assert_eq!((seen("b0").await, seen("b0").await), (BootSeen::New, BootSeen::Same));
    assert_eq!((seen("b1").await, seen("b0").await), (BootSeen::New, BootSeen::Returned));
    assert_eq!(last().await.as_deref(), Some("b1"), "one that came back has changed something");
    assert_eq!(seen("b1").await, BootSeen::Same);
    // Bounded: what was long ago is forgotten, and no more than that.
    for number in 2..40 {
        assert_eq!(seen(&format!("b{number}")).await, BootSeen::New);
    }
    assert_eq!((seen("b8").await, seen("b6").await), (BootSeen::Returned, BootSeen::New));

    // Whoever joins anew begins anew, and so does who was reset.
    join(&store, "t1", 2).await;
    assert_eq!((last().await, seen("b20").await), (None, BootSeen::New));
    assert_eq!(seen("b21").await, BootSeen::New);
    assert!(store.reset_identity(&serial(0), 3).await.unwrap());
    assert_eq!((last().await, seen("b20").await), (None, BootSeen::New));
}

async fn the_result_of_one_run_is_none_of_another(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    let old = to_run(&store, 0, 10).await;
    let good = result(0, old, Outcome::Pass);
    assert_eq!(store.store_result(good.clone(), 11).await.unwrap(), ResultStored::New);
    assert!(store.run_terms(old).await.unwrap().unwrap().last);
    let new = run_again(&store, 0, 12).await;
    let terms = async |run| store.run_terms(run).await.unwrap().unwrap();
    assert_eq!((terms(old).await.last, terms(new).await.last), (false, true));

    let mut again = good.clone();
    again.run = new;
    assert_eq!(store.store_result(again, 13).await.unwrap(), ResultStored::OfOtherRun(old));
    assert_eq!(blade(&store, 0).await.run.unwrap().state, RunState::Ordered);
    assert_eq!(store.report_of(new).await.unwrap(), None);
    assert_eq!(store.store_result(good, 14).await.unwrap(), ResultStored::Same, "its own may come again");
}

/// Stores a report of blade 0, whose agent was `told` that so much is stored.
async fn send(store: &Store, told: u64, items: Vec<Item>) -> Stored {
    let report = NewReport {
        serial: serial(0),
        instance: "a".into(),
        stream: "s".into(),
        items,
        acked: Some(told),
        at_ms: 1,
    };
    store.store_reports(&[report]).await.unwrap().remove(0).unwrap()
}

async fn says(store: &Store, told: u64, seqs: &[u64]) -> (bool, u64) {
    let items = seqs.iter().map(|seq| item(*seq, reading(1.0))).collect();
    let stored = send(store, told, items).await;
    (stored.lost, stored.acked)
}

async fn what_is_lost_is_said_until_the_agent_has_heard_of_it(db: Db) {
    let (store, next) = (db.store().await, db.store().await);
    enter(&store, 1).await;
    assert_eq!(says(&store, 0, &[1, 2]).await, (false, 2));
    // The answer was lost; then nothing was.
    assert_eq!(says(&store, 0, &[1, 2]).await, (false, 2));
    assert_eq!(says(&store, 2, &[]).await, (false, 2));
    // As if an older store had been restored. What is stored now does not hide it, nor does another program.
    assert_eq!(says(&store, 100, &[101]).await, (true, 101));
    assert_eq!(says(&store, 100, &[101]).await, (true, 101));
    assert_eq!(says(&next, 100, &[]).await, (true, 101));
    assert_eq!(says(&next, 101, &[102]).await, (false, 102));
    assert_eq!(says(&store, 102, &[]).await, (false, 102));
    // And once more.
    assert_eq!(says(&store, 200, &[]).await, (true, 102));
    assert_eq!(says(&store, u64::MAX, &[]).await, (true, 102));
}

async fn a_reset_closes_what_a_copy_may_have_filled(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    join(&store, "t0", 1).await;
    // The copy's words, under numbers that the right machine's spool gives next.
    let of_copy = vec![item(5, cleared("x", "d")), item(9, cleared("x", "d"))];
    assert_eq!(send(&store, 0, of_copy).await.new, 2);
    assert_eq!(send(&store, 4, vec![item(5, appeared("x", "d"))]).await.new, 0);
    assert_eq!(standing(&store, 0).await, []);
    for (token, at_ms) in [("t1", 2), ("t2", 4)] {
        assert!(store.reset_identity(&serial(0), at_ms).await.unwrap());
        join(&store, token, at_ms + 1).await;
        let stored = send(&store, 5, vec![item(5, appeared("y", "d")), item(6, appeared("x", "d"))]).await;
        assert_eq!((stored.new, stored.lost), (2, true));
        assert_eq!(standing(&store, 0).await.len(), 2);
    }
    assert_eq!(store.evidence_of(&serial(0), false, 100).await.unwrap().len(), 6, "nothing is deleted");
}
