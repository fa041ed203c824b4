//! State in this process.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

#[cfg(any(feature = "rate-limit", feature = "cache"))]
use super::Identity;
use super::{
    AnyStorage, Capabilities, Charge, Error, ErrorKind, Get, HashKey, Invalidation, Key, Lookup,
    Name, Put, PutOutcome, Result, Spend, Storage, Tag, TagDigest, Tags, Verdict, When,
    check_charges, check_put, erased::Shared,
};

mod budget;
mod builder;
mod chunks;
mod counters;
mod entries;
mod item;
mod overflow;
mod records;
mod shard;
mod table;

pub use self::builder::{MemoryStats, MemoryStorageBuilder};
use self::{budget::Bounds, counters::Counters, entries::Entries};
use crate::{quota::Quota, tasks::Drained};

/// State in this process: the embedded default.
///
/// Clones share one state. It is lost with the process, and each process has its own.
///
/// # Bounds
///
/// The storage is bounded in bytes, counters and entries; the [builder](Self::builder) sets the
/// bounds. What happens at a bound depends on what is to be stored:
///
/// - Entries that were put [`evictable`](Put::evictable) make room for whatever comes, those first
///   that were not used for long.
/// - Live counters and all other entries stay until they expire. A put that finds no room is
///   refused with [`Full`](super::ErrorKind::Full).
/// - A new identity that finds no room for a counter shares one of 1,024 with others, chosen by a
///   keyed hash of its [network prefix](super::Identity::group), or of the identity if it has none.
///   So a flood of made-up identities can neither reset the counter of an offender nor lock out
///   everybody else. Who gets a counter of his own later starts with what the shared one has
///   counted, if the period is at most an hour. A [reset](super::Spend::Reset) of an identity that
///   shares changes nothing, for the usage is that of others too.
///   [`overflowed`](MemoryStats::overflowed) counts these charges, and the first is logged.
///
/// The counter of one identity takes less than 80 bytes with a sliding, fixed or calendar window or
/// a token bucket; a strict window adds 64 and a log up to 16 for each unit. An entry takes less
/// than 160 bytes beside its value, and one with tags up to 130 more.
///
/// # Expiry
///
/// Nothing sweeps: each operation looks at a few neighbours and drops what is dead, and tables grow
/// and shrink by one bucket at a time. No call ever stops for the whole, whatever its size.
///
/// # Time
///
/// Time is [`tokio::time::Instant`], so that tests under `#[tokio::test(start_paused = true)]`
/// drive every expiry with `tokio::time::advance`. Only calendar quotas look at the wall clock,
/// once, when the storage is made.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_keep::{
///     MemoryStorage, Quota, Storage,
///     storage::{Charge, Identity, Key, Name, Spend},
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tower_keep::storage::Result<()> {
/// let storage = MemoryStorage::new();
/// let key = Key::new(&Name::new("api"), &Name::new("minute"), Identity::new("client 7"));
/// let quota = Quota::sliding_window(1, Duration::from_secs(60));
///
/// let charge = [Charge::new(&key, quota, Spend::Take(1))];
/// assert!(storage.acquire(&charge).await?[0].allowed);
/// assert!(!storage.acquire(&charge).await?[0].allowed);
/// assert_eq!(storage.stats().counters, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MemoryStorage {
    inner: Arc<Inner>,
}

struct Inner {
    hash_key: HashKey,
    started: Instant,
    started_us: u64,
    bounds: Bounds,
    counters: Counters,
    entries: Entries,
    shared: Arc<Shared>,
}

impl MemoryStorage {
    /// An empty storage of at most 256 MiB.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Sets the bounds.
    pub fn builder() -> MemoryStorageBuilder {
        MemoryStorageBuilder::new()
    }

    /// Charges one counter without making its key or anything else, if that is there already; all
    /// but the first charge of an identity. `None`, and nothing has happened, if it is not.
    #[cfg(feature = "rate-limit")]
    pub(super) fn charge_known(
        &self,
        (namespace, detail, identity): (&Name, &Name, &Identity),
        quota: &Quota,
        spend: Spend,
    ) -> Option<Verdict> {
        let digest = self.inner.hash_key.digest_key(namespace, detail, identity);
        self.inner.charge(&digest, quota, spend)
    }

    /// The same for several quotas of one identity, decided together, if they are few.
    #[cfg(feature = "rate-limit")]
    pub(super) fn charge_few_known<'a>(
        &self,
        (namespace, identity): (&Name, &Identity),
        details: impl ExactSizeIterator<Item = (&'a Name, Quota)>,
        spend: Spend,
        enforce: bool,
    ) -> Option<Vec<Verdict>> {
        let Inner { hash_key, bounds, .. } = &*self.inner;
        let mut charges = details
            .map(|(detail, quota)| (hash_key.digest_key(namespace, detail, identity), quota));
        let (first, count) = (charges.next()?, charges.len() + 1);
        let mut few = [first; counters::FEW];
        few.get_mut(1..count)?.iter_mut().zip(charges).for_each(|(place, charge)| *place = charge);
        let now = self.inner.now();
        self.inner.counters.charge_few(&few[..count], spend, enforce, now, bounds)
    }

    /// Looks an entry up without making its key.
    #[cfg(feature = "cache")]
    pub(super) fn get_now(
        &self,
        (namespace, detail, identity): (&Name, &Name, &Identity),
        get: Get,
    ) -> Lookup {
        let inner = &*self.inner;
        let digest = inner.hash_key.digest_key(namespace, detail, identity);
        inner.entries.get(namespace, &digest, get, inner.now(), &inner.bounds)
    }

    /// How full the storage is.
    pub fn stats(&self) -> MemoryStats {
        self.inner.stats()
    }

    /// Waits until all is done that layers and handles on clones of this storage do beside requests:
    /// see [`AnyStorage::shutdown`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use std::time::Duration;
    /// use tower_keep::MemoryStorage;
    ///
    /// let storage = MemoryStorage::new();
    /// // The server runs with layers on clones of the storage, and ends.
    /// assert!(storage.shutdown(Duration::from_secs(10)).await.is_clean());
    /// # }
    /// ```
    pub async fn shutdown(&self, within: Duration) -> Drained {
        self.inner.shared.tasks.shutdown(within).await
    }
}

impl Default for MemoryStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.stats();
        f.debug_struct("MemoryStorage")
            .field("counters", &stats.counters)
            .field("entries", &stats.entries)
            .field("bytes", &stats.bytes)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// Microseconds since the Unix epoch, on a clock that is never set.
    fn now(&self) -> u64 {
        self.started_us + self.started.elapsed().as_micros() as u64
    }

    fn digests(&self, namespace: &Name, tags: &[Tag]) -> Box<[TagDigest]> {
        tags.iter().map(|tag| tag.digest(namespace, &self.hash_key)).collect()
    }

    fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        if let [charge] = charges {
            let digest = charge.key.digest(&self.hash_key);
            if let Some(verdict) = self.charge(&digest, &charge.quota, charge.spend) {
                return Ok(vec![verdict]);
            }
            return self.acquire_all(charges, &[digest]);
        }
        check_charges(charges)?;
        let digests: Vec<_> =
            charges.iter().map(|charge| charge.key.digest(&self.hash_key)).collect();
        self.acquire_all(charges, &digests)
    }

    /// See [`Counters::charge`].
    fn charge(&self, digest: &[u8; 16], quota: &Quota, spend: Spend) -> Option<Verdict> {
        self.counters.charge(digest, quota, spend, self.now(), &self.bounds)
    }

    fn acquire_all(&self, charges: &[Charge<'_>], digests: &[[u8; 16]]) -> Result<Vec<Verdict>> {
        let (now, bounds) = (self.now(), &self.bounds);
        let charge_all =
            |share| self.counters.charge_all(charges, digests, share, now, &self.hash_key, bounds);
        // Without entries there is nothing to evict.
        if bounds.entries.used() > 0 {
            match charge_all(false) {
                Ok(verdicts) => return Ok(verdicts),
                Err(short) => self.entries.make_room_for_counter(short, now, bounds),
            }
        }
        charge_all(true).map_err(|_| {
            Error::new(ErrorKind::Full, "the memory storage has no room for another counter")
        })
    }
}

#[deny(clippy::missing_trait_methods)]
impl Storage for MemoryStorage {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        let inner = &*self.inner;
        let digest = key.digest(&inner.hash_key);
        Ok(inner.entries.get(key.namespace(), &digest, get, inner.now(), &inner.bounds))
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        check_put(&put)?;
        let inner = &*self.inner;
        let digest = key.digest(&inner.hash_key);
        let tags = inner.digests(key.namespace(), put.tags);
        inner.entries.put(key, &digest, &put, tags, inner.now(), &inner.bounds)
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        let inner = &*self.inner;
        let digest = key.digest(&inner.hash_key);
        Ok(inner.entries.delete(&digest, when, inner.now(), &inner.bounds))
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        let inner = &*self.inner;
        let (records, bytes) = (inner.entries.records(), &inner.bounds.bytes);
        match tags {
            Tags::All => records.renew(namespace, bytes),
            Tags::Any(tags) => {
                let tags = inner.digests(namespace, tags);
                records.invalidate(namespace, inner.now(), &tags, how, bytes);
            }
        }
        Ok(())
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        self.inner.acquire(charges)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new().with_local().with_atomic_across_identities()
    }

    fn erase(self) -> AnyStorage {
        let shared = Arc::clone(&self.inner.shared);
        AnyStorage::with_shared(self, shared)
    }
}

#[cfg(all(test, feature = "rate-limit"))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::storage::Identity;

    #[tokio::test(start_paused = true)]
    async fn a_few_known_counters_are_charged_as_any_are() {
        let (short, long) = (MemoryStorage::new(), MemoryStorage::new());
        let (namespace, identity) = (Name::new("n"), Identity::new("i"));
        let [one, two, three] = [1, 2, 3].map(Duration::from_secs);
        let quotas = [
            (Name::new("a"), Quota::sliding_window(5, one)),
            (Name::new("b"), Quota::fixed_window(7, two)),
            (Name::new("c"), Quota::sliding_window(9, three)),
        ];
        let keys = quotas.each_ref().map(|(name, _)| Key::new(&namespace, name, identity.clone()));
        let mut known = 0;
        for i in 0..2_000_u32 {
            tokio::time::advance(Duration::from_millis((i * 37 % 400).into())).await;
            let (spend, enforce) = (Spend::Take(i % 4), i % 7 > 0);
            let charges =
                [0, 1, 2].map(|n| Charge { enforce, ..Charge::new(&keys[n], quotas[n].1, spend) });
            let details = quotas.iter().map(|(name, quota)| (name, *quota));
            let mut verdicts =
                match short.charge_few_known((&namespace, &identity), details, spend, enforce) {
                    Some(verdicts) => {
                        known += 1;
                        verdicts
                    }
                    None => short.acquire(&charges).await.unwrap(),
                };
            let mut expected = long.acquire(&charges).await.unwrap();
            // Receipts have times of the wall clock, which the two storages read one after the other.
            let units = |verdict: &mut Verdict| verdict.receipt.take().map(|taken| taken.units());
            assert!(
                verdicts.iter_mut().map(units).eq(expected.iter_mut().map(units)),
                "charge {i}"
            );
            assert_eq!(verdicts, expected, "charge {i}");
        }
        assert!(known > 1_500, "{known}");
    }
}
