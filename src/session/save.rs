//! What is saved: at once, and before the head of a response leaves.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, MutexGuard},
};

use http::{HeaderMap, StatusCode, header};
use tokio::time::timeout;

use super::{
    Notice, SessionData, SessionError, SessionErrorKind,
    data::Encoded,
    fields::{Changes, Fields},
    privacy,
    record::Live,
    request::{CookieAction, Inner, State, Via},
    store::{Loaded, Replacement},
    token::TokenDigest,
};
use crate::storage::{Error, ErrorKind};

type BoxFuture = Pin<Box<dyn Future<Output = Result<(), SessionError>> + Send>>;

impl Inner {
    /// Saves what is pending. The names of the fields in which others were overwritten.
    pub(super) async fn save(&self) -> Result<Vec<String>, SessionError> {
        let _busy = self.busy.lock().await;
        self.save_pending().await
    }

    pub(super) async fn save_pending(&self) -> Result<Vec<String>, SessionError> {
        let unwritable = self.state().unwritable.take();
        let saved = self.save_changes().await;
        match unwritable {
            Some(error) => Err(error),
            None => saved,
        }
    }

    async fn save_changes(&self) -> Result<Vec<String>, SessionError> {
        let store = &self.shared.store;
        let (session, mut changes, era) = {
            let mut state = self.state();
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
                let created = store.create(live, None, store.policy.lifetime, None).await;
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
                let created = store.create(live, None, store.policy.lifetime, None).await?;
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

/// What was pending and is being written. It is pending again if that fails or is given up, unless the
/// session has become another.
pub(super) struct Taken<'a> {
    of: &'a Inner,
    era: u64,
    pub(super) changes: Changes,
}

impl<'a> Taken<'a> {
    pub(super) fn from(of: &'a Inner, state: &mut State) -> Self {
        Self { of, era: state.era, changes: mem::take(&mut state.pending) }
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
            if state.era == self.era {
                let later = mem::replace(&mut state.pending, mem::take(&mut self.changes));
                state.pending.merge(later);
            }
        }
    }
}
