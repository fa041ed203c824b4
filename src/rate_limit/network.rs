//! Lists of networks, and the one form in which addresses are compared.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net};

use super::address::AddressError;

/// A list of networks: trusted proxies, clients to exempt, clients to refuse.
///
/// Addresses compare in one form: an IPv4 address mapped into IPv6 (`::ffff:192.0.2.1`, as a
/// dual-stack socket reports it, or `64:ff9b::192.0.2.1` behind NAT64) is that IPv4 address, on
/// both sides. A search is binary, so a list of thousands is fine.
///
/// # Examples
///
/// ```
/// use tower_keep::rate_limit::Networks;
///
/// let internal = Networks::try_new(["10.0.0.0/8", "::1"])?;
/// assert!(internal.contains("10.1.2.3".parse().unwrap()));
/// assert!(internal.contains("::ffff:10.1.2.3".parse().unwrap()));
/// assert!(!internal.contains("192.0.2.1".parse().unwrap()));
///
/// assert_eq!("10.0.0.0/8, ::1".parse::<Networks>()?, internal);
/// # Ok::<(), tower_keep::rate_limit::AddressError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Networks {
    // First and last address of each, rising, apart from one another; IPv4 sorts before IPv6.
    ranges: Arc<[(IpAddr, IpAddr)]>,
}

impl Networks {
    /// The networks of these texts, each an address or a CIDR; no text, no network.
    ///
    /// # Errors
    ///
    /// [`AddressError::Network`] with the first text that is neither.
    pub fn try_new<S: AsRef<str>>(
        networks: impl IntoIterator<Item = S>,
    ) -> Result<Self, AddressError> {
        let parsed: Result<Vec<_>, _> =
            networks.into_iter().map(|text| parse(text.as_ref())).collect();
        let mut ranges: Vec<_> = IpNet::aggregate(&parsed?)
            .into_iter()
            .map(|network| (network.network(), network.broadcast()))
            .collect();
        ranges.sort_unstable();
        Ok(Self { ranges: ranges.into() })
    }

    /// Whether one of the networks has this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.has(unmapped(address))
    }

    /// As [`contains`](Self::contains), for an address that is [`unmapped`] already.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        let after = self.ranges.partition_point(|(first, _)| *first <= address);
        after > 0 && address <= self.ranges[after - 1].1
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether all of IPv4 or all of IPv6 is in the list.
    pub(super) fn has_everyone(&self) -> bool {
        self.ranges.iter().any(|range| match range {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                first.is_unspecified() && *last == Ipv4Addr::BROADCAST
            }
            (first, IpAddr::V6(last)) => first.is_unspecified() && last.to_bits() == u128::MAX,
            _ => false,
        })
    }
}

impl FromStr for Networks {
    type Err = AddressError;

    /// Networks separated by commas or blanks, as they stand in an environment variable.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::try_new(
            text.split(|c: char| c == ',' || c.is_whitespace()).filter(|text| !text.is_empty()),
        )
    }
}

fn parse(text: &str) -> Result<IpNet, AddressError> {
    let text = text.trim();
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(unmapped(address)),
        Err(_) => text
            .parse()
            .map_err(|_| AddressError::Network { text: text.chars().take(64).collect() })?,
    };
    let IpNet::V6(v6) = network else { return Ok(network) };
    Ok(match (v6.prefix_len().checked_sub(96), unmapped(IpAddr::V6(v6.network()))) {
        (Some(prefix), IpAddr::V4(v4)) => {
            // At most 128 - 96.
            IpNet::V4(Ipv4Net::new_assert(v4, prefix))
        }
        _ => network,
    })
}

/// The address with an embedded IPv4 address taken out, by its bits: text forms vary.
///
/// RFC 6052 §3.1 forbids the NAT64 prefix for addresses that are not global. Such a one is forged
/// and stays as it is, or a client could pass for a proxy in a private network.
pub(super) fn unmapped(address: IpAddr) -> IpAddr {
    const MAPPED: u128 = 0xffff;
    const NAT64: u128 = 0x0064_ff9b << 64;
    let IpAddr::V6(v6) = address else { return address };
    let v4 = Ipv4Addr::from_bits(v6.to_bits() as u32);
    match v6.to_bits() >> 32 {
        MAPPED => IpAddr::V4(v4),
        NAT64 if is_global(v4) => IpAddr::V4(v4),
        _ => address,
    }
}

fn is_global(v4: Ipv4Addr) -> bool {
    let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
    !(v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        || v4.is_multicast()
        || v4.is_broadcast()
        || v4.octets()[0] == 0
        || shared)
}

/// The network of this many leading bits that an IPv6 address is in; IPv4 is left whole.
pub(super) fn masked(address: IpAddr, ipv6_prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let host_bits = 128 - u32::from(ipv6_prefix.min(128));
            let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_and_networks_are_found_and_their_neighbours_are_not() {
        let networks: Networks =
            "10.0.0.0/8 192.0.2.7,2001:db8::/32\n::1, 10.3.0.0/16 172.16.5.4/12".parse().unwrap();
        for inside in [
            "10.0.0.0",
            "10.255.255.255",
            "192.0.2.7",
            "2001:db8:ffff::1",
            "::1",
            "172.31.0.1",
            "::ffff:10.1.1.1",
            "64:ff9b::192.0.2.7",
        ] {
            assert!(networks.contains(ip(inside)), "{inside}");
        }
        for outside in [
            "9.255.255.255",
            "11.0.0.0",
            "192.0.2.6",
            "192.0.2.8",
            "2001:db9::",
            "::2",
            "::",
            "::10.1.1.1",
        ] {
            assert!(!networks.contains(ip(outside)), "{outside}");
        }
    }

    #[test]
    fn a_mapped_network_is_its_ipv4_network() {
        assert_eq!(Networks::try_new(["::ffff:10.0.0.0/104"]), Networks::try_new(["10.0.0.0/8"]));
        assert_eq!(Networks::try_new(["::ffff:1.2.3.4"]), Networks::try_new(["1.2.3.4/32"]));
        assert_eq!(Networks::try_new(["64:ff9b::8.8.0.0/112"]), Networks::try_new(["8.8.0.0/16"]));
    }

    #[test]
    fn the_nat64_prefix_lends_nobody_a_private_address() {
        for private in
            ["10.0.0.1", "127.0.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"]
        {
            let forged = ip(&format!("64:ff9b::{private}"));
            assert_eq!(unmapped(forged), forged);
            assert!(!Networks::try_new([private]).unwrap().contains(forged));
        }
        assert_eq!(unmapped(ip("64:ff9b::8.8.8.8")), ip("8.8.8.8"));
    }

    #[test]
    fn an_error_names_the_bad_item() {
        for bad in
            ["10.0.0.0/33", "::/129", "10.0.0", "localhost", "", "10.0.0.0/8/9", "fe80::1%eth0"]
        {
            let error = Networks::try_new(["10.0.0.0/8", bad]).unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
        assert!("".parse::<Networks>().unwrap().is_empty());
    }

    #[test]
    fn everyone_is_recognised_in_any_disguise() {
        for all in [
            &["0.0.0.0/0"][..],
            &["::/0"],
            &["0.0.0.0/1", "128.0.0.0/1"],
            &["::1", "::ffff:0:0/96"],
        ] {
            assert!(Networks::try_new(all).unwrap().has_everyone(), "{all:?}");
        }
        assert!(
            !Networks::try_new(["10.0.0.0/8", "::1", "0.0.0.0/1", "::/1"]).unwrap().has_everyone()
        );
    }

    #[test]
    fn masking_keeps_the_leading_bits_of_ipv6_and_all_of_ipv4() {
        assert_eq!(masked(ip("2001:db8:1:2:3:4:5:6"), 64), ip("2001:db8:1:2::"));
        assert_eq!(masked(ip("2001:db8:1:2ff:3:4:5:6"), 56), ip("2001:db8:1:200::"));
        assert_eq!(masked(ip("2001:db8::1"), 128), ip("2001:db8::1"));
        assert_eq!(masked(ip("2001:db8::1"), 0), ip("::"));
        assert_eq!(masked(ip("192.0.2.1"), 64), ip("192.0.2.1"));
    }
}
