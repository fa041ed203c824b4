//! One entry.

use std::time::Duration;

use bytes::Bytes;

use super::{
    budget::allocation,
    records::{Birth, ByNamespace},
};
use crate::storage::{Entry, Touch, Version, micros};

/// The deadline of what has none.
pub(super) const NEVER: u64 = u64::MAX;

/// A value, and when it dies. Times are microseconds.
pub(super) struct Item {
    pub(super) value: Bytes,
    pub(super) version: u64,
    pub(super) written: u64,
    pub(super) expires: u64,
    pub(super) deadline: u64,
    pub(super) birth: Option<Box<Birth>>,
    /// Used since the hand that evicts came by.
    pub(super) used: bool,
}

impl Item {
    pub(super) fn is_expired(&self, now: u64) -> bool {
        now >= self.expires
    }

    /// Whether it was invalidated.
    pub(super) fn is_void(&self, records: &ByNamespace) -> bool {
        self.birth.as_ref().is_some_and(|birth| !birth.is_admitted(records))
    }

    pub(super) fn touch(&mut self, touch: Touch, now: u64) {
        let expires = (now + micros(touch.ttl)).min(self.deadline);
        if expires > self.expires + micros(touch.slack) {
            self.expires = expires;
        }
    }

    pub(super) fn entry(&self, records: Option<&ByNamespace>, now: u64) -> Entry {
        let mut entry = Entry::new(
            self.value.clone(),
            Version::from_u64(self.version),
            Duration::from_micros(now.saturating_sub(self.written)),
            Duration::from_micros(self.expires.saturating_sub(now)),
        );
        if self.deadline != NEVER {
            entry.life_left = Some(Duration::from_micros(self.deadline.saturating_sub(now)));
        }
        entry.stale = (self.birth.as_ref())
            .zip(records)
            .is_some_and(|(birth, records)| birth.is_stale(records));
        entry
    }

    /// What it has allocated outside the table.
    pub(super) fn heap(&self) -> usize {
        value_bytes(&self.value) + self.birth.as_ref().map_or(0, |birth| birth.heap())
    }
}

/// What a value has allocated: its bytes, and the count of who shares them.
pub(super) fn value_bytes(value: &Bytes) -> usize {
    if value.is_empty() { 0 } else { allocation(value.len()) + allocation(24) }
}
