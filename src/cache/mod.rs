//! Cached responses with tag invalidation.
#![allow(dead_code, unused_imports)]

mod body;
mod control;
mod entry;
mod fill;
mod flight;
mod future;
mod handle;
mod key;
mod layer;
mod near;
mod outcome;
mod policy;
mod reply;
mod service;
mod shelf;
mod tags;
mod turn;
mod value;

pub use self::{
    body::{BodyError, ResponseBody},
    future::ResponseFuture,
    handle::{CacheHandle, CacheHandleBuilder},
    key::Query,
    layer::CacheLayer,
    near::NearCache,
    outcome::{Outcome, Source},
    policy::{Policy, StatusHeader},
    service::Cache,
    tags::{CacheTags, TagForwarding},
    value::{FillError, Keep},
};
