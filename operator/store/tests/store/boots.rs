//! What tells two machines with the same keys apart, and two runs with the same result; on both databases.

use crate::common::*;
use whetstone_model::verdict::Outcome;
use whetstone_model::wire::BladeFacts;
use whetstone_store::{BootSeen, Join, NewToken, ResultStored, RunState, Store};

both!(
    a_boot_that_comes_back_is_another_machines,
    the_result_of_one_run_is_none_of_another,
    a_report_is_told_how_far_its_stream_was_known_before,
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

async fn a_report_is_told_how_far_its_stream_was_known_before(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    let send = async |seqs: &[u64]| {
        let items: Vec<_> = seqs.iter().map(|seq| item(*seq, reading(1.0))).collect();
        let stored = store.store_report(&serial(0), "a", "s", &items, 1).await.unwrap().unwrap();
        (stored.before, stored.acked)
    };
    assert_eq!(send(&[1, 2]).await, (0, 2));
    assert_eq!(send(&[1, 2]).await, (2, 2));
    assert_eq!(send(&[5]).await, (2, 5));
    assert_eq!(send(&[]).await, (5, 5));
}
