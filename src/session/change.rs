//! What changes whose session it is: logins, logouts, new ids.

use uuid::Uuid;

use super::{
    Login, SessionError, SessionErrorKind,
    fields::{Changes, Fields},
    record::Live,
    request::{CookieAction, Inner, Unreadable},
    store::{Loaded, Replacement},
};
use crate::storage::{Error, ErrorKind};

impl Inner {
    pub(super) async fn login(&self, login: Login) -> Result<(), SessionError> {
        let _busy = self.busy.lock().await;
        let store = &self.shared.store;
        let (old, unreadable, fence, pending) = {
            let state = self.state();
            if state.head_sent {
                return Err(SessionError::new(SessionErrorKind::HeadSent));
            }
            if state.cut_off {
                let message = "the session could not be read, so nobody can log in";
                return Err(Error::new(ErrorKind::Unavailable, message).into());
            }
            (state.session.clone(), state.unreadable.clone(), state.fence, state.pending.clone())
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
        if let Some(unreadable) = unreadable {
            self.destroy_unreadable(unreadable).await?;
        }
        let outcome = store.login(old.as_ref(), live, left, fence).await;
        let mut state = self.state();
        match outcome {
            Ok(session) => {
                state.session = Some(session);
                state.unreadable = None;
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

    pub(super) async fn change_id(&self, authenticated: bool) -> Result<(), SessionError> {
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
        let left = session.life_left();
        let mut live = session.live.clone();
        (live.rotated, live.predecessor) = (left, None);
        if authenticated {
            live.authenticated = Some(left);
        }
        let replaced = store.replace(&session, live, left, fence, Replacement::Privilege).await?;
        self.moved_to(replaced).await
    }

    /// Notes the new id of the session.
    pub(super) async fn moved_to(&self, session: Option<Loaded>) -> Result<(), SessionError> {
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

    pub(super) async fn destroy(&self) -> Result<(), SessionError> {
        let _busy = self.busy.lock().await;
        let (session, unreadable) = {
            let state = self.state();
            if state.cut_off {
                let message = "the session could not be read, so it cannot be ended";
                return Err(Error::new(ErrorKind::Unavailable, message).into());
            }
            (state.session.clone(), state.unreadable.clone())
        };
        if let Some(session) = session {
            self.shared.store.destroy(&session).await?;
        }
        if let Some(unreadable) = unreadable {
            self.destroy_unreadable(unreadable).await?;
        }
        let mut state = self.state();
        state.forget();
        state.cookie = CookieAction::Remove;
        Ok(())
    }

    async fn destroy_unreadable(&self, session: Unreadable) -> Result<(), SessionError> {
        match session {
            Unreadable::Newer(id) | Unreadable::Record(id) => {
                self.shared.store.destroy_unreadable(id).await
            }
            Unreadable::Data(session) => self.shared.store.destroy(&session).await,
        }
    }

    pub(super) async fn end_others(&self) -> Result<(), SessionError> {
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
}
