//! What goes wrong when a site is asked.

use whetstone_model::wire::error_code;

use crate::input_error;

/// A site that cannot be asked, or says no.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(
        "no kubeconfig: {0}; name one with --kubeconfig, or a site with --site (`whet site up` makes one)"
    )]
    Kubeconfig(String),
    #[error("apiserver {server}: {what}")]
    Apiserver { server: String, what: String },
    /// The apiserver understood, and refuses: wrong input of ours.
    #[error("{0}")]
    Refused(String),
    /// Ops credentials: missing or of no use.
    #[error("operator: {0}")]
    Credentials(String),
    #[error("operator {url}: {what}")]
    OperatorAway { url: String, what: String },
    #[error("operator: {message} ({code})")]
    Operator { status: u16, code: String, message: String },
    #[error("operator: its answer to {path} cannot be understood: {what}")]
    Garbled { path: String, what: String },
}

impl Failure {
    /// From an answer of the apiserver about `what` (`blade b-003`).
    pub fn of_kube(server: &str, what: &str, error: kube::Error) -> Failure {
        match error {
            kube::Error::Api(status) => match status.code {
                404 if !status.message.is_empty() && status.details.is_none() => Failure::Refused(format!(
                    "the cluster does not know Whetstone's kinds (are the CRDs installed?): {}",
                    status.message
                )),
                404 => Failure::Refused(format!("no {what}")),
                409 if status.reason == "AlreadyExists" => Failure::Refused(format!("{what} exists already")),
                400 | 409 | 422 => Failure::Refused(format!("{what}: {}", status.message)),
                _ => Failure::Apiserver { server: server.to_owned(), what: status.message },
            },
            other => {
                let mut text = other.to_string();
                let mut source = std::error::Error::source(&other);
                // The words that help ("connection refused") stand at the end of the chain.
                while let Some(inner) = source {
                    text = inner.to_string();
                    source = inner.source();
                }
                Failure::Apiserver { server: server.to_owned(), what: text }
            }
        }
    }

    /// Nothing of that name.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Failure::Operator { status: 404, .. })
    }

    /// The operator could not be asked at all, so that another source has to do.
    pub fn is_operator_away(&self) -> bool {
        matches!(self, Failure::Credentials(_) | Failure::OperatorAway { .. })
            || matches!(self, Failure::Operator { status: 500.., .. })
    }

    /// As `main` wants it: what is the user's to put right is exit code 2.
    pub fn into_error(self) -> anyhow::Error {
        match self {
            Failure::Refused(_) | Failure::Kubeconfig(_) => input_error(self),
            Failure::Operator { status: 404, .. } => input_error(self),
            Failure::Operator { ref code, .. } if code == error_code::BAD_REQUEST => input_error(self),
            other => other.into(),
        }
    }
}

/// `?` from a [`Failure`] with the right exit code.
pub trait OrExit<T> {
    fn or_exit(self) -> anyhow::Result<T>;
}

impl<T> OrExit<T> for Result<T, Failure> {
    fn or_exit(self) -> anyhow::Result<T> {
        self.map_err(Failure::into_error)
    }
}
