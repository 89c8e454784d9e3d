//! Why a request was not served: one place for status, code, metric label and words.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use whetstone_model::ids::Serial;
use whetstone_model::wire::{ErrorAnswer, ErrorBody, error_code};

/// Why, as a metric's label. Bounded by being an enum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    NoCertificate,
    WrongRole,
    Expired,
    Revoked,
    /// The certificate's serial has no blade on record.
    UnknownBlade,
    WrongBlade,
    Conflict,
    Token,
    BadBody,
    TooLarge,
    Slow,
    NoSuchRun,
    ResultDiffers,
    /// A result that is not signed as it should be, or is not of the run that it names.
    Signature,
    NotFound,
    /// Too many requests of one peer at once.
    Busy,
    /// More than is stored for one blade in the long run.
    OverBudget,
    QueueFull,
    Store,
    NotLeading,
    /// A key or certificate of ours does not work.
    Internal,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::NoCertificate => "no-certificate",
            Reason::WrongRole => "wrong-role",
            Reason::Expired => "expired",
            Reason::Revoked => "revoked",
            Reason::UnknownBlade => "unknown-blade",
            Reason::WrongBlade => "wrong-blade",
            Reason::Conflict => "identity-conflict",
            Reason::Token => "token",
            Reason::BadBody => "bad-body",
            Reason::TooLarge => "too-large",
            Reason::Slow => "slow",
            Reason::NoSuchRun => "no-such-run",
            Reason::ResultDiffers => "result-differs",
            Reason::Signature => "signature",
            Reason::NotFound => "not-found",
            Reason::Busy => "busy",
            Reason::OverBudget => "over-budget",
            Reason::QueueFull => "queue-full",
            Reason::Store => "store",
            Reason::NotLeading => "not-leading",
            Reason::Internal => "internal",
        }
    }

    /// Whether a person may want to know later who did this. What comes from our own overload is no matter of theirs.
    pub fn is_audited(self) -> bool {
        !matches!(
            self,
            Reason::Busy
                | Reason::QueueFull
                | Reason::Store
                | Reason::NotLeading
                | Reason::Internal
                | Reason::NotFound
                | Reason::Slow
        )
    }
}

/// A request that is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub code: &'static str,
    pub reason: Reason,
    /// One line for a person.
    pub message: String,
    /// When the same request may be served, seconds from now; its sender's own jitter comes on top.
    pub retry_after_s: Option<u64>,
    /// Serials that it is refused for.
    pub unknown: Vec<Serial>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, reason: Reason, message: impl Into<String>) -> Self {
        Refusal { status, code, reason, message: message.into(), retry_after_s: None, unknown: Vec::new() }
    }

    /// 503: the same request may be served later.
    pub fn unavailable(reason: Reason, message: impl Into<String>) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let again = Some(RETRY_AFTER_S);
        Self { retry_after_s: again, ..Self::new(status, error_code::UNAVAILABLE, reason, message) }
    }

    /// 429: what it wants to say stays in its spool.
    pub fn over_budget(wait: Duration) -> Self {
        let seconds = wait.as_secs().saturating_add(1).min(MAX_RETRY_AFTER_S);
        let message = format!("more than is stored for one blade; the next in {seconds} s");
        let (status, reason) = (StatusCode::TOO_MANY_REQUESTS, Reason::OverBudget);
        Self { retry_after_s: Some(seconds), ..Self::new(status, error_code::UNAVAILABLE, reason, message) }
    }

    pub fn store(error: &whetstone_store::StoreError) -> Self {
        Self::unavailable(Reason::Store, error.to_string())
    }

    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error_code::BAD_REQUEST, Reason::BadBody, message)
    }

    pub fn too_large(limit: usize) -> Self {
        let message = format!("more than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, error_code::BAD_REQUEST, Reason::TooLarge, message)
    }

    pub fn slow() -> Self {
        let message = "the body did not come in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, error_code::UNAVAILABLE, Reason::Slow, message)
    }

    pub fn no_certificate(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error_code::UNAUTHENTICATED, Reason::NoCertificate, message)
    }

    pub fn wrong_role(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error_code::UNAUTHENTICATED, Reason::WrongRole, message)
    }

    pub fn expired() -> Self {
        let message = "the certificate has run out; renew it";
        Self::new(StatusCode::FORBIDDEN, error_code::EXPIRED, Reason::Expired, message)
    }

    pub fn revoked() -> Self {
        let message = "the certificate was revoked; a person has to issue a new join token";
        Self::new(StatusCode::FORBIDDEN, error_code::REVOKED, Reason::Revoked, message)
    }

    /// A certificate of ours for a blade that the store does not know (any more).
    pub fn unknown_blade() -> Self {
        Self { reason: Reason::UnknownBlade, ..Self::revoked() }
    }

    pub fn wrong_blade(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error_code::WRONG_BLADE, Reason::WrongBlade, message)
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, error_code::IDENTITY_CONFLICT, Reason::Conflict, message)
    }

    /// The same words for every kind of bad token: who guesses learns nothing.
    pub fn token() -> Self {
        let message = "the token is unknown, has expired or is not for this blade";
        Self::new(StatusCode::FORBIDDEN, error_code::TOKEN_REFUSED, Reason::Token, message)
    }

    pub fn no_such_run(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error_code::NO_SUCH_RUN, Reason::NoSuchRun, message)
    }

    pub fn result_differs() -> Self {
        let message = "another result of this run is on record; the first one holds";
        Self::new(StatusCode::CONFLICT, error_code::RESULT_DIFFERS, Reason::ResultDiffers, message)
    }

    pub fn signature(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error_code::BAD_REQUEST, Reason::Signature, message)
    }

    /// Something of ours does not work; asking again may help.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::unavailable(Reason::Internal, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error_code::NOT_FOUND, Reason::NotFound, message)
    }

    /// Serials that are no blades of this site.
    pub fn unknown_blades(unknown: Vec<Serial>) -> Self {
        let first = unknown.first().map(Serial::to_string).unwrap_or_default();
        let message = format!("{} of the serials are no blades of this site, {first} first", unknown.len());
        Self { unknown, ..Self::not_found(message) }
    }
}

/// Seconds after which an agent that got a 503 asks again.
const RETRY_AFTER_S: u64 = 5;
/// Longest that an agent is sent away for: it has to be heard of.
const MAX_RETRY_AFTER_S: u64 = 60;

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (code, message, unknown) = (self.code.to_owned(), self.message, self.unknown);
        let body = ErrorAnswer { error: ErrorBody { code, message, unknown } };
        let mut response = (self.status, Json(body)).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            // Behind a Service the next connection may reach the replica that leads; this one never will.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if matches!(self.reason, Reason::TooLarge | Reason::Slow) {
            // What is left of the body is not read.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
