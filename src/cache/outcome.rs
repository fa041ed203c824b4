//! What the cache did with a request.

use http::{HeaderMap, StatusCode};

use super::{
    Policy, StatusHeader,
    control::{self, CacheStatus, Forward},
};

/// What the cache did with a request: among the extensions of every response that came through it,
/// for outer layers, metrics and tests.
///
/// # Examples
///
/// ```
/// use tower_keep::cache::{Outcome, Source};
///
/// fn is_hit(response: &http::Response<()>) -> bool {
///     response.extensions().get::<Outcome>().is_some_and(|it| it.source == Source::Hit)
/// }
/// # assert!(!is_hit(&http::Response::new(())));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// Where the answer comes from.
    pub source: Source,
    /// How many seconds the answer lives on; zero or less if it is stale. `None` if it was not stored.
    pub ttl: Option<i64>,
    /// Whether this request's answer was given to the storage.
    pub stored: bool,
    /// The status with which the handler answered, if that is not the status of the response.
    pub handler_status: Option<StatusCode>,
    /// Why the answer was not stored, or the stored one not used.
    ///
    /// | reason | |
    /// |---|---|
    /// | `method`, `body`, `upgrade`, `connection`, `condition`, `method-override`, `head` | the request is not for a cache |
    /// | `authorization`, `cookie`, `session` | it depends on who asks; see [`Policy::with_principal`] |
    /// | `no-principal`, `ambiguous-host` | there is no key for it |
    /// | `no-store`, `private`, `no-cache`, `set-cookie`, `vary-all`, `vary-cookie`, `no-freshness`, `event-stream`, `challenge`, `partial`, `status` | the answer may not be stored, or nothing says for how long |
    /// | `too-large`, `too-many-tags`, `tag-too-long`, `empty-tag` | it is beyond a bound |
    /// | `inner-cache` | a layer inside has decided |
    /// | `storage-unavailable`, `purge-pending` | the storage gives no answer, or has not acknowledged a purge |
    /// | `stale-while-revalidate`, `stale-if-error` | why a stale answer was given |
    /// | `cache` | the answer is the cache's own: 500, 503 or 504 |
    pub reason: Option<&'static str>,
}

/// Where an answer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// The storage.
    Hit,
    /// The storage, although it is stale: it is renewed in the background, or the handler failed.
    Stale,
    /// The handler, for this request.
    Handler,
    /// The handler, which found that the stored answer is still good.
    Revalidated,
    /// The handler, for another request of the same moment.
    Collapsed,
    /// The handler; the cache had nothing to do with it.
    Passed,
}

/// The reason of an old answer that was given because there is no new one.
pub(super) const STALE_IF_ERROR: &str = "stale-if-error";

impl Outcome {
    pub(super) const fn new(source: Source) -> Self {
        Self { source, ttl: None, stored: false, handler_status: None, reason: None }
    }

    pub(super) const fn with_ttl(mut self, ttl: i64) -> Self {
        self.ttl = Some(ttl);
        self
    }

    pub(super) const fn with_reason(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Adds `Cache-Status`, if the policy wants it.
    pub(super) fn write(&self, reason: Forward, policy: &Policy, headers: &mut HeaderMap) {
        let detail = match policy.status {
            StatusHeader::Off => return,
            StatusHeader::Brief => None,
            StatusHeader::Detailed => self.reason,
        };
        let outcome = match self.source {
            // RFC 9211 §2.1: what was forwarded is no hit, whatever is answered in the end.
            Source::Stale if self.reason == Some(STALE_IF_ERROR) => control::Outcome::Forward {
                reason: Forward::Stale,
                status: self.handler_status,
                stored: false,
                collapsed: false,
                ttl: self.ttl,
            },
            Source::Hit | Source::Stale => control::Outcome::Hit { ttl: self.ttl.unwrap_or(0) },
            _ => control::Outcome::Forward {
                reason,
                status: self.handler_status,
                stored: self.stored,
                collapsed: self.source == Source::Collapsed,
                ttl: self.ttl,
            },
        };
        CacheStatus { cache: &policy.status_name, outcome, detail }.append_to(headers);
    }
}
