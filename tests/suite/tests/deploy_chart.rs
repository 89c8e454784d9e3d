//! The Helm chart on a real cluster with real kubelets: operator as a Deployment, agents as a DaemonSet with the simulated driver
//! libraries mounted, a tranche accepted there, an upgrade and an uninstall. Needs root, for the nodes.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests: what fails here is a failed test"
)]

mod deploy;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use deploy::site::{METRICS, Site, TRANCHE};
use deploy::{Cluster, until};
use serde_json::json;

/// Two that are well, and one with a multiplier that gives a wrong bit.
const BLADES: [(&str, &str); 3] = [
    ("b-001", ""),
    ("b-002", ""),
    ("b-003", "[[fault]]\ngpu = 5\nkind = \"sm_flip\"\nsm = 3\nbit = 9\nformat = \"bf16\"\n"),
];
const ALL_LIVE: &str = r#"whetstone_agents{state="live"} 3"#;

/// A claim's volume where there is no provisioner: a folder that the operator's user may write.
fn make_volume(cluster: &Cluster) {
    let store = cluster.scratch().join("store");
    fs::create_dir(&store).unwrap();
    fs::set_permissions(&store, fs::Permissions::from_mode(0o777)).unwrap();
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "store"},
        "spec": {
            "capacity": {"storage": "20Gi"}, "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "", "hostPath": {"path": store},
        },
    });
    cluster.kubectl_with(&["apply"], &volume.to_string()).expect_ok();
}

#[test]
fn a_tranche_is_accepted_on_a_cluster_that_the_chart_was_installed_on() {
    let site = Site::up("infra", &BLADES, &json!({"store": {"sqlite": {"storageClass": "-"}}}));
    make_volume(&site.cluster);

    plain_manifests(&site);
    install(&site);
    rights(&site);
    site.credentials();
    site.deliver();
    site.arrive();
    decided(&site);
    upgrade(&site);
    uninstall(&site);
    install_again(&site);
}

/// A real apiserver accepts every document of the manifests for those who use no chart; nothing is made.
fn plain_manifests(site: &Site) {
    let cluster = &site.cluster;
    let file = deploy::deploy().join("manifests/whetstone.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let documents = text.lines().filter(|line| line.starts_with("kind: ")).count();
    cluster.kubectl(&["create", "namespace", "whetstone-agents"]).expect_ok();
    let apply = ["apply", "--server-side", "--dry-run=server", "-f", file.to_str().unwrap()];
    let said = cluster.kubectl(&apply);
    assert!(said.ok, "{}{}", said.out, said.err);
    let accepted =
        said.out.lines().filter(|line| line.ends_with("serverside-applied (server dry run)")).count();
    assert!(accepted == documents && documents > 20, "{accepted} of {documents}: {}", said.out);
    // A field that no apiserver knows is said as a warning.
    assert!(!said.err.contains("unknown field"), "{}", said.err);
    cluster.kubectl(&["delete", "namespace", "whetstone-agents", "--timeout=60s"]).expect_ok();
}

/// The operator runs within the restricted pod security, which the namespace enforces.
fn install(site: &Site) {
    let cluster = &site.cluster;
    let said = site.helm("install", &[]);
    assert!(said.ok, "{}{}{}", said.out, said.err, site.logs("whetstone", "whetstone-operator"));
    assert!(said.out.contains("whet tranche create"), "{}", said.out);
    let pods = cluster.get(&["pods", "-n", "whetstone"]);
    let pod = &pods["items"][0];
    assert_eq!(pod["spec"]["nodeName"], "infra");
    assert_eq!(pod["status"]["qosClass"], "Burstable");
    let key = fs::metadata(cluster.scratch().join("store/store.db")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&key), 65532, "the operator runs as root");
    let other = cluster.helm(&["install", "second", &Site::chart(), "-n", "default", "--dry-run=server"]);
    other.expect_refused("whetstone");
}

/// Exactly what the chart lists, as the apiserver answers it.
fn rights(site: &Site) {
    let of = |who: &str, namespace: &str| {
        let said =
            site.cluster.kubectl(&["auth", "can-i", "--list", "--no-headers", "-n", namespace, "--as", who]);
        let mut rights: BTreeSet<String> = BTreeSet::new();
        for line in said.expect_ok().lines() {
            // RESOURCES [NON-RESOURCE URLS] [RESOURCE NAMES] [VERBS]
            let resource = line.split_whitespace().next().unwrap_or_default();
            let names = line.split('[').nth(2).and_then(|part| part.split(']').next()).unwrap_or_default();
            let verbs = line.rsplit_once('[').map_or("", |(_, verbs)| verbs.trim_end_matches(']'));
            // What everybody with an account may: ask about oneself, read the API's description.
            if line.starts_with('[') || line.starts_with(' ') || resource.starts_with("self") {
                continue;
            }
            for verb in verbs.split(' ') {
                rights.insert(format!("{verb} {resource}{}{names}", if names.is_empty() { "" } else { " " }));
            }
        }
        rights.into_iter().collect::<Vec<String>>()
    };
    let operator = "system:serviceaccount:whetstone:whetstone-operator";
    let everywhere = [
        "create blades.whetstone.dev",
        "create burnins.whetstone.dev",
        "create pods/eviction",
        "delete blades.whetstone.dev",
        "delete burnins.whetstone.dev",
        "get blades.whetstone.dev",
        "get nodes",
        "list blades.whetstone.dev",
        "list burnins.whetstone.dev",
        "list nodes",
        "list pods",
        "list tranches.whetstone.dev",
        "patch blades.whetstone.dev",
        "patch blades.whetstone.dev/status",
        "patch burnins.whetstone.dev/status",
        "patch nodes",
        "patch tranches.whetstone.dev/status",
        "release nodes.whetstone.dev",
        "watch blades.whetstone.dev",
        "watch burnins.whetstone.dev",
        "watch nodes",
        "watch tranches.whetstone.dev",
    ];
    let and = |more: &[&str]| {
        let mut all: Vec<String> = everywhere.iter().chain(more).map(ToString::to_string).collect();
        all.sort_unstable();
        all
    };
    assert_eq!(of(operator, "kube-system"), everywhere);
    let events = ["create events.events.k8s.io", "patch events.events.k8s.io"];
    assert_eq!(of(operator, "default"), and(&events));
    let lease = [
        "create leases.coordination.k8s.io",
        "get leases.coordination.k8s.io whetstone-operator",
        "patch leases.coordination.k8s.io whetstone-operator",
    ];
    assert_eq!(of(operator, "whetstone"), and(&lease));
    assert_eq!(of("system:serviceaccount:whetstone-agents:whetstone-agent", "whetstone-agents"), [""; 0]);
}

/// The good ones serve, the bad one does not, and the tranche says so.
fn decided(site: &Site) {
    let cluster = &site.cluster;
    until(300, "all blades are decided", || {
        let now = site.phases();
        let refused = now.iter().any(|b| b == "b-001 Quarantined" || b == "b-002 Quarantined");
        assert!(!refused, "a good blade is refused: {now:?}\n{}", site.both_logs());
        if now == ["b-001 Ready", "b-002 Ready", "b-003 Quarantined"] {
            Ok(())
        } else {
            Err((now, site.both_logs()))
        }
    });
    for good in ["b-001", "b-002"] {
        until(30, "a proven blade's node is free", || {
            let node = cluster.node(good);
            if node.taints().is_empty() && !node.unschedulable() { Ok(()) } else { Err(node) }
        });
    }
    let bad = cluster.node("b-003");
    assert!(
        bad.unschedulable() && bad.taints().iter().any(|t| t.starts_with("whetstone.dev/withheld=")),
        "{bad:?}"
    );
    let waited = cluster.kubectl(&["wait", "--for=condition=Ready", "tranche", TRANCHE, "--timeout=60s"]);
    assert!(waited.ok, "{}{}", waited.err, cluster.get(&["tranche", TRANCHE])["status"]);
    let why = site.whet(&["explain", "b-003"]);
    assert!(why.out.contains("gemm") || why.out.contains("wrong"), "{}{}", why.out, why.err);

    site.report();

    // Also the events, which it may write in one namespace only.
    until(30, "the events of the blade are there", || {
        let described = cluster.kubectl(&["describe", "blade", "b-003"]).expect_ok();
        let events = described.split_once("Events:").map_or("", |(_, events)| events);
        if events.contains("Quarantined") { Ok(()) } else { Err(described) }
    });

    // A job that asks for GPUs lands on a proven blade.
    let job = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "customer"},
        "spec": {"containers": [{
            "name": "job", "image": "localhost/whetstone-pause:1", "imagePullPolicy": "Never",
            "resources": {"limits": {"nvidia.com/gpu": 8}},
        }]},
    });
    cluster.kubectl_with(&["create"], &job.to_string()).expect_ok();
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/customer", "--timeout=60s"]).expect_ok();
    let node = cluster.get(&["pod", "customer"])["spec"]["nodeName"].clone();
    assert!(node == "b-001" || node == "b-002", "{node}");
    // Nothing that the operator tries is refused to it.
    let metrics = cluster.kubectl(&["get", "--raw", METRICS]).expect_ok();
    let refused = metrics.lines().find(|l| l.contains("errors_total") && l.contains("forbidden"));
    assert_eq!(refused, None);
}

/// Another setting: the operator starts anew, with its CA and its store; agents go on without joining again.
fn upgrade(site: &Site) {
    let cluster = &site.cluster;
    let (pki, before) =
        (site.pki(), cluster.get(&["pods", "-n", "whetstone"])["items"][0]["metadata"]["uid"].clone());
    let restarts = || {
        let pods = cluster.get(&["pods", "-n", "whetstone-agents"]);
        pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|p| p["metadata"]["uid"].clone())
            .collect::<Vec<_>>()
    };
    let agents = restarts();
    let said = site.helm("upgrade", &["--set", "operator.reportInterval=2s"]);
    assert!(said.ok, "{}{}{}", said.out, said.err, site.logs("whetstone", "whetstone-operator"));
    assert_eq!(site.pki(), pki, "the CA was replaced");
    let after = cluster.get(&["pods", "-n", "whetstone"]);
    assert_ne!(after["items"][0]["metadata"]["uid"], before);
    assert_eq!(restarts(), agents);
    // It knows all blades as before, and hears from them.
    until(60, "the agents report to the new operator", || {
        let said = site.whet(&["blades", "--json"]);
        let history = site.whet(&["explain", "b-001"]);
        if said.ok && history.ok && history.out.contains("Ready") { Ok(()) } else { Err((said, history)) }
    });
    until(60, "all agents are live", || {
        let said = cluster.kubectl(&["get", "--raw", METRICS]);
        if said.out.contains(ALL_LIVE) { Ok(()) } else { Err(site.both_logs()) }
    });
}

/// No node, no blade and no history is changed by an uninstall: what is withheld stays withheld.
fn uninstall(site: &Site) {
    let cluster = &site.cluster;
    let seen = || {
        let mut all: Vec<String> = Vec::new();
        for name in ["infra", "b-001", "b-002", "b-003"] {
            let node = cluster.node(name);
            all.push(format!(
                "{name} {:?} {} {}",
                node.taints(),
                node.unschedulable(),
                node.0["metadata"]["annotations"]
            ));
        }
        all
    };
    // The kubelet's and the controllers' own annotations do not change any more by now.
    let before = seen();
    cluster.helm(&["uninstall", "whetstone", "-n", "whetstone", "--wait", "--timeout", "2m"]).expect_ok();
    assert_eq!(seen(), before);
    assert_eq!(cluster.get(&["blades"])["items"].as_array().map_or(0, Vec::len), BLADES.len());
    assert!(site.pki()["ca.key"].is_string());
    let kinds = "clusterrole,clusterrolebinding,validatingadmissionpolicy,mutatingadmissionpolicy,priorityclass,deployment,daemonset";
    let left =
        cluster.kubectl(&["get", kinds, "-A", "-l", "app.kubernetes.io/part-of=whetstone", "-o", "name"]);
    assert_eq!(left.expect_ok(), "");
    until(60, "its pods are gone", || {
        let pods = cluster
            .kubectl(&["get", "pods", "-A", "-l", "app.kubernetes.io/part-of=whetstone", "-o", "name"])
            .expect_ok();
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    });
}

/// What an uninstall left is taken up: the CA, the store, the blades.
fn install_again(site: &Site) {
    let pki = site.pki();
    let said = site.helm("install", &[]);
    assert!(said.ok, "{}{}{}", said.out, said.err, site.logs("whetstone", "whetstone-operator"));
    assert_eq!(site.pki(), pki, "the CA was replaced");
    until(60, "the history is there", || {
        let said = site.whet(&["explain", "b-003"]);
        if said.ok && said.out.contains("Discovered") { Ok(()) } else { Err(said) }
    });
    until(60, "the agents report without joining again", || {
        let said = site.cluster.kubectl(&["get", "--raw", METRICS]);
        if said.out.contains(ALL_LIVE) { Ok(()) } else { Err(site.both_logs()) }
    });
}
