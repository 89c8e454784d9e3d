//! Calls to the operator: HTTP with TLS, every one of them bounded in time and size.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use whetstone_model::wire::{ErrorAnswer, MAX_BODY, error_code};

/// To look up a name and to connect. An operator in the same site answers in milliseconds.
const CONNECT: Duration = Duration::from_secs(5);
/// All of one call: an answer takes milliseconds, and an agent that is told to stop waits for the call to end.
const CALL: Duration = Duration::from_secs(15);
/// All of the upload of a result: a little longer than the operator takes for one (16 MiB at 64 KiB/s), which says what is wrong.
const UPLOAD: Duration = Duration::from_secs(330);
/// Longest wait that an operator may ask for.
pub const MAX_WAIT: Duration = Duration::from_secs(600);

/// Where the operator is: `https://HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorUrl(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("operator {0:?} is not https://HOST[:PORT]")]
pub struct BadUrl(String);

impl std::str::FromStr for OperatorUrl {
    type Err = BadUrl;
    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let bad = || BadUrl(text.chars().take(200).collect());
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let plain =
            uri.scheme_str() == Some("https") && matches!(uri.path(), "" | "/") && uri.query().is_none();
        match uri.authority() {
            Some(authority) if plain && !authority.as_str().contains('@') && !authority.host().is_empty() => {
                Ok(Self(format!("https://{authority}")))
            }
            _ => Err(bad()),
        }
    }
}

impl std::fmt::Display for OperatorUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a call gave no answer that helps.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Not reached, or the connection broke. The call may have had its effect.
    #[error("operator not reached: {0}")]
    NotReached(String),
    #[error("no answer in time ({0})")]
    Timeout(String),
    /// The operator's certificate is not one of the site's CA, or not for this name, or not valid now.
    #[error("operator's certificate is not trusted: {0}; this blade's clock says {1}")]
    Untrusted(String, String),
    /// The operator does not take ours.
    #[error("operator does not take this agent's certificate: {0}")]
    CertificateRefused(String),
    /// Reached, understood, refused.
    #[error("{status} {code}: {message}")]
    Refused { status: u16, code: String, message: String, retry_after: Option<Duration> },
    /// An answer that cannot be understood.
    #[error("answer {status} cannot be understood: {what}")]
    Garbled { status: u16, what: String },
    /// Certificate, key or CA on this side have no readable form.
    #[error("{0}")]
    Material(String),
}

impl CallError {
    /// For metrics: one of a few words.
    pub fn category(&self) -> &'static str {
        match self {
            CallError::NotReached(_) => "not_reached",
            CallError::Timeout(_) => "timeout",
            CallError::Untrusted(..) => "untrusted",
            CallError::CertificateRefused(_) => "certificate_refused",
            CallError::Refused { status: 503, .. } => "unavailable",
            CallError::Refused { .. } => "refused",
            CallError::Garbled { .. } => "garbled",
            CallError::Material(_) => "material",
        }
    }

    /// The operator's code, if it refused.
    pub fn code(&self) -> Option<&str> {
        match self {
            CallError::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    /// How long the operator asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            CallError::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The request itself is at fault: sending the same again is no use.
    pub fn is_bad_request(&self) -> bool {
        match self {
            CallError::Refused { status, code, .. } => {
                code == error_code::BAD_REQUEST || matches!(status, 400 | 413 | 422)
            }
            _ => false,
        }
    }

    /// The operator is of an earlier version, and says which field it does not know.
    pub fn is_unknown_field(&self) -> bool {
        matches!(self, CallError::Refused { status: 400, message, .. } if message.contains("unknown field"))
    }

    fn of(error: ureq::Error) -> CallError {
        let text = error.to_string();
        match error {
            ureq::Error::Timeout(which) => CallError::Timeout(which.to_string()),
            ureq::Error::Rustls(tls) => CallError::of_tls(&tls),
            ureq::Error::Io(io) => match io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
            {
                Some(tls) => CallError::of_tls(tls),
                None => CallError::NotReached(text),
            },
            ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => {
                CallError::Garbled { status: 0, what: text }
            }
            ureq::Error::Pem(_) => CallError::Material(text),
            _ => CallError::NotReached(text),
        }
    }

    fn of_tls(error: &rustls::Error) -> CallError {
        use rustls::AlertDescription::*;
        match error {
            rustls::Error::InvalidCertificate(why) => {
                CallError::Untrusted(format!("{why:?}"), jiff::Timestamp::now().to_string())
            }
            rustls::Error::AlertReceived(
                alert @ (BadCertificate
                | UnsupportedCertificate
                | CertificateRevoked
                | CertificateExpired
                | CertificateUnknown
                | UnknownCA
                | AccessDenied
                | CertificateRequired
                | DecryptError),
            ) => CallError::CertificateRefused(format!("{alert:?}")),
            other => CallError::NotReached(other.to_string()),
        }
    }
}

/// The operator, with or without a certificate of our own.
#[derive(Debug, Clone)]
pub struct Client {
    agent: ureq::Agent,
    base: OperatorUrl,
}

impl Client {
    /// `roots` are PEM texts of the site's CA; `own` is this agent's certificate and key, PEM.
    pub fn new(base: &OperatorUrl, roots: &[&str], own: Option<(&str, &str)>) -> Result<Client, CallError> {
        let mut trusted = Vec::new();
        for pem in roots {
            trusted.extend(certificates(pem)?);
        }
        let own = match own {
            Some((certificate, key)) => {
                let key = PrivateKey::from_pem(key.as_bytes())
                    .map_err(|_| CallError::Material("the agent's key is no private key in PEM".into()))?;
                Some(ClientCert::new_with_certs(&certificates(certificate)?, key))
            }
            None => None,
        };
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&trusted))
            .client_cert(own)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(0)
            // A proxy in the environment is meant for the world outside, not for the site's own operator.
            .proxy(None)
            .user_agent(concat!("whetstone-agent/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(CALL))
            .max_idle_connections(2)
            .max_idle_age(Duration::from_secs(60))
            .build()
            .new_agent();
        Ok(Client { agent, base: base.clone() })
    }

    pub fn post<A: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<A, CallError> {
        let json = serde_json::to_vec(body).map_err(|e| CallError::Material(e.to_string()))?;
        let request = self.agent.post(format!("{}{path}", self.base)).content_type("application/json");
        let (status, text) = answer(request.send(&json).map_err(CallError::of)?)?;
        serde_json::from_slice(&text).map_err(|e| CallError::Garbled { status, what: e.to_string() })
    }

    /// Sends a file that holds zstd-compressed JSON.
    pub fn put_zstd(&self, path: &str, file: File) -> Result<(), CallError> {
        let request = self
            .agent
            .put(format!("{}{path}", self.base))
            .config()
            .timeout_global(Some(UPLOAD))
            .build()
            .content_type("application/json")
            .header("content-encoding", "zstd");
        answer(request.send(file).map_err(CallError::of)?).map(|_| ())
    }
}

/// The certificates of a PEM text, one at least.
pub fn certificates(pem: &str) -> Result<Vec<Certificate<'static>>, CallError> {
    let mut found = Vec::new();
    for item in parse_pem(pem.as_bytes()) {
        match item {
            Ok(PemItem::Certificate(certificate)) => found.push(certificate),
            Ok(_) => {}
            Err(e) => return Err(CallError::Material(format!("not PEM: {e}"))),
        }
    }
    if found.is_empty() {
        return Err(CallError::Material("no certificate in PEM".into()));
    }
    Ok(found)
}

/// Status and body of a good answer.
fn answer(response: Response<ureq::Body>) -> Result<(u16, Vec<u8>), CallError> {
    let status = response.status().as_u16();
    let retry_after = response
        .headers()
        .get("retry-after")
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(|seconds| Duration::from_secs(seconds).min(MAX_WAIT));
    let mut text = Vec::new();
    let read = response.into_body().into_reader().take(MAX_BODY as u64 + 1).read_to_end(&mut text);
    if response_is_good(status) {
        read.map_err(|e| CallError::of(ureq::Error::from(e)))?;
        if text.len() > MAX_BODY {
            return Err(CallError::Garbled { status, what: format!("over {MAX_BODY} bytes") });
        }
        return Ok((status, text));
    }
    let (code, message) = match serde_json::from_slice::<ErrorAnswer>(&text) {
        Ok(answer) => (short(&answer.error.code), short(&answer.error.message)),
        // Something between us and the operator may have answered.
        Err(_) => (format!("http-{status}"), short(&String::from_utf8_lossy(&text))),
    };
    Err(CallError::Refused { status, code, message, retry_after })
}

fn response_is_good(status: u16) -> bool {
    (200..300).contains(&status)
}

/// One bounded line.
fn short(text: &str) -> String {
    text.chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_is_a_host_over_https() {
        for good in
            ["https://operator:8443", "https://192.0.2.3", "https://[::1]:8443/", "https://o.site.example"]
        {
            assert!(good.parse::<OperatorUrl>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "operator:8443",
            "http://operator",
            "https://",
            "https://o/v1",
            "https://u:p@o",
            "https://o?x",
        ] {
            assert!(bad.parse::<OperatorUrl>().is_err(), "{bad}");
        }
        assert_eq!("https://o:1/".parse::<OperatorUrl>().unwrap().to_string(), "https://o:1");
    }

    #[test]
    fn rubbish_in_place_of_certificates_is_said() {
        assert!(certificates("").is_err());
        assert!(certificates("-----BEGIN CERTIFICATE-----\nAAA").is_err());
    }
}
