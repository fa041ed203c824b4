use http::{HeaderValue, header};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    cache::tags::{CacheTags, TagRule},
    envelope::names,
    storage::Identity,
};

const ANY_SIZE: usize = usize::MAX;

fn key(name: &str) -> CacheKey {
    CacheKey::for_value(&Identity::new(name))
}

fn tags(names: &[Vec<u8>]) -> TagList {
    let tags = CacheTags::new(names);
    TagRule::default().collect(Some(&tags), &HeaderMap::new(), []).unwrap()
}

fn freshness(seconds: u64) -> Freshness {
    Freshness { lifetime: Duration::from_secs(seconds), must_revalidate: true, ..NOT_TIMED }
}

fn response() -> StoredResponse {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (header::CONTENT_TYPE, &b"text/html"[..]),
        (header::LINK, b"</a>; rel=next"),
        (header::ETAG, b"\"abc\""),
        (header::LINK, b""),
        (HeaderName::from_static("x-unheard-of"), b"\xff\xfe \t"),
        (header::LINK, b"</c>"),
    ] {
        headers.append(name, HeaderValue::from_bytes(value).unwrap());
    }
    StoredResponse {
        status: StatusCode::from_u16(999).unwrap(),
        headers,
        freshness: freshness(60),
        fill_time: Duration::from_millis(7),
        tags: tags(&[b"product:42".into(), b"\0 \xff".into()]),
        body: Bytes::from_static(b"hello"),
    }
}

fn with_body(body: impl Into<Bytes>) -> Stored {
    Stored::Response(StoredResponse { body: body.into(), ..response() })
}

fn lists(lists: &[&[HeaderName]]) -> Stored {
    Stored::Variants(lists.iter().map(|list| (*list).into()).collect())
}

fn examples() -> [Stored; 4] {
    let names = [header::ACCEPT, HeaderName::from_static("x-unheard-of")];
    [
        Stored::Response(response()),
        with_body(""),
        lists(&[&names, &[], &names[..1]]),
        Stored::Value(StoredValue {
            freshness: freshness(5),
            fill_time: Duration::ZERO,
            tags: TagList::default(),
            bytes: Bytes::from_static(b"\x93\x01\x02\x03"),
        }),
    ]
}

fn head_length(encoded: &[u8]) -> usize {
    let length = encoded[HEAD_LENGTH..HEAD_LENGTH + 4].try_into().unwrap();
    u32::from_be_bytes(length) as usize
}

/// Changes the head, and makes the checksum fit, as a hostile writer would.
fn forged(encoded: &[u8], change: impl FnOnce(&mut [u8])) -> Bytes {
    let mut bytes = encoded.to_vec();
    change(&mut bytes);
    let head = head_length(encoded);
    let sum = checksum(&bytes[CHECKED_FROM..head]);
    bytes[4..CHECKED_FROM].copy_from_slice(&sum.to_be_bytes());
    bytes.into()
}

#[test]
fn what_is_stored_is_read_again() {
    for stored in examples() {
        let encoded = encode(&stored, &key("a"), None);
        assert_eq!(decode(encoded, &key("a"), ANY_SIZE), Ok(stored));
    }
}

#[test]
fn fields_keep_their_order_their_bytes_and_their_secrecy() {
    let mut stored = response();
    let mut secret = HeaderValue::from_static("secret");
    secret.set_sensitive(true);
    stored.headers.append(header::SET_COOKIE, secret);
    let encoded = encode(&Stored::Response(stored.clone()), &key("a"), None);
    let Ok(Stored::Response(read)) = decode(encoded, &key("a"), ANY_SIZE) else { panic!() };
    let lines: Vec<_> = read.headers.iter().collect();
    assert_eq!(lines, stored.headers.iter().collect::<Vec<_>>());
    let links: Vec<_> = read.headers.get_all(header::LINK).iter().collect();
    assert_eq!(links, ["</a>; rel=next", "", "</c>"]);
    assert_eq!(read.headers["x-unheard-of"].as_bytes(), b"\xff\xfe \t");
    assert!(read.headers[header::SET_COOKIE].is_sensitive());
    assert!(!read.headers[header::ETAG].is_sensitive());
}

#[test]
fn an_entry_of_another_key_is_never_served() {
    for stored in examples() {
        let encoded = encode(&stored, &key("a"), None);
        for other in ["b", "", "aa"] {
            let read = decode(encoded.clone(), &key(other), ANY_SIZE);
            assert_eq!(read, Err(DecodeError::OtherKey));
        }
    }
}

#[test]
fn a_newer_version_is_told_from_damage() {
    let encoded = encode(&examples()[0], &key("a"), None);
    let mut newer = encoded.to_vec();
    newer[3] = VERSION + 1;
    assert_eq!(decode(newer.into(), &key("a"), ANY_SIZE), Err(DecodeError::OtherVersion));
    let mut foreign = encoded.to_vec();
    foreign[0] = b'x';
    assert_eq!(decode(foreign.into(), &key("a"), ANY_SIZE), Err(DecodeError::Damaged));
    for (at, what) in [(CHECKED_FROM, "kind"), (CHECKED_FROM + 1, "coding")] {
        let unknown = forged(&encoded, |bytes| bytes[at] = 99);
        let read = decode(unknown, &key("a"), ANY_SIZE);
        assert_eq!(read, Err(DecodeError::OtherVersion), "{what}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    for stored in examples() {
        let encoded = encode(&stored, &key("a"), None);
        for length in 0..encoded.len() {
            let read = decode(encoded.slice(..length), &key("a"), ANY_SIZE);
            assert_eq!(read, Err(DecodeError::Damaged), "{length} of {}", encoded.len());
        }
        let longer = [&encoded[..], b"x"].concat();
        assert_eq!(decode(longer.into(), &key("a"), ANY_SIZE), Err(DecodeError::Damaged));
    }
}

#[test]
fn every_flipped_bit_of_a_head_is_noticed() {
    for stored in examples() {
        let encoded = encode(&stored, &key("a"), None);
        for bit in 0..8 * head_length(&encoded) {
            let mut flipped = encoded.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(flipped.into(), &key("a"), ANY_SIZE).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn a_body_is_a_slice_of_what_the_storage_gave() {
    let encoded = encode(&with_body(vec![7; 1 << 20]), &key("a"), None);
    let range = encoded.as_ptr_range();
    let Ok(Stored::Response(read)) = decode(encoded, &key("a"), 1 << 20) else { panic!() };
    assert_eq!(read.body.len(), 1 << 20);
    assert_eq!(read.body.as_ptr_range().end, range.end);
    for value in read.headers.values() {
        assert!(value.is_empty() || range.contains(&value.as_bytes().as_ptr()));
    }
}

#[test]
fn a_body_above_the_bound_is_not_served() {
    let encoded = encode(&with_body(vec![7; 101]), &key("a"), None);
    assert_eq!(decode(encoded.clone(), &key("a"), 100), Err(DecodeError::TooLarge));
    assert_eq!(decode(encoded, &key("a"), 101), Ok(with_body(vec![7; 101])));
}

#[test]
fn the_newest_lists_of_fields_are_kept() {
    let names: Vec<_> = (0..9).map(|n| HeaderName::try_from(format!("x-{n}")).unwrap()).collect();
    let all: Vec<_> = names.iter().map(std::slice::from_ref).collect();
    let encoded = encode(&lists(&all), &key("a"), None);
    assert_eq!(decode(encoded.clone(), &key("a"), ANY_SIZE), Ok(lists(&all[..8])));
    let more = forged(&encoded, |bytes| bytes[CHECKED_FROM + 8] = 9);
    assert_eq!(decode(more, &key("a"), ANY_SIZE), Err(DecodeError::Damaged));
}

#[test]
fn durations_beyond_the_format_are_the_longest_it_has() {
    let stored = StoredResponse { fill_time: Duration::MAX, ..response() };
    let encoded = encode(&Stored::Response(stored), &key("a"), None);
    let Ok(Stored::Response(read)) = decode(encoded, &key("a"), ANY_SIZE) else { panic!() };
    assert_eq!(read.fill_time, Duration::from_millis(u64::MAX));
}

/// If this fails, the format has changed: raise `VERSION`.
#[test]
fn the_format_has_not_changed() {
    let Stored::Response(mut stored) = with_body("hi") else { unreachable!() };
    stored.headers.remove(header::LINK);
    let encoded = encode(&Stored::Response(stored), &key("a"), None);
    let hex: String = encoded.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = "
        746b6301d80e4a749faf864d 010002 03e7 00000003 0000000b 00000011 0000009a
        0000000000000002 0000000000000002
        000000000000ea60 0000000000000000 0000000000000000 0000000000000000 0000000000000007
        6200017662000462000161 000a70726f647563743a343200030020ff
        0112746578742f68746d6c 000c782d756e68656172642d6f6608fffe2009 0b0a2261626322 6869";
    assert_eq!(hex, expected.split_whitespace().collect::<String>());
}

#[test]
fn debug_shows_nothing_of_what_is_stored() {
    let shown = format!("{:?}", examples());
    for secret in ["text/html", "hello", "product", "abc"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[cfg(feature = "zstd")]
mod compressed {
    use super::*;

    const SMALL: Option<Compression> = Some(Compression { level: 1, minimum: 10 });

    #[test]
    fn a_body_is_compressed_where_that_makes_it_shorter() {
        let long = with_body(vec![7; 100_000]);
        let encoded = encode(&long, &key("a"), SMALL);
        assert!(encoded.len() < 1_000, "{}", encoded.len());
        assert_eq!(decode(encoded, &key("a"), 100_000), Ok(long));
        for body in ["", "hi", "incompressible"] {
            let stored = with_body(body);
            let encoded = encode(&stored, &key("a"), SMALL);
            assert_eq!(encoded, encode(&stored, &key("a"), None), "{body}");
        }
    }

    #[test]
    fn a_bomb_is_refused_before_it_takes_any_room() {
        let honest = encode(&with_body(vec![0; 64 << 20]), &key("a"), SMALL);
        assert!(honest.len() < 20_000);
        assert_eq!(decode(honest.clone(), &key("a"), 1 << 20), Err(DecodeError::TooLarge));
        let claims = |length: u64| {
            let at = HEAD_LENGTH + 4 + 8;
            forged(&honest, |bytes| bytes[at..at + 8].copy_from_slice(&length.to_be_bytes()))
        };
        for length in [0, 1, 1_000, 1 << 20] {
            let read = decode(claims(length), &key("a"), 1 << 20);
            assert_eq!(read, Err(DecodeError::Damaged), "{length}");
        }
        let read = decode(claims(u64::MAX), &key("a"), ANY_SIZE);
        assert_eq!(read, Err(DecodeError::TooLarge));
    }

    #[test]
    fn damage_to_a_compressed_body_is_never_a_panic() {
        let encoded = encode(&with_body(b"abcdefgh".repeat(100)), &key("a"), SMALL);
        for at in head_length(&encoded)..encoded.len() {
            for bit in 0..8 {
                let mut flipped = encoded.to_vec();
                flipped[at] ^= 1 << bit;
                let _ = decode(flipped.into(), &key("a"), 1 << 20);
            }
        }
    }
}

fn any_name() -> impl Strategy<Value = HeaderName> {
    prop_oneof![
        (1..=72_u8).prop_map(|code| names::name(code).unwrap()),
        "[a-z][a-z0-9_-]{0,40}".prop_map(|name| HeaderName::try_from(name).unwrap()),
    ]
}

fn any_value() -> impl Strategy<Value = HeaderValue> {
    let byte = prop_oneof![Just(b'\t'), 0x20..=0x7e_u8, 0x80..=0xff_u8];
    vec(byte, 0..150).prop_map(|bytes| HeaderValue::from_bytes(&bytes).unwrap())
}

prop_compose! {
    fn any_freshness()(ms in any::<[u64; 4]>(), set in any::<[bool; 4]>()) -> Freshness {
        let [lifetime, initial_age, stale_while_revalidate, stale_if_error] =
            ms.map(Duration::from_millis);
        let [always_revalidate, must_revalidate, authorized, heuristic] = set;
        Freshness {
            lifetime,
            initial_age,
            stale_while_revalidate,
            stale_if_error,
            always_revalidate,
            must_revalidate,
            authorized,
            heuristic,
        }
    }
}

fn any_stored() -> impl Strategy<Value = Stored> {
    let rest = || {
        (
            any_freshness(),
            any::<u64>().prop_map(Duration::from_millis),
            vec(vec(any::<u8>(), 1..30), 0..5).prop_map(|names| tags(&names)),
            vec(any::<u8>(), 0..200).prop_map(Bytes::from),
        )
    };
    let fields = vec((any_name(), any_value()), 0..9).prop_map(|fields| {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value);
        }
        headers
    });
    prop_oneof![
        (100..=999_u16, fields, rest()).prop_map(|(status, headers, rest)| {
            let (freshness, fill_time, tags, body) = rest;
            let status = StatusCode::from_u16(status).unwrap();
            Stored::Response(StoredResponse { status, headers, freshness, fill_time, tags, body })
        }),
        vec(vec(any_name(), 0..5).prop_map(Into::into), 0..=8).prop_map(Stored::Variants),
        rest().prop_map(|(freshness, fill_time, tags, bytes)| {
            Stored::Value(StoredValue { freshness, fill_time, tags, bytes })
        }),
    ]
}

proptest! {
    #[test]
    fn whatever_is_stored_is_read_again(stored in any_stored(), name in "[a-z]{0,300}") {
        let encoded = encode(&stored, &key(&name), None);
        prop_assert_eq!(decode(encoded, &key(&name), ANY_SIZE), Ok(stored));
    }

    #[test]
    fn any_bytes_decode_without_a_panic(bytes in vec(any::<u8>(), 0..2_000)) {
        prop_assert!(decode(bytes.into(), &key("a"), 1 << 20).is_err());
    }

    #[test]
    fn forged_heads_decode_without_a_panic(
        stored in any_stored(),
        changes in vec((CHECKED_FROM..600_usize, any::<u8>()), 1..5),
    ) {
        let encoded = encode(&stored, &key("a"), None);
        let length = head_length(&encoded);
        let forged = forged(&encoded, |bytes| {
            for (at, byte) in changes {
                // The checksum is of the head as long as it says it is.
                if !(HEAD_LENGTH..HEAD_LENGTH + 4).contains(&at) && at < length {
                    bytes[at] = byte;
                }
            }
        });
        if let Ok(Stored::Response(read)) = decode(forged, &key("a"), 1 << 20) {
            prop_assert!(read.body.len() <= 200);
        }
    }
}
