//! Idempotency keys, as their users see them.

#[path = "../support/race.rs"]
mod race;
#[path = "../support/staged.rs"]
mod staged;
#[path = "../support/mod.rs"]
mod support;

mod basics;
mod cancel;
mod drain;
mod failures;
mod flows;
mod lost_redis;
mod outage;
mod till;
mod traces;
