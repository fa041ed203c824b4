//! A claim that was granted, for as long as it is known to be.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{RwLock, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    claim::{Claim, Grant, Standing, usable},
    guard::Extension,
};
use crate::storage::{Entry, Result, Version, When};

#[cfg(test)]
mod tests;

/// A claim that was granted.
///
/// The entry may outlive the lease: the others then judge by its age whether the holder is gone.
pub(crate) struct Hold {
    claim: Claim,
    fence: Version,
    /// How long the others wait after the last write.
    lease: Duration,
    /// What an extension writes; none since the claim is being finished. Extensions may overlap with
    /// one another, not with a change of it: one that meets an entry of its own claim replaces it.
    value: RwLock<Option<Bytes>>,
    /// What is known of the entry. Replies may come in any order and never set it back.
    known: watch::Sender<Known>,
}

#[derive(Clone, Copy)]
struct Known {
    version: Version,
    /// The lease is held before it, and lost from then on. Moved on only while it lies ahead, so
    /// that what was lost once stays lost.
    deadline: Instant,
}

/// What became of the last write of a hold.
#[cfg_attr(not(feature = "idempotency"), allow(dead_code))]
pub(crate) enum Finish {
    /// It was written.
    Written,
    /// The key is somebody else's, or nobody's, by now.
    NotOurs(Option<Entry>),
}

impl Hold {
    /// A claim whose entry holds this value, and whose lease is so long.
    pub(crate) fn new(claim: Claim, grant: Grant, value: Bytes, lease: Duration) -> Self {
        let known = Known { version: grant.version, deadline: grant.sent + sure(&grant, lease) };
        let known = watch::Sender::new(known);
        Self { claim, fence: grant.version, lease, value: RwLock::new(Some(value)), known }
    }

    pub(crate) fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The version of the entry when it was claimed.
    pub(crate) fn fence(&self) -> Version {
        self.fence
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.known.borrow().deadline
    }

    /// Resolves when the lease is lost.
    pub(crate) fn lost(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut known = self.known.subscribe();
        async move {
            loop {
                let deadline = known.borrow_and_update().deadline;
                // In time and with the sender still there: the deadline was moved.
                if !matches!(timeout_at(deadline, known.changed()).await, Ok(Ok(()))) {
                    return;
                }
            }
        }
    }

    /// Asks for another full lease from now.
    pub(crate) async fn extend(&self) -> Result<Extension> {
        match &*self.value.read().await {
            Some(value) => self.write(value.clone()).await,
            None => Ok(Extension::Lost),
        }
    }

    /// The same, with another value from now on. After an error the old one counts: the new one may
    /// be there, or come there, but the next extension writes the old one.
    ///
    /// Like [`finish`](Self::finish) it waits for the extensions that are under way.
    #[cfg_attr(not(feature = "idempotency"), allow(dead_code))]
    pub(crate) async fn change(&self, value: Bytes) -> Result<Extension> {
        let mut current = self.value.write().await;
        if current.is_none() {
            return Ok(Extension::Lost);
        }
        let extension = self.write(value.clone()).await?;
        if extension == Extension::Extended {
            *current = Some(value);
        }
        Ok(extension)
    }

    async fn write(&self, value: Bytes) -> Result<Extension> {
        let Known { version, deadline } = *self.known.borrow();
        let mut write = pin!(self.claim.write(When::Version(version), value));
        // Nothing is asked for once the time is over, also where a process that was stopped goes on.
        let in_time = poll_fn(|cx| match deadline <= Instant::now() {
            true => Poll::Ready(None),
            false => write.as_mut().poll(cx).map(Some),
        });
        match timeout_at(deadline, in_time).await {
            Ok(Some(Ok(Standing::Ours(grant)))) => Ok(self.learn(grant)),
            Ok(Some(Ok(Standing::NotOurs(_)))) => {
                self.lose();
                Ok(Extension::Lost)
            }
            Ok(Some(Err(error))) => Err(error),
            // Another call may have extended the lease meanwhile.
            Ok(None) | Err(_) if Instant::now() < self.deadline() => Err(super::unanswered()),
            Ok(None) | Err(_) => Ok(Extension::Lost),
        }
    }

    fn learn(&self, grant: Grant) -> Extension {
        let until = grant.sent + sure(&grant, self.lease);
        let mut answer = Extension::Lost;
        self.known.send_if_modified(|known| {
            known.version = known.version.max(grant.version);
            let moved = until > known.deadline;
            // After the deadline `lost` has resolved, and nothing makes that undone.
            if Instant::now() < known.deadline {
                answer = Extension::Extended;
                known.deadline = known.deadline.max(until);
                moved
            } else {
                false
            }
        });
        answer
    }

    #[cfg(feature = "idempotency")]
    pub(crate) fn is_over(&self) -> bool {
        self.deadline() <= Instant::now()
    }

    pub(crate) fn lose(&self) {
        let now = Instant::now();
        self.known.send_if_modified(|known| {
            let lies_ahead = known.deadline > now;
            known.deadline = known.deadline.min(now);
            lies_ahead
        });
    }

    /// Writes what remains of the claim, also when its lease is over: nobody else's is overwritten.
    ///
    /// From the first try on nothing else is written: who has seen this value must not find the
    /// former one again. So the lease is not extended any more. May be tried again after an error;
    /// once the answer is known, the lease is over.
    #[cfg_attr(not(feature = "idempotency"), allow(dead_code))]
    pub(crate) async fn finish(&self, value: Bytes) -> Result<Finish> {
        let mut current = self.value.write().await;
        *current = None;
        let version = self.known.borrow().version;
        let finish = match self.claim.write(When::Version(version), value).await? {
            Standing::Ours(grant) => {
                // Nobody waits for another version.
                self.known.send_if_modified(|known| {
                    known.version = known.version.max(grant.version);
                    false
                });
                Finish::Written
            }
            Standing::NotOurs(entry) => Finish::NotOurs(entry),
        };
        self.lose();
        Ok(finish)
    }

    /// Ends the claim and its entry, and says whether that was still the claim's. No extension keeps
    /// the entry if this fails.
    pub(crate) async fn clear(&self) -> Result<bool> {
        *self.value.write().await = None;
        let version = self.known.borrow().version;
        self.claim.clear(Some(version)).await
    }
}

/// As good as without end, and a moment that clocks can tell.
const LONGEST: Duration = Duration::from_secs(30 * 365 * 24 * 3_600);

/// How long the lease is certain to be held from when the storage was asked: until it is over, or
/// until the entry is.
fn sure(grant: &Grant, lease: Duration) -> Duration {
    usable(grant.left.min(lease.saturating_sub(grant.age)).min(LONGEST))
}

/// Extends at every third of the lease, so that two beats may fail before it is lost; sooner if the
/// answer before was so slow that less is left.
pub(crate) async fn beat(hold: Arc<Hold>) {
    let interval = hold.lease / 3;
    let left = || hold.deadline().saturating_duration_since(Instant::now());
    let mut pause = interval.min(left() / 2);
    loop {
        sleep(pause).await;
        pause = match timeout(interval, hold.extend()).await {
            Ok(Ok(Extension::Extended)) => interval.min(left() / 2),
            Ok(Ok(Extension::Lost)) => return,
            Ok(Err(_)) | Err(_) => interval / 4,
        };
    }
}
