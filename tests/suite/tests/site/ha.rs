//! Two operators on one store: the one that leads dies in the middle of a tranche, the other goes on.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use serde_json::{Value, json};
use whetstone_api::Blade;
use whetstone_model::lifecycle::PhaseName;
use whetstone_model::verdict::Outcome;
use whetstone_sim_fleet::{End, FleetBlade, Options};

use crate::harness::postgres::Postgres;
use crate::harness::site::SeenNode;
use crate::harness::way::Way;
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

#[track_caller]
fn stands_by(site: &Site, number: usize) {
    until(30, "it stands by", || match site.operators[number].ready() {
        Ok((true, page)) if page.contains("stands by") => Ok(()),
        other => Err(other),
    });
}

/// The first leads, the second stands by.
#[track_caller]
fn both_start(site: &mut Site) {
    site.operators[0].start(&[]);
    site.operators[0].wait_leading();
    site.operators[1].start(&[]);
    stands_by(site, 1);
    assert_eq!(leaders(site), [1.0, 0.0]);
}

/// A blade in service, whose agent knows both operators.
fn one_in_service(site: &Site, name: &str) {
    site.node(name, json!({}));
    site.tranche(&format!("t-{name}"), &[listed(name, "r-1")], json!({ "owner": "spare" }));
    let token = site.tokens(&[name]).remove(0);
    let blade = FleetBlade { serial: serial(name), token, script: vec![End::Pass] };
    let address = |n: usize| format!("127.0.0.1:{}", site.operators[n].settings.listen);
    let both = format!("{},{}", address(0), address(1));
    site.start(vec![blade], Options { operator: both, ..site.fleet_options() });
    site.wait_phases(60, &[(name, "InService")]);
    site.check();
}

/// A leader that was paused, and finds another one when it goes on, undoes nothing.
#[test]
fn a_paused_leader_does_not_undo_what_the_next_one_did() {
    let postgres = Postgres::start();
    let mut site = Site::parts(tempfile::tempdir().unwrap(), postgres.url(), 2, MORE);
    both_start(&mut site);
    one_in_service(&site, "z-1");

    site.operators[0].signal("STOP");
    site.operators[1].wait_leading();
    site.patch::<Blade>("z-1", json!({ "quarantine": { "reason": "look at it" } }));
    site.wait_phases(30, &[("z-1", "Quarantined")]);
    until(20, "its node is withheld", || {
        let node = site.seen_node("z-1");
        if node.taint.as_deref() == Some("person") && node.cordoned { Ok(()) } else { Err(node) }
    });
    // From here on each change of the node is looked at.
    let begin = site.rt.block_on(site.api::<Node>().get("z-1")).unwrap().resource_version().unwrap();
    let before = site.history("z-1").transitions.len();

    site.operators[0].signal("CONT");
    let ended = site.operators[0].wait_ended(20);
    assert_eq!(ended.code(), Some(1), "who has lost the lead ends, and says so");
    // It comes back, and stands by.
    site.operators[0].start(&[]);
    stands_by(&site, 0);
    assert_eq!(leaders(&site), [0.0, 1.0]);
    for node in site.changes::<Node>("z-1", &begin) {
        let node = SeenNode::of(&node);
        assert!(node.taint.as_deref() == Some("person") && node.cordoned, "let go in between: {node:?}");
    }
    assert_eq!(site.history("z-1").transitions.len(), before);
    assert_eq!(site.row("z-1").unwrap().phase.name(), PhaseName::Quarantined);
    site.check();

    // One that is told to end gives the lead back when its work is done: nobody waits for the lease to run out.
    let begun = Instant::now();
    site.operators[1].signal("TERM");
    let ended = site.operators[1].wait_ended(20);
    assert!(ended.success(), "{ended}");
    let took = begun.elapsed();
    site.operators[0].wait_leading();
    assert!(
        begun.elapsed() < took + Duration::from_secs(8),
        "the lease was not given back: {:?}",
        begun.elapsed()
    );
    site.check();
}

/// A leader that no call of the apiserver comes through to, but that has its database, leads nobody: before another one does.
#[test]
fn a_leader_that_is_cut_off_from_the_apiserver_ends_before_another_one_leads() {
    let postgres = Postgres::start();
    let mut site = Site::parts(tempfile::tempdir().unwrap(), postgres.url(), 2, MORE);
    let way = Way::beside(&site.rt, &site.cluster.kubeconfig(), site.dir.path());
    site.operators[0].settings.kubeconfig = way.kubeconfig.clone();
    both_start(&mut site);
    one_in_service(&site, "c-1");

    way.block();
    let mut over = None;
    let begun = Instant::now();
    until(40, "the second one leads", || {
        let leaders = leaders(&site);
        assert!(leaders.iter().sum::<f64>() <= 1.0, "two lead");
        if leaders[0] == 0.0 {
            over.get_or_insert_with(|| begun.elapsed());
        }
        if leaders[1] == 1.0 { Ok(()) } else { Err(leaders) }
    });
    let over = over.expect("the first one leads on");
    eprintln!("over after {over:?}, the next one leads after {:?}", begun.elapsed());
    let ended = site.operators[0].wait_ended(30);
    assert_eq!(ended.code(), Some(1));

    // It starts again, still cut off: it is not well, and says why.
    site.operators[0].start(&[]);
    until(60, "it says what is wrong", || match site.operators[0].ready() {
        Ok((false, page)) if page.contains("cannot stand by") && page.contains("lease") => Ok(()),
        other => Err(other),
    });
    way.open();
    stands_by(&site, 0);
    assert_eq!(leaders(&site), [0.0, 1.0]);
    site.check();
}

fn takes_over(mut site: Site) {
    both_start(&mut site);

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
    stands_by(&site, 0);
    assert_eq!(leaders(&site), [0.0, 1.0]);
}
