//! What changes whose session it is: logins, logouts, new ids.

use uuid::Uuid;

use super::{
    Login, SessionError, SessionErrorKind,
    fields::{Changes, Fields},
    record::Live,
    request::{CookieAction, Inner},
    save::Taken,
    store::{Instead, Loaded, Look, Replacement},
    token::TokenDigest,
};
use crate::storage::{Error, ErrorKind};

impl Inner {
    pub(super) async fn login(&self, login: Login) -> Result<(), SessionError> {
        if login.principal.is_empty() {
            return Err(SessionError::new(SessionErrorKind::Unauthenticated));
        }
        let _busy = self.busy.lock().await;
        let store = &self.shared.store;
        let (old, instead, fence, mut taken) = {
            let mut state = self.state();
            if state.head_sent {
                return Err(SessionError::new(SessionErrorKind::HeadSent));
            }
            if state.cut_off {
                let message = "the session could not be read, so nobody can log in";
                return Err(Error::new(ErrorKind::Unavailable, message).into());
            }
            (
                state.session.clone(),
                state.instead.clone(),
                state.fence,
                Taken::from(self, &mut state),
            )
        };
        let pending = taken.changes.clone();
        let fence = match fence {
            Some(fence) => Some(fence),
            None => store.fence().await?,
        };
        let stranger = old.as_ref().is_some_and(|old| {
            old.live.principal.as_deref().is_some_and(|other| other != login.principal)
        });
        let fields = match (&old, &instead) {
            (Some(_), _) if stranger => Fields::default(),
            (Some(old), _) => pending.apply(&old.live.fields),
            (None, Some(Instead::Replaced { successor: Some(successor) })) => {
                pending.apply(&self.fields_of(*successor, &login.principal).await)
            }
            (None, _) => pending.apply(&Fields::default()),
        };
        let left = login.lifetime.map_or(store.policy.lifetime, |it| it.min(store.policy.lifetime));
        // Who logs in again goes on under the same public id.
        let same = old.as_ref().filter(|old| !stranger && old.live.principal.is_some());
        let handle = same.map_or_else(Uuid::new_v4, |old| old.live.handle);
        let device = login.device.or_else(|| self.device.get().cloned()).unwrap_or_default();
        let live = Live {
            handle,
            born: left,
            rotated: left,
            authenticated: Some(left),
            principal: Some(login.principal.into()),
            device,
            ..store.anonymous(fields)
        };
        if let Some(instead) = instead {
            self.destroy_instead(instead).await?;
        }
        let outcome = store.login(old.as_ref(), live, left, fence).await;
        let mut state = self.state();
        match outcome {
            Ok(session) => {
                state.session = Some(session);
                state.instead = None;
                state.cookie = CookieAction::Set;
                taken.are_done();
                if stranger {
                    // What was left meanwhile is of the other's session.
                    (state.pending, state.unwritable) = (Changes::default(), None);
                    state.era += 1;
                }
                Ok(())
            }
            Err(error) => {
                drop(state);
                Err(error)
            }
        }
    }

    /// What a login at the same time has begun with, if it was the same principal's: two clicks are
    /// one wish.
    async fn fields_of(&self, successor: TokenDigest, principal: &str) -> Fields {
        match self.shared.store.look(successor).await {
            Ok(Look::Alive(seen)) if seen.session.live.principal.as_deref() == Some(principal) => {
                seen.session.live.fields
            }
            _ => Fields::default(),
        }
    }

    pub(super) async fn change_id(&self, authenticated: bool) -> Result<(), SessionError> {
        let _busy = self.busy.lock().await;
        let store = &self.shared.store;
        let session = {
            let state = self.state();
            if state.cut_off {
                let message = "the session could not be read, so it gets no new id";
                return Err(Error::new(ErrorKind::Unavailable, message).into());
            }
            if state.head_sent {
                return Err(SessionError::new(SessionErrorKind::HeadSent));
            }
            state.session.clone()
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
        let fence = self.fence_for(&session).await?;
        let replaced = store.replace(&session, live, left, fence, Replacement::Privilege).await?;
        self.moved_to(replaced).await
    }

    /// Notes the new id of the session.
    pub(super) async fn moved_to(&self, session: Option<Loaded>) -> Result<(), SessionError> {
        let Some(session) = session else {
            return Err(self.state().end());
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

    pub(super) async fn destroy(&self) -> Result<(), SessionError> {
        let _busy = self.busy.lock().await;
        let (session, instead) = {
            let state = self.state();
            if state.cut_off {
                let message = "the session could not be read, so it cannot be ended";
                return Err(Error::new(ErrorKind::Unavailable, message).into());
            }
            if let Some(Instead::Replaced { .. } | Instead::Gone) = state.instead {
                // The client may have got another cookie, which is not for this request to remove.
                return Err(SessionError::new(SessionErrorKind::Gone));
            }
            (state.session.clone(), state.instead.clone())
        };
        if let Some(session) = session {
            self.shared.store.destroy(&session).await?;
        }
        if let Some(instead) = instead {
            self.destroy_instead(instead).await?;
        }
        let mut state = self.state();
        state.forget();
        state.cookie = CookieAction::Remove;
        Ok(())
    }

    /// Ends what counts as no session for this policy or type.
    async fn destroy_instead(&self, instead: Instead) -> Result<(), SessionError> {
        match instead {
            Instead::Newer(id) | Instead::Unreadable(id) => {
                self.shared.store.destroy_unreadable(id).await
            }
            Instead::Mismatch(session) => self.shared.store.destroy(&session).await,
            Instead::Replaced { .. } | Instead::Gone => Ok(()),
        }
    }

    pub(super) async fn end_others(&self) -> Result<(), SessionError> {
        let _busy = self.busy.lock().await;
        let session = self.authenticated()?;
        if self.state().head_sent {
            return Err(SessionError::new(SessionErrorKind::HeadSent));
        }
        let fence = self.fence_for(&session).await?;
        let fence = fence.ok_or_else(|| SessionError::new(SessionErrorKind::Unauthenticated))?;
        let principal = session.live.principal.clone().unwrap_or_default();
        let ended = self.shared.store.end_others(&session, &principal, fence).await?;
        // It is older than the end.
        self.state().fence = None;
        self.moved_to(ended).await
    }
}
