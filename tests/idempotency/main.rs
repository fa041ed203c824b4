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
mod cancel;
mod drain;
mod failures;
mod flows;
mod outage;
mod desk;
mod history;
mod network;
mod races;
mod till;
mod traces;
mod states;
mod wire;
mod bodies;
mod commands;
mod dispositions;
mod layers;
mod outcomes;
mod probes;
mod uploads;
use race::redis_storage;
use support::RedisServer;
use tower_keep::{MemoryStorage, Storage, storage::AnyStorage};
/// Both backends, for what may differ between them.
async fn storages(prefix: &str) -> (RedisServer, [AnyStorage; 2]) {
    let server = RedisServer::start();
    let redis = redis_storage(&server.url(), prefix).await;
    (server, [MemoryStorage::new().erase(), redis])
}
