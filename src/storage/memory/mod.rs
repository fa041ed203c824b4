//! State in this process.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Capabilities, Charge, Entry, Fence, Get, HashKey, Invalidation, Key, Lookup, Name, Put,
    PutOutcome, Record, Result, Storage, TagDigest, Tags, Verdict, Version, When, check_charges,
    check_put, micros,
};
use crate::{clock, quota::State};

/// State in this process: the embedded default.
///
/// Clones share one state. Time is [`tokio::time::Instant`], so that tests under
/// `#[tokio::test(start_paused = true)]` drive every expiry with [`tokio::time::advance`]; only
/// calendar quotas look at the wall clock, once, when the storage is made.
#[derive(Clone)]
pub struct MemoryStorage {
    inner: Arc<Inner>,
}

struct Inner {
    hash_key: HashKey,
    started: Instant,
    started_us: u64,
    state: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    counters: HashMap<[u8; 16], (State, u64)>,
    entries: HashMap<[u8; 16], Slot>,
    records: HashMap<Name, Record>,
    last_version: u64,
}

struct Slot {
    value: Bytes,
    version: u64,
    written: u64,
    expires: u64,
    deadline: Option<u64>,
    fence: Option<Fence>,
    tags: Box<[TagDigest]>,
}

impl MemoryStorage {
    /// An empty storage.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                hash_key: HashKey::random(),
                started: Instant::now(),
                started_us: clock::since_epoch().as_micros() as u64,
                state: Mutex::default(),
            }),
        }
    }

    fn now(&self) -> u64 {
        self.inner.started_us + self.inner.started.elapsed().as_micros() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStorage").finish_non_exhaustive()
    }
}

impl Slot {
    fn entry(&self, now: u64, record: Option<&Record>) -> Entry {
        let mut entry = Entry::new(
            self.value.clone(),
            Version::from_u64(self.version),
            Duration::from_micros(now - self.written),
            Duration::from_micros(self.expires - now),
        );
        entry.life_left = self.deadline.map(|deadline| Duration::from_micros(deadline - now));
        entry.stale = self
            .fence
            .zip(record)
            .is_some_and(|(fence, record)| record.is_stale(&fence, &self.tags));
        entry
    }
}

impl Tables {
    fn live(&mut self, namespace: &Name, digest: &[u8; 16], now: u64) -> Option<&mut Slot> {
        let record = self.records.get(namespace);
        let slot = self.entries.get_mut(digest)?;
        let admitted = slot
            .fence
            .is_none_or(|fence| record.is_some_and(|record| record.admits(&fence, &slot.tags)));
        (admitted && now < slot.expires).then_some(slot)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Storage for MemoryStorage {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        let (now, digest) = (self.now(), key.digest(&self.inner.hash_key));
        let mut tables = self.lock();
        if let Some(slot) = tables.live(key.namespace(), &digest, now)
            && let Some(touch) = get.touch
        {
            let expires = (now + micros(touch.ttl)).min(slot.deadline.unwrap_or(u64::MAX));
            if expires > slot.expires + micros(touch.slack) {
                slot.expires = expires;
            }
        }
        let fence = get.fence.then(|| {
            let new = || Record::new(u128::from_be_bytes(HashKey::random().digest(&[])));
            tables.records.entry(key.namespace().clone()).or_insert_with(new).fence(0)
        });
        let entry = tables
            .live(key.namespace(), &digest, now)
            .is_some()
            .then(|| tables.entries[&digest].entry(now, tables.records.get(key.namespace())));
        Ok(Lookup::new(entry, fence))
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        check_put(&put)?;
        let (now, digest) = (self.now(), key.digest(&self.inner.hash_key));
        let tags: Box<[_]> =
            put.tags.iter().map(|tag| tag.digest(key.namespace(), &self.inner.hash_key)).collect();
        let mut tables = self.lock();
        let current = tables.live(key.namespace(), &digest, now).map(|slot| slot.version);
        let allowed = match put.when {
            When::Always => true,
            When::Absent => current.is_none(),
            When::Version(version) => current == Some(version.as_u64()),
        };
        let admitted = put.fence.is_none_or(|fence| {
            tables.records.get(key.namespace()).is_some_and(|record| record.admits(&fence, &tags))
        });
        if !allowed || !admitted {
            let record = tables.records.get(key.namespace());
            let entry = current.map(|_| tables.entries[&digest].entry(now, record));
            return Ok(PutOutcome::Conflict(entry));
        }
        let version = now.max(tables.last_version + 1);
        tables.last_version = version;
        let limit = put.max_lifetime.map(|lifetime| now + micros(lifetime));
        let old = match put.when {
            When::Version(_) => tables.entries.remove(&digest),
            _ => None,
        };
        let (deadline, fence, tags) = match old {
            Some(old) => (old.deadline.into_iter().chain(limit).min(), old.fence, old.tags),
            None => (limit, put.fence, tags),
        };
        if let (Some(fence), Some(deadline)) = (fence, deadline) {
            debug_assert_eq!(fence.epoch(), 0);
            if let Some(record) = tables.records.get_mut(key.namespace()) {
                record.keep_for(deadline - now);
            }
        }
        let expires = (now + micros(put.ttl)).min(deadline.unwrap_or(u64::MAX));
        let slot = Slot { value: put.value, version, written: now, expires, deadline, fence, tags };
        tables.entries.insert(digest, slot);
        Ok(PutOutcome::Stored(Version::from_u64(version)))
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        let (now, digest) = (self.now(), key.digest(&self.inner.hash_key));
        let mut tables = self.lock();
        let current = tables.live(key.namespace(), &digest, now).map(|slot| slot.version);
        let allowed = match when {
            When::Always => current.is_some(),
            When::Absent => false,
            When::Version(version) => current == Some(version.as_u64()),
        };
        if allowed {
            tables.entries.remove(&digest);
        }
        Ok(allowed)
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        let now = self.now();
        let new = || Record::new(u128::from_be_bytes(HashKey::random().digest(&[])));
        let mut tables = self.lock();
        match tags {
            Tags::All => {
                tables.records.insert(namespace.clone(), new());
            }
            Tags::Any(tags) => {
                let tags: Vec<_> =
                    tags.iter().map(|tag| tag.digest(namespace, &self.inner.hash_key)).collect();
                let record = tables.records.entry(namespace.clone()).or_insert_with(new);
                record.invalidate(now, &tags, how);
            }
        }
        Ok(())
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        check_charges(charges)?;
        let now = self.now();
        let mut tables = self.lock();
        let digests: Vec<_> =
            charges.iter().map(|charge| charge.key.digest(&self.inner.hash_key)).collect();
        let states: Vec<_> = digests
            .iter()
            .map(|digest| {
                tables.counters.get(digest).filter(|(_, end)| now < *end).map(|(state, _)| state)
            })
            .collect();
        let steps: Vec<_> = charges
            .iter()
            .zip(&states)
            .map(|(charge, state)| charge.quota.step(*state, now, charge.spend))
            .collect();
        if charges.iter().zip(&steps).any(|(charge, step)| charge.enforce && !step.verdict.allowed)
        {
            let judged = charges
                .iter()
                .zip(&states)
                .map(|(charge, state)| charge.quota.judge(*state, now, charge.spend));
            return Ok(judged.collect());
        }
        let mut verdicts = Vec::with_capacity(steps.len());
        for ((digest, charge), step) in digests.into_iter().zip(charges).zip(steps) {
            if charge.spend.changes() && step.verdict.allowed {
                tables.counters.insert(digest, (step.state, now + step.keep_us));
            }
            verdicts.push(step.verdict);
        }
        Ok(verdicts)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new().with_local().with_atomic_across_identities()
    }

    fn erase(self) -> super::AnyStorage {
        super::AnyStorage::new(self)
    }
}
