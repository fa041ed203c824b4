//! A server of its own for each test.

use std::{collections::BTreeMap, time::Duration};

use redis::aio::MultiplexedConnection;

use super::super::super::{
    RedisStorage, RedisStorageBuilder, lanes::Class, tests::support::RedisServer,
};
use crate::storage::{HashKey, Name};

pub(super) const PREFIX: &str = "tk";
const CLOCK: &str = "tk:clock";
/// 2026-11-21, 02:30 UTC.
pub(super) const START: u64 = 1_795_228_200_000_000;

/// A storage and the connection under it.
pub(super) struct Rig {
    pub(super) storage: RedisStorage,
    pub(super) redis: MultiplexedConnection,
    pub(super) hash_key: HashKey,
    pub(super) prefix: Name,
    server: RedisServer,
    set_up: fn(RedisStorageBuilder) -> RedisStorageBuilder,
}

impl Rig {
    pub(super) async fn on_server_time() -> Self {
        Self::new(|builder| builder).await
    }

    pub(super) async fn on_virtual_time() -> Self {
        let mut rig = Self::new(|builder| builder.virtual_clock_key(CLOCK)).await;
        rig.set_clock(START).await;
        rig
    }

    /// Of another process, as it were: it knows the same server and secret, and has seen nothing.
    pub(super) async fn another_storage(&self) -> RedisStorage {
        (self.set_up)(builder(&self.server)).build().await.unwrap()
    }

    async fn new(set_up: fn(RedisStorageBuilder) -> RedisStorageBuilder) -> Self {
        let server = RedisServer::start_unix();
        let client = redis::Client::open(server.url()).unwrap();
        let redis = client.get_multiplexed_async_connection().await.unwrap();
        let storage = set_up(builder(&server)).build().await.unwrap();
        let ticket = storage.inner.lanes.enter(Class::Entry).await.unwrap();
        let hash_key = ticket.hash_key().clone();
        drop(ticket);
        Self { storage, redis, hash_key, prefix: Name::new(PREFIX), server, set_up }
    }

    pub(super) async fn set_clock(&mut self, now: u64) {
        let (s, us) = (now / 1_000_000, now % 1_000_000);
        let mut pipe = redis::pipe();
        pipe.cmd("HSET").arg(CLOCK).arg("s").arg(s).arg("us").arg(us);
        pipe.cmd("EXPIRE").arg(CLOCK).arg(3_600);
        let () = pipe.query_async(&mut self.redis).await.unwrap();
    }

    pub(super) async fn run<T: redis::FromRedisValue>(&mut self, command: &[&[u8]]) -> T {
        let mut cmd = redis::Cmd::new();
        for part in command {
            cmd.arg(*part);
        }
        cmd.query_async(&mut self.redis).await.unwrap()
    }

    /// How often each command ran since the last `CONFIG RESETSTAT`, without what this asks itself.
    pub(super) async fn commands(&mut self) -> BTreeMap<String, u64> {
        let info: String = self.run(&[b"INFO", b"commandstats"]).await;
        let counts = info.lines().filter_map(|line| {
            let (name, stats) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), stats.split_once(',')?.0.parse().unwrap()))
        });
        // Redis 6.2 names no subcommands.
        let own = |name: &str| matches!(name, "config" | "config|resetstat" | "info");
        counts.filter(|(name, _)| !own(name)).collect()
    }

    pub(super) fn check_keys(&self) {
        self.server.check_keys(PREFIX);
    }
}

/// Nothing here is about deadlines, and the machine may be busy.
fn builder(server: &RedisServer) -> RedisStorageBuilder {
    RedisStorage::builder()
        .url(server.url())
        .prefix(PREFIX)
        .secret("a secret for the rig")
        .decision_deadline(Duration::from_secs(10))
        .entry_deadline(Duration::from_secs(10))
}

/// Runs a test on a fresh rig.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Cases of a property: few, unless `TOWER_KEEP_LONG` is set.
pub(super) fn cases(few: u32) -> u32 {
    if std::env::var_os("TOWER_KEEP_LONG").is_some() { few * 50 } else { few }
}
