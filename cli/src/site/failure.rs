//! What goes wrong when a site is asked.

use whetstone_model::ids::Serial;

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
    /// The apiserver does not know who asks, or does not let them.
    #[error("apiserver {server}: {what}")]
    Denied { server: String, what: String },
    /// Ops credentials: missing or of no use.
    #[error("operator: {0}")]
    Credentials(String),
    #[error("operator {url}: {what}")]
    OperatorAway { url: String, what: String },
    #[error("operator: {message} ({code})")]
    Operator { status: u16, code: String, message: String, unknown: Vec<Serial> },
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
                401 | 403 => Failure::Denied { server: server.to_owned(), what: status.message },
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
        // Denied: the way to it (its Secret, its pods) is the apiserver's to open.
        matches!(self, Failure::Denied { .. } | Failure::Credentials(_) | Failure::OperatorAway { .. })
            || matches!(self, Failure::Operator { status: 500.., .. })
    }

    /// As `main` wants it: what was refused, and is the user's to put right, is exit code 2.
    pub fn into_error(self) -> anyhow::Error {
        match self {
            // Too slow, too often: the same may be served later.
            Failure::Operator { status: 408 | 429, .. } => self.into(),
            Failure::Operator { status: 400..=499, .. } => input_error(self),
            Failure::Refused(_) | Failure::Denied { .. } | Failure::Kubeconfig(_) => input_error(self),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InputError;

    fn of_kube(code: u16, reason: &str) -> Failure {
        let status = kube::core::Status::failure("blades is forbidden", reason).with_code(code);
        Failure::of_kube("https://s", "blade b-1", kube::Error::Api(status.boxed()))
    }

    fn of_operator(status: u16) -> Failure {
        Failure::Operator { status, code: "c".into(), message: "m".into(), unknown: Vec::new() }
    }

    fn is_input(failure: Failure) -> bool {
        failure.into_error().is::<InputError>()
    }

    #[test]
    fn what_the_apiserver_refuses_is_the_users_to_put_right() {
        for (code, reason) in [
            (400, "BadRequest"),
            (401, "Unauthorized"),
            (403, "Forbidden"),
            (404, "NotFound"),
            (409, "AlreadyExists"),
            (409, "Conflict"),
            (422, "Invalid"),
        ] {
            assert!(is_input(of_kube(code, reason)), "{code}");
        }
        for code in [408, 429, 500, 503, 504] {
            assert!(!is_input(of_kube(code, "x")), "{code}");
        }
        let denied = of_kube(403, "Forbidden");
        // Neither "nothing of that kind is there", nor without a word of who refuses.
        assert!(matches!(denied, Failure::Denied { .. }) && !denied.is_not_found());
        assert_eq!(denied.to_string(), "apiserver https://s: blades is forbidden");
    }

    #[test]
    fn what_the_operator_refuses_too_and_what_it_may_serve_later_is_not() {
        for status in [400, 401, 403, 404, 409, 413] {
            assert!(is_input(of_operator(status)) && !of_operator(status).is_operator_away(), "{status}");
            assert_eq!(of_operator(status).is_not_found(), status == 404);
        }
        for status in [408, 429, 500, 503] {
            assert!(!is_input(of_operator(status)), "{status}");
            assert_eq!(of_operator(status).is_operator_away(), status >= 500);
        }
    }
}
