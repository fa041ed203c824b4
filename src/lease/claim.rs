//! What one owner and one storage say to each other about one key.

use std::{fmt, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use crate::storage::{
    AnyStorage, Entry, Error, ErrorKind, Get, Key, Put, PutOutcome, Result, Storage, Version, When,
};

/// One owner's claim to one key: who asks, for what.
///
/// The token is drawn at random for each acquisition, and every value that the claim writes begins
/// with it. Whoever finds it under the key knows that the entry is this claim's, however the reply
/// that said so was lost. The claim overwrites and deletes what begins with its token: a value that
/// somebody else writes, to say that the owner is gone, begins with another one.
#[derive(Clone)]
pub(crate) struct Claim {
    pub(crate) storage: AnyStorage,
    pub(crate) key: Key,
    /// How long an entry of the claim lives unless it is written again.
    pub(crate) ttl: Duration,
    pub(crate) token: Token,
}

/// What tells the values of one claim from those of all others.
pub(crate) type Token = [u8; 16];

/// Whose the key is.
pub(crate) enum Standing {
    /// The claim's.
    Ours(Grant),
    /// Somebody else's, or nobody's.
    NotOurs(Option<Entry>),
}

/// What is known of an entry that is the claim's own.
#[derive(Clone, Copy)]
pub(crate) struct Grant {
    pub(crate) version: Version,
    /// On the clock of this process, before the storage was asked.
    pub(crate) sent: Instant,
    /// How long ago it was written then.
    pub(crate) age: Duration,
    /// How long it lives from then on.
    pub(crate) left: Duration,
}

impl Claim {
    pub(crate) fn new(storage: AnyStorage, key: Key, ttl: Duration) -> Self {
        let mut token = Token::default();
        getrandom::fill(&mut token).expect("the operating system gives random bytes");
        Self { storage, key, ttl, token }
    }

    fn is_own(&self, entry: &Entry) -> bool {
        entry.value.starts_with(&self.token)
    }

    /// Writes the value, which begins with the token, for another `ttl` where `when` holds.
    ///
    /// An answer that leaves open whether it was written is settled by reading it back. An error
    /// means that it could not be settled, or that nothing was written.
    pub(crate) async fn write(&self, mut when: When, value: Bytes) -> Result<Standing> {
        debug_assert!(value.starts_with(&self.token));
        let (asked, error) = loop {
            let put = Put::new(value.clone(), self.ttl).with_condition(when);
            let sent = Instant::now();
            match self.storage.put(&self.key, put).await {
                Ok(PutOutcome::Stored(version)) => {
                    let (age, left) = (Duration::ZERO, self.ttl);
                    return Ok(Standing::Ours(Grant { version, sent, age, left }));
                }
                // Our own earlier write, whose reply never came. Going on from its version gives
                // the full time. A storage that reports the very version it was asked for as a
                // conflict would have us turn in a circle.
                Ok(PutOutcome::Conflict(Some(entry)))
                    if self.is_own(&entry) && when != When::Version(entry.version) =>
                {
                    when = When::Version(entry.version);
                }
                Ok(PutOutcome::Conflict(entry)) => return Ok(Standing::NotOurs(entry)),
                Err(error) if may_be_applied(&error) => break (when, error),
                Err(error) => return Err(error),
            }
        };
        let sent = Instant::now();
        let Ok(found) = self.storage.get(&self.key, Get::new()).await else { return Err(error) };
        match found.entry {
            // The write was not applied; it may still be on its way.
            Some(entry) if asked == When::Version(entry.version) => Err(error),
            Some(entry) if entry.value == value => {
                let Entry { version, age, ttl: left, .. } = entry;
                Ok(Standing::Ours(Grant { version, sent, age, left }))
            }
            // An earlier write of the claim; this one was not applied either.
            Some(entry) if self.is_own(&entry) => Err(error),
            Some(entry) => Ok(Standing::NotOurs(Some(entry))),
            None if asked == When::Absent => Err(error),
            None => Ok(Standing::NotOurs(None)),
        }
    }

    /// Deletes the entry if it bears the token, and says whether it still did. `version` saves a
    /// trip if it is right, and does no harm if it is not.
    pub(crate) async fn clear(&self, mut version: Option<Version>) -> Result<bool> {
        let mut doubt: Option<Error> = None;
        loop {
            if let Some(version) = version {
                match (self.storage.delete(&self.key, When::Version(version)).await, &doubt) {
                    (Ok(true), _) => return Ok(true),
                    (Ok(false), _) => {}
                    (Err(error), None) => doubt = Some(error),
                    (Err(error), Some(_)) => return Err(error),
                }
            }
            let found = match self.storage.get(&self.key, Get::new()).await {
                Ok(found) => found.entry,
                Err(error) => return Err(doubt.unwrap_or(error)),
            };
            // The version is another one if the reply to a write was lost.
            match found.filter(|entry| self.is_own(entry)) {
                Some(entry) => version = Some(entry.version),
                // Gone: by the delete whose reply was lost, or before it.
                None => return Ok(doubt.is_some()),
            }
        }
    }

    /// Puts another value in the place of what bears the token, and says whether there was something.
    #[cfg(feature = "idempotency")]
    pub(crate) async fn replace(&self, value: Bytes) -> Result<bool> {
        let found = self.storage.get(&self.key, Get::new()).await?.entry;
        let Some(entry) = found.filter(|entry| self.is_own(entry)) else { return Ok(false) };
        let standing = self.write(When::Version(entry.version), value).await?;
        Ok(matches!(standing, Standing::Ours(_)))
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}

/// How much of an entry's life its owner may count on: all but one percent, for clocks that do not
/// run at one pace, and two milliseconds, for timers that fire on whole ones.
pub(crate) fn usable(ttl: Duration) -> Duration {
    (ttl - ttl / 100).saturating_sub(Duration::from_millis(2))
}

fn may_be_applied(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Full | ErrorKind::Invalid)
}
