//! HTTP/1.1 over TLS, one connection for each agent, kept open.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::Options;

const CALL: Duration = Duration::from_secs(30);
const MAX_ANSWER: usize = 1 << 20;

/// What all connections share.
#[derive(Clone)]
pub struct Tls {
    roots: Arc<RootCertStore>,
    name: ServerName<'static>,
    addresses: Arc<[String]>,
    /// The one that answered last; all go on from it together.
    at: Arc<AtomicUsize>,
}

impl Tls {
    pub fn new(options: &Options) -> anyhow::Result<Tls> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(options.ca_pem.as_bytes()) {
            roots.add(certificate?)?;
        }
        let name = ServerName::try_from(options.server_name.clone()).context("server name")?;
        let addresses: Arc<[String]> = options.operator.split(',').map(str::to_owned).collect();
        Ok(Tls { roots: Arc::new(roots), name, addresses, at: Arc::default() })
    }

    /// With a certificate, or without for joining.
    pub fn config(&self, identity: Option<(&str, &str)>) -> anyhow::Result<Arc<ClientConfig>> {
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots.clone());
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain =
                    CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>()?;
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?
            }
        };
        Ok(Arc::new(config))
    }
}

/// One agent's connection.
pub struct Client {
    tls: Tls,
    config: Arc<ClientConfig>,
    open: Option<SendRequest<Full<Bytes>>>,
    at: usize,
}

impl Client {
    pub fn new(tls: Tls, config: Arc<ClientConfig>) -> Client {
        let at = tls.at.load(Ordering::Relaxed);
        Client { tls, config, open: None, at }
    }

    fn address(&self) -> String {
        // Never empty: a text that is split has a part.
        self.tls.addresses.get(self.at % self.tls.addresses.len().max(1)).cloned().unwrap_or_default()
    }

    /// One call. An error is one of the connection; whatever the server says is an answer.
    pub async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        packed: bool,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let at = self.tls.at.load(Ordering::Relaxed);
        if at != self.at {
            self.open = None;
            self.at = at;
        }
        let answer = tokio::time::timeout(CALL, self.try_call(method, path, body, packed)).await;
        if !matches!(&answer, Ok(Ok((status, _))) if *status != StatusCode::SERVICE_UNAVAILABLE) {
            let _ = self.tls.at.compare_exchange(at, at + 1, Ordering::Relaxed, Ordering::Relaxed);
        }
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                self.open = None;
                Err(error)
            }
            Err(_) => {
                self.open = None;
                bail!("no answer within {} s", CALL.as_secs())
            }
        }
    }

    async fn try_call(
        &mut self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        packed: bool,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let address = self.address();
        if self.open.as_ref().is_none_or(SendRequest::is_closed) {
            self.open = Some(self.connect().await?);
        }
        let Some(open) = self.open.as_mut() else { bail!("not connected") };
        open.ready().await?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", address)
            .header("content-type", "application/json");
        if packed {
            request = request.header("content-encoding", "zstd");
        }
        let answer = open.send_request(request.body(Full::new(Bytes::from(body)))?).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        Ok((status, body.map_err(|e| anyhow::anyhow!("{e}"))?.to_bytes()))
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let tcp = TcpStream::connect(self.address()).await?;
        tcp.set_nodelay(true)?;
        let stream = TlsConnector::from(self.config.clone()).connect(self.tls.name.clone(), tcp).await?;
        let (send, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends with its connection.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(send)
    }
}
