//! The response cache, as its users see it.

#[path = "../support/race.rs"]
mod race;
#[path = "../support/mod.rs"]
mod support;

mod adversary;
mod basics;
mod bodies;
mod commands;
mod near;
mod outage;
mod outcomes;
mod probe;
mod probes;
mod purge_race;
mod purge_race_redis;
mod reviewed;
mod stage;
mod stampede;
mod torn_lookups;
mod values;
mod world;

use race::redis_storage;
