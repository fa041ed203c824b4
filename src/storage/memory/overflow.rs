//! What newcomers share when there is no room for a counter of their own.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use super::{
    budget::{Budget, allocation},
    counters::Counter,
};
use crate::storage::{HashKey, Key, Name};

/// How many buckets the identities of one namespace and detail share.
pub(super) const BUCKETS: usize = 1_024;

/// Counters that belong to nobody alone. They have a budget of their own, which nothing else can
/// use up: it must be there when everything else is full.
pub(super) struct Overflow {
    budget: Budget,
    /// When the last bucket will have drained: until then newcomers look there first.
    until: AtomicU64,
    charges: AtomicU64,
    warned: AtomicBool,
    planes: Mutex<Vec<Plane>>,
}

/// The buckets of one namespace and detail.
pub(super) struct Plane {
    namespace: Name,
    detail: Name,
    buckets: Box<[Option<Counter>]>,
}

/// Which bucket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    plane: usize,
    bucket: usize,
}

/// The buckets, locked. Taken after the locks of all shards.
pub(super) struct Locked<'a> {
    overflow: &'a Overflow,
    planes: MutexGuard<'a, Vec<Plane>>,
}

impl Overflow {
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            budget: Budget::new(bytes),
            until: AtomicU64::new(0),
            charges: AtomicU64::new(0),
            warned: AtomicBool::new(false),
            planes: Mutex::default(),
        }
    }

    pub(super) fn is_in_use(&self, now: u64) -> bool {
        now < self.until.load(Relaxed)
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        let planes = self.planes.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { overflow: self, planes }
    }

    /// How many charges were decided here.
    pub(super) fn charges(&self) -> u64 {
        self.charges.load(Relaxed)
    }

    pub(super) fn bytes(&self) -> &Budget {
        &self.budget
    }

    /// Counts charges that were decided here.
    pub(super) fn count(&self, charges: usize) {
        if charges == 0 {
            return;
        }
        self.charges.fetch_add(charges as u64, Relaxed);
        if !self.warned.swap(true, Relaxed) {
            #[cfg(feature = "tracing")]
            tracing::warn!(
                "the memory storage is full: new rate-limit identities share {BUCKETS} counters \
                 until others have expired"
            );
        }
    }
}

impl Locked<'_> {
    /// The bucket of a key, if those of its namespace and detail are there.
    pub(super) fn find(&self, key: &Key, hash_key: &HashKey) -> Option<Place> {
        let plane = self
            .planes
            .iter()
            .position(|p| p.detail == *key.detail() && p.namespace == *key.namespace())?;
        // By network prefix where there is one: who makes up addresses in one network shares with
        // that network, not with everybody. Keyed, so that nobody can choose whom to meet.
        let digest = match key.identity().group() {
            0 => hash_key.digest(&[b"overflow", key.identity().as_bytes()]),
            group => hash_key.digest(&[b"overflow group", &group.to_be_bytes()]),
        };
        let bucket = u128::from_le_bytes(digest) as usize % BUCKETS;
        Some(Place { plane, bucket })
    }

    /// The bucket of a key, made if there is room.
    pub(super) fn find_or_make(&mut self, key: &Key, hash_key: &HashKey) -> Option<Place> {
        if let Some(place) = self.find(key, hash_key) {
            return Some(place);
        }
        let bytes = allocation(BUCKETS * size_of::<Option<Counter>>()) + 2 * size_of::<Plane>();
        if !self.overflow.budget.take(bytes) {
            return None;
        }
        self.planes.push(Plane {
            namespace: key.namespace().clone(),
            detail: key.detail().clone(),
            buckets: (0..BUCKETS).map(|_| None).collect(),
        });
        self.find(key, hash_key)
    }

    /// What the bucket holds, dead or alive.
    pub(super) fn get(&self, place: Place) -> Option<&Counter> {
        self.planes[place.plane].buckets[place.bucket].as_ref()
    }

    pub(super) fn set(&mut self, place: Place, counter: Counter) {
        self.overflow.until.fetch_max(counter.expires, Relaxed);
        self.planes[place.plane].buckets[place.bucket] = Some(counter);
    }
}
