//! The conformance suite on Redis: on the server's own clock, and against the model on one that the
//! test turns.
#![cfg(feature = "conformance")]

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use tower_keep::{
    RedisStorage, Storage,
    bb8_redis::redis::{self, aio::MultiplexedConnection},
    conformance::{self, Harness},
    storage::{
        AnyStorage, Capabilities, Charge, Get, Invalidation, Key, Lookup, Name, Put, PutOutcome,
        Result, Tags, Verdict, When,
    },
};

mod support;

use support::RedisServer;

/// A server with storages that share nothing but it.
struct Server {
    server: RedisServer,
    storages: AtomicUsize,
}

impl Server {
    fn start() -> Self {
        Self { server: RedisServer::start(), storages: AtomicUsize::new(0) }
    }

    async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.server.url()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    fn builder(&self) -> tower_keep::RedisStorageBuilder {
        let n = self.storages.fetch_add(1, Relaxed);
        // A busy test machine may take longer than the defaults allow.
        RedisStorage::builder()
            .url(self.server.url())
            .prefix(format!("suite{n}"))
            .decision_deadline(Duration::from_secs(10))
            .entry_deadline(Duration::from_secs(10))
    }

    /// Deletes every record of tags of a namespace, as an eviction would.
    async fn lose_tags(&self, namespace: &Name) -> bool {
        let mut connection = self.connection().await;
        let pattern = format!("suite*:{}:*:tags", namespace.as_str());
        let keys: Vec<Vec<u8>> =
            redis::cmd("KEYS").arg(pattern).query_async(&mut connection).await.unwrap();
        if !keys.is_empty() {
            let _: () = redis::cmd("DEL").arg(keys).query_async(&mut connection).await.unwrap();
        }
        true
    }

    /// What the suite has left behind: every key under a prefix, and with an end.
    async fn leaves_nothing_for_ever(&self) {
        let mut connection = self.connection().await;
        let keys: Vec<String> =
            redis::cmd("KEYS").arg("*").query_async(&mut connection).await.unwrap();
        assert!(!keys.is_empty());
        for key in keys {
            let ttl: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut connection).await.unwrap();
            // -2: it ended between the two commands.
            assert!(ttl != -1, "{key} has no end");
            assert!(key.starts_with("suite"), "{key} is outside of the prefix");
        }
    }
}

/// The server's own clock, and sleeps.
struct RealTime(Server);

impl Harness for RealTime {
    type Storage = RedisStorage;

    async fn storage(&self) -> RedisStorage {
        self.0.builder().build().await.unwrap()
    }

    async fn advance(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn tolerance(&self) -> Duration {
        self.tick()
    }

    async fn lose_tags(&self, _: &RedisStorage, namespace: &Name) -> bool {
        self.0.lose_tags(namespace).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_holds_on_the_clock_of_the_server() {
    let harness = RealTime(Server::start());
    let report = conformance::run_all(&harness).await;
    assert!(report.is_success(), "{report}");
    let skipped = report.skipped.len();
    assert_eq!(skipped, 0, "{report}");
    harness.0.leaves_nothing_for_ever().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn races_hold_between_threads() {
    let rounds = if std::env::var_os("TOWER_KEEP_LONG").is_some() { 100 } else { 5 };
    println!("{rounds} rounds");
    let harness = RealTime(Server::start());
    for _ in 0..rounds {
        conformance::of_64_racing_absent_puts_one_wins(&harness).await;
        conformance::of_64_racing_saves_one_wins(&harness).await;
        conformance::of_64_racing_deletes_one_wins(&harness).await;
        conformance::racing_takes_admit_exactly_the_limit(&harness).await;
        conformance::racing_calls_charge_both_quotas_or_none(&harness).await;
    }
}

/// A clock that the test turns. It moves by a microsecond with every operation, as a real one does.
struct VirtualTime(Server);

const CLOCK: &str = "suite:clock";

async fn turn(connection: &mut MultiplexedConnection, by: Duration) {
    let us = by.as_micros() as u64;
    let () = redis::pipe()
        .hincr(CLOCK, "us", us)
        .ignore()
        .hset_nx(CLOCK, "s", 1_800_000_000_u64)
        .ignore()
        .expire(CLOCK, 3_600)
        .ignore()
        .query_async(connection)
        .await
        .unwrap();
}

#[derive(Debug)]
struct Ticking {
    storage: RedisStorage,
    connection: MultiplexedConnection,
}

impl Ticking {
    async fn tick(&self) -> &RedisStorage {
        turn(&mut self.connection.clone(), Duration::from_micros(1)).await;
        &self.storage
    }
}

impl Storage for Ticking {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        self.tick().await.get(key, get).await
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        self.tick().await.put(key, put).await
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        self.tick().await.delete(key, when).await
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        self.tick().await.invalidate(namespace, tags, how).await
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        self.tick().await.acquire(charges).await
    }

    fn capabilities(&self) -> Capabilities {
        self.storage.capabilities()
    }

    fn erase(self) -> AnyStorage {
        AnyStorage::new(self)
    }
}

impl Harness for VirtualTime {
    type Storage = Ticking;

    async fn storage(&self) -> Ticking {
        let mut connection = self.0.connection().await;
        turn(&mut connection, Duration::ZERO).await;
        let storage = self.0.builder().virtual_clock_key(CLOCK).build().await.unwrap();
        Ticking { storage, connection }
    }

    async fn advance(&self, by: Duration) {
        turn(&mut self.0.connection().await, by).await;
    }

    fn tick(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn tolerance(&self) -> Duration {
        Duration::from_millis(1)
    }

    async fn lose_tags(&self, _: &Ticking, namespace: &Name) -> bool {
        self.0.lose_tags(namespace).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_agrees() {
    let cases = if std::env::var_os("TOWER_KEEP_LONG").is_some() { 1_000 } else { 50 };
    println!("{cases} histories");
    let harness = VirtualTime(Server::start());
    conformance::agrees_with_the_model(&harness, cases).await;
    harness.0.leaves_nothing_for_ever().await;
}
