//! A third party's backend, as naive as can be: one map behind one lock, on tokio's clock, with
//! compare-and-swap for counters. It can be told to break the contract in one way, to show that the
//! suite notices.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{task::yield_now, time::Instant};
use tower_keep::{
    Storage,
    conformance::Harness,
    storage::{
        Capabilities, Charge, Entry, Fence, Get, HashKey, Invalidation, Key, Lookup, Name, Put,
        PutOutcome, Record, Result, Spend, TagDigest, Tags, Verdict, Version, When, check_put,
        emulate,
    },
};

/// One way to break the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// An `Absent` put looks, lets others run, and writes.
    AbsentPutIsNotAtomic,
    /// A touch finds an expired entry and prolongs it.
    TouchResurrects,
    /// The first of several quotas is charged before the others are asked.
    AcquireBurnsTheFirst,
    /// A fill is given a new fence when it arrives.
    LateFillSurvivesPurge,
    /// A `Version` put is given a new fence, and asks nothing of the old.
    SaveSurvivesEndAll,
    /// Tags that nothing can carry are forgotten, and the floor stays where it is.
    TrimmingWithoutFloor,
    /// A put makes the record that its fence speaks of.
    PutRecreatesRecord,
    /// A refund goes to the window of now.
    RefundIntoAnotherWindow,
    /// A key that was deleted counts from one again.
    VersionDoesNotRise,
    /// A version that is known is confirmed without asking whether it was invalidated.
    KnownSkipsTheRecord,
    /// A lookup looks, lets others run, and takes the fence.
    FenceIsTakenLater,
    /// Of an invalidation only the first three tags count.
    InvalidatesThreeTags,
    /// A soft invalidation of a tag replaces what is known of a hard one.
    SoftForgetsHard,
    /// Of an entry only the first sixteen tags count.
    JudgesSixteenTags,
    /// The same, for a version that is known.
    KnownJudgesSixteenTags,
}

/// Makes naive storages, all with the same sabotage, on the paused clock of tokio.
pub(crate) struct NaiveHarness(pub(crate) Option<Sabotage>);

impl Harness for NaiveHarness {
    type Storage = Naive;

    async fn storage(&self) -> Naive {
        Naive::new(self.0)
    }

    async fn advance(&self, by: Duration) {
        tokio::time::advance(by).await;
    }

    fn tick(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn tolerance(&self) -> Duration {
        Duration::ZERO
    }

    async fn lose_tags(&self, storage: &Naive, namespace: &Name) -> bool {
        storage.tables().records.remove(namespace);
        true
    }
}

#[derive(Debug)]
pub(crate) struct Naive {
    sabotage: Option<Sabotage>,
    hash_key: HashKey,
    started: Instant,
    started_us: u64,
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    slots: HashMap<Key, Slot>,
    records: HashMap<Name, Record>,
    last_version: u64,
    /// What was ever invalidated, to forget it wrongly.
    purges: Vec<(u64, TagDigest, Invalidation)>,
    longest: u64,
}

#[derive(Debug, Clone)]
struct Slot {
    entry: Entry,
    put: u64,
    end: u64,
    deadline: Option<u64>,
    fence: Option<Fence>,
    tags: Vec<TagDigest>,
}

fn micros(duration: Duration) -> u64 {
    duration.min(Duration::from_secs(100 * 366 * 86_400)).as_nanos().div_ceil(1_000) as u64
}

fn random() -> u128 {
    u128::from_be_bytes(HashKey::random().digest(&[]))
}

impl Naive {
    fn new(sabotage: Option<Sabotage>) -> Self {
        Self {
            sabotage,
            hash_key: HashKey::random(),
            started: Instant::now(),
            started_us: SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64,
            tables: Mutex::default(),
        }
    }

    fn has(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    fn now(&self) -> u64 {
        self.started_us + self.started.elapsed().as_micros() as u64
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap()
    }

    fn digests(&self, namespace: &Name, tags: &[tower_keep::storage::Tag]) -> Vec<TagDigest> {
        tags.iter().map(|tag| tag.digest(namespace, &self.hash_key)).collect()
    }
}

impl Tables {
    fn live(&self, key: &Key, now: u64) -> Option<&Slot> {
        let record = self.records.get(key.namespace());
        self.slots.get(key).filter(|slot| {
            now < slot.end
                && slot.fence.is_none_or(|fence| {
                    record.is_some_and(|record| record.admits(&fence, &slot.tags))
                })
        })
    }

    fn entry(&self, key: &Key, now: u64) -> Option<Entry> {
        let slot = self.live(key, now)?;
        let mut entry = slot.entry.clone();
        entry.age = Duration::from_micros(now - slot.put);
        entry.ttl = Duration::from_micros(slot.end - now);
        entry.life_left = slot.deadline.map(|deadline| Duration::from_micros(deadline - now));
        entry.stale = slot
            .fence
            .is_some_and(|fence| self.records[key.namespace()].is_stale(&fence, &slot.tags));
        Some(entry)
    }

    fn record(&mut self, namespace: &Name) -> &mut Record {
        self.records.entry(namespace.clone()).or_insert_with(|| Record::new(random()))
    }

    /// The record as it would be had nothing but the last purges happened.
    fn forget_without_floor(&mut self, namespace: &Name, now: u64) {
        self.purges.retain(|(at, ..)| at + self.longest >= now);
        let generation = self.record(namespace).fence(0).generation();
        let mut record = Record::new(generation);
        record.keep_for(u64::MAX / 2);
        for (at, tag, how) in &self.purges {
            record.invalidate(*at, &[*tag], *how);
        }
        self.records.insert(namespace.clone(), record);
    }
}

fn holds(when: When, current: Option<Version>) -> bool {
    match when {
        When::Always => true,
        When::Absent => current.is_none(),
        When::Version(version) => current == Some(version),
    }
}

impl Storage for Naive {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        let now = self.now();
        if self.has(Sabotage::FenceIsTakenLater) && get.touch.is_none() {
            let entry = self.tables().entry(key, now);
            yield_now().await;
            let fence = get.fence.then(|| self.tables().record(key.namespace()).fence(0));
            return Ok(Lookup::new(entry.map(|entry| entry.without_known(get.known)), fence));
        }
        let mut tables = self.tables();
        let touchable = tables.live(key, now).is_some() || self.has(Sabotage::TouchResurrects);
        if let (Some(touch), true) = (get.touch, touchable)
            && let Some(slot) = tables.slots.get_mut(key)
        {
            let end = (now + micros(touch.ttl)).min(slot.deadline.unwrap_or(u64::MAX));
            if end > slot.end + micros(touch.slack) {
                slot.end = end;
            }
        }
        let fence = get.fence.then(|| tables.record(key.namespace()).fence(0));
        let mut entry = tables.entry(key, now);
        if self.has(Sabotage::KnownJudgesSixteenTags)
            && entry.is_none()
            && get.known.is_some()
            && let Some(slot) = tables.slots.get_mut(key)
            && slot.tags.len() > 16
        {
            let tags = slot.tags.clone();
            slot.tags.truncate(16);
            entry = tables.entry(key, now);
            tables.slots.get_mut(key).unwrap().tags = tags;
        }
        if self.has(Sabotage::KnownSkipsTheRecord) {
            let there = tables.slots.get(key).filter(|slot| now < slot.end);
            let known = there.filter(|slot| get.known == Some(slot.entry.version));
            entry = known.map(|slot| slot.entry.clone()).or(entry);
        }
        Ok(Lookup::new(entry.map(|entry| entry.without_known(get.known)), fence))
    }

    async fn put(&self, key: &Key, mut put: Put<'_>) -> Result<PutOutcome> {
        check_put(&put)?;
        let now = self.now();
        let mut tags = self.digests(key.namespace(), put.tags);
        if self.has(Sabotage::JudgesSixteenTags) {
            tags.truncate(16);
        }
        if self.has(Sabotage::AbsentPutIsNotAtomic) && put.when == When::Absent {
            let there = self.tables().entry(key, now);
            if there.is_some() {
                return Ok(PutOutcome::Conflict(there));
            }
            yield_now().await;
            put.when = When::Always;
        }
        let mut tables = self.tables();
        if let Some(fence) = put.fence {
            let record = tables.records.get(key.namespace());
            if self.has(Sabotage::LateFillSurvivesPurge) {
                let newer = record.map(|record| record.fence(0));
                put.fence =
                    newer.filter(|newer| newer.generation() == fence.generation()).or(put.fence);
            }
            if self.has(Sabotage::PutRecreatesRecord) && record.is_none() {
                let record = Record::new(fence.generation());
                tables.records.insert(key.namespace().clone(), record);
            }
        }
        let renews = self.has(Sabotage::SaveSurvivesEndAll);
        let current = if renews && matches!(put.when, When::Version(_)) {
            tables.slots.get(key).filter(|slot| now < slot.end).map(|slot| slot.entry.version)
        } else {
            tables.live(key, now).map(|slot| slot.entry.version)
        };
        let record = tables.records.get(key.namespace());
        let admitted =
            put.fence.is_none_or(|fence| record.is_some_and(|record| record.admits(&fence, &tags)));
        if !admitted || !holds(put.when, current) {
            return Ok(PutOutcome::Conflict(tables.entry(key, now)));
        }
        let limit = put.max_lifetime.map(|life| now + micros(life));
        let (deadline, fence, tags) = match (put.when, tables.slots.get(key)) {
            (When::Version(_), Some(old)) => {
                let newer = record.map(|record| record.fence(0)).filter(|_| renews);
                let deadline = old.deadline.into_iter().chain(limit).min();
                (deadline, old.fence.map(|fence| newer.unwrap_or(fence)), old.tags.clone())
            }
            _ => (limit, put.fence, tags),
        };
        if let (Some(_), Some(deadline)) = (fence, deadline) {
            tables.record(key.namespace()).keep_for(deadline - now);
            tables.longest = tables.longest.max(deadline - now);
        }
        tables.last_version += 1;
        let version = Version::from_u64(if self.has(Sabotage::VersionDoesNotRise) {
            tables.slots.get(key).map_or(1, |old| old.entry.version.as_u64() + 1)
        } else {
            tables.last_version
        });
        let slot = Slot {
            entry: Entry::new(put.value, version, Duration::ZERO, Duration::ZERO),
            put: now,
            end: (now + micros(put.ttl)).min(deadline.unwrap_or(u64::MAX)),
            deadline,
            fence,
            tags,
        };
        tables.slots.insert(key.clone(), slot);
        Ok(PutOutcome::Stored(version))
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        let now = self.now();
        let mut tables = self.tables();
        let current = tables.live(key, now).map(|slot| slot.entry.version);
        let deletes = current.is_some() && holds(when, current);
        if deletes {
            tables.slots.remove(key);
        }
        Ok(deletes)
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        let now = self.now();
        let mut tables = self.tables();
        match tags {
            Tags::All => {
                tables.records.insert(namespace.clone(), Record::new(random()));
            }
            Tags::Any(tags) => {
                let mut digests = self.digests(namespace, tags);
                if self.has(Sabotage::InvalidatesThreeTags) {
                    digests.truncate(3);
                }
                if self.has(Sabotage::SoftForgetsHard) && how == Invalidation::Soft {
                    let fence = tables.record(namespace).fence(0);
                    let mut record = Record::new(fence.generation());
                    record.keep_for(u64::MAX / 2);
                    tables.purges.retain(|(_, tag, _)| !digests.contains(tag));
                    for (at, tag, how) in tables.purges.clone() {
                        record.invalidate(at, &[tag], how);
                    }
                    record.invalidate(fence.stamp(), &[], Invalidation::Hard);
                    tables.records.insert(namespace.clone(), record);
                }
                tables.record(namespace).invalidate(now, &digests, how);
                if self.has(Sabotage::SoftForgetsHard) {
                    let stamp = tables.record(namespace).fence(0).stamp();
                    tables.purges.extend(digests.iter().map(|tag| (stamp, *tag, how)));
                }
                if self.has(Sabotage::TrimmingWithoutFloor) {
                    let stamp = tables.record(namespace).fence(0).stamp();
                    tables.purges.extend(digests.into_iter().map(|tag| (stamp, tag, how)));
                    tables.forget_without_floor(namespace, now);
                }
            }
        }
        Ok(())
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        match (self.sabotage, charges) {
            (Some(Sabotage::AcquireBurnsTheFirst), [first, rest @ ..]) if !rest.is_empty() => {
                let mut verdicts = emulate::acquire_at(self, &[*first], || self.now()).await?;
                verdicts.extend(emulate::acquire_at(self, rest, || self.now()).await?);
                return Ok(verdicts);
            }
            (Some(Sabotage::RefundIntoAnotherWindow), [charge]) => {
                if let Spend::Refund { units, receipt } = charge.spend {
                    // A receipt of now, once to undo the take that made it, once for the refund.
                    let units = units.min(receipt.units());
                    let take = Charge::new(charge.key, charge.quota, Spend::Force(units));
                    let taken = emulate::acquire_at(self, &[take], || self.now()).await?[0].receipt;
                    if let Some(receipt) = taken {
                        let refund = Spend::Refund { units, receipt };
                        let refund = Charge::new(charge.key, charge.quota, refund);
                        emulate::acquire_at(self, &[refund], || self.now()).await?;
                        return emulate::acquire_at(self, &[refund], || self.now()).await;
                    }
                }
            }
            _ => {}
        }
        emulate::acquire_at(self, charges, || self.now()).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new().with_local()
    }

    fn erase(self) -> tower_keep::storage::AnyStorage {
        tower_keep::storage::AnyStorage::new(self)
    }
}
