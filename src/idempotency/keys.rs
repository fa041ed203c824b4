//! Keys outside of requests: those whose outcome is unknown.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Response, StatusCode};

use super::{
    IdempotencyKey, KeyHandle, SealReason, fingerprint,
    record::{Record, Sealed, State, StoredResponse},
    roster::{Arrival, BUCKETS, Roster, RosterItem, bucket_of},
    shared::{Seen, Shared},
};
use crate::storage::{
    Error, ErrorKind, Get, Identity, Key, Name, Put, PutOutcome, Result, Storage, When,
};

/// How often a list is tried to be changed when others change it, too.
const MOST_TRIES: usize = 32;

/// The keys of a layer outside of requests: to look after those whose outcome is unknown.
///
/// A key is listed when somebody notices that its owner has vanished: a duplicate that asks under
/// [`Repeat::AtMostOnce`](super::Repeat::AtMostOnce), or a process that had to stop a handler at its
/// [shutdown](crate::storage::AnyStorage::shutdown). An owner that dies at once, and whose client never
/// asks again, is noticed by nobody.
///
/// # Examples
///
/// ```
/// use http::Response;
/// use tower_keep::{
///     IdempotencyLayer, MemoryStorage,
///     idempotency::{KeyCursor, Policy, Repeat},
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tower_keep::storage::Result<()> {
/// # async fn look_into_the_ledger(_: &str) -> Option<String> { None }
/// let policy = Policy::scope_public().with_repeat(Repeat::AtMostOnce);
/// let keys = IdempotencyLayer::new(MemoryStorage::new(), policy).keys();
///
/// let mut next = Some(KeyCursor::START);
/// while let Some(at) = next {
///     let page = keys.list(at).await?;
///     for unknown in page.keys {
///         match look_into_the_ledger(&unknown.label).await {
///             Some(receipt) => keys.resolve(unknown.handle, Response::new(receipt.into())).await?,
///             None => keys.delete(unknown.handle).await?,
///         };
///     }
///     next = page.next;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct IdempotencyKeys {
    shared: Arc<Shared>,
}

/// A key whose outcome is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnknownKey {
    /// By which it can be resolved.
    pub handle: KeyHandle,
    /// The method and path of its request.
    pub label: String,
    /// Which attempt it was, from 1 on.
    pub attempt: u32,
    /// How long ago the record was written last.
    pub age: Duration,
    /// How long it is remembered unless somebody resolves it.
    pub ttl: Duration,
}

/// Some of the keys whose outcome is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyPage {
    /// The keys, those of which it was noticed first in front.
    pub keys: Vec<UnknownKey>,
    /// Where to go on.
    pub next: Option<KeyCursor>,
}

/// Where a list goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyCursor(u8);

impl KeyCursor {
    /// The beginning.
    pub const START: Self = Self(0);
}

/// What became of an operator's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[must_use = "the key may not have been unknown any more"]
pub enum Resolution {
    /// It counts from now on.
    Done,
    /// The outcome of the key is not unknown, or no longer: its owner has come back, somebody else has
    /// resolved it, it was taken over, or its retention is over. Nothing was changed.
    NotUnknown,
}

impl IdempotencyKeys {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The handle of a key, for who knows what it was used for.
    ///
    /// `path` is the path that the client sent, without the query.
    pub fn handle(
        &self,
        scope: impl Into<Identity>,
        method: &Method,
        path: &str,
        key: &IdempotencyKey,
    ) -> KeyHandle {
        let own_path = self.shared.policy.per_route.then_some(path);
        let name = self.shared.namespace.as_str();
        KeyHandle(fingerprint::key_digest(name, &scope.into(), method, own_path, key))
    }

    /// Keys whose outcome is unknown, some at a time. One whose record cannot be read is left out, and
    /// the log says so.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer.
    pub async fn list(&self, at: KeyCursor) -> Result<KeyPage> {
        let bucket = at.0.min(BUCKETS - 1);
        let next = (bucket + 1 < BUCKETS).then_some(KeyCursor(bucket + 1));
        let (mut keys, mut settled) = (Vec::new(), Vec::new());
        for RosterItem { handle } in self.shared.roster(bucket).await?.1.iter() {
            let found = match self.look(&handle).await {
                // Requests are told so, and it must not hide the others.
                Err(error) if error.kind() == ErrorKind::Corrupt => continue,
                found => found?,
            };
            match found {
                Some((Seen { record, age, .. }, ttl)) => keys.push(UnknownKey {
                    handle: KeyHandle(handle),
                    label: record.label.into(),
                    attempt: record.attempt,
                    age,
                    ttl,
                }),
                None => settled.push(handle),
            }
        }
        if !settled.is_empty() {
            let strike = |roster: &mut Roster| {
                settled.iter().filter(|handle| roster.remove(handle)).count() > 0
            };
            // A list that is not cleaned up is cleaned up the next time.
            let _ = self.shared.change_roster(bucket, strike).await;
        }
        Ok(KeyPage { keys, next })
    }

    /// Says that the request was executed, and what its response was. Duplicates are given it from now
    /// on.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer. It is safe to repeat.
    pub async fn resolve(
        &self,
        handle: KeyHandle,
        response: Response<Bytes>,
    ) -> Result<Resolution> {
        let (parts, body) = response.into_parts();
        let headers = self.shared.policy.headers.stored(&parts.headers);
        let stored = StoredResponse { status: parts.status, headers, body };
        self.write(handle, State::Done(stored)).await
    }

    /// Says that the request was executed, with this status, and that its response is not known.
    /// Duplicates are told so from now on.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer. It is safe to repeat.
    pub async fn seal(&self, handle: KeyHandle, status: StatusCode) -> Result<Resolution> {
        let reason = SealReason::ByOperator;
        self.write(handle, State::Sealed(Sealed { status, location: None, reason })).await
    }

    /// Says that the request was not executed. The next one with the key is. Also frees a key whose
    /// record cannot be read.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer. It is safe to repeat.
    pub async fn delete(&self, handle: KeyHandle) -> Result<Resolution> {
        let when = match self.look(&handle.0).await {
            Ok(Some((seen, _))) => When::Version(seen.version),
            Ok(None) => return self.strike(handle).await,
            Err(error) if error.kind() == ErrorKind::Corrupt => When::Always,
            Err(error) => return Err(error),
        };
        let key = self.shared.key(&handle.0);
        let delete = self.shared.storage.delete(&key, when);
        match self.shared.in_time(delete).await? {
            true => {
                let _ = self.strike(handle).await;
                self.shared.board.tell(&handle.0);
                Ok(Resolution::Done)
            }
            false => Ok(Resolution::NotUnknown),
        }
    }

    /// The record of a key whose outcome is unknown, and how long it lives.
    async fn look(&self, digest: &[u8; 32]) -> Result<Option<(Seen, Duration)>> {
        let shared = &self.shared;
        let key = shared.key(digest);
        let found = shared.in_time(shared.storage.get(&key, Get::new())).await?;
        let Some(entry) = found.entry else { return Ok(None) };
        let ttl = entry.ttl;
        let seen = shared.read(entry, digest)?;
        let unknown = match seen.record.state {
            State::Unknown(_) => true,
            State::Pending(_) => seen.record.lease <= seen.age,
            State::Done(_) | State::Sealed(_) => false,
        };
        Ok(unknown.then_some((seen, ttl)))
    }

    async fn write(&self, handle: KeyHandle, state: State) -> Result<Resolution> {
        let shared = &self.shared;
        let Some((seen, _)) = self.look(&handle.0).await? else { return self.strike(handle).await };
        // Another token, so that the owner cannot overrule it.
        let mut token = [0; 16];
        getrandom::fill(&mut token).expect("the operating system gives random bytes");
        let record = Record { token, state, ..seen.record };
        let put = Put::new(shared.encode(&record, &handle.0), shared.policy.retention)
            .with_condition(When::Version(seen.version));
        let key = shared.key(&handle.0);
        match shared.in_time(shared.storage.put(&key, put)).await? {
            PutOutcome::Stored(_) => {
                let _ = self.strike(handle).await;
                shared.board.tell(&handle.0);
                Ok(Resolution::Done)
            }
            PutOutcome::Conflict(_) => Ok(Resolution::NotUnknown),
        }
    }

    async fn strike(&self, handle: KeyHandle) -> Result<Resolution> {
        let bucket = bucket_of(&handle.0);
        self.shared.change_roster(bucket, |roster| roster.remove(&handle.0)).await?;
        Ok(Resolution::NotUnknown)
    }
}

impl fmt::Debug for IdempotencyKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyKeys").field("policy", &self.shared.policy).finish()
    }
}

impl Shared {
    /// Notes that the owner of a key has vanished, for operators, unless somebody has.
    pub(super) async fn mark_unknown(self: &Arc<Self>, digest: &[u8; 32], seen: Seen) {
        let (shared, digest) = (Arc::clone(self), *digest);
        let mark = async move {
            let State::Pending(phase) = seen.record.state else { return };
            let key = KeyHandle(digest);
            event!(error, %key, "the owner of a key has vanished, and what it did is unknown");
            // The token stays, so that an owner that comes back may still say what came of it.
            let record = Record { state: State::Unknown(phase), ..seen.record };
            let put = Put::new(shared.encode(&record, &digest), shared.policy.retention)
                .with_condition(When::Version(seen.version));
            let key = shared.key(&digest);
            // In this order: what is marked is listed, and what is listed in vain is struck off.
            if shared.enlist(&digest).await {
                let _ = shared.in_time(shared.storage.put(&key, put)).await;
            }
        };
        let _ = self.storage.tasks().spawn(mark).await;
    }

    /// Puts a key on the list of those whose outcome is unknown, and says whether it is there.
    pub(super) async fn enlist(&self, digest: &[u8; 32]) -> bool {
        let handle = *digest;
        let mut dropped = false;
        let enlisted = self.change_roster(bucket_of(digest), |roster| {
            match roster.add(RosterItem { handle }) {
                Arrival::AlreadyThere => false,
                Arrival::New => true,
                Arrival::InPlaceOf(_) => {
                    dropped = true;
                    true
                }
            }
        });
        if let Err(error) = enlisted.await {
            event!(error, %error, "a key whose outcome is unknown could not be listed");
            return false;
        }
        if dropped {
            event!(error, "there are too many keys whose outcome is unknown; one was struck off");
        }
        true
    }

    fn roster_key(&self, bucket: u8) -> Key {
        Key::new(&self.namespace, &Name::new("unknown"), Identity::new([bucket]))
    }

    async fn roster(&self, bucket: u8) -> Result<(When, Roster)> {
        let found = self.in_time(self.storage.get(&self.roster_key(bucket), Get::new())).await?;
        let Some(entry) = found.entry else { return Ok((When::Absent, Roster::default())) };
        // One that cannot be read is no list: it is written anew.
        let roster = Roster::decode(&entry.value).unwrap_or_default();
        Ok((When::Version(entry.version), roster))
    }

    async fn change_roster(
        &self,
        bucket: u8,
        mut change: impl FnMut(&mut Roster) -> bool,
    ) -> Result<()> {
        for _ in 0..MOST_TRIES {
            let (when, mut roster) = self.roster(bucket).await?;
            if !change(&mut roster) {
                return Ok(());
            }
            let put = Put::new(roster.encode(), self.policy.retention).with_condition(when);
            let key = self.roster_key(bucket);
            let put = self.in_time(self.storage.put(&key, put)).await?;
            if let PutOutcome::Stored(_) = put {
                return Ok(());
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "the list of unknown keys is too busy"))
    }
}
