//! Two operators on one store: the one that leads dies in the middle of a tranche, the other goes on.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use whetstone_model::verdict::Outcome;
use whetstone_sim_fleet::{End, FleetBlade, Options};

use crate::harness::postgres::Postgres;
use crate::harness::{Site, listed, serial, until};

const MORE: &[&str] = &["--leader-elect", "--agent-away", "20s", "--run-lost", "20s"];

#[test]
fn the_other_operator_goes_on_with_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}?mode=rwc", dir.path().join("store.db").display());
    takes_over(Site::parts(dir, url, 2, MORE));
}

#[test]
fn the_other_operator_goes_on_with_postgres() {
    let postgres = Postgres::start();
    takes_over(Site::parts(tempfile::tempdir().unwrap(), postgres.url(), 2, MORE));
}

fn leaders(site: &Site) -> Vec<f64> {
    site.operators.iter().map(|operator| operator.metric("whetstone_leader", &[]).unwrap_or(0.0)).collect()
}

fn takes_over(mut site: Site) {
    site.operators[0].start(&[]);
    site.operators[0].wait_leading();
    site.operators[1].start(&[]);
    until(30, "the second stands by", || match site.operators[1].ready() {
        Ok((true, page)) if page.contains("stands by") => Ok(()),
        other => Err(other),
    });
    assert_eq!(leaders(&site), [1.0, 0.0]);

    let names: Vec<String> = (1..=8).map(|n| format!("h-{n}")).collect();
    let manifest: Vec<Value> = names.iter().map(|name| listed(name, "r-1")).collect();
    site.node("h-1", json!({}));
    site.node("h-8", json!({}));
    site.tranche("t-ha", &manifest, json!({ "owner": "spare", "concurrency": 3 }));
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let tokens = site.tokens(&all);
    let script = |name: &str| if name == "h-8" { vec![End::Fail] } else { vec![End::Pass] };
    let blades = all.iter().zip(tokens);
    let blades = blades.map(|(name, token)| FleetBlade { serial: serial(name), token, script: script(name) });
    let address = |n: usize| format!("127.0.0.1:{}", site.operators[n].settings.listen);
    let both = format!("{},{}", address(0), address(1));
    site.start(
        blades.collect(),
        Options { operator: both, run_time: Duration::from_secs(1), ..site.fleet_options() },
    );

    // Some have their verdict, some burn, some wait.
    let verdicts = |site: &Site| names.iter().map(|name| site.history(name).verdicts.len()).sum::<usize>();
    until(30, "the first verdicts", || match verdicts(&site) {
        count if count >= 2 => Ok(()),
        count => Err(count),
    });
    let before = verdicts(&site);
    site.operators[0].kill();
    assert!(before < names.len(), "all was over before");
    let begun = Instant::now();
    site.operators[1].wait_leading();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(25), "taken over after {took:?}");
    eprintln!("taken over after {took:?}");

    let phase = |name: &str| if name == "h-8" { "Quarantined" } else { "InService" };
    let wanted: Vec<(&str, &str)> = all.iter().map(|name| (*name, phase(name))).collect();
    site.wait_phases(60, &wanted);
    site.check();
    for name in &names {
        let history = site.history(name);
        let outcomes: Vec<_> = history.verdicts.iter().map(|verdict| verdict.outcome).collect();
        assert_eq!(outcomes, [if name == "h-8" { Outcome::Fail } else { Outcome::Pass }], "{name}");
        // The run that went on while nobody led was waited for: no second one was made.
        assert_eq!(history.runs.len(), 1, "{name}");
    }
    // The first comes back, and stands by.
    site.operators[0].start(&[]);
    until(30, "it stands by", || match site.operators[0].ready() {
        Ok((true, page)) if page.contains("stands by") => Ok(()),
        other => Err(other),
    });
    assert_eq!(leaders(&site), [0.0, 1.0]);
}
