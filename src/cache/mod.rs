//! Cached responses with tag invalidation.
#![allow(dead_code, unused_imports)]

mod control;
mod entry;
mod key;
mod tags;

pub use key::Query;
pub use tags::{CacheTags, TagForwarding};
