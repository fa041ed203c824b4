//! Why a policy cannot be used.

use std::{fmt, time::Duration};

/// As many as an exact counter can hold.
pub(super) const MOST_IN_FLIGHT: u32 = 1_000;

/// Why a [`Policy`](super::Policy) cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyError {
    /// The name is not of 1 to 40 characters from `a-z`, `A-Z`, `0-9`, `-`, `_`, `.`.
    Name(String),
    /// The lease is shorter than a tenth of a second.
    Lease(Duration),
    /// The retention is not longer than the lease.
    Retention(Duration),
    /// In no time at all no storage answers.
    Timeout,
    /// No request has a method that needs a key.
    Methods,
    /// No key is that long.
    KeyLength {
        /// The shortest.
        min: usize,
        /// The longest.
        max: usize,
    },
    /// A scope may have 1 to 1,000 keys in flight.
    InFlight(u32),
    /// No handler may run.
    Running,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(
                f,
                "{name:?} is no name for keys: use 1 to 40 characters from a-z, A-Z, 0-9, '-', \
                 '_', '.'"
            ),
            Self::Lease(lease) => write!(
                f,
                "a lease of {lease:?} cannot be used: choose 100 ms or more; seconds are usual"
            ),
            Self::Retention(retention) => write!(
                f,
                "a retention of {retention:?} cannot be used: choose one longer than the lease; a \
                 day is usual"
            ),
            Self::Timeout => f.write_str(
                "a timeout of nothing cannot be used: every operation of the storage would fail",
            ),
            Self::Methods => f.write_str("no method needs a key: name one with `with_methods`"),
            Self::KeyLength { min, max } => {
                write!(f, "no key has at least {min} and at most {max} characters")
            }
            Self::InFlight(most) => {
                write!(f, "a scope may have 1 to {MOST_IN_FLIGHT} keys in flight, not {most}")
            }
            Self::Running => f.write_str("with no handler running at all, none ever would"),
        }
    }
}

impl std::error::Error for PolicyError {}
