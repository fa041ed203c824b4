//! What a user recognises a session by.

#[cfg(feature = "axum")]
use std::net::SocketAddr;
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use http::header;

use crate::RequestHead;

const MOST_BYTES: usize = 256;

/// The browser and the network that a session was last authenticated from, for the user to
/// recognise it in a list of his sessions.
///
/// Of an address only the network is kept: the first 24 bits of IPv4, the first 48 of IPv6. Both
/// parts are the client's word, and no evidence of anything.
///
/// # Examples
///
/// ```
/// use tower_keep::session::Device;
///
/// let device = Device::new()
///     .with_user_agent("Firefox/140.0")
///     .with_address("192.0.2.7".parse().unwrap());
/// assert_eq!(device.network(), Some("192.0.2.0/24"));
/// assert_eq!(device.to_string(), "Firefox/140.0, 192.0.2.0/24");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Device {
    pub(super) user_agent: Option<Box<str>>,
    pub(super) network: Option<Box<str>>,
}

impl Device {
    /// One of which nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// The `User-Agent` of a request, and, with the feature `axum`, the network of the socket's peer
    /// (`ConnectInfo<SocketAddr>`). Behind a proxy that is the proxy's.
    pub fn of(head: RequestHead<'_>) -> Self {
        let text = head.headers().get(header::USER_AGENT).and_then(|text| text.to_str().ok());
        let device = text.map_or_else(Self::new, |text| Self::new().with_user_agent(text));
        #[cfg(feature = "axum")]
        if let Some(peer) = head.extensions().get::<axum::extract::ConnectInfo<SocketAddr>>() {
            return device.with_address(peer.0.ip());
        }
        device
    }

    /// With this text of the `User-Agent` field: without control characters, and at most 256 bytes
    /// of it.
    #[must_use]
    pub fn with_user_agent(mut self, text: &str) -> Self {
        let mut kept = String::new();
        for character in text.trim().chars().filter(|character| !character.is_control()) {
            if kept.len() + character.len_utf8() > MOST_BYTES {
                break;
            }
            kept.push(character);
        }
        self.user_agent = (!kept.is_empty()).then(|| kept.into());
        self
    }

    /// With the network of this address. An IPv4 address mapped into IPv6 is that IPv4 address.
    #[must_use]
    pub fn with_address(mut self, address: IpAddr) -> Self {
        let network = match address.to_canonical() {
            IpAddr::V4(v4) => format!("{}/24", Ipv4Addr::from_bits(v4.to_bits() >> 8 << 8)),
            IpAddr::V6(v6) => format!("{}/48", Ipv6Addr::from_bits(v6.to_bits() >> 80 << 80)),
        };
        self.network = Some(network.into());
        self
    }

    /// What the client calls itself.
    pub fn user_agent(&self) -> Option<&str> {
        self.user_agent.as_deref()
    }

    /// The network, as in `192.0.2.0/24` or `2001:db8:7::/48`.
    pub fn network(&self) -> Option<&str> {
        self.network.as_deref()
    }
}

/// Both parts, or `unknown`.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.user_agent, &self.network) {
            (Some(user_agent), Some(network)) => write!(f, "{user_agent}, {network}"),
            (Some(part), None) | (None, Some(part)) => f.write_str(part),
            (None, None) => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str) -> String {
        Device::new().with_address(address.parse().unwrap()).network().unwrap().to_owned()
    }

    #[test]
    fn only_the_network_of_an_address_is_kept() {
        assert_eq!(network("192.0.2.7"), "192.0.2.0/24");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.0/24");
        assert_eq!(network("2001:db8:7:8:9:a:b:c"), "2001:db8:7::/48");
        assert_eq!(network("::1"), "::/48");
        assert_eq!(network("255.255.255.255"), "255.255.255.0/24");
    }

    #[test]
    fn a_user_agent_is_cut_between_characters_and_has_no_controls() {
        let device = Device::new().with_user_agent(" a\r\n\u{1b}[31m\u{85}b\t");
        assert_eq!(device.user_agent(), Some("a[31mb"));
        let long = Device::new().with_user_agent(&"a€".repeat(100));
        let kept = long.user_agent().unwrap();
        assert_eq!((kept.len(), kept.ends_with('€')), (256, true));
        let long = Device::new().with_user_agent(&"€".repeat(100));
        assert_eq!(long.user_agent().unwrap().len(), 255);
        assert_eq!(Device::new().with_user_agent("\0 \n").user_agent(), None);
    }

    #[test]
    fn a_device_is_shown_by_what_is_known_of_it() {
        let address = "192.0.2.7".parse().unwrap();
        assert_eq!(Device::new().to_string(), "unknown");
        assert_eq!(Device::new().with_user_agent("Firefox").to_string(), "Firefox");
        assert_eq!(Device::new().with_address(address).to_string(), "192.0.2.0/24");
        let both = Device::new().with_user_agent("Firefox").with_address(address);
        assert_eq!(both.to_string(), "Firefox, 192.0.2.0/24");
    }
}
