//! An operator for tests: the wire protocol over TLS in this process, with hooks to misbehave.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use whetstone_model::ids::{BladeName, RunId};
use whetstone_model::wire::{
    BladeFacts, Item, JoinAnswer, JoinRequest, Order, RenewRequest, ReportAnswer, ReportRequest, RunProgress,
    RunResult,
};

pub const TOKEN: &str = "wt-test-token";

/// One call as it came.
pub struct Call<'a> {
    pub path: &'a str,
    pub body: &'a [u8],
}

/// What a hook does instead of answering as an operator should.
pub enum Mischief {
    /// Does nothing and ends the connection.
    Drop,
    /// Does what was asked for and ends the connection before the answer.
    LoseAnswer,
    /// Refuses with this status and code.
    Refuse(u16, &'static str),
    /// Refuses as an operator does that does not know this field.
    Unknown(&'static str),
}

type Hook = Box<dyn FnMut(&Call<'_>) -> Option<Mischief> + Send>;

/// All that the operator knows.
pub struct Books {
    pub tokens: Vec<String>,
    /// Lifetime of the certificates that it gives.
    pub lifetime: Duration,
    pub joins: Vec<JoinRequest>,
    pub renewals: Vec<RenewRequest>,
    /// By stream and seq: stored once.
    pub items: BTreeMap<(String, u64), Item>,
    pub duplicates: usize,
    pub reports: usize,
    pub dropped: u64,
    pub facts: Vec<BladeFacts>,
    pub progress: Vec<RunProgress>,
    pub order: Option<Order>,
    pub results: Vec<RunResult>,
    pub resident: u64,
    /// Public keys of the clients that reported, in the order of their first report.
    pub clients: Vec<Vec<u8>>,
    pub next_report_ms: u64,
    /// The next answer says that what stands has to be said again.
    pub say_again: bool,
    /// What the last report said of the boot, and of what is stored.
    pub boot_id: Option<String>,
    pub acked: Option<u64>,
}

pub struct Operator {
    pub address: SocketAddr,
    pub ca_pem: String,
    books: Arc<Mutex<Books>>,
    hook: Arc<Mutex<Option<Hook>>>,
    away: Arc<AtomicBool>,
}

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "test site");
        let pem = params.self_signed(&key).unwrap().pem();
        Ca { pem, issuer: Issuer::new(params, key) }
    }

    fn client(&self, csr_pem: &str, serial: &str) -> String {
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::OrganizationalUnitName, "agent");
        params.distinguished_name.push(DnType::CommonName, serial);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(&csr.public_key, &self.issuer).unwrap().pem()
    }

    fn server(&self) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
            )
            .unwrap()
    }
}

impl Operator {
    pub fn start() -> Operator {
        let ca = Arc::new(Ca::new());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let books = Arc::new(Mutex::new(Books {
            tokens: vec![TOKEN.to_owned()],
            lifetime: Duration::from_secs(3600),
            joins: Vec::new(),
            renewals: Vec::new(),
            items: BTreeMap::new(),
            duplicates: 0,
            reports: 0,
            dropped: 0,
            facts: Vec::new(),
            progress: Vec::new(),
            order: None,
            results: Vec::new(),
            resident: 0,
            clients: Vec::new(),
            next_report_ms: 1000,
            say_again: false,
            boot_id: None,
            acked: None,
        }));
        let (hook, away) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
        let operator = Operator {
            address,
            ca_pem: ca.pem.clone(),
            books: books.clone(),
            hook: hook.clone(),
            away: away.clone(),
        };
        let config = Arc::new(ca.server());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let desk =
                    Desk { ca: ca.clone(), books: books.clone(), hook: hook.clone(), away: away.clone() };
                let config = config.clone();
                // A connection that breaks is the other side's to notice.
                std::thread::spawn(move || drop(desk.serve(stream, config)));
            }
        });
        operator
    }

    pub fn books<T>(&self, look: impl FnOnce(&mut Books) -> T) -> T {
        look(&mut self.books.lock().unwrap())
    }

    /// Asked before every call from now on.
    pub fn hook(&self, hook: impl FnMut(&Call<'_>) -> Option<Mischief> + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    /// Every connection breaks until it is back.
    pub fn away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    pub fn write_ca(&self, path: &Path) {
        std::fs::write(path, &self.ca_pem).unwrap();
    }
}

pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// One connection's side of the operator.
struct Desk {
    ca: Arc<Ca>,
    books: Arc<Mutex<Books>>,
    hook: Arc<Mutex<Option<Hook>>>,
    away: Arc<AtomicBool>,
}

impl Desk {
    fn serve(&self, stream: TcpStream, config: Arc<ServerConfig>) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        if self.away.load(Ordering::SeqCst) {
            return Ok(());
        }
        let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
        let mut io = BufReader::new(StreamOwned::new(connection, stream));
        loop {
            let mut head = Vec::new();
            let mut line = String::new();
            loop {
                line.clear();
                if io.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                if line.trim().is_empty() {
                    break;
                }
                head.push(line.trim().to_owned());
            }
            let length = head
                .iter()
                .find_map(|h| h.to_lowercase().strip_prefix("content-length:").map(|n| n.trim().to_owned()))
                .map_or(0, |n| n.parse::<usize>().unwrap());
            let mut body = vec![0; length];
            io.read_exact(&mut body)?;
            if self.away.load(Ordering::SeqCst) {
                return Ok(());
            }
            let path = head[0].split(' ').nth(1).unwrap().to_owned();
            let client = io.get_ref().conn.peer_certificates().map(|certificates| {
                let (_, leaf) = x509_parser::parse_x509_certificate(&certificates[0]).unwrap();
                leaf.public_key().subject_public_key.data.to_vec()
            });
            let mischief =
                self.hook.lock().unwrap().as_mut().and_then(|hook| hook(&Call { path: &path, body: &body }));
            let (status, answer) = match mischief {
                Some(Mischief::Drop) => return Ok(()),
                Some(Mischief::Refuse(status, code)) => (status, error(code)),
                Some(Mischief::Unknown(field)) => {
                    let message = format!("body: unknown field `{field}`, expected one of `serial`");
                    (400, json!({"error": {"code": "bad-request", "message": message}}))
                }
                Some(Mischief::LoseAnswer) => {
                    self.answer(&path, &body, client);
                    return Ok(());
                }
                None => self.answer(&path, &body, client),
            };
            let text = if status == 204 { String::new() } else { answer.to_string() };
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", text.len());
            let to = io.get_mut();
            to.write_all(head.as_bytes())?;
            to.write_all(text.as_bytes())?;
            to.flush()?;
        }
    }

    fn answer(&self, path: &str, body: &[u8], client: Option<Vec<u8>>) -> (u16, Value) {
        let mut books = self.books.lock().unwrap();
        match path {
            "/v1/join" => {
                let request: JoinRequest = serde_json::from_slice(body).unwrap();
                books.joins.push(request.clone());
                let before = books.joins.iter().find(|old| old.token == request.token).unwrap();
                if !books.tokens.contains(&request.token) {
                    return (403, error("token-refused"));
                }
                let key = |csr: &str| {
                    CertificateSigningRequestParams::from_pem(csr).unwrap().public_key.der_bytes().to_vec()
                };
                if before.instance != request.instance || key(&before.csr_pem) != key(&request.csr_pem) {
                    return (409, error("identity-conflict"));
                }
                (200, self.certificate(&books, &request.csr_pem, request.serial.as_str()))
            }
            _ if client.is_none() => (403, error("no-certificate")),
            "/v1/renew" => {
                let request: RenewRequest = serde_json::from_slice(body).unwrap();
                books.renewals.push(request.clone());
                let serial = books.joins[0].serial.clone();
                (200, self.certificate(&books, &request.csr_pem, serial.as_str()))
            }
            "/v1/report" => (200, report(&mut books, body, client.unwrap())),
            _ => {
                let text = zstd::decode_all(body).unwrap();
                let result: RunResult = serde_json::from_slice(&text).unwrap();
                assert_eq!(path, format!("/v1/runs/{}/result", result.run));
                let done = |order: &Order| match order {
                    Order::BurnIn(order) => order.run == result.run,
                    Order::CancelRun { run } => *run == result.run,
                };
                books.order.take_if(|order| done(order));
                books.results.push(result);
                (204, Value::Null)
            }
        }
    }

    fn certificate(&self, books: &Books, csr_pem: &str, serial: &str) -> Value {
        let now = now_ms();
        let answer = JoinAnswer {
            blade: BladeName::new("b-001").unwrap(),
            certificate_pem: self.ca.client(csr_pem, serial),
            ca_pem: self.ca.pem.clone(),
            not_before_ms: now - 300_000,
            not_after_ms: now + books.lifetime.as_millis() as i64,
        };
        serde_json::to_value(answer).unwrap()
    }
}

fn report(books: &mut Books, body: &[u8], client: Vec<u8>) -> Value {
    let request: ReportRequest = serde_json::from_slice(body).unwrap();
    assert_eq!(request.instance, books.joins[0].instance);
    assert!(request.items.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    assert!(body.len() <= whetstone_model::wire::MAX_BODY && request.items.len() <= 500);
    if !books.clients.contains(&client) {
        books.clients.push(client);
    }
    books.reports += 1;
    (books.boot_id, books.acked) = (request.boot_id, request.acked);
    books.dropped = request.dropped;
    books.facts.extend(request.facts);
    books.progress.extend(request.run);
    books.resident = request.usage.map_or(0, |usage| usage.resident_bytes);
    let acked = request.items.last().map_or(0, |item| item.seq);
    for item in request.items {
        if books.items.insert((request.stream.clone(), item.seq), item).is_some() {
            books.duplicates += 1;
        }
    }
    let answer = ReportAnswer {
        acked,
        order: books.order.clone(),
        say_again: std::mem::take(&mut books.say_again),
        next_report_ms: books.next_report_ms,
        now_ms: now_ms(),
    };
    serde_json::to_value(answer).unwrap()
}

fn error(code: &str) -> Value {
    json!({"error": {"code": code, "message": "as the test wants it"}})
}

/// The runs of which a result came, in order.
pub fn runs_of(books: &Books) -> Vec<RunId> {
    books.results.iter().map(|result| result.run).collect()
}
