//! The chart on a cluster of a test's own, with simulated blades: what the tests of it share.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{Cluster, Said, run, until};

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

/// The operator's metrics, through the apiserver.
pub const METRICS: &str = "/api/v1/namespaces/whetstone/services/whetstone-metrics:9443/proxy/metrics";
/// The tranche that is delivered.
pub const TRANCHE: &str = "t-07";

/// A blade that does not exist.
pub struct Blade {
    pub name: String,
    pub serial: String,
}

/// A cluster with nodes that are no blades, images, and settings for the chart.
pub struct Site {
    pub cluster: Cluster,
    programs: PathBuf,
    values: PathBuf,
    images: Vec<String>,
    pub blades: Vec<Blade>,
}

impl Site {
    /// `blades`: their names, and their faults as a scenario has them. `settings` are laid over what every such site needs.
    pub fn up(others: &str, blades: &[(&str, &str)], settings: &Value) -> Site {
        let programs = super::programs();
        let unmanaged = "whetstone.dev/unmanaged=true";
        let cluster = Cluster::up(&["--node-names", others, "--gpus", "0", "--label", unmanaged]);
        let silicon = cluster.scratch().join("blades");
        let blades = make_blades(&silicon, blades);
        let images = make_images(&programs, &cluster.scratch().join("images"));
        let mut all = values(&silicon);
        lay_over(&mut all, settings);
        let values = cluster.scratch().join("values.json");
        fs::write(&values, all.to_string()).unwrap();
        let site = Site { cluster, programs, values, images, blades };
        site.load_images();
        // The operator has to run within the strictest pod security.
        let label = "pod-security.kubernetes.io/enforce=restricted";
        site.cluster.kubectl(&["create", "namespace", "whetstone"]).expect_ok();
        site.cluster.kubectl(&["label", "namespace", "whetstone", label]).expect_ok();
        site
    }

    fn load_images(&self) {
        let images = self.images.iter().map(String::as_str);
        self.cluster.local(&["image", "load"].into_iter().chain(images).collect::<Vec<_>>()).expect_ok();
    }

    pub fn chart() -> String {
        super::deploy().join("chart/whetstone").to_str().unwrap().to_owned()
    }

    pub fn helm(&self, verb: &str, more: &[&str]) -> Said {
        let chart = Site::chart();
        let values = self.values.to_str().unwrap();
        let mut args = vec![verb, "whetstone", &chart, "--namespace", "whetstone", "--values", values];
        args.extend(["--wait", "--timeout", "4m"]);
        args.extend(more);
        self.cluster.helm(&args)
    }

    pub fn whet(&self, args: &[&str]) -> Said {
        run(Command::new(self.programs.join("whet")).args(args).env("KUBECONFIG", self.cluster.kubeconfig()))
    }

    pub fn pki(&self) -> Value {
        self.cluster.get(&["secret", "whetstone-pki", "-n", "whetstone"])["data"].clone()
    }

    /// As the head of the plain manifests says it: a CA of one's own. The file with its certificate.
    pub fn make_pki(&self) -> PathBuf {
        let dir = self.cluster.scratch().join("own-pki");
        run(Command::new(self.programs.join("whetstone-operator"))
            .args(["pki", "init", "--pki-dir"])
            .arg(&dir))
        .expect_ok();
        let from = format!("--from-file={}", dir.display());
        self.cluster
            .kubectl(&["create", "secret", "generic", "whetstone-pki", "-n", "whetstone", &from])
            .expect_ok();
        dir.join("ca.crt")
    }

    /// The tranche's report, signed and whole.
    pub fn report(&self) {
        let out = self.cluster.scratch().join("report");
        let out = out.to_str().unwrap();
        self.whet(&["tranche", "report", TRANCHE, "--out", out]).expect_ok();
        self.whet(&["report", "verify", out]).expect_ok();
    }

    /// Logs of all pods of the kind, for who reads why a test failed.
    pub fn logs(&self, namespace: &str, name: &str) -> String {
        let selector = format!("app.kubernetes.io/name={name}");
        let said = self.cluster.kubectl(&["logs", "-n", namespace, "-l", &selector, "--tail=40", "--prefix"]);
        let pods = self.cluster.kubectl(&["get", "pods", "-n", namespace, "-o", "wide"]);
        format!("{}{}{}", said.out, said.err, pods.out)
    }

    pub fn both_logs(&self) -> String {
        self.logs("whetstone", "whetstone-operator") + &self.logs("whetstone-agents", "whetstone-agent")
    }

    /// As the chart's notes say it: a certificate for a person, in the Secret that `whet` reads.
    pub fn credentials(&self) {
        let (pki, ops) = (self.cluster.scratch().join("pki"), self.cluster.scratch().join("ops"));
        fs::create_dir(&pki).unwrap();
        let data = self.pki();
        for name in ["ca.crt", "ca.key"] {
            let path = format!("jsonpath={{.data.{}}}", name.replace('.', "\\."));
            let encoded = self
                .cluster
                .kubectl(&["get", "secret", "whetstone-pki", "-n", "whetstone", "-o", &path])
                .expect_ok();
            assert_eq!(data[name], encoded);
            let template = format!("go-template={{{{index .data \"{name}\" | base64decode}}}}");
            let text = self
                .cluster
                .kubectl(&["get", "secret", "whetstone-pki", "-n", "whetstone", "-o", &template])
                .expect_ok();
            fs::write(pki.join(name), text).unwrap();
        }
        let url = "https://whetstone-operator.whetstone.svc:8443";
        let mut command = Command::new(self.programs.join("whetstone-operator"));
        command
            .args(["pki", "ops-cert", "--user", "ann", "--url", url, "--pki-dir"])
            .arg(&pki)
            .arg("--out")
            .arg(&ops);
        run(&mut command).expect_ok();
        let from = format!("--from-file={}", ops.display());
        self.cluster
            .kubectl(&["create", "secret", "generic", "whetstone-ops", "-n", "whetstone", &from])
            .expect_ok();
    }

    /// The supplier's list, and the tokens of its blades, before any has come.
    pub fn deliver(&self) {
        let dir = self.cluster.scratch();
        let (manifest, suite, tokens) = (dir.join("t-07.csv"), dir.join("chart.toml"), dir.join("tokens"));
        let rows: Vec<String> = self.blades.iter().map(|b| format!("{},{},r-01", b.serial, b.name)).collect();
        fs::write(&manifest, format!("serial,name,rack\n{}\n", rows.join("\n"))).unwrap();
        fs::write(&suite, SUITE).unwrap();
        let manifest = manifest.to_str().unwrap();
        self.whet(&[
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
            let found = self.cluster.get(&["blades"])["items"].as_array().map_or(0, Vec::len);
            if found == self.blades.len() { Ok(()) } else { Err(self.both_logs()) }
        });
        until(60, "tokens are issued", || {
            let said = self.whet(&["tranche", "tokens", TRANCHE, "--out", tokens.to_str().unwrap()]);
            if said.ok { Ok(()) } else { Err(said) }
        });
        for blade in &self.blades {
            fs::rename(tokens.join(&blade.serial), tokens.join(&blade.name)).unwrap();
        }
        let from = format!("--from-file={}", tokens.display());
        let args = ["create", "secret", "generic", "whetstone-join-tokens", "-n", "whetstone-agents", &from];
        self.cluster.kubectl(&args).expect_ok();
    }

    /// The blades' kubelets register, without any taint of their own.
    pub fn arrive(&self) {
        for blade in &self.blades {
            self.cluster.local(&["node", "add", &blade.name]).expect_ok();
            let node = self.cluster.node(&blade.name);
            assert!(
                node.unschedulable()
                    && node.taints().iter().any(|t| t.starts_with("whetstone.dev/withheld=")),
                "{node:?}"
            );
        }
        self.load_images();
    }

    /// `NAME PHASE` of each blade.
    pub fn phases(&self) -> Vec<String> {
        let blades = self.cluster.get(&["blades"]);
        let items = blades["items"].as_array().into_iter().flatten();
        items
            .map(|b| format!("{} {}", b["metadata"]["name"], b["status"]["phase"]).replace('"', ""))
            .collect()
    }
}

/// Objects are joined, all else is replaced.
fn lay_over(value: &mut Value, over: &Value) {
    match (value, over) {
        (Value::Object(value), Value::Object(over)) => {
            for (key, inner) in over {
                lay_over(value.entry(key).or_insert(Value::Null), inner);
            }
        }
        (value, over) => *value = over.clone(),
    }
}

/// The blades' silicon: a folder for each, with what stands for its sysfs and kernel log; their serials.
fn make_blades(dir: &Path, blades: &[(&str, &str)]) -> Vec<Blade> {
    fs::create_dir_all(dir).unwrap();
    let make = |(name, faults): &(&str, &str)| {
        let scenario = dir.join(format!("{name}.toml"));
        let text = format!("name = \"{name}\"\nsku = \"h100\"\nhbm_backed_mib = 16\n{faults}");
        fs::write(&scenario, text).unwrap();
        let mut command = Command::new(whetstone_suite::whet_sim());
        run(command.args(["blade", "--scenario"]).arg(&scenario).arg("--out").arg(dir.join(name)))
            .expect_ok();
        let serial = fs::read_to_string(dir.join(name).join("root/sys/class/dmi/id/product_serial")).unwrap();
        Blade { name: (*name).to_owned(), serial: serial.trim().to_owned() }
    };
    blades.iter().map(make).collect()
}

/// The images, loaded into the nodes that are there; their files for those that come.
fn make_images(programs: &Path, out: &Path) -> Vec<String> {
    let script = super::deploy().join("images/build.sh");
    let said =
        run(Command::new("bash").arg(script).arg("--bin").arg(programs).arg("--out").arg(out)).expect_ok();
    said.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

/// What every such site needs: quick reports, little reserved, the simulated libraries in place of the driver's.
fn values(silicon: &Path) -> Value {
    json!({
        "imagePullPolicy": "Never",
        "operator": {"reportInterval": "1s", "resources": {"requests": {"cpu": "10m"}}},
        "agent": {
            "interval": "2s",
            "resources": {"requests": {"cpu": "10m"}},
            "driver": {"mode": "hostPath", "path": whetstone_suite::sim_libraries()},
            "extraEnv": [
                {"name": "WHETSTONE_SIM", "value": "/sim/$(NODE_NAME)"},
                {"name": "WHETSTONE_ROOT", "value": "/sim/$(NODE_NAME)/root"},
                {"name": "WHETSTONE_KMSG", "value": "/sim/$(NODE_NAME)/kmsg"},
            ],
            "extraVolumes": [{"name": "sim", "hostPath": {"path": silicon, "type": "Directory"}}],
            "extraVolumeMounts": [{"name": "sim", "mountPath": "/sim"}],
        },
    })
}
