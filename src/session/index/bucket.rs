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

    pub(super) fn remove_oldest(&mut self) {
        if !self.members.is_empty() {
            self.members.remove(0);
        }
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
