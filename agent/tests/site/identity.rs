//! Joining, renewing, and who is refused.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rcgen::{CertificateSigningRequestParams, PublicKeyData};

use super::agent::{Blade, wait};
use super::operator::{Mischief, Operator, TOKEN};

fn key(csr_pem: &str) -> Vec<u8> {
    CertificateSigningRequestParams::from_pem(csr_pem).unwrap().public_key.der_bytes().to_vec()
}

#[test]
fn a_blade_joins_with_its_token_and_keeps_who_it_is() {
    let (operator, blade) = (Operator::start(), Blade::new());
    let agent = blade.start(&operator, &["--metrics", "127.0.0.1:0"]);
    wait("facts", || operator.books(|books| books.facts.first().cloned()));
    let request = operator.books(|books| books.joins[0].clone());
    assert_eq!((request.serial.as_str(), request.token.as_str()), ("S-1", TOKEN));
    assert_eq!((request.instance.len(), request.report_key.len()), (32, 64));
    assert!(!blade.path("token").exists(), "a token is used once");
    let mode = std::fs::metadata(blade.path("state/identity.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(agent.errors(), [""; 0]);
    assert_eq!(agent.stop(), Some(0));

    // Another start needs no token, and tells the same facts once.
    let agent = blade.start(&operator, &[]);
    wait("facts of the second start", || operator.books(|books| (books.facts.len() == 2).then_some(())));
    let reports = operator.books(|books| books.reports);
    wait("more reports", || operator.books(|books| (books.reports > reports + 2).then_some(())));
    operator.books(|books| {
        assert_eq!(books.joins.len(), 1);
        assert_eq!(books.facts.len(), 2, "facts come again only when they change");
        assert_eq!(books.duplicates, 0);
    });
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn a_lost_answer_is_asked_for_again_with_the_same_key_even_after_a_kill() {
    let (operator, blade) = (Operator::start(), Blade::new());
    operator.hook(|call| (call.path == "/v1/join").then_some(Mischief::LoseAnswer));
    let agent = blade.start(&operator, &[]);
    wait("two attempts", || operator.books(|books| (books.joins.len() >= 2).then_some(())));
    agent.kill();
    operator.hook(|_| None);
    let agent = blade.start(&operator, &[]);
    wait("a report", || operator.books(|books| (books.reports > 0).then_some(())));
    let joins = operator.books(|books| books.joins.clone());
    assert!(joins.iter().all(|join| key(&join.csr_pem) == key(&joins[0].csr_pem)));
    assert!(joins.iter().all(|join| join.instance == joins[0].instance));
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn a_refused_token_is_said_and_a_new_one_is_taken_without_a_restart() {
    let (operator, blade) = (Operator::start(), Blade::new());
    std::fs::write(blade.path("token"), "wt-wrong").unwrap();
    let agent = blade.start(&operator, &[]);
    agent.wait_for_log("403 token-refused");
    assert_eq!(agent.errors().len(), 1, "a person must act, and is told once");
    let joins = operator.books(|books| books.joins.len());
    std::fs::write(blade.path("token"), TOKEN).unwrap();
    wait("a report", || operator.books(|books| (books.reports > 0).then_some(())));
    assert_eq!(operator.books(|books| books.joins.len()), joins + 1);

    // Another machine with the same token: a conflict, said, and not hammered.
    let other = Blade::new();
    let second = other.start(&operator, &[]);
    second.wait_for_log("409 identity-conflict");
    assert_eq!(second.errors().len(), 1);
    assert_eq!(operator.books(|books| books.joins.len()), joins + 2);
    assert!(other.path("token").exists());
    drop(second);
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn a_certificate_is_renewed_in_time_with_a_new_key_and_one_that_ended_needs_a_token() {
    let (operator, blade) = (Operator::start(), Blade::new());
    operator.books(|books| books.lifetime = Duration::from_secs(6));
    let agent = blade.start(&operator, &[]);
    wait("reports with a third certificate", || {
        operator.books(|books| (books.clients.len() >= 3).then_some(()))
    });
    operator.books(|books| {
        let first = key(&books.joins[0].csr_pem);
        assert!(books.renewals.iter().all(|renewal| key(&renewal.csr_pem) != first), "a new key");
        assert_eq!(books.joins.len(), 1);
        // Past its end no renewal is possible.
        books.tokens.push("wt-second".to_owned());
    });
    assert_eq!(agent.errors(), [""; 0]);
    // While the operator only cannot, there is nothing for a person to do.
    let renewals = operator.books(|books| books.renewals.len());
    operator.hook(|call| (call.path == "/v1/renew").then_some(Mischief::Refuse(503, "unavailable")));
    agent.wait_for_log("certificate cannot be renewed yet");
    assert_eq!((agent.errors().len(), operator.books(|books| books.renewals.len())), (0, renewals));
    operator.hook(|call| {
        let over = matches!(call.path, "/v1/renew" | "/v1/report");
        over.then_some(Mischief::Refuse(403, "expired"))
    });
    agent.wait_for_log("put it into the token file");
    std::fs::write(blade.path("token"), "wt-second").unwrap();
    wait("the second join", || operator.books(|books| (books.joins.len() == 2).then_some(())));
    operator.hook(|_| None);
    let reports = operator.books(|books| books.reports);
    wait("reports", || operator.books(|books| (books.reports > reports).then_some(())));
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn a_token_that_cannot_be_deleted_is_not_used_again() {
    let (operator, blade) = (Operator::start(), Blade::new());
    operator.books(|books| books.lifetime = Duration::from_secs(4));
    let agent = blade.start(&operator, &[]);
    wait("a report", || operator.books(|books| (books.reports > 0).then_some(())));
    // As if it had never been deleted.
    std::fs::write(blade.path("token"), TOKEN).unwrap();
    operator.hook(|call| (call.path != "/v1/join").then_some(Mischief::Refuse(403, "expired")));
    agent.wait_for_log("the token was used");
    assert_eq!(operator.books(|books| books.joins.len()), 1);
}

#[test]
fn another_ca_is_not_trusted_and_wrong_input_ends_at_once() {
    let (operator, blade, other) = (Operator::start(), Blade::new(), Operator::start());
    let elsewhere = format!("--operator=https://{}", other.address);
    let agent = blade.start(&operator, &[&elsewhere]);
    agent.wait_for_log("not trusted");
    drop(agent);
    assert!(blade.path("token").exists());

    let (code, log) = blade.start(&operator, &["--operator=http://plain"]).wait_for_end();
    assert_eq!(code, Some(2), "{log}");
    let first = blade.start(&operator, &[]);
    wait("a join", || operator.books(|books| (!books.joins.is_empty()).then_some(())));
    let (code, log) = blade.start(&operator, &[]).wait_for_end();
    assert!(code == Some(1) && log.contains("another agent has this directory"), "{log}");
    wait("identity", || blade.path("state/identity.json").exists().then_some(()));
    assert_eq!(first.stop(), Some(0));
    let (code, log) = blade.start(&operator, &["--serial", "S-2"]).wait_for_end();
    assert!(code == Some(2) && log.contains("belongs to S-1"), "{log}");
}

const FIRMWARE: &str = "sys/class/dmi/id/product_serial";

#[test]
fn a_disk_in_another_machine_does_not_report_as_the_old_blade() {
    let (operator, mut blade) = (Operator::start(), Blade::new());
    blade.serial = None;
    blade.root(FIRMWARE, "S-1\n");
    let agent = blade.start(&operator, &[]);
    wait("a report", || operator.books(|books| (books.reports > 0).then_some(())));
    assert_eq!(operator.books(|books| books.joins[0].serial.to_string()), "S-1");
    assert_eq!(agent.stop(), Some(0));

    // Boards without a serial say nothing of which machine it is.
    blade.root(FIRMWARE, "Default string\n");
    let reports = operator.books(|books| books.reports);
    let agent = blade.start(&operator, &[]);
    wait("a report", || operator.books(|books| (books.reports > reports).then_some(())));
    assert_eq!(agent.stop(), Some(0));

    blade.root(FIRMWARE, "S-2\n");
    let reports = operator.books(|books| books.reports);
    let (code, log) = blade.start(&operator, &[]).wait_for_end();
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("the firmware says serial S-2") && log.contains("belongs to S-1"), "{log}");
    assert_eq!(operator.books(|books| (books.reports, books.joins.len())), (reports, 1));

    // What a person says holds.
    blade.serial = Some("S-1");
    let agent = blade.start(&operator, &[]);
    wait("a report", || operator.books(|books| (books.reports > reports).then_some(())));
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn a_serial_that_a_person_gave_is_not_held_against_the_firmware() {
    let (operator, mut blade) = (Operator::start(), Blade::new());
    blade.root(FIRMWARE, "chassis-7\n");
    let agent = blade.start(&operator, &[]);
    wait("a report", || operator.books(|books| (books.reports > 0).then_some(())));
    assert_eq!(agent.stop(), Some(0));
    blade.serial = None;
    let reports = operator.books(|books| books.reports);
    let agent = blade.start(&operator, &[]);
    wait("a report", || operator.books(|books| (books.reports > reports).then_some(())));
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn reports_say_which_boot_it_is_and_an_older_operator_that_does_not_know_it_loses_nothing() {
    let (operator, blade) = (Operator::start(), Blade::new());
    blade.root("proc/sys/kernel/random/boot_id", "0b1e0f4c-7d5a-4d0e-9a53-d1f5a2b8c3e4\n");
    operator.hook(|call| {
        let body = String::from_utf8_lossy(call.body);
        let new = body.split("\"items\"").next().is_some_and(|head| head.contains("\"boot_id\""));
        (call.path == "/v1/report" && new).then_some(Mischief::Unknown("boot_id"))
    });
    let agent = blade.start(&operator, &[]);
    agent.wait_for_log("watching");
    blade.kernel(0..3);
    agent.wait_for_log("older than this agent");
    wait("faults", || (super::agent::kernel_devices(&operator).len() >= 3).then_some(()));
    assert_eq!(agent.count("given up"), 0);
    assert_eq!(operator.books(|books| (books.boot_id.clone(), books.acked)), (None, None));
    agent.kill();

    operator.hook(|_| None);
    let agent = blade.start(&operator, &[]);
    wait("the boot", || operator.books(|books| books.boot_id.clone()));
    operator.books(|books| {
        assert_eq!(books.boot_id.as_deref(), Some("0b1e0f4c-7d5a-4d0e-9a53-d1f5a2b8c3e4"));
        assert!(books.acked.is_some());
    });
    assert_eq!(agent.stop(), Some(0));
}
