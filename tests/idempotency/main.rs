//! Idempotency keys, as their users see them.

#[path = "../support/log.rs"]
mod log;
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
mod extractor;
mod failures;
mod flows;
mod history;
mod layers;
mod lost_redis;
mod network;
mod nodes;
mod operators;
mod outage;
mod outcomes;
mod policy;
mod probes;
mod quotas;
mod races;
mod recovery;
mod reviewed;
mod states;
mod stopped;
mod till;
mod traces;
mod uploads;
mod waiting;
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
