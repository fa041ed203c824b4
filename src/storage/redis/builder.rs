//! How a [`RedisStorage`] is set up.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use bb8_redis::{RedisConnectionManager, bb8};
use redis::{ConnectionInfo, IntoConnectionInfo, io::tcp::TcpSettings};

use super::{
    Inner, RedisStorage,
    lanes::{Lanes, Settings},
    read::SeenTags,
    script::Scripts,
    secret::{SHORTEST, Secret},
};
use crate::storage::{Error, ErrorKind, Name, Result};

/// Where the secret is read from if the builder has none.
const SECRET_VARIABLE: &str = "TOWER_KEEP_SECRET";

/// Sets up a [`RedisStorage`]; see [`RedisStorage::builder`].
#[derive(Clone)]
#[must_use]
pub struct RedisStorageBuilder {
    source: Source,
    prefix: String,
    secret: Option<Secret>,
    decision: Duration,
    entry: Duration,
    connect: Duration,
    idle: Duration,
    small_lanes: usize,
    #[cfg(any(test, feature = "conformance"))]
    virtual_clock_key: Option<String>,
    #[cfg(feature = "redis-tls")]
    root_certificate: Option<Vec<u8>>,
}

#[derive(Clone)]
enum Source {
    Url(String),
    Pool(bb8::Pool<RedisConnectionManager>),
}

impl RedisStorageBuilder {
    pub(super) fn new() -> Self {
        Self {
            source: Source::Url("redis://127.0.0.1:6379".to_owned()),
            prefix: "tk".to_owned(),
            secret: None,
            decision: Duration::from_millis(100),
            entry: Duration::from_millis(500),
            connect: Duration::from_millis(250),
            idle: Duration::from_secs(2),
            small_lanes: 1,
            #[cfg(any(test, feature = "conformance"))]
            virtual_clock_key: None,
            #[cfg(feature = "redis-tls")]
            root_certificate: None,
        }
    }

    /// The server: `redis://user:password@host:port/database`, `rediss://` for TLS (feature
    /// `redis-tls`) or `unix:///path?db=1&user=..&pass=..`. Default: `redis://127.0.0.1:6379`.
    ///
    /// Characters of a password that mean something in a URL are written as `%40` and the like.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.source = Source::Url(url.into());
        self
    }

    /// A pool of yours, instead of a URL. See [`RedisStorage::from_pool`].
    pub fn pool(mut self, pool: bb8::Pool<RedisConnectionManager>) -> Self {
        self.source = Source::Pool(pool);
        self
    }

    /// What every key begins with. Default: `tk`.
    ///
    /// Services that share a server and not their state need different prefixes.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The secret with which identities are hashed: at least 16 bytes, the same on every node.
    /// Default: the environment variable `TOWER_KEEP_SECRET`.
    ///
    /// # Security
    ///
    /// Without a secret one is drawn and kept in Redis under `<prefix>:secret`. All nodes then
    /// agree by themselves, but who can read the server's memory or a dump can find out identities
    /// that are easy to guess, such as addresses. A changed secret is a fresh start: no entry from
    /// before is found.
    pub fn secret(mut self, secret: impl AsRef<[u8]>) -> Self {
        self.secret = Some(Secret::new(secret.as_ref()));
        self
    }

    /// How long a decision about a limit may take, with everything that belongs to it. Default:
    /// 100 ms.
    pub fn decision_deadline(mut self, deadline: Duration) -> Self {
        self.decision = deadline;
        self
    }

    /// How long any other operation may take. Default: 500 ms.
    pub fn entry_deadline(mut self, deadline: Duration) -> Self {
        self.entry = deadline;
        self
    }

    /// How long it may take to make the connections. Default: 250 ms.
    ///
    /// It may be longer than the deadlines: connecting goes on when a caller has stopped waiting.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect = timeout;
        self
    }

    /// How many connections small commands share, from 1 to 16; large bodies have one more.
    /// Default: 1.
    ///
    /// A single multiplexed connection is the fastest, because commands from many tasks leave in
    /// one write. More help only where one connection's task keeps a core busy.
    pub fn lanes(mut self, lanes: usize) -> Self {
        self.small_lanes = lanes;
        self
    }

    /// The certificate in PEM of the authority to be trusted, instead of the web's, for a server
    /// with a certificate of your own.
    #[cfg(feature = "redis-tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-tls")))]
    pub fn root_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.root_certificate = Some(pem.into());
        self
    }

    /// For tests of time: the server's clock is what the fields `s` and `us` of this hash say, and
    /// nothing expires in less than ten minutes of real time.
    ///
    /// The hash must be there before the first operation. Each storage that is built leaks its
    /// scripts.
    #[cfg(any(test, feature = "conformance"))]
    #[doc(hidden)]
    pub fn virtual_clock_key(mut self, key: impl Into<String>) -> Self {
        self.virtual_clock_key = Some(key.into());
        self
    }

    /// Shortens the pause after which a connection is asked first.
    #[cfg(test)]
    pub(super) fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// Connects, and starts all the same if the server is down: see [`RedisStorage::connect`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Configuration`] if a setting cannot be right, or a server answered that it is
    /// wrong (password, database, certificate).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind but a connection that closes itself.
    pub async fn build(self) -> Result<RedisStorage> {
        let storage = self.build_unconnected()?;
        storage.inner.lanes.warm_up().await?;
        Ok(storage)
    }

    pub(super) fn build_unconnected(self) -> Result<RedisStorage> {
        let prefix = Name::try_new(&self.prefix)?;
        let secret = match self.secret {
            Some(secret) => Some(secret),
            None => std::env::var_os(SECRET_VARIABLE)
                .filter(|secret| !secret.is_empty())
                .map(|secret| Secret::new(secret.as_encoded_bytes())),
        };
        if secret.as_ref().is_some_and(|secret| secret.len() < SHORTEST) {
            return Err(wrong(format!("the secret is shorter than {SHORTEST} bytes")));
        }
        if !(1..=16).contains(&self.small_lanes) {
            return Err(wrong("the number of lanes must be from 1 to 16"));
        }
        let pool = match self.source {
            Source::Pool(pool) => pool,
            Source::Url(url) => {
                let info = parse(&url)?;
                #[cfg(feature = "redis-tls")]
                let info = tls::trust(info, self.root_certificate)?;
                make_pool(info, self.connect)?
            }
        };
        let settings = Settings {
            decision: self.decision,
            entry: self.entry,
            connect: self.connect,
            idle: self.idle,
            small_lanes: self.small_lanes,
            prefix: prefix.clone(),
            secret,
        };
        #[cfg(any(test, feature = "conformance"))]
        let scripts = match self.virtual_clock_key {
            Some(key) => Scripts::on_virtual_time(&key),
            None => Scripts::on_server_time(),
        };
        #[cfg(not(any(test, feature = "conformance")))]
        let scripts = Scripts::on_server_time();
        let inner = Inner {
            lanes: Lanes::new(pool, settings),
            prefix,
            scripts,
            shared: Arc::default(),
            seen: SeenTags::new(),
            audited: AtomicBool::new(false),
        };
        Ok(RedisStorage { inner: Arc::new(inner) })
    }
}

impl fmt::Debug for RedisStorageBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStorageBuilder")
            .field("prefix", &self.prefix)
            .field("decision_deadline", &self.decision)
            .field("entry_deadline", &self.entry)
            .field("connect_timeout", &self.connect)
            .field("lanes", &self.small_lanes)
            .finish_non_exhaustive()
    }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Configuration, message)
}

/// What the URL says. Errors never quote it: any part of it may be a misplaced password.
fn parse(url: &str) -> Result<ConnectionInfo> {
    const FORMS: &str = "write redis://host:port, rediss://host:port or unix:///path";
    let Some((scheme, _)) = url.split_once("://") else {
        return Err(wrong(format!("the redis URL has no scheme: {FORMS}")));
    };
    match scheme {
        "redis" | "valkey" | "unix" | "redis+unix" | "valkey+unix" => {}
        "rediss" | "valkeys" if cfg!(feature = "redis-tls") => {}
        "rediss" | "valkeys" => {
            return Err(wrong("a rediss:// URL needs the feature `redis-tls` of tower-keep"));
        }
        _ => return Err(wrong(format!("the redis URL has an unknown scheme: {FORMS}"))),
    }
    let Some(parsed) = redis::parse_redis_url(url) else {
        return Err(wrong(
            "the redis URL cannot be parsed: check host and port, and write special characters of \
             the password as %40 and the like",
        ));
    };
    if parsed.fragment().is_some() {
        return Err(wrong(
            "the redis URL has a fragment: `#insecure` is not supported, trust the server's \
             certificate instead; write a `#` of the password as %23",
        ));
    }
    let info = parsed.into_connection_info().map_err(|error| {
        // "what is wrong - kind: detail", of which only the first is never taken from the URL.
        let text = error.to_string();
        let what = text.split(" - ").next().unwrap_or_default().to_lowercase();
        wrong(format!("the redis URL is wrong: {what}"))
    })?;
    // Off in redis 1.x; Nagle's algorithm halves the throughput over a real network.
    Ok(info.set_tcp_settings(TcpSettings::default().set_nodelay(true)))
}

/// A pool that makes connections and holds none: no reaper, no retries, no waiting.
fn make_pool(info: ConnectionInfo, connect: Duration) -> Result<bb8::Pool<RedisConnectionManager>> {
    let manager = RedisConnectionManager::new(info)
        .map_err(|_| wrong("the redis client refuses this address"))?;
    Ok(bb8::Pool::builder()
        .max_size(8)
        .min_idle(0)
        .idle_timeout(None)
        .max_lifetime(None)
        .retry_connection(false)
        .connection_timeout(connect)
        .build_unchecked(manager))
}

#[cfg(feature = "redis-tls")]
mod tls {
    use redis::{Client, ConnectionAddr, ConnectionInfo, TlsCertificates};
    use rustls::crypto::{CryptoProvider, ring};

    use super::{Result, wrong};

    /// Adds the trusted authority, and makes sure that there is cryptography at all.
    pub(super) fn trust(info: ConnectionInfo, root: Option<Vec<u8>>) -> Result<ConnectionInfo> {
        if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            return match root {
                Some(_) => Err(wrong("a root certificate is of use with a rediss:// URL only")),
                None => Ok(info),
            };
        }
        // The redis client takes the process's provider and panics if rustls cannot name one, as
        // when another crate enables a second. An error means that somebody was faster.
        if CryptoProvider::get_default().is_none() {
            let _ = ring::default_provider().install_default();
        }
        let Some(root_cert) = root else { return Ok(info) };
        let certificates = TlsCertificates { client_tls: None, root_cert: Some(root_cert) };
        let client = Client::build_with_tls(info, certificates)
            .map_err(|_| wrong("the root certificate is not a certificate in PEM"))?;
        Ok(client.get_connection_info().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_url_is_explained_without_being_quoted() {
        for (url, word) in [
            ("hunter2@localhost", "no scheme"),
            ("http://:hunter2@localhost", "unknown scheme"),
            ("hunter2://localhost", "unknown scheme"),
            ("redis://:hunter2@localhost:99999", "cannot be parsed"),
            ("redis://:hunter2@", "cannot be parsed"),
            ("redis://:hunter2#x@localhost", ""),
            ("redis://:hunter2@localhost/hunter2", "database number"),
            ("redis://:hunter2@localhost?protocol=hunter2", "protocol version"),
            ("redis://:hunter2@0.0.0.0", "wildcard"),
            ("rediss://:hunter2@localhost#insecure", ""),
        ] {
            let error = parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Configuration, "{url}");
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(word) && !shown.contains("hunter2"), "{url}: {shown}");
        }
    }

    #[cfg(not(feature = "redis-tls"))]
    #[test]
    fn tls_without_the_feature_names_the_feature() {
        assert!(parse("rediss://localhost").unwrap_err().to_string().contains("`redis-tls`"));
    }

    #[tokio::test]
    async fn a_setting_that_cannot_be_right_is_refused() {
        let build = |builder: RedisStorageBuilder| builder.build_unconnected().unwrap_err().kind();
        let new = RedisStorageBuilder::new;
        assert_eq!(build(new().prefix("no spaces")), ErrorKind::Configuration);
        assert_eq!(build(new().secret("short")), ErrorKind::Configuration);
        assert_eq!(build(new().lanes(0)), ErrorKind::Configuration);
        #[cfg(feature = "redis-tls")]
        assert_eq!(build(new().root_certificate("x")), ErrorKind::Configuration);
    }

    #[test]
    fn debug_shows_neither_password_nor_secret() {
        let builder = RedisStorageBuilder::new()
            .url("redis://:hunter2@localhost")
            .secret("hunter2hunter2hunter2");
        assert!(!format!("{builder:?}").contains("hunter2"));
    }
}
