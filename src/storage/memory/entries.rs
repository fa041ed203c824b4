//! Values with a time to live.

use std::sync::{
    MutexGuard, RwLockReadGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;

use super::{
    budget::Bounds,
    item::{Item, NEVER, value_bytes},
    records::{Birth, ByNamespace, Records},
    shard::{Shard, Shards},
    table::Digest,
};
use crate::storage::{
    Error, ErrorKind, Get, Key, Lookup, Name, Put, PutOutcome, Result, TagDigest, Version, When,
    micros,
};

/// How many entries each operation looks at, to drop the dead.
const SWEEP: usize = 2;
/// The same for a put: more than one, or the dead would never be caught up with.
const SWEEP_TO_ADD: usize = 4;
/// How many entries a put may look at to evict some, and one more for each KiB that it needs.
const EVICT: usize = 32;
/// In how many shards room is looked for among the dead.
const SWEPT_SHARDS: usize = 4;
/// How often a put makes room before it gives up, since another may be faster to use it.
const TRIES: usize = 3;

pub(super) struct Entries {
    shards: Shards<Item>,
    records: Records,
    last_version: AtomicU64,
    turn: AtomicUsize,
}

type Guard<'a> = MutexGuard<'a, Shard<Item>>;

impl Entries {
    pub(super) fn new(shards: usize) -> Self {
        Self {
            shards: Shards::new(shards),
            records: Records::default(),
            last_version: AtomicU64::new(0),
            turn: AtomicUsize::new(0),
        }
    }

    pub(super) fn shards(&self) -> &Shards<Item> {
        &self.shards
    }

    pub(super) fn records(&self) -> &Records {
        &self.records
    }

    pub(super) fn get(
        &self,
        namespace: &Name,
        digest: &Digest,
        get: Get,
        now: u64,
        bounds: &Bounds,
    ) -> Lookup {
        let (mut shard, now) = self.begin(digest, now, SWEEP, bounds);
        let found = shard.table.find(digest);
        let records = if get.fence {
            Some(self.records.read_with(namespace))
        } else {
            self.records_of(&shard, found)
        };
        let fence = records
            .as_ref()
            .filter(|_| get.fence)
            .and_then(|records| Some(records.get(namespace)?.fence(0)));
        let found = live(&mut shard, found, records.as_deref(), now, bounds);
        let entry = found.map(|i| {
            let item = shard.table.item_mut(i);
            if let Some(touch) = get.touch {
                item.touch(touch, now);
            }
            item.used = true;
            item.entry(records.as_deref(), now).without_known(get.known)
        });
        Lookup::new(entry, fence)
    }

    /// Puts, once the arguments are checked.
    ///
    /// # Errors
    ///
    /// `Full`.
    pub(super) fn put(
        &self,
        key: &Key,
        digest: &Digest,
        put: &Put<'_>,
        tags: Box<[TagDigest]>,
        now: u64,
        bounds: &Bounds,
    ) -> Result<PutOutcome> {
        let saves = matches!(put.when, When::Version(_));
        if let (Some(_), Some(lifetime), false) = (put.fence, put.max_lifetime, saves) {
            self.records.keep_for(key.namespace(), micros(lifetime));
        }
        let mut birth = put
            .fence
            .filter(|_| !saves)
            .map(|fence| Box::new(Birth { namespace: key.namespace().clone(), fence, tags }));
        // A copy, because a slice would keep all of its buffer, and nobody could say how much that
        // is. Made before the lock is taken.
        let value = Bytes::copy_from_slice(&put.value);

        for _ in 0..TRIES {
            let (mut shard, now) = self.begin(digest, now, SWEEP_TO_ADD, bounds);
            let found = shard.table.find(digest);
            let records = match put.fence {
                Some(_) => Some(self.records.read()),
                None => self.records_of(&shard, found),
            };
            let found = live(&mut shard, found, records.as_deref(), now, bounds);
            let version = found.map(|i| shard.table.item(i).version);
            let allowed = match put.when {
                When::Always => true,
                When::Absent => version.is_none(),
                When::Version(expected) => version == Some(expected.as_u64()),
            };
            let admitted = put.fence.zip(records.as_ref()).is_none_or(|(fence, records)| {
                let tags = birth.as_ref().map_or(&[][..], |birth| &birth.tags);
                records.get(key.namespace()).is_some_and(|record| record.admits(&fence, tags))
            });
            if !allowed || !admitted {
                let entry = found.map(|i| shard.table.item(i).entry(records.as_deref(), now));
                return Ok(PutOutcome::Conflict(entry));
            }
            drop(records);

            let old = found.map_or(0, |i| shard.table.item(i).heap());
            let kept = found.filter(|_| saves).map(|i| shard.table.item(i));
            let new = value_bytes(&value)
                + kept.map_or(birth.as_deref(), |old| old.birth.as_deref()).map_or(0, Birth::heap);
            if let Err(short) = fund(&mut shard, found, old, new, bounds) {
                let own = self.shards.index(digest);
                drop(shard);
                if !self.make_room(own, short, now, bounds) {
                    break;
                }
                continue;
            }
            let version = self.next_version(now);
            let mut item = Item {
                value,
                version,
                written: now,
                expires: 0,
                deadline: put.max_lifetime.map_or(NEVER, |lifetime| now + micros(lifetime)),
                birth: birth.take(),
                used: false,
            };
            if let Some(old) = found.filter(|_| saves).map(|i| shard.table.item_mut(i)) {
                item.birth = old.birth.take();
                item.deadline = item.deadline.min(old.deadline);
            }
            item.expires = (now + micros(put.ttl)).min(item.deadline);
            store(&mut shard, *digest, found, item, put.evictable, bounds);
            return Ok(PutOutcome::Stored(Version::from_u64(version)));
        }
        Err(Error::new(ErrorKind::Full, "the memory storage has no room for the value"))
    }

    pub(super) fn delete(&self, digest: &Digest, when: When, now: u64, bounds: &Bounds) -> bool {
        let (mut shard, now) = self.begin(digest, now, SWEEP, bounds);
        let found = shard.table.find(digest);
        let records = self.records_of(&shard, found);
        let found = live(&mut shard, found, records.as_deref(), now, bounds);
        let matching = found.filter(|i| match when {
            When::Always => true,
            When::Absent => false,
            When::Version(version) => shard.table.item(*i).version == version.as_u64(),
        });
        matching.is_some_and(|i| remove(&mut shard, i, bounds))
    }

    /// Evicts what may be evicted, and drops some of the dead, until this many bytes and one entry
    /// fit or enough work was done. Says whether it may be worth to try again. The caller holds no
    /// lock.
    pub(super) fn make_room(&self, first: usize, short: usize, now: u64, bounds: &Bounds) -> bool {
        let mut steps = EVICT + short / 1_024;
        let mercy = steps / 2;
        let enough = || bounds.entries.fits(1) && bounds.bytes.fits(short);
        let mut freed = false;
        for i in 0..self.shards.len() {
            let mut shard = self.shards.lock((first + i) % self.shards.len());
            let now = shard.begin(now);
            if i < SWEPT_SHARDS {
                let before = shard.table.len();
                self.sweep(&mut shard, SWEEP_TO_ADD, now, bounds);
                freed |= shard.table.len() < before;
            }
            // One at least, for a free slot in the shard that wants one is room in any case.
            while steps > 0 && shard.table.evictable() > 0 && !(freed && enough()) {
                let spare = steps > mercy;
                freed |= evict_next(&mut shard, spare, bounds);
                steps -= 1;
            }
            if freed && (enough() || steps == 0) {
                break;
            }
        }
        freed
    }

    /// Makes room for a counter, beginning somewhere else each time.
    pub(super) fn make_room_for_counter(&self, short: usize, now: u64, bounds: &Bounds) {
        let first = self.turn.fetch_add(1, Relaxed) % self.shards.len();
        self.make_room(first, short, now, bounds);
    }

    fn begin(&self, digest: &Digest, now: u64, steps: usize, bounds: &Bounds) -> (Guard<'_>, u64) {
        let mut shard = self.shards.lock(self.shards.index(digest));
        let now = shard.begin(now);
        self.sweep(&mut shard, steps, now, bounds);
        (shard, now)
    }

    fn sweep(&self, shard: &mut Shard<Item>, steps: usize, now: u64, bounds: &Bounds) {
        let mut records = None;
        let dead = |item: &Item| {
            if item.birth.is_some() && records.is_none() {
                records = self.records.try_read();
            }
            item.is_expired(now) || records.as_deref().is_some_and(|records| item.is_void(records))
        };
        shard.table.sweep(steps, &bounds.bytes, dead, |item| bury(&item, bounds));
    }

    /// The records, if the entry that was found depends on them.
    fn records_of(
        &self,
        shard: &Shard<Item>,
        found: Option<usize>,
    ) -> Option<RwLockReadGuard<'_, ByNamespace>> {
        found.filter(|i| shard.table.item(*i).birth.is_some()).map(|_| self.records.read())
    }

    /// Rises with every put to the storage, and with time.
    fn next_version(&self, now: u64) -> u64 {
        let next = |last: u64| Some(now.max(last + 1));
        self.last_version.fetch_update(Relaxed, Relaxed, next).map_or(now, |last| now.max(last + 1))
    }
}

/// What was found, if it is alive. If it is dead it is dropped.
fn live(
    shard: &mut Shard<Item>,
    found: Option<usize>,
    records: Option<&ByNamespace>,
    now: u64,
    bounds: &Bounds,
) -> Option<usize> {
    let i = found?;
    let item = shard.table.item(i);
    if item.is_expired(now) || records.is_some_and(|records| item.is_void(records)) {
        remove(shard, i, bounds);
        return None;
    }
    Some(i)
}

/// Takes from the budgets what a put needs, or says how much is missing.
fn fund(
    shard: &mut Shard<Item>,
    found: Option<usize>,
    old: usize,
    new: usize,
    bounds: &Bounds,
) -> Result<(), usize> {
    if found.is_some() {
        return if bounds.bytes.exchange(old, new) { Ok(()) } else { Err(new - old) };
    }
    let short = new.saturating_add(shard.table.growth());
    if !bounds.entries.take(1) {
        return Err(short);
    }
    if !bounds.bytes.take(new) {
        bounds.entries.give(1);
        return Err(short);
    }
    if !shard.table.reserve(&bounds.bytes) {
        bounds.entries.give(1);
        bounds.bytes.give(new);
        return Err(short);
    }
    Ok(())
}

fn store(
    shard: &mut Shard<Item>,
    digest: Digest,
    found: Option<usize>,
    item: Item,
    evictable: bool,
    bounds: &Bounds,
) {
    match found {
        Some(i) if (i < shard.table.evictable()) == evictable => *shard.table.item_mut(i) = item,
        _ => {
            // A removal leaves room for one more.
            found.map(|i| shard.table.remove(i, &bounds.bytes));
            shard.table.insert(digest, item, evictable);
        }
    }
}

/// Second chance: what was used since the hand came by last is spared once, if there is time.
fn evict_next(shard: &mut Shard<Item>, spare: bool, bounds: &Bounds) -> bool {
    let Some(i) = shard.table.next_evictable() else { return false };
    let item = shard.table.item_mut(i);
    if spare && item.used {
        item.used = false;
        return false;
    }
    remove(shard, i, bounds)
}

fn remove(shard: &mut Shard<Item>, i: usize, bounds: &Bounds) -> bool {
    let removed = shard.table.remove(i, &bounds.bytes);
    removed.map(|item| bury(&item, bounds)).is_some()
}

fn bury(item: &Item, bounds: &Bounds) {
    bounds.entries.give(1);
    bounds.bytes.give(item.heap());
}
