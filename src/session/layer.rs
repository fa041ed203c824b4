//! The layer.

use std::fmt;

use tower_layer::Layer;

use super::{Policy, PolicyError, SessionService, Sessions};
use crate::storage::Storage;

/// Gives every request a session. See the [module documentation](super) for an example.
///
/// The layer may be applied any number of times (axum applies it to every route): all services made
/// from it and its clones are one.
///
/// `R` is the realm: a type that tells several session layers of one router apart, such as those of
/// customers and of administrators. It need not be named where there is one layer, and is made by
/// [`SessionLayer::in_realm::<Admin>`](SessionLayer::in_realm). Two different layers of one realm around
/// one route are answered with 500, and a log line that says what to do.
pub struct SessionLayer<R = ()> {
    sessions: Sessions<R>,
}

impl SessionLayer {
    /// A layer that keeps its sessions on this storage.
    ///
    /// # Panics
    ///
    /// If the policy cannot be used. For settings from outside use
    /// [`Sessions::try_new`] and [`from_sessions`](Self::from_sessions).
    #[track_caller]
    pub fn new(storage: impl Storage, policy: Policy) -> Self {
        Self::from_sessions(Sessions::new(storage, policy))
    }

    /// A layer for a realm of its own.
    ///
    /// # Errors
    ///
    /// If the policy cannot be used: it needs a [name](Policy::named) of its own.
    ///
    /// # Examples
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use tower_keep::{MemoryStorage, SessionLayer, session::{Policy, Session, SessionMap}};
    ///
    /// struct Admin;
    ///
    /// async fn both(user: Session<SessionMap>, admin: Session<SessionMap, Admin>) {}
    ///
    /// let storage = MemoryStorage::new();
    /// let app: Router = Router::new()
    ///     .route("/", get(both))
    ///     .layer(SessionLayer::new(storage.clone(), Policy::new()))
    ///     .layer(SessionLayer::in_realm::<Admin>(storage, Policy::named("admin"))?);
    /// # let _ = app;
    /// # Ok::<_, tower_keep::session::PolicyError>(())
    /// ```
    pub fn in_realm<R: 'static>(
        storage: impl Storage,
        policy: Policy,
    ) -> Result<SessionLayer<R>, PolicyError> {
        Sessions::in_realm(storage, policy).map(SessionLayer::from_sessions)
    }
}

impl<R> SessionLayer<R> {
    /// A layer over these sessions.
    pub fn from_sessions(sessions: Sessions<R>) -> Self {
        Self { sessions }
    }

    /// The sessions of the layer: to list and end them outside of their own requests.
    pub fn sessions(&self) -> &Sessions<R> {
        &self.sessions
    }
}

impl<S, R> Layer<S> for SessionLayer<R> {
    type Service = SessionService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        SessionService::new(inner, self.sessions.clone())
    }
}

impl<R> Clone for SessionLayer<R> {
    fn clone(&self) -> Self {
        Self { sessions: self.sessions.clone() }
    }
}

impl<R> fmt::Debug for SessionLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionLayer").field("sessions", &self.sessions).finish()
    }
}
