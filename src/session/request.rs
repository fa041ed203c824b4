//! What one request knows of its session, and what is still to be saved.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{
    Device, Notice, Outage, SaveFailure, SessionData, SessionError, SessionErrorKind,
    data::Encoded,
    fields::{Changes, Fields},
    presented::{Presented, bearer},
    privacy,
    record::Live,
    sessions::Shared,
    store::{Loaded, Replacement},
    token::TokenDigest,
};
use crate::{
    RequestHead,
    marks::SessionMark,
    storage::{Error, ErrorKind, Fence},
};

type BoxFuture = Pin<Box<dyn Future<Output = Result<(), SessionError>> + Send>>;

/// The session of one request. All handles and extractors of the request share it.
pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    carried: Carried,
    mark: SessionMark,
    /// One operation at a time.
    pub(super) busy: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    pub(super) device: OnceLock<Device>,
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
pub(super) enum Via {
    #[default]
    Cookie,
    Bearer,
    /// By one as by the other: what becomes of the session is to be known to both.
    Both,
}

/// What becomes of the cookie.
#[derive(Default)]
pub(super) enum CookieAction {
    #[default]
    Keep,
    Set,
    Remove,
}

/// What keeps a session from being read.
#[derive(Clone)]
pub(super) enum Unreadable {
    /// Another process has written it, of a release that is newer.
    Newer(TokenDigest),
    /// Its record.
    Record(TokenDigest),
    /// Its data, which does not fit the type of a handler.
    Data(Box<Loaded>),
}

#[derive(Default)]
pub(super) struct State {
    pub(super) touched: bool,
    pub(super) loaded: bool,
    pub(super) via: Via,
    pub(super) session: Option<Loaded>,
    /// The client has one that cannot be read: it counts as none, until a logout or login ends it.
    pub(super) unreadable: Option<Unreadable>,
    /// From the first lookup of this request.
    pub(super) fence: Option<Fence>,
    /// Counts how often the session became another: data that was read before belongs to it no more.
    pub(super) era: u64,
    pub(super) pending: Changes,
    /// The data of a handler could not be written as fields.
    pub(super) unwritable: Option<SessionError>,
    pub(super) cookie: CookieAction,
    /// The storage gave no answer, and the policy goes on without a session.
    pub(super) cut_off: bool,
    pub(super) head_sent: bool,
}

impl Inner {
    pub(super) fn new(shared: Arc<Shared>, headers: &HeaderMap, mark: SessionMark) -> Self {
        let authorization = if shared.store.policy.bearer {
            Lines::of(headers, &header::AUTHORIZATION)
        } else {
            Lines::default()
        };
        Self {
            shared,
            carried: Carried { cookies: Lines::of(headers, &header::COOKIE), authorization },
            mark,
            busy: tokio::sync::Mutex::default(),
            state: Mutex::default(),
            device: OnceLock::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, for somebody who may tell of it: what was looked up without that counts now.
    pub(super) fn told(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        if state.loaded && !mem::replace(&mut state.touched, true) {
            self.mark.touch();
        }
        state
    }

    pub(super) fn with_live<O>(&self, read: impl FnOnce(&Live) -> O) -> Option<O> {
        self.told().session.as_ref().map(|session| read(&session.live))
    }

    /// Notes what the client is, for a login.
    pub(super) fn recognise(&self, head: RequestHead<'_>) {
        self.device.get_or_init(|| self.shared.store.policy.device(head));
    }

    /// The session of a principal.
    pub(super) fn authenticated(&self) -> Result<Loaded, SessionError> {
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

    pub(super) async fn load(&self) -> Result<(), SessionError> {
        {
            let mut state = self.state();
            if !mem::replace(&mut state.touched, true) {
                self.mark.touch();
            }
        }
        self.look_up().await
    }

    /// Looks the session up, without that the answer counts as one that depends on it.
    pub(super) async fn look_up(&self) -> Result<(), SessionError> {
        if self.state().loaded {
            return Ok(());
        }
        let _busy = self.busy.lock().await;
        if self.state().loaded {
            return Ok(());
        }
        let (presented, via) = match (self.bearer(), self.cookie()) {
            (bearer @ Presented::Token { .. }, Presented::Token { .. }) => (bearer, Via::Both),
            (bearer @ Presented::Token { .. }, _) => (bearer, Via::Bearer),
            (_, cookie) => (cookie, Via::Cookie),
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
                state.unreadable = found.unreadable;
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
    pub(super) async fn take_fence(&self) -> Result<(), SessionError> {
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
    pub(super) fn read<T: SessionData>(&self) -> (T, u64) {
        let mut state = self.state();
        match T::decode(&Encoded(state.fields())) {
            Ok(value) => (value, state.era),
            Err(error) => {
                event!(error, %error, "a session does not fit its type, and counts as none");
                self.shared.store.policy.observe(&Notice::Mismatch);
                // It is left as it is: what is written now begins a session of its own.
                let session = state.session.take();
                state.forget();
                state.unreadable = session.map(Box::new).map(Unreadable::Data);
                (T::default(), state.era)
            }
        }
    }

    /// Takes what a handler has changed, to be saved before the response leaves. Refuses changes of a
    /// session that is not that of the request any more.
    pub(super) fn push(
        &self,
        changes: Result<Changes, SessionError>,
        era: u64,
    ) -> Result<(), SessionError> {
        let mut state = self.state();
        if state.era != era {
            return match changes {
                Ok(changes) if changes.is_empty() => Ok(()),
                _ => Err(SessionError::new(SessionErrorKind::Gone)),
            };
        }
        match changes {
            Ok(changes) if changes.is_empty() => {}
            Ok(_) if state.head_sent => {
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
        Ok(())
    }

    /// Saves what is pending. The names of the fields in which others were overwritten.
    pub(super) async fn save(&self) -> Result<Vec<String>, SessionError> {
        let _busy = self.busy.lock().await;
        self.save_pending().await
    }

    pub(super) async fn save_pending(&self) -> Result<Vec<String>, SessionError> {
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
            if let Some(Unreadable::Newer(_)) = state.unreadable {
                state.pending = Changes::default();
                return Err(newer());
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
            if let Some(Unreadable::Newer(_)) = state.unreadable {
                return Err(newer());
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
            session.token.is_some()
                && session.live.rotated.saturating_sub(session.life_left()) >= every
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
            let left = session.life_left();
            let mut live = session.live.clone();
            (live.rotated, live.predecessor) = (left, Some(session.id));
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

/// A session begun in place of one that only newer processes can read would take its cookie, and so
/// the login, from them. Tried again, the request may come to one of these.
fn newer() -> SessionError {
    let message = "the session was written by a newer release than this process";
    Error::new(ErrorKind::Unavailable, message).into()
}

impl State {
    /// The data, with what this request has changed.
    pub(super) fn fields(&self) -> Fields {
        match &self.session {
            Some(session) if self.pending.is_empty() => session.live.fields.clone(),
            Some(session) => self.pending.apply(&session.live.fields),
            None => self.pending.apply(&Fields::default()),
        }
    }

    /// There is no session any more, and nothing of it is to be saved.
    pub(super) fn forget(&mut self) {
        self.session = None;
        self.unreadable = None;
        self.pending = Changes::default();
        self.unwritable = None;
        self.cookie = CookieAction::Keep;
        self.era += 1;
    }
}
