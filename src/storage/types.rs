//! What the operations of a storage take and give.

use std::{fmt, time::Duration};

use bytes::Bytes;

use super::key::{Key, Tag};
use crate::quota::Quota;

/// The number of a stored value: given by the storage, rising per key.
///
/// The version of a claim is its fencing number: a later claim of the same key has a higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(u64);

impl Version {
    /// For backends.
    pub const fn from_u64(version: u64) -> Self {
        Self(version)
    }

    /// The number, to hand to a system that checks fencing numbers itself.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// When a lookup saw the namespace's [record of invalidated tags](crate::storage#tags).
///
/// Taken before an answer is computed and handed to the [`put`](crate::Storage::put) that stores
/// it, a fence makes sure that nothing which was invalidated in between is ever served. Whoever wants
/// to share an answer that is already being computed may do so only if the own lookup saw an equal
/// fence.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fence {
    generation: u128,
    stamp: u64,
    epoch: u64,
}

impl Fence {
    /// For backends: the generation and last stamp of the record of tags, and the epoch of the
    /// connection over which it was read (0 where there is no connection).
    pub const fn new(generation: u128, stamp: u64, epoch: u64) -> Self {
        Self { generation, stamp, epoch }
    }

    /// The 128-bit random name of the record.
    pub const fn generation(&self) -> u128 {
        self.generation
    }

    /// The last stamp that the record had given.
    pub const fn stamp(&self) -> u64 {
        self.stamp
    }

    /// Which set of connections. When one of them is replaced, all are, and the number is counted
    /// up; a put with the fence of another epoch is refused.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fence(..)")
    }
}

/// How to look an entry up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Get {
    /// Extends the entry's life, if it is due.
    pub touch: Option<Touch>,
    /// Also returns a fence, creating the namespace's record of tags if it is missing.
    pub fence: bool,
    /// The version whose value the reader already holds.
    pub known: Option<Version>,
    /// The value may be large. A hint, by which a backend keeps it out of the way of small answers.
    pub large_value: bool,
}

impl Get {
    /// Reads the entry and changes nothing.
    pub const fn new() -> Self {
        Self { touch: None, fence: false, known: None, large_value: false }
    }

    /// Extends the entry's life to `touch.ttl` from now if it has drifted by more than the slack.
    #[must_use]
    pub const fn with_touch(mut self, touch: Touch) -> Self {
        self.touch = Some(touch);
        self
    }

    /// Also returns a fence.
    #[must_use]
    pub const fn with_fence(mut self) -> Self {
        self.fence = true;
        self
    }

    /// Leaves the value out if the live entry has exactly this version: the reader holds it already
    /// and wants to know whether it still counts. See [`Entry::unchanged`].
    #[must_use]
    pub const fn with_known(mut self, version: Version) -> Self {
        self.known = Some(version);
        self
    }

    /// Says that the value may be large, from some 32 KiB on, so that nothing small has to wait
    /// behind it. Only a hint: the answer is the same.
    #[must_use]
    pub const fn with_large_value(mut self) -> Self {
        self.large_value = true;
        self
    }
}

/// A sliding expiry: the entry lives `ttl` from now on, but never past its deadline.
///
/// Nothing is written while that would prolong the life by no more than `slack`, so most reads of a
/// busy entry write nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// The life from now on.
    pub ttl: Duration,
    /// How far the remaining life may fall below what a touch would make it before it is written.
    pub slack: Duration,
}

/// The condition of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Whatever is there.
    Always,
    /// Only if there is nothing.
    Absent,
    /// Only if exactly this version is there.
    Version(Version),
}

/// What to store, for how long, and when.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Put<'a> {
    /// The bytes; opaque to the storage.
    pub value: Bytes,
    /// The entry dies that long after the last put or touch. At least one millisecond.
    pub ttl: Duration,
    /// The entry dies that long from now whatever touches it. On a `Version` put, `None` keeps the
    /// deadline and `Some` can only bring it forward. Required with tags.
    pub max_lifetime: Option<Duration>,
    /// Labels by which the entry can be invalidated. A `Version` put keeps the entry's tags and
    /// takes none.
    pub tags: &'a [Tag],
    /// The condition.
    pub when: When,
    /// A fence from a lookup before the value was made. Required with tags, and part of the
    /// condition.
    pub fence: Option<Fence>,
    /// Whether a bounded backend may drop the entry when it is short of room. Default: no.
    pub evictable: bool,
}

impl<'a> Put<'a> {
    /// Stores the value for `ttl`, whatever is there.
    pub const fn new(value: Bytes, ttl: Duration) -> Self {
        Self {
            value,
            ttl,
            max_lifetime: None,
            tags: &[],
            when: When::Always,
            fence: None,
            evictable: false,
        }
    }

    /// Stores only if the condition holds.
    #[must_use]
    pub const fn with_condition(mut self, when: When) -> Self {
        self.when = when;
        self
    }

    /// Ends the entry that long from now, whatever touches it.
    #[must_use]
    pub const fn with_max_lifetime(mut self, max_lifetime: Duration) -> Self {
        self.max_lifetime = Some(max_lifetime);
        self
    }

    /// Stores only if none of the entry's tags was invalidated since the fence was taken.
    #[must_use]
    pub const fn with_fence(mut self, fence: Fence) -> Self {
        self.fence = Some(fence);
        self
    }

    /// Labels the entry.
    #[must_use]
    pub const fn with_tags(mut self, tags: &'a [Tag]) -> Self {
        self.tags = tags;
        self
    }

    /// Lets a bounded backend drop the entry when it is short of room.
    #[must_use]
    pub const fn with_eviction(mut self) -> Self {
        self.evictable = true;
        self
    }
}

/// A live entry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The bytes that were put; none if the entry is [`unchanged`](Self::unchanged).
    pub value: Bytes,
    /// The number of the last successful put.
    pub version: Version,
    /// The time since the last successful put; a touch does not reset it.
    pub age: Duration,
    /// The time until the entry dies if nothing touches it.
    pub ttl: Duration,
    /// The time until the deadline that no touch can pass, if there is one.
    pub life_left: Option<Duration>,
    /// One of the entry's tags was invalidated [softly](Invalidation::Soft).
    pub stale: bool,
    /// The version is the one that the lookup [knew](Get::with_known), so the value was left out.
    pub unchanged: bool,
}

impl Entry {
    /// For backends: an entry with its value, without a deadline, that is not stale.
    pub const fn new(value: Bytes, version: Version, age: Duration, ttl: Duration) -> Self {
        Self { value, version, age, ttl, life_left: None, stale: false, unchanged: false }
    }

    /// For backends that have read the whole entry: leaves the value out if the reader
    /// [knows](Get::known) this version.
    #[must_use]
    pub fn without_known(mut self, known: Option<Version>) -> Self {
        if known == Some(self.version) {
            self.value = Bytes::new();
            self.unchanged = true;
        }
        self
    }
}

/// The answer to a [`get`](crate::Storage::get).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lookup {
    /// The entry, if it is alive.
    pub entry: Option<Entry>,
    /// The fence, if it was asked for.
    pub fence: Option<Fence>,
}

impl Lookup {
    /// For backends.
    pub const fn new(entry: Option<Entry>, fence: Option<Fence>) -> Self {
        Self { entry, fence }
    }
}

/// The answer to a [`put`](crate::Storage::put).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutOutcome {
    /// Stored, under this version.
    Stored(Version),
    /// Not stored, because the condition did not hold; what is there instead. An `Absent` put
    /// without a fence always finds something.
    Conflict(Option<Entry>),
}

/// What an [`invalidate`](crate::Storage::invalidate) reaches.
#[derive(Debug, Clone, Copy)]
pub enum Tags<'a> {
    /// Every entry of the namespace with at least one of these tags.
    Any(&'a [Tag]),
    /// Every entry of the namespace that was put with tags or with a fence.
    All,
}

/// How an [`invalidate`](crate::Storage::invalidate) ends entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Invalidation {
    /// The entries are dead at once.
    Hard,
    /// The entries live on, marked [`stale`](Entry::stale). With [`Tags::All`] they are dead all
    /// the same: a new generation has no memory of the old.
    Soft,
}

/// One quota to be charged.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Charge<'a> {
    /// The counter. It belongs to [`acquire`](crate::Storage::acquire) alone; do not use a key for
    /// both a counter and an entry.
    pub key: &'a Key,
    /// The limit. It may differ from call to call: usage is kept.
    pub quota: Quota,
    /// What to do.
    pub spend: Spend,
    /// Whether a refusal of this charge refuses the whole call. One that is not enforced is counted
    /// as if it were, and vetoes nothing.
    pub enforce: bool,
}

impl<'a> Charge<'a> {
    /// An enforced charge.
    pub const fn new(key: &'a Key, quota: Quota, spend: Spend) -> Self {
        Self { key, quota, spend, enforce: true }
    }

    /// Counts without ever refusing the call.
    #[must_use]
    pub const fn without_enforcement(mut self) -> Self {
        self.enforce = false;
        self
    }
}

/// What a charge does to its quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spend {
    /// Takes this many units if they are there. Zero is always allowed and takes nothing.
    Take(u32),
    /// Takes nothing; the verdict says whether one unit is there.
    Peek,
    /// Takes this many units whether they are there or not. The receipt names those that the
    /// counter could hold.
    Force(u32),
    /// Gives units of an earlier take back to the window, slot or entry of its receipt; if that is
    /// gone, gives back nothing.
    Refund {
        /// How many of the units.
        units: u32,
        /// The receipt of the take.
        receipt: Receipt,
    },
    /// Forgets all usage. Receipts from before return nothing any more.
    ///
    /// A bounded backend that lets the identity share a counter with others, for want of room,
    /// leaves that as it is.
    Reset,
}

impl Spend {
    /// Whether the counter may be another afterwards. What changes nothing need not be stored.
    pub const fn changes(&self) -> bool {
        !matches!(self, Self::Take(0) | Self::Peek | Self::Force(0))
    }
}

/// Proof of a take, by which a [refund](Spend::Refund) finds what it returns to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    pub(crate) birth: u64,
    pub(crate) mark: u64,
    pub(crate) position: u64,
    pub(crate) returned: u64,
    pub(crate) units: u32,
}

impl Receipt {
    /// How many units were taken.
    pub const fn units(&self) -> u32 {
        self.units
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receipt({} units)", self.units)
    }
}

/// What became of one charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verdict {
    /// Whether this quota had room. The call as a whole was granted if every enforced charge was
    /// allowed; only then was anything taken.
    pub allowed: bool,
    /// The most units that can be there at once.
    pub limit: u32,
    /// Units left now.
    pub remaining: u32,
    /// Until nothing of what was used counts any more.
    pub reset_after: Duration,
    /// Until more than `remaining` units are there; zero if all are.
    pub replenish_after: Duration,
    /// Until the same charge would be allowed if nobody else spends: zero if it was,
    /// `None` if it can never be.
    pub retry_after: Option<Duration>,
    /// What was taken, if anything was.
    pub receipt: Option<Receipt>,
}

/// What a backend can do.
///
/// Layers ask when they are built, so that a backend which cannot hold a promise is refused then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Capabilities {
    /// The state lives in this process: nobody else changes it, and asking costs no round trip.
    pub local: bool,
    /// Charges of different identities in one call are decided as one. Without it they are
    /// reserved in order and refunded on a later refusal.
    pub atomic_across_identities: bool,
}

impl Capabilities {
    /// Nothing beyond what the contract requires.
    pub const fn new() -> Self {
        Self { local: false, atomic_across_identities: false }
    }

    /// See [`local`](Self::local).
    #[must_use]
    pub const fn with_local(mut self) -> Self {
        self.local = true;
        self
    }

    /// See [`atomic_across_identities`](Self::atomic_across_identities).
    #[must_use]
    pub const fn with_atomic_across_identities(mut self) -> Self {
        self.atomic_across_identities = true;
        self
    }
}
