use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::session::fields::{Changes, Class};

fn fields(entries: &[(Class, &str, &[u8])]) -> Fields {
    let mut changes = Changes::new();
    for (class, name, value) in entries {
        changes.set(*class, *name, Bytes::copy_from_slice(value));
    }
    changes.apply(&Fields::new())
}

fn live() -> Live {
    Live {
        schema: 3,
        handle: Uuid::from_bytes([7; 16]),
        born: Duration::from_secs(86_400),
        rotated: Duration::from_micros(80_000_000_001),
        authenticated: Some(Duration::from_secs(80_000)),
        principal: Some("user 42".into()),
        device: Device::new()
            .with_user_agent("Firefox/140.0")
            .with_address("192.0.2.7".parse().unwrap()),
        predecessor: Some(TokenDigest::from_bytes([9; 32])),
        fields: fields(&[
            (Class::Data, "cart", b"\x93\x01\x02\x03"),
            (Class::Data, "theme", b"\xa4dark"),
            (Class::Flash, "notice", b"\xa6Saved."),
        ]),
    }
}

fn bare() -> Live {
    Live {
        authenticated: None,
        principal: None,
        device: Device::new(),
        predecessor: None,
        fields: Fields::new(),
        ..live()
    }
}

fn examples() -> [Record; 6] {
    let successor = TokenDigest::from_bytes([1; 32]);
    [
        Record::Live(live()),
        Record::Live(bare()),
        Record::Moved(Moved::Rotated { successor, sealed: [2; 32] }),
        Record::Moved(Moved::Retired { successor }),
        Record::Moved(Moved::Replaced { successor: Some(successor) }),
        Record::Moved(Moved::Replaced { successor: None }),
    ]
}

/// Changes what is checked, and makes the checksum fit, as a hostile writer would.
fn forged(encoded: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut bytes = encoded.to_vec();
    change(&mut bytes);
    let sum = checksum(&bytes[CHECKED_FROM..]);
    bytes[4..CHECKED_FROM].copy_from_slice(&sum.to_be_bytes());
    bytes.into()
}

fn any_record() -> impl Strategy<Value = Record> {
    let micros = || any::<u64>().prop_map(Duration::from_micros);
    let text = || option::of(any::<String>().prop_map(String::into_boxed_str));
    let digest = || option::of(any::<[u8; 32]>().prop_map(TokenDigest::from_bytes));
    let class = prop_oneof![Just(Class::Data), Just(Class::Flash), Just(Class::Whole)];
    let fields = vec((class, any::<String>(), any::<Vec<u8>>()), 0..6).prop_map(|entries| {
        let mut changes = Changes::new();
        for (class, name, value) in entries {
            changes.set(class, name, value.into());
        }
        changes.apply(&Fields::new())
    });
    let times = (micros(), micros(), micros(), option::of(micros()));
    let live = (any::<(u32, u128)>(), times, (text(), text(), text()), digest(), fields).prop_map(
        |((schema, handle), times, (principal, user_agent, network), predecessor, fields)| {
            Record::Live(Live {
                schema,
                handle: Uuid::from_u128(handle),
                born: times.1,
                rotated: times.2,
                authenticated: times.3,
                principal,
                device: Device { user_agent, network },
                predecessor,
                fields,
            })
        },
    );
    let moved = (digest(), any::<Option<[u8; 32]>>()).prop_map(|(successor, sealed)| {
        Record::Moved(match (successor, sealed) {
            (Some(successor), Some(sealed)) => Moved::Rotated { successor, sealed },
            (Some(successor), None) => Moved::Retired { successor },
            (successor, _) => Moved::Replaced { successor },
        })
    });
    prop_oneof![3 => live, 1 => moved]
}

proptest! {
    #[test]
    fn any_record_is_read_again(record in any_record()) {
        prop_assert_eq!(Record::decode(record.encode()), Ok(record));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..300), kind in 0..4_u8) {
        let _ = Record::decode(bytes.clone().into());
        let head = [&b"tks\x01________"[..], &[kind]].concat();
        let _ = Record::decode(forged(&head, |out| out.extend(&bytes)));
    }

    #[test]
    fn forged_records_are_read_or_refused(
        record in any_record(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let encoded = record.encode();
        let at = CHECKED_FROM + at.index(encoded.len() - CHECKED_FROM);
        let _ = Record::decode(forged(&encoded, |bytes| bytes[at] = byte));
        let _ = Record::decode(forged(&encoded, |bytes| bytes.truncate(at)));
    }
}

#[test]
fn records_are_read_again() {
    for record in examples() {
        assert_eq!(Record::decode(record.encode()), Ok(record));
    }
}

#[test]
fn every_truncation_and_every_flipped_bit_is_an_error() {
    for record in examples() {
        let encoded = record.encode();
        for length in 0..encoded.len() {
            let read = Record::decode(encoded.slice(..length));
            assert_eq!(read, Err(DecodeError::Damaged), "{length} of {}", encoded.len());
        }
        let longer = [&encoded[..], &[0]].concat();
        assert_eq!(Record::decode(longer.into()), Err(DecodeError::Damaged));
        for bit in 0..8 * encoded.len() {
            let mut flipped = encoded.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let expected =
                if bit / 8 == 3 { DecodeError::OtherVersion } else { DecodeError::Damaged };
            assert_eq!(Record::decode(flipped.into()), Err(expected), "bit {bit}");
        }
    }
}

#[test]
fn what_a_later_version_has_written_is_told_from_damage() {
    for record in examples() {
        let encoded = record.encode();
        let kind = forged(&encoded, |bytes| bytes[CHECKED_FROM] = 9);
        assert_eq!(Record::decode(kind), Err(DecodeError::OtherVersion));
        let flag = forged(&encoded, |bytes| bytes[CHECKED_FROM + 1] |= 0x80);
        assert_eq!(Record::decode(flag), Err(DecodeError::OtherVersion));
    }
}

#[test]
fn forged_truncations_are_errors() {
    for record in examples() {
        let encoded = record.encode();
        for length in CHECKED_FROM..encoded.len() {
            match Record::decode(forged(&encoded, |bytes| bytes.truncate(length))) {
                Err(error) => assert_eq!(error, DecodeError::Damaged),
                // Cut between two fields: nothing but the checksum says how many there are.
                Ok(Record::Live(read)) => assert!(read.fields.len() < live().fields.len()),
                Ok(Record::Moved(moved)) => panic!("{moved:?} of {length} bytes"),
            }
        }
    }
}

#[test]
fn sizes_have_no_limit_here() {
    let large = vec![0xc4; 1 << 20];
    let principal = "p".repeat(100_000);
    let record = Record::Live(Live {
        principal: Some(principal.into()),
        fields: fields(&[(Class::Data, "large", &large), (Class::Data, "", b"")]),
        ..live()
    });
    assert_eq!(Record::decode(record.encode()), Ok(record));
}

#[test]
fn values_are_not_copied() {
    let encoded = Record::Live(live()).encode();
    let within = encoded.as_ptr_range();
    let Ok(Record::Live(read)) = Record::decode(encoded.clone()) else { panic!() };
    let cart = read.fields.get(Class::Data, "cart").unwrap();
    assert!(within.contains(&cart.as_ptr()));
}

#[test]
fn durations_are_kept_to_the_microsecond() {
    let read = |duration| {
        let record = Record::Live(Live { born: duration, ..live() });
        let Ok(Record::Live(read)) = Record::decode(record.encode()) else { panic!() };
        read.born
    };
    assert_eq!(read(Duration::from_nanos(1_999)), Duration::from_micros(1));
    assert_eq!(read(Duration::MAX), Duration::from_micros(u64::MAX));
}

#[test]
fn nothing_shows_who_it_is_or_what_he_keeps() {
    let shown = format!("{:?}", Record::Live(live()));
    assert!(shown.contains(r#"(Data, "cart")"#), "{shown}");
    for secret in ["user 42", "dark", "Saved", "07070707", "Firefox", "192.0.2"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    let moved = Moved::Rotated { successor: TokenDigest::from_bytes([2; 32]), sealed: [2; 32] };
    assert!(!format!("{moved:?}").contains("2, 2"), "{moved:?}");
}
