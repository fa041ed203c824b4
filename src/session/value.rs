//! The session as a value of the application's own type.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    thread,
};

use super::{SessionData, SessionError, SessionHandle, data::Encoded, fields::Changes};

/// The session of a request, as a value of a type of your own.
///
/// Read it through `Deref`, change it through `DerefMut`; what has changed is saved before the head
/// of the response leaves. Without a session the value is the type's default, and only the first
/// change begins one. See [`SessionData`] for the types.
///
/// Two requests that change different fields both keep what they wrote. If both change the same one,
/// the later wins; where that would lose something, as with counters and lists, use
/// [`update`](Self::update).
///
/// # Examples
///
/// ```
/// use axum::{Router, routing::get};
/// use serde::{Deserialize, Serialize};
/// use tower_keep::{MemoryStorage, SessionLayer, session::{Policy, Session}};
///
/// #[derive(Default, Serialize, Deserialize)]
/// struct Visitor {
///     theme: String,
///     visits: u32,
/// }
///
/// async fn index(mut session: Session<Visitor>) -> Result<String, tower_keep::session::SessionError> {
///     session.theme = "dark".to_owned(); // Saved before the response leaves.
///     let visits = session.update(|visitor| {
///         visitor.visits += 1; // Exact, however many requests do it at once.
///         visitor.visits
///     });
///     Ok(format!("visit {}", visits.await?))
/// }
///
/// let app: Router = Router::new()
///     .route("/", get(index))
///     .layer(SessionLayer::new(MemoryStorage::new(), Policy::new()));
/// # let _ = app;
/// ```
///
/// A value shows what it was read from. After a login of somebody else or a logout in the same handler it
/// still does, and changes of it are refused; read anew with [`SessionHandle::session`].
///
/// # Cancel safety
///
/// If the handler panics, or the whole request is dropped, nothing of what was changed through
/// `DerefMut` is saved. If an inner layer drops the handler and answers itself (a timeout: 408), what
/// was changed so far would be half of it, so by default it is not saved either; see
/// [`Policy::with_saves`](super::Policy::with_saves).
///
/// # Streams
///
/// A value that is moved into the body of the response outlives its head. What is changed then is not
/// saved by itself, and a warning says so: call [`save`](Self::save).
pub struct Session<T: SessionData, R = ()> {
    handle: SessionHandle<R>,
    value: T,
    era: u64,
    /// The fields that the value was read from, which may lack some of the type's. `None` if all are
    /// there.
    record: Option<Encoded>,
    /// The fields as they were before the first change.
    before: Option<Result<Encoded, SessionError>>,
}

impl<T: SessionData, R> Session<T, R> {
    pub(super) fn new(handle: SessionHandle<R>, value: T, era: u64, record: Encoded) -> Self {
        Self { handle, value, era, record: Some(record), before: None }
    }

    /// The session itself: to log out, and the like.
    ///
    /// A handler that logs in extracts the [`SessionHandle`] itself: as an extractor it notes when the
    /// login began, and from what device.
    pub fn handle(&self) -> &SessionHandle<R> {
        &self.handle
    }

    /// Changes the data as one step: by compare-and-swap on the storage, tried again with what is
    /// there until it holds. What was changed before through `DerefMut` is saved with it.
    ///
    /// A closure that changes nothing writes nothing, and begins no session.
    ///
    /// The closure may run several times, each time on fresh data. Within this process, updates of one
    /// session take turns.
    ///
    /// # Errors
    ///
    /// [`Gone`](super::SessionErrorKind::Gone) if the session has ended meanwhile: nothing was written.
    /// If the storage gives no answer, or there was no getting through in ten times the policy's
    /// [timeout](super::Policy::with_timeout): whether it was written is then unknown.
    ///
    /// # Cancel safety
    ///
    /// The change is made in full or not at all.
    pub async fn update<O>(&mut self, change: impl FnMut(&mut T) -> O) -> Result<O, SessionError> {
        self.push_changes(true)?;
        let (value, era, outcome) = self.handle.inner.update(change).await?;
        (self.value, self.era) = (value, era);
        (self.record, self.before) = (None, None);
        Ok(outcome)
    }

    /// Saves now what would be saved before the response leaves.
    ///
    /// # Errors
    ///
    /// As [`SessionHandle::save`].
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried out to its end.
    pub async fn save(&mut self) -> Result<(), SessionError> {
        self.push_changes(true)?;
        self.handle.save().await
    }

    /// Hands what has changed to the request, to be saved with all else; or at once, if the caller
    /// does so.
    fn push_changes(&mut self, at_once: bool) -> Result<(), SessionError> {
        let Some(before) = self.before.take() else { return Ok(()) };
        let changes = before.and_then(|before| {
            let after = self.value.encode()?;
            let changes = Changes::diff(&before.0, &after.0);
            Ok(match &self.record {
                Some(record) if record.0 != before.0 => changes.with_missing(&after.0, &record.0),
                _ => changes,
            })
        });
        self.handle.inner.push(changes, self.era, at_once)
    }
}

impl<T: SessionData, R> Deref for Session<T, R> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: SessionData, R> DerefMut for Session<T, R> {
    fn deref_mut(&mut self) -> &mut T {
        if self.before.is_none() {
            self.before = Some(self.value.encode().map_err(SessionError::from));
        }
        &mut self.value
    }
}

impl<T: SessionData, R> Drop for Session<T, R> {
    fn drop(&mut self) {
        if !thread::panicking() && self.push_changes(false).is_err() {
            event!(
                warn,
                "a session was changed after it had ended or another had taken its place: nothing \
                 was saved"
            );
        }
    }
}

impl<T: SessionData + fmt::Debug, R> fmt::Debug for Session<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Session").field(&self.value).finish()
    }
}

/// The session of a request, to be read only.
///
/// Without a session it is the type's default.
pub struct ReadSession<T, R = ()> {
    value: T,
    handle: SessionHandle<R>,
}

impl<T: SessionData, R> ReadSession<T, R> {
    pub(super) fn new(handle: SessionHandle<R>, value: T) -> Self {
        Self { value, handle }
    }

    /// The session itself.
    pub fn handle(&self) -> &SessionHandle<R> {
        &self.handle
    }
}

impl<T, R> Deref for ReadSession<T, R> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: fmt::Debug, R> fmt::Debug for ReadSession<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReadSession").field(&self.value).finish()
    }
}
