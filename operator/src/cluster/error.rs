//! What can go wrong with the apiserver, told apart as far as it matters.

use std::error::Error as _;
use std::fmt;

/// Longest of what the apiserver says that is told on, bytes: its sentences may hold whole objects.
const SAID: usize = 300;

/// An error of the Kubernetes API. Its text says what was wanted of which object, and why it was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("{what}: {}", Said(error))]
    Kube { what: String, error: Box<kube::Error> },
    #[error("{what}: somebody else changed it each of {tries} times")]
    Conflict { what: String, tries: u32 },
    #[error("{what}: no answer within {seconds} s")]
    Timeout { what: String, seconds: u64 },
    /// Calls before it had no answer: it was not even tried.
    #[error("{what}: not tried, the apiserver does not answer")]
    Silent { what: String },
    /// Another one may lead by now.
    #[error("{what}: not tried, this process does not lead any more")]
    NotLeading { what: String },
}

/// What the apiserver said, or what kept it from saying something.
struct Said<'a>(&'a kube::Error);

impl fmt::Display for Said<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            kube::Error::Api(status) => {
                let mut text = status.code.to_string();
                for part in [&status.reason, &status.message].into_iter().filter(|part| !part.is_empty()) {
                    text.push_str(if text.len() > 3 { ": " } else { " " });
                    text.push_str(part);
                }
                text
            }
            other => {
                // "client error (Connect)" alone says nothing: the last of the causes does.
                let mut text = other.to_string();
                let mut cause = other.source();
                while let Some(error) = cause {
                    let said = error.to_string();
                    if !text.ends_with(&said) {
                        text.push_str(": ");
                        text.push_str(&said);
                    }
                    cause = error.source();
                }
                text
            }
        };
        let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        match line.get(..line.floor_char_boundary(SAID)) {
            Some(short) if short.len() < line.len() => write!(to, "{short}…"),
            _ => to.write_str(&line),
        }
    }
}

impl ClusterError {
    pub fn of(what: impl Into<String>) -> impl FnOnce(kube::Error) -> ClusterError {
        let what = what.into();
        move |error| ClusterError::Kube { what, error: Box::new(error) }
    }

    /// The HTTP status, if the apiserver answered.
    pub fn code(&self) -> Option<u16> {
        match self {
            ClusterError::Kube { error, .. } => match error.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            ClusterError::Conflict { .. } => Some(409),
            ClusterError::Timeout { .. } | ClusterError::Silent { .. } | ClusterError::NotLeading { .. } => {
                None
            }
        }
    }

    /// A bounded label for metrics.
    pub fn category(&self) -> &'static str {
        match self.code() {
            None if matches!(self, ClusterError::NotLeading { .. }) => "ending",
            None => "away",
            Some(401 | 403) => "forbidden",
            Some(404) => "not_found",
            Some(409) => "conflict",
            Some(422 | 400) => "invalid",
            Some(429) => "throttled",
            Some(_) => "server",
        }
    }

    /// Worth another try without anybody's help.
    pub fn is_transient(&self) -> bool {
        !matches!(self.category(), "forbidden" | "invalid")
    }

    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn api(code: u16, reason: &str, message: &str) -> ClusterError {
        let status = json!({ "status": "Failure", "code": code, "reason": reason, "message": message });
        ClusterError::of("patch node n-1")(kube::Error::Api(serde_json::from_value(status).unwrap()))
    }

    #[test]
    fn an_error_says_what_was_wanted_of_which_object_and_why_not() {
        let error = api(403, "Forbidden", "nodes \"n-1\" is forbidden");
        assert_eq!(error.to_string(), "patch node n-1: 403 Forbidden: nodes \"n-1\" is forbidden");
        assert_eq!(error.category(), "forbidden");
        assert_eq!(api(500, "", "").to_string(), "patch node n-1: 500");
    }

    #[test]
    fn what_it_says_is_one_line_and_bounded() {
        let text = api(422, "Invalid", &"ä\n".repeat(1000)).to_string();
        assert!(text.len() < SAID + 50 && text.ends_with('…') && !text.contains('\n'), "{text}");
    }

    #[tokio::test]
    async fn a_refused_connection_is_named() {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = kube::Client::try_from(config).unwrap();
        let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(client);
        let error = ClusterError::of("get node n-1")(nodes.get("n-1").await.unwrap_err());
        let text = error.to_string();
        assert!(text.starts_with("get node n-1: ") && text.contains("refused"), "{text}");
    }
}
