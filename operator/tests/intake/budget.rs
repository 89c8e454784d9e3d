//! What is written for a blade beside its evidence: certificates, boots, facts, streams. None of it without end.

use std::time::Duration;

use sqlx::Connection as _;
use whetstone_model::wire::error_code::*;
use whetstone_model::wire::*;
use whetstone_operator::intake::{self, Rate};

use crate::site::*;

/// Four rows for each blade, and no more while a test runs.
fn site() -> Site {
    let rows = Rate { at_once: 4.0, per_second: 0.001 };
    Site::with(2, intake::Config { rows, flush: Duration::from_millis(100), ..Default::default() })
}

/// Told when to come again; signs of life go on.
#[track_caller]
fn over(agent: &Agent, answer: Answer) {
    answer.refused(429, UNAVAILABLE);
    assert_eq!(answer.retry_after.as_deref(), Some("60"), "it has to be heard of");
    agent.send(&agent.report(vec![])).ok();
}

fn rows(site: &Site, table: &str) -> i64 {
    let path = format!("sqlite:{}", site.dir.path().join("store.db").display());
    let mut other = site.wait(sqlx::SqliteConnection::connect(&path)).unwrap();
    let text = sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
    site.wait(sqlx::query_scalar(text).fetch_one(&mut other)).unwrap()
}

fn with_facts(agent: &Agent) -> ReportRequest {
    ReportRequest { facts: Some(agent.facts()), ..agent.report(vec![]) }
}

#[test]
fn renewals_have_an_end() {
    let site = site();
    let (greedy, other) = (site.joined("S1"), site.joined("S2"));
    for _ in 0..3 {
        greedy.renew().ok();
    }
    over(&greedy, greedy.renew());
    assert_eq!(rows(&site, "certificates"), 5);
    assert_eq!(site.refused("over-budget"), 1.0);
    other.renew().ok();
}

#[test]
fn joins_that_are_repeated_have_an_end_and_a_stranger_spends_nothing() {
    let site = site();
    let mut agent = Agent::new(&site, "S1");
    let token = site.token(&agent.serial, 60_000);
    for _ in 0..9 {
        Agent::new(&site, "S1").join("wt-none").refused(403, TOKEN_REFUSED);
    }
    for _ in 0..4 {
        agent.join(&token).ok();
    }
    let answer = agent.join(&token);
    over(&agent, answer);
    assert_eq!(rows(&site, "certificates"), 4);
}

#[test]
fn new_boots_have_an_end() {
    let site = site();
    let agent = site.joined("S1");
    let of_boot = |boot: &str| ReportRequest { boot_id: Some(boot.into()), ..agent.report(vec![]) };
    for boot in ["boot-1", "boot-2", "boot-3"] {
        agent.send(&of_boot(boot)).ok();
    }
    over(&agent, agent.send(&of_boot("boot-4")));
    // The one that is known costs nothing, and the other was not noted.
    agent.send(&of_boot("boot-3")).ok();
    assert!(!site.has_heard("S1", intake::What::Conflict));
}

#[test]
fn facts_and_streams_have_an_end() {
    let site = site();
    let mut agent = site.joined("S1");
    // One for the facts, one for the stream.
    agent.send(&with_facts(&agent)).ok();
    agent.stream = hex_id();
    over(&agent, agent.send(&with_facts(&agent)));
    // The last one for another stream; what else comes in it costs none.
    for seq in 1..=9 {
        agent.send(&agent.report(vec![note(seq, "x")])).ok();
    }
    agent.stream = hex_id();
    over(&agent, agent.send(&agent.report(vec![note(1, "x")])));
    // Nor one that only claims to be on record.
    over(&agent, agent.send(&ReportRequest { acked: Some(7), ..agent.report(vec![]) }));
    assert_eq!(rows(&site, "streams"), 2);
}

#[test]
fn who_is_over_budget_is_heard_of_all_the_while() {
    let site = site();
    let agent = site.joined("S1");
    for _ in 0..3 {
        agent.renew().ok();
    }
    let seen = || site.wait(site.store.identity(&agent.serial)).unwrap().unwrap().last_seen_ms.unwrap();
    let before = seen();
    site.until("the clock to move on", || now_ms() > before + 1);
    agent.send(&with_facts(&agent)).refused(429, UNAVAILABLE);
    site.until("the sign of life", || seen() > before);
}
