//! What may still be allocated or stored.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// An amount that is taken before it is used, by any number of threads.
pub(super) struct Budget {
    most: usize,
    used: AtomicUsize,
}

/// The bounds of one storage.
pub(super) struct Bounds {
    pub(super) bytes: Budget,
    pub(super) counters: Budget,
    pub(super) entries: Budget,
}

impl Budget {
    pub(super) const fn new(most: usize) -> Self {
        Self { most, used: AtomicUsize::new(0) }
    }

    /// Takes the amount if it is there.
    pub(super) fn take(&self, amount: usize) -> bool {
        let fits = |used: usize| used.checked_add(amount).filter(|sum| *sum <= self.most);
        self.used.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }

    /// Takes the amount whether it is there or not.
    pub(super) fn force(&self, amount: usize) {
        self.used.fetch_add(amount, Relaxed);
    }

    pub(super) fn give(&self, amount: usize) {
        self.used.fetch_sub(amount, Relaxed);
    }

    /// Accounts for something that has changed its size.
    pub(super) fn exchange(&self, old: usize, new: usize) -> bool {
        if new > old {
            return self.take(new - old);
        }
        self.give(old - new);
        true
    }

    pub(super) fn fits(&self, amount: usize) -> bool {
        self.used().checked_add(amount).is_some_and(|sum| sum <= self.most)
    }

    pub(super) fn is_half_used(&self) -> bool {
        self.used() >= self.most / 2
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

/// What a block of this size costs with the usual allocators: a header, and whole blocks of 16.
pub(super) const fn allocation(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        1..=24 => 32,
        _ => bytes.saturating_add(8).next_multiple_of(16),
    }
}
