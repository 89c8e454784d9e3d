//! The chart's network policies, read as a network plugin reads them: which pod may speak with which, on which port, and
//! nothing else. The local Kubernetes accepts policies and does not enforce them, so their meaning is worked out here.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests: what fails here is a failed test"
)]

mod deploy;

use std::fs;
use std::process::Command;

use deploy::run;
use serde_json::{Value, json};

/// A pod, as far as policies look at it.
struct Pod {
    namespace: String,
    labels: Value,
    /// By name and number.
    ports: Vec<(String, u64)>,
}

/// Who is at the other end.
enum Peer<'a> {
    Pod(&'a Pod),
    /// Not of the cluster.
    Address(&'a str),
}

struct Rendered(Vec<Value>);

impl Rendered {
    fn with(values: &Value) -> Rendered {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), values.to_string()).unwrap();
        let mut command = Command::new(deploy::helm());
        command.args(["template", "whetstone", "--namespace", "whetstone", "--values"]).arg(file.path());
        let text = run(command.arg(deploy::deploy().join("chart/whetstone"))).expect_ok();
        Rendered::of(&text)
    }

    fn of(text: &str) -> Rendered {
        let documents = text.split("\n---\n").map(|document| serde_norway::from_str(document).unwrap());
        Rendered(documents.filter(|document: &Value| !document.is_null()).collect())
    }

    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |document| document["kind"] == kind)
    }

    /// What a Deployment or a DaemonSet makes.
    fn pod(&self, kind: &str) -> Pod {
        let owner = self.of_kind(kind).next().unwrap_or_else(|| panic!("no {kind}"));
        let template = &owner["spec"]["template"];
        let containers = template["spec"]["containers"].as_array().unwrap();
        let ports = containers.iter().flat_map(|c| c["ports"].as_array().into_iter().flatten());
        let port = |p: &Value| (p["name"].as_str().unwrap().to_owned(), p["containerPort"].as_u64().unwrap());
        Pod {
            namespace: owner["metadata"]["namespace"].as_str().unwrap().to_owned(),
            labels: template["metadata"]["labels"].clone(),
            ports: ports.map(port).collect(),
        }
    }

    fn policies_for(&self, pod: &Pod, direction: &str) -> Vec<&Value> {
        let of = |p: &&Value| {
            let types = p["spec"]["policyTypes"].as_array().unwrap();
            p["metadata"]["namespace"] == pod.namespace.as_str()
                && selects(&p["spec"]["podSelector"], &pod.labels)
                && types.iter().any(|t| t == direction)
        };
        self.of_kind("NetworkPolicy").filter(of).collect()
    }

    /// Whether `pod` may be reached (`Ingress`) or may reach (`Egress`): without any policy everything may, with some what one of
    /// them allows.
    fn lets(&self, direction: &str, pod: &Pod, peer: &Peer<'_>, protocol: &str, port: u64) -> bool {
        let policies = self.policies_for(pod, direction);
        let (rules, peers) = match direction {
            "Ingress" => ("ingress", "from"),
            _ => ("egress", "to"),
        };
        // A port's name is one of the pod that is reached.
        let target = match (direction, peer) {
            ("Ingress", _) => Some(pod),
            (_, Peer::Pod(other)) => Some(*other),
            (_, Peer::Address(_)) => None,
        };
        policies.is_empty()
            || policies.iter().flat_map(|p| p["spec"][rules].as_array().into_iter().flatten()).any(|rule| {
                any(&rule["ports"], |p| is_port(p, target, protocol, port))
                    && any(&rule[peers], |p| is_peer(p, &pod.namespace, peer))
            })
    }
}

/// A list that is not there means everything.
fn any(list: &Value, fits: impl Fn(&Value) -> bool) -> bool {
    list.as_array().is_none_or(|list| list.iter().any(fits))
}

fn selects(selector: &Value, labels: &Value) -> bool {
    assert!(selector.get("matchExpressions").is_none(), "not read here: {selector}");
    selector["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value))
}

fn is_port(port: &Value, target: Option<&Pod>, protocol: &str, number: u64) -> bool {
    let is = match &port["port"] {
        Value::String(name) => target.is_some_and(|pod| pod.ports.contains(&(name.clone(), number))),
        other => other.as_u64() == Some(number),
    };
    is && port["protocol"].as_str().unwrap_or("TCP") == protocol
}

fn is_peer(allowed: &Value, own_namespace: &str, peer: &Peer<'_>) -> bool {
    match peer {
        Peer::Address(address) => match allowed["ipBlock"]["cidr"].as_str() {
            Some("0.0.0.0/0") => true,
            Some(cidr) => {
                cidr.split_once(".0.").is_some_and(|(start, _)| address.starts_with(&format!("{start}.")))
            }
            None => false,
        },
        Peer::Pod(_) if allowed["ipBlock"].is_object() => false,
        Peer::Pod(pod) => {
            let namespaces = match allowed.get("namespaceSelector") {
                None => pod.namespace == own_namespace,
                Some(selector) => selects(selector, &json!({"kubernetes.io/metadata.name": pod.namespace})),
            };
            namespaces && allowed.get("podSelector").is_none_or(|selector| selects(selector, &pod.labels))
        }
    }
}

fn stranger(namespace: &str, labels: Value) -> Pod {
    Pod { namespace: namespace.to_owned(), labels, ports: vec![("http".to_owned(), 80)] }
}

fn both(from: &Pod, to: &Pod, port: u64, chart: &Rendered) -> bool {
    chart.lets("Egress", from, &Peer::Pod(to), "TCP", port)
        && chart.lets("Ingress", to, &Peer::Pod(from), "TCP", port)
}

/// Holds for the chart and for the plain manifests.
fn as_usual(chart: &Rendered) {
    let (operator, agent) = (chart.pod("Deployment"), chart.pod("DaemonSet"));
    let port = |name: &str| {
        operator.ports.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no port {name}")).1
    };
    let (intake, metrics) = (port("intake"), port("http"));
    for pod in [&operator, &agent] {
        for direction in ["Ingress", "Egress"] {
            let policies = chart.policies_for(pod, direction);
            let denies =
                |p: &&&Value| p["spec"].get("ingress").is_none() && p["spec"].get("egress").is_none();
            assert_eq!(policies.iter().filter(denies).count(), 1, "no default: {policies:?}");
        }
    }
    assert!(both(&agent, &operator, intake, chart), "an agent does not reach the operator");
    assert!(!both(&agent, &operator, metrics, chart));
    assert!(!both(&operator, &agent, metrics, chart));

    let tenant = stranger("default", json!({"app.kubernetes.io/name": "whetstone-agent"}));
    let neighbour = stranger(&agent.namespace, json!({"app": "other"}));
    let prometheus = stranger("monitoring", json!({}));
    let reach = |from: &Pod, to: &Pod, port| chart.lets("Ingress", to, &Peer::Pod(from), "TCP", port);
    for port in [intake, metrics] {
        assert!(
            !reach(&tenant, &operator, port),
            "a tenant's pod that calls itself an agent comes in at {port}"
        );
        assert!(!reach(&neighbour, &operator, port), "another pod comes in at {port}");
        assert!(!chart.lets("Ingress", &operator, &Peer::Address("203.0.113.7"), "TCP", port));
    }
    assert!(reach(&prometheus, &operator, metrics) && !reach(&prometheus, &operator, intake));
    assert!(!chart.lets("Ingress", &operator, &Peer::Pod(&prometheus), "UDP", metrics));
    for port in [80, 9444] {
        assert!(!reach(&prometheus, &agent, port) && !reach(&operator, &agent, port));
    }

    let outside = |pod: &Pod, protocol: &str, port| {
        chart.lets("Egress", pod, &Peer::Address("192.0.2.1"), protocol, port)
    };
    assert!(outside(&operator, "TCP", 6443) && outside(&operator, "TCP", 443), "no way to the apiserver");
    assert!(!outside(&operator, "TCP", 80) && !outside(&operator, "TCP", 5432));
    assert!(outside(&agent, "UDP", 53) && !outside(&agent, "TCP", 443) && !outside(&agent, "TCP", 6443));
    assert!(!chart.lets("Egress", &agent, &Peer::Pod(&tenant), "TCP", 80));
    // What is not of Whetstone is none of its policies' business.
    assert!(
        chart.policies_for(&neighbour, "Ingress").is_empty()
            && chart.policies_for(&tenant, "Ingress").is_empty()
    );
}

#[test]
fn agents_reach_the_operator_prometheus_its_metrics_and_nobody_anything_else() {
    as_usual(&Rendered::with(&json!({})));
    let manifests = deploy::deploy().join("manifests/whetstone.yaml");
    as_usual(&Rendered::of(&fs::read_to_string(manifests).unwrap()));
    // In one namespace as in two.
    as_usual(&Rendered::with(&json!({"agent": {"namespace": ""}})));
}

#[test]
fn what_the_values_open_is_open_and_no_more() {
    let chart = Rendered::with(&json!({
        "store": {"kind": "postgres", "postgres": {"urlSecret": "database"}},
        "agent": {"metrics": true, "operatorUrl": "https://blades.site:30443"},
        "networkPolicy": {
            "intakeCIDRs": ["10.0.0.0/8"], "postgres": {"cidrs": ["10.0.0.0/8"]},
            "apiServer": {"cidrs": ["10.0.0.0/8"], "ports": [6443]},
        },
    }));
    let (operator, agent) = (chart.pod("Deployment"), chart.pod("DaemonSet"));
    let prometheus = stranger("monitoring", json!({}));
    let comes_in =
        |address: &str, port| chart.lets("Ingress", &operator, &Peer::Address(address), "TCP", port);
    assert!(comes_in("10.1.2.3", 8443) && !comes_in("192.0.2.1", 8443) && !comes_in("10.1.2.3", 9443));
    assert!(chart.lets("Ingress", &agent, &Peer::Pod(&prometheus), "TCP", 9444));
    assert!(!chart.lets("Ingress", &agent, &Peer::Pod(&operator), "TCP", 9444));
    let goes_out =
        |pod: &Pod, address: &str, port| chart.lets("Egress", pod, &Peer::Address(address), "TCP", port);
    assert!(goes_out(&operator, "10.1.2.3", 5432) && !goes_out(&operator, "192.0.2.1", 5432));
    assert!(goes_out(&operator, "10.1.2.3", 6443) && !goes_out(&operator, "192.0.2.1", 6443));
    assert!(
        chart.lets("Egress", &operator, &Peer::Address("10.1.2.3"), "UDP", 53),
        "the database has a name"
    );
    assert!(goes_out(&agent, "192.0.2.1", 30443) && !goes_out(&agent, "192.0.2.1", 8443));

    let nobody = Rendered::with(&json!({"networkPolicy": {"metricsFrom": []}}));
    assert!(!nobody.lets("Ingress", &nobody.pod("Deployment"), &Peer::Pod(&prometheus), "TCP", 9443));
    let none = Rendered::with(&json!({"networkPolicy": {"enabled": false}}));
    assert_eq!(none.of_kind("NetworkPolicy").count(), 0);
}
