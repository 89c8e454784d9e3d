//! The operator's API for people: mutual TLS, JSON.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use whetstone_model::wire::{ErrorAnswer, ErrorBody};

use super::access::Site;
use super::failure::Failure;
use super::forward;

pub const NAMESPACE: &str = "whetstone";
/// Secret with `ca.crt`, `tls.crt`, `tls.key` and `url`.
pub const SECRET: &str = "whetstone-ops";
/// Folder of the same files, in a site's folder.
pub const FOLDER: &str = "ops";

/// To connect.
const CONNECT: Duration = Duration::from_secs(5);
/// All of one call: a report over thousands of blades takes the operator seconds.
const CALL: Duration = Duration::from_secs(120);
/// Largest answer: an acceptance report with its plots, or a blade's history of years.
const MAX_ANSWER: u64 = 64 << 20;
/// Longest file of the credentials.
const MAX_FILE: u64 = 256 << 10;

/// What is needed to speak with the operator, as text.
struct Credentials {
    ca: String,
    certificate: String,
    key: String,
    url: String,
}

impl Credentials {
    fn read(folder: &Path) -> Result<Credentials, Failure> {
        let file = |name: &str| {
            let path = folder.join(name);
            let bad = |e: std::io::Error| Failure::Credentials(format!("{}: {e}", path.display()));
            if std::fs::metadata(&path).map_err(bad)?.len() > MAX_FILE {
                return Err(Failure::Credentials(format!("{}: too long", path.display())));
            }
            std::fs::read_to_string(&path).map_err(bad)
        };
        Ok(Credentials {
            ca: file("ca.crt")?,
            certificate: file("tls.crt")?,
            key: file("tls.key")?,
            url: file("url")?.trim().to_owned(),
        })
    }

    async fn of_cluster(site: &Site) -> Result<Credentials, Failure> {
        let place = format!("secret {NAMESPACE}/{SECRET}");
        let found = site.namespaced::<Secret>(NAMESPACE).get_opt(SECRET).await;
        let secret = found.map_err(|e| match site.failure(&place, e) {
            denied @ Failure::Denied { .. } => denied,
            reason => Failure::Credentials(format!("{place} cannot be read: {reason}")),
        })?;
        let missing = || {
            Failure::Credentials(format!(
                "the cluster has no {place}, and no folder with credentials was named (--site)"
            ))
        };
        let data = secret.ok_or_else(missing)?.data.unwrap_or_default();
        let text = |key: &str| {
            let bytes = data.get(key).map(|bytes| bytes.0.clone());
            bytes
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(|| Failure::Credentials(format!("{place} has no text {key:?}")))
        };
        Ok(Credentials {
            ca: text("ca.crt")?,
            certificate: text("tls.crt")?,
            key: text("tls.key")?,
            url: text("url")?.trim().to_owned(),
        })
    }
}

/// Always the same address: the end of a forwarded port.
#[derive(Debug)]
struct Fixed(SocketAddr);

impl Resolver for Fixed {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        addresses.push(self.0);
        Ok(addresses)
    }
}

/// The operator. Calls are made from within [`super::wait_for`].
pub struct Ops {
    agent: ureq::Agent,
    base: String,
    /// Replicas behind a forwarded port: each call may reach another one, and one of them leads.
    replicas: usize,
}

impl Ops {
    /// With the files of the site's folder if there are any, else with the cluster's Secret.
    pub async fn connect(site: &Site, folder: Option<&Path>) -> Result<Ops, Failure> {
        let files = folder.map(|dir| dir.join(FOLDER)).filter(|dir| dir.join("url").is_file());
        let credentials = match files {
            Some(dir) => Credentials::read(&dir)?,
            None => Credentials::of_cluster(site).await?,
        };
        let bad_url =
            || Failure::Credentials(format!("url {:?} is not https://HOST[:PORT]", credentials.url));
        let uri: Uri = credentials.url.parse().map_err(|_| bad_url())?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("https")).ok_or_else(bad_url)?.to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let tls = tls(&credentials)?;
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(0)
            // A proxy in the environment is meant for the world outside.
            .proxy(None)
            .user_agent(concat!("whet/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(CALL));
        // The names of services mean something inside of the cluster only.
        let (agent, replicas) = if resolves(&host, port).await {
            (config.build().new_agent(), 1)
        } else {
            let forward = forward::to_operator(site, port).await?;
            // A connection of its own for each call: see `replicas`.
            let config = config.max_idle_connections(0).build();
            let agent = ureq::Agent::with_parts(config, DefaultConnector::new(), Fixed(forward.address));
            (agent, forward.pods)
        };
        let base = credentials.url.trim_end_matches('/').to_owned();
        Ok(Ops { agent, base, replicas })
    }

    /// A call without a body.
    pub async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, Failure> {
        parse(path, self.call(path, None).await?)
    }

    /// A call with one.
    pub async fn post<A: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<A, Failure> {
        parse(path, self.send(path, body).await?)
    }

    /// A call whose answer says nothing but that it was done.
    pub async fn tell(&self, path: &str, body: &impl Serialize) -> Result<(), Failure> {
        self.send(path, body).await.map(|_| ())
    }

    async fn send(&self, path: &str, body: &impl Serialize) -> Result<Vec<u8>, Failure> {
        let body = serde_json::to_vec(body)
            .map_err(|e| Failure::Garbled { path: path.to_owned(), what: e.to_string() })?;
        self.call(path, Some(body)).await
    }

    async fn call(&self, path: &str, body: Option<Vec<u8>>) -> Result<Vec<u8>, Failure> {
        let mut tries = 1;
        loop {
            let (agent, base, path_, body_) =
                (self.agent.clone(), self.base.clone(), path.to_owned(), body.clone());
            // The runtime has to go on meanwhile: it may be what forwards the port.
            let answer = tokio::task::spawn_blocking(move || call(&agent, &base, &path_, body_.as_deref()))
                .await
                .map_err(|e| Failure::OperatorAway { url: self.base.clone(), what: e.to_string() })?;
            match answer {
                // One that does not lead; the connection after it goes to the next.
                Err(Failure::Operator { status: 503, .. }) if tries < self.replicas => tries += 1,
                other => return other,
            }
        }
    }
}

/// Whether a name can be looked up here.
async fn resolves(host: &str, port: u16) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() {
        return true;
    }
    let host = host.to_owned();
    let look = tokio::task::spawn_blocking(move || {
        (host.as_str(), port).to_socket_addrs().is_ok_and(|mut found| found.next().is_some())
    });
    tokio::time::timeout(CONNECT, look).await.is_ok_and(|found| found.unwrap_or(false))
}

fn tls(credentials: &Credentials) -> Result<TlsConfig, Failure> {
    let bad = |what: &str| Failure::Credentials(format!("{what} in the credentials is not as it should be"));
    let certificates = |pem: &str, what: &str| -> Result<Vec<Certificate<'static>>, Failure> {
        let found: Vec<_> = parse_pem(pem.as_bytes())
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if found.is_empty() { Err(bad(what)) } else { Ok(found) }
    };
    let key = PrivateKey::from_pem(credentials.key.as_bytes()).map_err(|_| bad("tls.key"))?;
    let own = ClientCert::new_with_certs(&certificates(&credentials.certificate, "tls.crt")?, key);
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&certificates(&credentials.ca, "ca.crt")?))
        .client_cert(Some(own))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}

fn call(agent: &ureq::Agent, base: &str, path: &str, body: Option<&[u8]>) -> Result<Vec<u8>, Failure> {
    let url = format!("{base}{path}");
    let answer = match body {
        Some(body) => agent.post(&url).content_type("application/json").send(body),
        None => agent.get(&url).call(),
    };
    let away = |e: ureq::Error| Failure::OperatorAway { url: base.to_owned(), what: e.to_string() };
    let mut answer = answer.map_err(away)?;
    let status = answer.status().as_u16();
    let bytes = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec().map_err(away)?;
    if (200..300).contains(&status) {
        return Ok(bytes);
    }
    Err(match serde_json::from_slice::<ErrorAnswer>(&bytes) {
        Ok(ErrorAnswer { error: ErrorBody { code, message, unknown } }) => {
            Failure::Operator { status, code, message, unknown }
        }
        Err(_) => Failure::Operator {
            status,
            code: format!("http {status}"),
            message: super::table::clean(&String::from_utf8_lossy(&bytes)).chars().take(200).collect(),
            unknown: Vec::new(),
        },
    })
}

fn parse<A: DeserializeOwned>(path: &str, bytes: Vec<u8>) -> Result<A, Failure> {
    serde_json::from_slice(&bytes)
        .map_err(|e| Failure::Garbled { path: path.to_owned(), what: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_that_are_missing_or_no_pem_are_said() {
        let dir = tempfile::tempdir().unwrap();
        let error = Credentials::read(dir.path()).err().unwrap().to_string();
        assert!(error.contains("ca.crt"), "{error}");
        for name in ["ca.crt", "tls.crt", "tls.key", "url"] {
            std::fs::write(dir.path().join(name), "https://127.0.0.1:1\n").unwrap();
        }
        let credentials = Credentials::read(dir.path()).unwrap();
        assert_eq!(credentials.url, "https://127.0.0.1:1");
        let error = tls(&credentials).err().unwrap();
        assert!(error.to_string().contains("tls.key") && error.is_operator_away(), "{error}");
    }
}
