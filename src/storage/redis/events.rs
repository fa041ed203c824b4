//! What an operator is told. Never a key, an address with a password, or a secret.

use std::time::Duration;

#[cfg(feature = "tracing")]
macro_rules! tell {
    ($level:ident, $($event:tt)+) => { tracing::$level!(target: "tower_keep::redis", $($event)+) };
}

/// Uses what the event would have shown.
#[cfg(not(feature = "tracing"))]
macro_rules! tell {
    ($level:ident, $($name:ident = $(%)? $value:expr,)* $text:literal) => { $(let _ = &$value;)* };
}

pub(super) fn outage_began(cause: &str) {
    tell!(warn, cause = %cause, "outage began");
}

pub(super) fn outage_ended(lasted: Duration) {
    let lasted_ms = lasted.as_millis() as u64;
    tell!(info, lasted_ms = lasted_ms, "outage ended");
}

pub(super) fn lane_dropped(reason: &str) {
    tell!(debug, reason = %reason, "connection given up");
}

pub(super) fn lane_replaced(epoch: u64) {
    tell!(info, epoch = epoch, "connection replaced");
}

pub(super) fn secret_is_shared() {
    tell!(
        warn,
        "no secret is configured, so one is kept in redis: who can read a dump can find out \
         identities that are easy to guess; set TOWER_KEEP_SECRET, the same on every node"
    );
}

pub(super) fn secret_changed() {
    tell!(warn, "the shared secret in redis changed: entries from before are no longer found");
}
