//! State in Redis, shared between processes. Nothing outside this folder knows Redis.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use bb8_redis::{RedisConnectionManager, bb8};

use self::{lanes::Lanes, read::SeenTags, script::Scripts};
use super::{Name, Result, erased::Shared};
use crate::tasks::Drained;

mod audit;
mod breaker;
mod builder;
mod call;
mod codec;
mod error;
mod events;
mod health;
mod keys;
mod lanes;
mod link;
mod ops;
mod read;
mod script;
mod secret;
#[cfg(test)]
pub(crate) mod tests;

pub use self::{audit::RedisFinding, builder::RedisStorageBuilder};

/// State in Redis, shared between processes.
///
/// Clones share one small set of connections. Every operation is one round trip, atomic, and bound
/// by a deadline; times are the server's, so application servers need not agree on the time. Only a
/// lookup may take a second trip: when another process has put the entry with other tags than this
/// one has seen, when something is invalidated at that very moment, or when the value is wanted after
/// all because the version that the caller knows is no longer the one. It stays within the deadline.
///
/// Redis 6.2 or later, standalone. Sentinel and Cluster are not supported yet: give the address of
/// the master, or one that follows it. Each storage holds two connections, one for small commands
/// and one for large bodies.
///
/// Set `maxmemory-policy noeviction` on a server that holds sessions, claims or limits: every key
/// has an expiry, so the `volatile` policies evict them too. [`audit`](Self::audit) tells whether the
/// server is set up so.
///
/// # Outages
///
/// A server that is down when the service starts, or goes down later, is never waited for longer
/// than the deadline (100 ms for a decision about a limit, 500 ms for other operations). After five
/// failures in a row operations fail at once with
/// [`Unavailable`](crate::storage::ErrorKind::Unavailable), and one operation every 64 to 600 ms,
/// always on a fresh connection, finds out whether the server is back. Nothing needs to be
/// restarted, also not after a failover, a silent network failure or `SCRIPT FLUSH`.
///
/// An operation that may have been applied is never repeated.
///
/// With the feature `tracing`, "outage began" and "outage ended" are logged when those five failures
/// have happened and when the server answers again; a shorter one shows in what the layers log.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> tower_keep::storage::Result<()> {
/// use tower_keep::RedisStorage;
///
/// let storage = RedisStorage::connect("redis://127.0.0.1:6379").await?;
/// # Ok(())
/// # }
/// ```
///
/// # Security
///
/// Keys hold only keyed hashes of identities; see [`RedisStorageBuilder::secret`]. Neither `Debug`
/// nor an error shows a password.
#[derive(Clone)]
pub struct RedisStorage {
    inner: Arc<Inner>,
}

struct Inner {
    lanes: Lanes,
    prefix: Name,
    scripts: &'static Scripts,
    shared: Arc<Shared>,
    seen: SeenTags,
    /// Whether the server was looked at for a layer that asked for it.
    audited: AtomicBool,
}

impl RedisStorage {
    /// Connects to a server, with all settings at their defaults.
    ///
    /// The URL is `redis://user:password@host:port/database`, `rediss://` for TLS (feature
    /// `redis-tls`), or `unix:///path`.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::storage::ErrorKind::Configuration) for a URL that cannot be right,
    /// or if a server answered that the password, the database or the certificate is wrong. A
    /// server that cannot be reached is no error: the storage starts in an outage and heals.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind but a connection that closes itself.
    pub async fn connect(url: impl Into<String>) -> Result<Self> {
        Self::builder().url(url).build().await
    }

    /// Settings other than the defaults.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example() -> tower_keep::storage::Result<()> {
    /// use tower_keep::RedisStorage;
    ///
    /// let storage = RedisStorage::builder()
    ///     .url("redis://cache.internal:6379/2")
    ///     .prefix("shop")
    ///     .secret(std::fs::read("/run/secrets/tower-keep").expect("a mounted secret"))
    ///     .build()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> RedisStorageBuilder {
        RedisStorageBuilder::new()
    }

    /// Takes connections from a pool of yours.
    ///
    /// The pool is asked to make connections ([`bb8::Pool::dedicated_connection`]) and for nothing
    /// else: commands share a few of them for as long as they live, so the pool's size and tests do
    /// not matter here. Nothing is connected before the first operation. Turn `TCP_NODELAY` on in
    /// the pool's `ConnectionInfo`; the redis crate leaves it off.
    ///
    /// With a `rediss://` pool, install a rustls `CryptoProvider` for the process.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::storage::ErrorKind::Configuration) if `TOWER_KEEP_SECRET` is set
    /// and too short.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_keep::{RedisStorage, bb8_redis::{RedisConnectionManager, bb8}};
    ///
    /// let manager = RedisConnectionManager::new("redis://127.0.0.1:6379")?;
    /// let pool = bb8::Pool::builder().build_unchecked(manager);
    /// let storage = RedisStorage::from_pool(pool)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_pool(pool: bb8::Pool<RedisConnectionManager>) -> Result<Self> {
        Self::builder().pool(pool).build_unconnected()
    }

    /// Asks the server for a sign of life, within the deadline of a decision: for a readiness check
    /// and for tests.
    ///
    /// # Errors
    ///
    /// As every operation; at once during an outage.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time.
    pub async fn ping(&self) -> Result<()> {
        self.inner.lanes.ping().await
    }

    /// Waits until all is done that layers and handles on clones of this storage do beside requests:
    /// see [`AnyStorage::shutdown`](crate::storage::AnyStorage::shutdown).
    ///
    /// The connections stay open.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example() -> tower_keep::storage::Result<()> {
    /// use std::time::Duration;
    /// use tower_keep::RedisStorage;
    ///
    /// let storage = RedisStorage::connect("redis://127.0.0.1:6379").await?;
    /// // The server runs with layers on clones of the storage, and ends.
    /// let drained = storage.shutdown(Duration::from_secs(10)).await;
    /// assert!(drained.is_clean(), "{} tasks were given up", drained.abandoned);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn shutdown(&self, within: Duration) -> Drained {
        self.inner.shared.tasks.shutdown(within).await
    }
}

impl fmt::Debug for RedisStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStorage").field("prefix", &self.inner.prefix).finish_non_exhaustive()
    }
}
