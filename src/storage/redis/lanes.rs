//! The few long-lived connections over which everything runs.

use redis::Value;

use super::call::Call;
use crate::storage::{HashKey, Result};

/// Which deadline an operation has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// A limit is decided: everything a service does waits for it.
    Decision,
    /// An entry is read or written.
    Entry,
}

pub(super) struct Lanes;

pub(super) struct Ticket;

impl Lanes {
    pub(super) async fn enter(&self, _class: Class) -> Result<Ticket> {
        unimplemented!()
    }
}

impl Ticket {
    pub(super) fn epoch(&self) -> u64 {
        unimplemented!()
    }

    pub(super) fn hash_key(&self) -> &HashKey {
        unimplemented!()
    }

    pub(super) async fn run(self, _call: &Call) -> Result<Value> {
        unimplemented!()
    }
}
