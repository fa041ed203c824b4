//! Sessions that stay dead when logged out, lose no write, and cost one read.
//!
//! [`SessionLayer`] gives every request a session; handlers ask for [`Session<T>`](Session) with a
//! type of their own. Nothing is asked of the storage until a handler does, and nothing is stored, nor
//! any cookie set, until something is written.
//!
//! ```
//! use axum::{Router, http::StatusCode, routing::{get, post}};
//! use serde::{Deserialize, Serialize};
//! use tower_keep::{
//!     MemoryStorage, SessionLayer,
//!     session::{Policy, Principal, Session, SessionError, SessionHandle},
//! };
//!
//! #[derive(Default, Serialize, Deserialize)]
//! struct Visitor {
//!     cart: Vec<u32>,
//! }
//!
//! async fn add(mut session: Session<Visitor>) -> Result<StatusCode, SessionError> {
//!     session.update(|visitor| visitor.cart.push(7)).await?;
//!     Ok(StatusCode::NO_CONTENT)
//! }
//!
//! // The handle comes before what reads the body: see `SessionHandle::login`.
//! async fn login(session: SessionHandle, password: String) -> Result<StatusCode, SessionError> {
//!     if password != "correct horse" {
//!         return Ok(StatusCode::FORBIDDEN);
//!     }
//!     session.login("alice").await?; // A new id; the cart stays.
//!     Ok(StatusCode::NO_CONTENT)
//! }
//!
//! async fn logout(session: SessionHandle) -> Result<(), SessionError> {
//!     session.destroy().await
//! }
//!
//! let app: Router = Router::new()
//!     .route("/cart", post(add))
//!     .route("/login", post(login))
//!     .route("/logout", post(logout))
//!     .route("/me", get(|user: Principal| async move { user.into_string() }))
//!     .layer(SessionLayer::new(MemoryStorage::new(), Policy::new()));
//! # let _ = app;
//! ```
//!
//! # What handlers ask for
//!
//! | extractor | without a session | storage away |
//! |---|---|---|
//! | [`Session<T>`](Session), [`ReadSession<T>`](ReadSession) | `T::default()` | 503, or `T::default()` by [`Outage`] |
//! | `Option` of these two, and of [`Principal`] | `None` | `None` |
//! | [`RequiredSession<T>`](RequiredSession): anybody's | 401, or to the login page | 503, or as without a session |
//! | [`Principal`]: who has logged in | 401, or to the login page, also with an anonymous session | 503, or as without a session |
//! | [`RecentAuth<SECONDS>`](RecentAuth) | as `Principal`; 401 with a challenge if it is too long ago | 503, or as `Principal` |
//! | [`SessionHandle`] | a handle that can log in | 503, or a handle that can do nothing |
//!
//! Services without axum take [`SessionHandle::of`] the request and ask that.
//!
//! # What is saved, and when
//!
//! What a handler changes through `DerefMut` is saved before the head of the response leaves, so that
//! a redirect never outruns it. Each field by itself: requests that change different fields both keep
//! what they wrote. Counters and lists take [`Session::update`]. A save to a session that has ended
//! meanwhile is refused and reported ([`SaveFailure::Gone`]); nothing brings it back.
//!
//! Logins, logouts, new ids, `update` and `save` are done when their future is ready, whatever status
//! the handler then answers. If the client goes away meanwhile, an `update` is made in full or not at
//! all, and the others are carried out to their end.
//!
//! # Ids
//!
//! The client holds 256 random bits; the storage sees only their SHA-256. An id that the storage does
//! not know is never adopted. The id changes at every [`login`](SessionHandle::login),
//! [`reauthenticate`](SessionHandle::reauthenticate) and [`rotate`](SessionHandle::rotate), where the
//! old one is dead at once, and by time with [`Policy::with_rotation`], where the old one goes on
//! working until the client has used the new one.
//!
//! A cookie that no session belongs to is left in the browser: a removal could cross with the cookie
//! of a login in another tab. Only a logout removes it.
//!
//! # Times
//!
//! A session is over after its idle timeout, and at the latest after its absolute lifetime, which
//! nothing extends but a new login. The storage keeps both, by its own clock. The cookie lives for the
//! absolute lifetime, so it need not be set again while the session is used.
//!
//! # Principals
//!
//! A session of a principal can be listed and ended from anywhere, by its public id:
//! [`SessionHandle::list`], [`SessionHandle::end`], [`SessionHandle::end_others`], and
//! [`Sessions::end_all`], which is one operation for one session or for thousands. It also ends saves
//! and logins that are under way. The list is a hint that heals itself, and is never what ends a
//! session.
//!
//! # Where it goes
//!
//! Outermost first: trace, body limit, rate limit by address, CORS, CSRF, session, authentication,
//! rate limit by tier, cache, handler.
//!
//! Cookies are sent along with requests that other sites cause. `SameSite=Lax`, the default, keeps
//! them out of all but plain navigation; put a CSRF layer, such as tower-http's, around the routes
//! that change something, for browsers and sister domains that do not keep to it.
//!
//! An answer that depends on the session says `Vary: Cookie`, and is never called `public`; with
//! `Set-Cookie` it says `no-store`, unless the handler says `private`. The [cache](crate::marks) of
//! this crate stores neither.
//!
//! A rate limit by user asks for the session itself:
//!
//! ```
//! # #[cfg(feature = "rate-limit")] {
//! use tower_keep::{rate_limit::Policy, session::SessionHandle};
//!
//! let policy = Policy::new("api", "100/min".parse().unwrap()).with_async_key(|head| {
//!     let session: Option<SessionHandle> = SessionHandle::of(head);
//!     async move {
//!         session?.identify().await.ok()?
//!     }
//! });
//! # let _ = policy;
//! # }
//! ```
//!
//! # Streams
//!
//! A save waits for the handler's response, not for its body. What a body changes in a session is
//! saved by [`Session::save`] alone, and can no more set a cookie.
//!
//! # Outages
//!
//! While the storage gives no answer, requests that need their session are refused (503), or go on
//! without one ([`Outage::Anonymous`]); the cookie is left alone, so the session is back with the
//! storage. An acknowledged end of a session can be lost if Redis fails over to a replica that has not
//! heard of it; see [Failover](crate::storage#failover).
//!
//! [`Policy`] sets all of this; `docs/asvs.md` in the repository says which items of OWASP ASVS 5.0 it
//! covers.

mod change;
mod cookie;
mod data;
mod device;
mod error;
#[cfg(feature = "axum")]
mod extract;
mod fields;
mod future;
mod handle;
mod index;
mod layer;
mod login;
mod policy;
mod presented;
mod privacy;
mod queue;
mod record;
mod request;
mod save;
mod service;
mod sessions;
mod store;
mod timed;
mod token;
mod value;

#[cfg(feature = "secure-cookies")]
#[cfg_attr(docsrs, doc(cfg(feature = "secure-cookies")))]
pub use self::cookie::KeyRing;
#[cfg(feature = "axum")]
pub use self::extract::{
    Principal, RecentAuth, RequiredSession, SessionRejection, SessionRejectionKind,
};
pub use self::{
    cookie::{CookieError, CookieSettings, SameSite},
    data::{SessionData, SessionMap},
    device::Device,
    error::{Notice, SaveFailure, SessionError, SessionErrorKind},
    fields::FieldsError,
    future::ResponseFuture,
    handle::SessionHandle,
    layer::SessionLayer,
    login::Login,
    policy::{MigrateError, Outage, OverCap, Policy, PolicyError},
    service::SessionService,
    sessions::{ParseCursorError, SessionCursor, SessionInfo, SessionPage, Sessions},
    token::SessionToken,
    value::{ReadSession, Session},
};
pub use crate::body::plain::ResponseBody;
/// The type of public ids, so that handlers need no dependency of their own for it.
pub use uuid::Uuid;
