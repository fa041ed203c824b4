//! Rate limits by client.

mod address;
mod forwarded;
mod network;
#[cfg(feature = "tracing")]
mod warn;

pub use self::{
    address::{AddressError, ClientAddress, ForwardedHeader, PeerAddr},
    network::Networks,
};
