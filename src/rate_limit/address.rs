//! Whose request it is, by network address, under an explicit trust model.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderName, header};

pub use self::error::AddressError;
use super::{
    forwarded::{self, Elements, Quotes},
    network::{Networks, masked, unmapped},
};
use crate::{RequestHead, storage::Identity};

mod error;

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Longer chains of trusted proxies are not followed.
const MOST_HOPS: usize = 64;
const DEFAULT_IPV6_PREFIX: u8 = 64;
/// The group of an [`Identity`] is a /32.
const SHORTEST_IPV6_PREFIX: u8 = 32;

/// The address of the socket's other end, as a request extension.
///
/// For servers other than `axum::serve`, whose `ConnectInfo<SocketAddr>` is understood as it is
/// (feature `axum`). Where both are there, this one counts: whoever accepts connections can correct
/// the address, by the PROXY protocol for example. On a Unix socket there is no address; a server
/// that only a proxy can reach may state one of its own, such as `127.0.0.1:0`, and trust that.
///
/// # Examples
///
/// ```
/// use tower_keep::{RequestHead, rate_limit::{ClientAddress, PeerAddr}};
///
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(PeerAddr(([192, 0, 2, 1], 50_000).into()));
/// let address = ClientAddress::peer().resolve(RequestHead::new(&request));
/// assert_eq!(address, Some([192, 0, 2, 1].into()));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);

/// How a request's client address is found: from the socket, or from what trusted proxies say.
///
/// Anybody can send `X-Forwarded-For`. A limit by an address that the client chose is no limit, and
/// lets one client use up the quota of another. So headers count only as far as somebody trusted
/// vouches for them:
///
/// 1. The address is the peer's, unless the peer is a trusted proxy.
/// 2. Then it is what that proxy says: the rightmost element of the header, over all its lines. If
///    that is a trusted proxy too, it is what that one says, the next element to the left, and so on.
/// 3. The walk ends at the first address that is not trusted; at an element that is no address
///    (`unknown`, `_hidden`, an empty one, nonsense); at the end of the header; after 64 hops or
///    8 KiB. The answer is the last address that somebody trusted vouched for, so nonsense
///    from the nearest proxy leaves the peer.
///
/// One header is read, never the first of several that happens to parse: proxies pass on those
/// they do not know, from the client.
///
/// # Examples
///
/// ```
/// use http::Request;
/// use tower_keep::{RequestHead, rate_limit::{ClientAddress, PeerAddr}};
///
/// let by_proxy = ClientAddress::behind_proxies(["10.0.0.0/8"])?;
/// let mut request = Request::new(());
/// request.headers_mut().insert("x-forwarded-for", "6.6.6.6, 192.0.2.1, 10.0.0.2".parse().unwrap());
///
/// request.extensions_mut().insert(PeerAddr("10.0.0.1:50000".parse().unwrap()));
/// let address = by_proxy.resolve(RequestHead::new(&request));
/// assert_eq!(address, Some("192.0.2.1".parse().unwrap()), "6.6.6.6 is the client's own claim");
///
/// request.extensions_mut().insert(PeerAddr("203.0.113.9:50000".parse().unwrap()));
/// let address = by_proxy.resolve(RequestHead::new(&request));
/// assert_eq!(address, Some("203.0.113.9".parse().unwrap()), "not a proxy: no header counts");
/// # Ok::<(), tower_keep::rate_limit::AddressError>(())
/// ```
///
/// # Security
///
/// Trust the networks of the proxies, no more: a client inside a trusted network can claim any
/// address. An IPv6 client owns at least a /64 and can send each request from another address of
/// it, so [`identity`](Self::identity) is the /64; see [`with_ipv6_prefix`](Self::with_ipv6_prefix).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientAddress {
    trust: Trust,
    forwarded: ForwardedHeader,
    ipv6_prefix: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Trust {
    Peer,
    Proxies(Networks),
    Hops(u8),
    Platform { header: HeaderName, proxies: Networks },
}

/// The header in which proxies list the addresses they were called from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, which most proxies write.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

impl Default for ClientAddress {
    /// [`peer`](Self::peer).
    fn default() -> Self {
        Self::peer()
    }
}

impl ClientAddress {
    fn new(trust: Trust) -> Self {
        Self { trust, forwarded: ForwardedHeader::default(), ipv6_prefix: DEFAULT_IPV6_PREFIX }
    }

    /// The peer of the socket. No header is looked at.
    ///
    /// Right where clients connect directly. Behind a proxy it would put everybody into one bucket;
    /// the feature `tracing` warns once if requests look as if there were one.
    pub fn peer() -> Self {
        Self::new(Trust::Peer)
    }

    /// Behind proxies in these networks, each an address or a CIDR.
    ///
    /// # Errors
    ///
    /// [`AddressError::Network`] with the first text that is neither, [`AddressError::NoProxies`]
    /// for an empty list, [`AddressError::TrustsEveryone`] for one with all of IPv4 or all of IPv6.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_keep::rate_limit::{AddressError, ClientAddress, ForwardedHeader};
    ///
    /// let nginx = ClientAddress::behind_proxies(["10.0.0.0/8", "::1"])?;
    /// let rfc = nginx.with_header(ForwardedHeader::Forwarded);
    ///
    /// // From the environment:
    /// let proxies = "10.0.0.0/8, 172.16.0.0/12";
    /// assert!(ClientAddress::behind_proxies(proxies.split(',')).is_ok());
    /// assert_eq!(ClientAddress::behind_proxies(["::/0"]), Err(AddressError::TrustsEveryone));
    /// # Ok::<(), AddressError>(())
    /// ```
    pub fn behind_proxies<S: AsRef<str>>(
        proxies: impl IntoIterator<Item = S>,
    ) -> Result<Self, AddressError> {
        Ok(Self::new(Trust::Proxies(trusted(proxies)?)))
    }

    /// Behind exactly this many proxies, whose addresses are not known: the `hops`th element from
    /// the right. With fewer elements, or if that one is no address, the peer; 0 is [`peer`](Self::peer).
    ///
    /// # Security
    ///
    /// Only where every request comes through all of the proxies. Whoever can get round one of them
    /// chooses its own address.
    pub fn behind_hops(hops: u8) -> Self {
        Self::new(if hops == 0 { Trust::Peer } else { Trust::Hops(hops) })
    }

    /// Behind a platform that *sets* this header to the client's address, such as
    /// `cf-connecting-ip` or `fly-client-ip`, and calls from these networks.
    ///
    /// From any other peer, or if there is more than one such line or no address in it, the peer.
    ///
    /// # Errors
    ///
    /// As [`behind_proxies`](Self::behind_proxies); [`AddressError::HeaderName`] for an impossible
    /// name and [`AddressError::ListHeader`] for `x-forwarded-for` and `forwarded`, which
    /// are not set but extended.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_keep::rate_limit::ClientAddress;
    ///
    /// let cloudflare = ClientAddress::platform_header("cf-connecting-ip", ["173.245.48.0/20"]);
    /// assert!(cloudflare.is_ok());
    /// assert!(ClientAddress::platform_header("x-forwarded-for", ["10.0.0.0/8"]).is_err());
    /// ```
    pub fn platform_header<S: AsRef<str>>(
        name: &str,
        proxies: impl IntoIterator<Item = S>,
    ) -> Result<Self, AddressError> {
        let header = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| AddressError::HeaderName { text: name.chars().take(64).collect() })?;
        if header == X_FORWARDED_FOR || header == header::FORWARDED {
            return Err(AddressError::ListHeader { name: header });
        }
        Ok(Self::new(Trust::Platform { header, proxies: trusted(proxies)? }))
    }

    /// The header to read [behind proxies](Self::behind_proxies) or [hops](Self::behind_hops);
    /// elsewhere it does nothing. Choose the one that the proxies write, or remove from what
    /// clients send.
    #[must_use]
    pub fn with_header(mut self, header: ForwardedHeader) -> Self {
        self.forwarded = header;
        self
    }

    /// How many leading bits of an IPv6 address make an identity; 64 unless told otherwise.
    ///
    /// 56 suits limits against abuse, as many providers give each subscriber a /56.
    ///
    /// # Errors
    ///
    /// [`AddressError::Ipv6Prefix`] if it is not 32 to 128.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_keep::rate_limit::ClientAddress;
    ///
    /// let by = ClientAddress::peer().with_ipv6_prefix(56)?;
    /// let identity = |address: &str| by.identity_of(address.parse().unwrap());
    /// assert!(identity("2001:db8:0:17::1") == identity("2001:db8:0:42::9"));
    /// assert!(identity("2001:db8:0:17::1") != identity("2001:db8:0:142::9"));
    /// # Ok::<(), tower_keep::rate_limit::AddressError>(())
    /// ```
    ///
    /// # Security
    ///
    /// Above 64 a client escapes its limit by changing its address.
    pub fn with_ipv6_prefix(mut self, prefix: u8) -> Result<Self, AddressError> {
        if !(SHORTEST_IPV6_PREFIX..=128).contains(&prefix) {
            return Err(AddressError::Ipv6Prefix { prefix });
        }
        self.ipv6_prefix = prefix;
        Ok(self)
    }

    /// The client's address, whole, for lists of who is exempt or refused.
    ///
    /// `None` if the request does not say who sent it: there is neither [`PeerAddr`] nor
    /// `ConnectInfo<SocketAddr>` among its extensions.
    pub fn resolve(&self, head: RequestHead<'_>) -> Option<IpAddr> {
        let peer = unmapped(peer_of(head)?.ip());
        Some(match &self.trust {
            Trust::Peer => {
                #[cfg(feature = "tracing")]
                super::warn::look_for_proxy(head);
                peer
            }
            Trust::Proxies(proxies) if proxies.has(peer) => self.walk(head, peer, proxies),
            Trust::Proxies(_) => peer,
            Trust::Hops(hops) => {
                let client = self.elements(head).nth(usize::from(*hops) - 1);
                client.and_then(|element| self.address_in(element)).unwrap_or(peer)
            }
            Trust::Platform { header, proxies } => {
                let mut lines = head.headers().get_all(header).iter();
                match (lines.next(), lines.next()) {
                    (Some(line), None) if proxies.has(peer) => {
                        forwarded::address(line.as_bytes()).unwrap_or(peer)
                    }
                    _ => peer,
                }
            }
        })
    }

    /// Who a limit counts: the client's address, of IPv6 the network.
    pub fn identity(&self, head: RequestHead<'_>) -> Option<Identity> {
        self.resolve(head).map(|address| self.identity_of(address))
    }

    /// The identity of an address that was [resolved](Self::resolve) already.
    pub fn identity_of(&self, address: IpAddr) -> Identity {
        masked(unmapped(address), self.ipv6_prefix).into()
    }

    fn walk(&self, head: RequestHead<'_>, peer: IpAddr, proxies: &Networks) -> IpAddr {
        let mut vouched_for = peer;
        for element in self.elements(head).take(MOST_HOPS) {
            let Some(address) = self.address_in(element) else { break };
            vouched_for = address;
            if !proxies.has(address) {
                break;
            }
        }
        vouched_for
    }

    fn elements<'a>(&self, head: RequestHead<'a>) -> Elements<'a> {
        let headers = head.headers();
        match self.forwarded {
            ForwardedHeader::XForwardedFor => {
                Elements::new(headers, &X_FORWARDED_FOR, Quotes::Plain)
            }
            ForwardedHeader::Forwarded => {
                Elements::new(headers, &header::FORWARDED, Quotes::Quoting)
            }
        }
    }

    fn address_in(&self, element: &[u8]) -> Option<IpAddr> {
        match self.forwarded {
            ForwardedHeader::XForwardedFor => forwarded::address(element),
            ForwardedHeader::Forwarded => forwarded::forwarded_for(element),
        }
    }
}

fn trusted<S: AsRef<str>>(networks: impl IntoIterator<Item = S>) -> Result<Networks, AddressError> {
    let networks = Networks::try_new(networks)?;
    if networks.is_empty() {
        return Err(AddressError::NoProxies);
    }
    if networks.has_everyone() {
        return Err(AddressError::TrustsEveryone);
    }
    Ok(networks)
}

fn peer_of(head: RequestHead<'_>) -> Option<SocketAddr> {
    let extensions = head.extensions();
    if let Some(PeerAddr(peer)) = extensions.get() {
        return Some(*peer);
    }
    #[cfg(feature = "axum")]
    {
        use axum::extract::connect_info::{ConnectInfo, MockConnectInfo};
        if let Some(ConnectInfo(peer)) = extensions.get::<ConnectInfo<SocketAddr>>() {
            return Some(*peer);
        }
        // What axum's own extractor falls back to, in tests.
        if let Some(MockConnectInfo(peer)) = extensions.get::<MockConnectInfo<SocketAddr>>() {
            return Some(*peer);
        }
    }
    None
}

#[cfg(test)]
mod tests;
