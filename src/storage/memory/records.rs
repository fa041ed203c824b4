//! The records of invalidated tags, one per namespace.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use super::budget::{Budget, allocation};
use crate::storage::{Fence, HashKey, Invalidation, Name, Record, TagDigest};

/// What remembering one tag costs, with the two trees at half of what their nodes can hold.
const TAG: usize = 160;

/// Read while an entry with a fence is judged, under the lock of its shard; written by
/// invalidations, which hold no other lock. So nobody who holds this one waits for a shard.
#[derive(Default)]
pub(super) struct Records {
    records: RwLock<ByNamespace>,
}

pub(super) type ByNamespace = HashMap<Name, Record, BuildHasherDefault<NameHasher>>;

/// Every judgement looks its record up, so this is quick. Namespaces are named by the application,
/// so nobody can make up names that collide.
#[derive(Default)]
pub(super) struct NameHasher(u64);

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15; // 2^64 over the golden ratio
        let (words, rest) = bytes.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        for word in words.iter().chain([&last]) {
            self.0 = (self.0 ^ u64::from_le_bytes(*word)).wrapping_mul(ODD).rotate_left(32);
        }
    }

    /// The end of a string, which says nothing of a name that is the whole key.
    fn write_u8(&mut self, _: u8) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What ties an entry to the record of its namespace.
pub(super) struct Birth {
    pub(super) namespace: Name,
    pub(super) fence: Fence,
    pub(super) tags: Box<[TagDigest]>,
}

impl Birth {
    /// What it has allocated, itself included.
    pub(super) fn heap(&self) -> usize {
        allocation(size_of::<Self>()) + allocation(size_of_val(&*self.tags))
    }

    pub(super) fn is_admitted(&self, records: &ByNamespace) -> bool {
        records.get(&self.namespace).is_some_and(|record| record.admits(&self.fence, &self.tags))
    }

    pub(super) fn is_stale(&self, records: &ByNamespace) -> bool {
        records.get(&self.namespace).is_some_and(|record| record.is_stale(&self.fence, &self.tags))
    }
}

impl Records {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, ByNamespace> {
        self.records.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For work that can as well be done another time.
    pub(super) fn try_read(&self) -> Option<RwLockReadGuard<'_, ByNamespace>> {
        self.records.try_read().ok()
    }

    /// The records, among which there is one of this namespace.
    pub(super) fn read_with(&self, namespace: &Name) -> RwLockReadGuard<'_, ByNamespace> {
        let records = self.read();
        if records.contains_key(namespace) {
            return records;
        }
        drop(records);
        self.write().entry(namespace.clone()).or_insert_with(new);
        self.read()
    }

    /// Remembers tags for at least as long as an entry may live that is about to be put.
    pub(super) fn keep_for(&self, namespace: &Name, life: u64) {
        let enough = |record: &Record| record.longest_life() >= life;
        if !self.read().get(namespace).is_none_or(enough)
            && let Some(record) = self.write().get_mut(namespace)
        {
            record.keep_for(life);
        }
    }

    /// Ends all that has a fence.
    pub(super) fn renew(&self, namespace: &Name, bytes: &Budget) {
        if let Some(old) = self.write().insert(namespace.clone(), new()) {
            bytes.give(old.len() * TAG);
        }
    }

    /// Never refused for want of room: a purge that does nothing is worse than a few bytes more.
    pub(super) fn invalidate(
        &self,
        namespace: &Name,
        now: u64,
        tags: &[TagDigest],
        how: Invalidation,
        bytes: &Budget,
    ) {
        let mut records = self.write();
        let record = records.entry(namespace.clone()).or_insert_with(new);
        let before = record.len();
        record.invalidate(now, tags, how);
        bytes.force(record.len() * TAG);
        bytes.give(before * TAG);
    }

    fn write(&self) -> RwLockWriteGuard<'_, ByNamespace> {
        self.records.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A record under a name that no other ever had.
fn new() -> Record {
    Record::new(u128::from_be_bytes(HashKey::random().digest(&[])))
}
