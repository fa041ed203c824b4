//! What one request knows of its session.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use futures_util::future::join;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tokio::{runtime::Handle, task::yield_now};

use super::{
    Device, Notice, Outage, SaveFailure, SessionData, SessionError, SessionErrorKind,
    data::Encoded,
    fields::{Changes, Fields},
    presented::{Presented, bearer},
    record::Live,
    sessions::Shared,
    store::{Found, Instead, Loaded},
    token::TokenDigest,
};
use crate::{
    RequestHead,
    marks::SessionMark,
    storage::{Error, ErrorKind, Fence},
};

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

#[derive(Default)]
pub(super) struct State {
    pub(super) touched: bool,
    pub(super) loaded: bool,
    pub(super) via: Via,
    /// The id that the client has sent.
    pub(super) presented: Option<TokenDigest>,
    pub(super) session: Option<Loaded>,
    pub(super) instead: Option<Instead>,
    /// From when a login began.
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
        // Nothing of the user's runs while the lock is held.
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
            (Presented::Token { .. }, cookie @ Presented::Token { .. }) => (cookie, Via::Both),
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
        let id = token.digest();
        let mut found = self.shared.store.load(&token, id).await;
        if let Ok(Found { session: Some(_), due, left, .. }) = &mut found
            && !due.is_empty()
        {
            self.note_use(mem::take(due), *left).await;
        }
        let mut state = self.state();
        (state.loaded, state.via, state.presented) = (true, via, Some(id));
        match found {
            Ok(found) => {
                if found
                    .session
                    .as_ref()
                    .is_some_and(|session| session.token.is_some() && (renew || found.moved))
                {
                    state.cookie = CookieAction::Set;
                }
                (state.session, state.instead) = (found.session, found.instead);
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

    /// Notes that a session is used. Nobody waits for that, unless it is about to die.
    async fn note_use(&self, ids: Vec<TokenDigest>, left: Duration) {
        let store = &self.shared.store;
        if left > store.policy.timeout.saturating_mul(4)
            && let Ok(runtime) = Handle::try_current()
        {
            let shared = Arc::clone(&self.shared);
            let touch = async move {
                // The next use is due as well.
                let _ = shared.store.note_use(&ids).await;
            };
            store.storage.tasks().spawn_on(touch, &runtime);
            // It is on its way before the handler goes on.
            yield_now().await;
        } else if let Err(error) = store.note_use(&ids).await {
            event!(warn, %error, "the use of a session could not be noted");
        }
    }

    /// Looks the session up, and takes the fence of a login that begins now.
    pub(super) async fn begin_login(&self) -> Result<(), SessionError> {
        let (loaded, fence) = join(self.load(), self.shared.store.fence()).await;
        loaded?;
        let mut state = self.state();
        match fence {
            Ok(fence) => state.fence = fence,
            Err(error) if self.shared.store.policy.outage == Outage::Closed => {
                return Err(error.into());
            }
            Err(_) => state.cut_off = true,
        }
        Ok(())
    }

    /// The fence of a session that is to be put under a new id. If it is taken only now, an end of the
    /// session before it is found when the old id is to end.
    pub(super) async fn fence_for(&self, session: &Loaded) -> Result<Option<Fence>, SessionError> {
        let taken = self.state().fence;
        if taken.is_some() || session.live.principal.is_none() {
            return Ok(taken);
        }
        Ok(self.shared.store.fence().await?)
    }

    /// The data as a handler sees it, to which era it belongs, and the fields it was read from.
    pub(super) fn read<T: SessionData>(&self) -> (T, u64, Encoded) {
        let (fields, era) = {
            let state = self.state();
            (Encoded(state.fields()), state.era)
        };
        let error = match T::decode(&fields) {
            Ok(value) => return (value, era, fields),
            Err(error) => error,
        };
        let policy = &self.shared.store.policy;
        event!(error, %error, "a session does not fit its type, and counts as none");
        policy.observe(&Notice::Mismatch);
        let mut state = self.state();
        let mut loses = false;
        if state.era == era {
            // It is left as it is: what is written now begins a session of its own.
            loses = !state.pending.is_empty();
            let session = state.session.take();
            state.forget();
            state.instead = session.map(Box::new).map(Instead::Mismatch);
        }
        let era = state.era;
        drop(state);
        if loses {
            policy.observe(&Notice::NotSaved(SaveFailure::Data));
        }
        (T::default(), era, Encoded(Fields::default()))
    }

    /// Takes what a handler has changed, to be saved before the response leaves, or at once. Refuses
    /// changes of a session that is not that of the request any more.
    pub(super) fn push(
        &self,
        changes: Result<Changes, SessionError>,
        era: u64,
        at_once: bool,
    ) -> Result<(), SessionError> {
        let mut state = self.state();
        if state.era != era {
            return match changes {
                Ok(changes) if changes.is_empty() => Ok(()),
                _ => {
                    // For who settles the response; who calls `save` hears it at once.
                    if !at_once {
                        state.unwritable = Some(SessionError::new(SessionErrorKind::Gone));
                    }
                    Err(SessionError::new(SessionErrorKind::Gone))
                }
            };
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
        Ok(())
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

    /// Whether a session can be written, or a new one begun.
    pub(super) fn may_write(&self) -> Result<(), SessionError> {
        if self.cut_off {
            let message = "the session could not be read, so nothing is written";
            return Err(Error::new(ErrorKind::Unavailable, message).into());
        }
        if self.session.is_some() {
            return Ok(());
        }
        if self.head_sent {
            return Err(SessionError::new(SessionErrorKind::HeadSent));
        }
        match self.instead {
            // Its cookie could take the place of the one that the client has got, or is to get: of a
            // login, or of nothing.
            Some(Instead::Replaced { .. } | Instead::Gone) => {
                Err(SessionError::new(SessionErrorKind::Gone))
            }
            Some(Instead::Newer(_)) => Err(newer()),
            _ => Ok(()),
        }
    }

    /// The session has ended while the request was under way.
    pub(super) fn end(&mut self) -> SessionError {
        self.forget();
        self.instead = Some(Instead::Gone);
        SessionError::new(SessionErrorKind::Gone)
    }

    /// There is no session any more, and nothing of it is to be saved.
    pub(super) fn forget(&mut self) {
        self.session = None;
        self.instead = None;
        self.pending = Changes::default();
        self.unwritable = None;
        self.cookie = CookieAction::Keep;
        self.era += 1;
    }
}
