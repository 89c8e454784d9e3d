//! Who may say what.

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use whetstone_model::wire::error_code::*;
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
fn a_copied_state_directory_holds_both_machines() {
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
    for path in ["audit", "unexpected", "cases", "blades/S1/history", "tranches/t-07/report", "runs/1/report"]
    {
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
