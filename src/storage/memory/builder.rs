//! The bounds of a memory storage, and how full it is.

use std::{num::NonZero, sync::Arc, thread};

use tokio::time::Instant;

use super::{
    Inner, MemoryStorage,
    budget::{Bounds, Budget},
    counters::Counters,
    entries::Entries,
};
use crate::{
    clock,
    storage::{HashKey, erased::Shared},
};

const LEAST_BYTES: usize = 1 << 20;
const DEFAULT_BYTES: usize = 256 << 20;
const DEFAULT_COUNTERS: usize = 2_000_000;
const DEFAULT_ENTRIES: usize = 1_000_000;
const MOST_SHARDS: usize = 64;
/// A smaller storage has fewer shards, for each keeps a few blocks.
const BYTES_PER_SHARD: usize = 1 << 20;
/// The part of the bytes that is set aside for the shared counters of newcomers: one in 16, at least
/// 256 KiB.
const OVERFLOW_SHARE: usize = 16;
const LEAST_OVERFLOW: usize = 256 << 10;
/// For the list of namespaces and the first tags of each.
const RECORDS: usize = 4 << 10;

/// Sets the bounds of a [`MemoryStorage`].
///
/// # Examples
///
/// ```
/// use tower_keep::MemoryStorage;
///
/// let storage = MemoryStorage::builder().max_bytes(64 << 20).max_counters(500_000).build();
/// assert!(storage.stats().bytes < 64 << 20);
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct MemoryStorageBuilder {
    bytes: usize,
    counters: usize,
    entries: usize,
}

/// How full a [`MemoryStorage`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryStats {
    /// Bytes that the tables, values and tags have allocated, allocator overhead included.
    pub bytes: usize,
    /// Counters, with those that have expired and were not dropped yet.
    pub counters: usize,
    /// Entries, with those that have died and were not dropped yet.
    pub entries: usize,
    /// How many charges were ever decided on a counter that newcomers share, for want of room. If it
    /// rises, somebody floods the service with made-up identities or the bounds are too tight.
    pub overflowed: u64,
    #[doc(hidden)]
    pub most_work: usize,
}

impl MemoryStorageBuilder {
    pub(super) fn new() -> Self {
        Self { bytes: DEFAULT_BYTES, counters: DEFAULT_COUNTERS, entries: DEFAULT_ENTRIES }
    }

    /// The most bytes that tables, values and tags may have allocated: 256 MiB unless set, at least
    /// 1 MiB.
    ///
    /// Two things come on top for a while. A value is copied before it is stored, and what a reader
    /// still holds is the reader's. Invalidated tags are never refused: they count, at 160 bytes
    /// each, and what they exceed the bound by the next puts give up.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes.max(LEAST_BYTES);
        self
    }

    /// The most counters of identities: 2,000,000 unless set, about 160 MB.
    ///
    /// Identities beyond it share counters, as [`MemoryStorage`] says. By default the counters
    /// cannot take all of the bytes, so that a flood of made-up identities leaves room for sessions.
    pub fn max_counters(mut self, counters: usize) -> Self {
        self.counters = counters;
        self
    }

    /// The most entries: 1,000,000 unless set.
    pub fn max_entries(mut self, entries: usize) -> Self {
        self.entries = entries;
        self
    }

    /// The storage, empty. It allocates as it is filled.
    pub fn build(self) -> MemoryStorage {
        let threads = thread::available_parallelism().map_or(4, NonZero::get);
        let shards = (4 * threads)
            .min(self.bytes / BYTES_PER_SHARD)
            .clamp(1, MOST_SHARDS)
            .next_power_of_two();
        let overflow = (self.bytes / OVERFLOW_SHARE).max(LEAST_OVERFLOW);
        let inner = Inner {
            hash_key: HashKey::random(),
            started: Instant::now(),
            started_us: clock::since_epoch().as_micros() as u64,
            bounds: Bounds {
                bytes: Budget::new(self.bytes - overflow),
                counters: Budget::new(self.counters),
                entries: Budget::new(self.entries),
            },
            counters: Counters::new(shards, overflow),
            entries: Entries::new(shards),
            shared: Arc::default(),
        };
        let fixed = inner.counters.shards().bytes() + inner.entries.shards().bytes();
        inner.bounds.bytes.force(fixed + size_of::<Inner>() + size_of::<Shared>() + RECORDS);
        MemoryStorage { inner: Arc::new(inner) }
    }
}

impl Inner {
    pub(super) fn stats(&self) -> MemoryStats {
        let overflow = self.counters.overflow();
        MemoryStats {
            bytes: self.bounds.bytes.used() + overflow.bytes().used(),
            counters: self.bounds.counters.used(),
            entries: self.bounds.entries.used(),
            overflowed: overflow.charges(),
            most_work: self.counters.shards().most_work().max(self.entries.shards().most_work()),
        }
    }
}
