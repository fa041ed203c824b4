//! What an operator is told. Never a key, an address with a password, or a secret.

use std::time::Duration;

use super::RedisFinding;

#[cfg(feature = "tracing")]
const TARGET: &str = "tower_keep::redis";

pub(super) fn outage_began(cause: &str) {
    event!(warn, target: TARGET, cause = %cause, "outage began");
}

pub(super) fn outage_ended(lasted: Duration) {
    let lasted_ms = lasted.as_millis() as u64;
    event!(info, target: TARGET, lasted_ms = lasted_ms, "outage ended");
}

pub(super) fn lane_dropped(reason: &str) {
    event!(debug, target: TARGET, reason = %reason, "connection given up");
}

pub(super) fn lane_replaced(epoch: u64) {
    event!(info, target: TARGET, epoch = epoch, "connection replaced");
}

pub(super) fn secret_is_shared() {
    event!(warn, target: TARGET,
        "no secret is configured, so one is kept in redis: who can read a dump can find out \
         identities that are easy to guess; set TOWER_KEEP_SECRET, the same on every node"
    );
}

pub(super) fn found(finding: &RedisFinding) {
    event!(warn, target: TARGET, "{finding}");
}

pub(super) fn secret_changed() {
    event!(warn, target: TARGET, "the shared secret in redis changed: entries from before are no longer found");
}
