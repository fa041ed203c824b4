//! What a policy chooses from.

use std::time::Duration;

/// What a duplicate may do after the owner of a key has vanished: its process has died, or was
/// stopped for longer than its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Repeat {
    /// It runs the handler again. The default: no key is ever stuck, and a side effect may happen
    /// twice unless it is itself keyed ([`child_key`](crate::idempotency::Idempotency::child_key), a unique
    /// constraint, or the [fence](crate::idempotency::Idempotency::fence)).
    #[default]
    AtLeastOnce,
    /// It does not: what came of the first is unknown, and stays so until a
    /// [recovery](super::Policy::with_recovery), an operator
    /// ([`IdempotencyKeys`](crate::idempotency::IdempotencyKeys)) or the owner, if it comes back, says.
    /// With a [commit point](super::Policy::with_commit_point) an owner that vanished before it has done
    /// nothing, and the handler runs again.
    AtMostOnce,
}

/// What a duplicate is told while the first is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum InFlight {
    /// 409 with `Retry-After`. The default.
    #[default]
    Conflict,
    /// It waits for so long at most, or for less if it says `Prefer: wait=n` (RFC 7240 §4.3), and is
    /// given the answer of the first, or 409 in the end.
    Wait(Duration),
    /// The same, but only if it says `Prefer: wait=n`.
    WaitIfPreferred(Duration),
}

/// What becomes of a request with a key while the storage gives no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Outage {
    /// It is refused before the handler runs: 503 with `Retry-After`. The default.
    #[default]
    Closed,
    /// The handler runs, and nothing is known of it afterwards: duplicates run it again, also under
    /// [`Repeat::AtMostOnce`]. A request that has seen that its key is in use, before the storage went
    /// away, is refused nevertheless.
    Open,
}

/// What becomes of a request that has a key and no scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum MissingScope {
    /// It is refused: 400. The default.
    #[default]
    Refuse,
    /// It goes to the handler as if it had no key: authentication inside will refuse it.
    Pass,
}
