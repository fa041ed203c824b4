//! The keys whose outcome is unknown, for operators to list: a hint.
//!
//! They lie in buckets, entries of their own, so that not every one is a race with every other:
//!
//! ```text
//! "tkr", version        4 bytes
//! checksum              8 bytes   of the items
//! items                32 bytes   each, in order of arrival
//! ```
//!
//! Decoding is total. The checksum is against accidents.

use bytes::Bytes;

use super::record::DecodeError;
use crate::checksum::checksum;

/// How many buckets there are.
pub(super) const BUCKETS: u8 = 16;
/// How many items a bucket holds at most.
pub(super) const CAPACITY: usize = 512;

const MAGIC: [u8; 3] = *b"tkr";
const VERSION: u8 = 1;
const HEAD: usize = 4 + 8;
const ITEM: usize = 32;

/// In which bucket the key of this handle is listed, below [`BUCKETS`].
pub(super) const fn bucket_of(handle: &[u8; 32]) -> u8 {
    handle[0] & (BUCKETS - 1)
}

/// A key that is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RosterItem {
    pub(super) handle: [u8; 32],
}

/// At most [`CAPACITY`] items, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Roster {
    items: Vec<RosterItem>,
}

/// What has become of an [`add`](Roster::add).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    New,
    /// It was there, and keeps its place. Nothing needs to be written.
    AlreadyThere,
    /// In place of the oldest, for there was no room.
    InPlaceOf(RosterItem),
}

impl Roster {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = RosterItem> + ExactSizeIterator {
        self.items.iter().copied()
    }

    pub(super) fn add(&mut self, item: RosterItem) -> Arrival {
        if self.items.contains(&item) {
            return Arrival::AlreadyThere;
        }
        let oldest = (self.items.len() >= CAPACITY).then(|| self.items.remove(0));
        self.items.push(item);
        oldest.map_or(Arrival::New, Arrival::InPlaceOf)
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, handle: &[u8; 32]) -> bool {
        let before = self.items.len();
        self.items.retain(|item| item.handle != *handle);
        self.items.len() < before
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(HEAD + ITEM * self.items.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.push(VERSION);
        bytes.extend_from_slice(&[0; 8]);
        for item in &self.items {
            bytes.extend_from_slice(&item.handle);
        }
        let checksum = checksum(&bytes[HEAD..]);
        bytes[4..HEAD].copy_from_slice(&checksum.to_be_bytes());
        bytes.into()
    }

    /// Either [`OtherVersion`](DecodeError::OtherVersion) or [`Damaged`](DecodeError::Damaged) for
    /// what [`encode`](Self::encode) has not written.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        use DecodeError::{Damaged, OtherVersion};

        let rest = match bytes.split_first_chunk() {
            Some((&MAGIC, [VERSION, rest @ ..])) => rest,
            Some((&MAGIC, [_, ..])) => return Err(OtherVersion),
            _ => return Err(Damaged),
        };
        let (sum, rest) = rest.split_first_chunk().ok_or(Damaged)?;
        let (items, tail) = rest.as_chunks::<ITEM>();
        let is_sound = u64::from_be_bytes(*sum) == checksum(rest)
            && items.len() <= CAPACITY
            && tail.is_empty();
        let items = || items.iter().map(|handle| RosterItem { handle: *handle }).collect();
        if is_sound { Ok(Self { items: items() }) } else { Err(Damaged) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn item(n: usize) -> RosterItem {
        let mut handle = [0x5a; 32];
        handle[..8].copy_from_slice(&n.to_be_bytes());
        RosterItem { handle }
    }

    fn full() -> Roster {
        let mut roster = Roster::default();
        assert!((0..CAPACITY).all(|n| roster.add(item(n)) == Arrival::New));
        roster
    }

    #[test]
    fn items_are_listed_in_order_of_arrival() {
        let mut roster = Roster::default();
        assert!(roster.is_empty());
        for n in [3, 1, 2] {
            assert_eq!(roster.add(item(n)), Arrival::New);
        }
        assert_eq!(roster.add(item(1)), Arrival::AlreadyThere);
        assert!(roster.iter().eq([3, 1, 2].map(item)));
        assert!(roster.remove(&item(1).handle));
        assert!(!roster.remove(&item(1).handle));
        assert!(roster.iter().eq([3, 2].map(item)));
        assert_eq!(roster.add(item(1)), Arrival::New);
        assert!(roster.iter().eq([3, 2, 1].map(item)));
    }

    #[test]
    fn a_full_bucket_drops_its_oldest_and_says_so() {
        let mut roster = full();
        assert_eq!(roster.add(item(7)), Arrival::AlreadyThere, "also when it is full");
        assert_eq!(roster.add(item(CAPACITY)), Arrival::InPlaceOf(item(0)));
        assert_eq!(roster.len(), CAPACITY);
        assert!(roster.iter().eq((1..=CAPACITY).map(item)));
        assert_eq!(Roster::decode(&roster.encode()), Ok(roster));
    }

    #[test]
    fn the_first_byte_of_a_handle_chooses_its_bucket() {
        let mut handle = [0xff; 32];
        for (first, bucket) in [(0, 0), (15, 15), (16, 0), (0x5a, 10), (255, 15)] {
            handle[0] = first;
            assert_eq!(bucket_of(&handle), bucket);
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut bytes = full().encode().to_vec();
        bytes[3] = VERSION + 1;
        assert_eq!(Roster::decode(&bytes), Err(DecodeError::OtherVersion));
        assert_eq!(Roster::decode(&bytes[..4]), Err(DecodeError::OtherVersion));
        bytes[0] = b'x';
        assert_eq!(Roster::decode(&bytes), Err(DecodeError::Damaged));
    }

    #[test]
    fn every_change_and_every_truncation_is_damage() {
        let mut roster = Roster::default();
        for items in 0..4 {
            let encoded = roster.encode();
            for length in 0..encoded.len() {
                assert_eq!(Roster::decode(&encoded[..length]), Err(DecodeError::Damaged));
            }
            for bit in 0..8 * encoded.len() {
                let mut flipped = encoded.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(Roster::decode(&flipped).is_err(), "bit {bit}");
            }
            roster.add(item(items));
        }
    }

    #[test]
    fn a_bucket_that_is_too_long_is_damaged() {
        let mut roster = full();
        roster.items.push(item(CAPACITY));
        assert_eq!(Roster::decode(&roster.encode()), Err(DecodeError::Damaged));
    }

    #[test]
    fn a_part_of_an_item_is_damage() {
        let mut bytes = full().encode().to_vec();
        bytes.truncate(HEAD + ITEM + 1);
        let sum = checksum(&bytes[HEAD..]);
        bytes[4..HEAD].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(Roster::decode(&bytes), Err(DecodeError::Damaged));
    }

    /// If this fails, the format has changed: raise `VERSION`.
    #[test]
    fn the_format_has_not_changed() {
        let roster = Roster { items: vec![RosterItem { handle: [0xab; 32] }] };
        let hex: String = roster.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, format!("746b7201{}{}", "41b3aa8ca943e880", "ab".repeat(32)));
    }

    proptest! {
        #[test]
        fn a_roster_is_read_as_it_was_written(handles in vec(any::<[u8; 32]>(), 0..40)) {
            let mut roster = Roster::default();
            for handle in handles {
                roster.add(RosterItem { handle });
            }
            prop_assert_eq!(Roster::decode(&roster.encode()), Ok(roster));
        }

        #[test]
        fn other_bytes_are_no_roster_and_no_panic(
            mut bytes in vec(any::<u8>(), 0..400),
            headed in any::<bool>(),
        ) {
            if headed {
                bytes.splice(..bytes.len().min(4), *b"tkr\x01");
            }
            if let Ok(roster) = Roster::decode(&bytes) {
                prop_assert_eq!(&roster.encode()[..], &bytes[..]);
            }
        }
    }
}
