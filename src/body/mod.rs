//! The bodies of responses that pass through a layer.

#[cfg(any(feature = "cache", feature = "idempotency"))]
pub(crate) mod chunks;
#[cfg(any(feature = "cache", feature = "idempotency"))]
pub(crate) mod live;
#[cfg(any(feature = "rate-limit", feature = "session"))]
pub(crate) mod plain;
