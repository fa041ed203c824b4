//! State in Redis, shared between processes.
#![allow(dead_code)]

use std::{fmt, sync::Arc};

use self::{lanes::Lanes, script::Scripts};
use super::Name;

mod call;
mod codec;
mod keys;
mod lanes;
mod ops;
mod script;

/// State in Redis, shared between processes.
#[derive(Clone)]
pub struct RedisStorage {
    inner: Arc<Inner>,
}

struct Inner {
    lanes: Lanes,
    prefix: Name,
    scripts: &'static Scripts,
}

impl fmt::Debug for RedisStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStorage").field("prefix", &self.inner.prefix).finish_non_exhaustive()
    }
}
