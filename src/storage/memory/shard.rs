//! The tables of a storage, each behind a lock of its own.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::table::{Digest, Table};

/// Tables among which keys are spread by their hash.
pub(super) struct Shards<T> {
    shards: Box<[Padded<T>]>,
}

/// A cache line pair for each, so that two locks never share one.
#[repr(align(128))]
struct Padded<T>(Mutex<Shard<T>>);

/// One table and its time.
pub(super) struct Shard<T> {
    pub(super) table: Table<T>,
    /// The latest time at which it was used. A thread reads the clock before it waits for the lock,
    /// so another may have come later and gone first; time must not run backwards for it.
    latest: u64,
}

impl<T> Shards<T> {
    /// `count` is a power of two.
    pub(super) fn new(count: usize) -> Self {
        let new = |_| Padded(Mutex::new(Shard { table: Table::new(), latest: 0 }));
        Self { shards: (0..count).map(new).collect() }
    }

    pub(super) fn len(&self) -> usize {
        self.shards.len()
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.shards)
    }

    /// Where a key lives. The table takes the other half of the hash.
    pub(super) fn index(&self, digest: &Digest) -> usize {
        (u128::from_le_bytes(*digest) >> 64) as usize & (self.shards.len() - 1)
    }

    /// Nothing that holds a lock can panic half way through a change, so a poisoned one is as good
    /// as any.
    pub(super) fn lock(&self, index: usize) -> MutexGuard<'_, Shard<T>> {
        self.shards[index].0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most work of any operation so far.
    pub(super) fn most_work(&self) -> usize {
        (0..self.len()).map(|i| self.lock(i).table.most_work()).max().unwrap_or(0)
    }
}

impl<T> Shard<T> {
    /// Begins an operation at this time, or at the latest so far.
    pub(super) fn begin(&mut self, now: u64) -> u64 {
        self.table.begin();
        self.latest = self.latest.max(now);
        self.latest
    }
}
