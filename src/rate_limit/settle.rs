//! Costs that are known only after the response.

use std::{fmt, sync::Arc};

use http::{Extensions, HeaderMap, Response, StatusCode};

use crate::head::Names;

/// What a request really cost, declared by the handler as a response extension.
///
/// # Examples
///
/// ```
/// use axum::{Extension, response::IntoResponse};
/// use tower_keep::rate_limit::Cost;
///
/// async fn complete() -> impl IntoResponse {
///     let tokens_used = 420;
///     (Extension(Cost(tokens_used)), "done")
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost(pub u32);

/// A response without its body, borrowed: what a [`Settlement`] sees.
#[derive(Clone, Copy)]
pub struct ResponseHead<'a> {
    status: StatusCode,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
}

impl<'a> ResponseHead<'a> {
    pub(super) fn new<B>(response: &'a Response<B>) -> Self {
        Self {
            status: response.status(),
            headers: response.headers(),
            extensions: response.extensions(),
        }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The header fields.
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// What the handler and inner layers have attached.
    pub fn extensions(&self) -> &'a Extensions {
        self.extensions
    }
}

impl fmt::Debug for ResponseHead<'_> {
    /// Without the values of the header fields, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseHead")
            .field("status", &self.status)
            .field("headers", &Names(self.headers))
            .finish_non_exhaustive()
    }
}

type Measure = dyn Fn(ResponseHead<'_>) -> u32 + Send + Sync;

/// Reserves units before the handler runs and settles for what the request really cost.
///
/// The reservation keeps concurrent requests from overspending. When the response is there, the
/// difference is given back or taken on top; the response waits for that, as its header fields tell
/// of it. A request that is dropped before gives its reservation back, unless told otherwise.
///
/// # Examples
///
/// Only failed logins count:
///
/// ```
/// use tower_keep::rate_limit::{Policy, Settlement};
///
/// let logins = Policy::new("login", "5/15min strict".parse()?)
///     .with_settlement(
///         Settlement::by_status(|status| if status.is_success() { 0 } else { 1 })
///             .keep_when_dropped(),
///     );
/// # let _ = logins;
/// # Ok::<_, tower_keep::quota::ParseQuotaError>(())
/// ```
#[derive(Clone)]
pub struct Settlement {
    measure: Arc<Measure>,
    keep_when_dropped: bool,
}

impl Settlement {
    /// The cost is a function of the response.
    pub fn from_fn(measure: impl Fn(ResponseHead<'_>) -> u32 + Send + Sync + 'static) -> Self {
        Self { measure: Arc::new(measure), keep_when_dropped: false }
    }

    /// The cost is a function of the status.
    pub fn by_status(cost: impl Fn(StatusCode) -> u32 + Send + Sync + 'static) -> Self {
        Self::from_fn(move |response| cost(response.status()))
    }

    /// The cost is what the handler declares with [`Cost`], or this where it declares nothing.
    pub fn declared(otherwise: u32) -> Self {
        Self::from_fn(move |response| {
            response.extensions().get::<Cost>().map_or(otherwise, |cost| cost.0)
        })
    }

    /// A request that is dropped before its response keeps what it had reserved.
    ///
    /// # Security
    ///
    /// For quotas that guard a secret: otherwise a client that hangs up early tries for nothing.
    #[must_use]
    pub fn keep_when_dropped(mut self) -> Self {
        self.keep_when_dropped = true;
        self
    }

    pub(super) fn cost(&self, response: ResponseHead<'_>) -> u32 {
        (self.measure)(response)
    }

    pub(super) fn keeps_when_dropped(&self) -> bool {
        self.keep_when_dropped
    }
}

impl fmt::Debug for Settlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settlement")
            .field("keep_when_dropped", &self.keep_when_dropped)
            .finish_non_exhaustive()
    }
}
