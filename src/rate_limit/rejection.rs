//! How requests are refused.

use std::fmt;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::Decision;
use crate::{
    problem::{Problem, QUOTA_EXCEEDED, TEMPORARY_REDUCED_CAPACITY},
    storage,
};

/// Why a request was refused.
///
/// It is what a [custom response](super::Policy::with_rejection) is made from, and lies in the
/// extensions of every response that a rate-limit layer made, so that outer layers can tell it from
/// one of the handler's.
#[derive(Debug, Clone)]
pub struct Rejection {
    kind: RejectionKind,
}

/// The class of a [`Rejection`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum RejectionKind {
    /// A quota has no room: 429.
    QuotaExceeded(Decision),
    /// The client's address is on the deny list: 403.
    AddressDenied,
    /// The request has no identity: 400, or 500 where the server fails to tell the peer's address.
    MissingIdentity {
        /// Whether the peer's address was needed.
        server_fault: bool,
    },
    /// The storage gave no answer and the policy is [closed](super::Outage::Closed): 503.
    StorageUnavailable(storage::ErrorKind),
    /// Two different layers of one request have policies of one name: 500.
    SameName(String),
}

impl Rejection {
    pub(super) fn new(kind: RejectionKind) -> Self {
        Self { kind }
    }

    /// What happened, to be matched on.
    pub fn kind(&self) -> &RejectionKind {
        &self.kind
    }

    /// The status of the default response.
    pub fn status(&self) -> StatusCode {
        match &self.kind {
            RejectionKind::QuotaExceeded(_) => StatusCode::TOO_MANY_REQUESTS,
            RejectionKind::AddressDenied => StatusCode::FORBIDDEN,
            RejectionKind::MissingIdentity { server_fault: false } => StatusCode::BAD_REQUEST,
            RejectionKind::MissingIdentity { server_fault: true } | RejectionKind::SameName(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            RejectionKind::StorageUnavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The default response: `application/problem+json` (RFC 9457), with the quota's header fields
    /// as far as its policy shows them. What [`Policy::with_rejection`](super::Policy::with_rejection)
    /// makes of a rejection is for the layer's own responses.
    pub fn to_response(&self) -> Response<Bytes> {
        let mut response = match self.usual_body() {
            Some(body) => Problem::response(self.status(), body),
            None => self.problem().into_response(),
        };
        self.write_headers(&mut response);
        response
    }

    pub(super) fn write_headers<B>(&self, response: &mut Response<B>) {
        match &self.kind {
            RejectionKind::QuotaExceeded(decision) => {
                decision.write_headers(response.headers_mut())
            }
            RejectionKind::StorageUnavailable(_) => {
                // The storage is asked again within half a second.
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
    }

    /// The body that was made with the policy, for what most refusals are.
    fn usual_body(&self) -> Option<Bytes> {
        let RejectionKind::QuotaExceeded(decision) = &self.kind else { return None };
        decision.retry_after()?;
        decision.only_used_up().map(|item| item.used_up.clone())
    }

    fn problem(&self) -> Problem {
        let status = Problem::from_status(self.status());
        match &self.kind {
            RejectionKind::QuotaExceeded(decision) => {
                let violated = decision.quotas().filter(|quota| !quota.verdict.allowed);
                let problem = used_up(violated.map(|quota| quota.name));
                match decision.retry_after() {
                    Some(_) => problem,
                    None => problem.with_detail(
                        "this request costs more than its quota can ever hold; make it smaller",
                    ),
                }
            }
            RejectionKind::AddressDenied => {
                status.with_detail("requests from this address are not accepted")
            }
            RejectionKind::MissingIdentity { server_fault: false } => {
                status.with_detail("the request does not say whose quota it counts against")
            }
            RejectionKind::MissingIdentity { server_fault: true } => {
                status.with_detail("the server cannot tell the client's address")
            }
            RejectionKind::StorageUnavailable(_) => Problem::new(TEMPORARY_REDUCED_CAPACITY)
                .with_detail("the quota cannot be checked for now; try again shortly"),
            RejectionKind::SameName(_) => {
                status.with_detail("the server's rate limits are set up wrongly")
            }
        }
    }
}

/// The problem of quotas, by their names, that have room again after a while.
pub(super) fn used_up<'a>(quotas: impl IntoIterator<Item = &'a str>) -> Problem {
    Problem::new(QUOTA_EXCEEDED)
        .with_violated_policies(quotas)
        .with_detail("the quota is used up; try again after the seconds in Retry-After")
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            RejectionKind::QuotaExceeded(decision) => {
                write!(f, "a quota of policy {:?} is used up", decision.policy())
            }
            RejectionKind::AddressDenied => f.write_str("the client's address is on the deny list"),
            RejectionKind::MissingIdentity { server_fault: false } => {
                f.write_str("the key extractor found no identity in the request")
            }
            RejectionKind::MissingIdentity { server_fault: true } => f.write_str(
                "the request has no peer address: serve with \
                 `into_make_service_with_connect_info::<SocketAddr>()`, insert a `PeerAddr` \
                 extension, or choose another key with `Policy::with_key`",
            ),
            RejectionKind::StorageUnavailable(kind) => {
                write!(f, "the storage gave no answer ({kind:?})")
            }
            RejectionKind::SameName(name) => write!(
                f,
                "two rate-limit layers of one request have policies named {name:?}: give each its \
                 own name or namespace, or build both from one `Limiter`"
            ),
        }
    }
}

impl std::error::Error for Rejection {}

impl From<storage::Error> for Rejection {
    fn from(error: storage::Error) -> Self {
        Self::new(RejectionKind::StorageUnavailable(error.kind()))
    }
}

#[cfg(feature = "axum")]
impl axum_core::response::IntoResponse for Rejection {
    fn into_response(self) -> axum_core::response::Response {
        let mut response = self.to_response().map(axum_core::body::Body::from);
        response.extensions_mut().insert(self);
        response
    }
}
