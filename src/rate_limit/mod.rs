//! Rate limits that hold.
//!
//! [`RateLimitLayer`] limits the requests of a service by a [`Policy`]; [`Limiter`] makes the same
//! decisions outside of requests.
//!
//! # Examples
//!
//! ```
//! use std::net::SocketAddr;
//! use axum::{Router, routing::get};
//! use tower_keep::{MemoryStorage, RateLimitLayer, rate_limit::Policy};
//!
//! let storage = MemoryStorage::new();
//! let app: Router = Router::new()
//!     .route("/", get(|| async { "hello" }))
//!     .layer(RateLimitLayer::new(storage, Policy::new("api", "100/min".parse()?)));
//! // The layer counts by client address, so the server has to tell it.
//! let service = app.into_make_service_with_connect_info::<SocketAddr>();
//! # let _ = service;
//! # Ok::<_, tower_keep::quota::ParseQuotaError>(())
//! ```
//!
//! Any tower service will do:
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::Full;
//! use tower::{Service, ServiceBuilder, ServiceExt};
//! use tower_keep::{MemoryStorage, RateLimitLayer, rate_limit::{PeerAddr, Policy}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let layer = RateLimitLayer::new(MemoryStorage::new(), Policy::new("api", "2/min".parse()?));
//! let mut service = ServiceBuilder::new().layer(layer).service_fn(|_: Request<()>| async {
//!     Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from("hello"))))
//! });
//! let request = || {
//!     let peer = PeerAddr("192.0.2.1:4711".parse().unwrap());
//!     Request::builder().extension(peer).body(()).unwrap()
//! };
//!
//! let first = service.ready().await?.call(request()).await?;
//! assert_eq!(first.headers()["x-ratelimit-remaining"], "1");
//! service.ready().await?.call(request()).await?;
//! let third = service.ready().await?.call(request()).await?;
//! assert_eq!(third.status(), StatusCode::TOO_MANY_REQUESTS);
//! # Ok(())
//! # }
//! ```
//!
//! # What a request goes through
//!
//! 1. The lists and the exemption: refused with 403, or passed without a limit.
//! 2. The [`KeyExtractor`] finds the identity, or before it what
//!    [`with_async_key`](Policy::with_async_key) waits for; the tier resolver, if there is one, the
//!    quotas.
//! 3. All quotas are charged in one round trip, all or nothing. A refusal by one leaves the others
//!    as they were.
//! 4. A refusal is a response, 429 with `application/problem+json`, never an error of the service.
//!    The process remembers it: until the quota can have room again, requests of the same identity
//!    and cost are refused without asking the storage.
//! 5. An admitted request carries its [`Decision`] in its extensions. With a [`Settlement`] the
//!    units are settled when the response is there. An answer that only repeats a stored one, as its
//!    [mark](crate::marks::ReplayMark) says, costs nothing, unless the policy
//!    [counts replays](Policy::with_replays_counted).
//! 6. The response tells the client about its quota, see [`Headers`].
//!
//! # Order of layers
//!
//! Outermost first: trace, body limit, rate limit by address, CORS, session, authentication, rate
//! limit by tier, handler. In axum the layer that is added last is the outermost, so write
//! `.layer(limit_by_tier).layer(authentication).layer(limit_by_address)`. Put the layer on the whole router rather than on routes
//! (`Router::layer`, not `route_layer`), so that unknown paths are limited too.
//!
//! # Browsers and CORS
//!
//! Scripts from other origins see a response, and its header fields, only if the CORS layer has
//! dealt with it:
//!
//! - Where scripts are to understand a 429, put the CORS layer outside of the rate limit. It then
//!   also answers preflights (`OPTIONS`) itself, so that they cost no units.
//! - Expose the fields: `CorsLayer::expose_headers(`[`EXPOSED_HEADERS`]`)` of `tower-http`.
//! - A limit that stays outside of CORS should not count preflights, of which a browser sends one
//!   before each kind of request. Exempt only those, not all of `OPTIONS`, which handlers may
//!   answer:
//!
//! ```
//! use http::{Method, header::ACCESS_CONTROL_REQUEST_METHOD};
//! use tower_keep::rate_limit::Policy;
//!
//! let policy = Policy::new("api", "100/min".parse()?).with_exemption(|head| {
//!     head.method() == Method::OPTIONS
//!         && head.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
//! });
//! # let _ = policy;
//! # Ok::<_, tower_keep::quota::ParseQuotaError>(())
//! ```
//!
//! A preflight is an empty request that anybody can send: exempt them only where a CORS layer, which
//! answers them cheaply, stands between the limit and the handlers.
//!
//! # Deployment
//!
//! Behind a proxy every request has the proxy's address. Say which proxies are yours with
//! [`ClientAddress::behind_proxies`]; without that, forwarding headers are ignored, for anybody can
//! write them.

mod address;
mod counters;
mod decision;
#[cfg(feature = "axum")]
mod extract;
mod forwarded;
mod future;
mod headers;
mod key;
mod layer;
mod limiter;
mod network;
mod policy;
mod rejection;
mod reservation;
mod service;
mod settle;
mod tier;
#[cfg(feature = "tracing")]
mod warn;

#[cfg(feature = "axum")]
pub use self::extract::MissingDecision;
pub use self::{
    address::{AddressError, ClientAddress, ForwardedHeader, PeerAddr},
    decision::{Decision, QuotaVerdict},
    future::ResponseFuture,
    headers::{
        Draft, EXPOSED_HEADERS, Headers, RATELIMIT, RATELIMIT_POLICY, ResetFormat,
        X_RATELIMIT_LIMIT, X_RATELIMIT_REMAINING, X_RATELIMIT_RESET,
    },
    key::KeyExtractor,
    layer::RateLimitLayer,
    limiter::Limiter,
    network::Networks,
    policy::{Enforcement, MissingIdentity, Outage, Policy, PolicyError},
    rejection::{Rejection, RejectionKind},
    service::RateLimit,
    settle::{Cost, ResponseHead, Settlement},
    tier::Tiers,
};
pub use crate::body::plain::ResponseBody;
