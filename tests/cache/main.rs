//! The response cache, as its users see it.

#[path = "../support/mod.rs"]
mod support;

mod basics;
mod near;
mod outage;
mod purge_race;
mod purge_race_redis;
mod values;
mod world;
