//! What becomes of sessions on the storage, one compare-and-swap after another.
//!
//! The rules that everything here keeps:
//!
//! - A record is written by [`When::Version`] alone, after it was created by [`When::Absent`]. So what
//!   has been deleted, expired or ended by a tag never comes back.
//! - A new id is created before the old one ends, and is told to the client only after that. A crash
//!   or a lost reply in between leaves the old id or none, never two that were told.
//! - Whoever has to end a session follows where it was moved to.

use std::{cmp::Reverse, future::Future, time::Duration};

use bytes::Bytes;
use futures_util::future::{join, join_all};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{
    Device, Notice, OverCap, Policy, SessionError, SessionErrorKind,
    data::SessionMap,
    fields::{Changes, Fields},
    index::{Added, Admission, Cursor, IfFull, Index, Member, Page, Swap},
    policy::Cap,
    queue::Queues,
    record::{DecodeError, Live, Moved, Record},
    token::{SessionToken, TokenDigest},
};
use crate::storage::{
    AnyStorage, Entry, Error, ErrorKind, Fence, Get, Identity, Invalidation, Key, Name, Put,
    PutOutcome, Result as StorageResult, Storage, Tag, Tags, Touch, Version, When,
};

/// How far a session is followed that was moved again and again.
const MOST_MOVES: usize = 8;
/// How often another id is drawn when there is a session under the first.
const MOST_COLLISIONS: usize = 4;
/// How long it is remembered that an id was replaced at a change of privileges.
const REPLACED_FOR: Duration = Duration::from_secs(60);
/// How long a record that cannot be read is kept for whoever wants to know why.
const QUARANTINE: Duration = Duration::from_secs(7 * 24 * 3_600);
/// No deadline is further away (the longest lifetime that a policy may have).
const LONGEST: Duration = Duration::from_secs(400 * 24 * 3_600);

/// A live session as this request has last seen it.
#[derive(Clone)]
pub(super) struct Loaded {
    /// `None` if the session was reached by an older id: its present one is then known as a hash.
    pub(super) token: Option<SessionToken>,
    pub(super) id: TokenDigest,
    pub(super) version: Version,
    pub(super) live: Live,
    /// By this process' clock, and never too late.
    deadline: Instant,
}

impl Loaded {
    pub(super) fn life_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The time since it began.
    pub(super) fn age(&self) -> Duration {
        self.live.born.saturating_sub(self.life_left())
    }
}

/// What a lookup by token has found.
pub(super) struct Found {
    pub(super) session: Option<Loaded>,
    pub(super) fence: Option<Fence>,
    /// The session was reached by an id that a rotation has replaced.
    pub(super) moved: bool,
}

/// What replaces a session's id.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Replacement {
    /// The old id works until the new one was used, and a grace longer.
    Rotation,
    /// The old id is dead at once.
    Privilege,
    /// As well; and whoever logs in beside it has a session too.
    Login,
}

/// What the last in the queue has left to the next.
pub(super) type Latest = (Version, Live);

pub(super) struct Store {
    pub(super) policy: Policy,
    pub(super) storage: AnyStorage,
    pub(super) index: Index,
    namespace: Name,
    records: Name,
    quarantine: Name,
    witnesses: Name,
    queues: Queues<Latest>,
    new_token: fn() -> SessionToken,
}

impl Store {
    pub(super) fn new(storage: AnyStorage, policy: Policy, namespace: Name) -> Self {
        Self {
            index: Index::new(storage.clone(), namespace.clone(), policy.lifetime),
            policy,
            storage,
            namespace,
            records: Name::new("record"),
            quarantine: Name::new("quarantine"),
            witnesses: Name::new("witness"),
            queues: Queues::new(),
            new_token: SessionToken::random,
        }
    }

    #[cfg(test)]
    pub(super) fn with_tokens(mut self, new_token: fn() -> SessionToken) -> Self {
        self.new_token = new_token;
        self
    }

    pub(super) fn namespace(&self) -> &Name {
        &self.namespace
    }

    fn key(&self, id: TokenDigest) -> Key {
        Key::new(&self.namespace, &self.records, Identity::new(id.as_bytes()))
    }

    /// One operation of the storage, within its time.
    pub(super) async fn timed<T>(
        &self,
        operation: impl Future<Output = StorageResult<T>>,
    ) -> StorageResult<T> {
        if self.storage.answers_at_once() {
            return operation.await;
        }
        timeout(self.policy.timeout, operation).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Timeout,
                format!("the storage gave no answer within {:?}", self.policy.timeout),
            ))
        })
    }

    /// Several operations, one after another, within the time for a whole change.
    async fn patiently<T>(
        &self,
        work: impl Future<Output = Result<T, SessionError>>,
    ) -> Result<T, SessionError> {
        if self.storage.answers_at_once() {
            return work.await;
        }
        timeout(10 * self.policy.timeout, work).await.unwrap_or_else(|_| {
            let message = "too many changes of one session are waiting for one another";
            Err(Error::new(ErrorKind::Timeout, message).into())
        })
    }

    /// The labels by which sessions of a principal end: all of them, or one by its handle.
    fn tags(live: &Live) -> Vec<Tag> {
        match &live.principal {
            Some(principal) => vec![all_of(principal), one_of(principal, live.handle)],
            None => Vec::new(),
        }
    }

    /// Finds the session of a token, and where it was moved to. Counts as a use.
    pub(super) async fn load(&self, token: &SessionToken) -> StorageResult<Found> {
        let touch = Touch { ttl: self.policy.idle, slack: self.policy.slack() };
        let get = Get::new().with_touch(touch).with_fence();
        self.find(Some(token.clone()), token.digest(), get).await
    }

    async fn find(
        &self,
        mut token: Option<SessionToken>,
        mut id: TokenDigest,
        get: Get,
    ) -> StorageResult<Found> {
        let mut found = Found { session: None, fence: None, moved: false };
        for _ in 0..MOST_MOVES {
            let sent = Instant::now();
            let lookup = match self.timed(self.storage.get(&self.key(id), get)).await {
                Ok(lookup) => lookup,
                // What lies there is not of this key: there is no session.
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    self.policy.observe(&Notice::Corrupt);
                    event!(error, "what is stored under a session's key is not a session");
                    return Ok(found);
                }
                Err(error) => return Err(error),
            };
            // The first is the oldest, and so the one that knows of every end since.
            found.fence = found.fence.or(lookup.fence);
            let Some(entry) = lookup.entry else { return Ok(found) };
            match self.decode(id, &entry).await {
                None => return Ok(found),
                Some(Record::Live(live)) => {
                    found.session = self.loaded(token, id, &entry, live, sent);
                    return Ok(found);
                }
                Some(Record::Moved(moved)) => {
                    let Some(successor) = moved.successor else { return Ok(found) };
                    token = match (token, moved.sealed) {
                        (Some(old), Some(sealed)) => Some(old.unseal(sealed)),
                        _ => None,
                    };
                    if token.as_ref().is_some_and(|token| token.digest() != successor) {
                        self.policy.observe(&Notice::Corrupt);
                        return Ok(found);
                    }
                    if moved.sealed.is_none() && entry.age > self.policy.grace {
                        event!(
                            warn,
                            "the old id of a session was used long after the new one: \
                             somebody may have stolen it"
                        );
                        self.policy.observe(&Notice::IdReused);
                        return Ok(found);
                    }
                    (id, found.moved) = (successor, true);
                }
            }
        }
        Ok(found)
    }

    /// What lies there, if this policy can read it. What nobody can is put aside.
    async fn decode(&self, id: TokenDigest, entry: &Entry) -> Option<Record> {
        match Record::decode(entry.value.clone()) {
            Ok(Record::Live(live)) if live.schema > self.policy.schema => {
                event!(debug, "a session of a newer schema counts as none");
                None
            }
            Ok(record) => Some(record),
            Err(DecodeError::OtherVersion) => {
                event!(debug, "a session of another version of this crate counts as none");
                None
            }
            Err(DecodeError::Damaged) => {
                event!(error, "a session cannot be read; it is put aside for 7 days");
                self.policy.observe(&Notice::Corrupt);
                let aside =
                    Key::new(&self.namespace, &self.quarantine, Identity::new(id.as_bytes()));
                let put = Put::new(entry.value.clone(), QUARANTINE);
                if self.timed(self.storage.put(&aside, put)).await.is_ok() {
                    let when = When::Version(entry.version);
                    let _ = self.timed(self.storage.delete(&self.key(id), when)).await;
                }
                None
            }
        }
    }

    fn loaded(
        &self,
        token: Option<SessionToken>,
        id: TokenDigest,
        entry: &Entry,
        live: Live,
        sent: Instant,
    ) -> Option<Loaded> {
        let left = entry.life_left.unwrap_or(self.policy.lifetime).min(LONGEST);
        // A policy whose lifetime was cut holds for the sessions that are there.
        let age = live.born.saturating_sub(left);
        let left = left.min(self.policy.lifetime.checked_sub(age)?);
        let live = self.migrated(live)?;
        Some(Loaded { token, id, version: entry.version, live, deadline: sent + left })
    }

    /// The record in the present schema.
    fn migrated(&self, mut live: Live) -> Option<Live> {
        if live.schema < self.policy.schema {
            let mut data = SessionMap::from_fields(live.fields);
            if let Some(migrate) = &self.policy.migrate
                && let Err(error) = migrate(live.schema, &mut data)
            {
                event!(error, %error, "a session cannot be migrated, and counts as none");
                self.policy.observe(&Notice::Mismatch);
                return None;
            }
            live.fields = data.into_fields();
            live.schema = self.policy.schema;
        }
        Some(live)
    }

    /// How long an entry lives that has so long until its deadline.
    fn ttl(&self, left: Duration) -> Duration {
        self.policy.idle.min(left).max(Duration::from_millis(1))
    }

    /// A new session. `None` if what it belongs to was ended since the fence.
    pub(super) async fn create(
        &self,
        live: Live,
        left: Duration,
        fence: Option<Fence>,
    ) -> Result<Option<Loaded>, SessionError> {
        self.create_under((self.new_token)(), live, left, fence).await
    }

    async fn create_under(
        &self,
        mut token: SessionToken,
        live: Live,
        left: Duration,
        fence: Option<Fence>,
    ) -> Result<Option<Loaded>, SessionError> {
        let tags = Self::tags(&live);
        let value = Record::Live(live.clone()).encode();
        for _ in 0..MOST_COLLISIONS {
            let id = token.digest();
            let left = left.max(Duration::from_millis(1));
            let mut put = Put::new(value.clone(), self.ttl(left))
                .with_condition(When::Absent)
                .with_max_lifetime(left)
                .with_tags(&tags);
            if let (Some(fence), false) = (fence, tags.is_empty()) {
                put = put.with_fence(fence);
            }
            let sent = Instant::now();
            match self.timed(self.storage.put(&self.key(id), put)).await? {
                PutOutcome::Stored(version) => {
                    let deadline = sent + left;
                    return Ok(Some(Loaded { token: Some(token), id, version, live, deadline }));
                }
                PutOutcome::Conflict(None) => return Ok(None),
                // Somebody's session: another id, never that one.
                PutOutcome::Conflict(Some(_)) => token = (self.new_token)(),
            }
        }
        let message = "every new session id is taken: is the source of randomness broken?";
        Err(Error::new(ErrorKind::Other, message).into())
    }

    /// Changes the live record of a session, wherever it was moved to, until the change holds.
    /// `None` if the session has ended.
    pub(super) async fn rewrite<O>(
        &self,
        from: &Loaded,
        change: impl FnMut(&Live) -> Result<(Live, O), SessionError>,
    ) -> Result<Option<(Loaded, O)>, SessionError> {
        self.patiently(self.rewrite_in_turn(from, change)).await
    }

    async fn rewrite_in_turn<O>(
        &self,
        from: &Loaded,
        mut change: impl FnMut(&Live) -> Result<(Live, O), SessionError>,
    ) -> Result<Option<(Loaded, O)>, SessionError> {
        let mut current = from.clone();
        let mut turn = None;
        if !self.storage.answers_at_once() {
            let entered = self.queues.enter(*from.id.as_bytes()).await;
            if let Some((version, live)) = entered.last()
                && *version > current.version
            {
                (current.version, current.live) = (*version, live.clone());
            }
            turn = Some(entered);
        }
        loop {
            let (live, outcome) = change(&current.live)?;
            let value = Record::Live(live.clone()).encode();
            let left = current.life_left();
            let put =
                Put::new(value, self.ttl(left)).with_condition(When::Version(current.version));
            let sent = Instant::now();
            match self.timed(self.storage.put(&self.key(current.id), put)).await? {
                PutOutcome::Stored(version) => {
                    (current.version, current.live) = (version, live);
                    if let Some(turn) = &mut turn
                        && current.id == from.id
                    {
                        turn.leave((current.version, current.live.clone()));
                    }
                    return Ok(Some((current, outcome)));
                }
                PutOutcome::Conflict(None) => return Ok(None),
                PutOutcome::Conflict(Some(entry)) => {
                    let token = current.token.take();
                    let now = match self.decode(current.id, &entry).await {
                        Some(Record::Live(live)) => {
                            self.loaded(token, current.id, &entry, live, sent)
                        }
                        Some(Record::Moved(moved)) => self.follow(token, &moved).await?,
                        None => None,
                    };
                    match now {
                        Some(now) => current = now,
                        None => return Ok(None),
                    }
                }
            }
        }
    }

    /// Where a session was moved to.
    async fn follow(
        &self,
        token: Option<SessionToken>,
        moved: &Moved,
    ) -> StorageResult<Option<Loaded>> {
        let Some(successor) = moved.successor else { return Ok(None) };
        let token = token.zip(moved.sealed).map(|(old, sealed)| old.unseal(sealed));
        let token = token.filter(|token| token.digest() == successor);
        Ok(self.find(token, successor, Get::new()).await?.session)
    }

    /// Saves changes over what others have saved since `from`, and tells which of theirs it has
    /// overwritten. `None` if the session has ended.
    pub(super) async fn save(
        &self,
        from: &Loaded,
        changes: &Changes,
    ) -> Result<Option<(Loaded, Vec<String>)>, SessionError> {
        self.rewrite(from, |current| {
            let overwritten = changes.overwrites(&from.live.fields, &current.fields);
            let mut live = current.clone();
            live.fields = changes.apply(&current.fields);
            Ok((live, overwritten))
        })
        .await
    }

    /// Ends a session, wherever it was moved to, also while it is being moved.
    pub(super) async fn destroy(&self, session: &Loaded) -> Result<(), SessionError> {
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

    async fn destroy_moved(&self, mut id: TokenDigest) -> Result<(), SessionError> {
        loop {
            let key = self.key(id);
            let found = self.timed(self.storage.get(&key, Get::new())).await?.entry;
            let Some(entry) = found else { return Ok(()) };
            if let Ok(Record::Moved(moved)) = Record::decode(entry.value) {
                match moved.successor {
                    Some(successor) => id = successor,
                    None => return Ok(()),
                }
            } else if self.timed(self.storage.delete(&key, When::Version(entry.version))).await? {
                return Ok(());
            }
        }
    }

    /// Puts `next` under a new id and ends the old one. `None` if the session has ended meanwhile.
    pub(super) async fn replace(
        &self,
        old: &Loaded,
        next: Live,
        left: Duration,
        fence: Option<Fence>,
        how: Replacement,
    ) -> Result<Option<Loaded>, SessionError> {
        let Some(new) = self.create(next, left, fence).await? else { return Ok(None) };
        self.retire(old, new, how).await
    }

    /// Ends the id of `old` in favour of `new`, which takes over what was saved meanwhile.
    pub(super) async fn retire(
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
                    let sealed = Some(next.sealed_by(token));
                    (Moved { successor: Some(new.id), sealed }, self.ttl(current.life_left()))
                }
                (Replacement::Rotation, ..) => return Ok(None),
                _ => (Moved { successor: None, sealed: None }, REPLACED_FOR),
            };
            let now = match self.move_away(&current, moved, ttl).await? {
                Meanwhile::Nothing => return Ok(Some(new)),
                Meanwhile::Gone => return Ok(None),
                Meanwhile::Replaced => return Ok((how == Replacement::Login).then_some(new)),
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
        let put = Put::new(Record::Moved(moved).encode(), ttl)
            .with_condition(When::Version(seen.version));
        let sent = Instant::now();
        let entry = match self.timed(self.storage.put(&self.key(seen.id), put)).await? {
            PutOutcome::Stored(_) => return Ok(Meanwhile::Nothing),
            PutOutcome::Conflict(None) => return Ok(Meanwhile::Gone),
            PutOutcome::Conflict(Some(entry)) => entry,
        };
        let token = seen.token.clone();
        let (next, moved) = match self.decode(seen.id, &entry).await {
            None => return Ok(Meanwhile::Gone),
            Some(Record::Moved(Moved { successor: None, .. })) => return Ok(Meanwhile::Replaced),
            Some(Record::Live(live)) => (self.loaded(token, seen.id, &entry, live, sent), false),
            Some(Record::Moved(moved)) => (self.follow(token, &moved).await?, true),
        };
        Ok(match next {
            None => Meanwhile::Gone,
            Some(next) if moved => Meanwhile::Moved(next),
            Some(next) => Meanwhile::Saved(next),
        })
    }

    /// Notes that the new id of a rotation has been used: the old one has only its grace left.
    pub(super) async fn confirm(&self, session: &Loaded) -> Result<Option<Loaded>, SessionError> {
        let Some(predecessor) = session.live.predecessor else { return Ok(None) };
        let key = self.key(predecessor);
        if let Some(entry) = self.timed(self.storage.get(&key, Get::new())).await?.entry
            && let Ok(Record::Moved(Moved { successor, sealed: Some(_) })) =
                Record::decode(entry.value)
            && successor == Some(session.id)
        {
            let retired = Record::Moved(Moved { successor, sealed: None }).encode();
            let put = Put::new(retired, self.ttl(session.life_left()))
                .with_condition(When::Version(entry.version));
            self.timed(self.storage.put(&key, put)).await?;
        }
        let confirmed = self.rewrite(session, |current| {
            let mut live = current.clone();
            live.predecessor = live.predecessor.filter(|other| *other != predecessor);
            Ok((live, ()))
        });
        Ok(confirmed.await?.map(|(session, ())| session))
    }

    /// A fence, and so the moment from which on an end counts.
    pub(super) async fn fence(&self) -> StorageResult<Option<Fence>> {
        let key = self.key((self.new_token)().digest());
        Ok(self.timed(self.storage.get(&key, Get::new().with_fence())).await?.fence)
    }

    /// Ends one session of a principal.
    pub(super) async fn end(&self, principal: &str, handle: Uuid) -> StorageResult<()> {
        self.invalidate(&[one_of(principal, handle)]).await
    }

    /// Ends all sessions of a principal, and those whose login has begun.
    pub(super) async fn end_all(&self, principal: &str) -> StorageResult<()> {
        self.invalidate(&[all_of(principal), witnesses_of(principal)]).await
    }

    async fn invalidate(&self, tags: &[Tag]) -> StorageResult<()> {
        let tags = Tags::Any(tags);
        self.timed(self.storage.invalidate(&self.namespace, tags, Invalidation::Hard)).await
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
    pub(super) async fn end_others(
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
            let nowhere = Moved { successor: None, sealed: None };
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
        let left = current.life_left();
        let mut live = current.live;
        (live.predecessor, live.rotated) = (None, left);
        let new = self.create(live, left, Some(fence)).await?;
        if let Some(new) = &new {
            self.enlist(principal, new).await;
        }
        Ok(new)
    }

    /// A record of nobody yet.
    pub(super) fn anonymous(&self, fields: Fields) -> Live {
        let lifetime = self.policy.lifetime;
        Live {
            schema: self.policy.schema,
            handle: Uuid::new_v4(),
            lifetime,
            born: lifetime,
            rotated: lifetime,
            authenticated: None,
            principal: None,
            device: Device::new(),
            predecessor: None,
            fields,
        }
    }

    /// Begins a session of a principal in place of `old`.
    ///
    /// In three trips one after another, of which the first was the lookup: the new record and the
    /// list of the principal's sessions; then the end of the old record and the new list.
    pub(super) async fn login(
        &self,
        old: Option<&Loaded>,
        live: Live,
        left: Duration,
        fence: Option<Fence>,
    ) -> Result<Loaded, SessionError> {
        let gone = || SessionError::new(SessionErrorKind::Gone);
        let principal = live.principal.clone().unwrap_or_default();
        let handle = live.handle;
        let read = self.timed(self.index.read(&principal, Cursor::START));
        let (new, first) = join(self.create(live, left, fence), read).await;
        let new = new?.ok_or_else(gone)?;
        let (id, first) = (new.id, first.ok());
        let retire = async {
            match old {
                Some(old) => self.retire(old, new, Replacement::Login).await,
                None => Ok(Some(new)),
            }
        };
        let enlist = self.enlist_new(&principal, Member { handle, id }, first);
        let outcome = match self.policy.cap {
            // A login that is refused leaves the old session as it was.
            Some(Cap { over: OverCap::Refuse, .. }) => match enlist.await {
                Ok(()) => retire.await,
                Err(error) => Err(error),
            },
            Some(_) => {
                let (retired, enlisted) = join(retire, enlist).await;
                enlisted.and(retired)
            }
            None => {
                let (retired, enlisted) = join(retire, enlist).await;
                if let Err(error) = enlisted {
                    event!(warn, %error, "a session is missing in the list of its principal");
                }
                retired
            }
        };
        if !matches!(outcome, Ok(Some(_))) {
            // Nobody was told its id.
            let _ = self.timed(self.storage.delete(&self.key(id), When::Always)).await;
            self.forget(&principal, handle).await;
        }
        outcome?.ok_or_else(gone)
    }

    /// Adds a session to the list of its principal, within the cap.
    async fn enlist_new(
        &self,
        principal: &str,
        member: Member,
        first: Option<Page>,
    ) -> Result<(), SessionError> {
        let Some(cap) = self.policy.cap else {
            let add = self.index.add(principal, member, first, IfFull::Ask);
            if let Added::Full(pages) = self.timed(add).await? {
                for page in pages {
                    let dead = self.dead(page.members()).await;
                    let _ = self.timed(self.index.remove(principal, page, &dead)).await;
                }
                self.timed(self.index.add(principal, member, None, IfFull::Grow)).await?;
            }
            return Ok(());
        };
        let most = usize::from(cap.most);
        let mut first = first;
        self.patiently(async {
            loop {
                let admit = self.index.admit(principal, member, most, first.take());
                let Admission::OverCap(page) = self.timed(admit).await? else { return Ok(()) };
                let leaving = self.leaving(principal, page.members(), most, cap.over).await?;
                let handles: Vec<_> = leaving.iter().map(|(handle, _)| *handle).collect();
                // Before they leave the list: if this stops here, nobody lives on unlisted.
                for (handle, alive) in leaving {
                    self.evict(principal, handle, alive).await?;
                }
                let swap = self.index.replace_members(principal, page, &handles, member, most);
                match self.timed(swap).await? {
                    Swap::Swapped => return Ok(()),
                    Swap::Conflict(page) => first = Some(page),
                }
            }
        })
        .await
    }

    async fn evict(
        &self,
        principal: &str,
        handle: Uuid,
        alive: Option<Loaded>,
    ) -> Result<(), SessionError> {
        if let Some(session) = alive {
            self.destroy(&session).await?;
            event!(info, "a session was ended, as its principal has begun another");
            let principal = principal.to_owned();
            self.policy.observe(&Notice::Evicted { principal, public_id: handle });
        }
        Ok(())
    }

    /// Who has to go for one more to have room: the dead, and by the policy the living.
    async fn leaving(
        &self,
        principal: &str,
        members: &[Member],
        most: usize,
        over: OverCap,
    ) -> Result<Vec<(Uuid, Option<Loaded>)>, SessionError> {
        let mut leaving = Vec::new();
        let (mut alive, mut replaced) = (Vec::new(), Vec::new());
        let looks = join_all(members.iter().map(|member| self.look(member.id))).await;
        for (member, standing) in members.iter().zip(looks) {
            match standing? {
                Standing::Alive(seen) if seen.session.live.handle == member.handle => {
                    alive.push(seen);
                }
                Standing::Replaced => replaced.push(member.handle),
                _ => leaving.push((member.handle, None)),
            }
        }
        let excess = (alive.len() + 1).saturating_sub(most);
        if excess > 0 && over == OverCap::Refuse {
            return Err(SessionError::new(SessionErrorKind::OverCap));
        }
        for handle in replaced {
            // It may be on its way to another id, and who leaves the list must not live on.
            self.end(principal, handle).await?;
            leaving.push((handle, None));
        }
        match over {
            OverCap::EndLeastRecentlyUsed => alive.sort_by_key(|seen| Reverse(seen.unused)),
            _ => alive.sort_by_key(|seen| Reverse(seen.session.age())),
        }
        alive.truncate(excess);
        leaving
            .extend(alive.into_iter().map(|seen| (seen.session.live.handle, Some(seen.session))));
        Ok(leaving)
    }

    async fn dead(&self, members: &[Member]) -> Vec<Member> {
        let looks = join_all(members.iter().map(|member| self.look(member.id))).await;
        let seen = members.iter().zip(looks);
        seen.filter(|(_, seen)| matches!(seen, Ok(Standing::Dead)))
            .map(|(member, _)| *member)
            .collect()
    }

    /// What has become of a session, without using it.
    pub(super) async fn look(&self, mut id: TokenDigest) -> StorageResult<Standing> {
        for _ in 0..MOST_MOVES {
            let sent = Instant::now();
            let found = self.timed(self.storage.get(&self.key(id), Get::new())).await?;
            let Some(entry) = found.entry else { return Ok(Standing::Dead) };
            match self.decode(id, &entry).await {
                None => return Ok(Standing::Dead),
                Some(Record::Moved(Moved { successor: None, .. })) => {
                    return Ok(Standing::Replaced);
                }
                Some(Record::Moved(Moved { successor: Some(next), .. })) => id = next,
                Some(Record::Live(live)) => {
                    // The last use has set the life to the idle timeout, or to what was left until
                    // the deadline. Saves count as well.
                    let unused = self.policy.idle.saturating_sub(entry.ttl).min(entry.age);
                    let session = self.loaded(None, id, &entry, live, sent);
                    return Ok(session.map_or(Standing::Dead, |session| {
                        Standing::Alive(Box::new(Seen { session, unused }))
                    }));
                }
            }
        }
        Ok(Standing::Dead)
    }

    /// Has the index know the present id of a session.
    pub(super) async fn enlist(&self, principal: &str, session: &Loaded) {
        let member = Member { handle: session.live.handle, id: session.id };
        let replaced = self.timed(self.index.replace(principal, member, None)).await;
        let outcome = match replaced {
            Ok(true) => Ok(()),
            Ok(false) => {
                let add = self.index.add(principal, member, None, IfFull::Grow);
                self.timed(add).await.map(drop)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            event!(warn, %error, "a session is missing in the list of its principal for now");
        }
    }

    /// Takes a session out of the index, to keep the list short.
    pub(super) async fn forget(&self, principal: &str, handle: Uuid) {
        let mut at = Some(Cursor::START);
        while let Some(cursor) = at {
            let Ok(page) = self.timed(self.index.read(principal, cursor)).await else { return };
            at = page.next();
            let held = page.members().iter().find(|member| member.handle == handle).copied();
            if let Some(member) = held {
                let _ = self.timed(self.index.remove(principal, page, &[member])).await;
                return;
            }
        }
    }

    /// Has the index forget the dead of a page, and know where the others were moved.
    pub(super) async fn heal(
        &self,
        principal: &str,
        page: Page,
        dead: &[Member],
        moved: &[Member],
    ) {
        for member in moved {
            let _ = self.timed(self.index.replace(principal, *member, None)).await;
        }
        if !dead.is_empty() || page.is_idle() {
            let _ = self.timed(self.index.remove(principal, page, dead)).await;
        }
    }
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

/// What has become of a member of the index.
pub(super) enum Standing {
    Alive(Box<Seen>),
    /// Its id was replaced at a change of privileges a short while ago. It is dead, or the index will
    /// soon know its new id.
    Replaced,
    Dead,
}

/// A session as a list sees it.
pub(super) struct Seen {
    pub(super) session: Loaded,
    /// For how long it was not used, at most; a use shows only after the slack.
    pub(super) unused: Duration,
}

fn all_of(principal: &str) -> Tag {
    Tag::new([b"all\0", principal.as_bytes()].concat())
}

fn witnesses_of(principal: &str) -> Tag {
    Tag::new([b"witness\0", principal.as_bytes()].concat())
}

fn one_of(principal: &str, handle: Uuid) -> Tag {
    Tag::new([b"one\0", handle.as_bytes().as_slice(), principal.as_bytes()].concat())
}
