//! What becomes of a key, by the answer that its handler gave.

use std::fmt;

use http::{Extensions, HeaderMap, StatusCode, header, response};

use crate::head::Names;

/// What becomes of a key after an answer.
///
/// A handler says it for one answer by putting it among the response's extensions; with axum, by
/// returning `(Extension(Disposition::Release), answer)`. That comes before everything that a policy
/// says.
///
/// # Examples
///
/// ```
/// use axum::{Extension, http::StatusCode, response::IntoResponse};
/// use tower_keep::idempotency::Disposition;
///
/// /// Nothing was ordered, and the client may try again with this key.
/// async fn order() -> impl IntoResponse {
///     (Extension(Disposition::Release), StatusCode::CONFLICT)
/// }
/// # let _ = order;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Disposition {
    /// The answer is kept and replayed.
    Store,
    /// The key is free again, as if it had not been used: nothing was done.
    Release,
    /// The request counts as executed, and its answer is not kept: it holds a secret that is shown
    /// once.
    Seal,
}

/// The head of an answer, for a [classifier](super::Policy::with_classifier).
pub struct Answer<'a> {
    parts: &'a response::Parts,
}

impl<'a> Answer<'a> {
    pub(super) fn new(parts: &'a response::Parts) -> Self {
        Self { parts }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.parts.status
    }

    /// The header fields.
    pub fn headers(&self) -> &'a HeaderMap {
        &self.parts.headers
    }

    /// What the handler says to the layers around it.
    pub fn extensions(&self) -> &'a Extensions {
        &self.parts.extensions
    }

    /// What becomes of the key by default.
    ///
    /// [`Release`](Disposition::Release) for answers that say that the request was not carried out
    /// but may be, once it is mended or some time has passed: those of extractors, routers and of
    /// authentication (400, 401, 403, 404, 405, 406, 411, 413, 414, 415, 417, 421, 422, 426, 428, 431),
    /// 425 and 429, and 503 with `Retry-After`. A handler that answers with one of them after it has
    /// done something says so, by [`begin`](super::Idempotency::begin) or a
    /// [`Disposition`].
    ///
    /// [`Store`](Disposition::Store) for everything else, also for errors of the server: part of the
    /// work may be done.
    pub fn usual(&self) -> Disposition {
        match self.status().as_u16() {
            400
            | 401
            | 403..=406
            | 411
            | 413..=415
            | 417
            | 421
            | 422
            | 425
            | 426
            | 428
            | 429
            | 431 => Disposition::Release,
            503 if self.headers().contains_key(header::RETRY_AFTER) => Disposition::Release,
            // The connection is another protocol's from here on.
            101 => Disposition::Seal,
            _ => Disposition::Store,
        }
    }
}

/// Without the values of the header fields: cookies are among them.
impl fmt::Debug for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status())
            .field("headers", &Names(self.headers()))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    fn usual(status: u16, retry_after: bool) -> Disposition {
        let mut response = Response::builder().status(status);
        if retry_after {
            response = response.header("retry-after", "1");
        }
        Answer::new(&response.body(()).unwrap().into_parts().0).usual()
    }

    #[test]
    fn what_was_not_carried_out_frees_its_key() {
        for status in [400, 401, 403, 404, 405, 413, 415, 422, 429] {
            assert_eq!(usual(status, false), Disposition::Release, "{status}");
        }
        assert_eq!(usual(503, true), Disposition::Release);
    }

    #[test]
    fn results_and_failures_are_kept() {
        for status in [200, 201, 202, 204, 301, 303, 402, 408, 409, 410, 412, 500, 502, 503, 504] {
            assert_eq!(usual(status, false), Disposition::Store, "{status}");
        }
        assert_eq!(usual(500, true), Disposition::Store);
        assert_eq!(usual(101, false), Disposition::Seal);
    }
}
