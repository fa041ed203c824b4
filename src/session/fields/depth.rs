//! How deeply a value in MessagePack is nested.

/// As many as `serde_json` reads. What nests deeper is neither written nor read, for reading takes
/// stack at each level, and `rmp-serde` does not count those of enums.
pub(super) const MOST: usize = 128;

/// Whether reading the value goes through more levels than [`MOST`].
///
/// What is no MessagePack after all has the levels that come before the damage: a reader stops
/// there too.
pub(super) fn is_too_deep(value: &[u8]) -> bool {
    // Each level takes a byte.
    if value.len() <= MOST {
        return false;
    }
    goes_deeper_than(MOST, value).unwrap_or(false)
}

fn goes_deeper_than(most: usize, value: &[u8]) -> Option<bool> {
    let mut rest = value;
    // How many values are still to come on each level.
    let mut levels: Vec<u64> = Vec::with_capacity(8);
    loop {
        match split_off(&mut rest)? {
            0 => {}
            _ if levels.len() == most => return Some(true),
            count => levels.push(count),
        }
        loop {
            match levels.last_mut() {
                None => return Some(false),
                Some(0) => levels.pop(),
                Some(count) => {
                    *count -= 1;
                    break;
                }
            };
        }
    }
}

/// Steps over a value, or into an array or a map of that many values.
fn split_off(from: &mut &[u8]) -> Option<u64> {
    let (&marker, rest) = from.split_first()?;
    *from = rest;
    let mut number = |bytes: usize| {
        let (number, rest) = from.split_at_checked(bytes)?;
        *from = rest;
        Some(number.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let length = match marker {
        0x80..=0x8f => return Some(2 * u64::from(marker & 0x0f)),
        0x90..=0x9f => return Some(u64::from(marker & 0x0f)),
        0xdc => return number(2),
        0xdd => return number(4),
        0xde => return number(2).map(|count| 2 * count),
        0xdf => return number(4).map(|count| 2 * count),
        0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => 0,
        0xa0..=0xbf => u64::from(marker & 0x1f),
        0xc4 | 0xd9 => number(1)?,
        0xc5 | 0xda => number(2)?,
        0xc6 | 0xdb => number(4)?,
        // An extension has a byte for its type.
        0xc7 => number(1)? + 1,
        0xc8 => number(2)? + 1,
        0xc9 => number(4)? + 1,
        0xd4..=0xd8 => (1 << (marker - 0xd4)) + 1,
        0xcc | 0xd0 => 1,
        0xcd | 0xd1 => 2,
        0xca | 0xce | 0xd2 => 4,
        0xcb | 0xcf | 0xd3 => 8,
        0xc1 => return None,
    };
    let (_, rest) = from.split_at_checked(usize::try_from(length).ok()?)?;
    *from = rest;
    Some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_counted_and_siblings_are_not() {
        let nested = |levels: usize| [vec![0x91; levels], vec![0xc0]].concat();
        assert!(!is_too_deep(&nested(MOST)));
        assert!(is_too_deep(&nested(MOST + 1)));
        assert!(is_too_deep(&nested(1 << 20)));
        let siblings = [vec![0xdc, 0x10, 0x00], [0x91, 0xc0].repeat(0x1000)].concat();
        assert!(!is_too_deep(&siblings));
        assert_eq!(goes_deeper_than(2, &siblings), Some(false));
        assert_eq!(goes_deeper_than(1, &siblings), Some(true));
    }

    #[test]
    fn every_kind_of_value_is_stepped_over_as_a_whole() {
        #[rustfmt::skip]
        let values: &[&[u8]] = &[
            &[0x00], &[0x7f], &[0xe0], &[0xff], &[0xc0], &[0xc2], &[0xc3], &[0xa0], &[0xa2, 9, 9],
            &[0xc4, 1, 9], &[0xc5, 0, 1, 9], &[0xc6, 0, 0, 0, 1, 9],
            &[0xd9, 1, 9], &[0xda, 0, 1, 9], &[0xdb, 0, 0, 0, 1, 9],
            &[0xc7, 1, 7, 9], &[0xc8, 0, 1, 7, 9], &[0xc9, 0, 0, 0, 1, 7, 9],
            &[0xd4, 7, 9], &[0xd5, 7, 9, 9], &[0xd6, 7, 9, 9, 9, 9],
            &[0xd7, 7, 9, 9, 9, 9, 9, 9, 9, 9],
            &[0xd8, 7, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9],
            &[0xcc, 9], &[0xcd, 9, 9], &[0xce, 9, 9, 9, 9], &[0xcf, 9, 9, 9, 9, 9, 9, 9, 9],
            &[0xd0, 9], &[0xd1, 9, 9], &[0xd2, 9, 9, 9, 9], &[0xd3, 9, 9, 9, 9, 9, 9, 9, 9],
            &[0xca, 9, 9, 9, 9], &[0xcb, 9, 9, 9, 9, 9, 9, 9, 9],
        ];
        for value in values {
            let mut rest = &value[..];
            assert_eq!((split_off(&mut rest), rest), (Some(0), &[][..]), "{value:02x?}");
            for length in 0..value.len() {
                assert_eq!(split_off(&mut &value[..length]), None, "{value:02x?}");
            }
        }
        assert_eq!(split_off(&mut &[0xc1][..]), None);
        let map: &[&[u8]] = &[&[0x82], &[0xde, 0, 2], &[0xdf, 0, 0, 0, 2]];
        assert!(map.iter().all(|map| split_off(&mut &map[..]) == Some(4)));
        let array: &[&[u8]] = &[&[0x92], &[0xdc, 0, 2], &[0xdd, 0, 0, 0, 2]];
        assert!(array.iter().all(|array| split_off(&mut &array[..]) == Some(2)));
    }
}
