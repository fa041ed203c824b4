//! The wall clock. Nothing else reads it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The wall clock's time.
#[cfg(feature = "session")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// The time since the Unix epoch; zero on a clock that is set before it.
pub(crate) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
