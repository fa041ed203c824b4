#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[macro_use]
mod macros;

mod clock;
mod head;
#[cfg(feature = "rate-limit")]
mod problem;
pub mod quota;
#[cfg(feature = "rate-limit")]
pub mod rate_limit;
pub mod storage;

pub use head::RequestHead;
pub use quota::Quota;
#[cfg(feature = "rate-limit")]
pub use rate_limit::{Limiter, RateLimitLayer};
pub use storage::{Storage, memory::MemoryStorage};
