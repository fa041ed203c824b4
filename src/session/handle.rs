//! The session of one request.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{
    Device, Login, Notice, Outage, ReadSession, SaveFailure, Session, SessionCursor, SessionData,
    SessionError, SessionErrorKind, SessionPage, SessionToken,
    data::Encoded,
    fields::{Changes, Class, Fields, decode_value, encode_value},
    presented::{Presented, bearer},
    privacy,
    record::Live,
    sessions::Shared,
    store::{Loaded, Replacement},
};
use crate::{
    RequestHead,
    marks::SessionMark,
    storage::{Error, ErrorKind, Fence},
};

type BoxFuture = Pin<Box<dyn Future<Output = Result<(), SessionError>> + Send>>;

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

pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    carried: Carried,
    mark: SessionMark,
    /// One operation at a time.
    busy: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    device: OnceLock<Device>,
}

/// What the client has sent, to be read when the session is first asked for.
struct Carried {
    cookies: Lines,
    authorization: Lines,
}

/// The lines of one header field.
#[derive(Default)]
struct Lines {
    first: Option<HeaderValue>,
    more: Vec<HeaderValue>,
}

impl Lines {
    fn of(headers: &HeaderMap, name: &HeaderName) -> Self {
        let mut lines = headers.get_all(name).iter();
        match lines.next() {
            None => Self::default(),
            Some(first) => Self { first: Some(first.clone()), more: lines.cloned().collect() },
        }
    }

    fn iter(&self) -> impl Iterator<Item = &HeaderValue> {
        self.first.iter().chain(&self.more)
    }
}

/// How the client has told its session.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Via {
    #[default]
    Cookie,
    Bearer,
}

/// What becomes of the cookie.
#[derive(Default)]
enum CookieAction {
    #[default]
    Keep,
    Set,
    Remove,
}

#[derive(Default)]
struct State {
    touched: bool,
    loaded: bool,
    via: Via,
    session: Option<Loaded>,
    /// From the first lookup of this request.
    fence: Option<Fence>,
    /// Counts how often the session became another: data that was read before belongs to it no more.
    era: u64,
    pending: Changes,
    /// The data of a handler could not be written as fields.
    unwritable: Option<SessionError>,
    cookie: CookieAction,
    /// The storage gave no answer, and the policy goes on without a session.
    cut_off: bool,
    head_sent: bool,
}

impl<R> SessionHandle<R> {
    pub(super) fn new(shared: Arc<Shared>, head: &HeaderMap, mark: SessionMark) -> Self {
        let authorization = if shared.store.policy.bearer {
            Lines::of(head, &header::AUTHORIZATION)
        } else {
            Lines::default()
        };
        let carried = Carried { cookies: Lines::of(head, &header::COOKIE), authorization };
        Self::from_inner(Arc::new(Inner {
            shared,
            carried,
            mark,
            busy: tokio::sync::Mutex::default(),
            state: Mutex::default(),
            device: OnceLock::new(),
        }))
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
    /// If the storage gives no answer and the policy is [`Outage::Closed`].
    pub async fn load(&self) -> Result<(), SessionError> {
        self.inner.load().await
    }

    /// Whether there is a live session, as far as this request has seen.
    pub fn exists(&self) -> bool {
        self.inner.state().session.is_some()
    }

    /// Who has logged in, as far as this request has seen.
    pub fn principal(&self) -> Option<String> {
        self.inner.with_live(|live| live.principal.as_deref().map(str::to_owned)).flatten()
    }

    /// The public name of the session: safe to show, and of no use to somebody else. It stays the
    /// same when the id rotates.
    pub fn public_id(&self) -> Option<Uuid> {
        self.inner.with_live(|live| live.handle)
    }

    /// How long ago the principal has proved who it is.
    pub fn authenticated_ago(&self) -> Option<Duration> {
        let state = self.inner.state();
        let session = state.session.as_ref()?;
        Some(session.since(session.live.authenticated?))
    }

    /// How long the session can go on at most.
    pub fn life_left(&self) -> Option<Duration> {
        self.inner.state().session.as_ref().map(Loaded::life_left)
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
        self.inner.state().session.as_ref().and_then(|session| session.token.clone())
    }

    /// The session's data, as the extractor [`Session`] gives it.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer and the policy is [`Outage::Closed`].
    pub async fn session<T: SessionData>(&self) -> Result<Session<T, R>, SessionError> {
        self.load().await?;
        let (value, era) = self.inner.read();
        Ok(Session::new(self.clone(), value, era))
    }

    /// Looks the session up, and from which moment on its end counts if there is none.
    pub(super) async fn begin(&self) -> Result<(), SessionError> {
        self.load().await?;
        self.inner.take_fence().await
    }

    /// The session's data, to be read only.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer and the policy is [`Outage::Closed`].
    pub async fn read<T: SessionData>(&self) -> Result<ReadSession<T, R>, SessionError> {
        self.load().await?;
        let (value, _) = self.inner.read();
        Ok(ReadSession::new(self.clone(), value))
    }

    /// Begins a session of this principal, under a new id. The old id is dead.
    ///
    /// What an anonymous visitor had in the session stays, and what the same principal had; nothing
    /// passes from one principal to another. The absolute lifetime starts anew.
    ///
    /// # Errors
    ///
    /// [`Gone`](SessionErrorKind::Gone) if all sessions of the principal were ended since this request
    /// first looked at its session, or if the visitor has logged out meanwhile;
    /// [`OverCap`](SessionErrorKind::OverCap); or if the storage gives no answer: the client then has
    /// its old session, or has to log in again.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried out to its end.
    ///
    /// # Security
    ///
    /// Extract the handle, or [`load`](Self::load), *before* you check the password: then a check
    /// that began before the end of all sessions does not survive it.
    pub async fn login(&self, login: impl Into<Login>) -> Result<(), SessionError> {
        let login = login.into();
        self.load().await?;
        self.shielded(async move |inner| inner.login(login).await).await
    }

    /// Notes that the principal has just proved again who it is (a step-up), under a new id.
    ///
    /// # Errors
    ///
    /// [`Unauthenticated`](SessionErrorKind::Unauthenticated) without a principal, and as
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
    /// [`Gone`](SessionErrorKind::Gone) if the session has ended meanwhile; or if the storage gives no
    /// answer: the client then has its old session, or has to log in again.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried out to its end.
    pub async fn rotate(&self) -> Result<(), SessionError> {
        self.load().await?;
        self.shielded(async |inner| inner.change_id(false).await).await
    }

    /// Ends the session and removes the cookie. Whatever other requests save to it is refused.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer: the session may go on.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried out to its end.
    pub async fn destroy(&self) -> Result<(), SessionError> {
        self.load().await?;
        self.shielded(async |inner| inner.destroy().await).await
    }

    /// Saves now what would be saved before the response leaves.
    ///
    /// # Errors
    ///
    /// [`Gone`](SessionErrorKind::Gone) if the session has ended meanwhile: nothing was written.
    /// [`HeadSent`](SessionErrorKind::HeadSent) for a new session after the head has left. Or if the
    /// storage gives no answer: whether it was written is unknown.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried out to its end.
    pub async fn save(&self) -> Result<(), SessionError> {
        self.load().await?;
        self.shielded(async |inner| inner.save().await.map(drop)).await
    }

    /// Leaves a message for the next request that [takes](Self::take_flash) it.
    ///
    /// # Errors
    ///
    /// If the value cannot be written.
    pub async fn flash<V: Serialize>(&self, name: &str, value: &V) -> Result<(), SessionError> {
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
    /// [`Unauthenticated`](SessionErrorKind::Unauthenticated) without a principal; or if the storage
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
    /// [`Unauthenticated`](SessionErrorKind::Unauthenticated) without a principal; or if the storage
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
    ///
    /// # Errors
    ///
    /// [`Unauthenticated`](SessionErrorKind::Unauthenticated) without a principal;
    /// [`Gone`](SessionErrorKind::Gone) if this session has ended meanwhile. If the storage gives no
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

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_live<O>(&self, read: impl FnOnce(&Live) -> O) -> Option<O> {
        self.state().session.as_ref().map(|session| read(&session.live))
    }

    /// Notes what the client is, for a login.
    pub(super) fn recognise(&self, head: RequestHead<'_>) {
        self.device.get_or_init(|| self.shared.store.policy.device(head));
    }

    /// The session of a principal.
    fn authenticated(&self) -> Result<Loaded, SessionError> {
        let session = self.state().session.clone();
        session
            .filter(|session| session.live.principal.is_some())
            .ok_or_else(|| SessionError::new(SessionErrorKind::Unauthenticated))
    }

    /// Whether cookie and bearer token are two sessions.
    pub(super) fn is_contradictory(&self) -> bool {
        if self.carried.authorization.first.is_none() {
            return false;
        }
        match (self.bearer(), self.cookie()) {
            (Presented::Token { token: bearer, .. }, Presented::Token { token: cookie, .. }) => {
                bearer != cookie
            }
            (Presented::Ambiguous, _) => true,
            _ => false,
        }
    }

    fn cookie(&self) -> Presented {
        self.shared.cookies.read(self.carried.cookies.iter())
    }

    fn bearer(&self) -> Presented {
        bearer(self.carried.authorization.iter())
    }

    async fn load(&self) -> Result<(), SessionError> {
        {
            let mut state = self.state();
            if !mem::replace(&mut state.touched, true) {
                self.mark.touch();
            }
            if state.loaded {
                return Ok(());
            }
        }
        let _busy = self.busy.lock().await;
        if self.state().loaded {
            return Ok(());
        }
        let (presented, via) = match self.bearer() {
            presented @ Presented::Token { .. } => (presented, Via::Bearer),
            _ => (self.cookie(), Via::Cookie),
        };
        let Presented::Token { token, renew } = presented else {
            if matches!(presented, Presented::Ambiguous) {
                event!(debug, "two session cookies of one name: neither counts");
            }
            self.state().loaded = true;
            return Ok(());
        };
        let found = self.shared.store.load(&token).await;
        let mut state = self.state();
        (state.loaded, state.via) = (true, via);
        match found {
            Ok(found) => {
                if found
                    .session
                    .as_ref()
                    .is_some_and(|session| session.token.is_some() && (renew || found.moved))
                {
                    state.cookie = CookieAction::Set;
                }
                (state.session, state.fence) = (found.session, found.fence);
            }
            Err(error) => {
                event!(warn, %error, "a session could not be looked up");
                if self.shared.store.policy.outage == Outage::Closed {
                    state.loaded = false;
                    return Err(error.into());
                }
                state.cut_off = true;
            }
        }
        Ok(())
    }

    /// Takes the fence of a login that begins now, if no lookup of this request has taken one.
    async fn take_fence(&self) -> Result<(), SessionError> {
        {
            let state = self.state();
            if state.fence.is_some() || state.cut_off {
                return Ok(());
            }
        }
        let _busy = self.busy.lock().await;
        match self.shared.store.fence().await {
            Ok(fence) => {
                let mut state = self.state();
                state.fence = state.fence.or(fence);
                Ok(())
            }
            Err(_) if self.shared.store.policy.outage == Outage::Anonymous => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The data as a handler sees it, and to which era it belongs.
    fn read<T: SessionData>(&self) -> (T, u64) {
        let mut state = self.state();
        match T::decode(&Encoded(state.fields())) {
            Ok(value) => (value, state.era),
            Err(error) => {
                event!(error, %error, "a session does not fit its type, and counts as none");
                self.shared.store.policy.observe(&Notice::Mismatch);
                // It is left as it is: what is written now begins a session of its own.
                state.forget();
                (T::default(), state.era)
            }
        }
    }

    /// Takes what a handler has changed, to be saved before the response leaves, or at once.
    pub(super) fn push(&self, changes: Result<Changes, SessionError>, era: u64, at_once: bool) {
        let mut state = self.state();
        if state.era != era {
            return;
        }
        match changes {
            Ok(changes) if changes.is_empty() => {}
            Ok(_) if state.head_sent && !at_once => {
                event!(
                    warn,
                    "a session was changed after the head of the response had left: nothing was \
                     saved; call `save` before the session is dropped"
                );
                self.shared.store.policy.observe(&Notice::NotSaved(SaveFailure::Late));
            }
            Ok(changes) => state.pending.merge(changes),
            Err(error) => state.unwritable = Some(error),
        }
    }

    /// Saves what is pending. The names of the fields in which others were overwritten.
    pub(super) async fn save(&self) -> Result<Vec<String>, SessionError> {
        let _busy = self.busy.lock().await;
        self.save_pending().await
    }

    async fn save_pending(&self) -> Result<Vec<String>, SessionError> {
        let store = &self.shared.store;
        let (session, changes, era) = {
            let mut state = self.state();
            if let Some(error) = state.unwritable.take() {
                return Err(error);
            }
            if state.pending.is_empty() {
                return Ok(Vec::new());
            }
            if state.cut_off {
                state.pending = Changes::default();
                let message = "the session could not be read, so nothing is written";
                return Err(Error::new(ErrorKind::Unavailable, message).into());
            }
            if state.session.is_none() && state.head_sent {
                return Err(SessionError::new(SessionErrorKind::HeadSent));
            }
            (state.session.clone(), mem::take(&mut state.pending), state.era)
        };
        let outcome = match &session {
            Some(session) => store.save(session, &changes).await,
            None => {
                let live = store.anonymous(changes.apply(&Fields::default()));
                let created = store.create(live, store.policy.lifetime, None).await;
                created.map(|created| created.map(|created| (created, Vec::new())))
            }
        };
        let mut state = self.state();
        debug_assert_eq!(state.era, era, "operations of one request take turns");
        match outcome {
            Ok(Some((saved, overwritten))) => {
                if session.is_none() {
                    state.cookie = CookieAction::Set;
                }
                state.session = Some(saved);
                if !overwritten.is_empty() {
                    event!(info, fields = ?overwritten, "a session was changed by two at once");
                    let fields = overwritten.clone();
                    store.policy.observe(&Notice::Overwritten { fields });
                }
                Ok(overwritten)
            }
            Ok(None) => {
                state.forget();
                Err(SessionError::new(SessionErrorKind::Gone))
            }
            Err(error) => {
                // To be tried again by whoever wants to.
                let later = mem::replace(&mut state.pending, changes);
                state.pending.merge(later);
                Err(error)
            }
        }
    }

    /// Changes the data by compare-and-swap, together with what is pending.
    pub(super) async fn update<T: SessionData, O>(
        &self,
        mut change: impl FnMut(&mut T) -> O,
    ) -> Result<(T, u64, O), SessionError> {
        self.load().await?;
        let _busy = self.busy.lock().await;
        let store = &self.shared.store;
        let (session, pending) = {
            let state = self.state();
            if state.cut_off {
                let message = "the session could not be read, so nothing is written";
                return Err(Error::new(ErrorKind::Unavailable, message).into());
            }
            if state.session.is_none() && state.head_sent {
                return Err(SessionError::new(SessionErrorKind::HeadSent));
            }
            (state.session.clone(), state.pending.clone())
        };
        let mut apply = |fields: &Fields| -> Result<(Fields, T, O), SessionError> {
            let fields = Encoded(pending.apply(fields));
            let mut value = T::decode(&fields)?;
            let before = value.encode()?;
            let outcome = change(&mut value);
            let after = value.encode()?.0;
            let changes = Changes::diff(&before.0, &after).with_missing(&after, &fields.0);
            Ok((changes.apply(&fields.0), value, outcome))
        };
        let written = match &session {
            Some(session) => {
                let rewritten = store.rewrite(session, |current| {
                    let (fields, value, outcome) = apply(&current.fields)?;
                    let live = Live { fields, ..current.clone() };
                    Ok((live, (value, outcome)))
                });
                rewritten.await?
            }
            None => {
                let (fields, value, outcome) = apply(&Fields::default())?;
                let live = store.anonymous(fields);
                let created = store.create(live, store.policy.lifetime, None).await?;
                created.map(|created| (created, (value, outcome)))
            }
        };
        let mut state = self.state();
        match written {
            Some((saved, (value, outcome))) => {
                if session.is_none() {
                    state.cookie = CookieAction::Set;
                }
                state.session = Some(saved);
                state.pending = Changes::default();
                Ok((value, state.era, outcome))
            }
            None => {
                state.forget();
                Err(SessionError::new(SessionErrorKind::Gone))
            }
        }
    }

    async fn login(&self, login: Login) -> Result<(), SessionError> {
        let _busy = self.busy.lock().await;
        let store = &self.shared.store;
        let (old, fence, pending) = {
            let state = self.state();
            if state.head_sent {
                return Err(SessionError::new(SessionErrorKind::HeadSent));
            }
            if state.cut_off {
                let message = "the session could not be read, so nobody can log in";
                return Err(Error::new(ErrorKind::Unavailable, message).into());
            }
            (state.session.clone(), state.fence, state.pending.clone())
        };
        let fence = match fence {
            Some(fence) => Some(fence),
            None => store.fence().await?,
        };
        let stranger = old.as_ref().is_some_and(|old| {
            old.live.principal.as_deref().is_some_and(|other| other != login.principal)
        });
        let fields = match &old {
            Some(_) if stranger => Fields::default(),
            Some(old) => pending.apply(&old.live.fields),
            None => pending.apply(&Fields::default()),
        };
        let left = login.lifetime.map_or(store.policy.lifetime, |it| it.min(store.policy.lifetime));
        let device = login.device.or_else(|| self.device.get().cloned()).unwrap_or_default();
        let live = Live {
            lifetime: left,
            born: left,
            rotated: left,
            authenticated: Some(left),
            principal: Some(login.principal.into()),
            device,
            ..store.anonymous(fields)
        };
        let outcome = store.login(old.as_ref(), live, left, fence).await;
        let mut state = self.state();
        match outcome {
            Ok(session) => {
                state.session = Some(session);
                state.cookie = CookieAction::Set;
                state.pending = Changes::default();
                if stranger {
                    state.era += 1;
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn change_id(&self, authenticated: bool) -> Result<(), SessionError> {
        let _busy = self.busy.lock().await;
        let store = &self.shared.store;
        let (session, fence) = {
            let state = self.state();
            if state.head_sent {
                return Err(SessionError::new(SessionErrorKind::HeadSent));
            }
            (state.session.clone(), state.fence)
        };
        let Some(session) = session.filter(|it| !authenticated || it.live.principal.is_some())
        else {
            return match authenticated {
                true => Err(SessionError::new(SessionErrorKind::Unauthenticated)),
                false => Ok(()),
            };
        };
        let (mut live, left) = session.renewed();
        if authenticated {
            live.authenticated = Some(left);
        }
        let replaced = store.replace(&session, live, left, fence, Replacement::Privilege).await?;
        self.moved_to(replaced).await
    }

    /// Notes the new id of the session.
    async fn moved_to(&self, session: Option<Loaded>) -> Result<(), SessionError> {
        let Some(session) = session else {
            self.state().forget();
            return Err(SessionError::new(SessionErrorKind::Gone));
        };
        {
            let mut state = self.state();
            state.cookie = CookieAction::Set;
            state.session = Some(session.clone());
        }
        if let Some(principal) = &session.live.principal {
            self.shared.store.enlist(principal, &session).await;
        }
        Ok(())
    }

    async fn destroy(&self) -> Result<(), SessionError> {
        let _busy = self.busy.lock().await;
        let session = {
            let state = self.state();
            if state.cut_off {
                let message = "the session could not be read, so it cannot be ended";
                return Err(Error::new(ErrorKind::Unavailable, message).into());
            }
            state.session.clone()
        };
        if let Some(session) = session {
            self.shared.store.destroy(&session).await?;
        }
        let mut state = self.state();
        state.forget();
        state.cookie = CookieAction::Remove;
        Ok(())
    }

    async fn end_others(&self) -> Result<(), SessionError> {
        let _busy = self.busy.lock().await;
        let session = self.authenticated()?;
        let fence = {
            let state = self.state();
            if state.head_sent {
                return Err(SessionError::new(SessionErrorKind::HeadSent));
            }
            state.fence
        };
        let fence = fence.ok_or_else(|| SessionError::new(SessionErrorKind::Unauthenticated))?;
        let principal = session.live.principal.clone().unwrap_or_default();
        let ended = self.shared.store.end_others(&session, &principal, fence).await?;
        self.moved_to(ended).await
    }

    /// Whether anything is to be done before the head of the response leaves.
    pub(super) fn is_done(&self) -> bool {
        let state = self.state();
        !state.touched
            || (state.pending.is_empty()
                && state.unwritable.is_none()
                && !state.session.as_ref().is_some_and(|session| self.is_due(session)))
    }

    /// Whether the id is to be rotated, or a new one was used for the first time.
    fn is_due(&self, session: &Loaded) -> bool {
        session.live.predecessor.is_some() || self.rotates(session)
    }

    fn rotates(&self, session: &Loaded) -> bool {
        self.shared.store.policy.rotation.is_some_and(|every| {
            session.token.is_some() && session.since(session.live.rotated) >= every
        })
    }

    /// The same as [`settle`](Self::settle), carried out to its end whatever becomes of the request.
    pub(super) fn settled(session: &Arc<Self>, status: StatusCode) -> BoxFuture {
        let session = Arc::clone(session);
        let shared = Arc::clone(&session.shared);
        Box::pin(async move {
            let settled = if shared.store.storage.answers_at_once() {
                // Every step is done at once: there is no await to be dropped at.
                session.settle(status).await
            } else {
                shared.shielded(async move { session.settle(status).await }).await
            };
            if let Err(error) = &settled {
                event!(error, %error, "what a handler changed in its session was not saved");
                shared.store.policy.observe(&Notice::NotSaved(SaveFailure::of(error)));
            }
            settled
        })
    }

    /// Whether a response is replaced if the session could not be saved.
    pub(super) fn answers_failures(&self) -> bool {
        self.shared.store.policy.strict_saves
    }

    /// What is done before the head of a response with this status leaves.
    pub(super) async fn settle(&self, status: StatusCode) -> Result<(), SessionError> {
        let _busy = self.busy.lock().await;
        let store = &self.shared.store;
        let mut outcome = Ok(());
        if store.policy.saves_after(status) {
            outcome = self.save_pending().await.map(drop);
        }
        let (session, via, fence, resent) = {
            let state = self.state();
            let resent = matches!(state.cookie, CookieAction::Set);
            (state.session.clone(), state.via, state.fence, resent)
        };
        let Some(session) = session else { return outcome };
        // The client that was just told the new id again has not used it.
        if session.live.predecessor.is_some() && !resent {
            match store.confirm(&session).await {
                Ok(Some(confirmed)) => self.state().session = Some(confirmed),
                Ok(None) => {}
                Err(error) => {
                    event!(debug, %error, "an old id goes on working until the next request");
                }
            }
        } else if via == Via::Cookie && self.rotates(&session) {
            let (mut live, left) = session.renewed();
            live.predecessor = Some(session.id);
            match store.replace(&session, live, left, fence, Replacement::Rotation).await {
                Ok(rotated) => {
                    let _ = self.moved_to(rotated).await;
                }
                Err(error) => {
                    event!(debug, %error, "a session keeps its id until the next request");
                }
            }
        }
        outcome
    }

    /// Notes that no cookie can be set any more, and writes what is to be said of the session.
    pub(super) fn write_head(&self, headers: &mut HeaderMap) {
        let mut state = self.state();
        state.head_sent = true;
        if !state.touched {
            return;
        }
        let cookies = &self.shared.cookies;
        let line = match (&state.cookie, &state.session) {
            _ if state.via == Via::Bearer => None,
            (CookieAction::Remove, None) => Some(cookies.removal()),
            (CookieAction::Set, Some(session)) => {
                session.token.as_ref().map(|token| cookies.write(token, session.life_left()))
            }
            _ => None,
        };
        privacy::vary_by(headers, true, self.shared.store.policy.bearer);
        privacy::keep_private(headers, line.is_some());
        if let Some(line) = line {
            headers.append(header::SET_COOKIE, line);
        }
    }
}

impl State {
    /// The data, with what this request has changed.
    fn fields(&self) -> Fields {
        match &self.session {
            Some(session) if self.pending.is_empty() => session.live.fields.clone(),
            Some(session) => self.pending.apply(&session.live.fields),
            None => self.pending.apply(&Fields::default()),
        }
    }

    /// There is no session any more, and nothing of it is to be saved.
    fn forget(&mut self) {
        self.session = None;
        self.pending = Changes::default();
        self.unwritable = None;
        self.cookie = CookieAction::Keep;
        self.era += 1;
    }
}

impl<R> Clone for SessionHandle<R> {
    fn clone(&self) -> Self {
        Self::from_inner(Arc::clone(&self.inner))
    }
}

impl<R> fmt::Debug for SessionHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionHandle").field("exists", &self.exists()).finish_non_exhaustive()
    }
}
