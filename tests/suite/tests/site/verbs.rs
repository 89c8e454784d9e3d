//! Every verb of `whet` as a person types it, against a site that lives: what she sees, and the exit code.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use whetstone_sim_fleet::{End, FleetBlade};

use crate::harness::operator;
use crate::harness::site::RUN_TIME;
use crate::harness::{Site, listed, serial, until};

const TRANCHE: &str = "t-v";

/// A person at a terminal: her credentials, her folder.
struct Person {
    /// As a site's folder: kubeconfig, and what the operator asks for.
    folder: PathBuf,
    home: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Person {
    fn new(site: &Site) -> Person {
        let (folder, home) = (site.path("ann"), site.path("home"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::create_dir(&home).unwrap();
        std::fs::copy(site.cluster.kubeconfig(), folder.join("admin.kubeconfig")).unwrap();
        let url = format!("https://localhost:{}", site.operators[0].settings.listen);
        let made = Command::new(operator::program())
            .args(["pki", "ops-cert", "--user", "ann", "--url", &url, "--pki-dir"])
            .arg(&site.operators[0].settings.pki)
            .arg("--out")
            .arg(folder.join("ops"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        // For who has a kubeconfig alone.
        let from = format!("--from-file={}", folder.join("ops").display());
        site.cluster.kubectl(&["create", "secret", "generic", "whetstone-ops", "-n", "whetstone", &from]);
        std::os::unix::fs::symlink(whetstone_suite::whet(), home.join("kubectl-whet")).unwrap();
        Person { folder, home }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(whetstone_suite::whet());
        command.args(args).env("HOME", &self.home).env("USER", "ann").env("WHETSTONE_SITE", &self.folder);
        command.env_remove("KUBECONFIG");
        command
    }

    fn try_whet(&self, args: &[&str]) -> Said {
        said(&mut self.command(args))
    }

    /// What it prints; it has to go well.
    #[track_caller]
    fn whet(&self, args: &[&str]) -> String {
        let said = self.try_whet(args);
        assert_eq!(said.code, Some(0), "whet {}: {said:?}", args.join(" "));
        said.out
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let out = self.whet(&[args, &["--json"]].concat());
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("whet {}: {e}: {out}", args.join(" ")))
    }

    /// Exit code 2, nothing on standard output, and one line that has the words.
    #[track_caller]
    fn refused(&self, args: &[&str], words: &str) {
        let said = self.try_whet(args);
        let line = said.err.lines().find(|line| line.contains(words));
        assert!(said.code == Some(2) && said.out.is_empty() && line.is_some(), "{words:?}: {said:?}");
    }

    /// A command that goes on, and its lines.
    fn watch(&self, args: &[&str]) -> (Ended, Receiver<String>) {
        let mut child = self.command(args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let out = child.stdout.take().unwrap();
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        (Ended(child), lines)
    }
}

fn said(command: &mut Command) -> Said {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

/// Ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The first line that fits.
#[track_caller]
fn line(lines: &Receiver<String>, what: &str, fits: impl Fn(&str) -> bool) -> String {
    let (until, mut seen) = (Instant::now() + Duration::from_secs(40), Vec::new());
    while let Ok(line) = lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
        if fits(&line) {
            return line;
        }
        seen.push(line);
    }
    panic!("{what}: not among {seen:#?}");
}

/// The table's lines without their head, cut at spaces.
fn rows(table: &str) -> Vec<Vec<&str>> {
    table.lines().skip(1).map(|line| line.split_whitespace().collect()).collect()
}

fn names(table: &str) -> Vec<&str> {
    rows(table).into_iter().filter_map(|row| row.first().copied()).collect()
}

#[test]
fn every_verb_says_what_is_and_refuses_what_is_not() {
    let site = Site::up();
    let ann = Person::new(&site);
    delivered(&site, &ann);
    blades(&ann);
    tranche(&ann);
    of_the_operator(&site, &ann);
    wishes(&site, &ann);
    plugin(&site, &ann);
    deleted(&ann);
    tokens(&site, &ann);
}

/// A tranche comes and is decided, while she watches it and its blades.
fn delivered(site: &Site, ann: &Person) {
    let manifest = site.path("t-v.csv");
    let text = "serial,name,rack,sku\nSN-v-01,v-01,r-1,hgx-h100\nSN-v-02,v-02,r-1,hgx-h100\nSN-v-03,v-03,r-2,hgx-h100\n";
    std::fs::write(&manifest, text).unwrap();
    let manifest = manifest.to_str().unwrap();
    let made = ann.whet(&["tranche", "create", TRANCHE, "--manifest", manifest, "--suite", "quick"]);
    assert!(made.contains("3 blades expected") && made.contains("whet tranche tokens t-v"), "{made}");
    until(20, "the operator knows them", || {
        let found = ann.json(&["blades", "--tranche", TRANCHE]);
        if found.as_array().unwrap().len() == 3 { Ok(()) } else { Err(found) }
    });
    ann.refused(&["tranche", "create", TRANCHE, "--manifest", manifest], "tranche t-v exists already");
    ann.refused(&["tranche", "create", "t-w", "--manifest", manifest], "SN-v-01");

    let (_json, events) = ann.watch(&["blades", "--watch", "--json", "--tranche", TRANCHE]);
    let (_lines, lines) = ann.watch(&["blades", "--watch"]);
    let first = line(&events, "the blades that there are", |line| line.contains("v-02"));
    let first: Value = serde_json::from_str(&first).unwrap();
    assert_eq!((&first["event"], &first["blade"]["phase"]), (&"listed".into(), &"Expected".into()));
    line(&lines, "a table first", |line| line.starts_with("NAME"));
    let (mut tranche, decided) = ann.watch(&["tranche", "watch", TRANCHE, "--timeout", "60s"]);
    line(&decided, "how it stands", |line| line.contains("Delivering") || line.contains("xpected"));

    site.join(&[("v-01", &[End::Pass]), ("v-02", &[End::Fail]), ("v-03", &[End::Pass])]);
    let out = |line: &str| line.contains("v-02") && line.contains("Quarantined");
    let change: Value = serde_json::from_str(&line(&events, "v-02 comes out", out)).unwrap();
    assert_eq!((&change["event"], &change["blade"]["phase"]), (&"changed".into(), &"Quarantined".into()));
    line(&lines, "v-02 comes out", out);
    until(40, "the watch of the tranche ends", || match tranche.0.try_wait().unwrap() {
        Some(status) if status.success() => Ok(()),
        other => Err(other),
    });
    site.wait_phases(20, &[("v-01", "Ready"), ("v-02", "Quarantined"), ("v-03", "Ready")]);
    // It is decided: nothing to wait for.
    let again: Value = serde_json::from_str(&ann.whet(&["tranche", "watch", TRANCHE, "--json"])).unwrap();
    assert_eq!((&again["ready"], &again["counts"]["quarantined"]), (&true.into(), &1.into()));
}

fn blades(ann: &Person) {
    let all = ann.whet(&["blades"]);
    let head: Vec<&str> = all.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["NAME", "SKU", "TRANCHE", "RACK", "PHASE", "OWNER", "VERDICT", "REASON", "AGE"]);
    assert_eq!(names(&all), ["v-01", "v-02", "v-03"]);
    let bad = ann.whet(&["blades", "--phase", "quarantined"]);
    assert_eq!(names(&bad), ["v-02"]);
    assert!(bad.contains("fail") && bad.contains("wrong bits"), "{bad}");
    assert_eq!(names(&ann.whet(&["blades", "--rack", "r-2", "--tranche", TRANCHE])), ["v-03"]);
    assert_eq!(names(&ann.whet(&["blades", "--owner", "nobody", "--sku", "hgx-h100"])).len(), 3);
    assert!(ann.whet(&["blades", "--wide"]).contains("SN-v-03"));
    let json = ann.json(&["blades", "--phase", "Ready"]);
    let serials: Vec<&Value> = json.as_array().unwrap().iter().map(|blade| &blade["serial"]).collect();
    assert_eq!(serials, ["SN-v-01", "SN-v-03"]);
    let none = ann.try_whet(&["blades", "--rack", "r-9"]);
    assert_eq!((none.code, none.out.as_str(), none.err.as_str()), (Some(0), "", "no blades that fit\n"));
    assert_eq!(ann.json(&["blades", "--rack", "r-9"]), serde_json::json!([]));
    ann.refused(&["blades", "--phase", "Broken"], "--phase \"Broken\" is none of");
    ann.refused(&["blades", "--owner", "me"], "--owner");

    let story = ann.whet(&["explain", "v-02"]);
    let (first, rest) = story.split_once('\n').unwrap();
    assert!(first.contains("Quarantined") && first.contains("wrong bits"), "{story}");
    assert!(rest.contains("Discovered") && rest.contains("BurningIn"), "{story}");
    assert_eq!(ann.whet(&["explain", "SN-v-02", "--all"]).lines().nth(1), rest.lines().next());
    let story = ann.json(&["explain", "v-02"]);
    let steps = story["history"]["transitions"].as_array().unwrap();
    assert!(steps.len() >= 3 && story["history_missing"].is_null(), "{story:#}");
    assert_eq!(story["history"]["cases"].as_array().unwrap().len(), 1);
    ann.refused(&["explain", "v-99"], "no blade v-99 (`whet blades` lists them)");

    let runs = ann.whet(&["burnins", "--blade", "v-02"]);
    assert!(rows(&runs).len() == 1 && runs.contains("Failed") && runs.contains("wrong bits"), "{runs}");
    let runs = ann.json(&["burnins"]);
    assert_eq!(runs.as_array().unwrap().len(), 3, "{runs:#}");
    assert_eq!(ann.try_whet(&["burnins", "--blade", "v-99"]).err, "no burn-ins\n");
    ann.refused(&["burnins", "--blade", "v 1"], "blade name");
    let run = ann.json(&["burnins", "--blade", "v-02"])[0]["run"].to_string();
    let report = ann.whet(&["burnins", "report", &run]);
    assert!(report.contains("wrong bits") && report.contains("as signed by"), "{report}");
    assert_eq!(ann.json(&["burnins", "report", &run])["verdict"]["outcome"], "fail");
    ann.refused(&["burnins", "report", "999999"], "run 999999 has no result");
}

fn tranche(ann: &Person) {
    let shown = ann.whet(&["tranche", "show", TRANCHE]);
    assert!(shown.contains("v-02") && !shown.contains("v-01"), "{shown}");
    assert_eq!(names(&ann.whet(&["tranche", "list"])), [TRANCHE]);
    assert!(ann.whet(&["tranche", "pause", TRANCHE]).contains("no further burn-in is started"));
    assert!(ann.whet(&["tranche", "show", TRANCHE]).contains("(paused)"));
    assert_eq!(ann.json(&["tranche", "show", TRANCHE])["tranche"]["paused"], true);
    assert_eq!(ann.whet(&["tranche", "resume", TRANCHE]), "t-v: goes on\n");
    assert_eq!(ann.json(&["tranche", "list"])[0]["paused"], false);
    for verb in ["show", "pause", "resume", "delete", "watch"] {
        ann.refused(&["tranche", verb, "t-none"], "no tranche t-none");
    }
    ann.refused(&["tranche", "show", "T 7"], "tranche name");
}

/// What only the operator knows.
fn of_the_operator(site: &Site, ann: &Person) {
    let cases = ann.whet(&["cases"]);
    assert!(rows(&cases).len() == 1 && cases.contains("v-02") && cases.contains("open"), "{cases}");
    let case = &ann.json(&["cases", "--all"])[0];
    assert_eq!((&case["blade"], &case["closed_ms"]), (&"v-02".into(), &Value::Null));

    assert!(ann.whet(&["breaker"]).starts_with("closed: "));
    assert!(ann.whet(&["breaker", "override"]).starts_with("overridden: "));
    assert_eq!(ann.json(&["breaker"])["override"], true);
    assert!(ann.whet(&["breaker", "restore"]).starts_with("closed: "));

    assert_eq!(ann.try_whet(&["unexpected"]).err, "nothing unexpected\n");
    let stranger = FleetBlade { serial: serial("stranger"), token: "0".repeat(64), script: Vec::new() };
    let fleet = site.start_fleet(vec![stranger], RUN_TIME, "", site.operators[0].settings.listen);
    until(20, "a stranger is seen", || {
        let seen = ann.try_whet(&["unexpected"]);
        if seen.code == Some(0) && names(&seen.out) == ["SN-stranger"] { Ok(()) } else { Err(seen) }
    });
    fleet.stop();
    assert_eq!(ann.json(&["unexpected"])[0]["serial"], "SN-stranger");

    assert!(ann.whet(&["tokens", "reset", "v-03"]).contains("certificates are revoked"));
    ann.refused(&["tokens", "reset", "v-99"], "v-99");

    let audit = ann.json(&["audit", "--limit", "50"]);
    let hers: Vec<String> =
        audit.as_array().unwrap().iter().filter(|line| line["who"] == "ann").map(Value::to_string).collect();
    for words in ["breaker", "SN-v-03"] {
        assert!(hers.iter().any(|line| line.contains(words)), "{words}: {audit:#}");
    }
    assert_eq!(rows(&ann.whet(&["audit", "--limit", "2"])).len(), 2);
    ann.refused(&["audit", "--limit", "0"], "--limit");
}

fn wishes(site: &Site, ann: &Person) {
    let said = ann.whet(&["quarantine", "v-01", "--reason", "smells odd"]);
    assert!(said.starts_with("v-01: will be withheld: smells odd"), "{said}");
    site.wait_phases(20, &[("v-01", "Quarantined")]);
    until(10, "it says so", || {
        let (row, story) = (ann.whet(&["blades", "--phase", "Quarantined"]), ann.whet(&["explain", "v-01"]));
        let first = story.lines().next().unwrap_or_default();
        if row.contains("smells odd") && first.contains("smells odd") { Ok(()) } else { Err((row, story)) }
    });
    assert_eq!(ann.json(&["release", "SN-v-01"])["blade"], "v-01");
    site.wait_phases(30, &[("v-01", "Ready")]);
    ann.refused(&["release", "v-01"], "v-01 is Ready: there is nothing to release");
    // A person's quarantine on top of a failed burn-in's: its release brings a burn-in all the same.
    ann.whet(&["quarantine", "v-02", "--reason", "smells odd too"]);
    let said = ann.whet(&["release", "v-02"]);
    assert!(said.contains("taken away; a burn-in is asked for"), "{said}");
    until(40, "it is burnt in again", || {
        let runs = ann.json(&["burnins", "--blade", "v-02"]);
        if runs[1]["phase"] == "Failed" { Ok(()) } else { Err(runs) }
    });
    assert!(ann.whet(&["retire", "v-02"]).contains("its history stays"));
    site.wait_phases(20, &[("v-02", "Retired")]);
    ann.refused(&["retire", "v-02"], "v-02 is retired already");
    ann.refused(&["release", "v-02"], "v-02 is");
    for verb in
        [&["quarantine", "v-99", "--reason", "x"] as &[&str], &["release", "v-99"], &["retire", "v-99"]]
    {
        ann.refused(verb, "no blade v-99");
    }
    // Of a retired blade nothing is open any more; what was stays.
    assert!(ann.whet(&["cases", "--all"]).contains("v-02"));
}

/// The same through kubectl, with a kubeconfig alone.
fn plugin(site: &Site, ann: &Person) {
    let kubectl = |args: &[&str]| {
        let path = format!("{}:{}", ann.home.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = site.cluster.kubectl_command(&[]);
        let program = command.get_program().to_owned();
        command = Command::new(program);
        command.args(args).env("PATH", path).env("HOME", &ann.home).env_remove("WHETSTONE_SITE");
        said(command.env("KUBECONFIG", site.cluster.kubeconfig()))
    };
    let blades = kubectl(&["whet", "blades", "--tranche", TRANCHE]);
    assert_eq!((blades.code, names(&blades.out)), (Some(0), vec!["v-01", "v-02", "v-03"]), "{blades:?}");
    let story = kubectl(&["whet", "explain", "v-01"]);
    assert!(story.code == Some(0) && story.out.contains("smells odd") && story.err.is_empty(), "{story:?}");
    let none = kubectl(&["whet", "explain", "v-99"]);
    assert_eq!(none.code, Some(2), "{none:?}");
    assert!(none.err.contains("kubectl whet: no blade v-99 (`kubectl whet blades` lists them)"), "{none:?}");
    let held = kubectl(&["whet", "quarantine", "v-03", "--reason", "odd", "--by", "ann"]);
    assert!(held.out.contains("`kubectl whet release` ends it"), "{held:?}");
    let help = kubectl(&["whet", "tranche", "delete", "--help"]);
    assert!(help.code == Some(0) && help.out.contains("Usage: kubectl whet tranche delete"), "{help:?}");
    let slip = kubectl(&["whet", "blade"]);
    assert!(slip.code == Some(2) && slip.err.contains("blades"), "{slip:?}");
}

fn deleted(ann: &Person) {
    let said = ann.whet(&["tranche", "delete", TRANCHE]);
    assert!(said.starts_with("t-v: deleted; its blades stay"), "{said}");
    ann.refused(&["tranche", "show", TRANCHE], "no tranche t-v");
    assert_eq!(ann.try_whet(&["tranche", "list"]).err, "no tranches\n");
    assert_eq!(names(&ann.whet(&["blades"])), ["v-01", "v-02", "v-03"]);
}

/// A line whose name another blade has is not entered: it gets no token, and keeps none from the others.
fn tokens(site: &Site, ann: &Person) {
    let mut taken = listed("n-2", "r-9");
    taken["name"] = "v-01".into();
    site.tranche("t-n", &[listed("n-1", "r-9"), taken], json!({}));
    let out = site.path("t-n.csv");
    let issue = ["tranche", "tokens", "t-n", "--out", out.to_str().unwrap()];
    let said = until(20, "the operator has read the list", || match ann.try_whet(&issue) {
        said if said.code == Some(1) => Ok(said),
        said => Err(said),
    });
    assert!(said.out.starts_with("1 tokens in ") && said.err.contains("SN-n-2"), "{said:?}");
    let rows = std::fs::read_to_string(&out).unwrap();
    assert!(rows.contains("SN-n-1,wt-") && rows.lines().count() == 2, "{rows}");
    ann.refused(&[&issue[..], &["--serial", "SN-n-2"]].concat(), "none of the 1 serials is entered");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), rows, "what was there is kept");
}
