#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Values that only an event reports.
#![cfg_attr(not(feature = "tracing"), allow(unused_variables))]

#[macro_use]
mod macros;

#[cfg(any(
    feature = "rate-limit",
    feature = "cache",
    feature = "session",
    feature = "idempotency"
))]
mod body;
#[cfg(feature = "cache")]
pub mod cache;
#[cfg(any(feature = "cache", feature = "session", feature = "idempotency"))]
mod checksum;
mod clock;
#[cfg(feature = "conformance")]
#[cfg_attr(docsrs, doc(cfg(feature = "conformance")))]
pub mod conformance;
#[cfg(any(feature = "cache", feature = "idempotency"))]
mod envelope;
mod head;
#[cfg(feature = "idempotency")]
pub mod idempotency;
pub mod lease;
pub mod marks;
#[cfg(any(feature = "rate-limit", feature = "cache"))]
mod number;
#[cfg(any(
    feature = "rate-limit",
    feature = "cache",
    feature = "session",
    feature = "idempotency"
))]
// Some kinds of problems belong to one layer.
#[cfg_attr(not(feature = "rate-limit"), allow(dead_code))]
mod problem;
pub mod quota;
#[cfg(feature = "rate-limit")]
pub mod rate_limit;
#[cfg(any(feature = "cache", feature = "idempotency"))]
mod service;
#[cfg(feature = "session")]
pub mod session;
pub mod storage;
mod tasks;

#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use bb8_redis;
#[cfg(feature = "cache")]
pub use cache::{CacheHandle, CacheLayer};
pub use head::RequestHead;
#[cfg(feature = "idempotency")]
pub use idempotency::{Idempotency, IdempotencyLayer};
pub use lease::Lease;
pub use quota::Quota;
#[cfg(feature = "rate-limit")]
pub use rate_limit::{Limiter, RateLimitLayer};
#[cfg(feature = "session")]
pub use session::{SessionLayer, Sessions};
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use storage::redis::{RedisFinding, RedisStorage, RedisStorageBuilder};
pub use storage::{
    Storage,
    memory::{MemoryStats, MemoryStorage, MemoryStorageBuilder},
};
