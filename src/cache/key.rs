//! What an answer is stored under.
//!
//! Keys are made of what was sent, byte for byte: a path is neither decoded nor collapsed nor folded,
//! for the router does none of it either, and two requests that a handler could tell apart must not
//! share an answer.

mod query;
mod strip;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use http::{HeaderName, HeaderValue, Uri, header};

pub use self::query::Query;
pub(crate) use self::strip::{strip_overrides, strip_unkeyed};
use crate::{RequestHead, storage::Identity};

/// What the first part of every key begins with; responses and values never meet.
const RESPONSE: u8 = b'r';
const VALUE: u8 = b'v';

/// What an entry of the cache is stored under, and compared with when it is read.
///
/// The whole of what tells requests apart, each part after its length, so that no two lists of parts
/// are one key. A request's own part and a variant's are replaced by their SHA-256 where they are
/// long, so that clients do not decide how large keys are.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct CacheKey(Identity);

impl CacheKey {
    /// The key of a value that no request asked for.
    pub(crate) fn for_value(key: &Identity) -> Self {
        Self(Identity::new([VALUE]).and(key.as_bytes()))
    }

    /// What is compared.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The storage's name for it.
    pub(crate) fn identity(&self) -> &Identity {
        &self.0
    }

    /// The key of the variant that a request with these values is answered with. `values` writes the
    /// normalised value of a field; it must tell an absent field from an empty one.
    pub(crate) fn variant(
        &self,
        names: &[HeaderName],
        mut values: impl FnMut(&HeaderName, &mut Vec<u8>),
    ) -> Self {
        let mut part = Part::new();
        let mut value = Vec::new();
        for name in names {
            part.push_sized(name.as_str().as_bytes());
            value.clear();
            values(name, &mut value);
            part.push_sized(&value);
        }
        Self(self.0.clone().and(part.as_slice()))
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CacheKey(..)")
    }
}

/// What the parts of most keys fit into.
const ON_STACK: usize = 256;

/// Something of a request that tells it apart.
pub(crate) type KeyPart = Arc<dyn Fn(RequestHead<'_>) -> Option<Identity> + Send + Sync>;

/// What of a request is in the key of its answer, besides its target.
#[derive(Clone, Default)]
pub(crate) struct KeyRule {
    pub(crate) query: Query,
    pub(crate) headers: Vec<HeaderName>,
    pub(crate) parts: Vec<KeyPart>,
    pub(crate) principal: Option<KeyPart>,
}

impl fmt::Debug for KeyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRule")
            .field("query", &self.query)
            .field("headers", &self.headers)
            .field("parts", &self.parts.len())
            .field("principal", &self.principal.is_some())
            .finish()
    }
}

impl KeyRule {
    /// The key for the answer to a GET or HEAD. None, and the request passes the cache by, if a
    /// principal is demanded and there is none, or if nobody can say which host it is for.
    pub(crate) fn key(&self, head: RequestHead<'_>) -> Option<CacheKey> {
        let mut key = Part::new();
        key.push(&[RESPONSE, self.query.kind()]);
        let target = head.target();
        key.push_origin(head, target)?;
        key.push_target(target, &self.query);
        key.push_rewritten(target, head.uri(), &self.query);
        key.push_length(self.headers.len());
        for name in &self.headers {
            let lines = head.headers().get_all(name);
            key.push_sized(name.as_str().as_bytes());
            key.push_length(lines.iter().count());
            for line in lines {
                key.push_sized(line.as_bytes());
            }
        }
        key.push_length(self.parts.len());
        for part in &self.parts {
            key.push_optional(part(head).as_ref().map(Identity::as_bytes));
        }
        match &self.principal {
            Some(principal) => key.push_optional(Some(principal(head)?.as_bytes())),
            None => key.push_optional(None),
        }
        Some(CacheKey(Identity::new(key.as_slice())))
    }

    /// The path and query by which all variants of a resource are purged: what
    /// [`key`](Self::key) has of them.
    pub(crate) fn resource(&self, target: &Uri) -> Vec<u8> {
        let mut resource = target.path().as_bytes().to_vec();
        if let Some(query) = self.query.apply(target.query()) {
            resource.push(b'?');
            resource.extend_from_slice(query.as_bytes());
        }
        resource
    }
}

/// The host that a request is for, in lower case. None if it names none, or several.
pub(crate) fn host(head: RequestHead<'_>) -> Option<Vec<u8>> {
    let host = match head.target().authority() {
        Some(authority) => split_user(authority.as_str()).1.as_bytes(),
        None => host_line(head).ok()??,
    };
    Some(host.to_ascii_lowercase())
}

fn split_user(authority: &str) -> (&str, &str) {
    authority.split_at(authority.rfind('@').map_or(0, |at| at + 1))
}

/// What all lines of `Host` say, or an error if they differ.
fn host_line(head: RequestHead<'_>) -> Result<Option<&[u8]>, Ambiguous> {
    let mut lines = head.headers().get_all(header::HOST).iter().map(HeaderValue::as_bytes);
    let Some(first) = lines.next() else { return Ok(None) };
    match lines.all(|line| line.eq_ignore_ascii_case(first)) {
        true => Ok(Some(first)),
        false => Err(Ambiguous),
    }
}

struct Ambiguous;

/// A part of a key while it is made: on the stack as long as it is short.
struct Part {
    short: [u8; ON_STACK],
    len: usize,
    long: Vec<u8>,
}

impl Part {
    fn new() -> Self {
        Self { short: [0; ON_STACK], len: 0, long: Vec::new() }
    }

    fn as_slice(&self) -> &[u8] {
        if self.long.is_empty() { &self.short[..self.len] } else { &self.long }
    }

    /// Room for that many bytes more.
    #[inline]
    fn grow(&mut self, more: usize) -> &mut [u8] {
        if self.long.is_empty() && self.len + more <= ON_STACK {
            self.len += more;
            return &mut self.short[self.len - more..self.len];
        }
        self.grow_beyond(more)
    }

    #[cold]
    fn grow_beyond(&mut self, more: usize) -> &mut [u8] {
        if self.long.is_empty() {
            self.long.reserve(2 * (self.len + more));
            self.long.extend_from_slice(&self.short[..self.len]);
        }
        let end = self.long.len();
        self.long.resize(end + more, 0);
        &mut self.long[end..]
    }

    #[inline]
    fn push(&mut self, bytes: &[u8]) {
        self.grow(bytes.len()).copy_from_slice(bytes);
    }

    /// Seven bits a byte, the lowest first: lengths below 128 are one byte.
    #[inline]
    fn push_length(&mut self, mut length: usize) {
        while length >= 0x80 {
            self.push(&[length as u8 | 0x80]);
            length >>= 7;
        }
        self.push(&[length as u8]);
    }

    fn push_sized(&mut self, bytes: &[u8]) {
        self.push_length(bytes.len());
        self.push(bytes);
    }

    /// What is absent is not what is empty.
    fn push_optional(&mut self, bytes: Option<&[u8]>) {
        self.push(&[bytes.is_some().into()]);
        if let Some(bytes) = bytes {
            self.push_sized(bytes);
        }
    }

    fn push_lower(&mut self, bytes: &[u8]) {
        self.push_length(bytes.len());
        let room = self.grow(bytes.len());
        room.copy_from_slice(bytes);
        room.make_ascii_lowercase();
    }

    /// Scheme and authority. A `Host` that says something else than the target is part of the key
    /// too, for handlers may read either. None if nobody can say which host is meant.
    fn push_origin(&mut self, head: RequestHead<'_>, target: &Uri) -> Option<()> {
        match target.scheme_str() {
            None => self.push(&[0]),
            Some("http") => self.push(&[1]),
            Some("https") => self.push(&[2]),
            Some(other) => {
                self.push(&[3]);
                self.push_lower(other.as_bytes());
            }
        }
        let line = host_line(head).ok()?;
        let authority = target.authority().map(|authority| split_user(authority.as_str()));
        let other = match authority {
            Some((user, host)) => {
                self.push(&[1]);
                self.push_sized(user.as_bytes());
                self.push_lower(host.as_bytes());
                line.filter(|line| !line.eq_ignore_ascii_case(host.as_bytes()))
            }
            None => {
                self.push(&[0]);
                line
            }
        };
        self.push(&[other.is_some().into()]);
        if let Some(other) = other {
            self.push_lower(other);
        }
        Some(())
    }

    fn push_target(&mut self, target: &Uri, query: &Query) {
        self.push_sized(target.path().as_bytes());
        let query = query.apply(target.query());
        self.push_optional(query.as_deref().map(str::as_bytes));
    }

    /// The target that the handler sees, if something has rewritten it. Of one that was only
    /// shortened, as by `Router::nest`, the length says all.
    fn push_rewritten(&mut self, sent: &Uri, seen: &Uri, query: &Query) {
        if std::ptr::eq(sent, seen) || sent == seen {
            return self.push(&[0]);
        }
        let same = sent.scheme() == seen.scheme()
            && sent.authority() == seen.authority()
            && sent.query() == seen.query();
        if same && sent.path().ends_with(seen.path()) {
            self.push(&[1]);
            return self.push_length(seen.path().len());
        }
        self.push(&[2]);
        self.push_optional(seen.scheme_str().map(str::as_bytes));
        self.push_optional(seen.authority().map(|authority| authority.as_str().as_bytes()));
        self.push_target(seen, query);
    }
}
