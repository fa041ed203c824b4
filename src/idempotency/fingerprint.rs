//! What tells the payload of one request from that of another, and the hashes that are made of keys.

use std::{fmt, sync::Arc};

use http::{HeaderName, HeaderValue, Method, header};
use sha2::{Digest as _, Sha256};

use super::IdempotencyKey;
use crate::{RequestHead, storage::Identity};

/// Fingerprints of another version never match: it changes with what is hashed.
const VERSION: u8 = 1;

/// The SHA-256 of what the rules choose of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint(pub(super) [u8; 32]);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(..)")
    }
}

type Custom = dyn Fn(RequestHead<'_>, &[u8]) -> Vec<u8> + Send + Sync;

/// What of a request must be the same when its key is used again; otherwise the answer is 422.
///
/// By default these are the method, the path, the query, the media type (without its parameters) and
/// every byte of the body. Credentials are left out, so that a renewed token does not stop a retry:
/// who asks is a matter of the scope.
///
/// The bytes of the body are compared as this layer sees them, so place it inside a layer that
/// decompresses requests. A form of the type `multipart/form-data` gets a new boundary with every
/// attempt, and its bytes differ: use [`with_custom`](Self::with_custom) or
/// [`without_body`](Self::without_body) for it.
///
/// Changing the rules changes the fingerprints: a retry that began under other rules is taken for
/// another request, and refused.
///
/// # Security
///
/// The storage keeps the SHA-256 of these parts, so that nobody can make up two requests with one
/// fingerprint. Whoever reads the storage can test guesses at what was hashed.
///
/// # Examples
///
/// ```
/// use http::HeaderName;
/// use tower_keep::idempotency::FingerprintRules;
///
/// let rules = FingerprintRules::new()
///     .with_sorted_query()
///     .add_header(HeaderName::from_static("x-api-version"));
/// ```
#[derive(Clone)]
pub struct FingerprintRules {
    query: Query,
    content_type: bool,
    headers: Vec<HeaderName>,
    body: bool,
    custom: Option<Arc<Custom>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Query {
    Raw,
    Sorted,
    Ignored,
}

impl FingerprintRules {
    /// The default rules.
    pub fn new() -> Self {
        Self {
            query: Query::Raw,
            content_type: true,
            headers: Vec::new(),
            body: true,
            custom: None,
        }
    }

    /// Takes the pairs of the query by their names, for clients that send them in any order. Pairs of
    /// one name keep their order, and nothing is decoded.
    #[must_use]
    pub fn with_sorted_query(mut self) -> Self {
        self.query = Query::Sorted;
        self
    }

    /// Leaves out the query.
    #[must_use]
    pub fn without_query(mut self) -> Self {
        self.query = Query::Ignored;
        self
    }

    /// Leaves out the media type.
    #[must_use]
    pub fn without_content_type(mut self) -> Self {
        self.content_type = false;
        self
    }

    /// Leaves out the body: a retry with another one gets the answer to the first.
    #[must_use]
    pub fn without_body(mut self) -> Self {
        self.body = false;
        self
    }

    /// Adds all lines of a header field. A field that is absent differs from an empty one.
    #[must_use]
    pub fn add_header(mut self, name: HeaderName) -> Self {
        self.headers.push(name);
        self
    }

    /// Takes what this function returns instead of the media type, header fields and body, whatever
    /// else is said of them here. Method, path and query still count.
    ///
    /// For bodies that say the same in other bytes. What the function leaves out may differ between
    /// two requests that get one answer, so let it return all that the handler acts upon.
    ///
    /// # Examples
    ///
    /// A body whose time of sending does not count:
    ///
    /// ```
    /// use serde_json::Value;
    /// use tower_keep::idempotency::FingerprintRules;
    ///
    /// let rules = FingerprintRules::new().with_custom(|_, body| {
    ///     let Ok(mut order) = serde_json::from_slice::<Value>(body) else { return body.to_vec() };
    ///     if let Some(order) = order.as_object_mut() {
    ///         order.remove("sent_at");
    ///     }
    ///     order.to_string().into_bytes()
    /// });
    /// ```
    #[must_use]
    pub fn with_custom(
        mut self,
        custom: impl Fn(RequestHead<'_>, &[u8]) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        self.custom = Some(Arc::new(custom));
        self
    }

    /// Whether [`of`](Self::of) looks at the body.
    pub(super) fn reads_body(&self) -> bool {
        self.body || self.custom.is_some()
    }

    /// The fingerprint of a request. `path` and `query` are those that the client sent, which those
    /// of the head need not be.
    pub(super) fn of(
        &self,
        head: RequestHead<'_>,
        path: &str,
        query: Option<&str>,
        body: &[u8],
    ) -> Fingerprint {
        let mut parts = Parts(Sha256::new_with_prefix([VERSION]));
        parts.push(b'm', head.method().as_str().as_bytes());
        parts.push(b'p', path.as_bytes());
        match (self.query, query) {
            (Query::Raw, Some(query)) => parts.push(b'q', query.as_bytes()),
            (Query::Sorted, Some(query)) => parts.push_sorted(b'q', query),
            (Query::Ignored, _) | (_, None) => {}
        }
        if let Some(custom) = &self.custom {
            parts.push(b'c', &custom(head, body));
            return parts.finish();
        }
        if self.content_type {
            for line in head.headers().get_all(header::CONTENT_TYPE) {
                parts.push_lower(b't', essence(line));
            }
        }
        for name in &self.headers {
            parts.push(b'h', name.as_str().as_bytes());
            for line in head.headers().get_all(name) {
                parts.push(b'l', line.as_bytes());
            }
        }
        if self.body {
            parts.push(b'b', body);
        }
        parts.finish()
    }
}

impl Default for FingerprintRules {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for FingerprintRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FingerprintRules")
            .field("query", &self.query)
            .field("content_type", &self.content_type)
            .field("headers", &self.headers)
            .field("body", &self.body)
            .field("custom", &self.custom.is_some())
            .finish()
    }
}

/// What stands before the parameters (RFC 9110, section 8.3.1).
fn essence(content_type: &HeaderValue) -> &[u8] {
    let line = content_type.as_bytes();
    let end = line.iter().position(|&byte| byte == b';').unwrap_or(line.len());
    line[..end].trim_ascii()
}

/// Hashes parts, each after its kind and its length, so that no two lists of parts are one input. A
/// part that is absent leaves no trace, which an empty one does.
struct Parts(Sha256);

impl Parts {
    fn begin(&mut self, kind: u8, length: usize) {
        let mut prefix = [kind; 9];
        prefix[1..].copy_from_slice(&(length as u64).to_be_bytes());
        self.0.update(prefix);
    }

    fn push(&mut self, kind: u8, part: &[u8]) {
        self.begin(kind, part.len());
        self.0.update(part);
    }

    fn push_lower(&mut self, kind: u8, part: &[u8]) {
        self.begin(kind, part.len());
        let mut lower = [0; 64];
        for piece in part.chunks(lower.len()) {
            let lower = &mut lower[..piece.len()];
            lower.copy_from_slice(piece);
            lower.make_ascii_lowercase();
            self.0.update(lower);
        }
    }

    fn push_sorted(&mut self, kind: u8, query: &str) {
        fn name<'q>(pair: &&'q str) -> &'q str {
            pair.split_once('=').map_or(*pair, |(name, _)| name)
        }
        if query.split('&').is_sorted_by_key(|pair| name(&pair)) {
            return self.push(kind, query.as_bytes());
        }
        let mut pairs: Vec<_> = query.split('&').collect();
        pairs.sort_by_key(name);
        self.begin(kind, query.len());
        for (i, pair) in pairs.into_iter().enumerate() {
            if i > 0 {
                self.0.update(b"&");
            }
            self.0.update(pair);
        }
    }

    fn finish(self) -> Fingerprint {
        Fingerprint(self.0.finalize().into())
    }
}

/// Under what the record of a key is stored. With a path, the same key on another route or with
/// another method is another record; without, a key is used once for all routes.
pub(super) fn key_digest(
    name: &str,
    scope: &Identity,
    method: &Method,
    path: Option<&str>,
    key: &IdempotencyKey,
) -> [u8; 32] {
    let mut parts = Parts(Sha256::new_with_prefix(b"tower-keep idempotency key v1\0"));
    parts.push(b'n', name.as_bytes());
    parts.push(b's', scope.as_bytes());
    if let Some(path) = path {
        parts.push(b'm', method.as_str().as_bytes());
        parts.push(b'p', path.as_bytes());
    }
    parts.push(b'k', key.as_str().as_bytes());
    parts.finish().0
}

/// A key for something that the handler asks of another service, the same for every attempt at the
/// same request: a UUID of version 8 (RFC 9562, section 5.8), as some services take nothing else.
pub(super) fn child_key(key_digest: &[u8; 32], fingerprint: &Fingerprint, name: &str) -> String {
    let mut hash = Sha256::new_with_prefix(b"tower-keep idempotency child key v1\0");
    hash.update(key_digest);
    hash.update(fingerprint.0);
    hash.update(name);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80; // the version
    bytes[8] = bytes[8] & 0x3f | 0x80; // the variant
    let uuid = u128::from_be_bytes(bytes);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        uuid >> 96,
        uuid >> 80 & 0xffff,
        uuid >> 64 & 0xffff,
        uuid >> 48 & 0xffff,
        uuid & 0xffff_ffff_ffff,
    )
}
