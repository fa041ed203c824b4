//! Tower layers that keep state between requests, on one pluggable storage.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
mod head;
pub mod quota;
pub mod storage;

pub use head::RequestHead;
pub use quota::Quota;
pub use storage::{
    Storage,
    memory::{MemoryStats, MemoryStorage, MemoryStorageBuilder},
};
