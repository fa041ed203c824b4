//! What the suite needs to know of a backend.

use std::{future::Future, time::Duration};

use crate::{Storage, storage::Name};

/// How the suite makes storages of one backend and lets their time pass.
///
/// The [module documentation](super) shows one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a harness",
    note = "say how to make a fresh storage and how to pass its time: see `tower_keep::conformance`"
)]
pub trait Harness: Sync {
    /// The backend.
    type Storage: Storage;

    /// A fresh storage that shares nothing with any other: its own map, prefix or database.
    fn storage(&self) -> impl Future<Output = Self::Storage> + Send;

    /// Lets this much time pass on the clock of the backend: by a paused clock, a virtual one, or a
    /// sleep.
    ///
    /// A virtual clock starts at a whole second. If the backend numbers its versions by the clock
    /// alone, let it move by a microsecond with every operation, as a real clock does.
    fn advance(&self, by: Duration) -> impl Future<Output = ()> + Send;

    /// The unit in which clauses wait: the shortest time that is reliable on this backend. All
    /// lives and periods are multiples of at least half a tick, so it must be 20 ms or more.
    fn tick(&self) -> Duration;

    /// How far a reported duration may be off: zero on a clock that stands still between the calls
    /// of [`advance`](Self::advance), about a tick on a real one.
    fn tolerance(&self) -> Duration;

    /// Makes the backend lose its record of a namespace's invalidated tags, as an eviction or a
    /// restart would, and says whether it did. `false` if it cannot: what would test it is skipped.
    fn lose_tags(
        &self,
        storage: &Self::Storage,
        namespace: &Name,
    ) -> impl Future<Output = bool> + Send;
}
