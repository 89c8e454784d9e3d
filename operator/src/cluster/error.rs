//! What can go wrong with the apiserver, told apart as far as it matters.

/// An error of the Kubernetes API.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("{what}")]
    Kube {
        what: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("{what}: somebody else changed it each of {tries} times")]
    Conflict { what: String, tries: u32 },
    #[error("{what}: no answer within {seconds} s")]
    Timeout { what: String, seconds: u64 },
}

impl ClusterError {
    pub fn of(what: impl Into<String>) -> impl FnOnce(kube::Error) -> ClusterError {
        let what = what.into();
        move |source| ClusterError::Kube { what, source: Box::new(source) }
    }

    /// The HTTP status, if the apiserver answered.
    pub fn code(&self) -> Option<u16> {
        match self {
            ClusterError::Kube { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            ClusterError::Conflict { .. } => Some(409),
            ClusterError::Timeout { .. } => None,
        }
    }

    /// A bounded label for metrics.
    pub fn category(&self) -> &'static str {
        match self.code() {
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
