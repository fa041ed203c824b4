//! Some of a principal's sessions, as they are stored together.

use bytes::Bytes;
use uuid::Uuid;

use super::super::token::TokenDigest;

/// How many members a bucket holds at most.
pub(in super::super) const CAPACITY: usize = 64;
/// How many buckets a principal has at most. Who could claim more would have a reader ask for them.
pub(super) const MOST_BUCKETS: u32 = 1 << 16;

const MAGIC: [u8; 2] = *b"kI";
const FORMAT: u8 = 1;
/// Magic, format, number of buckets.
const HEAD: usize = 7;
const MEMBER: usize = 48;

/// A session of a principal: what it is called, and under what its record is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in super::super) struct Member {
    /// Stays the same when the session gets another token.
    pub(in super::super) handle: Uuid,
    pub(in super::super) id: TokenDigest,
}

/// At most [`CAPACITY`] members, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bucket {
    /// How many buckets the principal has; means something in the first one only.
    pub(super) buckets: u32,
    members: Vec<Member>,
}

impl Bucket {
    pub(super) const EMPTY: Self = Self { buckets: 1, members: Vec::new() };

    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.members.len() >= CAPACITY
    }

    pub(super) fn holds(&self, handle: Uuid) -> bool {
        self.members.iter().any(|member| member.handle == handle)
    }

    /// Adds a member, or gives the one of this handle its id. `false` if there is no room.
    pub(super) fn insert(&mut self, member: Member) -> bool {
        if self.replace(member) {
            return true;
        }
        let room = !self.is_full();
        if room {
            self.members.push(member);
        }
        room
    }

    /// Gives the member of this handle its id, if there is one.
    pub(super) fn replace(&mut self, member: Member) -> bool {
        let mut found = false;
        for old in self.members.iter_mut().filter(|old| old.handle == member.handle) {
            *old = member;
            found = true;
        }
        found
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&Member) -> bool) {
        self.members.retain(keep);
    }

    pub(super) fn insert_in_place_of_oldest(&mut self, member: Member) -> bool {
        if self.is_full() && !self.holds(member.handle) {
            self.members.remove(0);
        }
        self.insert(member)
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(HEAD + MEMBER * self.members.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.push(FORMAT);
        bytes.extend_from_slice(&self.buckets.to_be_bytes());
        for member in &self.members {
            bytes.extend_from_slice(member.handle.as_bytes());
            bytes.extend_from_slice(member.id.as_bytes());
        }
        bytes.into()
    }

    /// `None` for whatever [`encode`](Self::encode) has not written.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.strip_prefix(&MAGIC)?.strip_prefix(&[FORMAT])?;
        let (buckets, bytes) = bytes.split_first_chunk()?;
        let buckets = u32::from_be_bytes(*buckets);
        let (members, rest) = bytes.as_chunks::<MEMBER>();
        let sound =
            (1..=MOST_BUCKETS).contains(&buckets) && members.len() <= CAPACITY && rest.is_empty();
        sound.then(|| Self { buckets, members: members.iter().map(member).collect() })
    }
}

fn member(bytes: &[u8; MEMBER]) -> Member {
    let (mut handle, mut id) = ([0; 16], [0; 32]);
    handle.copy_from_slice(&bytes[..16]);
    id.copy_from_slice(&bytes[16..]);
    Member { handle: Uuid::from_bytes(handle), id: TokenDigest::from_bytes(id) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn a_member(handle: u128) -> Member {
        Member { handle: Uuid::from_u128(handle), id: TokenDigest::from_bytes([handle as u8; 32]) }
    }

    proptest! {
        #[test]
        fn a_bucket_is_read_as_it_was_written(
            handles in proptest::collection::btree_set(any::<u128>(), 0..=CAPACITY),
            buckets in 1..=MOST_BUCKETS,
        ) {
            let members: Vec<_> = handles.into_iter().map(a_member).collect();
            let bucket = Bucket { buckets, members };
            prop_assert_eq!(Bucket::decode(&bucket.encode()), Some(bucket));
        }

        #[test]
        fn other_bytes_are_no_bucket_and_no_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
            headed in any::<bool>(),
        ) {
            if headed {
                bytes.splice(..bytes.len().min(5), [b'k', b'I', 1, 0, 0]);
            }
            if let Some(bucket) = Bucket::decode(&bytes) {
                prop_assert_eq!(&bucket.encode()[..], &bytes[..]);
            }
        }
    }

    #[test]
    fn a_bucket_that_is_too_long_or_counts_too_much_is_damaged() {
        let damaged = |buckets, members| {
            let members = (0..members).map(a_member).collect();
            Bucket::decode(&Bucket { buckets, members }.encode()).is_none()
        };
        assert!(!damaged(1, 64) && !damaged(MOST_BUCKETS, 0));
        assert!(damaged(1, 65));
        assert!(damaged(0, 1) && damaged(MOST_BUCKETS + 1, 1) && damaged(u32::MAX, 1));
    }

    #[test]
    fn a_handle_is_there_once_with_its_last_id() {
        let mut bucket = Bucket::EMPTY;
        assert!((0..64).all(|n| bucket.insert(a_member(n))));
        assert!(!bucket.insert(a_member(64)));
        let renewed = Member { id: TokenDigest::from_bytes([9; 32]), ..a_member(3) };
        assert!(bucket.insert(renewed), "also when it is full");
        assert!(bucket.insert_in_place_of_oldest(renewed) && bucket.holds(a_member(0).handle));
        assert!(bucket.insert_in_place_of_oldest(a_member(64)) && bucket.len() == 64);
        assert!(!bucket.holds(a_member(0).handle) && bucket.members().contains(&renewed));
        assert!(!bucket.replace(a_member(99)));
        bucket.retain(|member| *member == renewed);
        assert_eq!(bucket.members(), [renewed]);
    }
}
