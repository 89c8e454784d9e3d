//! The admission policies on a real apiserver with real kubelets: a node is withheld from the moment it exists, and nobody but who
//! may release blades takes the taint away. Needs root, for the nodes.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests: what fails here is a failed test"
)]

mod deploy;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use deploy::{Cluster, until};

const UNPROVEN: &str = "whetstone.dev/withheld=unproven:NoSchedule";
const CORDONED: &str = "whetstone.dev/cordoned";
const NOTE: &str = "whetstone.dev/withheld-by";

/// What a kubelet would send.
fn node(name: &str, metadata: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}{metadata}}}\nspec: {{{spec}}}\n")
}

/// Four pods that wait for any node, and one on each node that tolerates everything.
const PODS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: customer}
spec:
  replicas: 4
  selector: {matchLabels: {app: customer}}
  template:
    metadata: {labels: {app: customer}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: job, image: "localhost/whetstone-pause:1", imagePullPolicy: Never}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: system}
spec:
  selector: {matchLabels: {app: system}}
  template:
    metadata: {labels: {app: system}}
    spec:
      tolerations: [{operator: Exists}]
      containers: [{name: job, image: "localhost/whetstone-pause:1", imagePullPolicy: Never}]
"#;

/// Follows the customer's pods and keeps each node that one was ever given, however short.
struct Placements {
    watch: Child,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Placements {
    fn follow(cluster: &Cluster) -> Placements {
        let line = r#"jsonpath={.metadata.name}{" "}{.spec.nodeName}{"\n"}"#;
        let mut watch = cluster
            .kubectl_command(&["get", "pods", "-l", "app=customer", "--watch", "-o", line])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let (out, keep) = (watch.stdout.take().unwrap(), Arc::clone(&seen));
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                keep.lock().unwrap().push(line);
            }
        });
        Placements { watch, seen }
    }

    /// Nodes in the order of the placements.
    fn nodes(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter()
            .filter_map(|line| line.split_once(' '))
            .map(|(_, n)| n.to_owned())
            .filter(|n| !n.is_empty())
            .collect()
    }

    fn lines(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

impl Drop for Placements {
    fn drop(&mut self) {
        let _ = self.watch.kill();
        let _ = self.watch.wait();
    }
}

/// One more customer's pod: the scheduler looks at all `nodes` of them for it, and says that it can use none. Those that wait already
/// it does not ask again for a node that changes nothing for them.
fn refused_by_scheduler(cluster: &Cluster, nodes: usize) {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: late, labels: {app: customer}}\nspec: {containers: [{name: job, image: 'localhost/whetstone-pause:1', imagePullPolicy: Never}]}\n";
    cluster.kubectl_with(&["create"], pod).expect_ok();
    let wanted = format!("0/{nodes} nodes are available: {nodes} node(s) were unschedulable");
    until(60, "the scheduler refuses all ready nodes", || {
        let conditions = cluster.get(&["pod", "late"])["status"]["conditions"].to_string();
        if conditions.contains(&wanted) { Ok(()) } else { Err(conditions) }
    });
    cluster.kubectl(&["delete", "pod", "late", "--now"]).expect_ok();
}

fn system_pod_runs(cluster: &Cluster, node: &str) -> Result<(), String> {
    let selector = format!("spec.nodeName={node}");
    let pods = cluster.get(&["pods", "-l", "app=system", "--field-selector", &selector]);
    let phase = &pods["items"][0]["status"]["phase"];
    if phase == "Running" { Ok(()) } else { Err(format!("{phase}")) }
}

/// Both policies apply: a moment after they are created. Leaves a user `ann`, who may do everything to nodes but release them.
fn policies_apply(cluster: &Cluster) {
    cluster
        .kubectl(&["create", "clusterrole", "node-admin", "--verb=*", "--resource=nodes,nodes/status"])
        .expect_ok();
    cluster
        .kubectl(&["create", "clusterrolebinding", "node-admin", "--clusterrole=node-admin", "--user=ann"])
        .expect_ok();
    until(30, "the mutating policy applies", || {
        let made =
            cluster.kubectl_with(&["create", "--dry-run=server", "-o", "json"], &node("probe", "", ""));
        if made.out.contains("whetstone.dev/withheld") { Ok(()) } else { Err(made) }
    });
    cluster.kubectl_with(&["create"], &node("probe", "", "")).expect_ok();
    until(30, "the validating policy applies", || {
        let args = ["taint", "node", "probe", "whetstone.dev/withheld-", "--as=ann", "--dry-run=server"];
        let said = cluster.kubectl(&args);
        if !said.ok && said.err.contains("whetstone-keep-withheld") { Ok(()) } else { Err(said) }
    });
    cluster.kubectl(&["delete", "node", "probe"]).expect_ok();
}

#[test]
fn a_node_is_withheld_from_its_first_moment_until_it_is_released() {
    let cluster = Cluster::up(&["--node-grace", "4s"]);
    cluster.kubectl(&["apply", "-f", deploy::deploy().join("policies").to_str().unwrap()]).expect_ok();
    policies_apply(&cluster);

    objects(&cluster);
    kubelets(&cluster);
    restarted_apiserver(&cluster);
    without_the_mutating_policy(&cluster);
}

/// Node objects made by hand: what is put on them and who may change it.
fn objects(cluster: &Cluster) {
    let create = |text: &str| cluster.kubectl_with(&["create"], text);
    create(&node("plain", "", "")).expect_ok();
    let plain = cluster.node("plain");
    assert_eq!(plain.taints(), [UNPROVEN]);
    assert_eq!((plain.unschedulable(), plain.annotation(CORDONED)), (true, Some("true")));
    assert_eq!(plain.annotation(NOTE), Some("reason=unproven"));

    // A person's cordon, annotation and taints stay theirs; a taint of our name that keeps nobody off does not count.
    create(&node(
        "theirs",
        ", annotations: {a: b}",
        "unschedulable: true, taints: [{key: x, effect: NoExecute}, {key: whetstone.dev/withheld, effect: PreferNoSchedule}]",
    ))
    .expect_ok();
    let theirs = cluster.node("theirs");
    assert_eq!(theirs.taints(), ["whetstone.dev/withheld=:PreferNoSchedule", UNPROVEN, "x=:NoExecute"]);
    assert_eq!((theirs.unschedulable(), theirs.annotation(CORDONED)), (true, None));
    assert_eq!(theirs.annotation("a"), Some("b"));

    // A taint that says more is not replaced, nor doubled.
    create(&node(
        "known",
        "",
        "taints: [{key: whetstone.dev/withheld, value: burning-in, effect: NoSchedule}]",
    ))
    .expect_ok();
    assert_eq!(cluster.node("known").taints(), ["whetstone.dev/withheld=burning-in:NoSchedule"]);

    create(&node("other", ", labels: {whetstone.dev/unmanaged: 'true'}", "")).expect_ok();
    let other = cluster.node("other");
    assert_eq!((other.taints().len(), other.unschedulable(), other.annotation(NOTE)), (0, false, None));

    let as_ann = |args: &[&str]| cluster.kubectl(&[args, &["--as", "ann"]].concat());
    let kept = "is taken away by Whetstone";
    as_ann(&["taint", "node", "plain", "whetstone.dev/withheld-"]).expect_refused(kept);
    as_ann(&["patch", "node", "plain", "--type=merge", "-p", r#"{"spec":{"taints":null}}"#])
        .expect_refused(kept);
    let weaker = r#"{"spec":{"taints":[{"key":"whetstone.dev/withheld","effect":"PreferNoSchedule"}]}}"#;
    as_ann(&["patch", "node", "plain", "--type=merge", "-p", weaker]).expect_refused(kept);
    as_ann(&["label", "node", "plain", "whetstone.dev/unmanaged=true"])
        .expect_refused("out of Whetstone's hands");
    as_ann(&[
        "patch",
        "node",
        "plain",
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"spec":{"taints":null}}"#,
    ])
    .expect_ok();
    assert_eq!(cluster.node("plain").taints(), [UNPROVEN]);
    // What is not ours is still hers.
    as_ann(&["taint", "node", "plain", "hers=yes:NoExecute"]).expect_ok();
    as_ann(&["label", "node", "plain", "a=b"]).expect_ok();
    as_ann(&["taint", "node", "plain", "hers-"]).expect_ok();
    assert_eq!(cluster.node("plain").taints(), [UNPROVEN]);

    // The verb by which the operator may.
    let role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: releaser}\nrules: [{apiGroups: [whetstone.dev], resources: [nodes], verbs: [release]}]\n";
    cluster.kubectl_with(&["apply"], role).expect_ok();
    cluster
        .kubectl(&["create", "clusterrolebinding", "releaser", "--clusterrole=releaser", "--user=ann"])
        .expect_ok();
    until(10, "ann may release", || {
        let said = as_ann(&["taint", "node", "plain", "whetstone.dev/withheld-"]);
        if said.ok { Ok(()) } else { Err(said) }
    });
    assert!(cluster.node("plain").taints().is_empty());
    cluster.kubectl(&["delete", "node", "plain", "theirs", "known", "other"]).expect_ok();
}

/// Real kubelets, with pods that wait for any node before the first one comes.
fn kubelets(cluster: &Cluster) {
    cluster.kubectl_with(&["apply"], PODS).expect_ok();
    until(30, "pods wait", || {
        let pods = cluster.get(&["pods", "-l", "app=customer"]);
        let count = pods["items"].as_array().map_or(0, Vec::len);
        if count == 4 { Ok(()) } else { Err(count) }
    });
    let placements = Placements::follow(cluster);
    until(30, "the watch sees the pods", || {
        if placements.lines() >= 4 { Ok(()) } else { Err(placements.lines()) }
    });

    cluster.local(&["node", "add", "b-001", "--gpus", "0"]).expect_ok();
    cluster.local(&["node", "add", "b-002", "--gpus", "0", "--taint", UNPROVEN]).expect_ok();
    for name in ["b-001", "b-002"] {
        until(60, "the scheduler uses a withheld node for what tolerates it", || {
            system_pod_runs(cluster, name)
        });
        let seen = cluster.node(name);
        assert!(seen.ready(), "{seen:?}");
        assert_eq!((seen.taints(), seen.unschedulable()), (vec![UNPROVEN.to_owned()], true), "{name}");
        assert_eq!(seen.annotation(CORDONED), Some("true"), "{name}");
    }
    refused_by_scheduler(cluster, 2);
    // The taint alone does it, too: an `uncordon` gains nobody a faulty blade.
    cluster.kubectl(&["uncordon", "b-001", "--as=ann"]).expect_ok();
    until(60, "the scheduler goes by the taint", || {
        let pods = cluster.get(&["pods", "-l", "app=customer"]).to_string();
        if pods.contains("untolerated taint") { Ok(()) } else { Err(pods) }
    });
    assert_eq!(placements.nodes(), [""; 0], "a pod was placed on a withheld node");

    // The kubelet itself cannot.
    let as_kubelet = ["--as", "system:node:b-001", "--as-group", "system:nodes"];
    let by_kubelet = |args: &[&str]| cluster.kubectl(&[args, &as_kubelet].concat());
    by_kubelet(&["taint", "node", "b-001", "whetstone.dev/withheld-"])
        .expect_refused("is not allowed to modify taints");
    by_kubelet(&["label", "node", "b-001", "whetstone.dev/unmanaged=true"])
        .expect_refused("out of Whetstone's hands");

    // The node controller's own taints come and go; ours stays through a crash and a restart.
    cluster.local(&["node", "crash", "b-002"]).expect_ok();
    let unreachable = |name: &str| cluster.node(name).all_taints().iter().any(|t| t.contains("unreachable"));
    until(60, "the node controller taints", || {
        if unreachable("b-002") { Ok(()) } else { Err(cluster.node("b-002")) }
    });
    cluster.local(&["node", "restart", "b-002"]).expect_ok();
    until(60, "and takes it back", || if unreachable("b-002") { Err(cluster.node("b-002")) } else { Ok(()) });
    assert_eq!(
        (cluster.node("b-002").taints(), cluster.node("b-002").unschedulable()),
        (vec![UNPROVEN.to_owned()], true)
    );
    assert_eq!(placements.nodes(), [""; 0], "a pod was placed on a withheld node");

    // Released, as the operator does it: in one patch.
    let release = r#"{"spec":{"unschedulable":null,"taints":null},"metadata":{"annotations":{"whetstone.dev/cordoned":null,"whetstone.dev/withheld-by":null}}}"#;
    cluster.kubectl(&["patch", "node", "b-001", "--type=merge", "-p", release]).expect_ok();
    cluster.kubectl(&["rollout", "status", "deployment/customer", "--timeout=60s"]).expect_ok();
    let nodes = placements.nodes();
    assert!(nodes.len() >= 4 && nodes.iter().all(|n| n == "b-001"), "{nodes:?}");
    // A proven blade that boots again is no new Node.
    cluster.local(&["node", "restart", "b-001"]).expect_ok();
    let seen = cluster.node("b-001");
    assert_eq!((seen.taints(), seen.unschedulable()), (vec![], false));
}

/// The first Node that an apiserver lets in after its start is withheld, too.
fn restarted_apiserver(cluster: &Cluster) {
    cluster.local(&["stop", "apiserver"]).expect_ok();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            until(60, "a Node is made", || {
                let made = cluster.kubectl_with(&["create"], &node("early", "", ""));
                if made.ok { Ok(()) } else { Err(made) }
            });
        });
        cluster.local(&["start", "apiserver"]).expect_ok();
        first.join().unwrap();
    });
    assert_eq!(cluster.node("early").taints(), [UNPROVEN]);
    cluster.kubectl(&["delete", "node", "early"]).expect_ok();
}

/// Where Kubernetes has no mutating policies, a kubelet without our taint is not let in.
fn without_the_mutating_policy(cluster: &Cluster) {
    cluster
        .kubectl(&["delete", "mutatingadmissionpolicybinding", "whetstone-withhold-new-nodes"])
        .expect_ok();
    let kubelet = |text: &str| {
        let args = ["create", "--as", "system:node:b-009", "--as-group", "system:nodes"];
        cluster.kubectl_with(&args, text)
    };
    until(30, "a kubelet without our taint is refused", || {
        let said = kubelet(&node("b-009", "", ""));
        if !said.ok && said.err.contains("--register-with-taints=whetstone.dev/withheld=unproven:NoSchedule")
        {
            return Ok(());
        }
        if said.ok {
            cluster.kubectl(&["delete", "node", "b-009"]).expect_ok();
        }
        Err(said)
    });
    kubelet(&node("b-009", "", "taints: [{key: whetstone.dev/withheld, effect: PreferNoSchedule}]"))
        .expect_refused("a blade registers withheld");
    kubelet(&node(
        "b-009",
        "",
        "taints: [{key: whetstone.dev/withheld, value: unproven, effect: NoSchedule}]",
    ))
    .expect_ok();
}
