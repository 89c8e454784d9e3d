//! A delivery from its manifest to service, and back out of it.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use whetstone_api::{Blade, BurnIn, Tranche};
use whetstone_model::lifecycle::PhaseName;
use whetstone_model::verdict::Outcome;
use whetstone_sim_fleet::End;
use whetstone_store::RunState;

use crate::harness::{Site, listed, until};

const PASS: &[End] = &[End::Pass];
const FAIL: &[End] = &[End::Fail];

/// Runs that went on at once, at most, by what `group` says of a blade. From the store: exact to the millisecond.
fn most_at_once(site: &Site, group: impl Fn(&str) -> String) -> BTreeMap<String, usize> {
    let mut events: BTreeMap<String, Vec<(i64, i32)>> = BTreeMap::new();
    for row in site.rows() {
        let of = events.entry(group(row.rack.as_ref().map_or("", |rack| rack.as_str()))).or_default();
        for run in site.history(row.name.as_str()).runs {
            // An end at the same millisecond as a begin comes first.
            of.extend([(run.created_ms, 1), (run.ended_ms.unwrap_or(i64::MAX), -1)]);
        }
    }
    let most = |events: &mut Vec<(i64, i32)>| {
        events.sort();
        let mut now = 0;
        events
            .iter()
            .map(|(_, step)| {
                now += step;
                now
            })
            .max()
            .unwrap_or(0)
    };
    events.into_iter().map(|(key, mut events)| (key, most(&mut events) as usize)).collect()
}

fn outcomes(site: &Site, name: &str) -> Vec<Outcome> {
    site.history(name).verdicts.into_iter().map(|verdict| verdict.outcome).collect()
}

fn tranche_phase(site: &Site, name: &str) -> (String, Value) {
    let tranche: Tranche = site.rt.block_on(site.api::<Tranche>().get(name)).unwrap();
    let status = tranche.status.unwrap_or_default();
    let value = serde_json::to_value(&status).unwrap();
    (status.phase.unwrap_or_default(), value)
}

#[test]
fn a_tranche_is_burned_in_judged_and_handed_over() {
    let site = Site::up();
    let names: Vec<String> = (1..=12).map(|n| format!("b-{n:02}")).collect();
    let rack = |n: usize| format!("r-{}", n / 4 + 1);
    let manifest: Vec<Value> = names.iter().enumerate().map(|(n, name)| listed(name, &rack(n))).collect();
    // Withheld from their first moment, and before anything is known of them.
    for name in ["b-01", "b-02", "b-03"] {
        site.node(name, json!({}));
    }
    site.node(
        "b-04",
        json!({ "person": true, "taint": { "key": "hers", "value": "1", "effect": "NoSchedule" } }),
    );
    site.tranche(
        "t-07",
        &manifest,
        json!({
            "concurrency": 5,
            "power": { "bladeWatts": 10_000, "rackWatts": 20_000, "trancheWatts": 40_000 },
            "gates": { "rackPercent": 50 },
            "owner": "kubernetes/default",
        }),
    );
    let all_expected: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "Expected")).collect();
    site.wait_phases(20, &all_expected);
    assert_eq!(tranche_phase(&site, "t-07").0, "Waiting");
    until(20, "the node says what the blade is", || {
        let node = site.seen_node("b-01");
        if node.taint.as_deref() == Some("expected") && node.cordoned { Ok(()) } else { Err(node) }
    });

    let script = |name: &str| -> &'static [End] {
        match name {
            "b-03" => FAIL,
            "b-06" => &[End::Inconclusive, End::Pass],
            "b-08" => &[End::Lost, End::Pass],
            "b-10" => &[End::Slow],
            "b-11" => &[End::Inconclusive],
            _ => PASS,
        }
    };
    // The twelfth never comes.
    let come: Vec<(&str, &[End])> = names[..11].iter().map(|name| (name.as_str(), script(name))).collect();
    site.join(&come);
    until(10, "its objects show a burn-in that goes on", || {
        let going = site.list::<Blade>().map_err(|e| e.to_string())?;
        let going = going
            .iter()
            .filter_map(|blade| blade.status.as_ref())
            .find(|s| s.phase.as_deref() == Some("BurningIn"));
        match going {
            Some(status) if status.owner.as_deref() == Some("burn-in") && status.run.is_some() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    site.cluster.kubectl(&["wait", "--for=condition=Ready", "tranche/t-07", "--timeout=60s"]);

    let wanted: Vec<(&str, &str)> = names
        .iter()
        .map(|name| {
            let phase = match name.as_str() {
                "b-03" | "b-10" | "b-11" => "Quarantined",
                "b-12" => "Expected",
                // One of its rack's four has passed: the rack's gate is closed.
                "b-09" => "Ready",
                _ => "InService",
            };
            (name.as_str(), phase)
        })
        .collect();
    site.wait_phases(30, &wanted);
    site.check();

    // Verdicts: one for each run, and as the blades were scripted.
    use Outcome::{Fail, Inconclusive, Pass};
    for (name, verdicts) in [
        ("b-01", vec![Pass]),
        ("b-03", vec![Fail]),
        ("b-06", vec![Inconclusive, Pass]),
        ("b-08", vec![Pass]),
        ("b-10", vec![Pass]),
        ("b-11", vec![Inconclusive, Inconclusive]),
        ("b-12", vec![]),
    ] {
        assert_eq!(outcomes(&site, name), verdicts, "{name}");
    }
    let lost = &site.history("b-08").runs[0].state;
    assert!(matches!(lost, RunState::Lost { .. }), "{lost:?}");
    let reason = |name: &str| site.blade(name).status.unwrap().reason.unwrap_or_default();
    assert!(reason("b-03").contains("gpu5 sdc: wrong bits on SM 41"), "{}", reason("b-03"));
    assert!(
        site.row("b-10").unwrap().cases.iter().any(|case| case.reason == "outlier"),
        "{}",
        reason("b-10")
    );
    assert!(
        site.row("b-11").unwrap().cases.iter().any(|case| case.reason == "untestable"),
        "{}",
        reason("b-11")
    );

    // Never more at once than the budgets allow, and no less than one rack's worth: it did go in parallel.
    let by_rack = most_at_once(&site, |rack| rack.to_owned());
    assert!(by_rack.values().all(|most| (1..=2).contains(most)), "{by_rack:?}");
    let all = most_at_once(&site, |_| String::new())[""];
    assert!((2..=4).contains(&all), "{all} at once");

    nodes_of_the_tranche(&site);
    what_people_see(&site);
    acceptance_report(&site);
}

fn nodes_of_the_tranche(site: &Site) {
    let free = site.seen_node("b-01");
    assert_eq!((free.taint, free.cordoned, free.ours, free.note), (None, false, false, None));
    let failed = site.seen_node("b-03");
    let case = site.row("b-03").unwrap().cases[0].case;
    assert_eq!((failed.taint.as_deref(), failed.cordoned, failed.ours), (Some("burn-in"), true, true));
    assert_eq!(failed.note, Some(format!("serial=SN-b-03 reason=burn-in case={case}")));
    // The person's cordon and taint are still there, ours is gone.
    let hers = site.seen_node("b-04");
    assert_eq!(
        (hers.taint, hers.cordoned, hers.ours, hers.others),
        (None, true, false, vec!["hers".to_owned()])
    );
}

/// What a person sees with kubectl.
fn what_people_see(site: &Site) {
    let table = site.cluster.kubectl(&["get", "blades"]);
    let mut lines = table.lines();
    let columns: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(columns, ["NAME", "SKU", "TRANCHE", "RACK", "PHASE", "OWNER", "VERDICT", "REASON", "AGE"]);
    let line = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    let words = |name: &str| line(name).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        words("b-01")[..7],
        ["b-01", "hgx-h100", "t-07", "r-1", "InService", "kubernetes/default", "pass"]
    );
    assert!(line("b-03").contains("Quarantined") && line("b-03").contains("fail"), "{}", line("b-03"));
    assert!(line("b-03").contains("gpu5 sdc: wrong bits on SM 41 (sim)"), "{}", line("b-03"));

    let names = |selector: &str| {
        let output = site.cluster.kubectl(&["get", "bl", "-o", "name", "--field-selector", selector]);
        output.lines().map(|line| line.rsplit('/').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("status.phase=Quarantined"), ["b-03", "b-10", "b-11"]);
    assert_eq!(names("spec.rack=r-3,status.phase=Expected"), ["b-12"]);
    assert_eq!(names("spec.serial=SN-b-05"), ["b-05"]);
    assert_eq!(names("status.owner=kubernetes/default,spec.rack=r-1"), ["b-01", "b-02", "b-04"]);

    let described = site.cluster.kubectl(&["describe", "blade", "b-03"]);
    assert!(described.contains("Wait:") && described.contains("wrong bits"), "{described}");
    let runs = site.cluster.kubectl(&["get", "burnins", "--field-selector", "spec.blade=b-06"]);
    assert_eq!(runs.lines().count(), 3, "{runs}");
    assert!(runs.contains("Inconclusive") && runs.contains("Passed"), "{runs}");

    until(15, "the tranche's object says how it stands", || {
        let line = site.cluster.kubectl(&["get", "tranche", "t-07", "--no-headers"]);
        let words: Vec<&str> = line.split_whitespace().collect();
        let wanted = ["t-07", "Stable", "12", "0", "1", "7", "3", "1"];
        if words.starts_with(&wanted) { Ok(()) } else { Err(line) }
    });
    let (_, status) = tranche_phase(site, "t-07");
    assert_eq!(status["missing"], json!(["SN-b-12"]));
    assert_eq!(status["yield"], "72.7 % (8 of 11)");
}

fn acceptance_report(site: &Site) {
    let bundle = site.asked("/v1/ops/tranches/t-07/report", None);
    let dir = site.path("acceptance");
    std::fs::create_dir(&dir).unwrap();
    for (name, text) in bundle["files"].as_object().unwrap() {
        std::fs::write(dir.join(name), text.as_str().unwrap()).unwrap();
    }
    whetstone_bundle::manifest::verify(&dir, &[]).unwrap();
    let report: Value = serde_json::from_slice(&std::fs::read(dir.join("report.json")).unwrap()).unwrap();
    let counts = &report["counts"];
    let counted =
        ["expected", "delivered", "accepted", "returned", "missing"].map(|key| counts[key].as_i64().unwrap());
    assert_eq!(counted, [12, 11, 8, 3, 1], "{counts}");
    let page = std::fs::read_to_string(dir.join("report.html")).unwrap();
    assert!(
        page.contains("SN-b-03") && page.contains("wrong bits on SM 41"),
        "the page does not name the return"
    );
    // A changed word is noticed.
    std::fs::write(dir.join("report.html"), page.replace("SN-b-03", "SN-b-13")).unwrap();
    whetstone_bundle::manifest::verify(&dir, &[]).unwrap_err();
}

#[test]
fn wishes_gates_and_faults_move_blades() {
    let site = Site::up();
    gates(&site);
    wishes(&site);
    faults(&site);
}

/// One of an NVLink domain fails: none of it serves, until it has been repaired and proven.
fn gates(site: &Site) {
    let member = |name: &str| {
        let mut blade = listed(name, "r-9");
        blade["nvlinkDomain"] = json!("d-1");
        blade
    };
    for name in ["d-1", "d-2", "g-1"] {
        site.node(name, json!({}));
    }
    site.tranche("t-dom", &[member("d-1"), member("d-2")], json!({ "owner": "inference" }));
    site.tranche(
        "t-rack",
        &[listed("g-1", "r-8"), listed("g-2", "r-8"), listed("g-3", "r-8")],
        json!({ "gates": { "rackPercent": 100 } }),
    );
    site.join(&[
        ("d-1", PASS),
        ("d-2", &[End::Fail, End::Pass]),
        ("g-1", PASS),
        ("g-2", PASS),
        ("g-3", &[End::Fail, End::Pass]),
    ]);
    site.wait_phases(
        40,
        &[
            ("d-1", "Ready"),
            ("d-2", "Quarantined"),
            ("g-1", "Ready"),
            ("g-2", "Ready"),
            ("g-3", "Quarantined"),
        ],
    );
    for (name, code) in [("d-1", "domain-gate"), ("g-1", "rack-gate")] {
        until(10, "it says which gate is closed", || {
            let wait = site.blade(name).status.unwrap().wait;
            if wait.as_ref().is_some_and(|wait| wait.code == code) { Ok(()) } else { Err(wait) }
        });
        assert!(site.seen_node(name).taint.is_some(), "{name} is let go before its gate");
    }
    site.check();

    // Repaired. One by the wish in its spec, the other by a run made by hand.
    site.patch::<Blade>("d-2", json!({ "retest": 1 }));
    let run: BurnIn = serde_json::from_value(json!({
        "apiVersion": "whetstone.dev/v1alpha1", "kind": "BurnIn", "metadata": { "name": "g-3-by-hand" },
        "spec": { "blade": "g-3", "suite": "quick", "reason": "board replaced" },
    }))
    .unwrap();
    site.rt.block_on(site.api::<BurnIn>().create(&PostParams::default(), &run)).unwrap();
    site.wait_phases(40, &[("d-1", "InService"), ("d-2", "InService"), ("g-3", "Ready")]);
    until(10, "the nodes are let go", || {
        let nodes = ["d-1", "d-2", "g-1"].map(|name| site.seen_node(name));
        if nodes.iter().all(|node| node.taint.is_none() && !node.cordoned) { Ok(()) } else { Err(nodes) }
    });
    until(10, "the run made by hand is the run", || {
        let run = site.rt.block_on(site.api::<BurnIn>().get("g-3-by-hand")).unwrap().status;
        let number = run.as_ref().and_then(|run| run.run);
        if number.is_some() && number == site.row("g-3").unwrap().run.map(|run| run.run.0) {
            Ok(())
        } else {
            Err(run)
        }
    });
    let history = site.history("d-2");
    assert!(history.cases.iter().all(|case| case.closed_ms.is_some()), "{:?}", history.cases);
    site.check();
}

/// Quarantine and release by a person; her own cordon is left alone; a burn-in before it serves again.
fn wishes(site: &Site) {
    let runs = |name: &str| site.history(name).runs.len();
    let before = runs("g-1");
    site.patch::<Blade>("g-1", json!({ "quarantine": { "reason": "smells odd", "by": "ann" } }));
    site.wait_phases(20, &[("g-1", "Quarantined")]);
    until(10, "its node is withheld", || {
        let node = site.seen_node("g-1");
        if node.taint.as_deref() == Some("person") && node.cordoned && node.ours { Ok(()) } else { Err(node) }
    });
    assert!(site.blade("g-1").status.unwrap().reason.unwrap().contains("smells odd"));
    site.check();
    // A person cordons it by hand, too: what our mark is on is ours, so she takes the mark.
    let hers = json!({ "metadata": { "annotations": { whetstone_api::node::CORDONED: null } }, "spec": { "unschedulable": true } });
    site.rt.block_on(site.api::<Node>().patch("g-1", &PatchParams::default(), &Patch::Merge(hers))).unwrap();
    site.patch::<Blade>("g-1", json!({ "quarantine": null }));
    site.wait_phases(30, &[("g-1", "Ready")]);
    until(10, "its node is let go", || {
        let node = site.seen_node("g-1");
        if node.taint.is_none() { Ok(()) } else { Err(node) }
    });
    let node = site.seen_node("g-1");
    assert!(node.cordoned && !node.ours, "her cordon did not survive: {node:?}");
    assert_eq!(runs("g-1"), before + 1, "it came back without a burn-in");
    // Given to somebody, and taken back.
    site.patch::<Blade>("g-1", json!({ "owner": "slurm/main" }));
    site.wait_phases(20, &[("g-1", "InService")]);
    assert_eq!(site.blade("g-1").status.unwrap().owner.as_deref(), Some("slurm/main"));
    site.patch::<Blade>("g-1", json!({ "owner": "nobody" }));
    site.wait_phases(30, &[("g-1", "Ready")]);
    assert_eq!(runs("g-1"), before + 2, "given back without a burn-in");
    site.check();
}

/// A fault in service takes a blade out of it; many at once are a question for a person.
fn faults(site: &Site) {
    let names: Vec<String> = (1..=12).map(|n| format!("f-{n:02}")).collect();
    let manifest: Vec<Value> = names.iter().map(|name| listed(name, "r-7")).collect();
    for name in &names {
        site.node(name, json!({}));
    }
    site.tranche("t-fault", &manifest, json!({ "owner": "kubernetes/default" }));
    let blades: Vec<(&str, &[End])> = names.iter().map(|name| (name.as_str(), PASS)).collect();
    let fleet = site.join(&blades);
    let serving: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "InService")).collect();
    site.wait_phases(40, &serving);
    site.check();

    let first = crate::harness::serial("f-01");
    fleet.command(std::slice::from_ref(&first), |command| command.fault = Some("xid79".into()));
    site.wait_phases(20, &[("f-01", "Quarantined")]);
    site.check();
    let row = site.row("f-01").unwrap();
    assert_eq!(row.cases.len(), 1, "{:?}", row.cases);
    assert_eq!((row.cases[0].code.as_str(), row.cases[0].reason.as_str()), ("xid79", "fault"));
    let phases: Vec<PhaseName> = site.history("f-01").transitions.iter().map(|t| t.to.name()).collect();
    assert!(
        phases.ends_with(&[PhaseName::InService, PhaseName::Draining, PhaseName::Quarantined]),
        "{phases:?}"
    );
    let node = site.seen_node("f-01");
    assert_eq!((node.taint.as_deref(), node.cordoned, node.ours), (Some("fault"), true, true));

    // Everything faults: up to eight within the window, and then no more.
    fleet.command(&[], |command| command.fault = Some("xid79".into()));
    let held = || {
        let blades = site.list::<Blade>().unwrap();
        let waits = blades.into_iter().filter(|blade| {
            let wait = blade.status.as_ref().and_then(|status| status.wait.as_ref());
            wait.is_some_and(|wait| wait.code == "breaker")
        });
        waits.map(|blade| blade.metadata.name.unwrap()).collect::<Vec<_>>()
    };
    let waiting = until(30, "the breaker holds four of them", || {
        let held = held();
        if held.len() == 4 { Ok(held) } else { Err(held) }
    });
    for name in &waiting {
        assert_eq!(site.row(name).unwrap().phase.name(), PhaseName::InService, "{name}");
        assert_eq!(site.seen_node(name).taint, None, "{name}");
    }
    let open = || site.operators[0].metric("whetstone_breaker_open", &[]);
    until(10, "a metric says so", || if open() == Ok(1.0) { Ok(()) } else { Err(open()) });
    // It stays so: nothing slips through at the next looks.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(held(), waiting);

    site.asked("/v1/ops/breaker", Some(json!({ "override": true })));
    let out: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "Quarantined")).collect();
    site.wait_phases(30, &out);
    site.check();
    site.asked("/v1/ops/breaker", Some(json!({ "override": false })));
}
