//! What people ask.

use serde_json::{Value, json};
use whetstone_model::wire::error_code::*;

use crate::report::run;
use crate::site::*;

struct Person<'a> {
    site: &'a Site,
    http: ureq::Agent,
}

impl Person<'_> {
    fn get(&self, path: &str) -> Answer {
        Answer::of(self.http.get(format!("{}/v1/ops/{path}", self.site.url)).call())
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.http.post(format!("{}/v1/ops/{path}", self.site.url)).send_json(body))
    }
}

fn person(site: &Site) -> Person<'_> {
    Person { site, http: site.person() }
}

#[test]
fn tokens_are_issued_for_known_blades_and_work_once() {
    let site = Site::start(2);
    let person = person(&site);
    let made: Vec<Value> = person.post("tokens", &json!({"serials": ["S1", "S2"], "ttl_s": 60})).json();
    let token = made[0]["token"].as_str().unwrap();
    assert!(token.starts_with("wt-") && token.len() == 55, "{token}");
    assert_ne!(made[0]["token"], made[1]["token"]);
    let left = made[0]["expires_ms"].as_i64().unwrap() - now_ms();
    assert!((50_000..=60_000).contains(&left), "{left}");
    Agent::new(&site, "S2").join(token).refused(403, TOKEN_REFUSED);
    Agent::new(&site, "S1").join(token).ok();

    // All of a call or none, and it says of which it does not know.
    let refused = person.post("tokens", &json!({"serials": ["S1", "X2", "S2", "X1"], "ttl_s": 60}));
    assert!(refused.refused(404, NOT_FOUND).starts_with("2 of the serials"), "{refused:?}");
    let body: Value = serde_json::from_str(&refused.body).unwrap();
    assert_eq!(body["error"]["unknown"], json!(["X2", "X1"]));
    assert_eq!(tokens_on_record(&site), 2);
    for bad in [
        json!({"serials": [], "ttl_s": 60}),
        json!({"serials": ["S1"], "ttl_s": 0}),
        json!({"serials": ["S1"], "ttl_s": 1e9 as i64}),
        json!({"serials": ["a/b"], "ttl_s": 60}),
        json!({"serials": vec!["S1"; 1_001], "ttl_s": 60}),
        json!({"serials": ["S1"]}),
    ] {
        person.post("tokens", &bad).refused(400, BAD_REQUEST);
    }
    site.until("an audit line", || site.audited("token-issued", "anna"));
}

fn tokens_on_record(site: &Site) -> i64 {
    use sqlx::Connection as _;

    let path = format!("sqlite:{}", site.dir.path().join("store.db").display());
    let mut other = site.wait(sqlx::SqliteConnection::connect(&path)).unwrap();
    site.wait(sqlx::query_scalar("SELECT COUNT(*) FROM tokens").fetch_one(&mut other)).unwrap()
}

#[test]
fn history_goes_by_name_and_serial() {
    let site = Site::start(1);
    let _agent = site.joined("S1");
    let run = run(&site, 7);
    let person = person(&site);
    for name in ["b-1", "S1"] {
        let history: Value = person.get(&format!("blades/{name}/history")).json();
        assert_eq!((&history["serial"], &history["name"]), (&json!("S1"), &json!("b-1")));
        assert_eq!(history["explain"], "S1 waits for its run");
        let to: Vec<&Value> =
            history["transitions"].as_array().unwrap().iter().map(|t| &t["to"]["phase"]).collect();
        assert_eq!(to, ["Expected", "Discovered", "BurningIn"]);
        assert_eq!(
            (&history["runs"][0]["run"], &history["runs"][0]["state"]),
            (&json!(run), &json!("ordered"))
        );
    }
    person.get("blades/nobody/history").refused(404, NOT_FOUND);
    person.get("runs/1/report").refused(404, NO_SUCH_RUN);
    person.get("runs/x/report").refused(404, NOT_FOUND);
    person.get("tranches/t-99/report").refused(404, NOT_FOUND);
    person.post("blades/nobody/reset-identity", &json!({})).refused(404, NOT_FOUND);
}

#[test]
fn what_a_blade_has_said_is_at_hand_newest_first() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    agent.send(&agent.report(vec![note(1, "started"), appeared(2, "sdc"), note(3, "later")])).ok();
    let person = person(&site);
    let said = |query: &str| person.get(&format!("blades/b-1/evidence{query}")).json::<Vec<Value>>();
    let seqs: Vec<i64> = said("").iter().map(|row| row["seq"].as_i64().unwrap()).collect();
    assert_eq!(seqs, [3, 2, 1]);
    let findings = said("?findings=true");
    assert_eq!((findings.len(), &findings[0]["kind"]), (1, &json!("appeared")));
    assert_eq!(findings[0]["body"]["finding"]["detail"], "sdc was seen");
    assert_eq!(said("?limit=1").len(), 1);
    person.get("blades/S1/evidence?limit=many").refused(400, BAD_REQUEST);
    person.get("blades/nobody/evidence").refused(404, NOT_FOUND);
}

#[test]
fn audit_strangers_cases_and_the_breaker_are_at_hand() {
    let site = Site::start(1);
    let person = person(&site);
    Agent::new(&site, "X7").join("wt-none").refused(403, TOKEN_REFUSED);
    let strangers: Vec<Value> = person.get("unexpected").json();
    assert_eq!((strangers.len(), &strangers[0]["serial"]), (1, &json!("X7")));
    let case = whetstone_store::NewCase {
        serial: serial("S1"),
        code: "sdc".into(),
        device: Some("gpu5".into()),
        reason: "burn-in".into(),
        detail: "wrong bits".into(),
        action: whetstone_model::action::Action::Replace,
        at_ms: now_ms(),
    };
    let number = site.wait(site.store.open_cases(&[case])).unwrap()[0].unwrap();
    let cases: Vec<Value> = person.get("cases").json();
    assert_eq!((&cases[0]["blade"], &cases[0]["device"]), (&json!("b-1"), &json!("gpu5")));
    site.wait(site.store.close_case(number, "replaced", now_ms())).unwrap();
    assert!(person.get("cases").json::<Vec<Value>>().is_empty());
    let all: Vec<Value> = person.get("cases?all=true").json();
    assert_eq!(all[0]["close_why"], "replaced");

    assert_eq!(person.post("breaker", &json!({"override": true})).status, 204);
    assert!(*site.breaker.borrow());
    let state: Value = person.get("breaker").json();
    assert_eq!(state, json!({"open": false, "override": true, "withheld": 8, "wanted": 4, "limit": 8}));
    person.post("breaker", &json!({"over": 1})).refused(400, BAD_REQUEST);
    site.until("audit lines", || site.audited("breaker", "anna"));
    let lines: Vec<Value> = person.get("audit?limit=1").json();
    assert_eq!(lines.len(), 1);
    person.get("audit?limit=many").refused(400, BAD_REQUEST);
}
