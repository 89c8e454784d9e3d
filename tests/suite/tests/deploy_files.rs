//! The files of `deploy/` without a cluster: what is generated is current, wrong values get a sentence, nothing is pulled that is not
//! named, every container is bounded and confined, images are the same bytes each time.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests: what fails here is a failed test"
)]

mod deploy;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use deploy::{Said, run};
use serde_json::{Value, json};

fn chart() -> PathBuf {
    deploy::deploy().join("chart/whetstone")
}

fn template(more: &[&str]) -> Said {
    run(Command::new(deploy::helm())
        .args(["template", "whetstone", "--namespace", "whetstone"])
        .arg(chart())
        .args(more))
}

fn documents(text: &str) -> Vec<Value> {
    let parsed = text.split("\n---\n").map(|document| serde_norway::from_str(document).unwrap());
    parsed.filter(|document: &Value| !document.is_null()).collect()
}

fn rendered(values: &Value) -> Vec<Value> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), values.to_string()).unwrap();
    documents(&template(&["--values", file.path().to_str().unwrap()]).expect_ok())
}

fn find<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is = |d: &&Value| d["kind"] == kind && d["metadata"]["name"] == name;
    documents.iter().find(is).unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn pod_specs(documents: &[Value]) -> Vec<&Value> {
    documents
        .iter()
        .map(|d| &d["spec"]["template"]["spec"])
        .filter(|spec| spec["containers"].is_array())
        .collect()
}

/// All values of a key, at any depth.
fn gather<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(name, inner)| {
            if name == key {
                found.push(inner);
            }
            gather(inner, key, found);
        }),
        Value::Array(list) => list.iter().for_each(|inner| gather(inner, key, found)),
        _ => {}
    }
}

/// As many settings at once as go together.
fn everything() -> Value {
    json!({
        "imagePullSecrets": ["one"],
        "admission": {"kubeletsMayRegisterUnmanaged": false},
        "operator": {
            "replicas": 2, "serverNames": ["blades.site"], "extraArgs": ["--identity=x"], "extraEnv": [{"name": "A", "value": "b"}],
            "extraVolumes": [{"name": "v", "emptyDir": {}}], "extraVolumeMounts": [{"name": "v", "mountPath": "/v"}],
            "tolerations": [{"key": "whetstone.dev/withheld", "operator": "Exists"}], "podLabels": {"a": "b"},
            "service": {"type": "NodePort", "nodePort": 30443},
        },
        "store": {"kind": "postgres", "postgres": {"urlSecret": "database"}},
        "pki": {"existingSecret": "mine", "caCertificate": "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"},
        "agent": {
            "metrics": true, "operatorUrl": "https://blades.site:8443", "driver": {"mode": "runtimeClass"},
            "extraEnv": [{"name": "WHETSTONE_ROOT", "value": "/other"}], "podAnnotations": {"c": "d"}, "nodeSelector": {"e": "f"},
        },
        "metrics": {"podMonitor": {"enabled": true}},
        "networkPolicy": {"intakeCIDRs": ["10.0.0.0/8"]},
    })
}

#[test]
fn generated_files_are_current() {
    let scratch = tempfile::tempdir().unwrap();
    let script = deploy::deploy().join("render.sh");
    run(Command::new("bash").arg(script).arg(scratch.path()).env("HELM", deploy::helm())).expect_ok();
    let mut compared = 0;
    let mut folders = vec![scratch.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(scratch.path()).unwrap();
            let here = fs::read_to_string(deploy::deploy().join(name)).unwrap_or_default();
            assert!(
                here == fs::read_to_string(&path).unwrap(),
                "{} is not current: run deploy/render.sh",
                name.display()
            );
            compared += 1;
        }
    }
    // Three kinds, the policies, the manifests; and none that is no source any more.
    assert_eq!(compared, 5);
    assert_eq!(fs::read_dir(chart().join("files/crds")).unwrap().count(), 3);
}

#[test]
fn the_chart_has_no_slips() {
    let said = run(Command::new(deploy::helm()).args(["lint", "--quiet"]).arg(chart())).expect_ok();
    assert!(!said.contains("[ERROR]"), "{said}");
    let version = env!("CARGO_PKG_VERSION");
    let about: Value =
        serde_norway::from_str(&fs::read_to_string(chart().join("Chart.yaml")).unwrap()).unwrap();
    assert_eq!((about["appVersion"].as_str(), about["version"].as_str()), (Some(version), Some(version)));
}

#[test]
fn wrong_values_are_refused_with_a_sentence() {
    let cases = [
        ("operator.replicas=2", "store.kind is sqlite, which is one file of one process"),
        ("operator.replicas=two", "/operator/replicas"),
        ("operator.replicas=0", "/operator/replicas"),
        ("operator.replica=2", "additional properties 'replica' not allowed"),
        ("operator.reportInterval=10x", "operator.reportInterval is \"10x\": a whole number with its unit"),
        ("operator.service.nodePort=30000", "operator.service.type is ClusterIP"),
        (
            "images.agent=whetstone-agent",
            "images.agent is \"whetstone-agent\": name an image with a tag or a digest",
        ),
        ("images.third=x:1", "additional properties 'third' not allowed"),
        ("imagePullPolicy=Sometimes", "/imagePullPolicy"),
        ("store.kind=mysql", "'sqlite', 'postgres'"),
        ("store.kind=postgres", "store.postgres.urlSecret does not name the Secret"),
        ("store.sqlite.volume=hostPath", "store.sqlite.hostPath does not name the folder"),
        ("store.sqlite.hostPath=/x", "store.sqlite.volume is pvc"),
        ("pki.caCertificate=x", "/pki/caCertificate"),
        ("agent.operatorUrl=http://x", "agent.operatorUrl is \"http://x\": https://HOST"),
        ("agent.stateDir=var", "/agent/stateDir"),
        ("networkPolicy.apiServer.ports={0}", "/networkPolicy/apiServer/ports"),
    ];
    for (set, says) in cases {
        template(&["--set", set]).expect_refused(says);
    }
}

#[test]
fn nothing_is_pulled_that_the_values_do_not_name() {
    let values: Value =
        serde_norway::from_str(&fs::read_to_string(chart().join("values.yaml")).unwrap()).unwrap();
    let named: BTreeSet<&str> =
        values["images"].as_object().unwrap().values().filter_map(Value::as_str).collect();
    for values in [json!({}), everything(), json!({"imagePullPolicy": "Never"})] {
        let documents = rendered(&values);
        let (mut images, mut policies) = (Vec::new(), Vec::new());
        for spec in pod_specs(&documents) {
            gather(spec, "image", &mut images);
            gather(spec, "imagePullPolicy", &mut policies);
        }
        assert_eq!(images.iter().filter_map(|i| i.as_str()).collect::<BTreeSet<_>>(), named);
        let policy = values["imagePullPolicy"].as_str().unwrap_or("IfNotPresent");
        assert!(policies.len() == images.len() && policies.iter().all(|p| *p == policy), "{policies:?}");
    }
}

#[test]
fn pods_are_bounded_and_confined() {
    for values in [json!({}), everything()] {
        let documents = rendered(&values);
        assert_eq!(pod_specs(&documents).len(), 2);
        let operator = &find(&documents, "Deployment", "whetstone-operator")["spec"]["template"]["spec"];
        assert_eq!(operator["securityContext"]["runAsNonRoot"], true);
        assert_eq!(operator["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let container = &operator["containers"][0];
        let confined = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}});
        assert_eq!(container["securityContext"], confined);
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert_eq!(container[probe]["httpGet"]["port"], "http", "{probe}");
        }
        assert!(container["resources"]["limits"]["memory"].is_string());
        let mut host = Vec::new();
        gather(operator, "hostPath", &mut host);
        assert_eq!(host, [&Value::Null; 0], "the operator uses the host's files");

        let agent = &find(&documents, "DaemonSet", "whetstone-agent")["spec"]["template"]["spec"];
        assert_eq!(agent["automountServiceAccountToken"], false);
        assert_eq!(
            (&agent["hostNetwork"], &agent["hostPID"], &agent["hostIPC"]),
            (&Value::Null, &json!(false), &Value::Null)
        );
        assert!(agent["containers"][0]["resources"]["requests"]["memory"].is_string());
        // Everything of the host is read-only but devices and its own state.
        let mounts = agent["containers"][0]["volumeMounts"].as_array().unwrap();
        for volume in agent["volumes"].as_array().unwrap().iter().filter(|v| v["hostPath"].is_object()) {
            let mount = mounts.iter().find(|m| m["name"] == volume["name"]).unwrap();
            let writes = volume["name"] == "dev" || volume["name"] == "state";
            assert_eq!(mount["readOnly"].as_bool().unwrap_or_default(), !writes, "{volume}");
        }
        let env = agent["containers"][0]["env"].as_array().unwrap();
        let names: BTreeSet<&str> = env.iter().filter_map(|e| e["name"].as_str()).collect();
        assert_eq!(names.len(), env.len(), "a variable is set twice: {env:?}");
    }
}

#[test]
fn more_than_one_replica_survives_a_drain() {
    let documents = rendered(&everything());
    let deployment = find(&documents, "Deployment", "whetstone-operator");
    assert_eq!(
        (&deployment["spec"]["replicas"], &deployment["spec"]["strategy"]["type"]),
        (&json!(2), &json!("RollingUpdate"))
    );
    let budget = find(&documents, "PodDisruptionBudget", "whetstone-operator");
    assert_eq!(budget["spec"]["minAvailable"], 1);
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    for (name, value) in budget["spec"]["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(&labels[name], value);
    }
    let spec = &deployment["spec"]["template"]["spec"];
    let apart = &spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0];
    assert_eq!(apart["podAffinityTerm"]["topologyKey"], "kubernetes.io/hostname");
    // A password is in no argument.
    let args = spec["containers"][0]["args"].to_string();
    assert!(args.contains("--leader-elect") && !args.contains("--store"), "{args}");
    // One file, one process.
    let one = rendered(&json!({}));
    assert_eq!(find(&one, "Deployment", "whetstone-operator")["spec"]["strategy"]["type"], "Recreate");
}

#[test]
fn plain_manifests_hold_no_secret() {
    let manifests = fs::read_to_string(deploy::deploy().join("manifests/whetstone.yaml")).unwrap();
    assert!(!manifests.contains("PRIVATE KEY") && !manifests.contains("kind: Secret"));
    let documents = documents(&manifests);
    assert!(documents.iter().all(|d| d["metadata"]["name"].is_string()));
    find(&documents, "ValidatingAdmissionPolicy", "whetstone-keep-withheld");
    find(&documents, "CustomResourceDefinition", "blades.whetstone.dev");
}

#[test]
fn images_are_the_same_bytes_each_time_and_named_as_in_the_values() {
    let scratch = tempfile::tempdir().unwrap();
    let bin = scratch.path().join("bin");
    fs::create_dir(&bin).unwrap();
    // Any program that needs shared libraries will do.
    for name in ["whetstone-operator", "whetstone-agent"] {
        fs::copy(std::env::current_exe().unwrap(), bin.join(name)).unwrap();
    }
    deploy::local_program("whet-local");
    let build = |out: &Path| {
        let script = deploy::deploy().join("images/build.sh");
        run(Command::new("bash").arg(script).arg("--bin").arg(&bin).arg("--out").arg(out)).expect_ok()
    };
    let (first, second) = (scratch.path().join("1"), scratch.path().join("2"));
    let said = build(&first);
    build(&second);
    let values: Value =
        serde_norway::from_str(&fs::read_to_string(chart().join("values.yaml")).unwrap()).unwrap();
    for (kind, line) in ["operator", "agent"].iter().zip(said.lines()) {
        let (name, file) = line.split_once(' ').unwrap();
        assert_eq!(values["images"][kind], name);
        let file = Path::new(file);
        assert!(
            fs::read(file).unwrap() == fs::read(second.join(file.file_name().unwrap())).unwrap(),
            "{line}"
        );
        let listed = run(Command::new("tar").arg("-tf").arg(file)).expect_ok();
        assert!(listed.contains("index.json") && listed.contains("oci-layout"), "{listed}");
    }
    let script = deploy::deploy().join("images/build.sh");
    run(Command::new("bash").arg(script).args(["--bin", "/nowhere"]))
        .expect_refused("/nowhere/whetstone-operator is not there");
}
