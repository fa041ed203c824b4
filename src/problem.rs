//! RFC 9457 responses: what every rejection looks like unless the user says otherwise.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;
use serde_json::{Map, Value};

/// A kind of problem: what it is called, and the status it goes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProblemType {
    pub(crate) uri: &'static str,
    pub(crate) title: &'static str,
    pub(crate) status: StatusCode,
}

/// The client has used up a quota (draft-ietf-httpapi-ratelimit-headers-11, problem types).
pub(crate) const QUOTA_EXCEEDED: ProblemType = ProblemType {
    uri: "https://iana.org/assignments/http-problem-types#quota-exceeded",
    title: "Request cannot be satisfied as assigned quota has been exceeded",
    status: StatusCode::TOO_MANY_REQUESTS,
};

/// The service has less to give than usual, whoever asks (same draft).
pub(crate) const TEMPORARY_REDUCED_CAPACITY: ProblemType = ProblemType {
    uri: "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
    title: "Request cannot be satisfied due to temporary server capacity constraints",
    status: StatusCode::SERVICE_UNAVAILABLE,
};

/// The body of a rejection, `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Problem {
    #[serde(rename = "type")]
    uri: Cow<'static, str>,
    title: Cow<'static, str>,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<Cow<'static, str>>,
    #[serde(flatten)]
    extensions: Map<String, Value>,
}

impl Problem {
    /// A problem of a registered type.
    pub(crate) fn new(kind: ProblemType) -> Self {
        Self {
            uri: kind.uri.into(),
            title: kind.title.into(),
            status: kind.status.as_u16(),
            detail: None,
            extensions: Map::new(),
        }
    }

    /// A problem that the status says all about: `about:blank`, with the status's phrase as its
    /// title (RFC 9457 §4.2.1).
    pub(crate) fn from_status(status: StatusCode) -> Self {
        Self::new(ProblemType {
            uri: "about:blank",
            title: status.canonical_reason().unwrap_or("Unknown"),
            status,
        })
    }

    /// Says where this kind of problem is described.
    #[cfg(feature = "idempotency")]
    #[must_use]
    pub(crate) fn with_type(mut self, uri: impl Into<Cow<'static, str>>) -> Self {
        self.uri = uri.into();
        self
    }

    /// Names this kind of problem.
    #[cfg(feature = "idempotency")]
    #[must_use]
    pub(crate) fn with_title(mut self, title: &'static str) -> Self {
        self.title = title.into();
        self
    }

    /// Says more about this occurrence, for the person who reads it.
    #[must_use]
    pub(crate) fn with_detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds a member for programs. The standard ones cannot be overwritten.
    #[must_use]
    pub(crate) fn with_member(mut self, name: &str, value: impl Into<Value>) -> Self {
        if !matches!(name, "type" | "title" | "status" | "detail") {
            self.extensions.insert(name.to_owned(), value.into());
        }
        self
    }

    /// The policies that the request would have violated, by their names in the `RateLimit` field.
    #[must_use]
    pub(crate) fn with_violated_policies<S: Into<String>>(
        self,
        names: impl IntoIterator<Item = S>,
    ) -> Self {
        let names: Vec<Value> = names.into_iter().map(|name| Value::String(name.into())).collect();
        self.with_member("violated-policies", names)
    }

    /// The body, for a problem that is met often.
    pub(crate) fn body(&self) -> Bytes {
        serde_json::to_vec(self).expect("strings and numbers are JSON").into()
    }

    /// The response.
    pub(crate) fn into_response(self) -> Response<Bytes> {
        let status = StatusCode::from_u16(self.status);
        Self::response(status.expect("the number was made from a status"), self.body())
    }

    /// The response of a problem with this status and [body](Self::body). RFC 6585 §4: a 429 must
    /// not be stored by a cache, nor is any other of these true for the next request.
    pub(crate) fn response(status: StatusCode, body: Bytes) -> Response<Bytes> {
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.reserve(8);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_up_quota_is_answered_as_the_draft_has_it() {
        let response = Problem::new(QUOTA_EXCEEDED)
            .with_detail("try again in 3 s")
            .with_violated_policies(["daily", "bandwidth"])
            .into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(
            response.body(),
            concat!(
                r#"{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","#,
                r#""title":"Request cannot be satisfied as assigned quota has been exceeded","#,
                r#""status":429,"detail":"try again in 3 s","#,
                r#""violated-policies":["daily","bandwidth"]}"#
            )
        );
    }

    #[test]
    fn the_types_go_with_their_statuses() {
        for (kind, status) in [(TEMPORARY_REDUCED_CAPACITY, 503), (QUOTA_EXCEEDED, 429)] {
            assert_eq!(Problem::new(kind).into_response().status(), status);
            assert!(kind.uri.starts_with("https://iana.org/assignments/http-problem-types#"));
        }
    }

    #[test]
    fn a_plain_status_is_about_blank() {
        let response = Problem::from_status(StatusCode::BAD_REQUEST).into_response();
        assert_eq!(response.body(), r#"{"type":"about:blank","title":"Bad Request","status":400}"#);
    }

    #[test]
    fn members_are_escaped_and_take_no_standard_name() {
        let response = Problem::from_status(StatusCode::CONFLICT)
            .with_member("status", 200)
            .with_member("note", "\"\u{0}<é")
            .with_detail("a\nb")
            .into_response();
        let body: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(body["status"], 409);
        assert_eq!(body["note"], "\"\u{0}<é");
        assert_eq!(body["detail"], "a\nb");
        assert_eq!(body.as_object().unwrap().len(), 5);
    }
}
