//! Who may speak for a blade, the audit log, and machines that nobody expects; on both databases.

use crate::common::*;
use whetstone_model::device::DeviceId;
use whetstone_model::wire::{AgentUsage, BladeFacts, GpuFacts};
use whetstone_store::{AgentStats, Join, NewToken, Seen, TokenUse};

both!(
    a_token_is_good_for_one_machine_of_one_blade,
    of_two_machines_with_one_token_one_gets_in,
    a_new_token_for_another_machine_revokes_the_old_ones_certificates,
    a_used_token_undoes_no_revocation,
    a_conflict_stands_until_the_identity_is_reset,
    signs_of_life_are_kept_the_latest_first,
    the_audit_log_is_bounded,
    machines_that_nobody_expects_are_bounded_and_forgotten,
);

fn join(number: usize, token: &str, instance: &str) -> Join {
    let gpu = GpuFacts { uuid: DeviceId::new("GPU-1").unwrap(), name: None, serial: None, pci: None };
    Join {
        serial: serial(number),
        token_sha256: token.into(),
        instance: instance.into(),
        key_fingerprint: format!("fp-{instance}"),
        report_key: format!("key-{instance}"),
        facts: BladeFacts {
            sku: Some("hgx-h100".into()),
            gpus: vec![gpu],
            agent_version: "1".into(),
            ..BladeFacts::default()
        },
    }
}

fn token(number: usize, sha256: &str) -> NewToken {
    NewToken { serial: serial(number), sha256: sha256.into() }
}

async fn a_token_is_good_for_one_machine_of_one_blade(db: Db) {
    let store = db.store().await;
    enter(&store, 2).await;
    let unknown = store.new_tokens(&[token(0, "t0"), token(9, "t9"), token(1, "t1")], 100, "ann", 1).await;
    assert_eq!(unknown.unwrap(), [serial(9)]);
    assert_eq!(store.identity(&serial(0)).await.unwrap(), None);
    let used = |join, at_ms| {
        let store = store.clone();
        async move { store.use_token(&join, at_ms).await.unwrap() }
    };
    assert_eq!(used(join(0, "nope", "a"), 2).await, TokenUse::Unknown);
    assert_eq!(used(join(9, "t9", "a"), 2).await, TokenUse::Unknown);
    assert_eq!(used(join(1, "t0", "a"), 2).await, TokenUse::WrongSerial { issued_for: serial(0) });
    assert_eq!(used(join(1, "t1", "b"), 100).await, TokenUse::Expired);
    assert!(!blade(&store, 1).await.agent.joined);

    let name = expected(0).name;
    assert_eq!(used(join(0, "t0", "a"), 3).await, TokenUse::Accepted { blade: name.clone() });
    // The answer was lost; the same machine asks again, even after the token's end.
    assert_eq!(used(join(0, "t0", "a"), 200).await, TokenUse::Repeated { blade: name });
    let other = TokenUse::UsedByOther { instance: "a".into() };
    assert_eq!(used(join(0, "t0", "b"), 4).await, other);
    let mut copied = join(0, "t0", "a");
    copied.key_fingerprint = "another".into();
    assert_eq!(used(copied, 5).await, other);

    let identity = store.identity(&serial(0)).await.unwrap().unwrap();
    assert_eq!((identity.joined, identity.instance.as_deref()), (true, Some("a")));
    assert_eq!((identity.report_key.as_deref(), identity.joined_ms), (Some("key-a"), Some(3)));
    assert_eq!(identity.facts.unwrap().gpus.len(), 1);
    let agent = blade(&store, 0).await.agent;
    assert_eq!((agent.joined, agent.gpus, agent.sku.as_deref()), (true, 1, Some("hgx-h100")));
    assert_eq!(agent.last_seen_ms, Some(3));
}

async fn of_two_machines_with_one_token_one_gets_in(db: Db) {
    let (a, b) = (db.store().await, db.store().await);
    enter(&a, 20).await;
    let tokens: Vec<_> = (0..20).map(|number| token(number, &format!("t{number}"))).collect();
    a.new_tokens(&tokens, 100, "ann", 1).await.unwrap();
    for number in 0..20 {
        let name = format!("t{number}");
        let (one, other) = (join(number, &name, "a"), join(number, &name, "b"));
        let (one, other) = tokio::join!(a.use_token(&one, 2), b.use_token(&other, 2));
        let answers = [one.unwrap(), other.unwrap()];
        let accepted = answers.iter().filter(|used| matches!(used, TokenUse::Accepted { .. })).count();
        let refused = answers.iter().filter(|used| matches!(used, TokenUse::UsedByOther { .. })).count();
        assert_eq!((accepted, refused), (1, 1), "{answers:?}");
    }
}

async fn a_new_token_for_another_machine_revokes_the_old_ones_certificates(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    store.new_tokens(&[token(0, "t0"), token(0, "t1")], 100, "ann", 1).await.unwrap();
    store.use_token(&join(0, "t0", "a"), 2).await.unwrap();
    store.record_certificate(&serial(0), "c1", "a", 1_000, 2).await.unwrap();
    let identity = store.identity(&serial(0)).await.unwrap().unwrap();
    assert!(!identity.is_revoked("c1"));
    assert!(!identity.is_revoked("not on record"));
    // The board was replaced; a person issued a new token.
    store.use_token(&join(0, "t1", "b"), 3).await.unwrap();
    store.record_certificate(&serial(0), "c2", "b", 1_000, 3).await.unwrap();
    let identity = store.identity(&serial(0)).await.unwrap().unwrap();
    assert_eq!(identity.instance.as_deref(), Some("b"));
    assert!(identity.is_revoked("c1"));
    assert!(!identity.is_revoked("c2"));
    let again = store.record_certificate(&serial(0), "c2", "b", 1_000, 3).await.unwrap_err();
    assert_eq!(again.category(), "conflict");
}

/// The replaced machine still has its old token and keys.
async fn a_used_token_undoes_no_revocation(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    let tokens = ["t0", "t1", "t2"].map(|sha256| token(0, sha256));
    store.new_tokens(&tokens, 100, "ann", 1).await.unwrap();
    let name = expected(0).name;
    store.use_token(&join(0, "t0", "a"), 2).await.unwrap();
    store.record_certificate(&serial(0), "c1", "a", 1_000, 2).await.unwrap();
    store.use_token(&join(0, "t1", "b"), 3).await.unwrap();
    let before = store.identity(&serial(0)).await.unwrap();
    assert_eq!(store.use_token(&join(0, "t0", "a"), 4).await.unwrap(), TokenUse::Replaced);
    assert_eq!(store.identity(&serial(0)).await.unwrap(), before);
    assert!(before.unwrap().is_revoked("c1"));
    // The machine that is the blade may still ask again.
    let repeated = TokenUse::Repeated { blade: name.clone() };
    assert_eq!(store.use_token(&join(0, "t1", "b"), 5).await.unwrap(), repeated);
    // It joins anew with other keys: with the old ones it is nobody any more.
    let mut renewed = join(0, "t2", "b");
    (renewed.key_fingerprint, renewed.report_key) = ("fp-new".into(), "key-new".into());
    assert_eq!(store.use_token(&renewed, 6).await.unwrap(), TokenUse::Accepted { blade: name });
    assert_eq!(store.use_token(&join(0, "t1", "b"), 7).await.unwrap(), TokenUse::Replaced);
    assert_eq!(store.use_token(&renewed, 8).await.unwrap(), repeated);
}

async fn a_conflict_stands_until_the_identity_is_reset(db: Db) {
    let store = db.store().await;
    enter(&store, 2).await;
    store.new_tokens(&[token(0, "t0")], 100, "ann", 1).await.unwrap();
    store.use_token(&join(0, "t0", "a"), 2).await.unwrap();
    store.record_certificate(&serial(0), "c1", "a", 1_000, 2).await.unwrap();
    assert!(store.set_conflict(&serial(0), "a and b", 3).await.unwrap());
    assert!(!store.set_conflict(&serial(0), "a and c", 4).await.unwrap());
    assert_eq!(blade(&store, 0).await.agent.conflict.as_deref(), Some("a and b"));
    // Also of one that never joined.
    assert!(store.set_conflict(&serial(1), "two at once", 4).await.unwrap());
    assert!(!blade(&store, 1).await.agent.joined);

    assert!(store.reset_identity(&serial(0), 5).await.unwrap());
    let identity = store.identity(&serial(0)).await.unwrap().unwrap();
    assert_eq!((identity.joined, identity.conflict.clone()), (false, None));
    assert!(identity.is_revoked("c1"));
    assert_eq!(store.use_token(&join(0, "t0", "a"), 6).await.unwrap(), TokenUse::Unknown);
    store.new_tokens(&[token(0, "t5")], 100, "ann", 6).await.unwrap();
    let accepted = store.use_token(&join(0, "t5", "a"), 7).await.unwrap();
    assert_eq!(accepted, TokenUse::Accepted { blade: expected(0).name });
    assert!(store.identity(&serial(0)).await.unwrap().unwrap().is_revoked("c1"));
}

async fn signs_of_life_are_kept_the_latest_first(db: Db) {
    let store = db.store().await;
    enter(&store, 2).await;
    store.new_tokens(&[token(0, "t0")], 100, "ann", 1).await.unwrap();
    store.use_token(&join(0, "t0", "a"), 2).await.unwrap();
    let usage = AgentUsage { resident_bytes: 7, cpu_seconds: 0.5, up_seconds: 9.0 };
    let stats = AgentStats { usage: Some(usage), dropped: 3, spooled: 4, skew_ms: -5 };
    let seen = |number, at_ms, facts| Seen { serial: serial(number), at_ms, facts, stats: stats.clone() };
    let facts =
        BladeFacts { sku: Some("hgx-b200".into()), agent_version: "2".into(), ..BladeFacts::default() };
    store
        .seen(&[seen(0, 50, Some(facts.clone())), seen(0, 60, None), seen(1, 60, Some(facts.clone()))])
        .await
        .unwrap();
    store.seen(&[seen(0, 55, None)]).await.unwrap();
    let agent = blade(&store, 0).await.agent;
    assert_eq!((agent.last_seen_ms, agent.sku.as_deref(), agent.gpus), (Some(60), Some("hgx-b200"), 0));
    let identity = store.identity(&serial(0)).await.unwrap().unwrap();
    assert_eq!((identity.facts, identity.stats), (Some(facts), Some(stats)));
    // Who has not joined is not here.
    assert_eq!(blade(&store, 1).await.agent.last_seen_ms, None);
}

/// Rows made by the database itself: a call for each would take minutes.
async fn fill(db: &Db, insert: &str, rows: i64) {
    let raw = raw(&db.url).await;
    let numbers =
        format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) ");
    let text = match insert.strip_prefix("INSERT INTO ") {
        Some(rest) => format!("{numbers}INSERT INTO {rest}"),
        None => panic!("{insert}"),
    };
    execute(&raw, &text).await.unwrap();
    raw.close().await;
}

async fn the_audit_log_is_bounded(db: Db) {
    let store = db.store().await;
    const KEPT: i64 = 100_000;
    fill(&db, "INSERT INTO audit (at_ms, kind, who, what) SELECT i, 'k', 'w', 'x' FROM n", KEPT + 5).await;
    store.audit("token-issued", "ann\0", "for b-1", 7).await.unwrap();
    assert_eq!(rows_of(&db, "audit").await, KEPT);
    let latest = store.list_audit(2).await.unwrap();
    assert_eq!(latest.len(), 2);
    assert_eq!(
        (latest[0].kind.as_str(), latest[0].who.as_str(), latest[0].at_ms),
        ("token-issued", "ann\u{fffd}", 7)
    );
    assert_eq!(latest[1].what, "x");
}

async fn machines_that_nobody_expects_are_bounded_and_forgotten(db: Db) {
    let store = db.store().await;
    const KEPT: i64 = 10_000;
    let rows = "INSERT INTO unexpected (serial, what, first_ms, last_ms, times) SELECT 'X' || i, 'w', 1, i, 1 FROM n";
    fill(&db, rows, KEPT).await;
    for at_ms in [20_000, 20_001] {
        store.unexpected("SN00000", "no such token", at_ms).await.unwrap();
    }
    assert_eq!(rows_of(&db, "unexpected").await, KEPT);
    let latest = store.list_unexpected(1).await.unwrap().remove(0);
    assert_eq!((latest.serial.as_str(), latest.first_ms, latest.last_ms), ("SN00000", 20_000, 20_001));
    assert_eq!(latest.times, 2);
    // It is on a manifest now.
    enter(&store, 1).await;
    assert_eq!(store.list_unexpected(1).await.unwrap()[0].serial, format!("X{KEPT}"));
}
