//! How long a stored answer may be used, and how.

use std::time::Duration;

/// What the header fields of an answer, or the route's policy, say about its reuse.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Freshness {
    pub(crate) lifetime: Duration,
    pub(crate) initial_age: Duration,
    pub(crate) stale_while_revalidate: Duration,
    pub(crate) stale_if_error: Duration,
    pub(crate) always_revalidate: bool,
    pub(crate) must_revalidate: bool,
    pub(crate) authorized: bool,
    pub(crate) heuristic: bool,
}
