//! Tower layers that keep state between requests, on one pluggable storage.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
mod head;
// Until the layer calls it.
#[allow(dead_code)]
#[cfg(feature = "rate-limit")]
mod problem;
pub mod quota;
#[cfg(feature = "rate-limit")]
pub mod rate_limit;
pub mod storage;

pub use head::RequestHead;
pub use quota::Quota;
pub use storage::{Storage, memory::MemoryStorage};
