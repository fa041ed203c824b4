//! What the clauses have in common: a storage on which every call is expected to work, and time in
//! ticks.

use std::{future::Future, panic::resume_unwind, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::Harness;
use crate::{
    Quota, Storage,
    quota::Algorithm,
    storage::{
        Charge, Entry, ErrorKind, Fence, Get, Identity, Invalidation, Key, Name, Put, PutOutcome,
        Spend, Tag, Tags, Touch, Verdict, Version, When,
    },
};

/// Enough for a race, few enough for a server.
pub(super) const RACERS: usize = 64;

pub(super) struct Stage<'h, H: Harness> {
    pub(super) harness: &'h H,
    pub(super) storage: Arc<H::Storage>,
}

/// The namespace of [`key`].
pub(super) fn alpha() -> Name {
    Name::new("alpha")
}

/// A key of the namespace `alpha`.
pub(super) fn key(identity: impl AsRef<[u8]>) -> Key {
    key_in("alpha", identity)
}

pub(super) fn key_in(namespace: &str, identity: impl AsRef<[u8]>) -> Key {
    Key::new(&Name::new(namespace), &Name::new("entry"), Identity::new(identity))
}

/// The key of a counter for this quota. All of them have one identity, so that every backend can
/// charge them together.
pub(super) fn counter(name: &str) -> Key {
    Key::new(&alpha(), &Name::new(name), Identity::new("somebody"))
}

pub(super) fn tags<const N: usize>(names: [&str; N]) -> [Tag; N] {
    names.map(Tag::new)
}

/// A quota of each algorithm whose windows pass, with the name of its counter.
pub(super) fn quotas(limit: u32, period: Duration) -> [(Key, Quota); 5] {
    [
        Quota::sliding_window(limit, period),
        Quota::fixed_window(limit, period),
        Quota::token_bucket(limit, period, limit),
        Quota::strict_window(limit, period),
        Quota::sliding_log(limit, period),
    ]
    .map(|quota| (counter(&quota.counter_name()), quota))
}

/// What tells one algorithm from another in a message.
pub(super) fn named(quota: &Quota) -> &'static str {
    match quota.algorithm() {
        Algorithm::SlidingWindow => "sliding window",
        Algorithm::FixedWindow => "fixed window",
        Algorithm::CalendarDay => "calendar day",
        Algorithm::CalendarMonth => "calendar month",
        Algorithm::TokenBucket { .. } => "token bucket",
        Algorithm::StrictWindow { .. } => "strict window",
        Algorithm::SlidingLog => "sliding log",
    }
}

impl<'h, H: Harness> Stage<'h, H> {
    pub(super) async fn new(harness: &'h H) -> Self {
        Self { harness, storage: Arc::new(harness.storage().await) }
    }

    pub(super) fn ticks(&self, n: u32) -> Duration {
        self.harness.tick() * n
    }

    pub(super) async fn pass(&self, ticks: u32) {
        self.harness.advance(self.ticks(ticks)).await;
    }

    /// Far longer than any clause takes.
    pub(super) fn long(&self) -> Duration {
        self.ticks(10_000)
    }

    /// A plain value for a long time.
    pub(super) fn value(&self, value: &'static str) -> Put<'static> {
        Put::new(Bytes::from_static(value.as_bytes()), self.long())
    }

    /// A value with tags for a long time.
    pub(super) fn fill<'a>(&self, value: &'static str, fence: Fence, tags: &'a [Tag]) -> Put<'a> {
        Put::new(Bytes::from_static(value.as_bytes()), self.long())
            .with_max_lifetime(self.long())
            .with_fence(fence)
            .with_tags(tags)
    }

    /// A value over exactly this version.
    pub(super) fn save(&self, value: &'static str, over: Version) -> Put<'static> {
        self.value(value).with_condition(When::Version(over))
    }

    pub(super) async fn put(&self, key: &Key, put: Put<'_>) -> PutOutcome {
        self.storage.put(key, put).await.expect("a put works")
    }

    /// A put that must succeed.
    pub(super) async fn stored(&self, key: &Key, put: Put<'_>) -> Version {
        match self.put(key, put).await {
            PutOutcome::Stored(version) => version,
            PutOutcome::Conflict(entry) => panic!("the put was refused; there is {entry:?}"),
        }
    }

    /// A put that must be refused; returns what is there.
    pub(super) async fn refused(&self, key: &Key, put: Put<'_>) -> Option<Entry> {
        match self.put(key, put).await {
            PutOutcome::Stored(version) => panic!("the put was not refused but made {version:?}"),
            PutOutcome::Conflict(entry) => entry,
        }
    }

    /// A put that must be an error.
    pub(super) async fn invalid(&self, key: &Key, put: Put<'_>) {
        match self.storage.put(key, put).await {
            Ok(outcome) => panic!("an invalid put came to {outcome:?}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Invalid, "{error}"),
        }
    }

    pub(super) async fn get(&self, key: &Key) -> Option<Entry> {
        self.storage.get(key, Get::new()).await.expect("a lookup works").entry
    }

    /// An entry that must be there.
    pub(super) async fn live(&self, key: &Key) -> Entry {
        self.get(key).await.expect("the entry is alive")
    }

    pub(super) async fn touch(&self, key: &Key, ttl: u32, slack: u32) -> Option<Entry> {
        let touch = Touch { ttl: self.ticks(ttl), slack: self.ticks(slack) };
        self.storage.get(key, Get::new().with_touch(touch)).await.expect("a touch works").entry
    }

    pub(super) async fn fence(&self, key: &Key) -> Fence {
        let lookup = self.storage.get(key, Get::new().with_fence()).await.expect("a lookup works");
        lookup.fence.expect("a fence was asked for")
    }

    pub(super) async fn delete(&self, key: &Key, when: When) -> bool {
        self.storage.delete(key, when).await.expect("a delete works")
    }

    pub(super) async fn invalidate(&self, namespace: &Name, tags: &[Tag], how: Invalidation) {
        let done = self.storage.invalidate(namespace, Tags::Any(tags), how).await;
        done.expect("an invalidation works");
    }

    /// Ends all that has a fence.
    pub(super) async fn end_all(&self, namespace: &Name) {
        let done = self.storage.invalidate(namespace, Tags::All, Invalidation::Hard).await;
        done.expect("an invalidation works");
    }

    pub(super) async fn acquire(&self, charges: &[Charge<'_>]) -> Vec<Verdict> {
        let verdicts = self.storage.acquire(charges).await.expect("an acquire works");
        assert_eq!(verdicts.len(), charges.len(), "one verdict for each charge");
        verdicts
    }

    /// One enforced charge.
    pub(super) async fn spend(&self, key: &Key, quota: Quota, spend: Spend) -> Verdict {
        self.acquire(&[Charge::new(key, quota, spend)]).await[0]
    }

    pub(super) async fn remaining(&self, key: &Key, quota: Quota) -> u32 {
        self.spend(key, quota, Spend::Peek).await.remaining
    }

    /// A duration as it should be, within the tolerance.
    pub(super) fn assert_near(&self, what: &str, actual: Duration, expected: Duration) {
        let tolerance = self.harness.tolerance();
        assert!(
            actual.abs_diff(expected) <= tolerance,
            "{what} is {actual:?}, not {expected:?} within {tolerance:?}"
        );
    }

    /// An entry of this last version must be absent for every operation; leaves another behind.
    pub(super) async fn assert_absent(&self, key: &Key, version: Version) {
        assert_eq!(self.get(key).await, None, "a lookup");
        assert_eq!(self.touch(key, 100, 0).await, None, "a touch");
        let save = self.refused(key, self.save("saved", version)).await;
        assert_eq!(save, None, "a save over what is dead");
        assert!(!self.delete(key, When::Always).await, "a delete");
        assert!(!self.delete(key, When::Version(version)).await, "a delete of the version");
        assert_eq!(self.get(key).await, None, "a lookup after all that");
        let absent = self.value("next").with_condition(When::Absent);
        assert!(self.stored(key, absent).await > version, "the next version is higher");
    }
}

/// Runs these side by side, on other threads where the runtime has them.
pub(super) async fn race<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    racers: impl IntoIterator<Item = F>,
) -> Vec<T> {
    let mut tasks: JoinSet<T> = racers.into_iter().collect();
    let mut results = Vec::new();
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok(result) => results.push(result),
            Err(error) => resume_unwind(error.into_panic()),
        }
    }
    results
}
