//! Responses, and other values, that are kept and given again: an HTTP cache that leaks to nobody,
//! with purges that win.
//!
//! ```
//! use std::time::Duration;
//!
//! use axum::{Router, extract::{Path, State}, routing::get};
//! use tower_keep::{CacheHandle, CacheLayer, MemoryStorage, cache::{CacheTags, Policy}};
//!
//! async fn show(Path(id): Path<u32>) -> (CacheTags, String) {
//!     // Slow, and the same for everybody.
//!     (CacheTags::new([format!("product:{id}")]), format!("product {id}"))
//! }
//!
//! async fn change(State(cache): State<CacheHandle>, Path(id): Path<u32>) -> &'static str {
//!     // First the database, then:
//!     match cache.invalidate([format!("product:{id}")]).await {
//!         Ok(()) => "changed",
//!         // It is repeated until it succeeds; this handle answers past the cache meanwhile.
//!         Err(_) => "changed, and soon to be seen by all",
//!     }
//! }
//!
//! let layer = CacheLayer::new(MemoryStorage::new(), Policy::output(Duration::from_secs(60)));
//! let cache = layer.handle().clone();
//! let app: Router = Router::new()
//!     .route("/products/{id}", get(show).put(change))
//!     .layer(layer)
//!     .with_state(cache);
//! # let _ = app;
//! ```
//!
//! # Two modes
//!
//! [`Policy::output`] gives every answer of a route a time to live that is set there. [`Policy::http`]
//! does what the handler's header fields say, as RFC 9111 has it for a shared cache: for proxies, and
//! for services whose handlers know best. In both, clients are answered with `304`, `206` and `HEAD`
//! from what is stored, and `Age`, `ETag` and `Cache-Status` (RFC 9211) are written.
//!
//! # Purges
//!
//! When [`CacheHandle::invalidate`] returns, no lookup that begins later, on any node, finds an answer
//! that carries one of the tags; nor one that a handler is making at that moment from what it read
//! before. That does not depend on clocks, on how long handlers take, or on what the storage has lost
//! ([fences](crate::storage#tags) see to it), and costs one round trip for one entry or a million. Tags
//! need not be known before the handler ran: it names them in its answer.
//!
//! Answers carry implicit tags as well: of their target (path and query), their host and, under axum,
//! their route. A request that changes something (`POST`, `PUT`, `PATCH`, `DELETE`, and what nobody
//! knows) invalidates its own target when it succeeds, before its answer is released; and when it is
//! never answered, because its client went away or the handler panicked. So whoever may send such
//! requests can end what is stored, 100,000 targets at a time everything.
//!
//! What a purge cannot help: a handler that reads from a replica which lags
//! ([`invalidate_after`](CacheHandle::invalidate_after) purges twice), a process that dies between its
//! write and the purge, a handler that is dropped between its write and a purge by tags because its client
//! went away (a task of its own finishes both), and a server that comes up without what it had acknowledged
//! ([failover](crate::storage#failover)).
//!
//! # One fill at a time
//!
//! Of the requests of one process that miss the same answer and saw the same state of purges, one goes
//! to the handler, in a task that survives its client; the others wait for its answer. An answer that
//! cannot be stored releases them all at once, and is remembered, so that the next ones do not wait. If
//! the handler fails, its own client is told so, and one of the others tries again.
//! [`Policy::with_lease`] makes that one of all nodes.
//!
//! # When the storage is away
//!
//! Requests go to the handlers, one at a time for each target and at most
//! [`with_outage_concurrency`](CacheHandleBuilder::with_outage_concurrency) in all. A purge that is not
//! acknowledged is an error to its caller, is repeated in the background, and until it is acknowledged
//! its handle serves nothing from the cache. Other handles, and nodes, may serve what was to be purged
//! until then.
//!
//! # Limits
//!
//! A fill goes on when its client has gone, so limits of concurrency and timeouts that are to protect
//! handlers belong inside of the cache. Outside, they bound what clients wait for. A handler in a fill
//! runs in a task of its own: it has the tracing span of the request, but not its task-locals.
//!
//! # Security
//!
//! [`Policy`] says what is never stored. The key has the host with its port, the scheme where the request
//! names one, and the path and query as they were sent, and is kept with the answer and compared. Tags and groups count in answers only. An
//! `Age`, a fast answer and `Cache-Status` tell a client that somebody was there before.

mod control;
mod entry;
mod fill;
mod flight;
mod handle;
mod key;
mod layer;
mod near;
mod outcome;
mod policy;
mod purge;
mod reply;
mod service;
mod shelf;
mod tags;
mod turn;
mod value;

pub use self::{
    handle::{CacheHandle, CacheHandleBuilder},
    key::Query,
    layer::CacheLayer,
    near::NearCache,
    outcome::{Outcome, Source},
    policy::{Policy, StatusHeader},
    service::Cache,
    tags::{CacheTags, TagForwarding},
    value::{FillError, Keep},
};
pub use crate::{
    body::live::{BodyError, ResponseBody},
    service::ResponseFuture,
};
