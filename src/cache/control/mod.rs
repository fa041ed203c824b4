//! What RFC 9111 and its companions decide, as pure functions.

mod freshness;

pub(crate) use freshness::Freshness;
