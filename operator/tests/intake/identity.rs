//! Who may say what.

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use whetstone_model::wire::error_code::*;
use whetstone_model::wire::*;
use whetstone_operator::intake::What;

use crate::site::*;

#[test]
fn an_agent_speaks_for_its_own_blade_alone() {
    let site = Site::start(2);
    let (one, two) = (site.joined("S1"), site.joined("S2"));
    let mut forged = one.report(vec![appeared(1, "sdc")]);
    forged.serial = two.serial.clone();
    forged.instance = two.instance.clone();
    let message = one.send(&forged).refused(403, WRONG_BLADE);
    assert!(message.contains("S2") && message.contains("S1"), "{message}");
    let site_rows = site.wait(site.store.load_site()).unwrap();
    assert!(site_rows.blades.iter().all(|blade| blade.faults.is_empty() && blade.agent.conflict.is_none()));
    assert_eq!(site.refused("wrong-blade"), 1.0);
    site.until("an audit line", || site.audited("refused", "S1 wrong-blade"));
    two.send(&two.report(vec![])).ok();
}

#[test]
fn another_instance_with_the_same_certificate_holds_both_machines() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    agent.send(&agent.report(vec![appeared(1, "xid-79")])).ok();
    let mut copied = agent.report(vec![cleared(2, "xid-79")]);
    copied.instance = hex_id();
    agent.send(&copied).refused(409, IDENTITY_CONFLICT);
    agent.send(&agent.report(vec![cleared(2, "xid-79")])).refused(409, IDENTITY_CONFLICT);
    assert!(site.has_heard("S1", What::Conflict));
    let blade = site.wait(site.store.load_site()).unwrap().blades.remove(0);
    assert_eq!(blade.faults.len(), 1, "the word of a machine in doubt has changed something");
    assert!(blade.agent.conflict.is_some());
}

/// What a machine sends that has this boot, and all else from the agent's state directory.
fn of_boot(agent: &Agent, boot: &str, items: Vec<Item>) -> ReportRequest {
    ReportRequest { boot_id: Some(boot.into()), ..agent.report(items) }
}

fn faults(site: &Site) -> usize {
    site.wait(site.store.load_site()).unwrap().blades.remove(0).faults.len()
}

#[test]
fn two_machines_with_one_copied_state_directory_are_both_held() {
    let site = Site::start(1);
    // Both have everything of it: instance, key, certificate, stream.
    let agent = site.joined("S1");
    let run = crate::report::run(&site, 42);
    agent.send(&of_boot(&agent, "boot-of-one", vec![appeared(1, "xid-79")])).ok();
    // Might be the same machine after a start.
    agent.send(&of_boot(&agent, "boot-of-two", vec![note(1, "swallowed as a duplicate")])).ok();
    let message = agent
        .send(&of_boot(&agent, "boot-of-one", vec![cleared(2, "xid-79")]))
        .refused(409, IDENTITY_CONFLICT);
    assert!(message.contains("boot-of-") && message.contains("copied"), "{message}");
    agent.send(&of_boot(&agent, "boot-of-two", vec![cleared(2, "xid-79")])).refused(409, IDENTITY_CONFLICT);
    // No verdict either.
    let report = crate::result::report_of("b-1", 42, whetstone_model::verdict::Outcome::Pass);
    let result = crate::result::result_of(&agent, run, &report, "", &agent.signer);
    agent.put_result(run.0, &crate::result::pack(&result)).refused(409, IDENTITY_CONFLICT);

    assert!(site.has_heard("S1", What::Conflict));
    assert_eq!(faults(&site), 1, "the word of a machine in doubt has changed something");
    let conflict = site.wait(site.store.load_site()).unwrap().blades.remove(0).agent.conflict.unwrap();
    assert!(conflict.contains("copied state directory"), "{conflict}");
    site.until("an audit line", || site.audited("conflict", "copied state directory"));
    assert!(site.refused("identity-conflict") >= 3.0);

    // A person has found out which one is right: it may have any boot.
    assert!(site.wait(site.store.reset_identity(&agent.serial, now_ms())).unwrap());
    site.intake.identity_changed(&agent.serial);
    let right = site.joined("S1");
    right.send(&of_boot(&right, "boot-of-one", vec![cleared(1, "xid-79")])).ok();
    assert_eq!(faults(&site), 0);
}

/// A copy of its disk gave the numbers that its own spool gives next.
#[test]
fn what_a_copy_has_said_hides_nothing_of_the_right_machine_after_a_reset() {
    let site = Site::start(1);
    let mut agent = site.joined("S1");
    let send = |agent: &Agent, boot: &str, acked, items| -> ReportAnswer {
        agent.send(&ReportRequest { acked: Some(acked), ..of_boot(agent, boot, items) }).json()
    };
    send(&agent, "boot-1", 0, vec![note(1, "x")]);
    send(&agent, "boot-of-copy", 1, vec![cleared(9, "xid-79")]);
    // Not noticed until the copy speaks again: what the right machine says is taken for known.
    assert_eq!(send(&agent, "boot-2", 1, vec![appeared(9, "xid-79")]).acked, 9);
    agent.send(&of_boot(&agent, "boot-of-copy", vec![])).refused(409, IDENTITY_CONFLICT);
    assert_eq!(faults(&site), 0);

    let reset = site.person().post(format!("{}/v1/ops/blades/b-1/reset-identity", site.url)).send_empty();
    assert_eq!(Answer::of(reset).status, 204);
    let token = site.token(&agent.serial, 60_000);
    agent.join(&token).ok();
    assert!(send(&agent, "boot-2", 9, vec![]).say_again, "what was lost is not asked for");
    // Also under numbers that lie below the copy's.
    let answer = send(&agent, "boot-2", 9, vec![appeared(2, "xid-79"), appeared(9, "sdc")]);
    assert_eq!((answer.acked, faults(&site)), (9, 2));
}

#[test]
fn boots_that_follow_each_other_and_agents_that_say_none_are_no_conflict() {
    let site = Site::start(1);
    let mut agent = site.joined("S1");
    for boot in 0..40 {
        for _ in 0..2 {
            agent.send(&of_boot(&agent, &format!("boot-{boot}"), vec![])).ok();
        }
        // An agent that was replaced by an older version for a while.
        agent.send(&agent.report(vec![])).ok();
    }
    // Installed anew on the same machine, which was not started since the first of these.
    agent.join(&site.token(&agent.serial, 60_000)).ok();
    agent.send(&of_boot(&agent, "boot-39", vec![])).ok();
    agent.join(&site.token(&agent.serial, 60_000)).ok();
    agent.send(&of_boot(&agent, "boot-20", vec![])).ok();
    let long = "x".repeat(65);
    for bad in ["", "two words", long.as_str()] {
        agent.send(&of_boot(&agent, bad, vec![])).refused(400, BAD_REQUEST);
    }
    assert!(!site.has_heard("S1", What::Conflict));
}

#[test]
fn a_boot_that_is_known_asks_nothing_of_the_database() {
    use sqlx::Connection as _;
    let site = Site::start(1);
    let agent = site.joined("S1");
    // The first says which boot it is, the second has it looked up.
    for _ in 0..2 {
        agent.send(&of_boot(&agent, "boot-1", vec![])).ok();
    }
    let path = format!("sqlite:{}", site.dir.path().join("store.db").display());
    let mut other = site.wait(sqlx::SqliteConnection::connect(&path)).unwrap();
    site.wait(sqlx::query("BEGIN IMMEDIATE").execute(&mut other)).unwrap();
    agent.send(&of_boot(&agent, "boot-1", vec![])).ok();
    // A new one has to be on record before anything is taken from it.
    agent.send(&of_boot(&agent, "boot-2", vec![])).refused(503, UNAVAILABLE);
    site.wait(sqlx::query("ROLLBACK").execute(&mut other)).unwrap();
    agent.send(&of_boot(&agent, "boot-2", vec![])).ok();
    agent.send(&of_boot(&agent, "boot-1", vec![])).refused(409, IDENTITY_CONFLICT);
}

#[test]
fn without_a_certificate_of_ours_nothing_is_served() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    let mut stranger = Agent::new(&site, "S1");
    stranger.instance = agent.instance.clone();
    stranger.send(&stranger.report(vec![])).refused(401, UNAUTHENTICATED);
    stranger.renew().refused(401, UNAUTHENTICATED);
    stranger.put_result(1, b"").refused(401, UNAUTHENTICATED);

    // A certificate with the right names of somebody else's making does not get through the handshake.
    let key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name.push(DnType::OrganizationalUnitName, "agent");
    leaf.distinguished_name.push(DnType::CommonName, "S1");
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = leaf.signed_by(&stranger.key, &Issuer::new(ca, key)).unwrap();
    stranger.http = client(&stranger.ca, Some((&certificate.pem(), &stranger.key.serialize_pem())));
    let answer = stranger.http.post(format!("{}/v1/report", stranger.url)).send_json(stranger.report(vec![]));
    assert!(answer.is_err(), "{answer:?}");
    site.until("the handshake to be counted", || {
        site.metric("whetstone_intake_handshakes_failed_total", &[("cause", "refused")]) == 1.0
    });
    // The CA's own certificate of a server is none for a client either: roles are apart.
    agent.send(&agent.report(vec![])).ok();
}

#[test]
fn roles_are_apart() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    for path in [
        "audit",
        "unexpected",
        "cases",
        "blades/S1/history",
        "blades/S1/evidence",
        "tranches/t-07/report",
        "runs/1/report",
    ] {
        let answer = Answer::of(agent.http.get(format!("{}/v1/ops/{path}", site.url)).call());
        answer.refused(403, UNAUTHENTICATED);
    }
    let mut person = Agent::new(&site, "S1");
    person.http = site.person();
    person.send(&agent.report(vec![appeared(1, "sdc")])).refused(403, UNAUTHENTICATED);
    assert_eq!(site.refused("wrong-role"), 1.0, "only what agents ask is refused evidence");
}

#[test]
fn who_does_not_lead_serves_nobody() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    site.leading.send_replace(false);
    agent.send(&agent.report(vec![appeared(1, "sdc")])).refused(503, UNAVAILABLE);
    let mut other = Agent::new(&site, "S1");
    other.join("wt-none").refused(503, UNAVAILABLE);
    Answer::of(site.person().get(format!("{}/v1/ops/audit", site.url)).call()).refused(503, UNAVAILABLE);
    site.leading.send_replace(true);
    agent.send(&agent.report(vec![appeared(1, "sdc")])).ok();
}
