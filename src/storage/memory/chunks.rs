//! A vector that never moves what it holds.

use std::mem;

use super::budget::{Budget, allocation};

/// Items in blocks of `N`, so that growing by one never copies the others. What the blocks cost is
/// taken from a budget before they are allocated and given back when they are freed.
pub(super) struct Chunks<T, const N: usize> {
    chunks: Vec<Vec<T>>,
    len: usize,
}

impl<T, const N: usize> Chunks<T, N> {
    const BLOCK: usize = allocation(N * mem::size_of::<T>());

    pub(super) const fn new() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether one more item fits into the blocks that are there.
    pub(super) fn has_room(&self) -> bool {
        self.len < self.chunks.len() * N
    }

    /// What [`reserve`](Self::reserve) would take from the budget now.
    pub(super) fn growth(&self) -> usize {
        let old = self.chunks.capacity();
        if self.has_room() {
            0
        } else if self.chunks.len() < old {
            Self::BLOCK
        } else {
            Self::BLOCK + list(longer(old))
        }
    }

    /// Makes room for one more item, if the budget allows.
    pub(super) fn reserve(&mut self, bytes: &Budget) -> bool {
        if self.has_room() {
            return true;
        }
        let old = self.chunks.capacity();
        if self.chunks.len() == old {
            let new = longer(old);
            if !bytes.take(list(new)) {
                return false;
            }
            self.chunks.reserve_exact(new - self.chunks.len());
            bytes.give(list(old));
        }
        if !bytes.take(Self::BLOCK) {
            return false;
        }
        self.chunks.push(Vec::with_capacity(N));
        true
    }

    /// Frees the last block if more than one is unused: one is kept, so that a length that goes up
    /// and down does not allocate each time.
    pub(super) fn trim(&mut self, bytes: &Budget) {
        if self.chunks.len() * N - self.len < 2 * N {
            return;
        }
        self.chunks.pop();
        bytes.give(Self::BLOCK);
        let old = self.chunks.capacity();
        if old > 4 && self.chunks.len() <= old / 4 {
            self.chunks.shrink_to(old / 2);
            bytes.give(list(old) - list(self.chunks.capacity()));
        }
    }

    pub(super) fn get(&self, i: usize) -> &T {
        &self.chunks[i / N][i % N]
    }

    pub(super) fn get_mut(&mut self, i: usize) -> &mut T {
        &mut self.chunks[i / N][i % N]
    }

    /// Appends. [`reserve`](Self::reserve) must have made room.
    pub(super) fn push(&mut self, item: T) {
        debug_assert!(self.has_room());
        self.chunks[self.len / N].push(item);
        self.len += 1;
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let last = self.len.checked_sub(1)?;
        self.len = last;
        self.chunks[last / N].pop()
    }

    pub(super) fn swap(&mut self, a: usize, b: usize) {
        let (low, high) = (a.min(b), a.max(b));
        if low / N == high / N {
            self.chunks[low / N].swap(low % N, high % N);
        } else {
            let (left, right) = self.chunks.split_at_mut(high / N);
            mem::swap(&mut left[low / N][low % N], &mut right[0][high % N]);
        }
    }
}

fn longer(capacity: usize) -> usize {
    (2 * capacity).max(4)
}

/// What the list of blocks costs.
fn list(capacity: usize) -> usize {
    allocation(capacity * mem::size_of::<Vec<()>>())
}
