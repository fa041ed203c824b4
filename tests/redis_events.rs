//! What an operator of a service on Redis reads in the log.
//!
//! A binary of its own: `tracing` remembers per process who wants an event.
#![cfg(all(feature = "redis", feature = "tracing"))]

mod support;

#[path = "support/log.rs"]
mod log;

use std::time::Duration;

use log::Log;
use support::{RedisServer, until};
use tower_keep::RedisStorage;

#[tokio::test]
async fn an_outage_is_told_once_when_it_begins_and_once_when_it_ends() {
    let log = Log::start();

    let mut server = RedisServer::start_with(&["--requirepass", "hunter2"]);
    let url = format!("redis://:hunter2@127.0.0.1:{}", server.port());
    let within = Duration::from_secs(10);
    let builder = RedisStorage::builder().url(url).decision_deadline(within);
    let storage = builder.connect_timeout(within).build().await.unwrap();
    server.kill();
    until(within, || async {
        storage.ping().await.err().filter(|error| error.to_string().contains("until a probe"))
    })
    .await;
    server.restart();
    until(within, || async { storage.ping().await.ok() }).await;

    let log = log.text();
    for event in ["no secret is configured", "outage began", "outage ended", "connection replaced"]
    {
        assert_eq!(log.matches(event).count(), 1, "{event}:\n{log}");
    }
    assert!(!log.contains("hunter2"), "{log}");
}
