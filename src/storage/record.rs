//! The record of invalidated tags, as pure functions.

use std::collections::{BTreeMap, BTreeSet};

use super::{Fence, Invalidation};

/// A tag as the record knows it: its [digest](super::Tag::digest).
pub type TagDigest = [u8; 16];

/// Beyond this many tags the oldest are forgotten early, which costs hits and nothing else.
const MOST_TAGS: usize = 100_000;
/// How long a tag is remembered beyond the longest life, in microseconds, unless set.
const PATIENCE: u64 = 60_000_000;
/// How many tags one invalidation may forget.
const TRIM_STEP: usize = 4;

/// What was invalidated in one namespace, and when: the rule by which entries die, for backends
/// that keep it in process. The [contract](crate::storage#tags) says it in words.
///
/// Stamps and times are microseconds on the backend's clock.
#[derive(Debug, Clone)]
pub struct Record {
    generation: u128,
    last: u64,
    /// The last stamp of a soft invalidation.
    last_soft: u64,
    floor: u64,
    longest: u64,
    patience: u64,
    /// Trees, which never stop to rehash.
    tags: BTreeMap<TagDigest, Stamps>,
    by_age: BTreeSet<(u64, TagDigest)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Stamps {
    hard: u64,
    soft: u64,
}

impl Stamps {
    fn newest(self) -> u64 {
        self.hard.max(self.soft)
    }
}

impl Record {
    /// A record without tags. The generation is drawn at random, never counted: a record that was
    /// lost must not come back under its old name.
    pub fn new(generation: u128) -> Self {
        Self {
            generation,
            last: 0,
            last_soft: 0,
            floor: 0,
            longest: 0,
            patience: PATIENCE,
            tags: BTreeMap::new(),
            by_age: BTreeSet::new(),
        }
    }

    /// How long a tag is remembered beyond the longest life, in microseconds: what is being made since
    /// before it was invalidated is still stored, and in a new record what has not been put yet. A
    /// minute unless set.
    #[must_use]
    pub fn with_patience(mut self, patience: u64) -> Self {
        self.patience = patience;
        self
    }

    /// The fence of a lookup now.
    pub fn fence(&self, epoch: u64) -> Fence {
        Fence::new(self.generation, self.last, epoch)
    }

    /// Whether an entry with this fence and these tags may be stored or served. The epoch is not
    /// looked at: before it stores, a backend with connections compares that with its own.
    pub fn admits(&self, fence: &Fence, tags: &[TagDigest]) -> bool {
        fence.generation() == self.generation
            && (self.floor..=self.last).contains(&fence.stamp())
            // Most often nothing was invalidated since, and no tag need be looked up.
            && (fence.stamp() == self.last
                || !self.any(tags, |stamps| stamps.hard > fence.stamp()))
    }

    /// Whether an entry with this fence and these tags was invalidated softly.
    pub fn is_stale(&self, fence: &Fence, tags: &[TagDigest]) -> bool {
        self.last_soft > fence.stamp() && self.any(tags, |stamps| stamps.soft > fence.stamp())
    }

    fn any(&self, tags: &[TagDigest], holds: impl Fn(&Stamps) -> bool) -> bool {
        tags.iter().any(|tag| self.tags.get(tag).is_some_and(&holds))
    }

    /// Notes that an entry may live this long, so that its tags are remembered for that time.
    pub fn keep_for(&mut self, life: u64) {
        self.longest = self.longest.max(life);
    }

    /// The longest life that was announced.
    pub fn longest_life(&self) -> u64 {
        self.longest
    }

    /// Invalidates tags, and forgets a few that nothing can carry any more.
    pub fn invalidate(&mut self, now: u64, tags: &[TagDigest], how: Invalidation) {
        let stamp = now.max(self.last + 1);
        self.last = stamp;
        if how == Invalidation::Soft {
            self.last_soft = stamp;
        }
        for tag in tags {
            let stamps = self.tags.entry(*tag).or_default();
            self.by_age.remove(&(stamps.newest(), *tag));
            match how {
                Invalidation::Hard => stamps.hard = stamp,
                Invalidation::Soft => stamps.soft = stamp,
            }
            self.by_age.insert((stamp, *tag));
        }
        for _ in 0..TRIM_STEP + tags.len() {
            match self.by_age.first() {
                Some(&(oldest, tag))
                    if oldest + self.longest + self.patience < now
                        || self.by_age.len() > MOST_TAGS =>
                {
                    self.by_age.pop_first();
                    self.tags.remove(&tag);
                    self.floor = self.floor.max(oldest);
                }
                _ => break,
            }
        }
    }

    /// How many tags are remembered.
    pub fn len(&self) -> usize {
        self.tags.len()
    }

    /// Whether no tag is remembered.
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: TagDigest = [1; 16];
    const OTHER: TagDigest = [2; 16];

    #[test]
    fn a_fence_from_before_an_invalidation_is_refused_for_that_tag_only() {
        let mut record = Record::new(7);
        let before = record.fence(0);
        record.invalidate(1_000, &[TAG], Invalidation::Hard);
        assert!(!record.admits(&before, &[OTHER, TAG]));
        assert!(record.admits(&before, &[OTHER]));
        assert!(record.admits(&record.fence(0), &[TAG]));
    }

    #[test]
    fn a_soft_invalidation_marks_and_does_not_kill() {
        let mut record = Record::new(7);
        let before = record.fence(0);
        record.invalidate(1_000, &[TAG], Invalidation::Soft);
        assert!(record.admits(&before, &[TAG]) && record.is_stale(&before, &[TAG]));
        assert!(!record.is_stale(&record.fence(0), &[TAG]));
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_hide_an_invalidation() {
        let mut record = Record::new(7);
        record.invalidate(5_000, &[OTHER], Invalidation::Hard);
        let before = record.fence(0);
        record.invalidate(1_000, &[TAG], Invalidation::Hard);
        assert!(!record.admits(&before, &[TAG]));
    }

    #[test]
    fn a_forgotten_tag_raises_the_floor() {
        let mut record = Record::new(7);
        record.keep_for(100);
        let before = record.fence(0);
        record.invalidate(1_000, &[TAG], Invalidation::Hard);
        record.invalidate(1_000 + PATIENCE, &[OTHER], Invalidation::Hard);
        assert!(record.admits(&before, &[]), "what is being made meanwhile may still be stored");
        record.invalidate(1_101 + PATIENCE, &[OTHER], Invalidation::Hard);
        assert_eq!(record.len(), 1);
        assert!(!record.admits(&before, &[TAG]), "the tag is forgotten, the floor remembers");
    }

    #[test]
    fn a_fence_from_the_future_or_of_another_generation_is_refused() {
        let record = Record::new(7);
        assert!(!record.admits(&Fence::new(7, 1, 0), &[]));
        assert!(!record.admits(&Fence::new(8, 0, 0), &[]));
    }

    #[test]
    fn the_record_stays_bounded_however_many_tags_are_invalidated() {
        let mut record = Record::new(7);
        record.keep_for(u64::MAX / 2);
        for n in 0..MOST_TAGS as u128 + 1_000 {
            record.invalidate(n as u64, &[n.to_be_bytes()], Invalidation::Hard);
        }
        assert_eq!(record.len(), MOST_TAGS);
        assert!(!record.admits(&Fence::new(7, 500, 0), &[]), "the floor has risen");
    }
}
