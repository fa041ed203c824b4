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

use tokio::time::Instant;
use uuid::Uuid;

use super::{
    Device, Notice, Policy, SessionError, SessionErrorKind,
    data::SessionMap,
    fields::{Changes, Fields},
    index::Index,
    queue::Queues,
    record::{DecodeError, Live, Moved, Record},
    timed::Timed,
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
    /// By how much that is sooner than the record's own, as the policy's lifetime was cut.
    sooner: Duration,
}

impl Loaded {
    pub(super) fn life_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The time since a moment of the record.
    pub(super) fn since(&self, moment: Duration) -> Duration {
        moment.saturating_sub(self.life_left() + self.sooner)
    }

    /// The time since it began.
    pub(super) fn age(&self) -> Duration {
        self.since(self.live.born)
    }

    /// The record under a new id, whose deadline is so far away: its moments are told by that.
    pub(super) fn renewed(&self) -> (Live, Duration) {
        let left = self.life_left();
        let mut live = self.live.clone();
        live.born = live.born.saturating_sub(self.sooner);
        live.authenticated = live.authenticated.map(|moment| moment.saturating_sub(self.sooner));
        (live.rotated, live.predecessor) = (left, None);
        (live, left)
    }
}

/// What a lookup by token has found.
pub(super) struct Found {
    pub(super) session: Option<Loaded>,
    /// The session was reached by an id that a rotation has replaced.
    pub(super) moved: bool,
    /// What the id stands for, if not for a session.
    pub(super) instead: Option<Instead>,
    /// The ids that die unless this use is [noted](Store::note_use), if that is due.
    pub(super) due: Vec<TokenDigest>,
    /// The time until the first of them does.
    pub(super) left: Duration,
}

impl Found {
    /// Notes whether an id that was used has to live on.
    fn used(&mut self, id: TokenDigest, entry: &Entry, life_left: Duration, policy: &Policy) {
        if policy.idle.min(life_left).saturating_sub(entry.ttl) > policy.slack() {
            self.due.push(id);
            self.left = self.left.min(entry.ttl);
        }
    }
}

/// What the client's id stands for, if not for a session.
#[derive(Clone)]
pub(super) enum Instead {
    /// It was replaced at a change of privileges a short while ago.
    Replaced { successor: Option<TokenDigest> },
    /// A session of a newer schema or version, which other processes can read.
    Newer(TokenDigest),
    /// A record that this policy cannot migrate.
    Unreadable(TokenDigest),
    /// A session whose data does not fit the type of a handler.
    Mismatch(Box<Loaded>),
    /// It has ended while this request was under way.
    Gone,
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
    pub(super) fn timed<T, F>(&self, operation: F) -> Timed<F>
    where
        F: Future<Output = StorageResult<T>>,
    {
        if self.storage.answers_at_once() {
            return Timed::at_once(operation);
        }
        Timed::within(self.policy.timeout, operation, |limit| {
            let message = format!("the storage gave no answer within {limit:?}");
            Error::new(ErrorKind::Timeout, message)
        })
    }

    /// Several operations, one after another, within the time for a whole change.
    fn patiently<T, F>(&self, work: F) -> Timed<F>
    where
        F: Future<Output = Result<T, SessionError>>,
    {
        if self.storage.answers_at_once() {
            return Timed::at_once(work);
        }
        Timed::within(self.policy.patience(), work, |_| {
            let message = "too many changes of one session are waiting for one another";
            Error::new(ErrorKind::Timeout, message)
        })
    }

    /// The labels by which sessions of a principal end: all of them, or one by its handle.
    fn tags(live: &Live) -> Vec<Tag> {
        match &live.principal {
            Some(principal) => vec![all_of(principal), one_of(principal, live.handle)],
            None => Vec::new(),
        }
    }

    /// Finds the session of a token, and where it was moved to. That is a use, which has to be
    /// [noted](Self::note_use) if it is due. `id` is the token's hash, which takes long to make.
    pub(super) async fn load(&self, token: &SessionToken, id: TokenDigest) -> StorageResult<Found> {
        let mut get = Get::new();
        if self.storage.capabilities().local {
            // It costs no trip.
            get = get.with_touch(self.touch());
        }
        self.find(Some(token.clone()), id, get).await
    }

    fn touch(&self) -> Touch {
        Touch { ttl: self.policy.idle, slack: self.policy.slack() }
    }

    /// Prolongs the life of what is used: a session, and an old id by which it was reached.
    pub(super) async fn note_use(&self, ids: &[TokenDigest]) -> StorageResult<()> {
        let get = Get::new().with_touch(self.touch());
        for id in ids {
            self.timed(self.storage.get(&self.key(*id), get)).await?;
        }
        Ok(())
    }

    async fn find(
        &self,
        mut token: Option<SessionToken>,
        mut id: TokenDigest,
        get: Get,
    ) -> StorageResult<Found> {
        let mut found = Found {
            session: None,
            moved: false,
            instead: None,
            due: Vec::new(),
            left: Duration::MAX,
        };
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
            let Some(entry) = lookup.entry else { return Ok(found) };
            match self.judge(token.clone(), id, &entry, sent).await {
                Judged::Ended => return Ok(found),
                Judged::Newer => {
                    found.instead = Some(Instead::Newer(id));
                    return Ok(found);
                }
                Judged::Unreadable => {
                    found.instead = Some(Instead::Unreadable(id));
                    return Ok(found);
                }
                Judged::Live(session) => {
                    found.used(id, &entry, session.life_left(), &self.policy);
                    found.session = Some(session);
                    return Ok(found);
                }
                Judged::Moved(moved) => {
                    match moved {
                        Moved::Replaced { successor } => {
                            found.instead = Some(Instead::Replaced { successor });
                            return Ok(found);
                        }
                        Moved::Retired { .. } if entry.age > self.policy.grace => {
                            event!(
                                warn,
                                "the old id of a session was used long after the new one: \
                                 somebody may have stolen it"
                            );
                            self.policy.observe(&Notice::IdReused);
                            return Ok(found);
                        }
                        Moved::Retired { successor } => (token, id) = (None, successor),
                        Moved::Rotated { successor, sealed } => {
                            // Its client may never have got another.
                            let left = entry.life_left.unwrap_or(self.policy.lifetime);
                            found.used(id, &entry, left, &self.policy);
                            (token, id) = (unsealed(token, successor, sealed), successor);
                        }
                    }
                    found.moved = true;
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
                // Boxed, as it is rare and every lookup would be larger.
                Box::pin(self.quarantine(id, entry)).await;
                return Judged::Ended;
            }
        };
        let stored = entry.life_left.unwrap_or(self.policy.lifetime).min(LONGEST);
        // A policy whose lifetime was cut holds for the sessions that are there.
        let age = live.born.saturating_sub(stored);
        let Some(most) = self.policy.lifetime.checked_sub(age) else { return Judged::Ended };
        let Some(live) = self.migrated(live) else { return Judged::Unreadable };
        let left = stored.min(most);
        let (version, deadline, sooner) = (entry.version, sent + left, stored - left);
        Judged::Live(Loaded { token, id, version, live, deadline, sooner })
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

    /// What is larger than the policy allows by now may stay as it is.
    fn check_size(&self, live: &Live, before: Option<&Live>) -> Result<(), SessionError> {
        let size = |live: &Live| live.fields.as_bytes().len();
        if size(live) > before.map_or(0, size).max(self.policy.max_size) {
            return Err(SessionError::new(SessionErrorKind::TooLarge));
        }
        Ok(())
    }

    /// How long an entry lives that has so long until its deadline.
    fn ttl(&self, left: Duration) -> Duration {
        self.policy.idle.min(left).max(Duration::from_millis(1))
    }

    /// A new session, perhaps in place of one before. `None` if what it belongs to was ended since the
    /// fence.
    pub(super) async fn create(
        &self,
        live: Live,
        before: Option<&Live>,
        left: Duration,
        fence: Option<Fence>,
    ) -> Result<Option<Loaded>, SessionError> {
        self.check_size(&live, before)?;
        let mut token = (self.new_token)();
        let tags = Self::tags(&live);
        let value = live.to_bytes();
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
                    let (token, sooner) = (Some(token), Duration::ZERO);
                    return Ok(Some(Loaded { token, id, version, live, deadline, sooner }));
                }
                PutOutcome::Conflict(None) => return Ok(None),
                // Somebody's session: another id, never that one.
                PutOutcome::Conflict(Some(_)) => token = (self.new_token)(),
            }
        }
        let message = "every new session id is taken: is the source of randomness broken?";
        Err(Error::new(ErrorKind::Other, message).into())
    }

    /// Changes the live record of a session, wherever it was moved to, until the change holds, or it
    /// is sure that there is nothing to change. `None` if the session has ended.
    pub(super) async fn rewrite<O>(
        &self,
        from: &Loaded,
        change: impl FnMut(&Live) -> Result<(Option<Live>, O), SessionError>,
    ) -> Result<Option<(Loaded, O)>, SessionError> {
        self.patiently(self.rewrite_in_turn(from, change)).await
    }

    async fn rewrite_in_turn<O>(
        &self,
        from: &Loaded,
        mut change: impl FnMut(&Live) -> Result<(Option<Live>, O), SessionError>,
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
            let Some(live) = live else {
                let sent = Instant::now();
                let key = self.key(current.id);
                let Some(entry) = self.timed(self.storage.get(&key, Get::new())).await?.entry
                else {
                    return Ok(None);
                };
                if entry.version == current.version {
                    return Ok(Some((current, outcome)));
                }
                match self.now(current, &entry, sent).await? {
                    Some(now) => current = now,
                    None => return Ok(None),
                }
                continue;
            };
            self.check_size(&live, Some(&current.live))?;
            let value = live.to_bytes();
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
                PutOutcome::Conflict(Some(entry)) => match self.now(current, &entry, sent).await? {
                    Some(now) => current = now,
                    None => return Ok(None),
                },
            }
        }
    }

    /// What a session is now that this entry was found where it was seen.
    async fn now(
        &self,
        seen: Loaded,
        entry: &Entry,
        sent: Instant,
    ) -> StorageResult<Option<Loaded>> {
        match self.judge(seen.token.clone(), seen.id, entry, sent).await {
            Judged::Live(now) => Ok(Some(now)),
            Judged::Moved(moved) => Box::pin(self.follow(seen.token, moved)).await,
            Judged::Ended | Judged::Newer | Judged::Unreadable => Ok(None),
        }
    }

    /// Where a session was moved to.
    async fn follow(
        &self,
        token: Option<SessionToken>,
        moved: Moved,
    ) -> StorageResult<Option<Loaded>> {
        let (token, successor) = match moved {
            Moved::Replaced { .. } => return Ok(None),
            Moved::Retired { successor } => (None, successor),
            Moved::Rotated { successor, sealed } => (unsealed(token, successor, sealed), successor),
        };
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
            Ok((Some(live), overwritten))
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
        self.invalidate(&[all_of(principal), witnesses_of(principal)]).await
    }

    /// Ends all sessions of all principals, and those whose login has begun.
    pub(super) async fn end_everybody(&self) -> StorageResult<()> {
        let (all, how) = (Tags::All, Invalidation::Hard);
        self.timed(self.storage.invalidate(&self.namespace, all, how)).await
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

/// The token of a successor, for who has the one before.
fn unsealed(
    old: Option<SessionToken>,
    successor: TokenDigest,
    sealed: [u8; 32],
) -> Option<SessionToken> {
    old.map(|old| old.unseal(sealed)).filter(|token| token.digest() == successor)
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

#[cfg(test)]
mod tests;
