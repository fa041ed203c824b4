//! Idempotency keys, as their users see them.

#[path = "../support/race.rs"]
mod race;
#[path = "../support/mod.rs"]
mod support;

mod basics;
mod desk;
mod history;
mod network;
mod nodes;
mod races;
mod stopped;
mod till;
