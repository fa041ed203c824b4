//! What one owner and one storage say to each other about one key.

use std::{fmt, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use crate::storage::{
    AnyStorage, Error, ErrorKind, Get, Key, Put, PutOutcome, Result, Storage, Version, When,
};

/// One owner's claim to one key: who asks, for what, for how long.
///
/// The token is drawn at random for each acquisition and is all that the entry holds. Whoever finds
/// it under the key knows that the entry is this claim's, however the reply that said so was lost.
#[derive(Clone)]
pub(super) struct Claim {
    pub(super) storage: AnyStorage,
    pub(super) key: Key,
    pub(super) ttl: Duration,
    token: Bytes,
}

/// Whose the key is.
pub(super) enum Standing {
    /// The claim's, at least until `until` on the clock of this process.
    Ours { version: Version, until: Instant },
    /// Somebody else's for that long; zero if nobody's.
    NotOurs { left: Duration },
}

impl Claim {
    pub(super) fn new(storage: AnyStorage, key: Key, ttl: Duration) -> Self {
        let mut token = [0; 16];
        getrandom::fill(&mut token).expect("the operating system gives random bytes");
        Self { storage, key, ttl, token: Bytes::copy_from_slice(&token) }
    }

    /// Writes the token for another `ttl` where `when` holds.
    ///
    /// An answer that leaves open whether the token was written is settled by reading it back. An
    /// error means that it could not be settled, or that nothing was written.
    pub(super) async fn write(&self, mut when: When) -> Result<Standing> {
        let (asked, error) = loop {
            let put = Put::new(self.token.clone(), self.ttl).with_condition(when);
            let sent = Instant::now();
            match self.storage.put(&self.key, put).await {
                Ok(PutOutcome::Stored(version)) => {
                    return Ok(Standing::Ours { version, until: sent + usable(self.ttl) });
                }
                // Our own earlier write, whose reply never came. Going on from its version gives
                // the full time. A storage that reports the very version it was asked for as a
                // conflict would have us turn in a circle.
                Ok(PutOutcome::Conflict(Some(entry)))
                    if entry.value == self.token && when != When::Version(entry.version) =>
                {
                    when = When::Version(entry.version);
                }
                Ok(PutOutcome::Conflict(entry)) => {
                    let left = entry.map_or(Duration::ZERO, |entry| entry.ttl);
                    return Ok(Standing::NotOurs { left });
                }
                Err(error) if may_be_applied(&error) => break (when, error),
                Err(error) => return Err(error),
            }
        };
        let sent = Instant::now();
        let Ok(found) = self.storage.get(&self.key, Get::new()).await else { return Err(error) };
        match found.entry {
            // The write was not applied; it may still be on its way.
            Some(entry) if asked == When::Version(entry.version) => Err(error),
            Some(entry) if entry.value == self.token => {
                Ok(Standing::Ours { version: entry.version, until: sent + usable(entry.ttl) })
            }
            Some(entry) => Ok(Standing::NotOurs { left: entry.ttl }),
            None if asked == When::Absent => Err(error),
            None => Ok(Standing::NotOurs { left: Duration::ZERO }),
        }
    }

    /// Deletes the entry if it bears the token, and says whether it still did. `version` saves a
    /// trip if it is right, and does no harm if it is not.
    pub(super) async fn clear(&self, mut version: Option<Version>) -> Result<bool> {
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
            match found.filter(|entry| entry.value == self.token) {
                Some(entry) => version = Some(entry.version),
                // Gone: by the delete whose reply was lost, or before it.
                None => return Ok(doubt.is_some()),
            }
        }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}

/// How much of an entry's life its owner may count on: all but one percent, for clocks that do not
/// run at one pace, and two milliseconds, for timers that fire on whole ones.
fn usable(ttl: Duration) -> Duration {
    (ttl - ttl / 100).saturating_sub(Duration::from_millis(2))
}

fn may_be_applied(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Full | ErrorKind::Invalid)
}
