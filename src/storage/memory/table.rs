//! A hash table whose every step is small.

use std::mem;

use super::{budget::Budget, chunks::Chunks};

/// The keyed hash of a key.
pub(super) type Digest = [u8; 16];

const NONE: u32 = u32::MAX;
const SLOTS: usize = 128;
const HEADS: usize = 1024;

/// Linear hashing over a dense array of slots.
///
/// An insertion splits one bucket and a removal merges at most two, so the table never stops to
/// rehash. A removal fills the hole with the last slot, so memory shrinks with the content, and a
/// cursor over the array meets everything. Slots of things that may be evicted come first: so
/// whoever looks for one finds it at once.
pub(super) struct Table<T> {
    slots: Chunks<Slot<T>, SLOTS>,
    /// The first slot of each bucket. At least as many as slots, and at least one.
    heads: Chunks<u32, HEADS>,
    evictable: usize,
    cursor: usize,
    hand: usize,
    /// How many slots the current operation has looked at, moved or linked anew.
    work: usize,
    most_work: usize,
}

struct Slot<T> {
    digest: Digest,
    next: u32,
    item: T,
}

impl<T> Table<T> {
    pub(super) const fn new() -> Self {
        Self {
            slots: Chunks::new(),
            heads: Chunks::new(),
            evictable: 0,
            cursor: 0,
            hand: 0,
            work: 0,
            most_work: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// How many may be evicted: the items below this index.
    pub(super) fn evictable(&self) -> usize {
        self.evictable
    }

    /// Begins to count the work of an operation.
    pub(super) fn begin(&mut self) {
        self.work = 0;
    }

    /// The most work that one operation has done.
    pub(super) fn most_work(&self) -> usize {
        self.most_work
    }

    pub(super) fn worked(&mut self, slots: usize) {
        self.work += slots;
        self.most_work = self.most_work.max(self.work);
    }

    pub(super) fn find(&self, digest: &Digest) -> Option<usize> {
        if self.heads.len() == 0 {
            return None;
        }
        let mut at = *self.heads.get(self.bucket(digest));
        while at != NONE {
            let slot = self.slots.get(at as usize);
            if slot.digest == *digest {
                return Some(at as usize);
            }
            at = slot.next;
        }
        None
    }

    pub(super) fn item(&self, i: usize) -> &T {
        &self.slots.get(i).item
    }

    pub(super) fn item_mut(&mut self, i: usize) -> &mut T {
        &mut self.slots.get_mut(i).item
    }

    /// What making room for one more item takes from the budget now.
    pub(super) fn growth(&self) -> usize {
        self.slots.growth() + self.heads.growth()
    }

    /// Makes room for one more item, if the budget allows.
    pub(super) fn reserve(&mut self, bytes: &Budget) -> bool {
        self.slots.len() < NONE as usize && self.slots.reserve(bytes) && self.heads.reserve(bytes)
    }

    /// Inserts an item that is not there yet. [`reserve`](Self::reserve) must have made room. Moves
    /// no other item, unless this one may be evicted.
    pub(super) fn insert(&mut self, digest: Digest, item: T, evictable: bool) -> usize {
        if self.heads.len() == 0 {
            self.heads.push(NONE);
        }
        let mut i = self.slots.len();
        self.slots.push(Slot { digest, next: NONE, item });
        if evictable {
            self.relocate(self.evictable, i);
            i = self.evictable;
            self.evictable += 1;
        }
        self.link(i);
        if self.heads.len() < self.slots.len() && self.heads.has_room() {
            self.split();
        }
        i
    }

    /// Removes an item, and moves at most two others.
    pub(super) fn remove(&mut self, i: usize, bytes: &Budget) -> Option<T> {
        let mut hole = i;
        self.relink(i, self.slots.get(i).next);
        if hole < self.evictable {
            self.evictable -= 1;
            self.relocate(self.evictable, hole);
            hole = self.evictable;
        }
        self.relocate(self.slots.len() - 1, hole);
        let slot = self.slots.pop();
        for _ in 0..2 {
            if self.heads.len() > 1 && 2 * self.slots.len() < self.heads.len() {
                self.merge();
            }
        }
        self.slots.trim(bytes);
        self.heads.trim(bytes);
        slot.map(|slot| slot.item)
    }

    /// Looks at the next few items and removes what is dead.
    pub(super) fn sweep(
        &mut self,
        steps: usize,
        bytes: &Budget,
        mut dead: impl FnMut(&T) -> bool,
        mut bury: impl FnMut(T),
    ) {
        for _ in 0..steps.min(self.slots.len()) {
            if self.cursor >= self.slots.len() {
                self.cursor = 0;
            }
            self.worked(1);
            if !dead(self.item(self.cursor)) {
                self.cursor += 1;
            } else if let Some(item) = self.remove(self.cursor, bytes) {
                bury(item);
            }
        }
    }

    /// The next item that may be evicted, round and round.
    pub(super) fn next_evictable(&mut self) -> Option<usize> {
        if self.evictable == 0 {
            return None;
        }
        let i = if self.hand < self.evictable { self.hand } else { 0 };
        // Past it also if it is evicted: what takes its place has just been put.
        self.hand = i + 1;
        self.worked(1);
        Some(i)
    }

    fn bucket(&self, digest: &Digest) -> usize {
        bucket(digest, self.heads.len())
    }

    fn link(&mut self, i: usize) {
        let bucket = self.bucket(&self.slots.get(i).digest);
        let head = self.heads.get_mut(bucket);
        self.slots.get_mut(i).next = *head;
        // Cannot wrap: `reserve` keeps the length below NONE.
        *head = i as u32;
        self.worked(1);
    }

    /// Lets whatever points to the slot `i` point to `target`.
    fn relink(&mut self, i: usize, target: u32) {
        let bucket = self.bucket(&self.slots.get(i).digest);
        let mut at = *self.heads.get(bucket);
        if at as usize == i {
            *self.heads.get_mut(bucket) = target;
            at = NONE;
        }
        while at != NONE {
            let next = &mut self.slots.get_mut(at as usize).next;
            if *next as usize == i {
                *next = target;
                break;
            }
            at = *next;
        }
        self.worked(1);
    }

    /// Swaps a linked slot with one that nothing points to.
    fn relocate(&mut self, from: usize, to: usize) {
        if from != to {
            self.relink(from, to as u32);
            self.slots.swap(from, to);
        }
    }

    /// Adds a bucket, and deals out to it what is its of the one that had it so far.
    fn split(&mut self) {
        let new = self.heads.len();
        self.heads.push(NONE);
        let chain = mem::replace(self.heads.get_mut(parent(new)), NONE);
        self.link_all(chain);
    }

    /// Removes the last bucket, and gives what it had to the one from which it was split.
    fn merge(&mut self) {
        let chain = self.heads.pop().unwrap_or(NONE);
        self.link_all(chain);
    }

    fn link_all(&mut self, mut at: u32) {
        while at != NONE {
            let next = self.slots.get(at as usize).next;
            self.link(at as usize);
            at = next;
        }
    }
}

/// The bucket of a hash when there are so many.
fn bucket(digest: &Digest, buckets: usize) -> usize {
    let mask = buckets.next_power_of_two() - 1;
    let bucket = u128::from_le_bytes(*digest) as usize & mask;
    if bucket < buckets { bucket } else { bucket & (mask >> 1) }
}

/// The bucket from which this one is split: its number without the highest bit.
fn parent(bucket: usize) -> usize {
    bucket - (1 << bucket.ilog2())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn digest(n: u64) -> Digest {
        // Few different low bits, so that chains are long.
        let mut digest = [0; 16];
        digest[..8].copy_from_slice(&(n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % 97).to_le_bytes());
        digest[8..].copy_from_slice(&n.to_le_bytes());
        digest
    }

    fn check(table: &Table<u64>, model: &HashMap<u64, bool>) {
        assert_eq!(table.len(), model.len());
        assert_eq!(table.evictable(), model.values().filter(|evictable| **evictable).count());
        assert!(table.heads.len() >= table.len());
        for (n, evictable) in model {
            let i = table.find(&digest(*n)).unwrap();
            assert_eq!(table.item(i), n);
            assert_eq!(i < table.evictable(), *evictable);
        }
    }

    proptest! {
        #[test]
        fn behaves_as_a_map_and_keeps_the_evictable_in_front(
            operations in prop::collection::vec((0_u8..8, 0_u64..400), 0..1_500)
        ) {
            let bytes = Budget::new(usize::MAX);
            let (mut table, mut model) = (Table::new(), HashMap::new());
            for (i, (what, n)) in operations.iter().enumerate() {
                match (what, table.find(&digest(*n))) {
                    (0..=4, None) => {
                        prop_assert!(table.reserve(&bytes));
                        table.insert(digest(*n), *n, what % 2 == 0);
                        model.insert(*n, what % 2 == 0);
                    }
                    (5 | 6, Some(at)) => {
                        prop_assert_eq!(table.remove(at, &bytes), Some(*n));
                        model.remove(n);
                    }
                    (7, _) => table.sweep(3, &bytes, |n| n % 3 == 0, |n| { model.remove(&n); }),
                    _ => {}
                }
                if i % 64 == 0 {
                    check(&table, &model);
                }
            }
            check(&table, &model);
        }
    }

    #[test]
    fn an_emptied_table_gives_back_all_but_a_few_blocks() {
        let bytes = Budget::new(usize::MAX);
        let mut table = Table::new();
        let random = |n: u64| crate::storage::HashKey::derive(b"").digest(&[&n.to_be_bytes()]);
        for n in 0..50_000 {
            table.begin();
            assert!(table.reserve(&bytes));
            table.insert(random(n), n, false);
        }
        let full = bytes.used();
        assert!(full < 50_000 * 48, "{full} bytes");
        while table.len() > 0 {
            table.begin();
            table.sweep(4, &bytes, |_| true, drop);
        }
        assert!(bytes.used() < full / 50, "{} of {full} bytes are left", bytes.used());
        assert!(table.most_work() < 80, "{} slots in one operation", table.most_work());
    }

    #[test]
    fn a_budget_that_is_spent_refuses_growth_and_nothing_else() {
        let bytes = Budget::new(20_000);
        let mut table = Table::new();
        let mut n = 0;
        while table.reserve(&bytes) {
            table.insert(digest(n), n, false);
            n += 1;
        }
        assert!(n > 200 && bytes.used() <= 20_000);
        assert_eq!(table.find(&digest(n - 1)).map(|i| *table.item(i)), Some(n - 1));
    }
}
