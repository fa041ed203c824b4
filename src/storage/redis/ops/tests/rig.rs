//! A server of its own for each test.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use redis::aio::MultiplexedConnection;

use super::super::super::{Inner, RedisStorage, lanes::Lanes, script::Scripts};
use crate::storage::{HashKey, Name};

pub(super) const PREFIX: &str = "tk";
const CLOCK: &str = "tk:clock";
/// 2026-11-21, 02:30 UTC.
pub(super) const START: u64 = 1_795_228_200_000_000;

pub(super) struct Server {
    child: Child,
    directory: PathBuf,
}

impl Server {
    pub(super) fn start() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tower-keep-lua-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--dir"])
            .arg(&directory)
            .arg("--unixsocket")
            .arg(directory.join("socket"))
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        Self { child, directory }
    }

    pub(super) async fn connect(&self) -> MultiplexedConnection {
        let url = format!("unix://{}", self.directory.join("socket").display());
        let client = redis::Client::open(url).unwrap();
        let started = Instant::now();
        loop {
            match client.get_multiplexed_async_connection().await {
                Ok(connection) => return connection,
                Err(error) => assert!(started.elapsed() < Duration::from_secs(10), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A storage and the connection under it.
pub(super) struct Rig {
    pub(super) storage: RedisStorage,
    pub(super) redis: MultiplexedConnection,
    pub(super) hash_key: HashKey,
    pub(super) prefix: Name,
    _server: Server,
}

impl Rig {
    pub(super) async fn on_server_time() -> Self {
        Self::new(Scripts::on_server_time()).await
    }

    pub(super) async fn on_virtual_time() -> Self {
        let mut rig = Self::new(Scripts::on_virtual_time(CLOCK)).await;
        rig.set_clock(START).await;
        rig
    }

    async fn new(scripts: &'static Scripts) -> Self {
        let server = Server::start();
        let redis = server.connect().await;
        let hash_key = HashKey::derive(b"rig");
        let prefix = Name::new(PREFIX);
        let lanes = Lanes {
            connection: redis.clone(),
            hash_key: hash_key.clone(),
            epoch: AtomicU64::new(1),
        };
        let inner = Inner { lanes, prefix: prefix.clone(), scripts };
        Self {
            storage: RedisStorage { inner: Arc::new(inner) },
            redis,
            hash_key,
            prefix,
            _server: server,
        }
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
        counts.filter(|(name, _)| !matches!(name.as_str(), "config|resetstat" | "info")).collect()
    }

    /// Microseconds that the server spent in each script since the last `CONFIG RESETSTAT`.
    pub(super) async fn cost_of_scripts(&mut self) -> f64 {
        let info: String = self.run(&[b"INFO", b"commandstats"]).await;
        let line = info.lines().find(|line| line.contains("evalsha")).unwrap();
        let (_, cost) = line.split_once("usec_per_call=").unwrap();
        cost.split(',').next().unwrap().parse().unwrap()
    }

    /// Every key has a life, and the prefix.
    pub(super) async fn check_keys(&mut self) {
        let keys: Vec<Vec<u8>> = self.run(&[b"KEYS", b"*"]).await;
        for key in keys {
            let shown = String::from_utf8_lossy(&key).into_owned();
            assert!(shown.starts_with("tk:"), "{shown} is outside the prefix");
            let ttl: i64 = self.run(&[b"PTTL", &key]).await;
            assert!(ttl > 0, "{shown} has no end");
        }
    }
}

/// Runs a test on a fresh rig.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Cases of a property: few, unless `TOWER_KEEP_LONG` is set.
pub(super) fn cases(few: u32) -> u32 {
    if std::env::var_os("TOWER_KEEP_LONG").is_some() { few * 50 } else { few }
}
