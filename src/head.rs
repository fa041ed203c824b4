//! What the closures of a policy see of a request.

use http::{Extensions, HeaderMap, Method, Request, Uri};

/// A request without its body, borrowed: what key extractors, tier resolvers and exemptions see.
#[derive(Debug, Clone, Copy)]
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

    /// The method.
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// The target. Under `Router::nest` axum shortens the path; `axum::extract::OriginalUri` among
    /// the extensions has the whole.
    pub fn uri(&self) -> &'a Uri {
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
