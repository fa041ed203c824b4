//! Rate limits by client.

mod address;
mod forwarded;
// Until the layer calls it.
#[allow(dead_code)]
mod headers;
mod network;
#[cfg(feature = "tracing")]
mod warn;

pub use self::{
    address::{AddressError, ClientAddress, ForwardedHeader, PeerAddr},
    headers::{
        Draft, EXPOSED_HEADERS, Headers, RATELIMIT, RATELIMIT_POLICY, ResetFormat,
        X_RATELIMIT_LIMIT, X_RATELIMIT_REMAINING, X_RATELIMIT_RESET,
    },
    network::Networks,
};
