//! Every query of every panel and alert on a real Prometheus that scrapes everything the catalogue has.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests: what fails here is a failed test"
)]

mod common;

use common::{exporter, exposition, get, listen, prometheus, wait_for};
use whetstone_dashboards::catalogue::Source;
use whetstone_dashboards::check::{self, CheckError, Expect};
use whetstone_dashboards::exposition::{Problem, compare};

const WINDOW: &str = "30s";

#[test]
fn what_the_catalogue_says_fits_the_catalogue() {
    for source in [Source::Operator, Source::Agent] {
        let problems = compare(&exposition(source, 1));
        assert!(problems.is_empty(), "{problems:#?}");
    }
    let without = |name: &str| {
        let text = exposition(Source::Operator, 1);
        compare(&text.lines().filter(|line| !line.contains(name)).collect::<Vec<_>>().join("\n"))
    };
    // A metric that is gone is missed; one that comes with its first event may not be there yet.
    let gone = without("whetstone_breaker_open");
    assert_eq!(gone, [Problem::Missing { name: "whetstone_breaker_open", source_name: "operator" }]);
    assert!(gone[0].is_error());
    let later = without("whetstone_transitions_total");
    assert_eq!(later, [Problem::NotYet { name: "whetstone_transitions_total", source_name: "operator" }]);
    assert!(!later[0].is_error());
}

#[test]
fn every_query_is_valid_and_returns_data() {
    let prometheus = prometheus(exporter());
    // `rate` needs two scrapes, and so does everything else that counts.
    let count = |expr: &str| {
        let reply = get(&format!("{}/api/v1/query?query={expr}", prometheus.url)).unwrap_or_default();
        let reply: serde_json::Value = serde_json::from_str(&reply).unwrap_or_default();
        reply["data"]["result"].as_array().map_or(0, Vec::len)
    };
    wait_for("both processes were scraped three times", || {
        count("count_over_time(whetstone_leader[1m])%20%3E%203") > 0
            && count("count_over_time(whetstone_agent_up_seconds[1m])%20%3E%203") > 0
    });

    let outcome = check::against_with(&prometheus.url, WINDOW, &[Expect::All]).unwrap();
    assert!(outcome.problems.is_empty(), "{}", outcome.problems.join("\n"));
    assert!(outcome.answers.len() > 80, "{} queries", outcome.answers.len());

    // The rules are loaded, and evaluated without an error.
    wait_for("every rule was evaluated", || {
        let rules = get(&format!("{}/api/v1/rules", prometheus.url)).unwrap_or_default();
        let rules: serde_json::Value = serde_json::from_str(&rules).unwrap_or_default();
        let all: Vec<&serde_json::Value> = rules["data"]["groups"]
            .as_array()
            .map(|groups| groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect())
            .unwrap_or_default();
        assert!(all.iter().all(|rule| rule["health"] != "err"), "{rules:#}");
        all.len() == whetstone_dashboards::alerts::all().len()
            && all.iter().all(|rule| rule["health"] == "ok")
    });
}

#[test]
fn a_site_without_data_is_noticed() {
    // Nobody answers there: all queries are valid and empty.
    let (_silent, port) = listen();
    let prometheus = prometheus(port);
    let valid = check::against(&prometheus.url, &[]).unwrap();
    assert!(valid.problems.is_empty(), "{}", valid.problems.join("\n"));

    let some = check::against(&prometheus.url, &[Expect::Metric("whetstone_blades")]).unwrap();
    assert!(
        some.problems.iter().any(|p| p.starts_with("site/Blades by phase: no data")),
        "{:?}",
        some.problems
    );
    assert!(!some.problems.iter().any(|p| p.contains("whetstone_store")), "{:?}", some.problems);

    let place = check::against(&prometheus.url, &[Expect::Place("alert/WhetstoneNoLeader")]).unwrap();
    assert_eq!(place.problems, ["alert/WhetstoneNoLeader: no data: sum(whetstone_leader)"]);

    let all = check::against(&prometheus.url, &[Expect::All, Expect::MayBeEmpty("site/Leaders")]).unwrap();
    assert!(all.problems.len() > 80 && !all.problems.iter().any(|p| p.starts_with("site/Leaders")));

    let unknown = check::against(&prometheus.url, &[Expect::Metric("whetstone_nothing")]);
    assert!(matches!(unknown, Err(CheckError::NoSuchThing { .. })), "{unknown:?}");
}

#[test]
fn no_prometheus_is_an_error_that_says_where() {
    // Port 1 is nobody's.
    let error = check::against("http://127.0.0.1:1/", &[]).unwrap_err().to_string();
    assert_eq!(error, "cannot reach prometheus at http://127.0.0.1:1");
}
