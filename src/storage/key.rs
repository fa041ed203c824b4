//! What entries and counters are called: namespaces, identities, keys and tags.

use std::{fmt, net::IpAddr, sync::Arc};

use sha2::{Digest, Sha256};
use siphasher::sip128::{Hasher128, SipHasher24};

use super::error::{Error, ErrorKind, Result};

/// Longer parts of an identity are replaced by their SHA-256, so that no client decides how much
/// memory a key takes.
const LONGEST_PART: usize = 256;
const INLINE: usize = 38;

/// A checked name: of a namespace (the part of a storage that belongs to one layer), of a policy,
/// of what is kept under a key.
///
/// Two layers with different namespaces share nothing; tags and
/// [`invalidate`](crate::Storage::invalidate) reach one namespace only.
///
/// # Examples
///
/// ```
/// use tower_keep::storage::Name;
///
/// assert_eq!(Name::new("ratelimit").as_str(), "ratelimit");
/// assert!(Name::try_new("no spaces").is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

impl Name {
    /// A name of 1 to 64 characters from `a-z`, `A-Z`, `0-9`, `-`, `_`, `.`.
    ///
    /// # Panics
    ///
    /// If the name is not of that form. Use [`try_new`](Self::try_new) for names from outside.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        match Self::try_new(name) {
            Ok(name) => name,
            Err(error) => panic!("{error}"),
        }
    }

    /// A name, if it is valid.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Configuration`] for a name that is not of 1 to 64 characters from `a-z`,
    /// `A-Z`, `0-9`, `-`, `_`, `.`.
    pub fn try_new(name: &str) -> Result<Self> {
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(valid) {
            return Err(Error::new(
                ErrorKind::Configuration,
                format!(
                    "{name:?} is no name: use 1 to 64 characters from a-z, A-Z, 0-9, '-', '_', '.'"
                ),
            ));
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who or what an entry belongs to: an address, an API key, a user, a session id, any bytes.
///
/// Identities of different kinds never collide: the address `10.0.0.1`, the text `"10.0.0.1"` and
/// the two parts `"10.0"` and `".0.1"` are three identities.
///
/// # Security
///
/// An identity may be a secret, so `Debug` does not show it, and backends that leave the process
/// store only a [keyed hash](HashKey) of it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    bytes: Bytes,
    group: u64,
}

#[derive(Clone)]
enum Bytes {
    Inline { len: u8, bytes: [u8; INLINE] },
    Shared(Arc<[u8]>),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Self::Shared(bytes) => bytes,
        }
    }

    /// A single part of the kind `a`, as [`Identity::push_part`] writes it.
    fn address<const N: usize>(octets: [u8; N]) -> Self {
        let mut bytes = [0; INLINE];
        bytes[..3].copy_from_slice(&[b'a', 0, N as u8]);
        bytes[3..3 + N].copy_from_slice(&octets);
        Self::Inline { len: 3 + N as u8, bytes }
    }

    fn push(mut self, head: &[u8], part: &[u8]) -> Self {
        let old = self.as_slice().len();
        let len = old + head.len() + part.len();
        if let Self::Inline { len: inline, bytes } = &mut self
            && let Some(room) = bytes.get_mut(old..len)
        {
            fill(room, head, part);
            *inline = len as u8; // at most INLINE
            return self;
        }
        // By way of the stack, for what is shared is made in one allocation from a slice.
        let mut room = [0; INLINE + LONGEST_PART];
        match room.get_mut(..len) {
            Some(whole) => {
                let (start, rest) = whole.split_at_mut(old);
                start.copy_from_slice(self.as_slice());
                fill(rest, head, part);
                Self::Shared((&*whole).into())
            }
            None => Self::Shared([self.as_slice(), head, part].concat().into()),
        }
    }
}

fn fill(room: &mut [u8], head: &[u8], part: &[u8]) {
    let (start, end) = room.split_at_mut(head.len());
    start.copy_from_slice(head);
    end.copy_from_slice(part);
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Bytes {}

impl std::hash::Hash for Bytes {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_slice().hash(state);
    }
}

impl Identity {
    const EMPTY: Bytes = Bytes::Inline { len: 0, bytes: [0; INLINE] };

    /// The identity that everything shares, for one limit on the whole service.
    pub fn global() -> Self {
        Self { bytes: Self::EMPTY, group: 0 }
    }

    /// An identity from any bytes, also empty ones.
    pub fn new(bytes: impl AsRef<[u8]>) -> Self {
        Self::global().and(bytes)
    }

    /// This identity narrowed by one more part, such as the route or the tenant.
    #[must_use]
    pub fn and(self, part: impl AsRef<[u8]>) -> Self {
        self.push_part(b'b', part.as_ref())
    }

    fn push_part(mut self, kind: u8, part: &[u8]) -> Self {
        // kind, length, bytes: no two lists of parts have the same encoding.
        if part.len() > LONGEST_PART {
            let digest = Sha256::digest(part);
            self.bytes = self.bytes.push(&[kind.to_ascii_uppercase(), 32], &digest);
        } else {
            let [high, low] = (part.len() as u16).to_be_bytes();
            self.bytes = self.bytes.push(&[kind, high, low], part);
        }
        self
    }

    /// Coarser than the identity: the network prefix of an address (/16 for IPv4, /32 for IPv6),
    /// otherwise 0. A bounded backend that has no room for one more identity lets those of one
    /// group share.
    pub fn group(&self) -> u64 {
        self.group
    }

    /// An unambiguous encoding of the parts.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }
}

impl From<IpAddr> for Identity {
    /// The address as it is; masking is the key extractor's business.
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => {
                let group = (4 << 32) | u64::from(v4.to_bits() >> 16);
                Self { bytes: Bytes::address(v4.octets()), group }
            }
            IpAddr::V6(v6) => {
                let group = (6 << 32) | (v6.to_bits() >> 96) as u64;
                Self { bytes: Bytes::address(v6.octets()), group }
            }
        }
    }
}

impl From<&str> for Identity {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Identity {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(..)")
    }
}

/// The name of one entry or one counter.
///
/// A key is a namespace, a detail that the layer chooses (the quota, the kind of record; never
/// anything a client sent) and an [`Identity`]. Keys that differ only in their detail belong to one
/// identity: a backend that spreads keys over nodes keeps their counters together, so that several
/// quotas of one client are decided as one.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    namespace: Name,
    detail: Name,
    identity: Identity,
}

impl Key {
    /// A key. `detail` is chosen by the layer.
    pub fn new(namespace: &Name, detail: &Name, identity: Identity) -> Self {
        Self { namespace: namespace.clone(), detail: detail.clone(), identity }
    }

    /// The layer's part of the storage.
    pub fn namespace(&self) -> &Name {
        &self.namespace
    }

    /// What is kept about the identity.
    pub fn detail(&self) -> &Name {
        &self.detail
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The keyed 128-bit hash of the whole key.
    pub fn digest(&self, hash_key: &HashKey) -> [u8; 16] {
        hash_key.digest_key(&self.namespace, &self.detail, &self.identity)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?}/{:?}/..)", self.namespace, self.detail)
    }
}

/// A label by which entries are [invalidated](crate::Storage::invalidate) together, such as
/// `product:42`. Any bytes; compared as bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<[u8]>);

impl Tag {
    /// A tag from any bytes.
    pub fn new(bytes: impl AsRef<[u8]>) -> Self {
        Self(bytes.as_ref().into())
    }

    /// The bytes of the tag.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The keyed 128-bit hash of the tag within its namespace.
    pub fn digest(&self, namespace: &Name, hash_key: &HashKey) -> [u8; 16] {
        hash_key.digest(&[b"tag", namespace.as_str().as_bytes(), &self.0])
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tag(..)")
    }
}

/// The secret with which a backend turns identities and tags into 128-bit hashes (SipHash-2-4-128).
///
/// Without the secret nobody can test whether a given address or e-mail lies behind a hash, nor
/// make up identities that collide.
#[derive(Clone, PartialEq, Eq)]
pub struct HashKey([u8; 16]);

impl HashKey {
    /// A hash key derived from a secret of any length.
    pub fn derive(secret: &[u8]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"tower-keep hash key v1\0");
        hasher.update(secret);
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize()[..16]);
        Self(key)
    }

    /// A hash key drawn from the operating system's randomness.
    ///
    /// # Panics
    ///
    /// If the operating system has no randomness to give.
    pub fn random() -> Self {
        let mut key = [0; 16];
        getrandom::fill(&mut key).expect("the operating system gives random bytes");
        Self(key)
    }

    /// The hash of a [`Key`] of these parts.
    pub(crate) fn digest_key(
        &self,
        namespace: &Name,
        detail: &Name,
        identity: &Identity,
    ) -> [u8; 16] {
        self.digest(&[namespace.0.as_bytes(), detail.0.as_bytes(), identity.as_bytes()])
    }

    /// The keyed hash of a list of parts; lists that differ in any way have different hashes.
    pub fn digest(&self, parts: &[&[u8]]) -> [u8; 16] {
        use std::hash::Hasher;
        let mut hasher = SipHasher24::new_with_key(&self.0);
        let length = |part: &[u8]| (part.len() as u64).to_le_bytes();
        let whole: usize = parts.iter().map(|part| 8 + part.len()).sum();
        // The hasher is slow on small pieces, so what is short is hashed in one.
        let mut buffer = [0; 160];
        if let Some(whole) = buffer.get_mut(..whole) {
            let mut rest = &mut *whole;
            for part in parts {
                let (space, after) = rest.split_at_mut(8 + part.len());
                space[..8].copy_from_slice(&length(part));
                space[8..].copy_from_slice(part);
                rest = after;
            }
            return hasher.hash(whole).as_bytes();
        }
        for part in parts {
            hasher.write(&length(part));
            hasher.write(part);
        }
        hasher.finish128().as_bytes()
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_of_different_parts_and_kinds_differ() {
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let all = [
            Identity::global(),
            Identity::new(""),
            Identity::new("10.0.0.1"),
            Identity::new(address.to_string()).and(""),
            Identity::new("10.0").and(".0.1"),
            Identity::new([10, 0, 0, 1]),
            Identity::from(address),
            Identity::new(vec![b'x'; 1 << 20]),
            Identity::new(vec![b'x'; (1 << 20) + 1]),
            Identity::new(Sha256::digest(vec![b'x'; 1 << 20])),
        ];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert_eq!(i == j, a == b, "{i} and {j}");
            }
            assert!(a.as_bytes().len() <= 3 * LONGEST_PART);
        }
    }

    #[test]
    fn an_address_is_a_part_of_its_own_kind() {
        for address in ["203.0.113.7", "2001:db8::1"].map(|text| text.parse::<IpAddr>().unwrap()) {
            let octets = match address {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            let part = Identity::global().push_part(b'a', &octets);
            assert_eq!(Identity::from(address).as_bytes(), part.as_bytes());
        }
    }

    #[test]
    fn debug_shows_no_identity_and_no_secret() {
        let key = Key::new(&Name::new("ratelimit"), &Name::new("api"), Identity::new("secret-key"));
        let shown = format!("{key:?} {:?} {:?}", Tag::new("user:7"), HashKey::derive(b"secret"));
        assert_eq!(shown, "Key(ratelimit/api/..) Tag(..) HashKey(..)");
    }

    #[test]
    fn a_hash_depends_on_the_secret_and_on_where_parts_end() {
        let (a, b) = (HashKey::derive(b"a"), HashKey::derive(b"b"));
        assert_ne!(a.digest(&[b"x"]), b.digest(&[b"x"]));
        assert_ne!(a.digest(&[b"xy", b""]), a.digest(&[b"x", b"y"]));
        assert_eq!(a.digest(&[b"xy"]), HashKey::derive(b"a").digest(&[b"xy"]));
    }

    #[test]
    fn a_hash_is_that_of_the_lengths_and_the_parts_in_a_row() {
        use std::hash::Hasher;
        let long = [vec![1; 30], vec![2; 150], vec![3; 7], vec![4; 1_000], vec![], vec![5; 90]];
        let parts: Vec<&[u8]> = long.iter().map(|part| &part[..]).collect();
        let mut hasher = SipHasher24::new_with_key(&HashKey::derive(b"a").0);
        for part in &parts {
            hasher.write(&(part.len() as u64).to_le_bytes());
            hasher.write(part);
        }
        assert_eq!(HashKey::derive(b"a").digest(&parts), hasher.finish128().as_bytes());
    }

    #[test]
    fn addresses_of_one_network_share_a_group() {
        let group = |s: &str| Identity::from(s.parse::<IpAddr>().unwrap()).group();
        assert_eq!(group("203.0.113.7"), group("203.0.200.9"));
        assert_ne!(group("203.0.113.7"), group("203.1.113.7"));
        assert_eq!(group("2001:db8::1"), group("2001:db8:ffff::1"));
        assert_ne!(group("::cb00"), group("203.0.113.7"));
    }
}
