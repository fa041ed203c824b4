//! The response cache, as its users see it.

use std::time::Duration;

use tower_keep::{RedisStorage, Storage, storage::AnyStorage};

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

/// A storage on this server. A busy test machine may take longer than the default allows, and what
/// a slow answer does is tested elsewhere.
async fn redis_storage(url: &str, prefix: &str) -> AnyStorage {
    RedisStorage::builder()
        .url(url)
        .prefix(prefix)
        .decision_deadline(Duration::from_secs(10))
        .entry_deadline(Duration::from_secs(10))
        .build()
        .await
        .unwrap()
        .erase()
}
