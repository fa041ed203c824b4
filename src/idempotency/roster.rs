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
