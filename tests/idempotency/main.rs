//! Idempotency keys, as their users see them.

#[path = "../support/race.rs"]
mod race;
#[path = "../support/mod.rs"]
mod support;

mod basics;
mod operators;
mod recovery;
mod states;
mod till;
mod waiting;
mod wire;
