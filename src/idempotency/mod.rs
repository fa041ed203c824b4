//! Idempotency keys: a request that is sent again is not executed again, and the guarantee is stated.
//!
//! A client that gets no answer does not know whether its payment was made. It sends the request
//! again, with the same key of its own in `Idempotency-Key`, and is given the answer of the first,
//! whatever became of that: it has ended, is under way, or was lost with its process.
//!
//! ```
//! use axum::{Router, http::StatusCode, routing::post};
//! use tower_keep::{
//!     IdempotencyLayer, MemoryStorage,
//!     idempotency::{BeginError, Idempotency, Policy},
//! };
//!
//! # #[derive(Clone)] struct UserId(u64);
//! async fn pay(attempt: Idempotency, amount: String) -> Result<StatusCode, BeginError> {
//!     let Ok(amount) = amount.parse::<u32>() else {
//!         return Ok(StatusCode::UNPROCESSABLE_ENTITY); // Nothing was done: the key is free again.
//!     };
//!     attempt.begin().await?; // What is answered from here on is kept.
//!     charge(amount, &attempt.child_key("charge")).await;
//!     Ok(StatusCode::CREATED)
//! }
//! # async fn charge(_: u32, _: &str) {}
//!
//! let policy = Policy::scope(|head| Some(head.extensions().get::<UserId>()?.0.to_string()))
//!     .with_required_key()
//!     .with_commit_point();
//! let app: Router = Router::new()
//!     .route("/payments", post(pay))
//!     .layer(IdempotencyLayer::new(MemoryStorage::new(), policy));
//! # let _ = app;
//! ```
//!
//! Handlers need not know of keys at all; [`Idempotency`] is for those that want to be exact.
//!
//! # The guarantee
//!
//! With a storage on a single primary that does not lose the key, at most one handler runs per key
//! while its lease is renewed, and every later duplicate is given the stored outcome. If the process
//! dies after its side effect and before the outcome is stored, if the storage loses or evicts the
//! key, or if the process is paused for longer than its lease, a duplicate may run
//! ([`Repeat::AtLeastOnce`]), or the key stays *unknown* ([`Repeat::AtMostOnce`]). Only a side effect
//! that is itself keyed closes that gap: a unique constraint, another service's idempotency key
//! ([`Idempotency::child_key`]), or the fencing number checked by your database
//! ([`Idempotency::fence`]).
//!
//! A handler that blocks its thread for longer than the lease counts as paused. A Redis that evicts
//! keys or keeps nothing on disk is warned of in the log when the layer is set up, if it lets itself be
//! asked.
//!
//! # What clients are told
//!
//! | the key | answer |
//! |---|---|
//! | missing where [required](Policy::with_required_key); malformed, empty, on two lines | 400 |
//! | is new | the handler's |
//! | was used for another request: other query, content type, body | 422 |
//! | is in flight | 409 and `Retry-After`, or its answer in the end ([`InFlight`]) |
//! | is done | the stored answer, and `Idempotent-Replayed: true` |
//! | is done, and the answer could not be kept ([`SealReason`]) | 409, with its status and `Location` |
//! | is unknown | 409, until somebody has looked |
//! | cannot be checked, for the storage is away | 503 and `Retry-After` before the handler runs ([`Outage`]) |
//! | belongs to nobody ([`MissingScope`]) | 400 |
//! | comes with a body that is [too large](Policy::with_max_request_body) | 413 |
//! | is one too many of its [scope](Policy::with_max_in_flight), or of [all](Policy::with_max_running) | 429, 503; both with `Retry-After` |
//!
//! Refusals are problems (RFC 9457) with a `code` for programs, as
//! draft-ietf-httpapi-idempotency-key-header-07 has them. A key may be quoted, as the draft wants it,
//! or bare. Publish the retention ([`Policy::with_retention`]): after it, a key is new.
//!
//! # What becomes of a key
//!
//! The handler runs in a task of its own: a client that goes away changes nothing. Its answer is kept
//! ([`Disposition`]), whatever it is, but for answers that say that nothing was done: those of
//! extractors and authentication, 429, and 503 with `Retry-After` free the key. A 500 is kept, as part
//! of the work may be done, and so is a panic. A handler that knows better says so, by
//! [`begin`](Idempotency::begin) or a [`Disposition`] in its response; without that word the next
//! request runs a handler again that has done something and then answers, say, 404 or 422, also under
//! [`Repeat::AtMostOnce`].
//!
//! Task-local values of the request's task are not there in the handler's, nor are the trailers of the
//! request.
//!
//! # What a replay carries
//!
//! Status, body, and the header fields that describe them. Never `Set-Cookie`, `Date`, `Age`, rate-limit,
//! CORS, hop-by-hop, authentication or trace fields: they belong to the first request. See
//! [`Policy::add_dropped_header`] and [`Policy::with_kept_headers`].
//!
//! # Which order of layers, and why
//!
//! Outermost first:
//!
//! 1. trace, body limit, CORS, compression: they are of each request, also of a replay, and are not
//!    stored;
//! 2. session and authentication: a replay passes them again, so a user who was logged out is not given
//!    the stored answer, and the [scope](Policy::scope) is what they have found out;
//! 3. rate limits: they see replays, and give back what a replay took
//!    ([`ReplayMark`](crate::marks::ReplayMark));
//! 4. this layer;
//! 5. timeouts, concurrency limits and everything else that may refuse *executions*; the handler. A
//!    timeout inside is the handler's answer and is kept; one outside is a client that went away.
//!
//! The request's body is read before the handler runs, for it belongs to the fingerprint. A layer that
//! decompresses requests goes outside.
//!
//! # What to do about unknown keys
//!
//! Under [`Repeat::AtMostOnce`] the key of a vanished owner stays unknown, and its duplicates are told
//! so. There are three ways out: a [recovery](Policy::with_recovery) asks the ledger or the payment
//! provider by [`child_key`](Vanished::child_key); an operator looks at
//! [`IdempotencyKeys::list`] and says what came of each; or the owner, if it was only paused, comes
//! back and stores it. With a [commit point](Policy::with_commit_point) an owner that vanished before
//! it leaves nothing unknown. What never gets this far is a handler that has time to end: call
//! [`AnyStorage::shutdown`](crate::storage::AnyStorage::shutdown) before the process ends.
//!
//! # Security
//!
//! Keys are hashed together with their scope before the storage sees them, and no log shows them. The
//! stored answers are not encrypted: [`seal`](Idempotency::seal) those with a secret in them.
//! [`Policy::with_max_in_flight`] and [`Policy::with_max_stored`] bound what one scope can use; a rate
//! limit in front bounds how fast, replays only if it counts them
//! (`rate_limit::Policy::with_replays_counted`).
//!
//! What a handler or its extractors check is not checked again for a replay: a user who has lost a role
//! meanwhile is given the answer to his earlier request, unless the check is a layer outside of this
//! one, or the role is part of the scope. So is `Host`, if the same path means something else there.
//! The storage sees method and path of a request, for operators.

mod classify;
#[cfg(feature = "axum")]
mod extract;
mod fingerprint;
mod handle;
mod headers;
mod judge;
mod key;
mod key_handle;
mod keys;
mod layer;
mod outcome;
mod policy;
mod record;
mod recover;
mod reply;
mod roster;
mod run;
mod service;
mod shared;
mod usage;
mod waiting;

#[cfg(feature = "axum")]
pub use self::extract::IdempotencyRejection;
pub use self::{
    classify::{Answer, Disposition},
    fingerprint::FingerprintRules,
    handle::{BeginError, BeginErrorKind, Idempotency},
    key::{IdempotencyKey, KeyError, KeySyntax},
    key_handle::{KeyHandle, ParseKeyHandleError},
    keys::{IdempotencyKeys, KeyCursor, KeyPage, Resolution, UnknownKey},
    layer::IdempotencyLayer,
    outcome::Outcome,
    policy::{InFlight, MissingScope, Outage, Policy, PolicyError, Repeat},
    record::SealReason,
    recover::{Recovery, Vanished},
    service::IdempotencyService,
};
pub use crate::{
    body::live::{BodyError, ResponseBody},
    service::ResponseFuture,
};
