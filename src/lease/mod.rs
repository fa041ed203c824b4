//! Leases: one holder at a time, between processes, on any [`Storage`](crate::Storage).
//!
//! For work that should not be done twice at once: a nightly job that every node schedules, a cache
//! that one node fills, a queue with one consumer.
//!
//! ```
//! use std::time::Duration;
//! use tower_keep::{MemoryStorage, lease::Leases};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> tower_keep::storage::Result<()> {
//! let leases = Leases::new(MemoryStorage::new(), Duration::from_secs(30)).with_heartbeat();
//!
//! let lease = leases.try_acquire("nightly report").await?.acquired().unwrap();
//! assert!(leases.try_acquire("nightly report").await?.acquired().is_none());
//!
//! tokio::select! {
//!     () = write_report(lease.fence()) => {}
//!     () = lease.lost() => panic!("stop: somebody else may be at it"),
//! }
//! assert!(lease.release().await?);
//! assert!(leases.try_acquire("nightly report").await?.acquired().is_some());
//! # Ok(())
//! # }
//! # async fn write_report(_fence: u64) {}
//! ```
//!
//! # What it promises
//!
//! Of all who ask for a name, one holds it. A holder that dies blocks the others for at most the
//! `ttl`. Nobody extends or releases what is somebody else's. A holder learns by
//! [`lost`](Lease::lost) that its time is over before the storage lets the next one in, also when
//! the storage is out of reach.
//!
//! # What it does not promise
//!
//! A lease is an agreement on time, and a process can be stopped at any point: between the check
//! that it still holds the lease and the write that relies on it. So a lease alone saves work; it
//! does not make writes safe. Where two writers at once would do harm, hand the
//! [`fence`](Lease::fence) along with each write and let the resource refuse a number lower than
//! the highest it has seen. Only the resource can.
//!
//! The same goes for a machine that is suspended, such as a virtual one that is moved: its monotonic
//! clock may stand still meanwhile, and [`lost`](Lease::lost) then fires too late.
//!
//! A lease is as good as the one primary that keeps it. A storage that replicates asynchronously,
//! such as Redis, can forget a lease when a replica takes over, and then there are two holders. This
//! is no Redlock, which asks several primaries, gives no fencing numbers and rests on assumptions
//! about clocks; where that is not enough, use a database with consensus, or the fence.
//!
//! There is no queue: whoever asks first after a release gets in. A task that holds a lease and asks
//! for it again waits for itself.
//!
//! # How it works
//!
//! The entry of a lease holds a random token, new for each acquisition. It is acquired by a put on
//! [`Absent`](crate::storage::When::Absent), and extended and released on its
//! [`Version`](crate::storage::When::Version). When the reply to a write is lost, the token tells
//! whose the entry is: a holder never waits for itself, and goes on from what was applied.

mod acquire;
mod claim;
mod guard;
mod hold;

pub use self::{
    acquire::{Attempt, Leases},
    guard::{Extension, Lease},
};
#[cfg(feature = "idempotency")]
pub(crate) use self::{
    claim::{Claim, Standing, Token},
    hold::{Finish, Hold, beat},
};
use crate::storage::{Error, ErrorKind};

fn unanswered() -> Error {
    Error::new(ErrorKind::Timeout, "the storage gave no answer while it could have mattered")
}
