//! `whet site up --kubeconfig`: a site in a cluster that is somebody else's takes, changes and deletes nothing of theirs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::cluster::Cluster;
use crate::harness::until;

/// Every object, by kind, namespace and name, with its uid and what a person would miss: labels, our note, spec or data. Left out is what the control plane writes by itself: events, and the leases and nodes' status that renew.
fn objects(cluster: &Cluster) -> BTreeMap<String, Value> {
    let kinds = cluster.kubectl(&["api-resources", "--verbs=list", "-o", "name"]);
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    let all = cluster.kubectl(&["get", &kinds.join(","), "-A", "-o", "json"]);
    let all: Value = serde_json::from_str(&all).unwrap();
    let object = |object: &Value| {
        let mut object = object.clone();
        // The node controller's own.
        if let Some(taints) = object.pointer_mut("/spec/taints").and_then(Value::as_array_mut) {
            taints.retain(|taint| {
                !taint["key"].as_str().unwrap_or_default().starts_with("node.kubernetes.io/")
            });
        }
        if let Some(spec) = object.pointer_mut("/spec").and_then(Value::as_object_mut) {
            spec.retain(|key, value| key != "taints" || *value != json!([]));
        }
        let meta = &object["metadata"];
        let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let place = [&object["kind"], &meta["namespace"], &meta["name"]].map(part).join("/");
        let seen = match place.starts_with("Lease/kube-") || place.starts_with("APIService/") {
            true => json!({}),
            false => json!({
                "uid": meta["uid"], "labels": meta["labels"], "annotations": meta["annotations"]["whetstone.dev/withheld-by"],
                "spec": object["spec"], "data": object["data"],
            }),
        };
        (place, seen)
    };
    all["items"].as_array().unwrap().iter().map(object).collect()
}

/// What is there now and was not, is gone, or is another.
fn changes(before: &BTreeMap<String, Value>, now: &BTreeMap<String, Value>) -> Vec<String> {
    let names = before.keys().chain(now.keys().filter(|name| !before.contains_key(*name)));
    names
        .filter(|name| before.get(*name) != now.get(*name))
        .map(|name| format!("{name}: {:?} is now {:?}", before.get(name), now.get(name)))
        .collect()
}

struct Place {
    cluster: Cluster,
    dir: tempfile::TempDir,
}

impl Place {
    fn site(&self) -> PathBuf {
        self.dir.path().join("site")
    }

    fn whet(&self, args: &[&str]) -> Output {
        let mut command = Command::new(whetstone_suite::whet());
        for name in ["KUBECONFIG", "WHETSTONE_SITE", "XDG_STATE_HOME"] {
            command.env_remove(name);
        }
        command.env("HOME", self.dir.path()).args(args).output().unwrap()
    }

    fn up(&self) -> Output {
        let (config, site, libs) = (self.cluster.kubeconfig(), self.site(), whetstone_suite::sim_libraries());
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let bin = path(whetstone_suite::whet_sim().parent().unwrap());
        let (config, site, libs) = (path(&config), path(&site), path(&libs));
        self.whet(&[
            "site",
            "up",
            "--dir",
            &site,
            "--kubeconfig",
            &config,
            "--bin",
            &bin,
            "--sim-libs",
            &libs,
            "--blades",
            "2",
            "--healthy",
        ])
    }

    fn down(&self) {
        let down = self.whet(&["site", "down", "--dir", self.site().to_str().unwrap()]);
        assert!(down.status.success(), "{down:?}");
        assert!(!self.site().exists());
    }

    fn apply(&self, objects: &Value) {
        let file = self.dir.path().join("theirs.json");
        std::fs::write(&file, objects.to_string()).unwrap();
        self.cluster.kubectl(&["apply", "-f", file.to_str().unwrap()]);
    }

    /// With `theirs` in the cluster a site is refused in one sentence with `words`, and nothing is changed.
    #[track_caller]
    fn refused(&self, theirs: &Value, kind_and_name: &[&str], words: &str) {
        self.apply(theirs);
        let before = objects(&self.cluster);
        let up = self.up();
        let said = String::from_utf8_lossy(&up.stderr);
        assert_eq!(up.status.code(), Some(2), "{said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(last.contains(words) && last.contains("nothing was changed"), "{words:?} is not in: {said}");
        assert!(!said.contains("operator ready") && !said.contains("taking it down"), "{said}");
        assert_eq!(changes(&before, &objects(&self.cluster)), [""; 0]);
        assert!(!self.site().exists(), "{} is left", self.site().display());
        self.cluster.kubectl(&[&["delete"], kind_and_name].concat());
    }
}

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"theirs": "yes"}}})
}

fn secret(value: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "whetstone-ops", "namespace": "whetstone"}, "stringData": {"url": value},
    })
}

#[test]
fn a_site_in_a_cluster_of_somebody_elses_leaves_it_as_it_was() {
    let place = Place { cluster: Cluster::up(), dir: tempfile::tempdir().unwrap() };
    let cluster = &place.cluster;
    // The control plane makes its own objects in its first seconds.
    until(30, "the control plane has made what it makes", || {
        cluster.try_kubectl(&["get", "serviceaccount", "default", "-n", "kube-public"])
    });
    cluster.kubectl(&["create", "namespace", "whetstone"]);
    until(30, "the namespace is whole", || {
        cluster.try_kubectl(&[
            "get",
            "serviceaccount/default",
            "configmap/kube-root-ca.crt",
            "-n",
            "whetstone",
        ])
    });

    let namespaced = ["-n", "whetstone"];
    place.refused(&node("b-002"), &["node", "b-002"], "node b-002 is there already");
    let theirs = ["secret", "whetstone-ops", "-n", "whetstone"];
    place.refused(&secret("https://theirs"), &theirs, "secret whetstone/whetstone-ops is there already");
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "whetstone-operator", "namespace": "kube-public"}, "spec": {"holderIdentity": "pod-7"},
    });
    let theirs = ["lease", "whetstone-operator", "-n", "kube-public"];
    place.refused(
        &lease,
        &theirs,
        "an operator of Whetstone is there already (lease kube-public/whetstone-operator of pod-7)",
    );

    // Kinds of another version are refused; of this version they are taken as they are.
    let crds = whetstone_suite::workspace().join("deploy/crds");
    let text = std::fs::read_to_string(crds.join("blades.yaml")).unwrap();
    let mut other: Value = serde_norway::from_str(&text).unwrap();
    other["spec"]["names"]["shortNames"] = json!(["blade-of-old"]);
    let theirs = ["crd", "blades.whetstone.dev"];
    place.refused(
        &other,
        &theirs,
        "CustomResourceDefinition blades.whetstone.dev is there already, of another version",
    );
    cluster.kubectl(&["wait", "--for=delete", "crd/blades.whetstone.dev", "--timeout=30s"]);
    cluster.kubectl(&["apply", "-f", crds.to_str().unwrap()]);
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]);
    let tranche = json!({
        "apiVersion": "whetstone.dev/v1alpha1", "kind": "Tranche", "metadata": {"name": "t-99"},
        "spec": {"blades": [{"serial": "SN-1"}], "suite": "quick"},
    });
    place.refused(&tranche, &["tranche", "t-99"], "tranche t-99 is there already");

    let before = objects(cluster);
    let up = place.up();
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    cluster.kubectl(&["get", "blade/b-001", "blade/b-002", "node/b-001", "node/b-002", "tranche/t-01"]);
    until(30, "a run has begun", || {
        let runs = cluster.kubectl(&["get", "burnins", "-o", "name"]);
        if runs.is_empty() { Err("no run") } else { Ok(()) }
    });
    an_operator_that_failed_is_started_again(&place);
    // Their nodes are none of ours, also those that come now.
    place.apply(&node("theirs-1"));
    let theirs: Value =
        serde_json::from_str(&cluster.kubectl(&["get", "node", "theirs-1", "-o", "json"])).unwrap();
    let taints = theirs["spec"]["taints"].to_string();
    assert!(!taints.contains("whetstone.dev"), "{taints}");
    assert_eq!(theirs["spec"]["unschedulable"], Value::Null);
    cluster.kubectl(&["delete", "node", "theirs-1"]);
    // A second site has no place here.
    let second = place.dir.path().join("second");
    let config = cluster.kubeconfig();
    let bin = whetstone_suite::whet_sim();
    let up = place.whet(&[
        "site",
        "up",
        "--dir",
        second.to_str().unwrap(),
        "--kubeconfig",
        config.to_str().unwrap(),
        "--bin",
        bin.parent().unwrap().to_str().unwrap(),
        "--sim-libs",
        whetstone_suite::sim_libraries().to_str().unwrap(),
    ]);
    assert_eq!(up.status.code(), Some(2), "{up:?}");
    assert!(String::from_utf8_lossy(&up.stderr).contains("of whet-site-"), "{up:?}");
    place.down();
    until(20, "all that was made is gone", || {
        let changed = changes(&before, &objects(cluster));
        if changed.is_empty() { Ok(()) } else { Err(changed) }
    });

    // What is recorded as made and is somebody else's by now stays: as if `up` had died before it made it.
    let up = place.up();
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    // Its operator does not live to see theirs.
    let status = place.whet(&["site", "status", "--json", "--dir", place.site().to_str().unwrap()]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    for process in status["processes"].as_array().unwrap() {
        let killed = Command::new("kill").args(["-9", &process["pid"].to_string()]).status().unwrap();
        assert!(killed.success(), "{process}");
    }
    cluster.kubectl(&["delete", "node", "b-001"]);
    cluster.kubectl(&[&["delete", "secret", "whetstone-ops"] as &[&str], &namespaced].concat());
    place.apply(&node("b-001"));
    place.apply(&secret("https://theirs"));
    place.down();
    until(20, "only theirs is there", || {
        let now = objects(cluster);
        let new: Vec<&String> = now.keys().filter(|name| !before.contains_key(*name)).collect();
        match new.as_slice() {
            [lease, node, secret]
                if *node == "Node//b-001"
                    && lease.starts_with("Lease/kube-node-lease")
                    && secret.ends_with("/whetstone-ops") =>
            {
                Ok(())
            }
            [node, secret] if *node == "Node//b-001" && secret.ends_with("/whetstone-ops") => Ok(()),
            _ => Err(new.into_iter().cloned().collect::<Vec<_>>()),
        }
    });
    let theirs = cluster.kubectl(&["get", "node", "b-001", "-o", "jsonpath={.metadata.labels}"]);
    assert_eq!(theirs, r#"{"theirs":"yes"}"#);
    cluster.kubectl(&["delete", "node", "b-001"]);
    what_goes_takes_nothing_of_theirs_along(&place);
}

/// Where the site made kinds and namespace itself, and somebody put something into them.
fn what_goes_takes_nothing_of_theirs_along(place: &Place) {
    let cluster = &place.cluster;
    cluster.kubectl(&["delete", "namespace", "whetstone"]);
    let kinds = ["blades.whetstone.dev", "tranches.whetstone.dev", "burnins.whetstone.dev"];
    cluster.kubectl(&[&["delete", "crd"], &kinds[..]].concat());
    let up = place.up();
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    place.apply(&json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "whetstone.dev/v1alpha1", "kind": "Tranche", "metadata": {"name": "t-99"},
            "spec": {"blades": [{"serial": "SN-1"}], "suite": "quick", "paused": true},
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "theirs", "namespace": "whetstone"}},
    ]}));
    let down = place.whet(&["site", "down", "--dir", place.site().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&down.stderr);
    assert!(down.status.success(), "{said}");
    assert!(said.contains("namespace whetstone stays: configmap theirs is there"), "{said}");
    assert!(said.contains("crd tranches.whetstone.dev stays: tranche t-99 is there"), "{said}");
    cluster.kubectl(&["get", "tranche/t-99", "crd/blades.whetstone.dev", "crd/burnins.whetstone.dev"]);
    cluster.kubectl(&["get", "configmap/theirs", "-n", "whetstone"]);
    let left = cluster.kubectl(&["get", "node,lease,secret", "-n", "whetstone", "-o", "name"]);
    assert_eq!(left, "", "what is the site's alone has gone");
}

/// As where it loses its lease to an apiserver that was away: nobody else starts it.
fn an_operator_that_failed_is_started_again(place: &Place) {
    let operator = || {
        let status = place.whet(&["site", "status", "--json", "--dir", place.site().to_str().unwrap()]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        let processes = status["processes"].as_array().unwrap();
        let watching = processes.iter().find(|process| process["name"] == "operator").unwrap()["pid"].clone();
        let children = std::fs::read_to_string(format!("/proc/{watching}/task/{watching}/children"));
        children.unwrap().trim().parse::<u32>().map_err(|e| e.to_string())
    };
    let first = operator().unwrap();
    let age = || std::fs::metadata(format!("/proc/{first}")).unwrap().modified().unwrap().elapsed().unwrap();
    // What fails at once is not started again.
    until(20, "it has lived for a while", || if age().as_secs() > 5 { Ok(()) } else { Err(age()) });
    assert!(Command::new("kill").args(["-9", &first.to_string()]).status().unwrap().success());
    until(30, "another one", || match operator() {
        Ok(pid) if pid != first => Ok(()),
        other => Err(other),
    });
    until(60, "it leads and answers", || {
        let explained = place.whet(&["explain", "b-001", "--site", place.site().to_str().unwrap()]);
        let said = String::from_utf8_lossy(&explained.stdout).into_owned()
            + &String::from_utf8_lossy(&explained.stderr);
        if explained.status.success() && explained.stderr.is_empty() { Ok(()) } else { Err(said) }
    });
}
