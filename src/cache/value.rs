//! Values, not only responses: whatever is dear to make.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::oneshot as channel,
    time::{Instant, timeout},
};

use super::{
    CacheHandle, CacheTags,
    control::{Freshness, Reuse, Wishes},
    entry::{Stored, StoredValue},
    fill::jittered,
    flight::{Boarding, Landing, Leader},
    handle::{FlightKey, Landed, Shared, Within},
    key::CacheKey,
    service::is_early,
    shelf::{Found, Looked},
    tags::{TagError, TagList, TagRule, stored as tag},
    turn::Queue,
};
use crate::storage::{Identity, Tag};

/// Values above this are not read from the storage.
const MAX_VALUE: usize = 64 << 20;
const DEFAULT_FILL_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a caller waits for another fill after one has failed.
const RETRIES: u32 = 2;

/// How long a value is kept, and how.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_keep::cache::Keep;
///
/// let keep = Keep::for_ttl(Duration::from_secs(60))
///     .with_tags(["prices", "product:1"])
///     .with_stale_while_revalidate(Duration::from_secs(30));
/// # let _ = keep;
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Keep {
    ttl: Duration,
    stale_while_revalidate: Duration,
    stale_if_error: Duration,
    tags: CacheTags,
    jitter: f64,
    early_refresh: Option<f64>,
    lease: Option<Duration>,
    fill_timeout: Duration,
}

impl Keep {
    /// For this long, at least a millisecond.
    pub fn for_ttl(ttl: Duration) -> Self {
        Self {
            ttl: ttl.max(Duration::from_millis(1)),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            tags: CacheTags::default(),
            jitter: 0.0,
            early_refresh: None,
            lease: None,
            fill_timeout: DEFAULT_FILL_TIMEOUT,
        }
    }

    /// Labels the value, instead of with those it had; see [`CacheHandle::invalidate`].
    pub fn with_tags<T: AsRef<[u8]>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.tags = CacheTags::from_iter(tags);
        self
    }

    /// For this long after its end the old value is still given, while one caller's closure renews it
    /// in the background.
    pub fn with_stale_while_revalidate(mut self, window: Duration) -> Self {
        self.stale_while_revalidate = window;
        self
    }

    /// For this long after its end the old value is given where the closure fails, with whatever error:
    /// let what may be absent be an `Option`, and absence no error.
    pub fn with_stale_if_error(mut self, window: Duration) -> Self {
        self.stale_if_error = window;
        self
    }

    /// See [`Policy::with_jitter`](super::Policy::with_jitter).
    ///
    /// # Panics
    ///
    /// If the share is not between 0 and 1.
    #[track_caller]
    pub fn with_jitter(mut self, share: f64) -> Self {
        assert!((0.0..=1.0).contains(&share), "a share is between 0 and 1");
        self.jitter = share;
        self
    }

    /// See [`Policy::with_early_refresh`](super::Policy::with_early_refresh).
    ///
    /// # Panics
    ///
    /// If the eagerness is not between 0 and 100.
    #[track_caller]
    pub fn with_early_refresh(mut self, eagerness: f64) -> Self {
        assert!((0.0..=100.0).contains(&eagerness), "an eagerness is between 0 and 100");
        self.early_refresh = Some(eagerness);
        self
    }

    /// See [`Policy::with_lease`](super::Policy::with_lease).
    pub fn with_lease(mut self, ttl: Duration) -> Self {
        self.lease = Some(ttl.max(Duration::from_millis(100)));
        self
    }

    /// How long a caller waits for another's closure before he calls his own: 60 s unless set.
    pub fn with_fill_timeout(mut self, timeout: Duration) -> Self {
        self.fill_timeout = timeout;
        self
    }

    fn freshness(&self) -> Freshness {
        let freshness = Freshness {
            lifetime: self.ttl,
            initial_age: Duration::ZERO,
            stale_while_revalidate: self.stale_while_revalidate,
            stale_if_error: self.stale_if_error,
            always_revalidate: false,
            must_revalidate: false,
            authorized: false,
            heuristic: false,
        };
        jittered(freshness, self.jitter)
    }

    /// How long the storage keeps it.
    fn life(&self) -> Duration {
        self.ttl.saturating_add(self.stale_while_revalidate.max(self.stale_if_error))
    }
}

/// Why there is no value.
#[derive(Debug)]
#[non_exhaustive]
pub enum FillError<E> {
    /// The closure failed with this.
    Fill(E),
    /// The closure panicked, or its runtime is stopping.
    Panicked,
}

impl<E> FillError<E> {
    /// The closure's error, if there is one.
    pub fn into_inner(self) -> Option<E> {
        match self {
            Self::Fill(error) => Some(error),
            Self::Panicked => None,
        }
    }
}

impl<E: fmt::Display> fmt::Display for FillError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fill(error) => error.fmt(f),
            Self::Panicked => f.write_str("what makes the value has panicked"),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for FillError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // Display shows the error itself.
            Self::Fill(error) => error.source(),
            Self::Panicked => None,
        }
    }
}

impl CacheHandle {
    /// The value under this key, made by the closure if there is none.
    ///
    /// Of all callers of this process that miss it at once, one calls its closure, in a task of its
    /// own, and all get the value. If that fails, its own caller gets the error and one of the others
    /// calls his. A value that is invalidated while it is made is given to those who asked before,
    /// and to nobody after.
    ///
    /// Values are stored as MessagePack with names of fields. What cannot be read as a `T`, because
    /// the type has changed, counts as missing; what cannot be written is given and not stored, with a
    /// warning. While the storage gives no answer, closures are called, one at a time for each key.
    ///
    /// A response that is made from the value does not inherit its tags: name them in its
    /// [`CacheTags`] too. Keys are one flat list for all types; begin them with what they are
    /// (`"user 7"`), and change that when the type changes its meaning.
    ///
    /// # Errors
    ///
    /// What the closure returns, to the caller whose closure it was.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it leaves the closure running: others may wait for the value.
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
    /// let keep = Keep::for_ttl(Duration::from_secs(60)).with_tags(["users"]);
    /// # #[derive(Clone)]
    /// # struct Database;
    /// # impl Database {
    /// #     async fn name_of(&self, _id: u32) -> Result<String, std::io::Error> {
    /// #         Ok("Ada".to_owned())
    /// #     }
    /// # }
    /// # let database = Database;
    /// // The closure may outlive this call, so it owns what it needs.
    /// let name: String = cache
    ///     .get_or_fill("user 7", keep, {
    ///         let database = database.clone();
    ///         async move || database.name_of(7).await
    ///     })
    ///     .await?;
    /// assert_eq!(name, "Ada");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_or_fill<T, E, F, Fut>(
        &self,
        key: impl Into<Identity>,
        keep: Keep,
        closure: F,
    ) -> Result<T, FillError<E>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let shared = &self.shared;
        let identity = key.into();
        let key = CacheKey::for_value(&identity);
        let began = Instant::now();
        let within = Within::now();
        // Of what makes this very value one cannot wait for the end.
        let makes_it = within.as_ref().is_some_and(|within| within.makes(shared, &key));
        let mut failures = if makes_it { RETRIES + 1 } else { 0 };
        let mut looked = None;
        let mut before = shared.flights.now();
        loop {
            let now = match looked.take() {
                Some(looked) => looked,
                None => {
                    before = shared.flights.now();
                    shared.look_up_value(&key).await
                }
            };
            let (found, reuse) = usable::<T>(&now, keep.early_refresh);
            match (found, reuse) {
                (Some(value), Use::AsItIs) => return Ok(value),
                (Some(value), Use::AndRenew) => {
                    if let Ok(permit) = Arc::clone(&shared.refreshes).try_acquire_owned()
                        && let Boarding::Lead(leader) =
                            shared.board(&now, before, 0, keep.fill_timeout)
                    {
                        let making = Making::new(shared, identity, keep, now, Some(leader), within);
                        shared.tasks().spawn(async move {
                            let (reply, _value) = channel::channel();
                            making.make(closure, reply).await;
                            drop(permit);
                        });
                    }
                    return Ok(value);
                }
                _ => {}
            }
            let boarding =
                (failures <= RETRIES).then(|| shared.board(&now, before, 0, keep.fill_timeout));
            let leader = match boarding {
                Some(Boarding::Follow(follower)) => {
                    let left = keep.fill_timeout.saturating_sub(began.elapsed());
                    match timeout(left, follower.landing()).await {
                        Ok(Landing::Shared(landed)) => {
                            if let Some(value) = landed.found.value().and_then(read) {
                                return Ok(value);
                            }
                            failures = RETRIES + 1;
                        }
                        Ok(Landing::Failed) => failures += 1,
                        Ok(Landing::TooEarly) => {}
                        Ok(Landing::Alone) | Err(_) => failures = RETRIES + 1,
                    }
                    looked = Some(now);
                    continue;
                }
                Some(Boarding::Lead(leader)) => Some(leader),
                Some(Boarding::Landed) => continue,
                None => None,
            };
            let making = Making::new(shared, identity, keep, now, leader, within);
            let (reply, value) = channel::channel();
            shared.tasks().spawn(making.make(closure, reply));
            return value.await.unwrap_or(Err(FillError::Panicked));
        }
    }
}

enum Use {
    AsItIs,
    AndRenew,
    Not,
}

/// What was found, as a `T`, and whether it will do.
fn usable<T: DeserializeOwned>(looked: &Looked, early_refresh: Option<f64>) -> (Option<T>, Use) {
    let Some(found) = &looked.found else { return (None, Use::Not) };
    let Some(stored) = found.value() else { return (None, Use::Not) };
    let reuse = match stored.freshness.reuse(found.resident(), found.stale, &Wishes::default()) {
        Reuse::Fresh { ttl_seconds: ttl } => {
            let left = Duration::from_secs(ttl.max(0) as u64);
            match early_refresh {
                Some(eagerness) if is_early(stored.fill_time, left, eagerness) => Use::AndRenew,
                _ => Use::AsItIs,
            }
        }
        Reuse::StaleWhileRevalidate { .. } => Use::AndRenew,
        Reuse::Revalidate | Reuse::Unusable => return (None, Use::Not),
    };
    (read(stored), reuse)
}

fn read<T: DeserializeOwned>(stored: &StoredValue) -> Option<T> {
    let told = |error: &rmp_serde::decode::Error| {
        let _ = error; // it may show the value
        event!(debug, "a stored value is not of the type that is asked for");
    };
    rmp_serde::from_slice(&stored.bytes).inspect_err(told).ok()
}

impl Shared {
    async fn look_up_value(self: &Arc<Self>, key: &CacheKey) -> Looked {
        let nothing = || Looked { found: None, fence: None, key: key.clone() };
        if self.is_bypassed() {
            return nothing();
        }
        match self.shelf.look_up_value(key, MAX_VALUE).await {
            Ok(_) if self.is_bypassed() => nothing(),
            Ok(looked) => looked,
            Err(error) => {
                event!(debug, %error, "a lookup failed; the cache is passed by");
                nothing()
            }
        }
    }
}

/// A value that is being made.
struct Making {
    shared: Arc<Shared>,
    identity: Identity,
    keep: Keep,
    looked: Looked,
    leader: Option<Leader<FlightKey, Landed>>,
    within: Option<Within>,
}

impl Making {
    fn new(
        shared: &Arc<Shared>,
        identity: Identity,
        keep: Keep,
        looked: Looked,
        leader: Option<Leader<FlightKey, Landed>>,
        within: Option<Within>,
    ) -> Self {
        Self { shared: Arc::clone(shared), identity, keep, looked, leader, within }
    }

    async fn make<T, E, F, Fut>(mut self, fill: F, reply: channel::Sender<Result<T, FillError<E>>>)
    where
        T: Serialize + DeserializeOwned,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let _lease = match self.wait_for_turn::<T>().await {
            Ok(lease) => lease,
            Err(value) => {
                let _ = reply.send(Ok(value));
                return self.land_found();
            }
        };
        let shared = Arc::clone(&self.shared);
        // The fill that this one is part of has a place already.
        let has_place = self.within.as_ref().is_some_and(|within| within.is_of(&shared));
        let _permit = match self.looked.fence {
            None if !has_place => {
                // Who never gets a place is not kept waiting for one for ever.
                timeout(self.keep.fill_timeout, shared.outage.acquire()).await.ok()
            }
            _ => None,
        };
        if let Some(leader) = &self.leader {
            leader.depart();
        }
        let asked = Instant::now();
        let (within, key) = (self.within.take(), self.looked.key.clone());
        let value = match Within::run(within, &shared, &key, async { fill().await }).await {
            Ok(value) => value,
            Err(error) => {
                match self.stale_instead_of_error() {
                    Some(value) => {
                        let _ = reply.send(Ok(value));
                        self.land_found();
                    }
                    // The others are told by the drop of the leader, and one of them tries again.
                    None => {
                        let _ = reply.send(Err(FillError::Fill(error)));
                    }
                }
                return;
            }
        };
        let stored = match (rmp_serde::to_vec_named(&value), self.tags()) {
            (Ok(bytes), Ok(tags)) => Arc::new(Stored::Value(StoredValue {
                freshness: self.keep.freshness(),
                fill_time: asked.elapsed(),
                tags,
                bytes: Bytes::from(bytes),
            })),
            (Err(error), _) => {
                event!(warn, %error, "a value cannot be stored: it cannot be serialized");
                let _ = reply.send(Ok(value));
                return self.land(Landing::Alone);
            }
            (_, Err(error)) => {
                event!(warn, reason = error.reason(), "a value was not stored because of its tags");
                let _ = reply.send(Ok(value));
                return self.land(Landing::Alone);
            }
        };
        if let Some(fence) = self.looked.fence {
            let own = self.keep.tags.iter().map(tag::own);
            let tags: Vec<Tag> = own.chain([tag::value(self.identity.as_bytes())]).collect();
            let (shelf, life) = (&self.shared.shelf, self.keep.life());
            match shelf.put(&self.looked.key, &stored, life, fence, &tags).await {
                Ok(true) => {}
                Ok(false) => {
                    event!(debug, "a value was invalidated while it was made");
                }
                Err(error) => {
                    event!(debug, %error, "a value could not be stored");
                }
            }
        }
        let _ = reply.send(Ok(value));
        let (found, key) = (Found::new(stored), self.looked.key.clone());
        let landed = Landed { found, vary: [].into(), key, instead_of_error: false };
        self.land(Landing::Shared(landed));
    }

    fn tags(&self) -> Result<TagList, TagError> {
        TagRule::default().collect(Some(&self.keep.tags), &http::HeaderMap::new(), [])
    }

    /// Lets one node fill at a time, if that is wanted; or the value that another has made.
    async fn wait_for_turn<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<crate::lease::Lease>, T> {
        let Some(ttl) = self.keep.lease else { return Ok(None) };
        if self.leader.is_none() || self.looked.fence.is_none() {
            return Ok(None);
        }
        let (shelf, patience) = (&self.shared.shelf, self.keep.fill_timeout);
        let Some(mut queue) = Queue::new(shelf, &self.looked.key, ttl, patience) else {
            return Ok(None);
        };
        loop {
            let turn = queue.try_enter().await;
            self.looked = self.shared.look_up_value(&self.looked.key).await;
            if let (Some(value), Use::AsItIs) = usable(&self.looked, None) {
                return Err(value);
            }
            if let Some(lease) = turn {
                return Ok(lease);
            }
            queue.pause().await;
        }
    }

    fn stale_instead_of_error<T: DeserializeOwned>(&self) -> Option<T> {
        let found = self.looked.found.as_ref()?;
        let stored = found.value()?;
        stored.freshness.may_serve_on_error(found.resident()).then(|| read(stored))?
    }

    /// All who wait may have what was found.
    fn land_found(self) {
        let landing = match &self.looked.found {
            Some(found) => Landing::Shared(Landed {
                found: found.clone(),
                vary: [].into(),
                key: self.looked.key.clone(),
                instead_of_error: false,
            }),
            None => Landing::Alone,
        };
        self.land(landing);
    }

    fn land(self, landing: Landing<Landed>) {
        if let Some(leader) = self.leader {
            leader.land(landing);
        }
    }
}
