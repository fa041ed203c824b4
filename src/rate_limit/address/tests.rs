use http::{HeaderValue, Request};
use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn request(peer: &str, name: HeaderName, lines: &[&[u8]]) -> Request<()> {
    let mut request = Request::new(());
    for line in lines {
        request.headers_mut().append(&name, HeaderValue::from_bytes(line).unwrap());
    }
    request.extensions_mut().insert(PeerAddr(SocketAddr::new(ip(peer), 50_000)));
    request
}

fn resolved(by: &ClientAddress, peer: &str, lines: &[&str]) -> IpAddr {
    let lines: Vec<_> = lines.iter().map(|line| line.as_bytes()).collect();
    by.resolve(RequestHead::new(&request(peer, X_FORWARDED_FOR, &lines))).unwrap()
}

/// 10.0.0.0/8 and ::1 are proxies; clients are in 192.0.2.0/24 and 2001:db8::/32; 6.6.6.6 is forged.
fn proxies() -> ClientAddress {
    ClientAddress::behind_proxies(["10.0.0.0/8", "::1"]).unwrap()
}

const PROXY: &str = "10.0.0.1";

#[test]
fn the_client_is_the_rightmost_untrusted_address() {
    for (lines, client) in [
        (&[][..], PROXY),
        (&["192.0.2.1"], "192.0.2.1"),
        (&["6.6.6.6, 192.0.2.1"], "192.0.2.1"),
        (&["6.6.6.6", "6.6.6.7,192.0.2.1", "10.0.0.2"], "192.0.2.1"),
        (&["6.6.6.6, 192.0.2.1 ,\t10.0.0.3,::1", "10.0.0.2"], "192.0.2.1"),
        (&["192.0.2.1:4711"], "192.0.2.1"),
        (&["6.6.6.6, [2001:db8::1]:443"], "2001:db8::1"),
        (&["2001:db8::1"], "2001:db8::1"),
        (&["fe80::1%eth0"], "fe80::1"),
        (&["6.6.6.6, ::ffff:192.0.2.1"], "192.0.2.1"),
        (&["192.0.2.1, ::ffff:10.0.0.2"], "192.0.2.1"),
        (&["64:ff9b::192.0.2.1"], "192.0.2.1"),
        // All are proxies: the one furthest away.
        (&["10.0.0.9, 10.0.0.8"], "10.0.0.9"),
    ] {
        assert_eq!(resolved(&proxies(), PROXY, lines), ip(client), "{lines:?}");
    }
}

#[test]
fn an_element_that_is_no_address_ends_the_walk_at_whom_a_proxy_vouched_for() {
    for nonsense in
        ["", "unknown", "_hidden", "garbage", "192.0.2", "[::1", "localhost:80", "\u{7f}"]
    {
        let Ok(line) = HeaderValue::from_str(nonsense) else { continue };
        let nonsense = line.to_str().unwrap();
        let nearest = [&format!("6.6.6.6, {nonsense}")[..]];
        assert_eq!(resolved(&proxies(), PROXY, &nearest), ip(PROXY), "{nonsense:?}");
        let second = [&format!("6.6.6.6, {nonsense}")[..], "10.0.0.2"];
        assert_eq!(resolved(&proxies(), PROXY, &second), ip("10.0.0.2"), "{nonsense:?}");
        let left = [&format!("{nonsense}, 192.0.2.1")[..]];
        assert_eq!(resolved(&proxies(), PROXY, &left), ip("192.0.2.1"), "{nonsense:?}");
    }
    let obs_text = request(PROXY, X_FORWARDED_FOR, &[b"6.6.6.6, \xff\xfe"]);
    assert_eq!(proxies().resolve(RequestHead::new(&obs_text)), Some(ip(PROXY)));
}

#[test]
fn five_hundred_lines_and_100_kb_change_nothing() {
    let mut lines = vec!["6.6.6.6"; 500];
    lines.push("192.0.2.1");
    assert_eq!(resolved(&proxies(), PROXY, &lines), ip("192.0.2.1"));
    let huge = format!("{}192.0.2.1", "6.6.6.6, ".repeat(11_000));
    assert_eq!(resolved(&proxies(), PROXY, &[&huge]), ip("192.0.2.1"));
    let blob = "x".repeat(100 * 1024);
    assert_eq!(resolved(&proxies(), PROXY, &[&blob]), ip(PROXY));
    assert_eq!(resolved(&proxies(), PROXY, &["6.6.6.6", &blob, "10.0.0.2"]), ip("10.0.0.2"));
}

#[test]
fn a_chain_is_followed_for_64_hops() {
    let chain = |hops: usize| format!("192.0.2.1{}", ", 10.0.0.2".repeat(hops));
    assert_eq!(resolved(&proxies(), PROXY, &[&chain(63)]), ip("192.0.2.1"));
    assert_eq!(resolved(&proxies(), PROXY, &[&chain(64)]), ip("10.0.0.2"));
}

#[test]
fn a_thousand_forged_chains_are_one_bucket() {
    for by in [proxies(), ClientAddress::behind_hops(1)] {
        let of = |forged: String| {
            let line = format!("{forged}, 192.0.2.1");
            let request = request(PROXY, X_FORWARDED_FOR, &[line.as_bytes()]);
            by.identity(RequestHead::new(&request)).unwrap()
        };
        let first = of("6.6.6.6".into());
        for i in 0..1_000 {
            assert!(of(format!("10.0.0.7, 6.6.{}.{}", i / 250, i % 250)) == first);
        }
    }
}

#[test]
fn a_direct_connection_past_the_proxy_gains_nothing_by_headers() {
    for peer in ["203.0.113.9", "2001:db8::9", "::ffff:203.0.113.9", "64:ff9b::10.0.0.1"] {
        let address = resolved(&proxies(), peer, &["6.6.6.6, 10.0.0.2"]);
        assert_eq!(address, unmapped(ip(peer)));
    }
}

#[test]
fn a_mapped_peer_is_the_proxy_that_it_is() {
    assert_eq!(resolved(&proxies(), "::ffff:10.0.0.1", &["192.0.2.1"]), ip("192.0.2.1"));
    assert_eq!(resolved(&ClientAddress::peer(), "::ffff:192.0.2.1", &[]), ip("192.0.2.1"));
}

#[test]
fn by_default_no_header_is_looked_at() {
    let by = ClientAddress::default();
    assert_eq!(resolved(&by, PROXY, &["6.6.6.6"]), ip(PROXY));
    assert_eq!(by, ClientAddress::behind_hops(0));
}

#[test]
fn hops_are_counted_from_the_right() {
    let by = ClientAddress::behind_hops(2);
    for (lines, client) in [
        (&[][..], PROXY),
        (&["6.6.6.6"], PROXY),
        (&["192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        (&["6.6.6.6, 192.0.2.1", "unknown"], "192.0.2.1"),
        (&["6.6.6.6, unknown, 10.0.0.2"], PROXY),
        (&["192.0.2.1, "], "192.0.2.1"),
    ] {
        assert_eq!(resolved(&by, PROXY, lines), ip(client), "{lines:?}");
    }
    let far = format!("192.0.2.1{}", ", 10.0.0.2".repeat(254));
    assert_eq!(resolved(&ClientAddress::behind_hops(255), PROXY, &[&far]), ip("192.0.2.1"));
}

#[test]
fn a_platform_header_counts_from_the_platform_only_and_only_once() {
    let by = ClientAddress::platform_header("CF-Connecting-IP", ["10.0.0.0/8"]).unwrap();
    let name = HeaderName::from_static("cf-connecting-ip");
    let resolve = |peer: &str, lines: &[&[u8]]| {
        by.resolve(RequestHead::new(&request(peer, name.clone(), lines))).unwrap()
    };
    assert_eq!(resolve(PROXY, &[b"2001:db8::1"]), ip("2001:db8::1"));
    assert_eq!(resolve(PROXY, &[b"192.0.2.1:80"]), ip("192.0.2.1"));
    assert_eq!(resolve("203.0.113.9", &[b"192.0.2.1"]), ip("203.0.113.9"));
    let nonsense: [&[&[u8]]; 4] =
        [&[], &[b"6.6.6.6", b"192.0.2.1"], &[b"6.6.6.6, 192.0.2.1"], &[b"\xff"]];
    for lines in nonsense {
        assert_eq!(resolve(PROXY, lines), ip(PROXY), "{lines:?}");
    }
    assert_eq!(resolved(&by, PROXY, &["6.6.6.6"]), ip(PROXY));
}

#[test]
fn forwarded_is_read_where_it_is_chosen_and_nothing_else_is() {
    let by = proxies().with_header(ForwardedHeader::Forwarded);
    let resolve = |lines: &[&str]| {
        let lines: Vec<_> = lines.iter().map(|line| line.as_bytes()).collect();
        by.resolve(RequestHead::new(&request(PROXY, header::FORWARDED, &lines))).unwrap()
    };
    for (lines, client) in [
        (&[r#"for=6.6.6.6, for="[2001:db8:cafe::17]:4711""#][..], "2001:db8:cafe::17"),
        (
            &["for=6.6.6.6", "For=192.0.2.1;proto=http;by=10.0.0.1", r#"for="10.0.0.2:_p""#],
            "192.0.2.1",
        ),
        (&[r#"for="6.6.6.6, for=192.0.2.1"#], "192.0.2.1"),
        (&[r#"for=192.0.2.1;host="x, for=6.6.6.6""#], "192.0.2.1"),
        (&["for=6.6.6.6, for=unknown"], PROXY),
        (&["for=6.6.6.6, for=_hidden, for=10.0.0.2"], "10.0.0.2"),
        (&["for=6.6.6.6, proto=https"], PROXY),
        (&["192.0.2.1"], PROXY),
    ] {
        assert_eq!(resolve(lines), ip(client), "{lines:?}");
    }
    assert_eq!(resolved(&by, PROXY, &["6.6.6.6"]), ip(PROXY));
    let x = request(PROXY, header::FORWARDED, &[b"for=6.6.6.6"]);
    assert_eq!(proxies().resolve(RequestHead::new(&x)), Some(ip(PROXY)));
}

#[test]
fn rotation_within_an_ipv6_network_is_one_bucket() {
    let of = |by: &ClientAddress, peer: &str| {
        by.identity(RequestHead::new(&request(peer, header::HOST, &[]))).unwrap()
    };
    let by = ClientAddress::peer();
    assert!(of(&by, "2001:db8:0:1::1") == of(&by, "2001:db8:0:1:ffff:ffff:ffff:ffff"));
    assert!(of(&by, "2001:db8:0:1::1") != of(&by, "2001:db8:0:2::1"));
    assert!(of(&by, "192.0.2.1") != of(&by, "192.0.2.2"));
    assert!(of(&by, "192.0.2.1") == of(&by, "::ffff:192.0.2.1"));
    let by = by.with_ipv6_prefix(56).unwrap();
    assert!(of(&by, "2001:db8:0:1::1") == of(&by, "2001:db8:0:ff::1"));
    assert!(of(&by, "2001:db8:0:1::1") != of(&by, "2001:db8:0:100::1"));
}

#[test]
fn without_a_peer_there_is_no_address_and_no_shared_bucket() {
    let mut request = request(PROXY, X_FORWARDED_FOR, &[b"192.0.2.1"]);
    request.extensions_mut().clear();
    for by in [ClientAddress::peer(), proxies(), ClientAddress::behind_hops(1)] {
        assert_eq!(by.resolve(RequestHead::new(&request)), None);
        assert!(by.identity(RequestHead::new(&request)).is_none());
    }
}

#[cfg(feature = "axum")]
#[test]
fn the_peer_is_ours_before_that_of_axum_before_that_of_its_tests() {
    use axum::extract::connect_info::{ConnectInfo, MockConnectInfo};
    let mut request = Request::new(());
    let peer = |n: u8| SocketAddr::from(([192, 0, 2, n], 1));
    request.extensions_mut().insert(MockConnectInfo(peer(3)));
    for (n, insert) in [
        (3, (|_, _| ()) as fn(&mut http::Extensions, SocketAddr)),
        (2, |extensions, peer| _ = extensions.insert(ConnectInfo(peer))),
        (1, |extensions, peer| _ = extensions.insert(PeerAddr(peer))),
    ] {
        insert(request.extensions_mut(), peer(n));
        let address = ClientAddress::peer().resolve(RequestHead::new(&request));
        assert_eq!(address, Some(peer(n).ip()));
    }
}

#[test]
fn mistakes_in_the_configuration_are_named() {
    let none: [&str; 0] = [];
    assert_eq!(ClientAddress::behind_proxies(none), Err(AddressError::NoProxies));
    assert_eq!(ClientAddress::behind_proxies(["0.0.0.0/0"]), Err(AddressError::TrustsEveryone));
    let error = ClientAddress::behind_proxies(["10.0.0.0/8", "nginx"]).unwrap_err();
    assert!(error.to_string().starts_with("\"nginx\" is no network: write"));
    let header = |name| ClientAddress::platform_header(name, ["10.0.0.0/8"]).unwrap_err();
    assert_eq!(header("real ip"), AddressError::HeaderName { text: "real ip".into() });
    assert_eq!(header("Forwarded"), AddressError::ListHeader { name: header::FORWARDED });
    for prefix in [0, 31, 129, 255] {
        let error = AddressError::Ipv6Prefix { prefix };
        assert_eq!(ClientAddress::peer().with_ipv6_prefix(prefix), Err(error));
    }
}

/// Bytes of a header value, mostly such as a forger would choose.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just(", ".to_owned()),
        Just("\"".to_owned()),
        Just("for=".to_owned()),
        Just(";".to_owned()),
        Just("unknown".to_owned()),
        any::<[u8; 4]>().prop_map(|v4| IpAddr::from(v4).to_string()),
        any::<[u8; 16]>().prop_map(|v6| format!("[{}]:1", IpAddr::from(v6))),
        (1_u8..9).prop_map(|n| format!("10.0.0.{n}")),
        "[ -~]{0,6}",
    ];
    prop_oneof![
        prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat().into_bytes()),
        prop::collection::vec(any::<u8>(), 0..200),
    ]
    .prop_filter("no header value", |bytes| HeaderValue::from_bytes(bytes).is_ok())
}

fn any_of_ours(header: ForwardedHeader) -> [ClientAddress; 3] {
    [
        proxies().with_header(header),
        ClientAddress::behind_hops(3).with_header(header),
        ClientAddress::platform_header("real-ip", ["10.0.0.0/8"]).unwrap(),
    ]
}

proptest! {
    #[test]
    fn no_header_panics_and_none_of_an_untrusted_peer_counts(
        lines in prop::collection::vec(value(), 0..6),
    ) {
        let lines: Vec<_> = lines.iter().map(Vec::as_slice).collect();
        for (name, header) in [
            (X_FORWARDED_FOR, ForwardedHeader::XForwardedFor),
            (header::FORWARDED, ForwardedHeader::Forwarded),
            (HeaderName::from_static("real-ip"), ForwardedHeader::XForwardedFor),
        ] {
            let [by_proxies, by_hops, by_platform] = any_of_ours(header);
            let trusted = request(PROXY, name.clone(), &lines);
            by_proxies.resolve(RequestHead::new(&trusted)).unwrap();
            by_hops.resolve(RequestHead::new(&trusted)).unwrap();
            by_platform.resolve(RequestHead::new(&trusted)).unwrap();
            let direct = request("203.0.113.9", name, &lines);
            for by in [by_proxies, by_platform] {
                prop_assert_eq!(by.resolve(RequestHead::new(&direct)), Some(ip("203.0.113.9")));
            }
        }
    }

    #[test]
    fn a_proxy_is_the_answer_only_if_all_hops_are_proxies_or_one_is_no_address(
        hops in prop::collection::vec(prop_oneof![
            (1_u8..255).prop_map(|n| format!("10.0.0.{n}")),
            (1_u8..255).prop_map(|n| format!("192.0.2.{n}")),
            Just("unknown".to_owned()),
        ], 0..8),
    ) {
        let answer = resolved(&proxies(), PROXY, &[&hops.join(",")]);
        let known: Vec<_> = hops.iter().rev().map_while(|hop| hop.parse().ok()).collect();
        let client = known.iter().find(|hop: &&IpAddr| !hop.to_string().starts_with("10."));
        let expected = client.or(known.last()).copied().unwrap_or(ip(PROXY));
        // An absent header and an empty one are the same.
        prop_assert_eq!(answer, expected);
    }

    #[test]
    fn what_the_client_wrote_left_of_its_own_address_changes_nothing(forged in value()) {
        let line = [&forged[..], b", 192.0.2.1"].concat();
        let request = request(PROXY, X_FORWARDED_FOR, &[&line]);
        prop_assert_eq!(proxies().resolve(RequestHead::new(&request)), Some(ip("192.0.2.1")));
        let element = [&forged[..], b", for=192.0.2.1"].concat();
        let request = self::request(PROXY, header::FORWARDED, &[&element]);
        let by = proxies().with_header(ForwardedHeader::Forwarded);
        prop_assert_eq!(by.resolve(RequestHead::new(&request)), Some(ip("192.0.2.1")));
    }
}
