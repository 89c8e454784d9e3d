//! What people and machines get for bad input, and that nobody else suffers for it.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use whetstone_api::{Blade, Tranche};
use whetstone_model::lifecycle::PhaseName;
use whetstone_model::verdict::Outcome;
use whetstone_sim_fleet::{End, FleetBlade};

use crate::harness::site::RUN_TIME;
use crate::harness::{Site, listed, serial, until};

/// What the apiserver says to an object, or to a change of one.
fn said(site: &Site, args: &[&str], input: Option<&Value>) -> Result<String, String> {
    use std::io::Write as _;
    let mut command = site.cluster.kubectl_command(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let text = input.map(ToString::to_string).unwrap_or_default();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "whetstone.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec })
}

#[track_caller]
fn refused(said: Result<String, String>, sentence: &str) {
    match said {
        Ok(taken) => panic!("taken, although {sentence:?}: {taken}"),
        Err(why) => assert!(why.contains(sentence), "refused without {sentence:?}: {why}"),
    }
}

#[test]
fn the_apiserver_refuses_what_is_malformed_and_says_why() {
    let site = Site::up();
    let create = |kind: &str, name: &str, spec: Value| {
        said(&site, &["create", "-f", "-"], Some(&object(kind, name, &spec)))
    };
    let blade = |more: Value| {
        let mut spec = json!({ "serial": "SN-x" });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        create("Blade", "x", spec)
    };
    refused(
        create("Blade", &"x".repeat(64), json!({ "serial": "SN-x" })),
        "a blade's name has at most 63 characters",
    );
    refused(
        blade(json!({ "owner": "me" })),
        "an owner is nobody, spare, inference, slurm/<cluster> or kubernetes/<cluster>",
    );
    refused(blade(json!({ "suite": "short" })), "a suite is quick, standard or soak");
    refused(blade(json!({ "serial": "a b" })), "spec.serial");
    refused(blade(json!({ "retest": -1 })), "spec.retest");
    let tranche = |more: Value| {
        let mut spec = json!({ "suite": "quick", "blades": [{ "serial": "SN-y" }] });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        create("Tranche", "x", spec)
    };
    refused(
        create("Tranche", &"t".repeat(64), json!({ "suite": "quick", "blades": [] })),
        "a tranche's name has at most 63 characters",
    );
    let power = |power: Value| tranche(json!({ "power": power }));
    refused(
        power(json!({ "bladeWatts": 10, "rackWatts": 9 })),
        "power.rackWatts is less than one blade draws",
    );
    refused(
        power(json!({ "bladeWatts": 10, "trancheWatts": 9 })),
        "power.trancheWatts is less than one blade draws",
    );
    refused(
        tranche(json!({ "suite": "mine" })),
        "suite is quick, standard or soak; another name needs suiteText",
    );
    refused(tranche(json!({ "fpr": 0.5 })), "fpr is a probability from 0.000001 to 0.2");
    refused(
        tranche(json!({ "owner": "nobody" })),
        "an owner is spare, inference, slurm/<cluster> or kubernetes/<cluster>",
    );
    refused(tranche(json!({ "blades": [{ "serial": "SN-y" }, { "serial": "SN-y" }] })), "Duplicate value");
    refused(tranche(json!({ "concurrency": 0 })), "spec.concurrency");

    // Changes of what is there. The operator has to leave it alone meanwhile.
    let mut site = site;
    site.operator().kill();
    let create = |kind: &str, name: &str, spec: Value| {
        said(&site, &["create", "-f", "-"], Some(&object(kind, name, &spec)))
    };
    create("Blade", "x", json!({ "serial": "SN-x", "retest": 3 })).unwrap();
    create("BurnIn", "r", json!({ "blade": "x", "suite": "quick" })).unwrap();
    let patch = |resource: &str, name: &str, what: Value| {
        said(&site, &["patch", resource, name, "--type=merge", "-p", &what.to_string()], None)
    };
    let status = |resource: &str, name: &str, what: Value| {
        let patch = json!({ "status": what }).to_string();
        said(&site, &["patch", resource, name, "--subresource=status", "--type=merge", "-p", &patch], None)
    };
    refused(patch("blade", "x", json!({ "spec": { "serial": "SN-z" } })), "a blade's serial cannot change");
    refused(patch("blade", "x", json!({ "spec": { "retest": 2 } })), "retest only counts up");
    refused(status("blade", "x", json!({ "phase": "Fine" })), "not a phase");
    refused(status("blade", "x", json!({ "phase": "InService" })), "a blade in service has an owner");
    status("blade", "x", json!({ "phase": "Expected", "sequence": 5 })).unwrap();
    refused(
        status("blade", "x", json!({ "sequence": 4 })),
        "a stale writer: the status is newer than this one",
    );
    refused(status("blade", "x", json!({ "phase": "Ready" })), "a blade becomes Ready from BurningIn only");
    refused(
        status("blade", "x", json!({ "phase": "InService", "owner": "spare" })),
        "a blade comes into service from Ready only",
    );
    let verdict = json!({ "outcome": "good", "code": "", "why": "", "action": "none", "run": 1, "at": "2026-01-01T00:00:00Z" });
    refused(status("blade", "x", json!({ "verdict": verdict })), "a verdict is pass, fail or inconclusive");
    refused(
        patch("burnin", "r", json!({ "spec": { "blade": "y" } })),
        "a run's blade cannot change: make another BurnIn",
    );
    refused(
        patch("burnin", "r", json!({ "spec": { "suite": "soak" } })),
        "a run's suite cannot change: make another BurnIn",
    );
    status("burnin", "r", json!({ "run": 1, "phase": "Passed" })).unwrap();
    refused(status("burnin", "r", json!({ "run": 2 })), "a run keeps its number");
    refused(status("burnin", "r", json!({ "phase": "Failed" })), "a verdict does not change");
    create("Tranche", "x", json!({ "suite": "quick", "blades": [] })).unwrap();
    refused(status("tranche", "x", json!({ "phase": "Done" })), "not a phase of a tranche");
}

#[test]
fn bad_objects_machines_and_clocks_change_nobodys_verdict() {
    let site = Site::up();
    one_bad_tranche(&site);
    two_machines_with_one_serial(&site);
    repeats_and_clocks(&site);
    revoked(&site);
    site.check();
}

/// The apiserver cannot read a suite. The operator says that it cannot, and goes on with the others.
fn one_bad_tranche(site: &Site) {
    let text = json!({ "suite": "mine", "suiteText": "[[test]]\nname = 7" });
    site.tranche("t-bad", &[listed("bad-1", "r-1")], text);
    site.tranche("t-good", &[listed("good-1", "r-1")], json!({}));
    let valid = |name: &str| {
        let tranche: Tranche = site.rt.block_on(site.api::<Tranche>().get(name)).unwrap();
        let conditions = tranche.status.unwrap_or_default().conditions;
        conditions.into_iter().find(|condition| condition.type_ == "Valid")
    };
    let bad = until(20, "a condition says that it cannot be understood", || match valid("t-bad") {
        Some(condition) if condition.status == "False" => Ok(condition),
        other => Err(other),
    });
    assert!(bad.reason == "BadSpec" && bad.message.contains("spec.suite"), "{bad:?}");
    site.join(&[("good-1", &[End::Pass])]);
    site.wait_phases(30, &[("good-1", "Ready")]);
    assert_eq!(valid("t-good").unwrap().status, "True");
    assert!(site.row("bad-1").is_none());
    // Put right, it goes on.
    site.patch::<Tranche>("t-bad", json!({ "suite": "quick", "suiteText": null }));
    site.join(&[("bad-1", &[End::Pass])]);
    site.wait_phases(30, &[("bad-1", "Ready")]);
    until(10, "the condition is over", || match valid("t-bad") {
        Some(condition) if condition.status == "True" => Ok(()),
        other => Err(other),
    });
    // A slip in one that was understood: its terms stay, and with them its gates. Its second blade has not come, so its
    // rack is closed before and after.
    let gate = json!({ "rackPercent": 100 });
    site.node("gated-1", json!({}));
    site.tranche("t-gate", &[listed("gated-1", "r-9"), listed("gated-2", "r-9")], json!({ "gates": gate }));
    site.join(&[("gated-1", &[End::Pass])]);
    site.wait_phases(30, &[("gated-1", "Ready")]);
    let withheld = || {
        let node = site.seen_node("gated-1");
        if node.taint.is_some() && node.cordoned { Ok(()) } else { Err(node) }
    };
    withheld().unwrap();
    site.patch::<Tranche>("t-gate", json!({ "suite": "mine", "suiteText": "[[test]]\nname = 7" }));
    until(10, "the slip is seen", || match valid("t-gate") {
        Some(condition) if condition.status == "False" => Ok(()),
        other => Err(other),
    });
    // Whole looks go on; none of them opens the gate.
    let looks = || site.operators[0].metric("whetstone_reconcile_seconds_count", &[]).unwrap();
    let before = looks();
    until(20, "it is looked at again", || if looks() > before + 2.0 { Ok(()) } else { Err(looks()) });
    withheld().unwrap();
}

/// A second machine with the same token: both are held, and nothing either says is a verdict.
fn two_machines_with_one_serial(site: &Site) {
    site.node("twin-1", json!({}));
    site.tranche("t-twin", &[listed("twin-1", "r-2"), listed("twin-2", "r-2")], json!({ "paused": true }));
    let tokens = site.tokens(&["twin-1", "twin-2"]);
    let fleet = |name: &str, token: &str| FleetBlade {
        serial: serial(name),
        token: token.to_owned(),
        script: vec![End::Pass],
    };
    let port = site.operators[0].settings.listen;
    let both = vec![fleet("twin-1", &tokens[0]), fleet("twin-2", &tokens[1])];
    site.start_fleet(both, RUN_TIME, "", port);
    site.wait_phases(20, &[("twin-1", "Preparing"), ("twin-2", "Preparing")]);
    site.start_fleet(vec![fleet("twin-1", &tokens[0])], RUN_TIME, "the other", port);
    site.wait_phases(20, &[("twin-1", "Quarantined")]);
    site.patch::<Tranche>("t-twin", json!({ "paused": false }));
    site.wait_phases(30, &[("twin-2", "Ready")]);
    let row = site.row("twin-1").unwrap();
    assert!(row.agent.conflict.is_some(), "{:?}", row.agent);
    let history = site.history("twin-1");
    assert!(history.runs.is_empty() && history.verdicts.is_empty(), "{history:?}");
    until(10, "its node says why", || {
        let node = site.seen_node("twin-1");
        if node.taint.as_deref() == Some("identity-conflict") { Ok(()) } else { Err(node) }
    });
    let metric = || site.operators[0].metric("whetstone_identity_conflicts", &[]);
    until(10, "a metric, for the alert", || if metric() == Ok(1.0) { Ok(()) } else { Err(metric()) });
    audited(site, "SN-twin-1");
    site.check();
    // A person has looked: the serial's one machine joins anew.
    site.asked("/v1/ops/blades/twin-1/reset-identity", Some(json!({})));
    site.join_with(&[("twin-1", &[End::Pass])], RUN_TIME, "the third", port);
    site.wait_phases(30, &[("twin-1", "Ready")]);
}

/// The audit names it.
#[track_caller]
fn audited(site: &Site, what: &str) {
    until(10, "it is in the audit", || {
        let audit = site.asked("/v1/ops/audit?limit=200", None).to_string();
        if audit.contains(what) { Ok(()) } else { Err(audit) }
    });
}

/// Everything twice, old items again, and a clock that is hours off: what is decided is the same.
fn repeats_and_clocks(site: &Site) {
    let names = ["skew-1", "skew-2", "twice-1", "twice-2"];
    let manifest: Vec<Value> = names.iter().map(|name| listed(name, "r-3")).collect();
    site.tranche("t-odd", &manifest, json!({ "owner": "spare", "paused": true }));
    let fleet = site.join(&[
        ("skew-1", &[End::Pass]),
        ("skew-2", &[End::Fail]),
        ("twice-1", &[End::Pass]),
        ("twice-2", &[End::Fail]),
    ]);
    let skew = |name: &str, hours: i64| fleet.command(&[serial(name)], |c| c.skew_ms = hours * 3_600_000);
    skew("skew-1", -30);
    skew("skew-2", 700);
    fleet.command(&[serial("twice-1"), serial("twice-2")], |c| c.repeats = true);
    site.wait_phases(30, &names.map(|name| (name, "Preparing")));
    // Findings of before the burn-in, said again and again after it: it has passed since.
    fleet.command(&[serial("twice-1"), serial("skew-1")], |c| c.fault = Some("xid48".into()));
    until(10, "the faults stand", || {
        let stand = ["twice-1", "skew-1"].map(|name| site.row(name).unwrap().faults.len());
        if stand == [1, 1] { Ok(()) } else { Err(stand) }
    });
    fleet.command(&[], |c| c.fault = None);
    until(10, "the faults are over", || {
        let stand = ["twice-1", "skew-1"].map(|name| site.row(name).unwrap().faults.len());
        if stand == [0, 0] { Ok(()) } else { Err(stand) }
    });
    site.patch::<Tranche>("t-odd", json!({ "paused": false }));
    let wanted = [
        ("skew-1", "InService"),
        ("skew-2", "Quarantined"),
        ("twice-1", "InService"),
        ("twice-2", "Quarantined"),
    ];
    site.wait_phases(40, &wanted);
    for (name, outcome) in [("skew-1", Outcome::Pass), ("twice-1", Outcome::Pass), ("twice-2", Outcome::Fail)]
    {
        let outcomes: Vec<_> = site.history(name).verdicts.iter().map(|v| v.outcome).collect();
        assert_eq!(outcomes, [outcome], "{name}");
    }
    let operator = &site.operators[0];
    let before = operator.metric("whetstone_evidence_duplicates_total", &[]).unwrap();
    until(10, "repeats are counted", || match operator.metric("whetstone_evidence_duplicates_total", &[]) {
        Ok(now) if now > before && before > 0.0 => Ok(()),
        other => Err(other),
    });
    // They go on with it, and the blades stay where they are.
    std::thread::sleep(Duration::from_secs(1));
    site.wait_phases(1, &wanted);
    let runs = site.history("twice-1").runs.len();
    assert_eq!(runs, 1, "replays made a second run");
}

/// A machine whose identity was taken back is not heard any more.
fn revoked(site: &Site) {
    let operator = &site.operators[0];
    let refused = || operator.metric("whetstone_evidence_refused_total", &["reason=\"revoked\""]).unwrap();
    let before = refused();
    site.asked("/v1/ops/blades/good-1/reset-identity", Some(json!({})));
    until(10, "it is refused and counted", || if refused() > before { Ok(()) } else { Err(refused()) });
    audited(site, "SN-good-1");
    let row = site.row("good-1").unwrap();
    assert!(!row.agent.joined, "{:?}", row.agent);
    assert_eq!(row.phase.name(), PhaseName::Ready, "what it proved before stands");
    let blade: Blade = site.blade("good-1");
    assert!(blade.status.unwrap().verdict.is_some());
}
