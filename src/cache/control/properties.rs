//! What holds for any bytes.

use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use proptest::{collection::vec, option, prelude::*, sample::select as one_of};

use super::*;
use crate::head::RequestHead;

const NOW: Duration = Duration::from_secs(1_795_176_000);

/// Every field that some function here reads.
const NAMES: &[&str] = &[
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "access-control-allow-origin",
    "age",
    "authorization",
    "cache-control",
    "cache-group-invalidation",
    "cache-groups",
    "cdn-cache-control",
    "connection",
    "content-encoding",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "etag",
    "expires",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "keep-cache-control",
    "last-modified",
    "location",
    "origin",
    "pragma",
    "range",
    "set-cookie",
    "upgrade",
    "vary",
    "www-authenticate",
    "x-other",
];

/// What the fields are made of, so that the depths are reached.
const PIECES: &[&str] = &[
    "max-age=60",
    "max-age=",
    "s-maxage=9",
    "no-cache",
    "must-understand",
    "must-revalidate",
    "public",
    "stale-while-revalidate=30",
    "stale-if-error=99999999999",
    "=",
    ",",
    ", ",
    ";",
    ";q=0.50",
    ";q=1",
    "\"",
    "\\",
    "*",
    "W/\"a\"",
    "\"a\"",
    "bytes=",
    "bytes 0-1/2",
    "-",
    "5",
    "18446744073709551615",
    "Fri, 20 Nov 2026 12:00:00 GMT",
    "Fri, 20 Nov 2026 11:00:00 GMT",
    "Fri, 20 Nov 2026 13:00:00 GMT",
    "Friday, 20-Nov-26 12:00:00 GMT",
    "text/event-stream",
    "foo",
    "bar",
    "cookie",
    "websocket",
    "http://a.example",
    "//",
    "/../",
    "?",
    "en",
    " ",
    "\t",
];

fn text() -> impl Strategy<Value = Vec<u8>> {
    let pieces = vec(one_of(PIECES), 0..6).prop_map(|pieces| pieces.concat().into_bytes());
    let bytes = vec(any::<u8>(), 0..24).prop_map(|mut bytes| {
        bytes.retain(|&byte| byte == b'\t' || (byte >= 32 && byte != 127));
        bytes
    });
    prop_oneof![4 => pieces, 1 => bytes]
}

fn header() -> impl Strategy<Value = HeaderValue> {
    text().prop_map(|bytes| HeaderValue::from_bytes(&bytes).unwrap())
}

fn fields() -> impl Strategy<Value = HeaderMap> {
    vec((one_of(NAMES), header()), 0..10).prop_map(|lines| {
        lines.into_iter().map(|(name, value)| (HeaderName::from_static(name), value)).fold(
            HeaderMap::new(),
            |mut headers, (name, value)| {
                headers.append(name, value);
                headers
            },
        )
    })
}

/// Of which most are storable, so that properties of what is stored are not empty.
fn response() -> impl Strategy<Value = HeaderMap> {
    (fields(), option::of(0..5000_u32)).prop_map(|(mut headers, max_age)| {
        if let Some(max_age) = max_age {
            let line = HeaderValue::try_from(format!("max-age={max_age}")).unwrap();
            headers.append("cache-control", line);
            headers.remove("set-cookie");
            headers.remove("www-authenticate");
            headers.remove("cdn-cache-control");
        }
        headers
    })
}

fn status() -> impl Strategy<Value = StatusCode> {
    prop_oneof![
        3 => Just(200),
        1 => one_of(&[204_u16, 206, 299, 301, 304, 404, 500, 599][..]),
        1 => 100..1000_u16,
    ]
    .prop_map(|code| StatusCode::from_u16(code).unwrap())
}

fn rules() -> impl Strategy<Value = Rules> {
    let flags = any::<[bool; 7]>();
    (flags, 0..100_000_u64, 0..1000_u64).prop_map(|(flags, longest, window)| {
        let [output, target, strip, keyed, honour, despite, unreachable] = flags;
        let window = Duration::from_secs(window);
        Rules {
            output: output.then(|| Output {
                ttl: Duration::from_secs(60),
                stale_while_revalidate: window,
                stale_if_error: window,
                negative: vec![(StatusCode::NOT_FOUND, window)],
            }),
            target: target.then(|| HeaderName::from_static("keep-cache-control")),
            strip_set_cookie: strip,
            keyed_principal: keyed,
            honour_request: honour,
            stale_despite_s_maxage: despite,
            longest_life: Duration::from_secs(longest),
            keep_stale: window,
            stale_if_unreachable: if unreachable { window } else { Duration::ZERO },
            output_cookies_ignored: false,
        }
    })
}

fn facts(method: Method, headers: HeaderMap, rules: &Rules) -> RequestFacts {
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.headers_mut() = headers;
    RequestFacts::new(RequestHead::new(&request), rules)
}

fn stored(
    request: &HeaderMap,
    status: StatusCode,
    headers: &HeaderMap,
    rules: &Rules,
) -> Result<Storable, Refusal> {
    let arrival = Arrival { now: NOW, delay: Duration::from_secs(1) };
    store(&facts(Method::GET, request.clone(), rules), status, headers, rules, arrival)
}

fn variant(name: &str, lines: &[Vec<u8>]) -> Vec<u8> {
    let name = HeaderName::try_from(name).unwrap();
    let mut headers = HeaderMap::new();
    for line in lines {
        headers.append(&name, HeaderValue::from_bytes(line).unwrap());
    }
    let mut out = Vec::new();
    variant_value(&name, &headers, &mut out);
    out
}

proptest! {
    #[test]
    fn no_fields_and_no_clock_panic(
        request in fields(),
        response in fields(),
        update in fields(),
        status in status(),
        rules in rules(),
        method in "GET|HEAD|POST|[A-Z]{1,9}",
        clock: (Duration, Duration, Duration),
        length: u64,
        host in option::of("[ -~]{0,12}"),
        soft: bool,
    ) {
        let (now, delay, resident) = clock;
        let arrival = Arrival { now, delay };
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut whole = Request::new(());
        *whole.method_mut() = method.clone();
        *whole.headers_mut() = request.clone();
        let entrance = enter(RequestHead::new(&whole), false, &rules);
        let facts = facts(Method::GET, request.clone(), &rules);
        if let Ok(storable) = store(&facts, status, &response, &rules, arrival) {
            prop_assert!(!storable.keep.is_zero() && storable.keep <= rules.longest_life);
            let fields = stored_headers(&response, &rules, now);
            let merged = freshen(&fields, &update, &rules, now);
            let again = revalidated(
                &facts, status, &merged, &update, &storable.freshness, &rules, arrival,
            );
            prop_assert!(again.is_err() || !again.unwrap().keep.is_zero());
            let freshness = storable.freshness;
            freshness.may_serve_on_error(resident);
            freshness.may_serve_unreachable(resident, &rules);
            if let Entrance::Lookup(wishes) = entrance {
                freshness.reuse(resident, soft, &wishes);
                let selection = select(&request, wishes.head, status, &fields, length);
                let mut answer = fields.clone();
                into_answer(status, &mut answer, selection, Some(resident), length);
            }
            if let Some(condition) = revalidation(&fields) {
                condition.apply(&mut request.clone());
            }
        }
        groups(&response);
        invalidated_groups(&method, status, &response);
        invalidated(&Uri::from_static("/a/b?c"), host.as_deref(), status, &response);
        for name in NAMES {
            variant_value(&HeaderName::from_static(name), &request, &mut Vec::new());
        }
    }

    #[test]
    fn what_forbids_never_makes_anything_storable(
        request in fields(),
        response in response(),
        status in status(),
        rules in rules(),
        forbids in one_of(&["no-store", "private", "private=\"a\"", "No-Store"][..]),
    ) {
        let before = stored(&request, status, &response, &rules);
        let mut more = response.clone();
        more.append("cache-control", HeaderValue::from_static(forbids));
        match (before, stored(&request, status, &more, &rules)) {
            (_, Err(_)) => {}
            (Err(refusal), Ok(_)) => prop_assert!(false, "{:?} no more", refusal),
            (Ok(before), Ok(after)) => {
                prop_assert!(after.keep <= before.keep);
                prop_assert!(after.freshness.lifetime <= before.freshness.lifetime);
            }
        }
    }

    #[test]
    fn what_forbids_and_is_read_forbids(
        request in fields(),
        status in status(),
        rules in rules(),
        more in vec(one_of(&["max-age=60", "public", "s-maxage=60", "foo=\"a, b\"", "no-cache"][..]), 0..4),
        forbids in one_of(&["no-store", "private", "PRIVATE=\"a\""][..]),
        place: prop::sample::Index,
    ) {
        let mut directives = more;
        directives.insert(place.index(directives.len() + 1), forbids);
        let line = HeaderValue::try_from(directives.join(", ")).unwrap();
        let headers = HeaderMap::from_iter([(http::header::CACHE_CONTROL, line)]);
        prop_assert!(stored(&request, status, &headers, &rules).is_err());
    }

    #[test]
    fn a_selected_range_lies_within_the_body(
        request in fields(),
        range in prop_oneof![text(), "[0-9]{0,2}-[0-9]{0,2}".prop_map(String::into_bytes)],
        response in fields(),
        head: bool,
        status in status(),
        length in prop_oneof![0..20_u64, any::<u64>()],
    ) {
        let mut request = request;
        request.insert("range", HeaderValue::from_bytes(&[b"bytes=", &range[..]].concat()).unwrap());
        let selection = select(&request, head, status, &response, length);
        if let Selection::Range { start, end } = selection {
            prop_assert!(start < end && end <= length && !head && status == StatusCode::OK);
        }
        if let Selection::Unsatisfiable = selection {
            prop_assert!(status == StatusCode::OK);
        }
    }

    #[test]
    fn every_range_of_numbers_is_cut_where_it_should(
        first in 0..30_u64,
        last in 0..30_u64,
        length in 0..20_u64,
    ) {
        let cut = |range: String| {
            let headers = header_map(&[("range", &range)]);
            select(&headers, false, StatusCode::OK, &HeaderMap::new(), length)
        };
        let expected = match () {
            () if last < first => Selection::Full,
            () if first >= length => Selection::Unsatisfiable,
            () => Selection::Range { start: first, end: length.min(last + 1) },
        };
        prop_assert_eq!(cut(format!("bytes={first}-{last}")), expected);
    }

    #[test]
    fn variants_are_insensitive_to_lines_and_whitespace_at_commas(
        members in vec("[a-z0-9;=]{1,4}( [a-z]{1,3})?|\"[a-z ,]{0,5}\"", 1..6),
        spaces in vec(("[ \t]{0,2}", "[ \t]{0,2}", any::<bool>()), 6),
    ) {
        let plain = [members.join(",").into_bytes()];
        let mut lines = vec![Vec::new()];
        for (index, (member, (before, after, new_line))) in members.iter().zip(&spaces).enumerate() {
            if index > 0 && *new_line {
                lines.push(Vec::new());
            } else if index > 0 {
                lines.last_mut().unwrap().push(b',');
            }
            lines.last_mut().unwrap().extend(format!("{before}{member}{after}").into_bytes());
        }
        prop_assert_eq!(variant("foo", &plain), variant("foo", &lines));
        if !members.iter().any(|member| member.contains('"')) {
            prop_assert_eq!(variant("accept-language", &plain), variant("accept-language", &lines));
        }
    }

    /// Whatever is left of a value says all of it: undoing nothing but whitespace beside commas.
    #[test]
    fn values_that_differ_in_more_are_never_alike(
        one in text(),
        other in text(),
        edit in option::of((any::<prop::sample::Index>(), one_of(&b",; \\\"a"[..]))),
    ) {
        let other = match edit {
            None => other,
            Some((place, byte)) => {
                let mut edited = one.clone();
                edited.insert(place.index(one.len() + 1), byte);
                edited
            }
        };
        let bare = |text: &[u8]| {
            let text: Vec<_> = text.iter().copied().filter(|byte| !b" \t".contains(byte)).collect();
            text
        };
        if bare(&one) != bare(&other) {
            prop_assert_ne!(variant("foo", &[one]), variant("foo", &[other]));
        }
    }

    #[test]
    fn sets_of_weights_that_differ_are_never_alike(
        one in vec(("[a-c]{1,2}", 0..=1000_u32), 0..20),
        other in vec(("[a-c]{1,2}", 0..=1000_u32), 0..20),
        edit in option::of((any::<prop::sample::Index>(), 0..=1000_u32)),
    ) {
        let line = |members: &[(String, u32)]| {
            let members: Vec<_> = members
                .iter()
                .map(|(name, weight)| format!("{name};q={}.{:03}", weight / 1000, weight % 1000))
                .collect();
            [members.join(", ").into_bytes()]
        };
        let mut other = other;
        if let Some((place, weight)) = edit {
            other = one.iter().rev().cloned().collect();
            if let Some(member) = other.get_mut(place.index(one.len() + 1)) {
                member.1 = weight;
            }
        }
        let sorted = |members: &[(String, u32)]| {
            let mut members = members.to_vec();
            members.sort();
            members
        };
        let alike = |name| variant(name, &line(&one)) == variant(name, &line(&other));
        prop_assert_eq!(alike("accept-encoding"), sorted(&one) == sorted(&other));
        prop_assert_eq!(alike("accept-language"), one == other, "order is a preference");
    }

    #[test]
    fn a_304_removes_nothing_that_it_does_not_mention(
        response in response(),
        update in fields(),
        rules in rules(),
    ) {
        let fields = stored_headers(&response, &rules, NOW);
        let merged = freshen(&fields, &update, &rules, NOW);
        for name in fields.keys().filter(|name| *name != http::header::DATE) {
            if !update.contains_key(name) {
                let (before, after) = (fields.get_all(name), merged.get_all(name));
                prop_assert_eq!(before.iter().collect::<Vec<_>>(), after.iter().collect::<Vec<_>>());
            }
        }
        for name in merged.keys().filter(|name| *name != http::header::DATE) {
            prop_assert!(fields.contains_key(name) || update.contains_key(name));
        }
        prop_assert!(fields.contains_key("date") && merged.contains_key("date"));
        prop_assert!(!merged.contains_key("set-cookie") && !merged.contains_key("age"));
    }

    #[test]
    fn a_cache_status_can_be_parsed(
        cache: String,
        detail in option::of(any::<String>()),
        hit: bool,
        ttl in -999_999_999_999_999..=999_999_999_999_999_i64,
        status in option::of(status()),
        flags: (bool, bool),
    ) {
        let outcome = if hit {
            Outcome::Hit { ttl }
        } else {
            let (stored, collapsed) = flags;
            Outcome::Forward { reason: Forward::VaryMiss, status, stored, collapsed, ttl: Some(ttl) }
        };
        let value = CacheStatus { cache: &cache, outcome, detail: detail.as_deref() }.value();
        let list: sfv::List = sfv::Parser::new(value.as_bytes()).parse().unwrap();
        let [sfv::ListEntry::Item(item)] = &list[..] else { panic!("{value:?}") };
        prop_assert_eq!(item.params["ttl"].as_integer().map(i64::from), Some(ttl));
        prop_assert_eq!(item.params.contains_key("hit"), hit);
        prop_assert_eq!(item.params.contains_key("detail"), detail.is_some());
    }
}
