//! A site for tests: server, store, CA, and agents to speak to it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use rcgen::{CertificateParams, KeyPair};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use whetstone_model::ids::{BladeName, Serial, TrancheName};
use whetstone_model::wire::*;
use whetstone_operator::intake::{self, Intake, News, Poke, ServerLimits, What};
use whetstone_operator::ops::{self, Ops, SiteInfo, TrancheTerms};
use whetstone_operator::pki::{self, SiteCa};
use whetstone_store::{ExpectedBlade, NewToken, Store, StoreOptions};

/// Longest wait for something that is sure to come.
pub const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Heard(Mutex<Vec<(Serial, News)>>);

impl Poke for Heard {
    fn dirty(&self, serial: &Serial, news: News) {
        self.0.lock().unwrap().push((serial.clone(), news));
    }
}

/// What the objects say: one tranche, and a line for every blade.
struct Objects;

impl SiteInfo for Objects {
    fn tranche(&self, name: &TrancheName) -> Option<TrancheTerms> {
        (name.as_str() == "t-07").then(|| TrancheTerms {
            suite: Some("quick".into()),
            fpr: 0.01,
            duplicates: vec![(serial("S999"), TrancheName::new("t-06").unwrap())],
            refused: Vec::new(),
            due_ms: Some(1_800_000_000_000),
        })
    }

    fn explain(&self, serial: &Serial) -> Option<String> {
        Some(format!("{serial} waits for its run"))
    }

    fn breaker(&self) -> whetstone_plan::Breaker {
        whetstone_plan::Breaker { open: true, withheld: 8, wanted: 4, limit: 8 }
    }
}

pub struct Site {
    pub store: Store,
    pub intake: Intake,
    pub dir: tempfile::TempDir,
    pub ca: Arc<SiteCa>,
    pub registry: prometheus::Registry,
    pub url: String,
    pub leading: watch::Sender<bool>,
    pub breaker: watch::Receiver<bool>,
    heard: Arc<Heard>,
    cancel: CancellationToken,
    done: Vec<tokio::task::JoinHandle<()>>,
    // Last: everything above lives in it.
    pub runtime: Runtime,
}

pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

pub fn serial(text: &str) -> Serial {
    Serial::new(text).unwrap()
}

pub fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

impl Site {
    /// With blades `S1` (called `b-1`) to `S<blades>`, in tranche `t-07`, four to a rack.
    pub fn start(blades: usize) -> Site {
        Site::with(blades, intake::Config { flush: Duration::from_millis(100), ..intake::Config::default() })
    }

    pub fn with(blades: usize, config: intake::Config) -> Site {
        Site::with_limits(blades, config, ServerLimits::default())
    }

    pub fn with_limits(blades: usize, config: intake::Config, limits: ServerLimits) -> Site {
        let dir = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let url = format!("sqlite:{}?mode=rwc", dir.path().join("store.db").display());
        // A locked database is told soon, so that the test of it is short.
        let options = StoreOptions { busy: Duration::from_millis(300), ..StoreOptions::default() };
        let store = runtime.block_on(Store::open_with(&url, &options)).unwrap();
        let expected: Vec<ExpectedBlade> = (1..=blades).map(expected).collect();
        runtime.block_on(store.upsert_moving(&expected, &BTreeSet::new(), now_ms())).unwrap();

        let ca = Arc::new(SiteCa::open(dir.path(), true, now_ms()).unwrap());
        let registry = prometheus::Registry::new();
        let metrics = Arc::new(intake::Metrics::new(&registry).unwrap());
        let heard = Arc::new(Heard::default());
        let (leading, is_leading) = watch::channel(true);
        let (breaker_set, breaker) = watch::channel(false);
        let cancel = CancellationToken::new();
        let tls = pki::server_config(
            ca.clone(),
            vec!["localhost".into(), "127.0.0.1".into()],
            config.renew_grace_ms,
        )
        .unwrap();
        let parts = intake::Parts {
            store: store.clone(),
            ca: ca.clone(),
            metrics: metrics.clone(),
            poke: heard.clone(),
            leading: is_leading,
            config,
        };
        let entered = runtime.enter();
        let (intake, writer) = Intake::start(parts, cancel.clone());
        let ops = Ops {
            intake: intake.clone(),
            report_key: pki::report_key(dir.path()).unwrap(),
            site: Arc::new(Objects),
            breaker: breaker_set,
        };
        let app = intake.router().merge(ops::router(ops));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let server = tokio::spawn(intake::serve(listener, tls, app, limits, metrics, cancel.clone()));
        drop(entered);
        let done = vec![server, writer];
        Site { store, intake, dir, ca, registry, url, leading, breaker, heard, cancel, done, runtime }
    }

    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub fn port(&self) -> u16 {
        self.url.rsplit(':').next().unwrap().parse().unwrap()
    }

    /// A token for a blade, `ttl_ms` from now.
    pub fn token(&self, of: &Serial, ttl_ms: i64) -> String {
        let token = format!("wt-{}", hex::encode(rand::random::<[u8; 26]>()));
        let row = NewToken { serial: of.clone(), sha256: sha256(&token) };
        let unknown = self.wait(self.store.new_tokens(&[row], now_ms() + ttl_ms, "test", now_ms())).unwrap();
        assert!(unknown.is_empty());
        token
    }

    /// An agent that has joined.
    pub fn joined(&self, of: &str) -> Agent {
        let mut agent = Agent::new(self, of);
        agent.join(&self.token(&agent.serial, 60_000)).ok();
        agent
    }

    /// A person's client.
    pub fn person(&self) -> ureq::Agent {
        let out = self.dir.path().join("ops");
        pki::ops_cert(&self.ca, "anna", &self.url, &out, now_ms(), 3_600_000).unwrap();
        let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
        client(&read("ca.crt"), Some((&read("tls.crt"), &read("tls.key"))))
    }

    pub fn heard(&self) -> Vec<(String, What)> {
        self.heard.0.lock().unwrap().iter().map(|(serial, news)| (serial.to_string(), news.what)).collect()
    }

    pub fn has_heard(&self, serial: &str, what: What) -> bool {
        self.heard().contains(&(serial.to_owned(), what))
    }

    /// The value of a counter or gauge, or the count of a histogram; 0 if it was never touched.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|f| f.name() == name);
        let fits = |metric: &&prometheus::proto::Metric| {
            labels.iter().all(|(n, v)| metric.get_label().iter().any(|l| l.name() == *n && l.value() == *v))
        };
        family.into_iter().flat_map(|f| f.get_metric()).filter(fits).fold(0.0, |sum, metric| {
            sum + metric.get_counter().get_value()
                + metric.get_gauge().get_value()
                + metric.get_histogram().get_sample_count() as f64
        })
    }

    pub fn refused(&self, reason: &str) -> f64 {
        self.metric("whetstone_evidence_refused_total", &[("reason", reason)])
    }

    /// Waits until something is so.
    pub fn until(&self, what: &str, mut is: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is() {
            assert!(Instant::now() < end, "{what} has not come about");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// True once the audit has a line of this kind that holds `what`.
    pub fn audited(&self, kind: &str, what: &str) -> bool {
        let lines = self.wait(self.store.list_audit(1_000)).unwrap();
        lines.iter().any(|line| line.kind == kind && format!("{} {}", line.who, line.what).contains(what))
    }

    /// Ends the server in order and hands the store back.
    pub fn stop(mut self) -> (Store, Runtime, tempfile::TempDir) {
        self.cancel.cancel();
        for task in self.done.drain(..) {
            self.runtime.block_on(task).unwrap();
        }
        (self.store, self.runtime, self.dir)
    }
}

pub fn expected(number: usize) -> ExpectedBlade {
    ExpectedBlade {
        serial: serial(&format!("S{number}")),
        name: BladeName::new(format!("b-{number}")).unwrap(),
        tranche: Some(TrancheName::new("t-07").unwrap()),
        rack: Some(format!("r-{}", (number - 1) / 4 + 1).parse().unwrap()),
        domain: None,
        sku: Some("hgx-h100".into()),
    }
}

/// A client that trusts `ca`, with or without a certificate.
pub fn client(ca: &str, identity: Option<(&str, &str)>) -> ureq::Agent {
    let roots = [Certificate::from_pem(ca.as_bytes()).unwrap()];
    let certificate = identity.map(|(certificate, key)| {
        let chain = [Certificate::from_pem(certificate.as_bytes()).unwrap()];
        ClientCert::new_with_certs(&chain, PrivateKey::from_pem(key.as_bytes()).unwrap())
    });
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&roots))
        .client_cert(certificate)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    ureq::Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into()
}

/// An answer: status, `Retry-After`, body.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub retry_after: Option<String>,
    pub body: String,
}

impl Answer {
    pub fn of(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answer {
        let mut response = response.expect("an answer");
        Answer {
            status: response.status().as_u16(),
            retry_after: response.headers().get("retry-after").map(|v| v.to_str().unwrap().to_owned()),
            body: response.body_mut().with_config().limit(64 << 20).read_to_string().unwrap(),
        }
    }

    /// The answer to a request that was served.
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.status, 200, "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    #[track_caller]
    pub fn ok(&self) {
        assert!((200..300).contains(&self.status), "{self:?}");
    }

    /// The request was refused with this status and code.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{self:?}");
        let error: ErrorAnswer = serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        assert_eq!(error.error.code, code, "{self:?}");
        assert_eq!(self.retry_after.is_some(), matches!(status, 503 | 429), "{self:?}");
        error.error.message
    }
}

/// One machine that says that it is a blade.
pub struct Agent {
    pub serial: Serial,
    pub instance: String,
    pub stream: String,
    pub url: String,
    pub ca: String,
    pub key: KeyPair,
    pub signer: SigningKey,
    pub http: ureq::Agent,
    pub certificate: Option<JoinAnswer>,
}

pub fn hex_id() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

impl Agent {
    pub fn new(site: &Site, of: &str) -> Agent {
        Agent {
            serial: serial(of),
            instance: hex_id(),
            stream: hex_id(),
            url: site.url.clone(),
            ca: site.ca.pem().to_owned(),
            key: KeyPair::generate().unwrap(),
            signer: SigningKey::from_bytes(&rand::random()),
            http: client(site.ca.pem(), None),
            certificate: None,
        }
    }

    pub fn csr(&self) -> String {
        CertificateParams::default().serialize_request(&self.key).unwrap().pem().unwrap()
    }

    pub fn facts(&self) -> BladeFacts {
        BladeFacts { agent_version: "test".into(), sku: Some("hgx-h100".into()), ..BladeFacts::default() }
    }

    pub fn join_request(&self, token: &str) -> JoinRequest {
        JoinRequest {
            serial: self.serial.clone(),
            token: token.to_owned(),
            csr_pem: self.csr(),
            instance: self.instance.clone(),
            report_key: hex::encode(self.signer.verifying_key().as_bytes()),
            facts: self.facts(),
        }
    }

    /// Joins, and speaks with its certificate from then on.
    pub fn join(&mut self, token: &str) -> Answer {
        let answer = self.post("/v1/join", &self.join_request(token));
        if answer.status == 200 {
            self.take(answer.json());
        }
        answer
    }

    pub fn take(&mut self, certificate: JoinAnswer) {
        self.http = client(&self.ca, Some((&certificate.certificate_pem, &self.key.serialize_pem())));
        self.certificate = Some(certificate);
    }

    pub fn renew(&self) -> Answer {
        self.post("/v1/renew", &RenewRequest { csr_pem: self.csr(), instance: self.instance.clone() })
    }

    pub fn post(&self, path: &str, body: &impl Serialize) -> Answer {
        self.post_bytes(path, &serde_json::to_vec(body).unwrap())
    }

    pub fn post_bytes(&self, path: &str, body: &[u8]) -> Answer {
        let request =
            self.http.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        Answer::of(request.send(body))
    }

    pub fn report(&self, items: Vec<Item>) -> ReportRequest {
        ReportRequest {
            serial: self.serial.clone(),
            instance: self.instance.clone(),
            boot_id: None,
            now_ms: now_ms(),
            stream: self.stream.clone(),
            spooled: items.len() as u64,
            items,
            acked: None,
            dropped: 0,
            facts: None,
            run: None,
            usage: None,
        }
    }

    pub fn send(&self, report: &ReportRequest) -> Answer {
        self.post("/v1/report", report)
    }

    pub fn put_result(&self, run: i64, body: &[u8]) -> Answer {
        let request = self
            .http
            .put(format!("{}/v1/runs/{run}/result", self.url))
            .header("content-type", "application/json")
            .header("content-encoding", "zstd");
        Answer::of(request.send(body))
    }
}

pub fn note(seq: u64, text: &str) -> Item {
    Item { seq, at_ms: now_ms(), body: ItemBody::Note { text: text.into() } }
}

pub fn fault(code: &str) -> whetstone_model::evidence::Finding {
    whetstone_model::evidence::Finding {
        code: code.into(),
        device: Some(whetstone_model::device::DeviceId::new("GPU-5").unwrap()),
        severity: whetstone_model::action::Severity::Fault,
        action: whetstone_model::action::Action::Replace,
        detail: format!("{code} was seen"),
        reading: None,
    }
}

pub fn appeared(seq: u64, code: &str) -> Item {
    Item { seq, at_ms: now_ms(), body: ItemBody::Appeared { finding: fault(code) } }
}

pub fn cleared(seq: u64, code: &str) -> Item {
    Item { seq, at_ms: now_ms(), body: ItemBody::Cleared { finding: fault(code) } }
}

pub fn write_files(dir: &Path, files: &std::collections::BTreeMap<String, String>) {
    for (name, text) in files {
        std::fs::write(dir.join(name), text).unwrap();
    }
}
