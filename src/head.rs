//! What the closures of a policy see of a request.

use std::fmt;

use http::{Extensions, HeaderMap, Method, Request, Uri, request::Parts};

/// A request without its body, borrowed: what key extractors, tier resolvers and exemptions see.
///
/// # Security
///
/// `Debug` shows the method, the path and the names of the header fields: values and queries may be
/// secrets, and this is what ends up in a log.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    method: &'a Method,
    uri: &'a Uri,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
}

impl<'a> RequestHead<'a> {
    /// The head of this request.
    pub fn new<B>(request: &'a Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }

    /// The head that an extractor sees.
    pub fn from_parts(parts: &'a Parts) -> Self {
        Self {
            method: &parts.method,
            uri: &parts.uri,
            headers: &parts.headers,
            extensions: &parts.extensions,
        }
    }

    /// The method.
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// The target. Under `Router::nest` axum shortens the path; `axum::extract::OriginalUri` among
    /// the extensions has the whole.
    pub fn uri(&self) -> &'a Uri {
        self.uri
    }

    /// The target as the client sent it.
    #[cfg(any(feature = "cache", feature = "idempotency"))]
    pub(crate) fn target(&self) -> &'a Uri {
        #[cfg(feature = "axum")]
        if let Some(original) = self.extensions.get::<axum::extract::OriginalUri>() {
            return &original.0;
        }
        self.uri
    }

    /// The header fields.
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// What outer layers have found out, such as the session or the user.
    pub fn extensions(&self) -> &'a Extensions {
        self.extensions
    }
}

impl fmt::Debug for RequestHead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHead")
            .field("method", self.method)
            .field("path", &self.uri.path())
            .field("headers", &Names(self.headers))
            .finish_non_exhaustive()
    }
}

/// Header fields without their values.
pub(crate) struct Names<'a>(pub(crate) &'a HeaderMap);

impl fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys().map(|name| name.as_str())).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_value_of_a_header_and_no_query() {
        let request = Request::builder()
            .uri("/me?token=hunter2")
            .header("authorization", "Bearer hunter2")
            .body(())
            .unwrap();
        let text = format!("{:?}", RequestHead::new(&request));
        assert!(text.contains("\"/me\"") && text.contains("authorization"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
