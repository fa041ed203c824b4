use http::{HeaderName, header};
use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::envelope::names;

const ANY_SIZE: usize = usize::MAX;
const KEY: [u8; 32] = [0x4b; 32];
/// Where the length of the head stands.
const HEAD_LENGTH: usize = CHECKED_FROM;
const STATE: usize = CHECKED_FROM + 4;
const PHASE: usize = FIXED - 3;
/// Where what the state needs begins.
const OF_STATE: usize = FIXED + "POST /api/payments".len();
/// Where the two lengths of the body stand.
const LENGTHS: usize = OF_STATE + 2 + 1 + 4;

fn record(state: State) -> Record {
    Record {
        token: *b"sixteen of token",
        fingerprint: Fingerprint([0xf1; 32]),
        attempt: 2,
        lease: Duration::from_micros(30_000_001),
        label: "POST /api/payments".into(),
        state,
    }
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
    let status = StatusCode::from_u16(999).unwrap();
    StoredResponse { status, headers, body: Bytes::from_static(b"hello") }
}

fn with_body(body: impl Into<Bytes>) -> Record {
    record(State::Done(StoredResponse { body: body.into(), ..response() }))
}

fn sealed(location: Option<&[u8]>, reason: SealReason) -> Record {
    let location = location.map(|location| HeaderValue::from_bytes(location).unwrap());
    record(State::Sealed(Sealed { status: StatusCode::CREATED, location, reason }))
}

fn examples() -> [Record; 7] {
    [
        record(State::Pending(Phase::Undeclared)),
        record(State::Unknown(Phase::AfterCommit)),
        Record { label: "".into(), ..record(State::Pending(Phase::Recovering)) },
        with_body("hello"),
        with_body(""),
        sealed(Some(b"/payments/\xff"), SealReason::Streaming),
        sealed(None, SealReason::ByOperator),
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
    let sum = checksum_of(&bytes[..head_length(encoded)]);
    bytes[CHECKSUM..CHECKED_FROM].copy_from_slice(&sum.to_be_bytes());
    bytes.into()
}

fn read_response(encoded: Bytes) -> StoredResponse {
    match decode(encoded, &KEY, ANY_SIZE).unwrap().state {
        State::Done(response) => response,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_stored_is_read_again() {
    for record in examples() {
        let encoded = encode(&record, &KEY, None);
        assert_eq!(decode(encoded, &KEY, ANY_SIZE), Ok(record));
    }
}

#[test]
fn every_value_begins_with_the_token_of_its_owner() {
    for record in examples() {
        assert_eq!(encode(&record, &KEY, None)[..16], record.token);
    }
}

#[test]
fn fields_keep_their_order_their_bytes_and_their_secrecy() {
    let mut stored = response();
    let mut secret = HeaderValue::from_static("secret");
    secret.set_sensitive(true);
    stored.headers.append(header::LOCATION, secret);
    let read = read_response(encode(&record(State::Done(stored.clone())), &KEY, None));
    let lines: Vec<_> = read.headers.iter().collect();
    assert_eq!(lines, stored.headers.iter().collect::<Vec<_>>());
    let links: Vec<_> = read.headers.get_all(header::LINK).iter().collect();
    assert_eq!(links, ["</a>; rel=next", "", "</c>"]);
    assert_eq!(read.headers["x-unheard-of"].as_bytes(), b"\xff\xfe \t");
    assert!(read.headers[header::LOCATION].is_sensitive());
    assert!(!read.headers[header::ETAG].is_sensitive());
}

#[test]
fn the_location_of_a_sealed_response_keeps_its_secrecy() {
    for is_sensitive in [false, true] {
        let mut location = HeaderValue::from_static("/payments/7");
        location.set_sensitive(is_sensitive);
        let sealed = Sealed {
            status: StatusCode::SEE_OTHER,
            location: Some(location),
            reason: SealReason::Trailers,
        };
        let encoded = encode(&record(State::Sealed(sealed)), &KEY, None);
        let read = decode(encoded, &KEY, ANY_SIZE).unwrap();
        let State::Sealed(Sealed { location: Some(location), .. }) = read.state else { panic!() };
        assert_eq!(location.is_sensitive(), is_sensitive);
    }
}

#[test]
fn every_phase_and_every_reason_keeps_its_code() {
    use SealReason::{ByHandler, ByOperator, Failed, OverQuota, Streaming, TooLarge, Trailers};

    let phases = [Phase::Undeclared, Phase::BeforeCommit, Phase::AfterCommit, Phase::Recovering];
    for (phase, code) in phases.into_iter().zip(1..) {
        for record in [record(State::Pending(phase)), record(State::Unknown(phase))] {
            let encoded = encode(&record, &KEY, None);
            assert_eq!(encoded[PHASE], code);
            assert_eq!(decode(encoded, &KEY, 0), Ok(record));
        }
    }
    let reasons = [TooLarge, Streaming, Failed, Trailers, ByHandler, OverQuota, ByOperator];
    for (reason, code) in reasons.into_iter().zip(1..) {
        let record = sealed(None, reason);
        let encoded = encode(&record, &KEY, None);
        assert_eq!(encoded[encoded.len() - 2..], [code, 0]);
        assert_eq!(decode(encoded, &KEY, 0), Ok(record));
    }
    let words = "too-large streaming failed trailers by-handler over-quota by-operator";
    assert_eq!(reasons.map(|reason| reason.to_string()).join(" "), words);
}

#[test]
fn a_record_of_another_key_is_never_used() {
    for record in examples() {
        let encoded = encode(&record, &KEY, None);
        for at in [0, 31] {
            let mut other = KEY;
            other[at] ^= 1;
            let read = decode(encoded.clone(), &other, ANY_SIZE);
            assert_eq!(read, Err(DecodeError::OtherKey));
        }
    }
}

#[test]
fn a_newer_version_is_told_from_damage() {
    use DecodeError::{Damaged, OtherVersion};

    for record in examples() {
        let encoded = encode(&record, &KEY, None);
        let mut newer = encoded.to_vec();
        newer[19] = VERSION + 1;
        newer.truncate(20);
        assert_eq!(decode(newer.into(), &KEY, ANY_SIZE), Err(OtherVersion));
        let mut foreign = encoded.to_vec();
        foreign[16] = b'x';
        assert_eq!(decode(foreign.into(), &KEY, ANY_SIZE), Err(Damaged));
        for state in [0, 5, 255] {
            let unknown = forged(&encoded, |bytes| bytes[STATE] = state);
            assert_eq!(decode(unknown, &KEY, ANY_SIZE), Err(OtherVersion), "state {state}");
        }
    }
    let [pending, unknown, _, done, _, sealed, _] = examples().map(|it| encode(&it, &KEY, None));
    for encoded in [&pending, &unknown] {
        let newer = forged(encoded, |bytes| bytes[PHASE] = 5);
        assert_eq!(decode(newer, &KEY, ANY_SIZE), Err(OtherVersion), "phase");
        let none = forged(encoded, |bytes| bytes[PHASE] = NO_PHASE);
        assert_eq!(decode(none, &KEY, ANY_SIZE), Err(Damaged), "no phase");
    }
    for encoded in [&done, &sealed] {
        let phase = forged(encoded, |bytes| bytes[PHASE] = 1);
        assert_eq!(decode(phase, &KEY, ANY_SIZE), Err(Damaged), "a phase");
    }
    let coding = forged(&done, |bytes| bytes[OF_STATE + 2] = 99);
    assert_eq!(decode(coding, &KEY, ANY_SIZE), Err(OtherVersion), "coding");
    for reason in [0, 8] {
        let reason = forged(&sealed, |bytes| bytes[OF_STATE + 2] = reason);
        assert_eq!(decode(reason, &KEY, ANY_SIZE), Err(OtherVersion), "reason");
    }
}

#[test]
fn what_is_too_short_or_too_long_is_damaged() {
    for record in examples() {
        let encoded = encode(&record, &KEY, None);
        for length in 0..encoded.len() {
            let read = decode(encoded.slice(..length), &KEY, ANY_SIZE);
            assert_eq!(read, Err(DecodeError::Damaged), "{length} of {}", encoded.len());
        }
        let longer = [&encoded[..], b"x"].concat();
        assert_eq!(decode(longer.into(), &KEY, ANY_SIZE), Err(DecodeError::Damaged));
        // A head that is longer, with nothing read of what is added.
        let head = head_length(&encoded);
        let mut longer = [&encoded[..head], b"\0", &encoded[head..]].concat();
        longer[HEAD_LENGTH..][..4].copy_from_slice(&(head as u32 + 1).to_be_bytes());
        let sum = checksum_of(&longer[..head + 1]);
        longer[CHECKSUM..CHECKED_FROM].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(decode(longer.into(), &KEY, ANY_SIZE), Err(DecodeError::Damaged));
    }
}

#[test]
fn a_head_that_contradicts_itself_is_damaged() {
    let done = encode(&with_body("hello"), &KEY, None);
    let nowhere = encode(&sealed(None, SealReason::Failed), &KEY, None);
    let sealed = encode(&sealed(Some(b"/"), SealReason::Failed), &KEY, None);
    for (encoded, at, byte, what) in [
        (&done, LENGTHS + 7, 4, "fewer bytes than there are"),
        (&done, LENGTHS + 7, 6, "more bytes than there are"),
        (&done, LENGTHS + 15, 4, "a shorter body"),
        (&done, LENGTHS + 15, 6, "a longer body"),
        (&done, LENGTHS - 1, 5, "fewer fields"),
        (&done, LENGTHS - 4, 255, "more fields than there is room for"),
        (&done, OF_STATE, 255, "no status"),
        (&sealed, OF_STATE, 255, "no status"),
        (&sealed, OF_STATE + 3, 0, "no location"),
        (&nowhere, OF_STATE + 3, 2, "neither a location nor none"),
        (&sealed, OF_STATE + 5, b'\n', "a location that is no value of a field"),
        (&done, FIXED, 0xff, "a label that is no text"),
    ] {
        let read = decode(forged(encoded, |bytes| bytes[at] = byte), &KEY, ANY_SIZE);
        assert_eq!(read, Err(DecodeError::Damaged), "{what}");
    }
}

#[test]
fn every_change_of_a_byte_of_a_head_is_noticed() {
    for record in examples() {
        let encoded = encode(&record, &KEY, None);
        for at in 0..head_length(&encoded) {
            for change in 1..=255 {
                let mut changed = encoded.to_vec();
                changed[at] ^= change;
                let read = decode(changed.into(), &KEY, ANY_SIZE);
                assert!(read.is_err(), "byte {at} xor {change}: {read:?}");
            }
        }
    }
}

#[test]
fn a_pending_record_is_one_allocation() {
    for label in ["", "POST /", &"x".repeat(300)] {
        for phase in [State::Pending(Phase::Undeclared), State::Unknown(Phase::Undeclared)] {
            let record = Record { label: label.into(), ..record(phase) };
            let encoded = encode(&record, &KEY, None);
            let length = encoded.len();
            // Room that is left, or was made later, would show: `Bytes` keeps it, in another
            // allocation.
            assert_eq!(Vec::from(encoded).capacity(), length);
        }
    }
}

#[test]
fn a_body_is_a_slice_of_what_the_storage_gave() {
    let encoded = encode(&with_body(vec![7; 1 << 20]), &KEY, None);
    let range = encoded.as_ptr_range();
    let read = read_response(encoded);
    assert_eq!(read.body, vec![7; 1 << 20]);
    assert_eq!(read.body.as_ptr_range().end, range.end);
    for value in read.headers.values() {
        assert!(value.is_empty() || range.contains(&value.as_bytes().as_ptr()));
    }
}

#[test]
fn a_body_above_the_bound_is_not_read() {
    let encoded = encode(&with_body(vec![7; 101]), &KEY, None);
    assert_eq!(decode(encoded.clone(), &KEY, 100), Err(DecodeError::TooLarge));
    assert_eq!(decode(encoded, &KEY, 101), Ok(with_body(vec![7; 101])));
}

#[test]
fn a_long_label_is_cut_between_characters() {
    let cut = |label: &str| {
        let record = Record { label: label.into(), ..record(State::Pending(Phase::Undeclared)) };
        decode(encode(&record, &KEY, None), &KEY, 0).unwrap().label
    };
    assert_eq!(*cut(&"x".repeat(256)), "x".repeat(256));
    assert_eq!(*cut(&"x".repeat(257)), "x".repeat(256));
    assert_eq!(*cut(&"ä".repeat(200)), "ä".repeat(128));
    assert_eq!(*cut(&("x".to_owned() + &"ä".repeat(200))), "x".to_owned() + &"ä".repeat(127));
    assert_eq!(*cut(&"\u{1f600}".repeat(100)), "\u{1f600}".repeat(64));
    assert_eq!(cut(&("xyz".to_owned() + &"\u{1f600}".repeat(100))).len(), 3 + 4 * 63);
}

#[test]
fn a_lease_beyond_the_format_is_the_longest_it_has() {
    for (lease, read) in [
        (Duration::MAX, Duration::from_micros(u64::MAX)),
        (Duration::from_nanos(1_999), Duration::from_micros(1)),
    ] {
        let record = Record { lease, ..record(State::Pending(Phase::Undeclared)) };
        assert_eq!(decode(encode(&record, &KEY, None), &KEY, 0).unwrap().lease, read);
    }
}

/// If this fails, the format has changed: raise `VERSION`.
#[test]
fn the_format_has_not_changed() {
    let [pending, ..] = examples();
    let mut secret = HeaderValue::from_static("\"abc\"");
    secret.set_sensitive(true);
    let headers = HeaderMap::from_iter([
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html")),
        (header::ETAG, secret),
        (HeaderName::from_static("x-unheard-of"), HeaderValue::from_bytes(b"\xff\xfe \t").unwrap()),
    ]);
    let done = record(State::Done(StoredResponse { headers, body: "hi".into(), ..response() }));
    let (token, key, fingerprint) = ("7369787465656e206f6620746f6b656e", "4b", "f1");
    let common = format!(
        "{} {} 00000002 0000000001c9c381", // 30,000,001 µs
        key.repeat(32),
        fingerprint.repeat(32),
    );
    let label = "0012 504f5354202f6170692f7061796d656e7473";
    let expected = [
        format!("{token} 746b6901 38372a3dd098d336 00000082 01 {common} 01 {label}"),
        format!(
            "{token} 746b6901 47fe420f44be49b5 000000be 02 {common} 00 {label}
             03e7 00 00000003 0000000000000002 0000000000000002
             0112746578742f68746d6c 0b0b2261626322 000c782d756e68656172642d6f6608fffe2009 6869"
        ),
    ];
    for (record, expected) in [pending, done].iter().zip(expected) {
        let encoded = encode(record, &KEY, None);
        let hex: String = encoded.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected.split_whitespace().collect::<String>());
    }
}

#[test]
fn debug_shows_nothing_of_what_is_stored() {
    let shown = format!("{:?}", examples());
    assert!(shown.contains("Streaming") && shown.contains("attempt: 2"), "{shown}");
    for secret in ["text/html", "hello", "payments", "abc", "sixteen", "115, 105", "241", "f1"] {
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
        let encoded = encode(&long, &KEY, SMALL);
        assert!(encoded.len() < 1_000, "{}", encoded.len());
        assert_eq!(decode(encoded, &KEY, 100_000), Ok(long));
        for body in ["", "hi", "incompressible"] {
            let stored = with_body(body);
            assert_eq!(encode(&stored, &KEY, SMALL), encode(&stored, &KEY, None), "{body}");
        }
        for record in examples().iter().filter(|it| !matches!(it.state, State::Done(_))) {
            assert_eq!(encode(record, &KEY, SMALL), encode(record, &KEY, None));
        }
    }

    #[test]
    fn a_bomb_is_refused_before_it_takes_any_room() {
        let honest = encode(&with_body(vec![0; 64 << 20]), &KEY, SMALL);
        assert!(honest.len() < 20_000);
        assert_eq!(decode(honest.clone(), &KEY, 1 << 20), Err(DecodeError::TooLarge));
        let claims = |length: u64| {
            let at = LENGTHS + 8;
            forged(&honest, |bytes| bytes[at..at + 8].copy_from_slice(&length.to_be_bytes()))
        };
        for length in [0, 1, 1_000, 1 << 20] {
            let read = decode(claims(length), &KEY, 1 << 20);
            assert_eq!(read, Err(DecodeError::Damaged), "{length}");
        }
        assert_eq!(decode(claims(u64::MAX), &KEY, ANY_SIZE), Err(DecodeError::TooLarge));
        assert_eq!(decode(claims((64 << 20) + 1), &KEY, ANY_SIZE), Err(DecodeError::Damaged));
    }

    #[test]
    fn damage_to_a_compressed_record_is_never_a_panic() {
        let encoded = encode(&with_body(b"abcdefgh".repeat(100)), &KEY, SMALL);
        for length in 0..encoded.len() {
            let read = decode(encoded.slice(..length), &KEY, ANY_SIZE);
            assert_eq!(read, Err(DecodeError::Damaged));
        }
        for at in head_length(&encoded)..encoded.len() {
            for bit in 0..8 {
                let mut flipped = encoded.to_vec();
                flipped[at] ^= 1 << bit;
                let _ = decode(flipped.into(), &KEY, 1 << 20);
            }
        }
    }

    proptest! {
        #[test]
        fn a_compressed_record_is_read_again(record in any_record(), repeated in 0..50_usize) {
            let record = match record.state {
                State::Done(StoredResponse { status, headers, body }) => {
                    let body = body.repeat(repeated).into();
                    Record { state: State::Done(StoredResponse { status, headers, body }), ..record }
                }
                _ => record,
            };
            let encoded = encode(&record, &KEY, SMALL);
            prop_assert_eq!(decode(encoded, &KEY, ANY_SIZE), Ok(record));
        }
    }
}

fn any_value() -> impl Strategy<Value = HeaderValue> {
    let byte = prop_oneof![Just(b'\t'), 0x20..=0x7e_u8, 0x80..=0xff_u8];
    (vec(byte, 0..150), any::<bool>()).prop_map(|(bytes, is_sensitive)| {
        let mut value = HeaderValue::from_bytes(&bytes).unwrap();
        value.set_sensitive(is_sensitive);
        value
    })
}

fn any_fields() -> impl Strategy<Value = HeaderMap> {
    let name = prop_oneof![
        (1..=72_u8).prop_map(|code| names::name(code).unwrap()),
        (1..=3_u8).prop_map(|code| names::name(code).unwrap()),
        "[a-z][a-z0-9_-]{0,40}".prop_map(|name| HeaderName::try_from(name).unwrap()),
    ];
    vec((name, any_value()), 0..9).prop_map(|fields| {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value);
        }
        headers
    })
}

fn any_state() -> impl Strategy<Value = State> {
    let phase = || (1..=4_u8).prop_map(|code| Phase::from_code(code).unwrap());
    let reason = (1..=7_u8).prop_map(|code| SealReason::from_code(code).unwrap());
    let status = || (100..=999_u16).prop_map(|status| StatusCode::from_u16(status).unwrap());
    let body = vec(any::<u8>(), 0..200).prop_map(Bytes::from);
    prop_oneof![
        phase().prop_map(State::Pending),
        phase().prop_map(State::Unknown),
        (status(), any_fields(), body).prop_map(|(status, headers, body)| {
            State::Done(StoredResponse { status, headers, body })
        }),
        (status(), option::of(any_value()), reason).prop_map(|(status, location, reason)| {
            State::Sealed(Sealed { status, location, reason })
        }),
    ]
}

prop_compose! {
    fn any_record()(
        token: [u8; 16],
        fingerprint: [u8; 32],
        attempt: u32,
        micros: u64,
        label in "\\PC{0,60}",
        state in any_state(),
    ) -> Record {
        Record {
            token,
            fingerprint: Fingerprint(fingerprint),
            attempt,
            lease: Duration::from_micros(micros),
            label: label.into(),
            state,
        }
    }
}

/// Which values are sensitive, which their equality leaves out.
fn secrets(record: &Record) -> Vec<bool> {
    match &record.state {
        State::Done(response) => response.headers.values().map(HeaderValue::is_sensitive).collect(),
        State::Sealed(sealed) => sealed.location.iter().map(HeaderValue::is_sensitive).collect(),
        _ => Vec::new(),
    }
}

proptest! {
    #[test]
    fn whatever_is_stored_is_read_again(record in any_record(), key: [u8; 32]) {
        let read = decode(encode(&record, &key, None), &key, ANY_SIZE);
        prop_assert_eq!(read.as_ref().map(secrets), Ok(secrets(&record)));
        prop_assert_eq!(read, Ok(record));
    }

    #[test]
    fn any_bytes_decode_without_a_panic(
        mut bytes in vec(any::<u8>(), 0..2_000),
        headed in any::<bool>(),
    ) {
        if headed && bytes.len() >= CHECKSUM {
            bytes[TOKEN..CHECKSUM].copy_from_slice(b"tki\x01");
        }
        prop_assert!(decode(bytes.into(), &KEY, 1 << 20).is_err());
    }

    #[test]
    fn forged_heads_decode_without_a_panic(
        record in any_record(),
        changes in vec((CHECKED_FROM + 4..600_usize, any::<u8>()), 1..5),
    ) {
        let encoded = encode(&record, &KEY, None);
        let length = head_length(&encoded);
        let forged = forged(&encoded, |bytes| {
            for (at, byte) in changes {
                // The checksum is of the head as long as it says it is.
                if at < length {
                    bytes[at] = byte;
                }
            }
        });
        if let Ok(Record { state: State::Done(read), .. }) = decode(forged, &KEY, 1 << 20) {
            prop_assert!(read.body.len() <= 200);
        }
    }

    #[test]
    fn a_head_that_lies_about_its_length_is_damaged(record in any_record(), length: u32) {
        let encoded = encode(&record, &KEY, None);
        for length in [length, length % 1_000] {
            let mut bytes = encoded.to_vec();
            bytes[HEAD_LENGTH..][..4].copy_from_slice(&length.to_be_bytes());
            if let Some(head) = bytes.get(..length as usize).filter(|head| head.len() >= FIXED) {
                let sum = checksum_of(head);
                bytes[CHECKSUM..CHECKED_FROM].copy_from_slice(&sum.to_be_bytes());
            }
            if length as usize != head_length(&encoded) {
                prop_assert!(decode(bytes.into(), &KEY, ANY_SIZE).is_err());
            }
        }
    }
}
