//! What tells the payload of one request from that of another, and the hashes that are made of keys.

use std::{fmt, sync::Arc};

use http::{HeaderName, HeaderValue, Method, header};
use sha2::{Digest as _, Sha256};

use super::IdempotencyKey;
use crate::{RequestHead, storage::Identity};

/// The first byte of what is hashed. It changes with what follows, so that hashes of another kind or
/// version never match.
const FINGERPRINT: u8 = 1;
const KEY: u8 = 2;

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

    /// The fingerprint of a request. `path` and `query` are those that the client sent, which those
    /// of the head need not be. Without a path the method is left out, too: both belong to the
    /// [digest](key_digest) then, and another path is another key anyway.
    pub(super) fn of(
        &self,
        head: RequestHead<'_>,
        path: Option<&str>,
        query: Option<&str>,
        body: &[u8],
    ) -> Fingerprint {
        let mut parts = Parts(Sha256::new_with_prefix([FINGERPRINT]));
        if let Some(path) = path {
            parts.push(b'm', head.method().as_str().as_bytes());
            parts.push(b'p', path.as_bytes());
        }
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
///
/// What stands before a part is short, for every 64 bytes cost as much as all the rest of a lookup.
struct Parts(Sha256);

impl Parts {
    /// The length has seven bits a byte, the lowest first.
    fn begin(&mut self, kind: u8, mut length: usize) {
        let (mut prefix, mut end) = ([kind; 11], 1);
        while length >= 0x80 {
            prefix[end] = length as u8 | 0x80;
            (length, end) = (length >> 7, end + 1);
        }
        prefix[end] = length as u8;
        self.0.update(&prefix[..=end]);
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
    let mut parts = Parts(Sha256::new_with_prefix([KEY]));
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

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::{collection::vec, option, prelude::*};

    use super::*;
    use crate::idempotency::key::KeyRules;

    /// A request as far as it can be hashed.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Sent {
        method: &'static str,
        path: String,
        query: Option<String>,
        headers: Vec<(&'static str, String)>,
        body: Vec<u8>,
    }

    impl Sent {
        fn new() -> Self {
            Self {
                method: "POST",
                path: "/orders".into(),
                query: Some("b=2&a=1".into()),
                headers: vec![("content-type", "application/json".into())],
                body: br#"{"a":1}"#.to_vec(),
            }
        }

        fn with(change: impl FnOnce(&mut Self)) -> Self {
            let mut sent = Self::new();
            change(&mut sent);
            sent
        }

        fn fingerprint(&self, rules: &FingerprintRules) -> Fingerprint {
            // What the head says of the target does not count.
            let mut request = Request::builder().method(self.method).uri("/nested?c=3");
            for (name, value) in &self.headers {
                request = request.header(*name, value);
            }
            let request = request.body(()).unwrap();
            rules.of(
                RequestHead::new(&request),
                Some(&self.path),
                self.query.as_deref(),
                &self.body,
            )
        }
    }

    fn name(name: &'static str) -> HeaderName {
        HeaderName::from_static(name)
    }

    fn content_type(value: &str) -> Sent {
        Sent::with(|sent| sent.headers = vec![("content-type", value.into())])
    }

    fn query(query: &str) -> Sent {
        Sent::with(|sent| sent.query = Some(query.into()))
    }

    fn key(text: &str) -> IdempotencyKey {
        KeyRules::default().parse(text.as_bytes()).unwrap()
    }

    fn hex(bytes: [u8; 32]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[track_caller]
    fn assert_all_differ<T: PartialEq>(all: &[T]) {
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert_eq!(i == j, a == b, "{i} and {j}");
            }
        }
    }

    /// Made by other means. A change makes every retry of the moment of deployment a 422.
    #[test]
    fn fingerprints_do_not_change() {
        let new = FingerprintRules::new;
        let least = new().without_query().without_content_type().without_body();
        let full = new().with_sorted_query().add_header(name("x-a")).add_header(name("x-b"));
        for (rules, expected) in [
            (new(), "af59d10477c1acc5fe6404462048b6443671eb9554e70b274a03810212337caa"),
            (least, "61e0ca8729a3b292ff76737a275250a882e354c95fb2d9583311b1cb4caf0c4a"),
            (full, "97417a1e92ace8da518aa7a9b60445f9309302388b79223f875c9532723670ac"),
            (
                new().with_custom(|_, _| b"same".to_vec()),
                "36f3bf4de5142eb4f1de287c5991f2694ffa76b8901692f65cb12e373ad21ea4",
            ),
        ] {
            let sent = Sent::with(|sent| {
                sent.headers.extend([("x-a", "1".into()), ("x-a", "2".into())]);
            });
            assert_eq!(hex(sent.fingerprint(&rules).0), expected, "{rules:?}");
        }
    }

    #[test]
    fn every_part_counts() {
        let all = [
            Sent::new(),
            Sent::with(|sent| sent.method = "PATCH"),
            Sent::with(|sent| sent.path = "/orders/".into()),
            Sent::with(|sent| sent.path = "/Orders".into()),
            Sent::with(|sent| sent.query = None),
            query(""),
            query("a=1&b=2"),
            query("b=2&a=%31"),
            Sent::with(|sent| sent.headers.clear()),
            content_type(""),
            content_type("text/plain"),
            Sent::with(|sent| sent.headers.push(("content-type", "application/json".into()))),
            Sent::with(|sent| sent.body.clear()),
            Sent::with(|sent| sent.body.push(b'\n')),
        ];
        let rules = FingerprintRules::default();
        assert_all_differ(&all.map(|sent| sent.fingerprint(&rules)));
    }

    #[test]
    fn a_part_never_stands_for_another_that_is_absent() {
        let rules = FingerprintRules::new().add_header(name("x-a"));
        let of = |query: Option<&str>, headers: &[&'static str], body: &[u8]| {
            Sent::with(|sent| {
                sent.query = query.map(str::to_owned);
                sent.headers = headers.iter().map(|&name| (name, "a".to_owned())).collect();
                sent.body = body.to_vec();
            })
            .fingerprint(&rules)
        };
        assert_all_differ(&[
            of(None, &[], b"a"),
            of(Some("a"), &[], b"a"),
            of(None, &["content-type"], b"a"),
            of(None, &["x-a"], b"a"),
            of(Some("a"), &["content-type"], b"a"),
            of(Some("a"), &["x-a"], b"a"),
            of(None, &["content-type", "content-type"], b"a"),
            of(None, &["content-type", "x-a"], b"a"),
            of(None, &["x-a", "x-a"], b"a"),
        ]);
    }

    #[test]
    fn fields_that_differ_between_attempts_do_not_count() {
        let retry = Sent::with(|sent| {
            for name in ["authorization", "traceparent", "user-agent", "date", "host", "cookie"] {
                sent.headers.push((name, "another".into()));
            }
        });
        let rules = FingerprintRules::new();
        assert_eq!(retry.fingerprint(&rules), Sent::new().fingerprint(&rules));
    }

    #[test]
    fn of_the_media_type_neither_case_nor_parameters_count() {
        let long = format!("application/{}", "x".repeat(100));
        let rules = FingerprintRules::new();
        for (a, b) in [
            ("application/json", "Application/JSON"),
            ("application/json", "application/json;charset=utf-8"),
            ("application/json", " application/json ; charset=UTF-8"),
            (&long, &long.to_ascii_uppercase()),
        ] {
            let [a, b] = [a, b].map(|value| content_type(value).fingerprint(&rules));
            assert_eq!(a, b);
        }
        let other = format!("{}y", &long[..long.len() - 1]);
        assert_ne!(
            content_type(&long).fingerprint(&rules),
            content_type(&other).fingerprint(&rules)
        );
    }

    #[test]
    fn a_sorted_query_keeps_the_order_of_pairs_of_one_name() {
        let rules = FingerprintRules::new().with_sorted_query();
        let of = |text: &str| query(text).fingerprint(&rules);
        for (a, b) in [
            ("b=2&a=1", "a=1&b=2"),
            ("b=1&a=2&b=0", "a=2&b=1&b=0"),
            ("ab=1&a=2", "a=2&ab=1"),
            ("b&a=", "a=&b"),
            ("b&", "&b"),
        ] {
            assert!(of(a) == of(b), "{a}");
        }
        assert_all_differ(
            &["", "a=1&b=2", "a=2&b=1", "b=1&b=0", "b=0&b=1", "a=1&a=1", "a=1", "&a=1", "%61=1"]
                .map(of),
        );
        assert!(Sent::with(|sent| sent.query = None).fingerprint(&rules) != of(""));
    }

    #[test]
    fn what_is_left_out_does_not_count_and_the_rest_does() {
        let new = FingerprintRules::new;
        let changed = [
            query("c"),
            content_type("text/plain"),
            Sent::with(|sent| sent.body.clear()),
            Sent::with(|sent| sent.path = "/".into()),
            Sent::with(|sent| sent.method = "PUT"),
        ];
        for (without, rules) in
            [new().without_query(), new().without_content_type(), new().without_body()]
                .iter()
                .enumerate()
        {
            for (i, sent) in changed.iter().enumerate() {
                let same = sent.fingerprint(rules) == Sent::new().fingerprint(rules);
                assert_eq!(same, i == without, "{i} {rules:?}");
            }
        }
    }

    #[test]
    fn all_lines_of_an_added_header_count_and_an_absent_one_is_not_empty() {
        let rules = FingerprintRules::new().add_header(name("x-a")).add_header(name("x-b"));
        let with = |lines: &[(&'static str, &str)]| {
            let lines = lines.iter().map(|&(name, value)| (name, value.to_owned()));
            Sent::with(|sent| sent.headers.extend(lines)).fingerprint(&rules)
        };
        assert_all_differ(&[
            with(&[]),
            with(&[("x-a", "")]),
            with(&[("x-b", "")]),
            with(&[("x-a", "1")]),
            with(&[("x-b", "1")]),
            with(&[("x-a", "1"), ("x-a", "")]),
            with(&[("x-a", "1"), ("x-b", "")]),
            with(&[("x-a", "1"), ("x-a", "2")]),
            with(&[("x-a", "2"), ("x-a", "1")]),
            with(&[("x-a", "12")]),
            with(&[("x-a", "1"), ("x-b", "2")]),
        ]);
        assert_eq!(with(&[("x-c", "1")]), with(&[]));
    }

    #[test]
    fn a_custom_fingerprint_replaces_all_but_the_target() {
        let rules = FingerprintRules::new().add_header(name("x-a")).with_custom(|head, body| {
            let kind = head.headers().get("x-kind").map_or(&b""[..], |value| value.as_bytes());
            [kind, &body[..1]].concat()
        });
        let plain = Sent::new().fingerprint(&rules);
        for same in [
            content_type("text/plain"),
            Sent::with(|sent| sent.headers.push(("x-a", "1".into()))),
            Sent::with(|sent| sent.body.truncate(1)),
        ] {
            assert_eq!(same.fingerprint(&rules), plain);
        }
        for other in [
            query("c"),
            Sent::with(|sent| sent.path = "/".into()),
            Sent::with(|sent| sent.method = "PUT"),
            Sent::with(|sent| sent.headers.push(("x-kind", "1".into()))),
            Sent::with(|sent| sent.body = b"[1]".to_vec()),
        ] {
            assert_ne!(other.fingerprint(&rules), plain);
        }
    }

    /// Made by other means. A change makes every key of before unknown.
    #[test]
    fn digests_of_keys_do_not_change() {
        let key = key("8e03978e-40d5-43e8-bc93-6894a57f9324");
        let digest =
            |path| hex(key_digest("payments", &Identity::new("user 7"), &Method::POST, path, &key));
        assert_eq!(
            digest(Some("/orders")),
            "b5fe0f1922066fc4d323198d487e286b5eca1c005147851a5050409d759011d4"
        );
        assert_eq!(
            digest(None),
            "3314a0dd59f78adedc3b1ec6b652b154ece87ae5857b5f87094e2263ab934350"
        );
    }

    #[test]
    fn a_key_is_another_one_under_another_name_scope_method_and_path() {
        let digest = |name, scope: Identity, method, path, text| {
            key_digest(name, &scope, &method, path, &key(text))
        };
        let user = || Identity::new("user");
        assert_all_differ(&[
            digest("a", user(), Method::POST, Some("/"), "k"),
            digest("b", user(), Method::POST, Some("/"), "k"),
            digest("a", Identity::new("other"), Method::POST, Some("/"), "k"),
            digest("a", Identity::global(), Method::POST, Some("/"), "k"),
            digest("a", user(), Method::PUT, Some("/"), "k"),
            digest("a", user(), Method::POST, Some("/k"), "k"),
            digest("a", user(), Method::POST, Some(""), "k"),
            digest("a", user(), Method::POST, Some("/"), "l"),
            digest("a", user(), Method::POST, Some("/"), "K"),
            digest("a", user(), Method::POST, None, "k"),
        ]);
        assert_eq!(
            digest("a", user(), Method::POST, None, "k"),
            digest("a", user(), Method::PUT, None, "k"),
            "one key for all routes"
        );
    }

    #[test]
    fn a_child_key_is_a_uuid_that_depends_on_all_it_is_made_of() {
        let (digest, fingerprint) = ([1; 32], Fingerprint([2; 32]));
        assert_eq!(
            child_key(&digest, &fingerprint, "charge"),
            "3030f1c8-44fe-8081-979f-25d6fcf6486d"
        );
        assert_all_differ(&[
            child_key(&digest, &fingerprint, "charge"),
            child_key(&digest, &fingerprint, "email"),
            child_key(&digest, &fingerprint, ""),
            child_key(&[3; 32], &fingerprint, "charge"),
            child_key(&digest, &Fingerprint([3; 32]), "charge"),
        ]);
    }

    #[test]
    fn debug_shows_the_rules_and_no_hash() {
        let rules = FingerprintRules::new().with_custom(|_, _| Vec::new());
        let text = format!("{rules:?} {:?}", Fingerprint([7; 32]));
        assert!(text.contains("custom: true") && text.ends_with("Fingerprint(..)"), "{text}");
        assert!(!text.contains('7'), "{text}");
    }

    /// Of few characters, so that two of them are often alike where they are joined.
    fn sent() -> impl Strategy<Value = Sent> {
        let line = ("(content-type|x-a|x-b)", "[ab]{0,2}").prop_map(|(name, value)| {
            let name = match &*name {
                "x-a" => "x-a",
                "x-b" => "x-b",
                _ => "content-type",
            };
            (name, value)
        });
        let method = prop_oneof![Just("A"), Just("AB")];
        let target = ("[ab]{0,2}", option::of("[ab]{0,2}"));
        (method, target, vec(line, 0..3), vec(b'a'..=b'b', 0..3)).prop_map(
            |(method, (path, query), mut headers, body)| {
                headers.sort_by_key(|(name, _)| *name); // the order of names says nothing
                Sent { method, path, query, headers, body }
            },
        )
    }

    proptest! {
        #[test]
        fn no_two_requests_have_one_fingerprint(a in sent(), b in sent()) {
            let rules = FingerprintRules::new().add_header(name("x-a")).add_header(name("x-b"));
            prop_assert_eq!(a.fingerprint(&rules) == b.fingerprint(&rules), a == b);
        }

        #[test]
        fn a_byte_that_moves_to_the_next_part_changes_the_fingerprint(
            parts in vec("[ab]{0,3}", 5), from in 0..4usize, forth in any::<bool>(),
        ) {
            let mut moved = parts.clone();
            if forth {
                let Some(byte) = moved[from].pop() else { return Ok(()) };
                moved[from + 1].insert(0, byte);
            } else {
                if moved[from + 1].is_empty() { return Ok(()) }
                let byte = moved[from + 1].remove(0);
                moved[from].push(byte);
            }
            let of = |parts: &[String]| Sent {
                method: "POST",
                path: parts[0].clone(),
                query: Some(parts[1].clone()),
                headers: vec![("content-type", parts[2].clone()), ("x-a", parts[3].clone())],
                body: parts[4].clone().into_bytes(),
            };
            let rules = FingerprintRules::new().add_header(name("x-a"));
            prop_assert_ne!(of(&parts).fingerprint(&rules), of(&moved).fingerprint(&rules));
        }

        #[test]
        fn no_bytes_panic(
            query in option::of(any::<String>()),
            line in vec(any::<u8>(), 0..200),
            body in vec(any::<u8>(), 0..200),
        ) {
            let mut request = Request::new(());
            if let Ok(line) = HeaderValue::from_bytes(&line) {
                request.headers_mut().append(header::CONTENT_TYPE, line);
            }
            let rules = FingerprintRules::new().with_sorted_query();
            let of = || rules.of(RequestHead::new(&request), Some(""), query.as_deref(), &body);
            prop_assert_eq!(of(), of());
        }
    }
}
