//! A storage of any type behind one handle.

use std::{any::Any, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};
#[cfg(any(feature = "rate-limit", feature = "cache"))]
use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use super::{
    Capabilities, Charge, Get, Invalidation, Key, Lookup, Name, Put, PutOutcome, Result, Spend,
    Storage, Tags, Verdict, When, denials::Denials, memory::MemoryStorage,
};

#[cfg(any(feature = "rate-limit", feature = "cache"))]
use super::Identity;
#[cfg(feature = "rate-limit")]
use crate::quota::Quota;
use crate::tasks::{Drained, Tasks};

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The object-safe twin of [`Storage`]. Its methods carry a suffix because a type that implements
/// both traits could not call either by one name (E0034).
trait StorageDyn: fmt::Debug + Send + Sync {
    fn get_dyn<'a>(&'a self, key: &'a Key, get: Get) -> BoxFuture<'a, Result<Lookup>>;
    fn put_dyn<'a>(&'a self, key: &'a Key, put: Put<'a>) -> BoxFuture<'a, Result<PutOutcome>>;
    fn delete_dyn<'a>(&'a self, key: &'a Key, when: When) -> BoxFuture<'a, Result<bool>>;
    fn invalidate_dyn<'a>(
        &'a self,
        namespace: &'a Name,
        tags: Tags<'a>,
        how: Invalidation,
    ) -> BoxFuture<'a, Result<()>>;
    fn acquire_dyn<'a>(&'a self, charges: &'a [Charge<'a>]) -> BoxFuture<'a, Result<Vec<Verdict>>>;
    fn capabilities_dyn(&self) -> Capabilities;
    #[cfg(feature = "idempotency")]
    fn audit_for_claims_dyn(&self);
}

impl<S: Storage> StorageDyn for S {
    fn get_dyn<'a>(&'a self, key: &'a Key, get: Get) -> BoxFuture<'a, Result<Lookup>> {
        Box::pin(self.get(key, get))
    }

    fn put_dyn<'a>(&'a self, key: &'a Key, put: Put<'a>) -> BoxFuture<'a, Result<PutOutcome>> {
        Box::pin(self.put(key, put))
    }

    fn delete_dyn<'a>(&'a self, key: &'a Key, when: When) -> BoxFuture<'a, Result<bool>> {
        Box::pin(self.delete(key, when))
    }

    fn invalidate_dyn<'a>(
        &'a self,
        namespace: &'a Name,
        tags: Tags<'a>,
        how: Invalidation,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.invalidate(namespace, tags, how))
    }

    fn acquire_dyn<'a>(&'a self, charges: &'a [Charge<'a>]) -> BoxFuture<'a, Result<Vec<Verdict>>> {
        Box::pin(self.acquire(charges))
    }

    fn capabilities_dyn(&self) -> Capabilities {
        self.capabilities()
    }

    #[cfg(feature = "idempotency")]
    fn audit_for_claims_dyn(&self) {
        #[cfg(feature = "redis")]
        if let Some(redis) = (self as &dyn Any).downcast_ref::<super::redis::RedisStorage>() {
            redis.audit_once();
        }
    }
}

/// A cheaply cloned handle to a storage of any type, so that layers, handlers and application state
/// carry no storage type parameter.
///
/// # Examples
///
/// ```
/// use tower_keep::{Storage, MemoryStorage, storage::AnyStorage};
///
/// let storage: AnyStorage = MemoryStorage::new().erase();
/// assert!(storage.capabilities().local);
/// ```
#[derive(Clone)]
pub struct AnyStorage {
    storage: Arc<dyn StorageDyn>,
    /// The same storage, if it is this one, for calls that need no future.
    memory: Option<MemoryStorage>,
    shared: Arc<Shared>,
}

/// What the handles to one storage share in this process.
#[derive(Default)]
pub(crate) struct Shared {
    denials: Denials,
    pub(super) tasks: Tasks,
}

impl AnyStorage {
    /// A handle to this storage.
    ///
    /// Clones of the handle share what this process has learnt of refusals, and what
    /// [`shutdown`](Self::shutdown) waits for; two handles made apart do not. Those that
    /// [`erase`](Storage::erase) makes of one [`MemoryStorage`] or `RedisStorage` do.
    pub fn new(storage: impl Storage) -> Self {
        match (&storage as &dyn Any).downcast_ref::<MemoryStorage>() {
            Some(memory) => memory.clone().erase(),
            None => Self::with_shared(storage, Arc::default()),
        }
    }

    /// A handle that shares with others.
    pub(super) fn with_shared(storage: impl Storage, shared: Arc<Shared>) -> Self {
        let memory = (&storage as &dyn Any).downcast_ref().cloned();
        Self { storage: Arc::new(storage), memory, shared }
    }

    /// Waits until all is done that layers and handles on this storage do beside requests: fills of
    /// the cache and values, renewals of stale ones, purges that the storage has not acknowledged,
    /// saves and touches of sessions, reservations and refunds of rate limits, releases of leases.
    ///
    /// To be called when the server has stopped to accept connections and has finished its requests,
    /// and before the runtime ends, which drops what still runs. It closes nothing: what begins
    /// meanwhile is waited for as well, and the storage works afterwards as before.
    ///
    /// It returns at the first moment at which nothing is left to be done, and after `within` at the
    /// latest. Shortly before that, in the last tenth of it but at most a second, what still runs is
    /// told, and may leave word of what it cannot finish. What has not ended then is
    /// [counted](Drained::abandoned) and left to the runtime.
    ///
    /// It may be called several times, also at once. A handler must not call it: it would wait for
    /// itself.
    ///
    /// Handles share what is waited for as told at [`new`](Self::new); so erase a storage once and
    /// make all layers from clones of that handle.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time: nothing is ended by it.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> tower_keep::storage::Result<()> {
    /// use std::time::Duration;
    /// use tower_keep::{MemoryStorage, Storage, lease::Leases};
    ///
    /// let storage = MemoryStorage::new().erase();
    /// let leases = Leases::new(storage.clone(), Duration::from_secs(30));
    /// let lease = leases.try_acquire("ledger").await?.acquired().unwrap();
    /// // With axum: `axum::serve(listener, app).with_graceful_shutdown(signal).await?`.
    /// drop(lease); // It is released in the background,
    /// let drained = storage.shutdown(Duration::from_secs(5)).await;
    /// assert!(drained.is_clean());
    /// // and by now that is done: another process need not wait for the 30 s.
    /// assert!(leases.try_acquire("ledger").await?.acquired().is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn shutdown(&self, within: Duration) -> Drained {
        self.tasks().shutdown(within).await
    }

    /// What layers run beside requests.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.shared.tasks
    }

    /// Has a server looked at, in the background, that may be set up to lose claims: once for each
    /// storage, however many layers ask. What is found is logged.
    #[cfg(feature = "idempotency")]
    pub(crate) fn audit_for_claims(&self) {
        self.storage.audit_for_claims_dyn();
    }

    /// Whether every operation is done at its first poll.
    #[cfg(any(
        feature = "rate-limit",
        feature = "cache",
        feature = "session",
        feature = "idempotency"
    ))]
    pub(crate) fn answers_at_once(&self) -> bool {
        self.memory.is_some()
    }

    /// [`get`](Storage::get) of a namespace, detail and identity at once, if the storage is in this
    /// process.
    #[cfg(feature = "cache")]
    pub(crate) fn get_now(&self, entry: (&Name, &Name, &Identity), get: Get) -> Option<Lookup> {
        self.memory.as_ref().map(|memory| memory.get_now(entry, get))
    }

    /// Charges the counter of a namespace, detail and identity at once, if it is in this process
    /// and there already.
    #[cfg(feature = "rate-limit")]
    pub(crate) fn charge_known(
        &self,
        counter: (&Name, &Name, &Identity),
        quota: &Quota,
        spend: Spend,
    ) -> Option<Verdict> {
        self.memory.as_ref()?.charge_known(counter, quota, spend)
    }

    /// The same for several quotas of one identity, decided together.
    #[cfg(feature = "rate-limit")]
    pub(crate) fn charge_few_known<'a>(
        &self,
        owner: (&Name, &Identity),
        details: impl ExactSizeIterator<Item = (&'a Name, Quota)>,
        spend: Spend,
        enforce: bool,
    ) -> Option<Vec<Verdict>> {
        self.memory.as_ref()?.charge_few_known(owner, details, spend, enforce)
    }

    /// [`acquire`](Storage::acquire) at once, if that is possible.
    #[cfg(feature = "rate-limit")]
    pub(crate) fn acquire_now(&self, charges: &[Charge<'_>]) -> Option<Result<Vec<Verdict>>> {
        self.memory.as_ref().map(|memory| acquire_now(memory, charges))
    }

    /// [`acquire`](Storage::acquire), but a refusal is remembered for at most `memory` and answers
    /// what it covers without asking the storage.
    #[cfg(feature = "rate-limit")]
    pub(crate) async fn acquire_or_recall(
        &self,
        charges: &[Charge<'_>],
        memory: Duration,
    ) -> Result<Vec<Verdict>> {
        if memory.is_zero() || self.capabilities().local {
            return self.acquire(charges).await;
        }
        let place = match self.shared.denials.recall(charges) {
            Ok(verdicts) => return Ok(verdicts),
            Err(place) => place,
        };
        let verdicts = self.acquire(charges).await?;
        if let Some(place) = place {
            self.shared.denials.remember(place, charges, &verdicts, memory);
        }
        Ok(verdicts)
    }
}

/// [`acquire`](Storage::acquire) without a future.
#[cfg(feature = "rate-limit")]
pub(crate) fn acquire_now(memory: &MemoryStorage, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
    at_once(memory.acquire(charges))
}

/// What comes of work on a storage that [answers at once](AnyStorage::answers_at_once) and waits for
/// nothing else.
#[cfg(any(feature = "rate-limit", feature = "cache"))]
pub(crate) fn at_once<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => unreachable!("the memory storage never waits"),
    }
}

impl fmt::Debug for AnyStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.storage.fmt(f)
    }
}

/// Forgets when it goes, so also when the call that gives units back is dropped half-way: it may
/// have been applied.
struct ForgetOnDrop<'a> {
    denials: &'a Denials,
    charges: &'a [Charge<'a>],
}

impl Drop for ForgetOnDrop<'_> {
    fn drop(&mut self) {
        for charge in self.charges {
            if matches!(charge.spend, Spend::Refund { .. } | Spend::Reset) {
                self.denials.forget(charge.key);
            }
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Storage for AnyStorage {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        if let Some(memory) = &self.memory {
            // Without a box.
            return memory.get(key, get).await;
        }
        self.storage.get_dyn(key, get).await
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        if let Some(memory) = &self.memory {
            return memory.put(key, put).await;
        }
        self.storage.put_dyn(key, put).await
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        self.storage.delete_dyn(key, when).await
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        self.storage.invalidate_dyn(namespace, tags, how).await
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        let _forget = ForgetOnDrop { denials: &self.shared.denials, charges };
        self.storage.acquire_dyn(charges).await
    }

    fn capabilities(&self) -> Capabilities {
        self.storage.capabilities_dyn()
    }

    fn erase(self) -> AnyStorage {
        self
    }
}
