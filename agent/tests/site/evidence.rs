//! Evidence: nothing is lost, nothing is stored twice, the spool stays within its bound.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use whetstone_model::wire::ItemBody;

use super::agent::{Blade, device, devices, kernel_devices, wait};
use super::operator::{Books, Mischief, Operator};

#[test]
fn what_happened_while_the_operator_was_away_comes_through_kills_and_lost_answers_once() {
    let (operator, blade) = (Operator::start(), Blade::new());
    let agent = blade.start(&operator, &[]);
    agent.wait_for_log("watching");
    blade.kernel(0..3);
    wait("the first faults", || (kernel_devices(&operator) == devices(0..3)).then_some(()));
    operator.away(true);
    blade.kernel(3..1_000);
    agent.wait_for_log(&device(999));
    agent.wait_for_log("report not delivered");
    agent.kill();
    let agent = blade.start(&operator, &[]);
    agent.wait_for_log("watching");
    blade.kernel(1_000..1_005);
    agent.wait_for_log(&device(1_004));
    // Back, but every other answer is lost on its way.
    let mut reports = 0;
    operator.hook(move |call| {
        reports += usize::from(call.path == "/v1/report");
        (call.path == "/v1/report" && reports % 2 == 1).then_some(Mischief::LoseAnswer)
    });
    operator.away(false);
    wait("all faults", || (kernel_devices(&operator).len() >= 1_005).then_some(()));
    assert_eq!(kernel_devices(&operator), devices(0..1_005), "each once");
    operator.books(|books| {
        assert!(books.duplicates > 0, "a lost answer has the items sent again");
        let streams: std::collections::BTreeSet<_> = books.items.keys().map(|(stream, _)| stream).collect();
        assert_eq!(streams.len(), 1);
        assert_eq!(books.dropped, 0);
    });
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn findings_are_said_when_they_come_and_go_and_not_again_after_a_restart() {
    let (operator, blade) = (Operator::start(), Blade::new());
    let missing = blade.path("no-library");
    let library = format!("--nvml-lib={}", missing.display());
    let agent = blade.start(&operator, &[&library]);
    let said = |appeared: bool| {
        operator.books(|books| {
            let of = |body: &ItemBody| match body {
                ItemBody::Appeared { finding } if appeared => finding.code == "source-error",
                ItemBody::Cleared { finding } if !appeared => finding.code == "source-error",
                _ => false,
            };
            books.items.values().filter(|item| of(&item.body)).count()
        })
    };
    wait("the finding", || (said(true) > 0).then_some(()));
    // What is not on disk as known when the power goes is said again; here it is on disk.
    wait("it to be known", || {
        let standing = std::fs::read_to_string(blade.path("state/standing.json")).unwrap_or_default();
        standing.contains("source-error").then_some(())
    });
    agent.kill();
    let agent = blade.start(&operator, &[&library]);
    wait("facts of the second start", || operator.books(|books| (books.facts.len() == 2).then_some(())));
    let reports = operator.books(|books| books.reports);
    wait("reports", || operator.books(|books| (books.reports > reports + 1).then_some(())));
    assert_eq!(said(true), 1, "it is known");
    agent.kill();
    // It ends while no agent is there to see it.
    let agent = blade.start(&operator, &[]);
    wait("its end", || (said(false) > 0).then_some(()));
    assert_eq!((said(true), said(false)), (1, 1));
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn an_item_that_the_operator_cannot_take_does_not_hold_up_the_others() {
    let (operator, blade) = (Operator::start(), Blade::new());
    operator.hook(|call| {
        let poison = call.path == "/v1/report" && String::from_utf8_lossy(call.body).contains(&device(7));
        poison.then_some(Mischief::Refuse(400, "bad-request"))
    });
    let agent = blade.start(&operator, &[]);
    agent.wait_for_log("watching");
    blade.kernel(0..12);
    wait("the others", || (kernel_devices(&operator).len() == 11).then_some(()));
    assert_eq!(kernel_devices(&operator), devices((0..12).filter(|bus| *bus != 7)));
    agent.wait_for_log("the operator does not take an item; given up");
    // Also as the last one it is nothing that the operator has said to have: it would be taken for lost there.
    blade.kernel([7]);
    wait("it to be given up", || (agent.count("given up") == 2).then_some(()));
    let reports = operator.books(|books| books.reports);
    wait("reports", || operator.books(|books| (books.reports > reports + 1).then_some(())));
    operator.books(|books| {
        let last = books.items.keys().map(|(_, seq)| *seq).max();
        assert!(books.acked <= last, "{:?} is said to be stored, {last:?} is", books.acked);
    });
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn a_full_spool_keeps_the_latest_state_of_every_device_within_its_bound() {
    let (operator, blade) = (Operator::start(), Blade::new());
    operator.away(true);
    let agent = blade.start(&operator, &["--spool-max", "256KiB"]);
    agent.wait_for_log("watching");
    for round in 0..12 {
        blade.kernel(0..200);
        wait("the round to be read", || {
            let size = |dir: &str| {
                let files = std::fs::read_dir(blade.path(dir)).into_iter().flatten().flatten();
                files.map(|file| file.metadata().map_or(0, |file| file.len())).sum::<u64>()
            };
            // Its own numbers, and one segment that is being written anew.
            assert!(
                size("state/spool") <= (256 << 10) + (16 << 10) + 1024,
                "beyond its bound in round {round}"
            );
            (agent.count(&device(199)) > round).then_some(())
        });
    }
    operator.away(false);
    wait("all devices", || {
        let mut seen = kernel_devices(&operator);
        seen.dedup();
        (seen == devices(0..200)).then_some(())
    });
    assert_eq!(agent.errors(), [""; 0], "nothing was lost");
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn metrics_tell_of_the_spool_and_the_agent_is_small() {
    let (operator, blade) = (Operator::start(), Blade::new());
    let agent = blade.start(&operator, &["--metrics", "127.0.0.1:0"]);
    wait("reports", || operator.books(|books| (books.reports > 2).then_some(())));
    let address = agent.field("metrics address=");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    assert_eq!(whetstone_dashboards::exposition::compare(body), [], "held against the catalogue");
    let value = |name: &str| -> f64 {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("no {name} in {text}"));
        line.trim().parse().unwrap()
    };
    assert!(value("whetstone_agent_reports_total{result=\"ok\"}") >= 3.0);
    assert!((3_000.0..3_700.0).contains(&value("whetstone_agent_certificate_expires_seconds ")));
    assert_eq!(value("whetstone_agent_spool_dropped_total "), 0.0);
    assert!(value("whetstone_agent_look_seconds ") > 0.0);
    // The limit of the design, in the agent's own words to the operator. This is a build without optimisation.
    let resident = operator.books(|books| books.resident);
    assert!(resident > 1 << 20 && resident < 30 << 20, "{resident} bytes");
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn facts_that_the_operator_cannot_take_do_not_cost_every_second_report() {
    let (operator, blade) = (Operator::start(), Blade::new());
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = tries.clone();
    operator.hook(move |call| {
        let with = call.path == "/v1/report" && String::from_utf8_lossy(call.body).contains("\"facts\":");
        with.then(|| {
            counted.fetch_add(1, Ordering::SeqCst);
            Mischief::Refuse(400, "bad-request")
        })
    });
    let agent = blade.start(&operator, &[]);
    wait("reports without facts", || operator.books(|books| (books.reports > 4).then_some(())));
    assert_eq!(tries.load(Ordering::SeqCst), 1, "facts are sent again and again");
    operator.books(|books| assert!(books.facts.is_empty()));
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn what_stands_is_said_again_once_to_an_operator_that_has_lost_it() {
    let (operator, blade) = (Operator::start(), Blade::new());
    let library = format!("--nvml-lib={}", blade.path("no-library").display());
    let agent = blade.start(&operator, &[&library]);
    // How often the finding was said, and the facts.
    let said = || operator.books(|books| (source_errors(books), books.facts.len()));
    wait("finding and facts", || (said() == (1, 1)).then_some(()));
    operator.books(|books| books.say_again = true);
    wait("both again", || (said() == (2, 2)).then_some(()));
    let reports = operator.books(|books| books.reports);
    wait("reports", || operator.books(|books| (books.reports > reports + 3).then_some(())));
    assert_eq!(said(), (2, 2), "said once for each time that they were lost");
    assert!(!blade.path("state/say-again").exists());
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn what_was_asked_for_again_is_said_after_a_restart() {
    let (operator, blade) = (Operator::start(), Blade::new());
    let library = format!("--nvml-lib={}", blade.path("no-library").display());
    // It looks once: what stands is not said again before it ends.
    let agent = blade.start(&operator, &[&library, "--interval=30m"]);
    let said = || operator.books(|books| source_errors(books));
    wait("the finding", || (said() == 1).then_some(()));
    wait("it to be known", || {
        let standing = std::fs::read_to_string(blade.path("state/standing.json")).unwrap_or_default();
        standing.contains("source-error").then_some(())
    });
    operator.books(|books| books.say_again = true);
    wait("the wish to be kept", || blade.path("state/say-again").exists().then_some(()));
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(said(), 1);

    let agent = blade.start(&operator, &[&library]);
    wait("the finding again", || (said() == 2).then_some(()));
    let reports = operator.books(|books| books.reports);
    wait("reports", || operator.books(|books| (books.reports > reports + 1).then_some(())));
    assert_eq!(said(), 2);
    assert!(!blade.path("state/say-again").exists(), "it would be said at every start");
    assert_eq!(agent.stop(), Some(0));
}

/// How often the one finding of a blade without a driver was said.
fn source_errors(books: &Books) -> usize {
    let appeared =
        |body: &ItemBody| matches!(body, ItemBody::Appeared { finding } if finding.code == "source-error");
    books.items.values().filter(|item| appeared(&item.body)).count()
}
