//! Tokens and certificates.

use whetstone_model::wire::error_code::*;
use whetstone_model::wire::*;
use whetstone_operator::intake::What;

use crate::site::*;

#[test]
fn a_blade_joins_once_and_a_second_machine_with_its_token_holds_both() {
    let site = Site::start(2);
    let mut first = Agent::new(&site, "S1");
    let token = site.token(&first.serial, 60_000);
    let answer: JoinAnswer = first.join(&token).json();
    assert_eq!(answer.blade.as_str(), "b-1");
    assert!((answer.not_after_ms - answer.not_before_ms - 86_400_000).abs() < 2_000);
    assert!(site.has_heard("S1", What::Joined));
    first.send(&first.report(vec![])).ok();

    // Its answer was lost: the same machine asks again, and has another certificate that works.
    let again: JoinAnswer = first.post("/v1/join", &first.join_request(&token)).json();
    assert_ne!(again.certificate_pem, answer.certificate_pem);
    first.take(again);
    first.send(&first.report(vec![])).ok();

    let mut second = Agent::new(&site, "S1");
    second.join(&token).refused(409, IDENTITY_CONFLICT);
    assert!(site.has_heard("S1", What::Conflict));
    // Both are held: the machine that was there first is not believed either.
    first.send(&first.report(vec![appeared(1, "sdc")])).refused(409, IDENTITY_CONFLICT);
    first.post("/v1/join", &first.join_request(&token)).refused(409, IDENTITY_CONFLICT);
    first.renew().refused(409, IDENTITY_CONFLICT);
    let identity = site.wait(site.store.identity(&first.serial)).unwrap().unwrap();
    assert!(identity.conflict.unwrap().0.contains(&second.instance[..8]));
    site.until("an audit line", || site.audited("conflict", "S1"));
    // Others are not concerned.
    let other = site.joined("S2");
    other.send(&other.report(vec![])).ok();
    assert_eq!(site.metric("whetstone_joins_total", &[("result", "conflict")]), 2.0);
}

#[test]
fn the_same_instance_with_another_key_is_another_machine() {
    let site = Site::start(1);
    let mut first = Agent::new(&site, "S1");
    let token = site.token(&first.serial, 60_000);
    first.join(&token).ok();
    let mut copy = Agent::new(&site, "S1");
    copy.instance = first.instance.clone();
    copy.join(&token).refused(409, IDENTITY_CONFLICT);
}

#[test]
fn a_new_token_hands_a_serial_to_another_machine() {
    let site = Site::start(1);
    let before = site.joined("S1");
    // Reinstalled: a person has issued another token.
    let after = site.joined("S1");
    after.send(&after.report(vec![])).ok();
    before.send(&before.report(vec![])).refused(403, REVOKED);
}

/// The replaced machine still has its old token and keys: they undo nothing, and hold nobody.
#[test]
fn a_replaced_machine_gets_in_with_no_used_token() {
    let site = Site::start(1);
    let mut before = Agent::new(&site, "S1");
    let token = site.token(&before.serial, 60_000);
    before.join(&token).ok();
    let after = site.joined("S1");
    before.join(&token).refused(403, TOKEN_REFUSED);
    before.send(&before.report(vec![])).refused(403, REVOKED);
    after.send(&after.report(vec![])).ok();
    assert!(!site.has_heard("S1", What::Conflict));
}

#[test]
fn a_bad_token_and_a_strange_serial_get_the_same_words() {
    let site = Site::start(2);
    let of_one = site.token(&serial("S1"), 60_000);
    let expired = site.token(&serial("S2"), -1);
    let said: Vec<String> = [
        ("S1", "wt-none"),
        ("S1", ""),
        ("S2", &of_one),
        ("S2", &expired),
        ("X1", &of_one),
        ("X1", "wt-none"),
    ]
    .into_iter()
    .map(|(of, token)| Agent::new(&site, of).join(token).refused(403, TOKEN_REFUSED))
    .collect();
    assert!(said.iter().all(|words| words == &said[0]), "{said:?}");
    let strangers = site.wait(site.store.list_unexpected(10)).unwrap();
    assert_eq!(strangers.iter().map(|s| s.serial.as_str()).collect::<Vec<_>>(), ["X1"]);
    assert_eq!(site.refused("token"), 6.0);
    site.until("an audit line", || site.audited("refused", "127.0.0.1 token"));
    // None of it has cost the token.
    Agent::new(&site, "S1").join(&of_one).ok();
}

#[test]
fn a_join_that_cannot_be_understood_costs_no_token() {
    let site = Site::start(1);
    let mut agent = Agent::new(&site, "S1");
    let token = site.token(&agent.serial, 60_000);
    let good = agent.join_request(&token);
    for (bad, says) in [
        (JoinRequest { instance: "short".into(), ..good.clone() }, "instance"),
        (JoinRequest { instance: "G".repeat(32), ..good.clone() }, "instance"),
        (JoinRequest { report_key: "00".into(), ..good.clone() }, "report_key"),
        (JoinRequest { csr_pem: "none".into(), ..good.clone() }, "certificate request"),
        (
            JoinRequest {
                facts: BladeFacts { driver: Some("x".repeat(300)), ..agent.facts() },
                ..good.clone()
            },
            "facts",
        ),
    ] {
        let message = agent.post("/v1/join", &bad).refused(400, BAD_REQUEST);
        assert!(message.contains(says), "{message:?} does not say {says:?}");
    }
    for bad in [
        "",
        "{",
        "[]",
        "{\"serial\":\"S1\"}",
        &serde_json::to_string(&good).unwrap().replace("\"S1\"", "\"a/b\""),
    ] {
        agent.post_bytes("/v1/join", bad.as_bytes()).refused(400, BAD_REQUEST);
    }
    agent.join(&token).ok();
}

#[test]
fn a_certificate_is_renewed_and_a_reset_ends_it() {
    let site = Site::start(1);
    let mut agent = site.joined("S1");
    let first = agent.certificate.clone().unwrap();
    let renewed: JoinAnswer = agent.renew().json();
    // The old one holds until its end: the answer may be lost.
    agent.send(&agent.report(vec![])).ok();
    agent.take(renewed);
    agent.send(&agent.report(vec![])).ok();
    assert_ne!(agent.certificate.as_ref().unwrap().certificate_pem, first.certificate_pem);

    let reset = site.person().post(format!("{}/v1/ops/blades/b-1/reset-identity", site.url)).send_empty();
    assert_eq!(Answer::of(reset).status, 204);
    assert!(site.has_heard("S1", What::Reset));
    agent.send(&agent.report(vec![])).refused(403, REVOKED);
    agent.renew().refused(403, REVOKED);
    agent.take(first);
    agent.send(&agent.report(vec![])).refused(403, REVOKED);
    assert!(site.refused("revoked") >= 3.0);
    site.until("audit lines", || {
        site.audited("refused", "revoked") && site.audited("identity-reset", "anna")
    });

    let mut after = Agent::new(&site, "S1");
    after.join(&site.token(&after.serial, 60_000)).ok();
    after.send(&after.report(vec![])).ok();
}

#[test]
fn a_certificate_that_has_run_out_is_good_for_renewal_alone_and_not_for_ever() {
    let config = |grace| whetstone_operator::intake::Config {
        certificate_ms: 1_000,
        renew_grace_ms: grace,
        ..Default::default()
    };
    let site = Site::with(1, config(60_000));
    let mut agent = site.joined("S1");
    let end = agent.certificate.as_ref().unwrap().not_after_ms + 1_000;
    site.until("the certificate's end", || now_ms() > end);
    agent.send(&agent.report(vec![appeared(1, "sdc")])).refused(403, EXPIRED);
    // A new connection as well as the open one.
    agent.take(agent.certificate.clone().unwrap());
    agent.send(&agent.report(vec![])).refused(403, EXPIRED);
    let renewed: JoinAnswer = agent.renew().json();
    agent.take(renewed);
    agent.send(&agent.report(vec![])).ok();

    let strict = Site::with(1, config(0));
    let mut agent = strict.joined("S1");
    // Opens a connection that outlives the certificate.
    agent.send(&agent.report(vec![])).ok();
    let end = agent.certificate.as_ref().unwrap().not_after_ms + 2_000;
    strict.until("the certificate's end", || now_ms() > end);
    agent.renew().refused(403, EXPIRED);
    agent.take(agent.certificate.clone().unwrap());
    let new = agent.http.post(format!("{}/v1/renew", agent.url)).send_empty();
    assert!(new.is_err(), "the handshake let in a certificate past its grace: {new:?}");
}
