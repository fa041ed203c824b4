//! What this process has read lately, so that a hit need not move the body, or need no trip at all.
//!
//! An entry here is the decoded form of one in the storage, with its version and the fence under
//! which it was last known to be alive. A *strict* near cache asks the storage for each lookup whether
//! the version is still the one, and saves the body. A *bounded* one saves the trip: as long as the
//! record of tags has not moved, which one small read for all entries tells, nothing at all was
//! invalidated, and what was alive then is alive now. When the record has moved, each entry is asked
//! for once, as in strict mode. There is no feed that could have gaps: a bounded lookup rests on a
//! read that was *sent* within the last `lag`, and without one it is strict.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use quick_cache::{Weighter, sync::Cache};
use tokio::time::Instant;

use super::{
    key::CacheKey,
    shelf::{Found, weight},
};
use crate::storage::{Fence, Version};

/// A cache in the process, in front of a storage that is not: see
/// [`CacheHandleBuilder::with_near_cache`](super::CacheHandleBuilder::with_near_cache).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NearCache {
    bytes: u64,
    lag: Option<Duration>,
}

impl NearCache {
    /// Asks the storage at each lookup whether what it holds is still the present version: one trip,
    /// but no body. A purge anywhere is honoured by the next lookup anywhere.
    pub const fn strict(bytes: u64) -> Self {
        Self { bytes, lag: None }
    }

    /// Asks the storage every half `lag` whether anything was invalidated, and answers from memory in
    /// between. A lookup sees every purge, of any node, that returned more than `lag` before it; those
    /// made through its own [handle](super::CacheHandle) at once. If the storage does not answer in time, lookups are strict.
    ///
    /// After each purge, of whatever tag, every entry is asked for once more; where purges come more
    /// often than every `lag`, this is a strict near cache. It also is one on a storage in the process.
    pub const fn bounded(bytes: u64, lag: Duration) -> Self {
        Self { bytes, lag: Some(lag) }
    }
}

pub(super) struct Near {
    entries: Cache<CacheKey, Known, ByWeight>,
    lag: Option<Duration>,
    mirror: Mutex<Mirror>,
}

/// An entry as it was read.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) found: Found,
    pub(super) version: Version,
    /// When the record said that the entry is alive.
    pub(super) fence: Fence,
}

impl Known {
    /// Whether an entry of the same version in this state of the storage is the same entry. A
    /// server that has lost its data, or was replaced, may give a version again when its clock is
    /// behind.
    pub(super) fn is_of(&self, now: Fence) -> bool {
        self.fence.generation() == now.generation() && self.fence.epoch() == now.epoch()
    }
}

/// What is known of the record of tags.
struct Mirror {
    seen: Option<(Fence, Instant)>,
    /// What was asked for earlier may not know of a purge by this process.
    not_before: Instant,
    asking: bool,
}

#[derive(Clone)]
struct ByWeight;

impl Weighter<CacheKey, Known> for ByWeight {
    fn weight(&self, key: &CacheKey, known: &Known) -> u64 {
        (key.as_bytes().len() + weight(&known.found.stored)) as u64
    }
}

/// Whether the mirror should be asked to look again.
pub(super) enum Trust {
    /// The entry is alive, as of at most `lag` ago. `ask`: look at the record again soon.
    Alive { ask: bool },
    /// Ask the storage.
    Unknown,
}

impl Near {
    /// `local`: the storage can be asked without a trip, so it always is.
    pub(super) fn new(settings: NearCache, local: bool) -> Self {
        // Of the number of entries only an estimate is needed.
        let estimate = (settings.bytes / 2_048).clamp(64, 1 << 20) as usize;
        Self {
            entries: Cache::with_weighter(estimate, settings.bytes, ByWeight),
            lag: settings.lag.filter(|_| !local),
            mirror: Mutex::new(Mirror { seen: None, not_before: Instant::now(), asking: false }),
        }
    }

    fn mirror(&self) -> MutexGuard<'_, Mirror> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &CacheKey) -> Option<Known> {
        self.entries.get(key)
    }

    pub(super) fn insert(&self, key: &CacheKey, known: Known) {
        self.entries.insert(key.clone(), known);
    }

    pub(super) fn remove(&self, key: &CacheKey) {
        self.entries.remove(key);
    }

    /// Whether an entry may be served without asking.
    pub(super) fn trust(&self, known: &Known, now: Instant) -> Trust {
        let Some(lag) = self.lag else { return Trust::Unknown };
        let mut mirror = self.mirror();
        match mirror.seen {
            Some((fence, at)) if now.saturating_duration_since(at) <= lag => {
                if fence != known.fence {
                    return Trust::Unknown;
                }
                let due = now.saturating_duration_since(at) > lag / 2;
                let ask = due && !mirror.asking;
                mirror.asking |= ask;
                Trust::Alive { ask }
            }
            _ => Trust::Unknown,
        }
    }

    /// A lookup that was sent then has seen the record so.
    pub(super) fn observe(&self, fence: Fence, sent: Instant) {
        if self.lag.is_none() {
            return;
        }
        let mut mirror = self.mirror();
        if sent > mirror.not_before && mirror.seen.is_none_or(|(_, at)| at <= sent) {
            mirror.seen = Some((fence, sent));
        }
    }

    /// The look at the record that was asked for is done, or has failed.
    pub(super) fn asked(&self) {
        self.mirror().asking = false;
    }

    /// This process has purged something: what the mirror knows may be from before.
    pub(super) fn distrust(&self) {
        let mut mirror = self.mirror();
        mirror.seen = None;
        mirror.not_before = Instant::now();
    }
}
