//! What the layer itself answers.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::Body;

use super::{
    KeyError, Outcome, Policy, ResponseBody,
    record::{Sealed, StoredResponse},
};
use crate::{marks::ReplayMark, problem::Problem};

static REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Why the handler does not run.
pub(super) enum Refusal {
    KeyMissing,
    KeyInvalid(KeyError),
    ScopeMissing,
    BodyTooLarge,
    BodyFailed,
    Mismatch,
    InFlight,
    Sealed(Sealed),
    Unknown,
    TooManyInFlight,
    Busy,
    Unavailable,
    Unreadable,
    /// Two layers share a name.
    SameName,
    Panicked,
    Stopping,
}

impl Refusal {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::KeyMissing => Outcome::KeyMissing,
            Self::KeyInvalid(_) => Outcome::KeyInvalid,
            Self::ScopeMissing => Outcome::ScopeMissing,
            Self::BodyTooLarge => Outcome::BodyTooLarge,
            Self::BodyFailed => Outcome::BodyFailed,
            Self::Mismatch => Outcome::Mismatch,
            Self::InFlight => Outcome::InFlight,
            Self::Sealed(_) => Outcome::Sealed,
            Self::Unknown => Outcome::Unknown,
            Self::TooManyInFlight => Outcome::TooManyInFlight,
            Self::Busy => Outcome::Busy,
            Self::Unavailable | Self::Unreadable => Outcome::Unavailable,
            Self::SameName | Self::Panicked | Self::Stopping => Outcome::Failed,
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::KeyMissing | Self::KeyInvalid(_) | Self::ScopeMissing | Self::BodyFailed => {
                StatusCode::BAD_REQUEST
            }
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Mismatch => StatusCode::UNPROCESSABLE_ENTITY,
            Self::InFlight | Self::Sealed(_) | Self::Unknown => StatusCode::CONFLICT,
            Self::TooManyInFlight => StatusCode::TOO_MANY_REQUESTS,
            Self::Busy | Self::Unavailable | Self::Unreadable | Self::Stopping => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::SameName | Self::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The titles are those of draft-ietf-httpapi-idempotency-key-header-07 §2.7, where it has one.
    fn title(&self) -> Option<&'static str> {
        Some(match self {
            Self::KeyMissing => "Idempotency-Key is missing",
            Self::KeyInvalid(_) => "Idempotency-Key is malformed",
            Self::Mismatch => "Idempotency-Key is already used",
            Self::InFlight => "A request is outstanding for this Idempotency-Key",
            Self::Sealed(_) => "The request was executed, and its response is not retained",
            Self::Unknown => "What came of the request is unknown",
            _ => return None,
        })
    }

    fn code(&self) -> &'static str {
        match self {
            Self::KeyInvalid(error) => error.code(),
            Self::Sealed(_) => "response-not-retained",
            Self::Unknown => "outcome-unknown",
            Self::Unreadable => "record-unreadable",
            Self::SameName => "misconfigured",
            Self::Panicked => "handler-failed",
            Self::Stopping => "stopping",
            other => other.outcome().as_str(),
        }
    }

    fn detail(&self, policy: &Policy) -> String {
        let field = &policy.key.header;
        match self {
            Self::KeyMissing => {
                format!(
                    "send a key of your own in {field}, such as a UUID, and the same with each retry"
                )
            }
            Self::KeyInvalid(error) => error.to_string(),
            Self::ScopeMissing => "the request does not say whose key this is; log in first".into(),
            Self::BodyTooLarge => {
                format!("a request with {field} has at most {} bytes", policy.max_request)
            }
            Self::BodyFailed => "the body of the request broke off; nothing was done".into(),
            Self::Mismatch => {
                "the key was used for another request; use a new one for each operation".into()
            }
            Self::InFlight => "the same request is under way; try again a little later".into(),
            Self::Sealed(_) => {
                "nothing is done twice; look for the result where it was made".into()
            }
            Self::Unknown => {
                "the request was begun, and it is not known how far it came; it is not repeated \
                 before somebody has looked"
                    .into()
            }
            Self::TooManyInFlight => "too many requests with keys are under way".into(),
            Self::Busy => "too many requests are under way; try again shortly".into(),
            Self::Unavailable => "the key cannot be checked for now; nothing was done".into(),
            Self::Unreadable => "the record of the key cannot be read; nothing was done".into(),
            Self::SameName => "the server's idempotency layers are set up wrongly".into(),
            Self::Panicked => "the handler has failed; part of the work may be done".into(),
            Self::Stopping => {
                "the server is stopping, and part of the work may be done; try again with this key"
                    .into()
            }
        }
    }

    fn retry_after(&self, policy: &Policy) -> Option<Duration> {
        match self {
            Self::InFlight => Some(policy.retry_after),
            Self::TooManyInFlight
            | Self::Busy
            | Self::Unavailable
            | Self::Unreadable
            | Self::Stopping => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// The response, without the layer's outcome.
    pub(super) fn to_response(&self, policy: &Policy) -> Response<Bytes> {
        let mut problem = Problem::from_status(self.status())
            .with_detail(self.detail(policy))
            .with_member("code", self.code());
        if let Some(title) = self.title() {
            problem = problem.with_title(title);
        }
        if let Some(url) = &policy.documentation {
            problem = problem.with_type(url.to_string());
        }
        if let Self::Sealed(sealed) = self {
            problem = problem
                .with_member("original-status", sealed.status.as_u16())
                .with_member("reason", sealed.reason.as_str());
        }
        let mut response = problem.into_response();
        let headers = response.headers_mut();
        if let Some(pause) = self.retry_after(policy) {
            let seconds = pause.as_millis().div_ceil(1_000).max(1) as u64;
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(url) = &policy.documentation
            && let Ok(link) = HeaderValue::try_from(format!("<{url}>; rel=\"describedby\""))
        {
            headers.insert(header::LINK, link);
        }
        if let Self::Sealed(Sealed { location: Some(location), .. }) = self {
            headers.insert(header::LOCATION, location.clone());
        }
        response
    }
}

/// The response of a request that the handler does not see.
pub(super) fn refuse<R: Body>(policy: &Policy, refusal: &Refusal) -> Response<ResponseBody<R>> {
    own(refusal.to_response(policy), refusal.outcome())
}

/// A response of the layer's own.
pub(super) fn own<R: Body>(
    mut response: Response<Bytes>,
    outcome: Outcome,
) -> Response<ResponseBody<R>> {
    response.extensions_mut().insert(outcome);
    response.map(ResponseBody::whole)
}

/// A stored response, once more.
pub(super) fn replay<R: Body>(stored: StoredResponse) -> Response<ResponseBody<R>> {
    let StoredResponse { status, headers, body } = stored;
    let mut response = Response::new(ResponseBody::whole(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.headers_mut().insert(REPLAYED.clone(), HeaderValue::from_static("true"));
    response.extensions_mut().insert(Outcome::Replayed);
    response.extensions_mut().insert(ReplayMark);
    response
}

/// How long a client is ready to wait (RFC 7240 §4.3), if it says so.
pub(super) fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get_all("prefer")
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|preference| {
            let (name, value) = preference.split(';').next()?.split_once('=')?;
            let value = value.trim().trim_matches('"');
            name.trim().eq_ignore_ascii_case("wait").then(|| value.parse().ok())?
        })
        .map(Duration::from_secs)
        .next()
}
