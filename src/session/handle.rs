//! The session of a request, to work with.

use std::{fmt, future::Future, marker::PhantomData, sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderMap;
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{
    Login, ReadSession, Session, SessionCursor, SessionData, SessionError, SessionPage,
    SessionToken,
    fields::{Class, decode_value, encode_value},
    request::Inner,
    sessions::Shared,
    store::Loaded,
};
use crate::{RequestHead, marks::SessionMark};

/// The session of a request: to log in and out, to rotate, to see and end the principal's other
/// sessions.
///
/// It lies among the extensions of every request that comes through a
/// [`SessionLayer`](super::SessionLayer). As an axum extractor it has looked the session up, so that a
/// login which began before the end of all sessions of its principal does not survive it.
///
/// Everything that changes the session here is done when the future is ready, whatever becomes of
/// the response.
pub struct SessionHandle<R = ()> {
    pub(super) inner: Arc<Inner>,
    realm: PhantomData<fn() -> R>,
}

impl<R> SessionHandle<R> {
    pub(super) fn new(shared: Arc<Shared>, headers: &HeaderMap, mark: SessionMark) -> Self {
        Self::from_inner(Arc::new(Inner::new(shared, headers, mark)))
    }

    pub(super) fn from_inner(inner: Arc<Inner>) -> Self {
        Self { inner, realm: PhantomData }
    }

    /// The handle of a request, for services without axum.
    ///
    /// `None` outside of a [`SessionLayer`](super::SessionLayer).
    pub fn of(head: RequestHead<'_>) -> Option<Self>
    where
        R: 'static,
    {
        let handle = head.extensions().get::<Self>()?.clone();
        handle.inner.recognise(head);
        Some(handle)
    }

    /// Looks the session up, unless this request has done so. The other methods that are not `async`
    /// tell what was found here.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer and the policy is [`Outage::Closed`](super::Outage::Closed).
    pub async fn load(&self) -> Result<(), SessionError> {
        self.inner.load().await
    }

    /// Whether there is a live session, as far as this request has seen.
    pub fn exists(&self) -> bool {
        self.inner.told().session.is_some()
    }

    /// Who has logged in, for a layer that decides by it whether the request goes on, such as a rate
    /// limit by user.
    ///
    /// The answer then does not count as one that depends on the session: without
    /// [`load`](Self::load) or an extractor it says neither `Vary: Cookie` nor `private`, and a cache
    /// further inside may give and store it.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer and the policy is [`Outage::Closed`](super::Outage::Closed).
    ///
    /// # Security
    ///
    /// What it tells must reach neither an answer nor the handler: a cache would give it to others.
    pub async fn identify(&self) -> Result<Option<String>, SessionError> {
        self.inner.look_up().await?;
        let state = self.inner.state();
        let principal = state.session.as_ref().and_then(|it| it.live.principal.as_deref());
        Ok(principal.map(str::to_owned))
    }

    /// Who has logged in, as far as this request has seen.
    pub fn principal(&self) -> Option<String> {
        self.inner.with_live(|live| live.principal.as_deref().map(str::to_owned)).flatten()
    }

    /// The public name of the session: safe to show, and of no use to somebody else. It stays the
    /// same when the id rotates, and when the same principal logs in again.
    pub fn public_id(&self) -> Option<Uuid> {
        self.inner.with_live(|live| live.handle)
    }

    /// How long ago the principal has proved who it is.
    pub fn authenticated_ago(&self) -> Option<Duration> {
        let state = self.inner.told();
        let session = state.session.as_ref()?;
        Some(session.since(session.live.authenticated?))
    }

    /// How long the session can go on at most.
    pub fn life_left(&self) -> Option<Duration> {
        self.inner.told().session.as_ref().map(Loaded::life_left)
    }

    /// The id itself, to hand to a client that sends it as
    /// [bearer token](super::Policy::with_bearer).
    ///
    /// `None` without a session, and in a request that came with an id which a rotation has replaced.
    ///
    /// # Security
    ///
    /// Whoever holds the token has the session. It belongs into the body of an answer over TLS, and
    /// nowhere else.
    pub fn token(&self) -> Option<SessionToken> {
        self.inner.told().session.as_ref().and_then(|session| session.token.clone())
    }

    /// The session's data, as the extractor [`Session`] gives it.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer and the policy is [`Outage::Closed`](super::Outage::Closed).
    pub async fn session<T: SessionData>(&self) -> Result<Session<T, R>, SessionError> {
        self.load().await?;
        let (value, era, record) = self.inner.read();
        Ok(Session::new(self.clone(), value, era, record))
    }

    /// Looks the session up, and notes that a login begins now, so that the end of all sessions of its
    /// principal, from now on, ends that one too. As an axum extractor the handle has done it.
    ///
    /// A handler that ends all sessions of a principal itself and then logs it in, as after a forgotten
    /// password, calls this in between.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer and the policy is [`Outage::Closed`](super::Outage::Closed).
    pub async fn begin_login(&self) -> Result<(), SessionError> {
        self.inner.begin_login().await
    }

    /// The session's data, to be read only.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer and the policy is [`Outage::Closed`](super::Outage::Closed).
    pub async fn read<T: SessionData>(&self) -> Result<ReadSession<T, R>, SessionError> {
        self.load().await?;
        let (value, ..) = self.inner.read();
        Ok(ReadSession::new(self.clone(), value))
    }

    /// Begins a session of this principal, under a new id. The old id is dead.
    ///
    /// What an anonymous visitor had in the session stays, and what the same principal had; nothing
    /// passes from one principal to another. The absolute lifetime starts anew.
    ///
    /// # Errors
    ///
    /// [`Gone`](super::SessionErrorKind::Gone) if all sessions of the principal were ended since the login
    /// [began](Self::begin_login), or if the session of before has ended meanwhile;
    /// [`OverCap`](super::SessionErrorKind::OverCap); or if the storage gives no answer: the client then has
    /// its old session, or has to log in again.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried out to its end.
    ///
    /// # Security
    ///
    /// Extract the handle, or call [`begin_login`](Self::begin_login), *before* you check the password:
    /// then a check that began before the end of all sessions does not survive it.
    pub async fn login(&self, login: impl Into<Login>) -> Result<(), SessionError> {
        let login = login.into();
        self.load().await?;
        self.shielded(async move |inner| inner.login(login).await).await
    }

    /// Notes that the principal has just proved again who it is (a step-up), under a new id.
    ///
    /// # Errors
    ///
    /// [`Unauthenticated`](super::SessionErrorKind::Unauthenticated) without a principal, and as
    /// [`rotate`](Self::rotate).
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried out to its end.
    pub async fn reauthenticate(&self) -> Result<(), SessionError> {
        self.load().await?;
        self.shielded(async |inner| inner.change_id(true).await).await
    }

    /// Gives the session a new id; the old one is dead at once. For every change of what the session
    /// may do. Without a session it does nothing.
    ///
    /// The data, the absolute deadline and the public id stay.
    ///
    /// # Errors
    ///
    /// [`Gone`](super::SessionErrorKind::Gone) if the session has ended meanwhile; or if the storage gives no
    /// answer: the client then has its old session, or has to log in again.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried out to its end.
    pub async fn rotate(&self) -> Result<(), SessionError> {
        self.load().await?;
        self.shielded(async |inner| inner.change_id(false).await).await
    }

    /// The logout: ends the session and removes the cookie. Whatever other requests save to it is
    /// refused.
    ///
    /// # Errors
    ///
    /// [`Gone`](super::SessionErrorKind::Gone) if this request has found it ended meanwhile, or came with
    /// an id that a login or [`rotate`](Self::rotate) has just replaced: the cookie is left alone, as the
    /// client may have got another. If the storage gives no answer: the session may go on.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried out to its end.
    #[doc(alias = "logout")]
    pub async fn destroy(&self) -> Result<(), SessionError> {
        self.load().await?;
        self.shielded(async |inner| inner.destroy().await).await
    }

    /// Saves now what would be saved before the response leaves: messages, and what sessions that were
    /// dropped have changed. What a [`Session`] still holds is not among it; call that one's
    /// [`save`](Session::save).
    ///
    /// # Errors
    ///
    /// [`Gone`](super::SessionErrorKind::Gone) if the session has ended meanwhile: nothing was written.
    /// [`HeadSent`](super::SessionErrorKind::HeadSent) for a new session after the head has left. Or if the
    /// storage gives no answer: whether it was written is unknown.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried out to its end.
    pub async fn save(&self) -> Result<(), SessionError> {
        self.load().await?;
        self.shielded(async |inner| inner.save().await.map(drop)).await
    }

    /// Leaves a message for the next request that [takes](Self::take_flash) it, such as the page that a
    /// form redirects to. Without a session it begins one; after a logout too.
    ///
    /// # Errors
    ///
    /// If the value cannot be written.
    pub async fn flash<V: Serialize + ?Sized>(
        &self,
        name: &str,
        value: &V,
    ) -> Result<(), SessionError> {
        let value = encode_value(value)?;
        self.load().await?;
        self.inner.state().pending.set(Class::Flash, name, value);
        Ok(())
    }

    /// Takes the message of this name: the next to ask finds none.
    ///
    /// Of two requests at the same time both may see it.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer, or the message is no `V`; it is then gone as well.
    pub async fn take_flash<V: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<V>, SessionError> {
        self.load().await?;
        let mut state = self.inner.state();
        let Some(value) = state.fields().get(Class::Flash, name).map(Bytes::copy_from_slice) else {
            return Ok(None);
        };
        state.pending.unset(Class::Flash, name);
        drop(state);
        Ok(Some(decode_value(&value)?))
    }

    /// The sessions of this request's principal, a page at a time. The first page has this one in
    /// it.
    ///
    /// # Errors
    ///
    /// [`Unauthenticated`](super::SessionErrorKind::Unauthenticated) without a principal; or if the storage
    /// gives no answer.
    pub async fn list(&self, at: SessionCursor) -> Result<SessionPage, SessionError> {
        self.load().await?;
        let session = self.inner.authenticated()?;
        let principal = session.live.principal.clone().unwrap_or_default();
        self.inner.shared.list(&principal, at, Some(&session)).await
    }

    /// Ends one of the principal's sessions by its public id. Another principal's is out of reach.
    /// The present one is [destroyed](Self::destroy).
    ///
    /// # Errors
    ///
    /// [`Unauthenticated`](super::SessionErrorKind::Unauthenticated) without a principal; or if the storage
    /// gives no answer: the session may go on.
    pub async fn end(&self, public_id: Uuid) -> Result<(), SessionError> {
        self.load().await?;
        let session = self.inner.authenticated()?;
        if session.live.handle == public_id {
            return self.destroy().await;
        }
        let principal = session.live.principal.clone().unwrap_or_default();
        self.inner.shared.end(&principal, public_id).await
    }

    /// Ends all sessions of the principal but this one, which gets a new id. For a changed password.
    /// [`Sessions::end_all`](super::Sessions::end_all) ends this one too.
    ///
    /// # Errors
    ///
    /// [`Unauthenticated`](super::SessionErrorKind::Unauthenticated) without a principal;
    /// [`Gone`](super::SessionErrorKind::Gone) if this session has ended meanwhile. If the storage gives no
    /// answer, this session may have ended too.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried out to its end.
    pub async fn end_others(&self) -> Result<(), SessionError> {
        self.load().await?;
        self.shielded(async |inner| inner.end_others().await).await
    }

    /// Does what must not stop half-way when the request is dropped.
    async fn shielded<O, F>(&self, work: impl FnOnce(Arc<Inner>) -> F) -> Result<O, SessionError>
    where
        F: Future<Output = Result<O, SessionError>> + Send + 'static,
        O: Send + 'static,
    {
        // On the heap, for it is large, and a stack need not be.
        let work = Box::pin(work(Arc::clone(&self.inner)));
        self.inner.shared.shielded(work).await
    }
}

impl<R> Clone for SessionHandle<R> {
    fn clone(&self) -> Self {
        Self::from_inner(Arc::clone(&self.inner))
    }
}

impl<R> fmt::Debug for SessionHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionHandle")
            .field("exists", &self.inner.state().session.is_some())
            .finish_non_exhaustive()
    }
}
