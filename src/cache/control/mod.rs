//! What HTTP has to say about caching, as pure functions: no clock, no I/O.
//!
//! RFC 9111 as a shared cache, the parts of RFC 9110 that a cache answers by itself, RFC 5861,
//! RFC 9211, RFC 9213 and RFC 9875. [`enter`] looks at a request, [`store`] at the head of its
//! response, [`Freshness`] at what was stored, [`select`] at what of it answers a request.

use std::time::Duration;

use http::{HeaderName, StatusCode};

pub(crate) use self::{
    answer::into_answer,
    condition::{Condition, Selection, revalidation, select, unconditional},
    directives::RequestDirectives,
    enter::{Entrance, Wishes, enter},
    fields::{freshen, stored_headers},
    freshness::{Freshness, Reuse},
    groups::{groups, invalidated_groups},
    invalidation::invalidated,
    status::{CacheStatus, Forward, Outcome},
    store::{Arrival, Refusal, RequestFacts, Storable, revalidated, store},
    vary::{variant_value, vary},
};

mod answer;
mod condition;
mod date;
mod directives;
mod enter;
mod fields;
mod freshness;
mod groups;
mod invalidation;
mod status;
mod store;
mod vary;

#[cfg(test)]
mod properties;

/// How a policy bends what HTTP says.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// `None` is HTTP mode. In output mode the route says how long, and the response at most that it
    /// must not be stored.
    pub(crate) output: Option<Output>,
    /// Our own targeted field (RFC 9213), which is consulted before `CDN-Cache-Control`.
    pub(crate) target: Option<HeaderName>,
    /// A response with `Set-Cookie` is stored without it; otherwise it is not stored.
    pub(crate) strip_set_cookie: bool,
    /// The principal is part of the key: what answers `Authorization` may be stored.
    pub(crate) keyed_principal: bool,
    /// `Cache-Control` and `Pragma` of requests count. They let clients go past the cache.
    pub(crate) honour_request: bool,
    /// An explicit stale window wins over the `proxy-revalidate` that `s-maxage` implies.
    pub(crate) stale_despite_s_maxage: bool,
    /// The storage never keeps longer.
    pub(crate) longest_life: Duration,
    /// What has a validator is kept this long after it ceased to be fresh, to be revalidated.
    pub(crate) keep_stale: Duration,
    /// How long after its freshness a response may stand in for a service that gives no response at
    /// all, unless the response forbids it (RFC 9111, section 4.2.4).
    pub(crate) stale_if_unreachable: Duration,
    /// Output mode: the handler sees no `Cookie`, so that it does not matter.
    pub(crate) output_cookies_ignored: bool,
}

/// What a route says about its responses in output mode.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) ttl: Duration,
    pub(crate) stale_while_revalidate: Duration,
    pub(crate) stale_if_error: Duration,
    /// Statuses with a life of their own, which is how errors are stored.
    pub(crate) negative: Vec<(StatusCode, Duration)>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            output: None,
            target: None,
            strip_set_cookie: false,
            keyed_principal: false,
            honour_request: false,
            stale_despite_s_maxage: false,
            longest_life: Duration::from_secs(24 * 60 * 60),
            keep_stale: Duration::from_secs(60 * 60),
            stale_if_unreachable: Duration::ZERO,
            output_cookies_ignored: false,
        }
    }
}

#[cfg(test)]
fn header_map(lines: &[(&str, &str)]) -> http::HeaderMap {
    let mut headers = http::HeaderMap::new();
    for (name, value) in lines {
        let name = HeaderName::try_from(*name).unwrap();
        headers.append(name, http::HeaderValue::try_from(*value).unwrap());
    }
    headers
}
