//! What one request knows of its session, and what is still to be saved.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use futures_util::future::join;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio::{runtime::Handle, task::yield_now, time::timeout};

use super::{
    Device, Notice, Outage, SaveFailure, SessionData, SessionError, SessionErrorKind,
    data::Encoded,
    fields::{Changes, Fields},
    presented::{Presented, bearer},
    privacy,
    record::Live,
    sessions::Shared,
    store::{Found, Instead, Loaded, Replacement},
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

#[derive(Default)]
pub(super) struct State {
    pub(super) touched: bool,
    pub(super) loaded: bool,
    pub(super) via: Via,
    /// The id that the client has sent.
    presented: Option<TokenDigest>,
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
        let mut found = self.shared.store.load(&token).await;
        if let Ok(Found { session: Some(_), due, left, .. }) = &mut found
            && !due.is_empty()
        {
            self.note_use(mem::take(due), *left).await;
        }
        let mut state = self.state();
        (state.loaded, state.via, state.presented) = (true, via, Some(token.digest()));
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
            runtime.spawn(async move {
                // The next use is due as well.
                let _ = shared.store.note_use(&ids).await;
            });
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
                _ => Err(SessionError::new(SessionErrorKind::Gone)),
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

    /// Saves what is pending. The names of the fields in which others were overwritten.
    pub(super) async fn save(&self) -> Result<Vec<String>, SessionError> {
        let _busy = self.busy.lock().await;
        self.save_pending().await
    }

    pub(super) async fn save_pending(&self) -> Result<Vec<String>, SessionError> {
        let store = &self.shared.store;
        let (session, mut changes, era) = {
            let mut state = self.state();
            if let Some(error) = state.unwritable.take() {
                return Err(error);
            }
            if state.pending.is_empty() {
                return Ok(Vec::new());
            }
            if let Err(error) = state.may_write() {
                state.pending = Changes::default();
                return Err(error);
            }
            (state.session.clone(), Taken::from(self, &mut state), state.era)
        };
        let outcome = match &session {
            Some(session) => store.save(session, &changes.changes).await,
            None => {
                let live = store.anonymous(changes.changes.apply(&Fields::default()));
                let created = store.create(live, store.policy.lifetime, None).await;
                created.map(|created| created.map(|created| (created, Vec::new())))
            }
        };
        let mut state = self.state();
        if state.era != era {
            // Counted as none meanwhile, by a handler whose type it does not fit.
            changes.are_done();
            return Err(SessionError::new(SessionErrorKind::Gone));
        }
        match outcome {
            Ok(Some((saved, overwritten))) => {
                if session.is_none() {
                    state.cookie = CookieAction::Set;
                }
                state.session = Some(saved);
                changes.are_done();
                drop(state);
                if !overwritten.is_empty() {
                    event!(info, fields = ?overwritten, "a session was changed by two at once");
                    let fields = overwritten.clone();
                    store.policy.observe(&Notice::Overwritten { fields });
                }
                Ok(overwritten)
            }
            Ok(None) => {
                changes.are_done();
                Err(state.end())
            }
            Err(error) => {
                drop(state);
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
        let (session, mut taken) = {
            let mut state = self.state();
            state.may_write()?;
            (state.session.clone(), Taken::from(self, &mut state))
        };
        let pending = taken.changes.clone();
        let mut apply = |fields: &Fields| -> Result<(Option<Fields>, T, O), SessionError> {
            let fields = Encoded(pending.apply(fields));
            let mut value = T::decode(&fields)?;
            let before = value.encode()?;
            let outcome = change(&mut value);
            let after = value.encode()?.0;
            let changes = Changes::diff(&before.0, &after).with_missing(&after, &fields.0);
            let is_changed = !changes.is_empty() || !pending.is_empty();
            Ok((is_changed.then(|| changes.apply(&fields.0)), value, outcome))
        };
        let written = match &session {
            Some(session) => {
                let rewritten = store.rewrite(session, |current| {
                    let (fields, value, outcome) = apply(&current.fields)?;
                    let live = fields.map(|fields| Live { fields, ..current.clone() });
                    Ok((live, (value, outcome)))
                });
                rewritten.await?
            }
            None => {
                let (fields, value, outcome) = apply(&Fields::default())?;
                let Some(fields) = fields else {
                    let era = self.state().era;
                    return Ok((value, era, outcome));
                };
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
                taken.are_done();
                Ok((value, state.era, outcome))
            }
            None => {
                taken.are_done();
                Err(state.end())
            }
        }
    }

    /// [Writes the head](Self::write_head) if nothing else is to be done before it leaves, and says
    /// whether that is so.
    pub(super) fn write_head_if_done(&self, headers: &mut HeaderMap) -> bool {
        let state = self.state();
        // What a handler has begun and given up may be about to change the cookie.
        let is_done = !state.touched
            || (self.busy.try_lock().is_ok()
                && state.pending.is_empty()
                && state.unwritable.is_none()
                && !state.session.as_ref().is_some_and(|session| self.is_due(session)));
        if is_done {
            self.write_head_of(state, headers);
        }
        is_done
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
        // Two boxes, so that neither way makes the other larger.
        let is_free = session.busy.try_lock().is_ok();
        if is_free && session.shared.store.storage.answers_at_once() {
            // Every step is done at once: there is no await to be dropped at.
            return Box::pin(async move {
                let settled = session.settle(status).await;
                session.shared.report(settled)
            });
        }
        Box::pin(async move {
            let shared = Arc::clone(&session.shared);
            let settled = shared.shielded(async move { session.settle(status).await }).await;
            shared.report(settled)
        })
    }

    /// Whether a response is replaced if the session could not be saved.
    pub(super) fn answers_failures(&self) -> bool {
        self.shared.store.policy.strict_saves
    }

    /// What is done before the head of a response with this status leaves.
    pub(super) async fn settle(&self, status: StatusCode) -> Result<(), SessionError> {
        let store = &self.shared.store;
        // A clock takes a runtime, which sessions in memory do without.
        let _busy = if let Ok(busy) = self.busy.try_lock() {
            busy
        } else if let Ok(busy) = timeout(store.policy.patience(), self.busy.lock()).await {
            busy
        } else {
            let message = "the handler has left an operation of its session half-way";
            return Err(Error::new(ErrorKind::Timeout, message).into());
        };
        let mut outcome = Ok(());
        if store.policy.saves_after(status) {
            outcome = self.save_pending().await.map(drop);
        }
        let (session, via, presented) = {
            let state = self.state();
            let due = state.session.as_ref().filter(|session| self.is_due(session));
            (due.cloned(), state.via, state.presented)
        };
        let Some(session) = session else { return outcome };
        // Boxed, as it is rare and every save would be larger.
        Box::pin(self.settle_id(session, via, presented)).await;
        outcome
    }

    /// Confirms or rotates the id of a session for which that is due.
    async fn settle_id(&self, session: Loaded, via: Via, presented: Option<TokenDigest>) {
        let store = &self.shared.store;
        if session.live.predecessor.is_some() {
            // Nobody knows yet whether the client has got the new id; another is too early.
            if presented == Some(session.id) {
                match store.confirm(&session).await {
                    Ok(Some(confirmed)) => self.state().session = Some(confirmed),
                    Ok(None) => {}
                    Err(error) => {
                        event!(debug, %error, "an old id goes on working until the next request");
                    }
                }
            } else if session.token.is_some() {
                // Rotated while this request was under way: its client may get to know it here.
                self.state().cookie = CookieAction::Set;
            }
        } else if via == Via::Cookie && self.rotates(&session) {
            let (mut live, left) = session.renewed();
            live.predecessor = Some(session.id);
            let rotated = match self.fence_for(&session).await {
                Ok(fence) => {
                    store.replace(&session, live, left, fence, Replacement::Rotation).await
                }
                Err(error) => Err(error),
            };
            match rotated {
                Ok(rotated) => {
                    let _ = self.moved_to(rotated).await;
                }
                Err(error) => {
                    event!(debug, %error, "a session keeps its id until the next request");
                }
            }
        }
    }

    /// Notes that no cookie can be set any more, and writes what is to be said of the session.
    pub(super) fn write_head(&self, headers: &mut HeaderMap) {
        self.write_head_of(self.state(), headers);
    }

    fn write_head_of(&self, mut state: MutexGuard<'_, State>, headers: &mut HeaderMap) {
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

/// What was pending and is being written. It is pending again if that fails or is given up.
pub(super) struct Taken<'a> {
    of: &'a Inner,
    pub(super) changes: Changes,
}

impl<'a> Taken<'a> {
    pub(super) fn from(of: &'a Inner, state: &mut State) -> Self {
        Self { of, changes: mem::take(&mut state.pending) }
    }

    /// They are written, or never will be.
    pub(super) fn are_done(&mut self) {
        self.changes = Changes::default();
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.changes.is_empty() {
            let mut state = self.of.state();
            let later = mem::replace(&mut state.pending, mem::take(&mut self.changes));
            state.pending.merge(later);
        }
    }
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
    fn may_write(&self) -> Result<(), SessionError> {
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
