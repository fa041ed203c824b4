//! The contract as plain structures on a clock that stands still: slow, small, easy to believe.

use std::{collections::HashMap, time::Duration};

use crate::{
    quota::State,
    storage::{
        Charge, Entry, Fence, Get, Invalidation, Key, Lookup, Name, Put, PutOutcome, Record,
        Result, TagDigest, Tags, Verdict, Version, When, check_charges, check_put, micros,
    },
};

#[derive(Debug, Default)]
pub(super) struct Model {
    now: u64,
    entries: HashMap<Key, Slot>,
    records: HashMap<Name, Record>,
    counters: HashMap<Key, (State, u64)>,
    versions: u64,
    generations: u128,
}

#[derive(Debug, Clone)]
struct Slot {
    put: u64,
    end: u64,
    deadline: Option<u64>,
    fence: Option<Fence>,
    tags: Vec<TagDigest>,
    entry: Entry,
}

/// Tags are short here: their bytes are their digest.
fn digest(tags: &[crate::storage::Tag]) -> Vec<TagDigest> {
    tags.iter()
        .map(|tag| {
            let mut digest = [0; 16];
            digest[..tag.as_bytes().len()].copy_from_slice(tag.as_bytes());
            digest
        })
        .collect()
}

impl Model {
    pub(super) fn new() -> Self {
        // A whole second of the year 2023.
        Self { now: 1_700_000_000_000_000, ..Self::default() }
    }

    pub(super) fn advance(&mut self, by: Duration) {
        self.now += micros(by);
    }

    fn slot(&self, key: &Key) -> Option<&Slot> {
        let slot = self.entries.get(key)?;
        let record = self.records.get(key.namespace());
        let admitted = match slot.fence {
            Some(fence) => record.is_some_and(|record| record.admits(&fence, &slot.tags)),
            None => true,
        };
        (admitted && self.now < slot.end).then_some(slot)
    }

    fn entry(&self, key: &Key) -> Option<Entry> {
        let slot = self.slot(key)?;
        let mut entry = slot.entry.clone();
        entry.age = Duration::from_micros(self.now - slot.put);
        entry.ttl = Duration::from_micros(slot.end - self.now);
        entry.life_left = slot.deadline.map(|end| Duration::from_micros(end - self.now));
        entry.stale = slot
            .fence
            .is_some_and(|fence| self.records[key.namespace()].is_stale(&fence, &slot.tags));
        Some(entry)
    }

    fn holds(&self, key: &Key, when: When) -> bool {
        let version = self.slot(key).map(|slot| slot.entry.version);
        match when {
            When::Always => true,
            When::Absent => version.is_none(),
            When::Version(wanted) => version == Some(wanted),
        }
    }

    fn record(&mut self, namespace: &Name) -> &mut Record {
        let generations = &mut self.generations;
        self.records.entry(namespace.clone()).or_insert_with(|| {
            *generations += 1;
            Record::new(*generations)
        })
    }

    /// Whether there is a record of tags that may forget one as old as this.
    pub(super) fn may_forget_within(&self, namespace: &Name, life: Duration) -> bool {
        self.records.get(namespace).is_some_and(|record| record.longest_life() < micros(life))
    }

    pub(super) fn get(&mut self, key: &Key, get: Get) -> Lookup {
        if let (Some(slot), Some(touch)) = (self.slot(key), get.touch) {
            let end = (self.now + micros(touch.ttl)).min(slot.deadline.unwrap_or(u64::MAX));
            if end > slot.end + micros(touch.slack) {
                self.entries.get_mut(key).expect("it was there").end = end;
            }
        }
        let fence = get.fence.then(|| self.record(key.namespace()).fence(0));
        Lookup::new(self.entry(key).map(|entry| entry.without_known(get.known)), fence)
    }

    pub(super) fn put(&mut self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        check_put(&put)?;
        let tags = digest(put.tags);
        let record = self.records.get(key.namespace());
        let admitted = match put.fence {
            Some(fence) => record.is_some_and(|record| record.admits(&fence, &tags)),
            None => true,
        };
        if !admitted || !self.holds(key, put.when) {
            return Ok(PutOutcome::Conflict(self.entry(key)));
        }
        let limit = put.max_lifetime.map(|life| self.now + micros(life));
        let (deadline, fence, tags) = match (put.when, self.slot(key)) {
            (When::Version(_), Some(old)) => {
                let deadline = old.deadline.into_iter().chain(limit).min();
                (deadline, old.fence, old.tags.clone())
            }
            _ => (limit, put.fence, tags),
        };
        if let (Some(_), Some(deadline)) = (fence, deadline) {
            let life = deadline - self.now;
            self.record(key.namespace()).keep_for(life);
        }
        self.versions += 1;
        let version = Version::from_u64(self.versions);
        let slot = Slot {
            put: self.now,
            end: (self.now + micros(put.ttl)).min(deadline.unwrap_or(u64::MAX)),
            deadline,
            fence,
            tags,
            entry: Entry::new(put.value, version, Duration::ZERO, Duration::ZERO),
        };
        self.entries.insert(key.clone(), slot);
        Ok(PutOutcome::Stored(version))
    }

    pub(super) fn delete(&mut self, key: &Key, when: When) -> bool {
        let deletes = self.slot(key).is_some() && self.holds(key, when);
        if deletes {
            self.entries.remove(key);
        }
        deletes
    }

    pub(super) fn invalidate(&mut self, namespace: &Name, tags: Tags<'_>, how: Invalidation) {
        let now = self.now;
        match tags {
            Tags::Any(tags) => self.record(namespace).invalidate(now, &digest(tags), how),
            Tags::All => {
                self.records.remove(namespace);
                self.record(namespace);
            }
        }
    }

    pub(super) fn acquire(&mut self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        check_charges(charges)?;
        self.counters.retain(|_, (_, end)| self.now < *end);
        let state = |key: &Key| self.counters.get(key).map(|(state, _)| state);
        let steps: Vec<_> = charges
            .iter()
            .map(|charge| charge.quota.step(state(charge.key), self.now, charge.spend))
            .collect();
        let vetoed = charges
            .iter()
            .zip(&steps)
            .any(|(charge, step)| charge.enforce && !step.verdict.allowed);
        if vetoed {
            let judge =
                |charge: &Charge<'_>| charge.quota.judge(state(charge.key), self.now, charge.spend);
            return Ok(charges.iter().map(judge).collect());
        }
        for (charge, step) in charges.iter().zip(&steps) {
            if step.verdict.allowed && charge.spend.changes() {
                let end = self.now + step.keep_us;
                self.counters.insert(charge.key.clone(), (step.state.clone(), end));
            }
        }
        Ok(steps.into_iter().map(|step| step.verdict).collect())
    }
}
