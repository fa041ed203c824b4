//! The end of sessions, and their way to new ids.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Judged, Loaded, Look, REPLACED_FOR, Store, all_of, one_of, witnesses_of};
use crate::{
    session::{
        SessionError,
        fields::Changes,
        record::{Live, Moved, Record},
        token::TokenDigest,
    },
    storage::{Fence, Get, Identity, Key, Put, PutOutcome, Result as StorageResult, Storage, When},
};

/// What replaces a session's id.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::session) enum Replacement {
    /// The old id works until the new one was used, and a grace longer.
    Rotation,
    /// The old id is dead at once.
    Privilege,
    /// As well; and whoever logs in beside it has a session too.
    Login,
}

/// What has become of a record since it was seen.
enum Meanwhile {
    Nothing,
    Gone,
    /// Its id was replaced at a change of privileges.
    Replaced,
    Saved(Loaded),
    Moved(Loaded),
}

impl Store {
    /// Ends a session, wherever it was moved to, also while it is being moved.
    pub(in crate::session) async fn destroy(&self, session: &Loaded) -> Result<(), SessionError> {
        let when = When::Version(session.version);
        if !self.timed(self.storage.delete(&self.key(session.id), when)).await? {
            match &session.live.principal {
                // Changed, dead, or on its way to another id. The tag reaches it everywhere, and what
                // is put with a fence from before.
                Some(principal) => self.end(principal, session.live.handle).await?,
                None => self.patiently(self.destroy_moved(session.id)).await?,
            }
        }
        if let Some(principal) = &session.live.principal {
            self.forget(principal, session.live.handle).await;
        }
        Ok(())
    }

    /// Ends a session that cannot be read.
    pub(in crate::session) async fn destroy_unreadable(
        &self,
        id: TokenDigest,
    ) -> Result<(), SessionError> {
        self.timed(self.storage.delete(&self.key(id), When::Always)).await?;
        Ok(())
    }

    async fn destroy_moved(&self, mut id: TokenDigest) -> Result<(), SessionError> {
        loop {
            let key = self.key(id);
            let found = self.timed(self.storage.get(&key, Get::new())).await?.entry;
            let Some(entry) = found else { return Ok(()) };
            if let Ok(Record::Moved(moved)) = Record::decode(entry.value) {
                match moved {
                    Moved::Rotated { successor, .. } | Moved::Retired { successor } => {
                        id = successor;
                    }
                    // To another id of the same visitor. A session that has begun with a login is not
                    // the visitor's any more: he may be a stranger who has planted the id.
                    Moved::Replaced { successor: Some(successor) } => {
                        match self.look(successor).await? {
                            Look::Alive(seen) if seen.session.live.principal.is_none() => {
                                id = seen.session.id;
                            }
                            _ => return Ok(()),
                        }
                    }
                    Moved::Replaced { successor: None } => return Ok(()),
                }
            } else if self.timed(self.storage.delete(&key, When::Version(entry.version))).await? {
                return Ok(());
            }
        }
    }

    /// Puts `next` under a new id and ends the old one. `None` if the session has ended meanwhile.
    pub(in crate::session) async fn replace(
        &self,
        old: &Loaded,
        next: Live,
        left: Duration,
        fence: Option<Fence>,
        how: Replacement,
    ) -> Result<Option<Loaded>, SessionError> {
        let Some(new) = self.create(next, Some(&old.live), left, fence).await? else {
            return Ok(None);
        };
        self.retire(old, new, how).await
    }

    /// Ends the id of `old` in favour of `new`, which takes over what was saved meanwhile.
    pub(in crate::session) async fn retire(
        &self,
        old: &Loaded,
        new: Loaded,
        how: Replacement,
    ) -> Result<Option<Loaded>, SessionError> {
        let created = (new.id, new.version);
        let outcome = self.patiently(self.retire_in_favour(old, new, how)).await;
        // A failed rotation may have moved the session to the new id; after a failed change of
        // privileges nobody must have it.
        let keep = match &outcome {
            Ok(Some(session)) => session.id == created.0,
            Ok(None) => false,
            Err(_) => how == Replacement::Rotation,
        };
        if !keep {
            let _ = self.timed(self.storage.delete(&self.key(created.0), When::Always)).await;
        }
        outcome
    }

    async fn retire_in_favour(
        &self,
        old: &Loaded,
        mut new: Loaded,
        how: Replacement,
    ) -> Result<Option<Loaded>, SessionError> {
        let mut current = old.clone();
        loop {
            let (moved, ttl) = match (how, &current.token, &new.token) {
                (Replacement::Rotation, Some(token), Some(next)) => {
                    let (successor, sealed) = (new.id, next.sealed_by(token));
                    (Moved::Rotated { successor, sealed }, self.ttl(current.life_left()))
                }
                (Replacement::Rotation, ..) => return Ok(None),
                _ => (Moved::Replaced { successor: Some(new.id) }, REPLACED_FOR),
            };
            let now = match self.move_away(&current, moved, ttl).await? {
                Meanwhile::Nothing => return Ok(Some(new)),
                Meanwhile::Gone => return Ok(None),
                // Beside another login there is room for this one, but for one public id only once.
                Meanwhile::Replaced => {
                    let is_another = new.live.handle != current.live.handle;
                    return Ok((how == Replacement::Login && is_another).then_some(new));
                }
                Meanwhile::Moved(next) if how == Replacement::Rotation => return Ok(Some(next)),
                Meanwhile::Saved(now) | Meanwhile::Moved(now) => now,
            };
            // Before the next attempt: what was acknowledged is never only in the old record. But
            // nothing passes from one principal to another.
            let saved = Changes::diff(&current.live.fields, &now.live.fields);
            let owner = &current.live.principal;
            let inherits = owner.is_none() || *owner == new.live.principal;
            current = now;
            if inherits && !saved.is_empty() {
                match self.save(&new, &saved).await? {
                    Some((both, _)) => new = both,
                    None => return Ok(None),
                }
            }
        }
    }

    /// Leaves a notice where a session was, if it is still there as it was seen.
    async fn move_away(
        &self,
        seen: &Loaded,
        moved: Moved,
        ttl: Duration,
    ) -> StorageResult<Meanwhile> {
        let mut put = Put::new(Record::Moved(moved).encode(), ttl)
            .with_condition(When::Version(seen.version));
        if let Moved::Replaced { .. } = moved {
            // Whoever goes on using the old id does not prolong it.
            put = put.with_max_lifetime(ttl);
        }
        let sent = Instant::now();
        let entry = match self.timed(self.storage.put(&self.key(seen.id), put)).await? {
            PutOutcome::Stored(_) => return Ok(Meanwhile::Nothing),
            PutOutcome::Conflict(None) => return Ok(Meanwhile::Gone),
            PutOutcome::Conflict(Some(entry)) => entry,
        };
        let token = seen.token.clone();
        Ok(match self.judge(token.clone(), seen.id, &entry, sent).await {
            Judged::Live(now) => Meanwhile::Saved(now),
            Judged::Moved(Moved::Replaced { .. }) => Meanwhile::Replaced,
            Judged::Moved(moved) => match self.follow(token, moved).await? {
                Some(next) => Meanwhile::Moved(next),
                None => Meanwhile::Gone,
            },
            Judged::Ended | Judged::Newer | Judged::Unreadable => Meanwhile::Gone,
        })
    }

    /// Notes that the new id of a rotation has been used: the old one has only its grace left.
    pub(in crate::session) async fn confirm(
        &self,
        session: &Loaded,
    ) -> Result<Option<Loaded>, SessionError> {
        let Some(predecessor) = session.live.predecessor else { return Ok(None) };
        let key = self.key(predecessor);
        if let Some(entry) = self.timed(self.storage.get(&key, Get::new())).await?.entry
            && let Ok(Record::Moved(Moved::Rotated { successor, .. })) = Record::decode(entry.value)
            && successor == session.id
        {
            let retired = Record::Moved(Moved::Retired { successor }).encode();
            let put = Put::new(retired, self.ttl(session.life_left()))
                .with_condition(When::Version(entry.version));
            self.timed(self.storage.put(&key, put)).await?;
        }
        let confirmed = self.rewrite(session, |current| {
            let mut live = current.clone();
            live.predecessor = live.predecessor.filter(|other| *other != predecessor);
            Ok((Some(live), ()))
        });
        Ok(confirmed.await?.map(|(session, ())| session))
    }

    /// Ends all sessions of the principal of `session` but that one, which gets a new id. `None` if
    /// it has ended meanwhile.
    ///
    /// The tag of the principal ends this one as well, so it is put anew after that. Until it is put,
    /// a logout finds nothing to delete and uses the tag of this one session. A witness that carries
    /// that tag and not the principal's shows whether that has happened; the fence with which the
    /// witness is read is the one with which the session is put.
    ///
    /// Whoever else ends this session meanwhile leaves his mark on the witness as well: the end of
    /// all by a tag of its own, and another session that ends its others by a witness in its place. Of
    /// two that end one another at most one is left.
    pub(in crate::session) async fn end_others(
        &self,
        session: &Loaded,
        principal: &str,
        fence: Fence,
    ) -> Result<Option<Loaded>, SessionError> {
        let tags = [one_of(principal, session.live.handle), witnesses_of(principal)];
        let witness = Key::new(&self.namespace, &self.witnesses, Identity::new(principal));
        let put = Put::new(Bytes::new(), REPLACED_FOR)
            .with_max_lifetime(REPLACED_FOR)
            .with_tags(&tags)
            .with_fence(fence);
        let PutOutcome::Stored(own) = self.timed(self.storage.put(&witness, put)).await? else {
            return Ok(None);
        };
        let mut current = session.clone();
        loop {
            let nowhere = Moved::Replaced { successor: None };
            match self.move_away(&current, nowhere, REPLACED_FOR).await? {
                Meanwhile::Nothing => break,
                Meanwhile::Gone | Meanwhile::Replaced => return Ok(None),
                Meanwhile::Saved(now) | Meanwhile::Moved(now) => current = now,
            }
        }
        self.invalidate(&[all_of(principal)]).await?;
        let seen = self.timed(self.storage.get(&witness, Get::new().with_fence())).await?;
        let witness = seen.entry.filter(|entry| entry.version == own);
        let (Some(_), Some(fence)) = (witness, seen.fence) else { return Ok(None) };
        let (live, left) = current.renewed();
        self.create(live, Some(&current.live), left, Some(fence)).await
    }
}
