//! The parts of a site put together, and what a test asks of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::ClusterResourceScope;
use kube::{Api, Client, Config, Resource};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use whetstone_api::{Blade, Tranche, node};
use whetstone_sim_fleet::{End, Fleet, FleetBlade, Options};
use whetstone_store::{BladeHistory, BladeRow, Store};

use super::cluster::Cluster;
use super::operator::{self, Operator, Settings};
use super::until;

/// How long a simulated burn-in takes.
pub const RUN_TIME: Duration = Duration::from_millis(300);

/// Order matters: the operator ends before its cluster.
pub struct Site {
    pub operators: Vec<Operator>,
    fleets: Mutex<Vec<Arc<Fleet>>>,
    store: OnceLock<Store>,
    pub client: Client,
    pub cluster: Cluster,
    ops: OnceLock<ureq::Agent>,
    pub store_url: String,
    pub dir: tempfile::TempDir,
    pub rt: Runtime,
}

/// The serial of the blade of that name.
pub fn serial(name: &str) -> whetstone_model::ids::Serial {
    format!("SN-{name}").parse().unwrap()
}

/// A line of a manifest.
pub fn listed(name: &str, rack: &str) -> Value {
    json!({ "serial": serial(name).as_str(), "name": name, "rack": rack, "sku": "hgx-h100" })
}

impl Site {
    /// With SQLite and one operator, which runs; short limits, so that what is lost is lost within seconds.
    pub fn up() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}?mode=rwc", dir.path().join("store.db").display());
        let mut site = Site::parts(dir, url, 1, &["--agent-away", "4s", "--run-lost", "4s"]);
        site.operators[0].start(&[]);
        site.operators[0].wait_leading();
        site
    }

    /// All parts, operators not started.
    pub fn parts(dir: tempfile::TempDir, store_url: String, operators: usize, more: &[&str]) -> Site {
        operator::program();
        let cluster = Cluster::up();
        let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
        let client = rt.block_on(async {
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
            Client::try_from(config.unwrap()).unwrap()
        });
        let crds = whetstone_suite::workspace().join("deploy/crds");
        cluster.kubectl(&["apply", "-f", crds.to_str().unwrap()]);
        cluster.kubectl(&["create", "namespace", "whetstone"]);
        cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]);
        let settings = |number: usize| Settings {
            store: store_url.clone(),
            pki: dir.path().join("pki"),
            kubeconfig: cluster.kubeconfig(),
            listen: operator::port(),
            http: operator::port(),
            log: dir.path().join(format!("operator-{number}.log")),
            more: more.iter().map(|&arg| arg.to_owned()).collect(),
        };
        let operators = (0..operators).map(|number| Operator::new(settings(number))).collect();
        Site {
            operators,
            fleets: Mutex::default(),
            store: OnceLock::new(),
            client,
            cluster,
            ops: OnceLock::new(),
            store_url,
            dir,
            rt,
        }
    }

    pub fn operator(&mut self) -> &mut Operator {
        &mut self.operators[0]
    }

    /// Operators that are started from now on have this store.
    pub fn set_store(&mut self, url: &str) {
        self.store_url = url.to_owned();
        self.store = OnceLock::new();
        for operator in &mut self.operators {
            operator.settings.store = url.to_owned();
        }
    }

    /// The store, past the operator.
    pub fn store(&self) -> &Store {
        self.store.get_or_init(|| {
            let url = self.store_url.replace("mode=rwc", "mode=rw");
            self.rt.block_on(Store::open(&url)).unwrap()
        })
    }

    pub fn rows(&self) -> Vec<BladeRow> {
        let rows = self.rt.block_on(self.store().load_site()).unwrap();
        assert!(rows.unreadable.is_empty(), "{:?}", rows.unreadable);
        rows.blades
    }

    pub fn row(&self, name: &str) -> Option<BladeRow> {
        let rows = self.rt.block_on(self.store().load_blades(&[serial(name)])).unwrap();
        rows.blades.into_iter().next()
    }

    #[track_caller]
    pub fn history(&self, name: &str) -> BladeHistory {
        let history = self.rt.block_on(self.store().history(serial(name).as_str())).unwrap();
        history.unwrap_or_else(|| panic!("{name} has no history"))
    }

    fn pki(&self) -> &Path {
        &self.operators[0].settings.pki
    }

    /// A person's way in, through the operator at `number`.
    fn ops(&self) -> &ureq::Agent {
        self.ops.get_or_init(|| {
            let out = self.dir.path().join("ops");
            let made = Command::new(operator::program())
                .args(["pki", "ops-cert", "--user", "test", "--url", "https://localhost", "--pki-dir"])
                .arg(self.pki())
                .arg("--out")
                .arg(&out)
                .output()
                .unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            let read = |name: &str| std::fs::read(out.join(name)).unwrap();
            let own = ClientCert::new_with_certs(
                &[Certificate::from_pem(&read("tls.crt")).unwrap()],
                PrivateKey::from_pem(&read("tls.key")).unwrap(),
            );
            let tls = TlsConfig::builder()
                .root_certs(RootCerts::new_with_certs(&[Certificate::from_pem(&read("ca.crt")).unwrap()]))
                .client_cert(Some(own))
                .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .build();
            ureq::Agent::config_builder()
                .tls_config(tls)
                .http_status_as_error(false)
                .proxy(None)
                .timeout_global(Some(Duration::from_secs(30)))
                .build()
                .into()
        })
    }

    /// A call of the ops API, as JSON; what went wrong otherwise. Asks the operators in turn for the one that leads.
    pub fn ask(&self, path: &str, body: Option<Value>) -> Result<Value, String> {
        let mut last = String::new();
        for operator in &self.operators {
            let url = format!("https://localhost:{}{path}", operator.settings.listen);
            let answer = match &body {
                Some(body) => self.ops().post(&url).send_json(body),
                None => self.ops().get(&url).call(),
            };
            match answer {
                Err(error) => last = error.to_string(),
                Ok(mut answer) => {
                    let text = answer.body_mut().with_config().limit(64 << 20).read_to_string();
                    let text = text.map_err(|e| e.to_string())?;
                    match answer.status().as_u16() {
                        200 => return serde_json::from_str(&text).map_err(|e| e.to_string()),
                        204 => return Ok(Value::Null),
                        status => last = format!("{status} {text}"),
                    }
                }
            }
        }
        Err(last)
    }

    /// Waits until the answer is no error.
    #[track_caller]
    pub fn asked(&self, path: &str, body: Option<Value>) -> Value {
        until(30, path, || self.ask(path, body.clone()))
    }

    /// Join tokens of blades that the operator knows.
    #[track_caller]
    pub fn tokens(&self, names: &[&str]) -> Vec<String> {
        let serials: Vec<_> = names.iter().map(|name| serial(name)).collect();
        let made = self.asked("/v1/ops/tokens", Some(json!({ "serials": serials, "ttl_s": 3600 })));
        let made = made.as_array().unwrap().iter();
        made.map(|token| token["token"].as_str().unwrap().to_owned()).collect()
    }

    /// Starts agents of blades that are on a manifest, with how their burn-ins end, in turn.
    #[track_caller]
    pub fn join(&self, blades: &[(&str, &[End])]) -> Arc<Fleet> {
        self.join_with(blades, RUN_TIME, "", self.operators[0].settings.listen)
    }

    /// [`Site::join`] with another time for a burn-in, other machines, another way to the operator.
    #[track_caller]
    pub fn join_with(
        &self,
        blades: &[(&str, &[End])],
        run_time: Duration,
        machine: &str,
        port: u16,
    ) -> Arc<Fleet> {
        let names: Vec<&str> = blades.iter().map(|(name, _)| *name).collect();
        let tokens = self.tokens(&names);
        let fleet: Vec<FleetBlade> = blades
            .iter()
            .zip(tokens)
            .map(|((name, script), token)| FleetBlade {
                serial: serial(name),
                token,
                script: script.to_vec(),
            })
            .collect();
        self.start_fleet(fleet, run_time, machine, port)
    }

    pub fn start_fleet(
        &self,
        blades: Vec<FleetBlade>,
        run_time: Duration,
        machine: &str,
        port: u16,
    ) -> Arc<Fleet> {
        let operator = format!("127.0.0.1:{port}");
        self.start(
            blades,
            Options { operator, run_time, machine: machine.to_owned(), ..self.fleet_options() },
        )
    }

    /// What fleets of this site have in common.
    pub fn fleet_options(&self) -> Options {
        Options {
            operator: String::new(),
            server_name: "localhost".into(),
            ca_pem: std::fs::read_to_string(self.pki().join("ca.crt")).unwrap(),
            run_time: RUN_TIME,
            report_every: Some(Duration::from_millis(200)),
            gpus: 8,
            sku: "hgx-h100".into(),
            machine: String::new(),
        }
    }

    pub fn start(&self, blades: Vec<FleetBlade>, options: Options) -> Arc<Fleet> {
        let _inside = self.rt.enter();
        let fleet = Arc::new(Fleet::start(options, blades).unwrap());
        self.fleets.lock().unwrap().push(fleet.clone());
        fleet
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
    {
        Api::all(self.client.clone())
    }

    /// Makes a tranche; `spec` without what is the same everywhere.
    #[track_caller]
    pub fn tranche(&self, name: &str, blades: &[Value], more: Value) {
        let mut spec = json!({ "suite": "quick", "blades": blades });
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let object: Tranche = serde_json::from_value(json!({
            "apiVersion": "whetstone.dev/v1alpha1", "kind": "Tranche", "metadata": { "name": name }, "spec": spec,
        }))
        .unwrap();
        until(20, "the tranche is taken", || {
            self.rt.block_on(self.api::<Tranche>().create(&PostParams::default(), &object)).map(drop)
        });
    }

    /// A merge patch of an object's spec.
    #[track_caller]
    pub fn patch<K>(&self, name: &str, spec: Value)
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let patch = Patch::Merge(json!({ "spec": spec }));
        self.rt.block_on(self.api::<K>().patch(name, &PatchParams::default(), &patch)).unwrap();
    }

    pub fn list<K>(&self) -> Result<Vec<K>, kube::Error>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        self.rt.block_on(self.api::<K>().list(&ListParams::default())).map(|list| list.items)
    }

    /// All that an object was since the version `since`, until now.
    #[track_caller]
    pub fn changes<K>(&self, name: &str, since: &str) -> Vec<K>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned
            + 'static,
    {
        self.rt.block_on(async {
            let api = self.api::<K>();
            let last = api.get(name).await.unwrap().meta().resource_version.clone();
            let only = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(10);
            let mut events = std::pin::pin!(api.watch(&only, since).await.unwrap());
            let mut seen = Vec::new();
            while last.as_deref() != Some(since) {
                match events.next().await.expect("the watch ended early").unwrap() {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        let now = object.meta().resource_version.clone();
                        seen.push(object);
                        if now == last {
                            break;
                        }
                    }
                    WatchEvent::Bookmark(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            seen
        })
    }

    #[track_caller]
    pub fn blade(&self, name: &str) -> Blade {
        self.rt.block_on(self.api::<Blade>().get(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// A node as a kubelet registers it: withheld from the first moment. `spec` may say more.
    #[track_caller]
    pub fn node(&self, name: &str, more: Value) {
        let mut spec = json!({
            "unschedulable": true,
            "taints": [{ "key": node::TAINT, "value": node::UNPROVEN, "effect": "NoSchedule" }],
        });
        let mut annotations = json!({ node::CORDONED: "true", node::NOTE: "reason=unproven" });
        if more["person"] == json!(true) {
            // Her cordon was there before ours.
            annotations = json!({});
        }
        if let Some(taint) = more.get("taint") {
            spec["taints"].as_array_mut().unwrap().push(taint.clone());
        }
        let object: Node = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "annotations": annotations }, "spec": spec,
        }))
        .unwrap();
        self.rt.block_on(self.api::<Node>().create(&PostParams::default(), &object)).unwrap();
    }

    #[track_caller]
    pub fn seen_node(&self, name: &str) -> SeenNode {
        let node = self.rt.block_on(self.api::<Node>().get(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        SeenNode::of(&node)
    }

    /// Waits until the objects of all these blades show the phase.
    #[track_caller]
    pub fn wait_phases(&self, seconds: u64, wanted: &[(&str, &str)]) {
        until(seconds, "the blades come to their phases", || {
            let blades = self.list::<Blade>().map_err(|e| vec![e.to_string()])?;
            let wrong: Vec<String> = wanted
                .iter()
                .filter_map(|(name, phase)| {
                    let blade = blades.iter().find(|b| b.metadata.name.as_deref() == Some(name));
                    let status = blade.and_then(|b| b.status.clone()).unwrap_or_default();
                    let is = status.phase.clone().unwrap_or_default();
                    (is != *phase).then(|| {
                        format!(
                            "{name}: {is}, not {phase}: {status:?} {:?}",
                            blade.map(|b| (&b.metadata.generation, &b.spec))
                        )
                    })
                })
                .collect();
            if wrong.is_empty() { Ok(()) } else { Err(wrong) }
        });
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for fleet in self.fleets.lock().into_iter().flat_map(|mut fleets| std::mem::take(&mut *fleets)) {
            fleet.stop();
        }
    }
}

/// What of a node is ours, and what else holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenNode {
    /// Value of our taint.
    pub taint: Option<String>,
    pub cordoned: bool,
    /// The cordon carries our mark.
    pub ours: bool,
    pub note: Option<String>,
    pub blade: Option<String>,
    /// Keys of taints that are neither ours nor Kubernetes' own.
    pub others: Vec<String>,
}

impl SeenNode {
    pub fn of(seen: &Node) -> SeenNode {
        let spec = seen.spec.clone().unwrap_or_default();
        let taints = spec.taints.unwrap_or_default();
        let annotations = seen.metadata.annotations.clone().unwrap_or_default();
        let others = taints.iter().map(|t| t.key.clone());
        SeenNode {
            taint: taints.iter().find(|t| t.key == node::TAINT).and_then(|t| t.value.clone()),
            cordoned: spec.unschedulable.unwrap_or(false),
            ours: annotations.get(node::CORDONED).is_some_and(|v| v == "true"),
            note: annotations.get(node::NOTE).cloned(),
            blade: seen.metadata.labels.as_ref().and_then(|labels| labels.get(node::BLADE)).cloned(),
            others: others.filter(|k| k != node::TAINT && !k.starts_with("node.kubernetes.io/")).collect(),
        }
    }
}
