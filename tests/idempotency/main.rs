//! Idempotency keys, as their users see them.

#[path = "../support/log.rs"]
mod log;
#[path = "../support/race.rs"]
mod race;
#[path = "../support/mod.rs"]
mod support;

mod basics;
mod extractor;
mod operators;
mod policy;
mod quotas;
mod recovery;
mod states;
mod till;
mod waiting;
mod wire;
