//! What a site is built on goes away for a while and comes back: control plane, our objects, half of the agents, the database.

use std::time::Duration;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use whetstone_api::Blade;
use whetstone_model::lifecycle::PhaseName;
use whetstone_model::verdict::Outcome;
use whetstone_sim_fleet::{End, Fleet};

use crate::harness::postgres::Postgres;
use crate::harness::site::RUN_TIME;
use crate::harness::{Site, listed, serial, until};

const PASS: &[End] = &[End::Pass];

/// Six blades of a tranche, with nodes; the last fails.
fn six(site: &Site, letter: &str, run_time: Duration) -> (Vec<String>, std::sync::Arc<Fleet>) {
    let names: Vec<String> = (1..=6).map(|n| format!("{letter}-{n}")).collect();
    let manifest: Vec<Value> = names.iter().map(|name| listed(name, letter)).collect();
    for name in &names {
        site.node(name, json!({}));
    }
    site.tranche(&format!("t-{letter}"), &manifest, json!({ "owner": "spare", "concurrency": 3 }));
    let blades: Vec<(&str, &[End])> = names
        .iter()
        .map(|name| (name.as_str(), if name.ends_with('6') { &[End::Fail] } else { PASS }))
        .collect();
    let port = site.operators[0].settings.listen;
    let fleet = site.join_with(&blades, run_time, "", port);
    (names, fleet)
}

/// All six are where they belong, with one verdict each.
#[track_caller]
fn decided(site: &Site, names: &[String]) {
    let phase = |name: &String| if name.ends_with('6') { "Quarantined" } else { "InService" };
    let wanted: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), phase(name))).collect();
    site.wait_phases(60, &wanted);
    site.check();
    for name in names {
        let outcomes: Vec<_> = site.history(name).verdicts.iter().map(|v| v.outcome).collect();
        let wanted = if name.ends_with('6') { Outcome::Fail } else { Outcome::Pass };
        assert_eq!(outcomes, [wanted], "{name}");
    }
}

#[track_caller]
fn burning(site: &Site, names: &[String]) {
    until(20, "burn-ins go on", || {
        let going = names.iter().any(|n| site.row(n).is_some_and(|r| r.phase.name() == PhaseName::BurningIn));
        if going { Ok(()) } else { Err("none") }
    });
}

/// `/readyz` says that the component is, or is not, well.
#[track_caller]
fn says(site: &Site, component: &str, well: bool) {
    let mark = format!("[{}] {component}:", if well { "ok" } else { "NOT" });
    until(60, &mark, || {
        let (ready, page) = site.operators[0].ready()?;
        if page.contains(&mark) && (ready || !well) { Ok(()) } else { Err(page) }
    });
    let label = format!("component=\"{component}\"");
    let metric = site.operators[0].metric("whetstone_ready", &[&label]).unwrap();
    assert_eq!(metric, f64::from(u8::from(well)), "whetstone_ready {component}");
}

#[test]
fn a_control_plane_that_goes_away_comes_back_to_the_truth() {
    let site = Site::up();
    let (first, _agents) = six(&site, "a", RUN_TIME * 3);
    burning(&site, &first);
    site.cluster.daemon("stop", "apiserver");
    // Burn-ins that go on come to their verdicts without it.
    until(20, "verdicts come in", || {
        let verdicts: usize = first.iter().map(|name| site.history(name).verdicts.len()).sum();
        if verdicts >= 3 { Ok(()) } else { Err(verdicts) }
    });
    site.cluster.daemon("start", "apiserver");
    decided(&site, &first);

    // Long enough that the operator calls it a failure.
    let (second, _agents) = six(&site, "e", RUN_TIME);
    burning(&site, &second);
    site.cluster.daemon("stop", "etcd");
    says(&site, "kube", false);
    site.cluster.daemon("start", "etcd");
    says(&site, "kube", true);
    decided(&site, &second);

    // Our objects lose what we said in them, then are lost themselves.
    let all = || site.api::<Blade>();
    for name in &second {
        let empty = Patch::Merge(json!({ "status": null }));
        site.rt.block_on(all().patch_status(name, &PatchParams::default(), &empty)).unwrap();
    }
    decided(&site, &second);
    site.rt.block_on(all().delete_collection(&DeleteParams::default(), &ListParams::default())).unwrap();
    decided(&site, &second);
    decided(&site, &first);
}

#[test]
fn half_of_the_agents_cut_off_are_waited_for() {
    let site = Site::up();
    let (names, fleet) = six(&site, "p", Duration::from_secs(2));
    burning(&site, &names);
    let half: Vec<_> = names[..3].iter().map(|name| serial(name)).collect();
    fleet.command(&half, |command| command.cut_off = true);
    // Longer than the limit for agents and for runs: what waits, says for what.
    until(30, "a blade waits for its agent", || {
        let waits: Vec<_> = names[..3]
            .iter()
            .map(|n| site.blade(n).status.unwrap_or_default().wait.map(|w| w.code))
            .collect();
        if waits.iter().flatten().any(|code| code == "agent-away") { Ok(()) } else { Err(waits) }
    });
    let away = || site.operators[0].metric("whetstone_agents", &["state=\"away\""]);
    until(10, "a metric counts them", || if away() == Ok(3.0) { Ok(()) } else { Err(away()) });
    let agents = || -> Vec<String> {
        let conditions = names.iter().map(|name| site.blade(name).status.unwrap_or_default().conditions);
        let agents = conditions.map(|all| all.into_iter().find(|one| one.type_ == "AgentLive"));
        agents.map(|agent| agent.map(|one| one.reason).unwrap_or_default()).collect()
    };
    until(10, "their objects name them", || {
        let seen = agents();
        if seen == ["Away", "Away", "Away", "Live", "Live", "Live"] { Ok(()) } else { Err(seen) }
    });
    let broken = names[..3].iter().filter(|n| site.row(n).unwrap().phase.name() == PhaseName::Quarantined);
    assert_eq!(broken.count(), 0, "silence is no verdict");
    fleet.command(&half, |command| command.cut_off = false);
    decided(&site, &names);
    until(10, "they are back", || if away() == Ok(0.0) { Ok(()) } else { Err(away()) });
    until(10, "also by their objects", || if agents() == ["Live"; 6] { Ok(()) } else { Err(agents()) });
}

/// A fault that is said while the database is away is acted on when it is back: the agent keeps it.
#[track_caller]
fn fault_meanwhile(site: &Site, fleet: &Fleet, name: &str, trouble: impl FnOnce(), back: impl FnOnce()) {
    trouble();
    fleet.command(&[serial(name)], |command| command.fault = Some("xid79".into()));
    let refused = || site.operators[0].metric("whetstone_evidence_refused_total", &["reason=\"store\""]);
    until(40, "it cannot be stored", || match refused() {
        Ok(count) if count > 0.0 => Ok(()),
        other => Err(other),
    });
    back();
    site.wait_phases(60, &[(name, "Quarantined")]);
    until(10, "its node is withheld", || {
        let node = site.seen_node(name);
        if node.taint.as_deref() == Some("fault") { Ok(()) } else { Err(node) }
    });
    assert_eq!(site.row(name).unwrap().cases.len(), 1);
    site.check();
}

#[test]
fn a_locked_database_holds_nothing_up_for_longer_than_it_is_locked() {
    let site = Site::up();
    let (names, fleet) = six(&site, "l", RUN_TIME);
    decided(&site, &names);
    let url = site.store_url.replace("mode=rwc", "mode=rw");
    let mut other = site.rt.block_on(async {
        sqlx::any::install_default_drivers();
        <sqlx::AnyConnection as sqlx::Connection>::connect(&url).await.unwrap()
    });
    let mut say = |text: &'static str| {
        site.rt.block_on(sqlx::raw_sql(text).execute(&mut other)).unwrap();
    };
    say("BEGIN IMMEDIATE");
    fleet.command(&[serial("l-1")], |command| command.fault = Some("xid79".into()));
    says(&site, "store", false);
    let errors = site.operators[0].metric("whetstone_store_errors_total", &["category=\"locked\""]).unwrap();
    assert!(errors > 0.0, "not counted");
    say("ROLLBACK");
    says(&site, "store", true);
    site.wait_phases(30, &[("l-1", "Quarantined")]);
    site.check();
}

/// Ten minutes, shortened to some seconds: agents keep what they have to say for a day.
#[test]
fn a_database_server_that_is_gone_for_a_while_loses_nothing() {
    let mut postgres = Postgres::start();
    let dir = tempfile::tempdir().unwrap();
    let mut site = Site::parts(dir, postgres.url(), 1, &["--agent-away", "4s", "--run-lost", "4s"]);
    site.operator().start(&[]);
    site.operator().wait_leading();
    let (names, fleet) = six(&site, "d", RUN_TIME);
    decided(&site, &names);
    // In the middle of burn-ins, too.
    let (more, _agents) = six(&site, "m", RUN_TIME * 3);
    burning(&site, &more);
    let server = std::cell::RefCell::new(&mut postgres);
    let stop = || {
        server.borrow_mut().stop();
        says(&site, "store", false);
    };
    let start = || {
        server.borrow_mut().start_again();
        says(&site, "store", true);
    };
    fault_meanwhile(&site, &fleet, "d-1", stop, start);
    decided(&site, &more);
}

/// A backup of before three blades moved on is restored: the objects follow the store, agents say again what stands, and take up
/// what is ordered next, although they know runs that the store has lost.
#[test]
fn a_restored_store_is_followed_by_objects_and_agents() {
    let mut site = Site::up();
    let (names, fleet) = six(&site, "r", RUN_TIME);
    decided(&site, &names);
    let place = |name: &str| site.path(name).display().to_string();
    let (backup, restored) = (place("backup.jsonl"), format!("sqlite:{}?mode=rwc", place("restored.db")));
    let whetstone = |args: &[&str]| {
        let output =
            std::process::Command::new(crate::harness::operator::program()).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    whetstone(&["backup", "--store", &site.operators[0].settings.store, "--out", &backup]);

    fleet.command(&[serial("r-1"), serial("r-3")], |c| c.fault = Some("xid79".into()));
    site.wait_phases(30, &[("r-1", "Quarantined"), ("r-3", "Quarantined")]);
    fleet.command(&[serial("r-3")], |c| c.fault = None);
    until(20, "one of the faults is over", || {
        let faults = site.row("r-3").unwrap().faults;
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    });
    site.patch::<Blade>("r-2", json!({ "retest": 1 }));
    until(40, "a second run", || {
        let row = site.row("r-2").unwrap();
        let done = site.history("r-2").verdicts.len() == 2 && row.phase.name() == PhaseName::InService;
        if done { Ok(()) } else { Err(row.phase) }
    });
    let lost = site.row("r-2").unwrap().run.unwrap().run;
    site.check();
    site.operator().kill();

    whetstone(&["restore", "--store", &restored, "--from", &backup]);
    site.set_store(&restored);
    site.operator().start(&[]);
    site.operator().wait_leading();
    // The store knows nothing of the faults. Where one stands, the agent hears so, though it has nothing new to say, and says it
    // again; else the store's word counts, whatever the object says.
    until(60, "what stands is said again", || {
        let row = site.row("r-1").unwrap();
        let done = row.phase.name() == PhaseName::Quarantined && row.cases.len() == 1;
        if done { Ok(()) } else { Err((row.phase, row.faults)) }
    });
    site.wait_phases(40, &[("r-1", "Quarantined"), ("r-2", "InService"), ("r-3", "InService")]);
    site.check();
    site.patch::<Blade>("r-2", json!({ "retest": 2 }));
    until(40, "its agent takes up the next run", || {
        let row = site.row("r-2").unwrap();
        let last = row.run.as_ref().map(|run| run.run);
        let done = row.retested == 2 && row.phase.name() == PhaseName::InService && last > Some(lost);
        if done { Ok(()) } else { Err((row.phase, last)) }
    });
    site.check();
}

/// A disk of its own, gone when dropped.
struct Disk(std::path::PathBuf);

impl Disk {
    fn mount(path: std::path::PathBuf, megabytes: u32) -> Disk {
        std::fs::create_dir(&path).unwrap();
        let size = format!("size={megabytes}m");
        let output = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&path)
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
        Disk(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Needs root, for a small disk.
#[test]
fn a_full_disk_is_said_and_gone_on_from() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::mount(dir.path().join("disk"), 100);
    let url = format!("sqlite:{}?mode=rwc", disk.0.join("store.db").display());
    let mut site = Site::parts(dir, url, 1, &["--agent-away", "4s", "--run-lost", "4s"]);
    site.operator().start(&[]);
    site.operator().wait_leading();
    let (names, fleet) = six(&site, "f", RUN_TIME);
    decided(&site, &names);
    let filler = disk.0.join("filler");
    let fill = || {
        let mut file = std::fs::File::create(&filler).unwrap();
        // Ends where there is no room for another byte.
        while std::io::Write::write(&mut file, &[1; 4096]).is_ok_and(|n| n > 0) {}
        says(&site, "disk", false);
    };
    let free = || {
        let full =
            site.operators[0].metric("whetstone_evidence_refused_total", &["reason=\"store\""]).unwrap();
        assert!(full > 0.0);
        std::fs::remove_file(&filler).unwrap();
        says(&site, "disk", true);
    };
    fault_meanwhile(&site, &fleet, "f-1", fill, free);
    site.operator().kill();
}
