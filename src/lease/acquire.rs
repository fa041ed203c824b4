//! Getting a lease.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{
    claim::{Claim, Grant, Standing},
    guard::Lease,
};
use crate::storage::{
    AnyStorage, Entry, Error, ErrorKind, Identity, Key, Name, Result, Storage, When, micros,
};

/// The first pause of a waiting [`acquire`](Leases::acquire); it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Below this, what is kept back for clocks and timers would be most of the lease.
const SHORTEST_TTL: Duration = Duration::from_millis(10);

/// Where leases are acquired: a storage, and how long a lease lives.
///
/// Clones share the storage. See the [module documentation](crate::lease).
#[derive(Debug, Clone)]
pub struct Leases {
    storage: AnyStorage,
    namespace: Name,
    detail: Name,
    ttl: Duration,
    heartbeat: bool,
}

/// What became of an attempt to get a lease.
#[derive(Debug)]
#[must_use = "a lease is released when it is dropped"]
pub enum Attempt {
    /// The lease is held from now on.
    Acquired(Lease),
    /// Somebody else holds it.
    Held {
        /// Until it is free unless its holder extends or releases it; trying earlier may help,
        /// trying then may not.
        remaining: Duration,
    },
}

impl Attempt {
    /// The lease, if it was acquired.
    pub fn acquired(self) -> Option<Lease> {
        match self {
            Self::Acquired(lease) => Some(lease),
            Self::Held { .. } => None,
        }
    }
}

impl Leases {
    /// Leases in this storage that live for `ttl` unless they are extended: for as long as the
    /// others may have to wait when a holder dies. At least ten milliseconds; seconds are usual.
    pub fn new(storage: impl Storage, ttl: Duration) -> Self {
        Self {
            storage: storage.erase(),
            namespace: Name::new("lease"),
            detail: Name::new("lease"),
            ttl: Duration::from_micros(micros(ttl)),
            heartbeat: false,
        }
    }

    /// Replaces the life of a lease.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Duration::from_micros(micros(ttl));
        self
    }

    /// Keeps these leases apart from those of other namespaces. Default: `lease`.
    #[must_use]
    pub fn with_namespace(mut self, namespace: Name) -> Self {
        self.namespace = namespace;
        self
    }

    /// Extends every lease at each third of its `ttl`, until it is released or dropped.
    ///
    /// The others then wait as long as the holder's *process* lives, also for a holder that hangs.
    /// Without it a lease ends after its `ttl` unless [extended](Lease::extend).
    #[must_use]
    pub fn with_heartbeat(mut self) -> Self {
        self.heartbeat = true;
        self
    }

    /// Asks for a lease once.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> tower_keep::storage::Result<()> {
    /// use std::time::Duration;
    /// use tower_keep::{MemoryStorage, lease::{Attempt, Leases}};
    ///
    /// let leases = Leases::new(MemoryStorage::new(), Duration::from_secs(10));
    /// let lease = leases.try_acquire("ledger").await?.acquired().unwrap();
    /// match leases.try_acquire("ledger").await? {
    ///     Attempt::Acquired(_) => unreachable!("one holder at a time"),
    ///     Attempt::Held { remaining } => assert!(remaining <= Duration::from_secs(10)),
    /// }
    /// # drop(lease);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`put`](crate::Storage::put); [`Timeout`](ErrorKind::Timeout) if no answer came
    /// within the `ttl`; [`Invalid`](ErrorKind::Invalid) for a `ttl` below ten milliseconds. An
    /// error after which the lease may have been acquired is first settled by reading it back. If
    /// that fails too, what may be there is released in the background.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with its timers enabled.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped, what it may have acquired is released in the background, and ends by itself
    /// within its `ttl` if that fails.
    pub async fn try_acquire(&self, name: impl Into<Identity>) -> Result<Attempt> {
        let mut bid = self.bid(name.into())?;
        match bid.place(None).await {
            Some(answer) => answer.map(|standing| self.attempt(&bid, standing)),
            None => Err(super::unanswered()),
        }
    }

    /// Asks for a lease until it is acquired or `wait` is over, which bounds the whole call;
    /// [`Duration::MAX`] is no bound.
    ///
    /// Asks again after pauses that grow from 10 to 500 milliseconds, with jitter, but no later
    /// than when the holder's time runs out. Who waits longest has no precedence. While it may
    /// still help, an [error that may pass](Error::is_transient) is waited out as well.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> tower_keep::storage::Result<()> {
    /// use std::time::Duration;
    /// use tower_keep::{MemoryStorage, lease::Leases};
    ///
    /// let leases = Leases::new(MemoryStorage::new(), Duration::from_secs(10));
    /// let crashed = leases.try_acquire("ledger").await?.acquired().unwrap();
    /// std::mem::forget(crashed);
    /// assert!(leases.acquire("ledger", Duration::from_secs(5)).await?.acquired().is_none());
    /// assert!(leases.acquire("ledger", Duration::from_secs(6)).await?.acquired().is_some());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire). An error that may pass is returned only if it was the
    /// last answer when `wait` was over; [`Timeout`](ErrorKind::Timeout) if there was no answer at
    /// all.
    ///
    /// # Panics
    ///
    /// As [`try_acquire`](Self::try_acquire).
    ///
    /// # Cancel safety
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub async fn acquire(&self, name: impl Into<Identity>, wait: Duration) -> Result<Attempt> {
        // No instant is that far away: the wait has no end.
        let bound = Instant::now().checked_add(wait);
        let mut bid = self.bid(name.into())?;
        let mut pause = FIRST_PAUSE;
        let mut free_at = None;
        let mut trouble = None;
        loop {
            let answer = bid.place(bound).await;
            let now = Instant::now();
            let mut wake = now + pause.mul_f64(jitter());
            match answer {
                Some(Ok(standing @ Standing::Ours(_))) => {
                    return Ok(self.attempt(&bid, standing));
                }
                Some(Ok(Standing::NotOurs(entry))) => {
                    let left = time_left(entry.as_ref());
                    // Not at once, though: a storage may round the rest of a life down to nothing.
                    wake = wake.min(now + left).max(now + Duration::from_millis(1));
                    (free_at, trouble) = (Some(now + left), None);
                }
                Some(Err(error)) if error.is_transient() => trouble = Some(error),
                Some(Err(error)) => return Err(error),
                None => {}
            }
            // The last try is made early enough for its answer to arrive.
            let last_try = bound.map(|bound| bound.checked_sub(FIRST_PAUSE).unwrap_or(bound));
            if last_try.is_some_and(|last_try| last_try <= now) {
                return match (trouble, free_at) {
                    (None, Some(free_at)) => {
                        Ok(Attempt::Held { remaining: free_at.saturating_duration_since(now) })
                    }
                    (trouble, _) => Err(trouble.unwrap_or_else(super::unanswered)),
                };
            }
            sleep_until(last_try.map_or(wake, |last_try| wake.min(last_try))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn bid(&self, name: Identity) -> Result<Bid> {
        if self.ttl < SHORTEST_TTL {
            let message = "the `ttl` of a lease is at least ten milliseconds";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let key = Key::new(&self.namespace, &self.detail, name);
        let claim = Claim::new(self.storage.clone(), key, self.ttl);
        Ok(Bid { claim, runtime: Handle::try_current().ok(), doubt: false })
    }

    fn attempt(&self, bid: &Bid, standing: Standing) -> Attempt {
        match standing {
            Standing::Ours(grant) => Attempt::Acquired(bid.lease(grant, self.heartbeat)),
            Standing::NotOurs(entry) => Attempt::Held { remaining: time_left(entry.as_ref()) },
        }
    }
}

/// A claim on its way to a lease. All tries of one bid bear one token, so that a later one
/// recognises what an earlier one has left.
struct Bid {
    claim: Claim,
    runtime: Option<Handle>,
    /// The storage may hold the token without anybody knowing.
    doubt: bool,
}

impl Bid {
    /// One try; `None` if there was no answer until the bound, or until a lease that was granted
    /// would be over.
    async fn place(&mut self, bound: Option<Instant>) -> Option<Result<Standing>> {
        let over = Instant::now() + self.claim.ttl;
        self.doubt = true;
        let value = Bytes::copy_from_slice(&self.claim.token);
        let write = self.claim.write(When::Absent, value);
        let answer = timeout_at(bound.map_or(over, |bound| bound.min(over)), write).await.ok()?;
        self.doubt = answer.is_err();
        Some(answer)
    }

    fn lease(&self, grant: Grant, heartbeat: bool) -> Lease {
        Lease::new(self.claim.clone(), grant, self.runtime.clone(), heartbeat)
    }
}

impl Drop for Bid {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take()
            && self.doubt
        {
            let claim = self.claim.clone();
            let clear = async move { timeout(claim.ttl, claim.clear(None)).await };
            drop(self.claim.storage.tasks().spawn_on(clear, &runtime));
        }
    }
}

/// How long a key is somebody else's; not at all if it is nobody's.
fn time_left(entry: Option<&Entry>) -> Duration {
    entry.map_or(Duration::ZERO, |entry| entry.ttl)
}

/// A random factor from one half to one, so that those who wait do not keep in step.
fn jitter() -> f64 {
    let random = getrandom::u32().expect("the operating system gives random bytes");
    0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0
}
