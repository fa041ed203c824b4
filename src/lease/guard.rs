//! A lease that is held.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    runtime::Handle,
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{
    claim::{Claim, Grant},
    hold::{Hold, beat},
};
use crate::storage::Result;

/// The exclusive right to something, until it runs out, is released or is dropped.
///
/// Made by [`Leases`](crate::lease::Leases). Dropping it stops the heartbeat and releases it in the
/// background; [`release`](Self::release) also tells whether that worked. See the
/// [module documentation](crate::lease) for what a lease promises.
#[must_use = "a lease is released when it is dropped"]
pub struct Lease {
    hold: Arc<Hold>,
    heartbeat: Option<JoinHandle<()>>,
    runtime: Option<Handle>,
    released: bool,
}

/// What became of a request to [extend](Lease::extend) a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "a lost lease no longer excludes anybody"]
pub enum Extension {
    /// The lease is held for longer now.
    Extended,
    /// The lease is lost, for good. Somebody else may hold it.
    Lost,
}

impl Lease {
    pub(super) fn new(claim: Claim, grant: Grant, runtime: Option<Handle>, beats: bool) -> Self {
        let (value, ttl) = (Bytes::copy_from_slice(&claim.token), claim.ttl);
        let hold = Arc::new(Hold::new(claim, grant, value, ttl));
        // Not tracked: it ends with the lease, and whose lease it is decides when.
        let heartbeat = beats.then(|| tokio::spawn(beat(Arc::clone(&hold))));
        Self { hold, heartbeat, runtime, released: false }
    }

    /// The fencing number: the same as long as the lease is held, and higher than that of every
    /// earlier holder.
    ///
    /// Hand it along with each write to what the lease protects, and let that refuse numbers lower
    /// than the highest it has seen. It is the version of the entry at acquisition, so it rises as
    /// [versions](crate::storage) do: across the ends of entries as far as the storage's clock was
    /// not set back.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> tower_keep::storage::Result<()> {
    /// use std::time::Duration;
    /// use tower_keep::{MemoryStorage, lease::Leases};
    ///
    /// let leases = Leases::new(MemoryStorage::new(), Duration::from_secs(10));
    /// let first = leases.try_acquire("ledger").await?.acquired().unwrap();
    /// let number = first.fence();
    /// first.release().await?;
    /// let second = leases.try_acquire("ledger").await?.acquired().unwrap();
    /// assert!(second.fence() > number);
    /// # Ok(())
    /// # }
    /// ```
    pub fn fence(&self) -> u64 {
        self.hold.fence().as_u64()
    }

    /// How long the lease is certain to be held if nothing is heard from the storage; zero if it is
    /// lost.
    ///
    /// Counted on the monotonic clock of this process from before the request that was granted was
    /// sent, less one percent and two milliseconds. So a holder that stops in time does so before
    /// the storage lets the next one in.
    pub fn remaining(&self) -> Duration {
        self.hold.deadline().saturating_duration_since(Instant::now())
    }

    /// Whether the lease is lost. Once it is, it stays so.
    pub fn is_lost(&self) -> bool {
        self.remaining().is_zero()
    }

    /// Resolves when the lease is lost, at the latest when its time has run out; also when it is
    /// released or dropped.
    ///
    /// It needs no answer from the storage, so it holds in an outage. It does not borrow from the
    /// lease: give it to the task that does the work, and have that stop.
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
    /// let lease = leases.try_acquire("ledger").await?.acquired().unwrap();
    /// let finished = tokio::select! {
    ///     () = tokio::time::sleep(Duration::from_secs(60)) => true,
    ///     () = lease.lost() => false,
    /// };
    /// assert!(!finished && lease.is_lost());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; it changes nothing.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.hold.lost()
    }

    /// Asks for another full `ttl` from now.
    ///
    /// Calls may overlap with one another and with the heartbeat. If the lease runs out before the
    /// storage has answered, it is lost.
    ///
    /// # Errors
    ///
    /// Those of [`put`](crate::Storage::put). The lease is then still held for
    /// [`remaining`](Self::remaining), and trying again is safe.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the lease may or may not have been extended in the storage, and
    /// [`remaining`](Self::remaining) counts on what was confirmed only. The next call goes on from
    /// whatever was applied.
    pub async fn extend(&self) -> Result<Extension> {
        self.hold.extend().await
    }

    /// Gives the lease back, so that the next one gets in at once, and says whether it was still
    /// held.
    ///
    /// # Errors
    ///
    /// Those of [`delete`](crate::Storage::delete) and [`get`](crate::Storage::get), and
    /// [`Timeout`](crate::storage::ErrorKind::Timeout) if no answer came within the `ttl`. The lease
    /// then ends by itself within its `ttl`, if it has not ended.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped, the release goes on in the background.
    pub async fn release(mut self) -> Result<bool> {
        let in_time = !self.is_lost();
        self.stop();
        let cleared = timeout(self.hold.claim().ttl, self.hold.clear()).await;
        let ours = cleared.unwrap_or_else(|_| Err(super::unanswered()))?;
        self.released = true;
        Ok(ours && in_time)
    }

    fn stop(&mut self) {
        if let Some(heartbeat) = self.heartbeat.take() {
            heartbeat.abort();
        }
        self.hold.lose();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.stop();
        if let Some(runtime) = self.runtime.take()
            && !self.released
        {
            let hold = Arc::clone(&self.hold);
            // Without an answer within the `ttl` the entry has ended by itself.
            let clear = async move { timeout(hold.claim().ttl, hold.clear()).await };
            drop(self.hold.claim().storage.tasks().spawn_on(clear, &runtime));
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("key", self.hold.claim())
            .field("fence", &self.fence())
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}
