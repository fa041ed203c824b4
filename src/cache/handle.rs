//! The cache as handlers and jobs hold it.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use http::{HeaderName, uri::PathAndQuery};
use quick_cache::sync::Cache;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    NearCache,
    entry::Compression,
    flight::{Boarding, Flights, Moment},
    key::CacheKey,
    near::Near,
    purge::{Owed, Purge},
    service::Ask,
    shelf::{Found, Looked, Shelf},
    tags::stored as tag,
};
use crate::{
    storage::{AnyStorage, Error, ErrorKind, Fence, Identity, Name, Result, Storage, Tag},
    tasks::Tasks,
};

/// How many targets are remembered to give answers that cannot be stored.
const REMEMBERED_MISSES: usize = 65_536;
const DEFAULT_HIT_FOR_MISS: Duration = Duration::from_secs(30);
const DEFAULT_REFRESHES: usize = 32;
const DEFAULT_OUTAGE_CONCURRENCY: usize = 128;

/// The cache outside of requests: to purge, and to keep values.
///
/// Clones are one cache. A [layer](super::CacheLayer::handle) has one; several layers can share one
/// ([`CacheLayer::from_handle`](super::CacheLayer::from_handle)), so that routes with policies of
/// their own are purged together. Handles of one storage and namespace share what is stored, in this
/// process or another.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_keep::{MemoryStorage, cache::{CacheHandle, Keep}};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cache = CacheHandle::new(MemoryStorage::new());
/// let keep = Keep::for_ttl(Duration::from_secs(60)).with_tags(["prices"]);
/// let price = || async { Ok::<_, std::io::Error>(17) };
///
/// assert_eq!(cache.get_or_fill("price of 1", keep.clone(), price).await?, 17);
/// cache.invalidate(["prices"]).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct CacheHandle {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) shelf: Arc<Shelf>,
    pub(super) flights: Arc<Flights<FlightKey, Landed>>,
    /// Until when the answers to a target are not waited for, since the last could not be stored.
    misses: Cache<(CacheKey, usize), Instant>,
    hit_for_miss: Duration,
    pub(super) refreshes: Arc<Semaphore>,
    pub(super) outage: Semaphore,
    pub(super) owed: Owed,
}

/// Who may wait for a fill: those who saw the same fence.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct FlightKey {
    key: CacheKey,
    fence: Option<Fence>,
    /// How many fills of the same cache the request is inside of: it must not wait for those.
    depth: usize,
}

tokio::task_local! {
    static WITHIN: Within;
}

/// The fills that this task is part of. What is asked for within one must wait neither for it nor
/// for the places that it and its like hold.
#[derive(Clone)]
pub(super) struct Within {
    handle: usize,
    key: CacheKey,
    outer: Option<Arc<Within>>,
}

impl Within {
    /// The innermost.
    pub(super) fn now() -> Option<Self> {
        WITHIN.try_with(Clone::clone).ok()
    }

    /// Runs what makes the answer to this key.
    pub(super) async fn run<F: Future>(
        outer: Option<Self>,
        shared: &Arc<Shared>,
        key: &CacheKey,
        fill: F,
    ) -> F::Output {
        let handle = Arc::as_ptr(shared).addr();
        let within = Self { handle, key: key.clone(), outer: outer.map(Arc::new) };
        WITHIN.scope(within, fill).await
    }

    fn any(&self, holds: &impl Fn(&Self) -> bool) -> bool {
        holds(self) || self.outer.as_ref().is_some_and(|outer| outer.any(holds))
    }

    /// Whether one of them is of this cache.
    pub(super) fn is_of(&self, shared: &Arc<Shared>) -> bool {
        self.any(&|within| within.handle == Arc::as_ptr(shared).addr())
    }

    /// Whether one of them makes the answer to this key.
    pub(super) fn makes(&self, shared: &Arc<Shared>, key: &CacheKey) -> bool {
        self.any(&|within| within.handle == Arc::as_ptr(shared).addr() && within.key == *key)
    }
}

/// What a fill has brought.
#[derive(Clone)]
pub(super) struct Landed {
    pub(super) found: Found,
    /// By what it varies, and the variant that it is.
    pub(super) vary: Arc<[HeaderName]>,
    pub(super) key: CacheKey,
    /// An old answer, because there is no new one.
    pub(super) instead_of_error: bool,
}

impl Shared {
    /// What this cache does beside requests.
    pub(super) fn tasks(&self) -> &Tasks {
        self.shelf.storage.tasks()
    }

    /// Leads the fill of what was not found, or follows another who saw the same. The lookup was begun
    /// at the moment.
    pub(super) fn board(
        &self,
        looked: &Looked,
        before: Moment,
        depth: usize,
        patience: Duration,
    ) -> Boarding<FlightKey, Landed> {
        let key = FlightKey { key: looked.key.clone(), fence: looked.fence, depth };
        self.flights.board(key, before, looked.fence.is_some(), patience)
    }

    pub(super) fn is_hit_for_miss(&self, ask: &Ask) -> bool {
        self.misses.get(&(ask.key.clone(), ask.depth)).is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn remember_miss(&self, ask: &Ask) {
        if !self.hit_for_miss.is_zero() {
            self.misses.insert((ask.key.clone(), ask.depth), Instant::now() + self.hit_for_miss);
        }
    }

    pub(super) fn forget_miss(&self, ask: &Ask) {
        self.misses.remove(&(ask.key.clone(), ask.depth));
    }
}

fn own<T: AsRef<[u8]>>(tags: impl IntoIterator<Item = T>) -> Vec<Tag> {
    tags.into_iter().map(|tag| tag::own(tag.as_ref())).collect()
}

impl CacheHandle {
    /// A cache on this storage, in the namespace `cache`.
    pub fn new(storage: impl Storage) -> Self {
        Self::builder(storage).build()
    }

    /// Sets what all layers on the handle share.
    pub fn builder(storage: impl Storage) -> CacheHandleBuilder {
        CacheHandleBuilder {
            storage: storage.erase(),
            namespace: Name::new("cache"),
            near: None,
            hit_for_miss: DEFAULT_HIT_FOR_MISS,
            refreshes: DEFAULT_REFRESHES,
            outage: DEFAULT_OUTAGE_CONCURRENCY,
            compress: None,
        }
    }

    /// Ends every response and value that carries one of these tags, on every node: when this
    /// returns, no later lookup anywhere finds one, nor will any that is being made now be found,
    /// unless it was begun after this. (Except in a [bounded](NearCache::bounded) near cache of
    /// another handle, for as long as its lag.)
    ///
    /// The cost does not depend on how many entries there are; one round trip.
    ///
    /// # Errors
    ///
    /// If the storage does not acknowledge it. It is then repeated in the background until it does,
    /// or the process ends, and this handle answers past the cache meanwhile; others may serve what was
    /// to be purged until then.
    ///
    /// # Cancel safety
    ///
    /// Once polled, it happens, also if the future is dropped.
    pub async fn invalidate<T: AsRef<[u8]>>(
        &self,
        tags: impl IntoIterator<Item = T>,
    ) -> Result<()> {
        self.shared.purge(Purge::hard(own(tags))).await
    }

    /// Makes every response and value that carries one of these tags stale: it is still given, while
    /// it is renewed, where `stale-while-revalidate` or `stale-if-error` allow.
    ///
    /// # Errors
    ///
    /// As [`invalidate`](Self::invalidate).
    pub async fn invalidate_softly<T: AsRef<[u8]>>(
        &self,
        tags: impl IntoIterator<Item = T>,
    ) -> Result<()> {
        self.shared.purge(Purge::soft(own(tags))).await
    }

    /// Invalidates at once and, in the background, once more after the delay: for data that is read
    /// from a replica which lags behind by at most that long.
    ///
    /// The second is lost with the process, so a [shutdown](crate::storage::AnyStorage::shutdown) waits
    /// for it, and makes it early before it gives up.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`invalidate`](Self::invalidate), of the first.
    pub async fn invalidate_after<T: AsRef<[u8]>>(
        &self,
        tags: impl IntoIterator<Item = T>,
        delay: Duration,
    ) -> Result<()> {
        let tags = own(tags);
        let (shared, later) = (Arc::clone(&self.shared), Purge::hard(tags.clone()));
        let (tasks, given_up) = (self.shared.tasks(), self.shared.tasks().abandoned());
        tasks.spawn_apart(async move {
            // An early one ends all that has been read from the replica so far.
            let _ = timeout(delay, given_up).await;
            if let Err(error) = shared.purge(later).await {
                event!(warn, %error, "the second of two purges was not acknowledged at once");
            }
        });
        self.shared.purge(Purge::hard(tags)).await
    }

    /// Ends the responses to a target, in all variants: a path with its query, as requests have it,
    /// such as `/products/1?full`. Of whatever host. Where a policy has a rule for the
    /// [query](super::Query), the query is what that rule leaves of it.
    ///
    /// # Errors
    ///
    /// [`Invalid`](ErrorKind::Invalid) for what is no path and query. Otherwise as
    /// [`invalidate`](Self::invalidate).
    pub async fn invalidate_uri(&self, path_and_query: &str) -> Result<()> {
        let is_target = path_and_query.parse::<PathAndQuery>().is_ok();
        if !path_and_query.starts_with('/') || !is_target {
            let message = "a target is a path and query as a request line has it: `/a%20b?c`";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        self.shared.purge(Purge::hard(vec![tag::uri(path_and_query.as_bytes())])).await
    }

    /// Ends all responses of a route, named in full as axum's `MatchedPath` does: `/api/products/{id}`,
    /// also where `/api` is nested.
    ///
    /// # Errors
    ///
    /// As [`invalidate`](Self::invalidate).
    pub async fn invalidate_route(&self, route: &str) -> Result<()> {
        self.shared.purge(Purge::hard(vec![tag::route(route.as_bytes())])).await
    }

    /// Ends all responses of a host, named as requests do: with the port if they have one.
    ///
    /// # Errors
    ///
    /// As [`invalidate`](Self::invalidate).
    pub async fn invalidate_host(&self, host: &str) -> Result<()> {
        self.shared.purge(Purge::hard(vec![tag::host(host.to_ascii_lowercase().as_bytes())])).await
    }

    /// Ends all responses of a group (`Cache-Groups`, RFC 9875) of this host.
    ///
    /// # Errors
    ///
    /// As [`invalidate`](Self::invalidate).
    pub async fn invalidate_group(&self, host: &str, group: &str) -> Result<()> {
        self.shared
            .purge(Purge::hard(vec![tag::group(
                host.to_ascii_lowercase().as_bytes(),
                group.as_bytes(),
            )]))
            .await
    }

    /// Ends the value under this key.
    ///
    /// # Errors
    ///
    /// As [`invalidate`](Self::invalidate).
    pub async fn invalidate_key(&self, key: impl Into<Identity>) -> Result<()> {
        self.shared.purge(Purge::hard(vec![tag::value(key.into().as_bytes())])).await
    }

    /// Ends everything in the namespace.
    ///
    /// # Errors
    ///
    /// As [`invalidate`](Self::invalidate).
    pub async fn clear(&self) -> Result<()> {
        self.shared.purge(Purge::everything()).await
    }
}

impl CacheHandle {
    /// What tells this cache from others of the process.
    pub(super) fn address(&self) -> usize {
        Arc::as_ptr(&self.shared).addr()
    }
}

impl fmt::Debug for CacheHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheHandle")
            .field("storage", &self.shared.shelf.storage)
            .field("namespace", &self.shared.shelf.namespace)
            .finish_non_exhaustive()
    }
}

/// Sets what all layers on a [`CacheHandle`] share.
#[derive(Debug, Clone)]
#[must_use]
pub struct CacheHandleBuilder {
    storage: AnyStorage,
    namespace: Name,
    near: Option<NearCache>,
    hit_for_miss: Duration,
    refreshes: usize,
    outage: usize,
    compress: Option<Compression>,
}

impl CacheHandleBuilder {
    /// Keeps what is stored, and its tags, apart from other caches on the storage. Default: `cache`.
    pub fn with_namespace(mut self, namespace: Name) -> Self {
        self.namespace = namespace;
        self
    }

    /// Keeps what was read lately in this process, decoded. Default: nothing is.
    pub fn with_near_cache(mut self, near: NearCache) -> Self {
        self.near = Some(near);
        self
    }

    /// For how long requests do not wait for each other's answers when the last could not be stored:
    /// 30 s unless set.
    pub fn with_hit_for_miss(mut self, time: Duration) -> Self {
        self.hit_for_miss = time.min(Duration::from_secs(86_400));
        self
    }

    /// How many stale answers are renewed in the background at once: 32 unless set.
    pub fn with_refreshes(mut self, refreshes: usize) -> Self {
        self.refreshes = refreshes;
        self
    }

    /// How many requests may be with the handlers at once while the storage gives no answer: 128
    /// unless set. The others wait, so that an outage of the cache does not become one of what is
    /// behind it.
    pub fn with_outage_concurrency(mut self, requests: usize) -> Self {
        self.outage = requests.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// Compresses bodies of at least this many bytes with zstd, where that makes them smaller.
    #[cfg(feature = "zstd")]
    #[cfg_attr(docsrs, doc(cfg(feature = "zstd")))]
    pub fn with_compression(mut self, at_least: usize) -> Self {
        self.compress = Some(Compression::at_least(at_least));
        self
    }

    /// The handle.
    pub fn build(self) -> CacheHandle {
        let local = self.storage.capabilities().local;
        let near = self.near.map(|near| Near::new(near, local));
        CacheHandle {
            shared: Arc::new(Shared {
                shelf: Arc::new(Shelf::new(self.storage, self.namespace, near, self.compress)),
                flights: Arc::new(Flights::new()),
                misses: Cache::new(REMEMBERED_MISSES),
                hit_for_miss: self.hit_for_miss,
                refreshes: Arc::new(Semaphore::new(self.refreshes.min(Semaphore::MAX_PERMITS))),
                outage: Semaphore::new(self.outage),
                owed: Owed::default(),
            }),
        }
    }
}
