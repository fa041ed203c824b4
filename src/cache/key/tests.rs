use std::collections::HashSet;

use http::{HeaderMap, Request};
use proptest::{collection::vec, prelude::*};

use super::*;

fn request(target: &str, fields: &[(&str, &[u8])]) -> Request<()> {
    let mut request = Request::builder().uri(target).body(()).unwrap();
    for (name, value) in fields {
        let name = HeaderName::try_from(*name).unwrap();
        request.headers_mut().append(name, HeaderValue::from_bytes(value).unwrap());
    }
    request
}

fn key_of(rule: &KeyRule, target: &str, fields: &[(&str, &[u8])]) -> Option<CacheKey> {
    rule.key(RequestHead::new(&request(target, fields)))
}

fn with_headers(names: &[&'static str]) -> KeyRule {
    let headers = names.iter().map(|name| HeaderName::from_static(name)).collect();
    KeyRule { headers, ..KeyRule::default() }
}

fn part(find: impl Fn(RequestHead<'_>) -> Option<Identity> + Send + Sync + 'static) -> KeyPart {
    Arc::new(find)
}

#[track_caller]
fn assert_all_differ(keys: impl IntoIterator<Item = CacheKey>) {
    let keys: Vec<_> = keys.into_iter().collect();
    let places: Vec<_> =
        keys.iter().map(|key| keys.iter().position(|other| other == key).unwrap()).collect();
    assert_eq!(places, (0..keys.len()).collect::<Vec<_>>(), "where each key was first seen");
}

#[test]
fn targets_that_a_router_could_tell_apart_have_keys_of_their_own() {
    let long = format!("/a?{}", "x".repeat(60_000));
    let longer = format!("{long}x");
    let targets = [
        "/a",
        "//a",
        "/a/",
        "/A",
        "/a/../b",
        "/b",
        "/a/./b",
        "/%2e%2e/b",
        "/a%2Fb",
        "/a%2fb",
        "/a/b",
        "/a;x",
        "/a;x=1",
        "/a?",
        "/a?x",
        "/a?x=",
        "/a?a=1&a=2",
        "/a?a=2&a=1",
        "/a?a=1;a=2",
        "/a?a=1&b=2",
        "/a?b=2&a=1",
        "/a?a=%31&b=2",
        "/a/x.css",
        "/",
        "*",
        "http://h/a",
        "https://h/a",
        "ftp://h/a",
        "http://i/a",
        "http://h:80/a",
        "http://u@h/a",
        "http://U@h/a",
        &long,
        &longer,
    ];
    assert_all_differ(targets.map(|target| key_of(&KeyRule::default(), target, &[]).unwrap()));
}

#[test]
fn schemes_and_hosts_are_the_same_in_any_case() {
    let key = |target, host: &[u8]| key_of(&KeyRule::default(), target, &[("host", host)]);
    assert_eq!(key("/a", b"Shop.Example"), key("/a", b"shop.example"));
    assert_eq!(key("http://Shop.Example/a", b"x"), key("HTTP://shop.example/a", b"X"));
    assert_eq!(key("FTP://h/a", b"h"), key("ftp://H/a", b"h"));
}

#[test]
fn every_host_has_answers_of_its_own_and_an_empty_one_is_not_none() {
    let key = |target, fields: &[(&str, &[u8])]| key_of(&KeyRule::default(), target, fields);
    let keys = [
        key("/a", &[]),
        key("/a", &[("host", b"")]),
        key("/a", &[("host", b"h")]),
        key("/a", &[("host", b"h:80")]),
        key("/a", &[("host", b"\xff")]),
        key("http://h/a", &[]),
        // A handler may read either.
        key("http://h/a", &[("host", b"evil")]),
        key("http://h/a", &[("host", b"")]),
    ];
    assert_all_differ(keys.map(Option::unwrap));
    assert_eq!(key("http://h/a", &[("host", b"H")]), key("http://h/a", &[]));
}

#[test]
fn two_hosts_are_none() {
    let hosts = |a: &'static [u8], b: &'static [u8]| [("host", a), ("host", b)];
    assert_eq!(key_of(&KeyRule::default(), "/a", &hosts(b"h", b"evil")), None);
    assert_eq!(key_of(&KeyRule::default(), "http://h/a", &hosts(b"h", b"evil")), None);
    let once = key_of(&KeyRule::default(), "/a", &[("host", b"h")]);
    assert_eq!(key_of(&KeyRule::default(), "/a", &hosts(b"h", b"H")), once);
    let two = request("/a", &hosts(b"h", b"evil"));
    assert_eq!(host(RequestHead::new(&two)), None);
    let one = request("http://u:p@H:8080/a", &[]);
    assert_eq!(host(RequestHead::new(&one)), Some(b"h:8080".into()));
}

#[test]
fn a_head_request_has_the_key_of_a_get() {
    let mut head = request("/a", &[]);
    *head.method_mut() = http::Method::HEAD;
    let key = KeyRule::default().key(RequestHead::new(&head));
    assert_eq!(key, key_of(&KeyRule::default(), "/a", &[]));
}

#[test]
fn only_what_is_declared_counts_of_the_fields() {
    let plain = key_of(&KeyRule::default(), "/a", &[]);
    for name in ["cookie", "origin", "accept-encoding", "x-forwarded-host", "user-agent"] {
        assert_eq!(key_of(&KeyRule::default(), "/a", &[(name, b"x")]), plain);
        let declared =
            KeyRule { headers: vec![HeaderName::try_from(name).unwrap()], ..KeyRule::default() };
        assert_ne!(key_of(&declared, "/a", &[(name, b"x")]), key_of(&declared, "/a", &[]));
    }
}

#[test]
fn every_line_of_a_declared_field_counts() {
    let rule = with_headers(&["x-a", "x-b"]);
    let fields: [&[(&str, &[u8])]; 10] = [
        &[],
        &[("x-a", b"")],
        &[("x-a", b""), ("x-a", b"")],
        &[("x-a", b"1")],
        &[("x-a", b"1"), ("x-a", b"2")],
        &[("x-a", b"2"), ("x-a", b"1")],
        &[("x-a", b"1, 2")],
        &[("x-b", b"1")],
        &[("x-a", b"1"), ("x-b", b"2")],
        &[("x-a", b"1\x81x-b")],
    ];
    assert_all_differ(fields.map(|fields| key_of(&rule, "/a", fields).unwrap()));
}

#[test]
fn rules_that_differ_make_keys_that_differ() {
    let query = |query| KeyRule { query, ..KeyRule::default() };
    let none = KeyRule { parts: vec![part(|_| None)], ..KeyRule::default() };
    let rules = [
        KeyRule::default(),
        query(Query::Sorted),
        query(Query::Only(vec![])),
        query(Query::Ignored),
        with_headers(&["x-a"]),
        with_headers(&["x-b"]),
        none,
        KeyRule { parts: vec![part(|_| Some(Identity::global()))], ..KeyRule::default() },
        KeyRule { parts: vec![part(|_| Some(Identity::new("")))], ..KeyRule::default() },
        KeyRule { principal: Some(part(|_| Some(Identity::new("")))), ..KeyRule::default() },
    ];
    assert_all_differ(rules.iter().map(|rule| key_of(rule, "/a", &[]).unwrap()));
}

#[test]
fn a_query_counts_by_its_rule() {
    let key = |query: &Query, target| {
        let rule = KeyRule { query: query.clone(), ..KeyRule::default() };
        key_of(&rule, target, &[]).unwrap()
    };
    let only = Query::Only(vec!["a".into()]);
    assert_eq!(key(&Query::Sorted, "/x?b=2&a=1"), key(&Query::Sorted, "/x?a=1&b=2"));
    assert_ne!(key(&Query::Sorted, "/x?a=1&a=2"), key(&Query::Sorted, "/x?a=2&a=1"));
    assert_ne!(key(&Query::Sorted, "/x?"), key(&Query::Sorted, "/x"));
    assert_eq!(key(&only, "/x?utm=1&a=1"), key(&only, "/x?a=1"));
    assert_eq!(key(&only, "/x?utm=1"), key(&only, "/x"));
    assert_ne!(key(&only, "/x?a"), key(&only, "/x?a="));
    assert_eq!(key(&Query::Ignored, "/x?a"), key(&Query::Ignored, "/x"));
}

#[test]
fn a_resource_is_what_the_key_has_of_a_target() {
    let sorted = KeyRule { query: Query::Sorted, ..KeyRule::default() };
    let resource = |rule: &KeyRule, target: &str| rule.resource(&target.parse().unwrap());
    assert_eq!(resource(&sorted, "http://h//A?b=2&a=1"), b"//A?a=1&b=2");
    assert_eq!(resource(&KeyRule::default(), "/a?b&a"), b"/a?b&a");
    assert_eq!(resource(&KeyRule::default(), "/a?"), b"/a?");
    let ignored = KeyRule { query: Query::Ignored, ..KeyRule::default() };
    assert_eq!(resource(&ignored, "/a?b"), b"/a");
}

#[test]
fn who_asks_for_a_principal_gets_no_key_without_one() {
    let principal = part(|head| head.headers().get("x-user").map(Identity::new));
    let rule = KeyRule { principal: Some(principal), ..KeyRule::default() };
    assert_eq!(key_of(&rule, "/me", &[]), None);
    let key = |user: &[u8]| key_of(&rule, "/me", &[("x-user", user)]).unwrap();
    assert_eq!(key(b"alice"), key(b"alice"));
    assert_all_differ([key(b"alice"), key(b"bob"), key(b""), key(&[b'x'; 5_000])]);
}

#[cfg(feature = "axum")]
#[test]
fn a_nested_route_has_the_key_of_what_was_sent_and_of_what_is_seen() {
    use axum::extract::OriginalUri;

    let key = |sent: &str, seen: &str| {
        let mut request = request(seen, &[]);
        request.extensions_mut().insert(OriginalUri(sent.parse().unwrap()));
        assert_eq!(*RequestHead::new(&request).target(), sent);
        KeyRule::default().key(RequestHead::new(&request)).unwrap()
    };
    assert_eq!(key("/a/b", "/a/b"), key_of(&KeyRule::default(), "/a/b", &[]).unwrap());
    assert_all_differ([
        key("/a/b", "/a/b"),
        key("/a/b", "/b"),
        key("/c/b", "/b"),
        // What a middleware has made of the target by other means than its prefix.
        key("/a/b", "/tenant-1"),
        key("/a/b", "/tenant-2"),
        key("/a/b", "/b?x=1"),
        key("/a/b?x=1", "/b"),
        key("/a/b", "http://h/b"),
    ]);
}

#[test]
fn variants_of_values_that_differ_have_keys_that_differ() {
    let primary = key_of(&KeyRule::default(), "/a", &[]).unwrap();
    let variant = |fields: &[(&'static str, &str)]| {
        let names: Vec<_> = fields.iter().map(|(name, _)| HeaderName::from_static(name)).collect();
        primary.variant(&names, |name, out| {
            let field = fields.iter().find(|field| name == field.0).unwrap();
            out.extend_from_slice(field.1.as_bytes());
        })
    };
    let long = "x".repeat(5_000);
    assert_all_differ([
        primary.clone(),
        variant(&[]),
        variant(&[("x-a", "")]),
        variant(&[("x-a", "1")]),
        variant(&[("x-a", "1"), ("x-b", "")]),
        variant(&[("x-a", "1\u{3}x-b\0")]),
        variant(&[("x-b", "1")]),
        variant(&[("x-a", &long)]),
        variant(&[("x-a", &long), ("x-b", "")]),
    ]);
    assert_eq!(variant(&[("x-a", "1")]), variant(&[("x-a", "1")]));
    assert!(variant(&[("x-a", &long)]).as_bytes().len() < 600);
}

#[test]
fn the_key_of_a_value_is_never_that_of_a_response() {
    let primary = key_of(&KeyRule::default(), "/a", &[]).unwrap();
    let variant = primary.variant(&[header::ACCEPT], |_, _| {});
    let value = |identity: &Identity| CacheKey::for_value(identity);
    assert_all_differ([
        primary.clone(),
        variant.clone(),
        value(primary.identity()),
        value(variant.identity()),
        value(&Identity::global()),
        value(&Identity::new("")),
        value(&Identity::new([VALUE])),
    ]);
}

#[test]
fn debug_shows_no_part_of_a_key() {
    let rule = KeyRule { principal: Some(part(|_| Some("alice".into()))), ..KeyRule::default() };
    let shown = format!("{:?} {rule:?}", key_of(&rule, "/secret", &[]));
    assert!(!shown.contains("secret") && !shown.contains("alice"), "{shown}");
}

#[test]
fn a_part_is_the_same_on_the_stack_and_beyond_it() {
    for length in [0, 1, 127, 128, 254, 255, 256, 257, 700] {
        let mut part = Part::new();
        part.push(&[b'x'; 3]);
        part.push_sized(&vec![b'Y'; length]);
        part.push_lower(b"Z");
        let mut expected = b"xxx".to_vec();
        if length < 0x80 {
            expected.push(length as u8);
        } else {
            expected.extend([length as u8 | 0x80, (length >> 7) as u8]);
        }
        expected.extend(vec![b'Y'; length]);
        expected.extend(b"\x01z");
        assert_eq!(part.as_slice(), expected, "{length}");
    }
}

fn names(headers: &HeaderMap) -> HashSet<&str> {
    headers.keys().map(HeaderName::as_str).collect()
}

#[test]
fn a_handler_sees_what_is_in_the_key_or_harmless_or_made_visible() {
    let all = [
        "host",
        "accept",
        "accept-language",
        "traceparent",
        "cookie",
        "origin",
        "authorization",
        "accept-encoding",
        "user-agent",
        "x-forwarded-for",
        "x-forwarded-host",
        "range",
        "if-none-match",
        "x-tenant",
        "x-flag",
        "x-other",
    ];
    let fields: Vec<_> = all.iter().map(|name| (*name, &b"x"[..])).collect();
    let mut headers = request("/", &fields).into_parts().0.headers;
    headers.append("x-other", HeaderValue::from_static("again"));
    headers.append("x-tenant", HeaderValue::from_static("again"));
    let own = ["x-tenant", "x-flag"].map(HeaderName::from_static);
    strip_unkeyed(&mut headers, &own[..1], &own[1..]);
    let left = ["host", "accept", "accept-language", "traceparent", "x-tenant", "x-flag"];
    assert_eq!(names(&headers), HashSet::from(left));
    assert_eq!(headers.get_all("x-tenant").iter().count(), 2);
}

#[test]
fn overrides_are_removed_unless_they_are_in_the_key() {
    let fields = [
        "x-forwarded-host",
        "x_forwarded_host",
        "x-original-url",
        "x-http-method-override",
        "x-forwarded-proto",
        "x-forwarded-for",
        "cookie",
        "x-host",
        "x-hosts",
    ];
    let fields: Vec<_> = fields.iter().map(|name| (*name, &b"x"[..])).collect();
    let mut headers = request("/", &fields).into_parts().0.headers;
    strip_overrides(&mut headers, &[HeaderName::from_static("x-forwarded-proto")], &[]);
    let left = ["x-forwarded-proto", "x-forwarded-for", "cookie", "x-hosts"];
    assert_eq!(names(&headers), HashSet::from(left));
}

#[test]
fn forwarded_stays_if_it_only_tells_the_client() {
    for (line, stays) in [
        ("for=192.0.2.1", true),
        ("for=192.0.2.1;by=_x, for=\"[::1]\"", true),
        ("for=192.0.2.1;Host=evil", false),
        ("for=x, for=y;PROTO=ftp", false),
        ("for=x ; host = \"evil\"", false),
    ] {
        let mut headers = request("/", &[("forwarded", line.as_bytes())]).into_parts().0.headers;
        strip_overrides(&mut headers, &[], &[]);
        assert_eq!(headers.contains_key("forwarded"), stays, "{line}");
        let mut headers = request("/", &[("forwarded", line.as_bytes())]).into_parts().0.headers;
        strip_overrides(&mut headers, &[], &[header::FORWARDED]);
        assert!(headers.contains_key("forwarded"));
    }
}

type Line = (bool, Vec<u8>);

/// What a handler could see of a request of these parts, and the request.
fn built(path: &str, query: &Option<String>, lines: &[Line]) -> Request<()> {
    let query = query.as_ref().map_or(String::new(), |query| format!("?{query}"));
    let fields: Vec<_> = lines
        .iter()
        .map(|(first, value)| (if *first { "x-a" } else { "x-b" }, &value[..]))
        .collect();
    request(&format!("/{path}{query}"), &fields)
}

fn by_name(lines: &[Line]) -> (Vec<&Vec<u8>>, Vec<&Vec<u8>>) {
    let of = |wanted| lines.iter().filter(move |line| line.0 == wanted).map(|line| &line.1);
    (of(true).collect(), of(false).collect())
}

proptest! {
    #[test]
    fn keys_are_equal_exactly_if_all_parts_are(
        a in ("[ab/]{0,2}", proptest::option::of("[ab&]{0,2}"), vec((any::<bool>(), vec(b'a'..=b'b', 0..3)), 0..3)),
        b in ("[ab/]{0,2}", proptest::option::of("[ab&]{0,2}"), vec((any::<bool>(), vec(b'a'..=b'b', 0..3)), 0..3)),
    ) {
        let rule = with_headers(&["x-a", "x-b"]);
        let [key_a, key_b] = [&a, &b].map(|(path, query, lines)| {
            rule.key(RequestHead::new(&built(path, query, lines))).unwrap()
        });
        let same = (&a.0, &a.1, by_name(&a.2)) == (&b.0, &b.1, by_name(&b.2));
        prop_assert_eq!(key_a == key_b, same);
    }
}
