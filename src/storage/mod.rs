//! Where the layers keep their state: one trait, and the types it speaks.
//!
//! [`MemoryStorage`](crate::MemoryStorage) is the embedded default; `RedisStorage` (feature
//! `redis`) shares state between processes. To plug in another database, implement [`Storage`] and
//! run the conformance suite (`tower_keep::conformance`, a feature) against it.
//!
//! # Contract
//!
//! These clauses hold for every backend. The suite has at least one test for each.
//!
//! **Atomic.** Every operation takes effect at one instant or not at all, also against other
//! processes.
//!
//! **Dead is absent.** An entry that has expired, has passed its deadline, carries an invalidated
//! tag or belongs to another generation is absent for *every* operation: a `Version` put on it is
//! `Conflict(None)`, an `Absent` put succeeds, a delete is `false`, a touch does nothing.
//!
//! **Versions rise.** A successful put gives the entry a version higher than any that the key had
//! while it lived, and higher than those before unless the backend's clock was set back. A touch
//! keeps the version and the age. A key may be deleted and put again within one tick of the clock,
//! so a backend whose clock is coarser than its operations are fast must count besides.
//!
//! **A `Version` put saves.** It keeps the entry's tags, its deadline (which it can only bring
//! forward) and the fence with which the entry was born. So a save cannot outlive an invalidation
//! that came between.
//!
//! **A known version is confirmed.** A lookup that [knows](Get::with_known) the version of the live
//! entry gets everything but the value: whether the entry is alive and stale, its times, the touch
//! and the fence are those of any other lookup. The value then is empty, and [`Entry::unchanged`]
//! says why. With another version there the value comes as usual, in the same call.
//!
//! **Deadlines hold.** With `max_lifetime` an entry is dead that long after the put, whatever
//! touches it. A put with a fence needs one (a `Version` put keeps that of the entry), for no entry
//! may outlive the record of tags.
//!
//! **All or nothing.** [`acquire`](Storage::acquire) takes from all quotas or from none: a refusal
//! by one enforced charge leaves all others as they were. Charges that are not enforced veto
//! nothing and are counted only when the call is granted and they had room themselves.
//!
//! **Refunds return.** A refund gives units back only to the window, slot or entry of its receipt,
//! at most what is still there, and never overfills.
//!
//! **Any bytes.** Identities, tags and values may hold any bytes; values from none to at least
//! 1 MiB.
//!
//! # Tags
//!
//! Each namespace has at most one *record of tags*: a random 128-bit generation, the last stamp
//! given, a floor, and for each invalidated tag when that happened. It lists invalidations, not
//! keys, so purging a tag costs the same for one entry and for a million.
//!
//! - A stamp is the larger of the backend's clock and the last stamp plus one.
//! - A [`Fence`] is (generation, last stamp) at the time of a lookup. Every entry that was put with
//!   a fence remembers it.
//! - A put with a fence is refused (`Conflict`) when the record is missing, has another generation,
//!   has a floor above the fence's stamp or a last stamp below it, when one of the put's tags was
//!   invalidated hard after the fence, or when a connection of the backend was replaced since the
//!   fence was taken ([`Fence::epoch`]). A tagged put needs a fence, unless it is a `Version` put.
//! - An entry with a fence is dead when the same holds for its own fence and tags, the connection
//!   apart: it went back together with the record.
//! - [`Tags::All`] starts a new generation: it ends everything in the namespace that has a fence.
//!   Entries without a fence (claims, leases) do not belong to the record; only `delete` ends them.
//! - Only a lookup that asks for a fence and an invalidation create a missing record. So losing the
//!   record costs cache hits and ends tagged sessions, never correctness.
//! - The record may forget a tag when every entry that it ended would have expired. It then raises
//!   the floor to the stamp that it forgot. An entry whose fence is older, because its handler took
//!   long, may thereby die early, by no more than the time that the handler took. Records of ours
//!   wait a minute longer for handlers.
//!
//! ## Failover
//!
//! A server that comes up in an earlier state, after a restart or as a replica that was promoted,
//! has lost the last invalidations although they were acknowledged, and serves what was there
//! before them. Nothing else is promised less: what is put from then on is never older than any
//! invalidation acknowledged before its lookup, lost or not. This needs two things of a backend.
//!
//! - *Epochs.* The record gives stamps again that it gave before, so a fence from before must not
//!   pass for one of now. When a connection is replaced, all are, and the epoch is counted up: one
//!   that was left behind would hand out fences of the demoted server. A failover that no
//!   connection notices, as behind a proxy, is harmless only until the record's stamps have caught
//!   up with the lost ones.
//! - *One state.* The record goes back only together with its entries. Entries may go back, or be
//!   lost, alone; a record that may have gone back alone must start a new generation.
//!
//! `tests/fence_model.rs` searches these rules exhaustively and shows for each clause what happens
//! without it.
//!
//! # Time
//!
//! The trait speaks durations. A backend measures them on one clock of its own (a server its own
//! clock, memory tokio's), so that application servers need not agree on the time. A stored time
//! that lies in the future, after the clock was set back, is treated as now. A life beyond 100 years
//! is cut to that; no duration is an error for being long.
//!
//! # Cancellation
//!
//! Any future may be dropped at any time. The operation has then been applied in full, or not at
//! all, and the storage goes on working; which of the two is unknown.
//!
//! # Implementing
//!
//! All methods are required: a default that is almost right is how wrappers lose atomicity
//! unnoticed. A backend that has only compare-and-swap calls
//! [`emulate::acquire`] in one visible line; single charges are then exact, and several of one call
//! are reserved in order, so it does not claim
//! [`atomic_across_identities`](Capabilities::atomic_across_identities). [`check_put`] and
//! [`check_charges`] find the arguments that every backend refuses. [`quota`](crate::quota) holds the arithmetic of
//! [`acquire`](Storage::acquire) as pure functions, [`Record`] that of tags.
//!
//! # Wrapping
//!
//! A wrapper forwards every method, [`capabilities`](Storage::capabilities) included. Put
//! `#[deny(clippy::missing_trait_methods)]` on its `impl`.

use std::{fmt, future::Future, time::Duration};

#[cfg_attr(not(feature = "rate-limit"), allow(dead_code))]
pub(crate) mod denials;
pub mod emulate;
mod erased;
mod error;
mod key;
pub(crate) mod memory;
mod record;
#[cfg(feature = "redis")]
pub(crate) mod redis;
mod types;

#[cfg(feature = "rate-limit")]
pub(crate) use self::erased::acquire_now;
#[cfg(feature = "cache")]
pub(crate) use self::erased::at_once;
pub use self::{
    erased::AnyStorage,
    error::{Error, ErrorKind, Result},
    key::{HashKey, Identity, Key, Name, Tag},
    record::{Record, TagDigest},
    types::{
        Capabilities, Charge, Entry, Fence, Get, Invalidation, Lookup, Put, PutOutcome, Receipt,
        Spend, Tags, Touch, Verdict, Version, When,
    },
};
pub use crate::tasks::Drained;

/// State that outlives a request: what all layers are built on.
///
/// Users choose a backend and hand it to the layers. Implement the trait to plug in a database; the
/// [module documentation](self) is the contract.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use bytes::Bytes;
/// use tower_keep::{
///     MemoryStorage, Storage,
///     storage::{Get, Identity, Key, Name, Put, PutOutcome, When},
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tower_keep::storage::Result<()> {
/// let storage = MemoryStorage::new();
/// let key = Key::new(&Name::new("jobs"), &Name::new("claim"), Identity::new("invoice 17"));
/// let claim = || {
///     Put::new(Bytes::from_static(b"worker 1"), Duration::from_secs(30))
///         .with_condition(When::Absent)
/// };
///
/// assert!(matches!(storage.put(&key, claim()).await?, PutOutcome::Stored(_)));
/// assert!(matches!(storage.put(&key, claim()).await?, PutOutcome::Conflict(Some(_))));
/// assert_eq!(storage.get(&key, Get::new()).await?.entry.unwrap().value, "worker 1");
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a storage",
    note = "pass a `MemoryStorage`, a `RedisStorage` (feature `redis`), an `AnyStorage` or a backend of your own"
)]
pub trait Storage: fmt::Debug + Send + Sync + 'static {
    /// Looks an entry up, and extends its life if that is asked for and due. A value that the
    /// caller [knows](Get::with_known) is left out.
    ///
    /// # Errors
    ///
    /// Any [`ErrorKind`] but `Full`. [`Corrupt`](ErrorKind::Corrupt) if what lies under the key is
    /// not an entry of this key.
    fn get(&self, key: &Key, get: Get) -> impl Future<Output = Result<Lookup>> + Send;

    /// Stores a value if the condition and the fence allow, and otherwise returns what is there.
    ///
    /// # Errors
    ///
    /// [`Invalid`](ErrorKind::Invalid) for tags without a fence, for a fence without a
    /// `max_lifetime`, for a `Version` put with tags, and for a `ttl` or `max_lifetime` below one
    /// millisecond.
    /// [`Full`](ErrorKind::Full) if a bounded backend has no room.
    fn put(&self, key: &Key, put: Put<'_>) -> impl Future<Output = Result<PutOutcome>> + Send;

    /// Deletes the entry if the condition holds, and says whether it did. [`When::Absent`] never
    /// deletes anything.
    ///
    /// # Errors
    ///
    /// Any [`ErrorKind`] but `Full`.
    fn delete(&self, key: &Key, when: When) -> impl Future<Output = Result<bool>> + Send;

    /// Ends every entry of the namespace that carries one of the tags, or all that have a fence,
    /// including those that are put later with an older fence.
    ///
    /// # Errors
    ///
    /// After an error the invalidation may not have happened; it is safe to repeat.
    fn invalidate(
        &self,
        namespace: &Name,
        tags: Tags<'_>,
        how: Invalidation,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Charges quotas, all or nothing, and returns one verdict for each charge in order.
    ///
    /// # Errors
    ///
    /// [`Invalid`](ErrorKind::Invalid) if two charges have one key. [`Full`](ErrorKind::Full) if a
    /// bounded backend has no room for another counter.
    fn acquire(&self, charges: &[Charge<'_>]) -> impl Future<Output = Result<Vec<Verdict>>> + Send;

    /// What the backend can do beyond the contract.
    fn capabilities(&self) -> Capabilities;

    /// Hides the type. Changes the representation, never the behaviour.
    fn erase(self) -> AnyStorage
    where
        Self: Sized,
    {
        AnyStorage::new(self)
    }
}

/// Longer lives are cut to this, so that no sum of times can overflow (100 years).
const LONGEST_LIFE: Duration = Duration::from_secs(100 * 366 * 86_400);

/// A duration in whole microseconds, rounded up and at most [`LONGEST_LIFE`].
pub(crate) fn micros(duration: Duration) -> u64 {
    // Cannot wrap: 100 years are 3.2e15 microseconds.
    duration.min(LONGEST_LIFE).as_nanos().div_ceil(1_000) as u64
}

/// For backends: the checks that each makes before it works on charges.
///
/// # Errors
///
/// [`Invalid`](ErrorKind::Invalid) if two charges have one key.
pub fn check_charges(charges: &[Charge<'_>]) -> Result<()> {
    for (i, charge) in charges.iter().enumerate() {
        if charges[..i].iter().any(|earlier| earlier.key == charge.key) {
            return Err(Error::new(
                ErrorKind::Invalid,
                "two charges of one call have the same key; give each quota its own detail",
            ));
        }
    }
    Ok(())
}

/// For backends: the checks that each makes before it stores an entry.
///
/// # Errors
///
/// [`Invalid`](ErrorKind::Invalid) for what [`put`](Storage::put) says that it refuses.
pub fn check_put(put: &Put<'_>) -> Result<()> {
    let invalid = |message| Err(Error::new(ErrorKind::Invalid, message));
    let saves = matches!(put.when, When::Version(_));
    if saves && !put.tags.is_empty() {
        return invalid("a `Version` put keeps the entry's tags and takes none");
    }
    if !put.tags.is_empty() && put.fence.is_none() {
        return invalid("a tagged put needs the fence of a lookup: `Get::new().with_fence()`");
    }
    if !saves && put.fence.is_some() && put.max_lifetime.is_none() {
        return invalid("a put with a fence needs a `max_lifetime`");
    }
    let shortest = Duration::from_millis(1);
    if put.ttl < shortest || put.max_lifetime.is_some_and(|lifetime| lifetime < shortest) {
        return invalid("a `ttl` or `max_lifetime` is at least one millisecond");
    }
    Ok(())
}
