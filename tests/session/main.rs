//! Sessions, as their users see them.

use std::time::Duration;

use tower_keep::{RedisStorage, Storage, storage::AnyStorage};

#[path = "../support/mod.rs"]
mod support;

mod asvs;
mod basics;
mod cancel;
mod commands;
mod cookies;
mod data;
mod layers;
mod nodes;
mod outage;
mod principals;
mod probes;
mod races;
mod reviewed;
mod reviewed_http;
mod shop;
mod staged;
mod time;
mod watched;

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
