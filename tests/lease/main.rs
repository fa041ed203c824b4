//! The promises of leases: on paused time, and between processes on a real Redis.

#[path = "../support/race.rs"]
mod race;
#[path = "../support/mod.rs"]
mod support;

mod contention;
mod faulty;
mod holder;
mod processes;
mod promises;
