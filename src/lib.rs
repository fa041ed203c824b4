//! Tower layers that keep state between requests, on one pluggable storage.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
#[cfg(feature = "conformance")]
#[cfg_attr(docsrs, doc(cfg(feature = "conformance")))]
pub mod conformance;
mod head;
pub mod quota;
pub mod storage;

pub use head::RequestHead;
pub use quota::Quota;
pub use storage::{Storage, memory::MemoryStorage};
