//! Idempotency keys, as their users see them.

#[path = "../support/race.rs"]
mod race;
#[path = "../support/staged.rs"]
mod staged;
#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code)]
#[path = "../session/watched.rs"]
mod watched;

mod basics;
mod bodies;
mod cancel;
mod commands;
mod desk;
mod dispositions;
mod drain;
mod failures;
mod flows;
mod history;
mod layers;
mod network;
mod outage;
mod outcomes;
mod probes;
mod races;
mod reviewed;
mod states;
mod till;
mod traces;
mod uploads;
mod wire;
use race::redis_storage;
use support::RedisServer;
use tower_keep::{MemoryStorage, Storage, storage::AnyStorage};
/// Both backends, for what may differ between them.
async fn storages(prefix: &str) -> (RedisServer, [AnyStorage; 2]) {
    let server = RedisServer::start();
    let redis = redis_storage(&server.url(), prefix).await;
    (server, [MemoryStorage::new().erase(), redis])
}
