//! Tower layers that keep state between requests, on one pluggable storage.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
mod head;
pub mod quota;
pub mod storage;

#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use bb8_redis;
pub use head::RequestHead;
pub use quota::Quota;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use storage::redis::{RedisStorage, RedisStorageBuilder};
pub use storage::{Storage, memory::MemoryStorage};
