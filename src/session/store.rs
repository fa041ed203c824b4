//! What becomes of sessions on the storage, one compare-and-swap after another.
//!
//! The rules that everything here keeps:
//!
//! - A record is written by [`When::Version`] alone, after it was created by [`When::Absent`]. So what
//!   has been deleted, expired or ended by a tag never comes back.
//! - A new id is created before the old one ends, and is told to the client only after that. A crash
//!   or a lost reply in between leaves the old id or none, never two that were told.
//! - Whoever has to end a session follows where it was moved to.

mod members;
mod moves;

use std::{future::Future, time::Duration};

pub(super) use self::{
    members::{Look, Seen},
    moves::Replacement,
};

use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{
    Device, Notice, Policy, SessionError,
    data::SessionMap,
    fields::{Changes, Fields},
    index::Index,
    queue::Queues,
    record::{DecodeError, Live, Moved, Record},
    request::Unreadable,
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
    /// There is one that this policy cannot read.
    pub(super) unreadable: Option<Unreadable>,
}

/// What an entry under a session's key is.
#[allow(clippy::large_enum_variant)] // It is matched at once.
enum Judged {
    Live(Loaded),
    Moved(Moved),
    /// Past the policy's lifetime, or no session at all.
    Ended,
    /// A session of a newer schema or version. It is left alone.
    Newer,
    /// One that cannot be migrated. It is left alone.
    Unreadable,
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
        timeout(self.policy.timeout.saturating_mul(10), work).await.unwrap_or_else(|_| {
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
        let mut found = Found { session: None, fence: None, moved: false, unreadable: None };
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
            match self.judge(token.clone(), id, &entry, sent).await {
                Judged::Ended => return Ok(found),
                Judged::Newer => {
                    found.unreadable = Some(Unreadable::Newer(id));
                    return Ok(found);
                }
                Judged::Unreadable => {
                    found.unreadable = Some(Unreadable::Record(id));
                    return Ok(found);
                }
                Judged::Live(session) => {
                    found.session = Some(session);
                    return Ok(found);
                }
                Judged::Moved(moved) => {
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

    /// What lies under the key of an id. What nobody can read is put aside.
    async fn judge(
        &self,
        token: Option<SessionToken>,
        id: TokenDigest,
        entry: &Entry,
        sent: Instant,
    ) -> Judged {
        let live = match Record::decode(entry.value.clone()) {
            Ok(Record::Live(live)) if live.schema <= self.policy.schema => live,
            Ok(Record::Moved(moved)) => return Judged::Moved(moved),
            Ok(Record::Live(_)) | Err(DecodeError::OtherVersion) => {
                event!(debug, "a session of a newer schema or version counts as none");
                return Judged::Newer;
            }
            Err(DecodeError::Damaged) => {
                self.quarantine(id, entry).await;
                return Judged::Ended;
            }
        };
        let left = entry.life_left.unwrap_or(self.policy.lifetime).min(LONGEST);
        // A policy whose lifetime was cut holds for the sessions that are there.
        let age = live.born.saturating_sub(left);
        let Some(most) = self.policy.lifetime.checked_sub(age) else { return Judged::Ended };
        let Some(live) = self.migrated(live) else { return Judged::Unreadable };
        let deadline = sent + left.min(most);
        Judged::Live(Loaded { token, id, version: entry.version, live, deadline })
    }

    /// Puts a damaged record aside, so that it is met once.
    async fn quarantine(&self, id: TokenDigest, entry: &Entry) {
        event!(error, "a session cannot be read; it is put aside for 7 days");
        self.policy.observe(&Notice::Corrupt);
        let aside = Key::new(&self.namespace, &self.quarantine, Identity::new(id.as_bytes()));
        let put = Put::new(entry.value.clone(), QUARANTINE);
        if self.timed(self.storage.put(&aside, put)).await.is_ok() {
            let when = When::Version(entry.version);
            let _ = self.timed(self.storage.delete(&self.key(id), when)).await;
        }
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
        let mut token = (self.new_token)();
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
                    let judged = self.judge(token.clone(), current.id, &entry, sent).await;
                    let now = match judged {
                        Judged::Live(now) => Some(now),
                        Judged::Moved(moved) => self.follow(token, &moved).await?,
                        Judged::Ended | Judged::Newer | Judged::Unreadable => None,
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

    /// A fence, and so the moment from which on an end counts.
    pub(super) async fn fence(&self) -> StorageResult<Option<Fence>> {
        let key = Key::new(&self.namespace, &self.witnesses, Identity::global());
        Ok(self.timed(self.storage.get(&key, Get::new().with_fence())).await?.fence)
    }

    /// Ends one session of a principal.
    pub(super) async fn end(&self, principal: &str, handle: Uuid) -> StorageResult<()> {
        self.invalidate(&[one_of(principal, handle)]).await
    }

    /// Ends all sessions of a principal, and those whose login has begun.
    pub(super) async fn end_all(&self, principal: &str) -> StorageResult<()> {
        self.invalidate(&[all_of(principal)]).await
    }

    async fn invalidate(&self, tags: &[Tag]) -> StorageResult<()> {
        let tags = Tags::Any(tags);
        self.timed(self.storage.invalidate(&self.namespace, tags, Invalidation::Hard)).await
    }

    /// A record of nobody yet.
    pub(super) fn anonymous(&self, fields: Fields) -> Live {
        let lifetime = self.policy.lifetime;
        Live {
            schema: self.policy.schema,
            handle: Uuid::new_v4(),
            born: lifetime,
            rotated: lifetime,
            authenticated: None,
            principal: None,
            device: Device::new(),
            predecessor: None,
            fields,
        }
    }
}

fn all_of(principal: &str) -> Tag {
    Tag::new([b"all\0", principal.as_bytes()].concat())
}

fn one_of(principal: &str, handle: Uuid) -> Tag {
    Tag::new([b"one\0", handle.as_bytes().as_slice(), principal.as_bytes()].concat())
}
