//! The Helm chart on a real cluster with real kubelets: operator as a Deployment, agents as a DaemonSet with the simulated driver
//! libraries mounted, a tranche accepted there, an upgrade and an uninstall. Needs root, for the nodes.

mod deploy;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use deploy::{Cluster, Said, run, until};
use serde_json::{Value, json};

const TRANCHE: &str = "t-07";
/// Two that are well, and one with a multiplier that gives a wrong bit.
const BLADES: [(&str, &str); 3] = [
    ("b-001", ""),
    ("b-002", ""),
    ("b-003", "[[fault]]\ngpu = 5\nkind = \"sm_flip\"\nsm = 3\nbit = 9\nformat = \"bf16\"\n"),
];
/// What finds that, and little else: this is about the way through the cluster.
const SUITE: &str = r#"
name = "chart"
description = "The way through the cluster, on simulated silicon."
[[test]]
name = "inventory"
kind = "inventory"
budget_s = 20
[[test]]
name = "gemm"
kind = "gpu_gemm"
budget_s = 120
params = { max_k = 64, iterations = 1, blocks_per_sm = 1, min_rounds = 1, fill_budget = false }
"#;

struct Installed {
    cluster: Cluster,
    programs: PathBuf,
    values: PathBuf,
}

impl Installed {
    fn chart() -> String {
        deploy::deploy().join("chart/whetstone").to_str().unwrap().to_owned()
    }

    fn helm(&self, verb: &str, more: &[&str]) -> Said {
        let chart = Installed::chart();
        let values = self.values.to_str().unwrap();
        let mut args = vec![verb, "whetstone", &chart, "--namespace", "whetstone", "--values", values];
        args.extend(["--wait", "--timeout", "4m"]);
        args.extend(more);
        self.cluster.helm(&args)
    }

    fn whet(&self, args: &[&str]) -> Said {
        run(Command::new(self.programs.join("whet")).args(args).env("KUBECONFIG", self.cluster.kubeconfig()))
    }

    fn pki(&self) -> Value {
        self.cluster.get(&["secret", "whetstone-pki", "-n", "whetstone"])["data"].clone()
    }

    /// Logs of all pods of the kind, for who reads why a test failed.
    fn logs(&self, namespace: &str, name: &str) -> String {
        let selector = format!("app.kubernetes.io/name={name}");
        let said = self.cluster.kubectl(&["logs", "-n", namespace, "-l", &selector, "--tail=40", "--prefix"]);
        let pods = self.cluster.kubectl(&["get", "pods", "-n", namespace, "-o", "wide"]);
        format!("{}{}{}", said.out, said.err, pods.out)
    }

    fn both_logs(&self) -> String {
        self.logs("whetstone", "whetstone-operator") + &self.logs("whetstone-agents", "whetstone-agent")
    }
}

/// The blades' silicon: a folder for each, with what stands for its sysfs and kernel log; their serials.
fn make_blades(dir: &Path) -> Vec<(String, String)> {
    fs::create_dir_all(dir).unwrap();
    let make = |(name, faults): &(&str, &str)| {
        let scenario = dir.join(format!("{name}.toml"));
        let text = format!("name = \"{name}\"\nsku = \"h100\"\nsms = 8\nhbm_backed_mib = 16\n{faults}");
        fs::write(&scenario, text).unwrap();
        let mut command = Command::new(whetstone_suite::whet_sim());
        run(command.args(["blade", "--scenario"]).arg(&scenario).arg("--out").arg(dir.join(name)))
            .expect_ok();
        let serial = fs::read_to_string(dir.join(name).join("root/sys/class/dmi/id/product_serial")).unwrap();
        ((*name).to_owned(), serial.trim().to_owned())
    };
    BLADES.iter().map(make).collect()
}

/// The images, loaded into the nodes that are there; their files for those that come.
fn make_images(programs: &Path, out: &Path) -> Vec<String> {
    let script = deploy::deploy().join("images/build.sh");
    let said =
        run(Command::new("bash").arg(script).arg("--bin").arg(programs).arg("--out").arg(out)).expect_ok();
    said.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

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

fn values(cluster: &Cluster, blades: &Path) -> PathBuf {
    let path = cluster.scratch().join("values.json");
    let values = json!({
        "imagePullPolicy": "Never",
        "operator": {"reportInterval": "1s", "resources": {"requests": {"cpu": "10m"}}},
        "store": {"sqlite": {"storageClass": "-"}},
        "agent": {
            "interval": "2s",
            "resources": {"requests": {"cpu": "10m"}},
            "driver": {"mode": "hostPath", "path": whetstone_suite::sim_libraries()},
            "extraEnv": [
                {"name": "WHETSTONE_SIM", "value": "/sim/$(NODE_NAME)"},
                {"name": "WHETSTONE_ROOT", "value": "/sim/$(NODE_NAME)/root"},
                {"name": "WHETSTONE_KMSG", "value": "/sim/$(NODE_NAME)/kmsg"},
            ],
            "extraVolumes": [{"name": "sim", "hostPath": {"path": blades, "type": "Directory"}}],
            "extraVolumeMounts": [{"name": "sim", "mountPath": "/sim"}],
        },
    });
    fs::write(&path, values.to_string()).unwrap();
    path
}

#[test]
fn a_tranche_is_accepted_on_a_cluster_that_the_chart_was_installed_on() {
    let programs = deploy::programs();
    let infra =
        ["--nodes", "1", "--node-names", "infra", "--gpus", "0", "--label", "whetstone.dev/unmanaged=true"];
    let cluster = Cluster::up(6, &infra);
    let blades = cluster.scratch().join("blades");
    let serials = make_blades(&blades);
    let images = make_images(&programs, &cluster.scratch().join("images"));
    let load: Vec<&str> = ["image", "load"].into_iter().chain(images.iter().map(String::as_str)).collect();
    cluster.local(&load).expect_ok();
    make_volume(&cluster);
    let values = values(&cluster, &blades);
    let site = Installed { cluster, programs, values };

    install(&site);
    rights(&site);
    credentials(&site);
    deliver(&site, &serials);
    arrive(&site, &load);
    decided(&site);
    upgrade(&site);
    uninstall(&site);
}

/// The operator runs within the restricted pod security, which the namespace enforces.
fn install(site: &Installed) {
    let cluster = &site.cluster;
    cluster.kubectl(&["create", "namespace", "whetstone"]).expect_ok();
    cluster
        .kubectl(&["label", "namespace", "whetstone", "pod-security.kubernetes.io/enforce=restricted"])
        .expect_ok();
    let said = site.helm("install", &[]);
    assert!(said.ok, "{}{}{}", said.out, said.err, site.logs("whetstone", "whetstone-operator"));
    assert!(said.out.contains("whet tranche create"), "{}", said.out);
    let pods = cluster.get(&["pods", "-n", "whetstone"]);
    let pod = &pods["items"][0];
    assert_eq!(pod["spec"]["nodeName"], "infra");
    assert_eq!(pod["status"]["qosClass"], "Burstable");
    let key = fs::metadata(cluster.scratch().join("store/store.db")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&key), 65532, "the operator runs as root");
    let other =
        cluster.helm(&["install", "second", &Installed::chart(), "-n", "default", "--dry-run=server"]);
    other.expect_refused("whetstone");
}

/// Exactly what the chart lists, as the apiserver answers it.
fn rights(site: &Installed) {
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
    let mut cluster_wide = vec![
        "create blades.whetstone.dev",
        "create burnins.whetstone.dev",
        "create pods/eviction",
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
    assert_eq!(of(operator, "default"), cluster_wide);
    cluster_wide.extend([
        "create leases.coordination.k8s.io",
        "get leases.coordination.k8s.io whetstone-operator",
        "patch leases.coordination.k8s.io whetstone-operator",
    ]);
    cluster_wide.sort_unstable();
    assert_eq!(of(operator, "whetstone"), cluster_wide);
    assert_eq!(of("system:serviceaccount:whetstone-agents:whetstone-agent", "whetstone-agents"), [""; 0]);
}

/// As the chart's notes say it: a certificate for a person, in the Secret that `whet` reads.
fn credentials(site: &Installed) {
    let (pki, ops) = (site.cluster.scratch().join("pki"), site.cluster.scratch().join("ops"));
    fs::create_dir(&pki).unwrap();
    let data = site.pki();
    for name in ["ca.crt", "ca.key"] {
        let path = format!("jsonpath={{.data.{}}}", name.replace('.', "\\."));
        let encoded = site
            .cluster
            .kubectl(&["get", "secret", "whetstone-pki", "-n", "whetstone", "-o", &path])
            .expect_ok();
        assert_eq!(data[name], encoded);
        let template = format!("go-template={{{{index .data \"{name}\" | base64decode}}}}");
        let text = site
            .cluster
            .kubectl(&["get", "secret", "whetstone-pki", "-n", "whetstone", "-o", &template])
            .expect_ok();
        fs::write(pki.join(name), text).unwrap();
    }
    let url = "https://whetstone-operator.whetstone.svc:8443";
    let mut command = Command::new(site.programs.join("whetstone-operator"));
    command
        .args(["pki", "ops-cert", "--user", "ann", "--url", url, "--pki-dir"])
        .arg(&pki)
        .arg("--out")
        .arg(&ops);
    run(&mut command).expect_ok();
    let from = format!("--from-file={}", ops.display());
    site.cluster
        .kubectl(&["create", "secret", "generic", "whetstone-ops", "-n", "whetstone", &from])
        .expect_ok();
}

/// The supplier's list, and the tokens of its blades, before any has come.
fn deliver(site: &Installed, serials: &[(String, String)]) {
    let dir = site.cluster.scratch();
    let (manifest, suite, tokens) = (dir.join("t-07.csv"), dir.join("chart.toml"), dir.join("tokens"));
    let rows: Vec<String> = serials.iter().map(|(name, serial)| format!("{serial},{name},r-01")).collect();
    fs::write(&manifest, format!("serial,name,rack\n{}\n", rows.join("\n"))).unwrap();
    fs::write(&suite, SUITE).unwrap();
    let manifest = manifest.to_str().unwrap();
    site.whet(&[
        "tranche",
        "create",
        TRANCHE,
        "--manifest",
        manifest,
        "--suite-file",
        suite.to_str().unwrap(),
    ])
    .expect_ok();
    until(60, "the blades have objects", || {
        let found = site.cluster.get(&["blades"])["items"].as_array().map_or(0, Vec::len);
        if found == BLADES.len() { Ok(()) } else { Err(site.both_logs()) }
    });
    until(60, "tokens are issued", || {
        let said = site.whet(&["tranche", "tokens", TRANCHE, "--out", tokens.to_str().unwrap()]);
        if said.ok { Ok(()) } else { Err(said) }
    });
    for (name, serial) in serials {
        fs::rename(tokens.join(serial), tokens.join(name)).unwrap();
    }
    let from = format!("--from-file={}", tokens.display());
    let args = ["create", "secret", "generic", "whetstone-join-tokens", "-n", "whetstone-agents", &from];
    site.cluster.kubectl(&args).expect_ok();
}

/// The blades' kubelets register, without any taint of their own.
fn arrive(site: &Installed, load: &[&str]) {
    for (name, _) in BLADES {
        site.cluster.local(&["node", "add", name]).expect_ok();
        let node = site.cluster.node(name);
        assert!(
            node.unschedulable() && node.taints().iter().any(|t| t.starts_with("whetstone.dev/withheld=")),
            "{node:?}"
        );
    }
    site.cluster.local(load).expect_ok();
}

/// The good ones serve, the bad one does not, and the tranche says so.
fn decided(site: &Installed) {
    let cluster = &site.cluster;
    let phases = || -> Vec<String> {
        let blades = cluster.get(&["blades"]);
        let items = blades["items"].as_array().cloned().unwrap_or_default();
        items
            .iter()
            .map(|b| format!("{} {}", b["metadata"]["name"], b["status"]["phase"]).replace('"', ""))
            .collect()
    };
    until(300, "all blades are decided", || {
        let now = phases();
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
    cluster.kubectl(&["wait", "--for=condition=Ready", "tranche", TRANCHE, "--timeout=60s"]).expect_ok();
    let why = site.whet(&["explain", "b-003"]);
    assert!(why.out.contains("gemm") || why.out.contains("wrong"), "{}{}", why.out, why.err);

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
    let logs = site.logs("whetstone", "whetstone-operator");
    assert!(!logs.to_lowercase().contains("forbidden"), "{logs}");
}

/// Another setting: the operator starts anew, with its CA and its store; agents go on without joining again.
fn upgrade(site: &Installed) {
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
    let metrics = "/api/v1/namespaces/whetstone/services/whetstone-metrics:9443/proxy/metrics";
    until(60, "all agents are live", || {
        let said = cluster.kubectl(&["get", "--raw", metrics]);
        let live = r#"whetstone_agents{state="live"} 3"#;
        if said.out.contains(live) {
            Ok(())
        } else {
            Err((
                said.err,
                said.out.lines().filter(|l| l.contains("whetstone_agents")).collect::<Vec<_>>().join("\n"),
            ))
        }
    });
}

/// No node, no blade and no history is changed by an uninstall: what is withheld stays withheld.
fn uninstall(site: &Installed) {
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
    let left = cluster
        .kubectl(&[
            "get",
            "clusterrole,clusterrolebinding,validatingadmissionpolicy,mutatingadmissionpolicy,priorityclass",
            "-o",
            "name",
        ])
        .expect_ok();
    assert!(!left.contains("whetstone"), "{left}");
    until(60, "its pods are gone", || {
        let pods = cluster
            .kubectl(&["get", "pods", "-A", "-l", "app.kubernetes.io/part-of=whetstone", "-o", "name"])
            .expect_ok();
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    });
}
