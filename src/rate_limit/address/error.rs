//! Mistakes in what is trusted, each with what to do about it.

use std::fmt;

use http::HeaderName;

/// Why a [`ClientAddress`](super::ClientAddress) or a list of [`Networks`](crate::rate_limit::Networks) cannot be made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressError {
    /// The text is neither an address nor a CIDR.
    Network {
        /// The text, up to its 64th character.
        text: String,
    },
    /// No proxy is trusted, so that all clients would share the proxy's limit.
    NoProxies,
    /// Everybody is trusted, so that every client would choose its own address.
    TrustsEveryone,
    /// The text is no header name.
    HeaderName {
        /// The text, up to its 64th character.
        text: String,
    },
    /// The header is a list, which every proxy on the way extends.
    ListHeader {
        /// The header.
        name: HeaderName,
    },
    /// The prefix is below 32 or above 128 bits.
    Ipv6Prefix {
        /// The prefix.
        prefix: u8,
    },
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network { text } => write!(
                f,
                "{text:?} is no network: write an address such as \"192.0.2.1\" or a CIDR such as \"10.0.0.0/8\""
            ),
            Self::NoProxies => f.write_str(
                "no proxy is trusted: list the networks of the proxies, or use ClientAddress::peer() if there are none",
            ),
            Self::TrustsEveryone => f.write_str(
                "every address is trusted, so each client would choose its own: list the networks of the proxies only, or use ClientAddress::behind_hops(n)",
            ),
            Self::HeaderName { text } => write!(
                f,
                "{text:?} is no header name: name the header that the platform sets, such as \"cf-connecting-ip\""
            ),
            Self::ListHeader { name } => write!(
                f,
                "{name} is a list that clients can begin themselves: use ClientAddress::behind_proxies or behind_hops"
            ),
            Self::Ipv6Prefix { prefix } => write!(
                f,
                "an IPv6 prefix of {prefix} bits is out of range: use 32 to 128, such as 64 for a subscriber's network"
            ),
        }
    }
}

impl std::error::Error for AddressError {}
