//! The labels by which stored answers are invalidated together.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Akamai's and Fastly's bounds, the widest in use.
const MOST_TAGS: usize = 128;
const LONGEST_TAG: usize = 1024;
const MOST_BYTES: usize = 16 * 1024;

const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");
const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");
const EDGE_CACHE_TAG: HeaderName = HeaderName::from_static("edge-cache-tag");
const XKEY: HeaderName = HeaderName::from_static("xkey");

/// The tags of an answer, as a response extension.
///
/// Whatever bears a tag is dropped from the cache when the tag is invalidated. Tags are any bytes,
/// compared as bytes.
///
/// An answer may bear 128 tags of at most 1,024 bytes each, together 16 KiB, and none of them empty.
/// One with more is served and not stored, for no purge could be trusted to reach it.
///
/// # Examples
///
/// ```
/// use http::Response;
/// use tower_keep::cache::CacheTags;
///
/// let mut response = Response::new("a teapot");
/// response.extensions_mut().insert(CacheTags::new(["product:42", "products"]));
/// ```
///
/// With the feature `axum`, a handler returns them before the body. Tags that were there stay.
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::response::IntoResponse;
/// use tower_keep::cache::CacheTags;
///
/// async fn product() -> impl IntoResponse {
///     (CacheTags::new(["products"]).and("product:42"), "a teapot")
/// }
/// # let _ = product;
/// # }
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct CacheTags(Vec<Box<[u8]>>);

impl CacheTags {
    /// These tags.
    pub fn new<I>(tags: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        tags.into_iter().collect()
    }

    /// These tags and one more.
    #[must_use]
    pub fn and(mut self, tag: impl AsRef<[u8]>) -> Self {
        self.0.push(tag.as_ref().into());
        self
    }

    /// The tags, in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|tag| &**tag)
    }
}

impl<T: AsRef<[u8]>> Extend<T> for CacheTags {
    fn extend<I: IntoIterator<Item = T>>(&mut self, tags: I) {
        self.0.extend(tags.into_iter().map(|tag| tag.as_ref().into()));
    }
}

impl<T: AsRef<[u8]>> FromIterator<T> for CacheTags {
    fn from_iter<I: IntoIterator<Item = T>>(tags: I) -> Self {
        let mut all = Self::default();
        all.extend(tags);
        all
    }
}

impl fmt::Debug for CacheTags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheTags({})", self.0.len())
    }
}

#[cfg(feature = "axum")]
impl axum_core::response::IntoResponseParts for CacheTags {
    type Error = std::convert::Infallible;

    fn into_response_parts(
        self,
        mut parts: axum_core::response::ResponseParts,
    ) -> Result<axum_core::response::ResponseParts, Self::Error> {
        match parts.extensions_mut().get_mut::<Self>() {
            Some(tags) => tags.0.extend(self.0),
            None => {
                parts.extensions_mut().insert(self);
            }
        }
        Ok(parts)
    }
}

/// What becomes of the header fields that name tags (`Surrogate-Key`, `Cache-Tag`,
/// `Edge-Cache-Tag`, `xkey`) when an answer leaves the cache.
///
/// Tags that do not fit the syntax of the field, such as those with a space, are left out of it; this
/// cache still knows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TagForwarding {
    /// They are removed: tags tell clients about the inside of the service.
    #[default]
    Strip,
    /// All tags of the answer are sent as `Surrogate-Key`, as Fastly reads it.
    SurrogateKey,
    /// All tags of the answer are sent as `Cache-Tag`, as Cloudflare reads it.
    CacheTag,
    /// The fields are sent as the handler wrote them.
    AsReceived,
}

/// Which header fields of an answer name tags, and what becomes of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TagRule {
    /// Whether tags in header fields count. They are read from answers only: in a request, they
    /// would let clients decide what a purge reaches.
    pub(crate) read_headers: bool,
    pub(crate) forwarding: TagForwarding,
}

impl Default for TagRule {
    fn default() -> Self {
        Self { read_headers: true, forwarding: TagForwarding::Strip }
    }
}

impl TagRule {
    /// All tags of an answer, each once: the handler's, those of its header fields, and `others`
    /// (of the route and of the request). Never fewer than there are: what has more tags than an
    /// entry may have is not to be stored.
    pub(crate) fn collect<'a>(
        self,
        from_handler: Option<&'a CacheTags>,
        headers: &'a HeaderMap,
        others: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<TagList, TagError> {
        let mut tags = Collected::default();
        for tag in from_handler.into_iter().flat_map(CacheTags::iter).chain(others) {
            tags.add(tag)?;
        }
        if self.read_headers {
            for (name, syntax) in &FIELDS {
                for line in headers.get_all(name) {
                    // Empty members of a list mean nothing (RFC 9110 §5.6.1).
                    for tag in syntax.members(line.as_bytes()).filter(|tag| !tag.is_empty()) {
                        tags.add(tag)?;
                    }
                }
            }
        }
        Ok(tags.finish())
    }

    /// The same for an answer that is not stored, with such tags as it may have.
    pub(crate) fn pass(self, headers: &mut HeaderMap, from_handler: Option<&CacheTags>) {
        let tags = match self.forwarding {
            TagForwarding::Strip | TagForwarding::AsReceived => TagList::default(),
            _ => self.collect(from_handler, headers, []).unwrap_or_default(),
        };
        self.forward(headers, &tags);
    }

    /// Removes or writes the header fields that name tags.
    pub(crate) fn forward(self, headers: &mut HeaderMap, tags: &TagList) {
        let (name, syntax) = match self.forwarding {
            TagForwarding::AsReceived => return,
            TagForwarding::Strip => (None, Syntax::Spaces),
            TagForwarding::SurrogateKey => (Some(SURROGATE_KEY), Syntax::Spaces),
            TagForwarding::CacheTag => (Some(CACHE_TAG), Syntax::Commas),
        };
        for (name, _) in &FIELDS {
            headers.remove(name);
        }
        let Some(name) = name else { return };
        let mut line = BytesMut::new();
        for tag in tags.iter().filter(|tag| syntax.admits(tag)) {
            if !line.is_empty() {
                line.put_u8(syntax.separator());
            }
            line.put_slice(tag);
        }
        if line.is_empty() {
            return;
        }
        if let Ok(value) = HeaderValue::from_maybe_shared(line.freeze()) {
            headers.insert(name, value);
        }
    }
}

static FIELDS: [(HeaderName, Syntax); 4] = [
    (SURROGATE_KEY, Syntax::Spaces),
    (CACHE_TAG, Syntax::Commas),
    (EDGE_CACHE_TAG, Syntax::Commas),
    (XKEY, Syntax::Spaces),
];

#[derive(Clone, Copy)]
enum Syntax {
    Spaces,
    Commas,
}

impl Syntax {
    fn separator(self) -> u8 {
        match self {
            Self::Spaces => b' ',
            Self::Commas => b',',
        }
    }

    fn members(self, line: &[u8]) -> impl Iterator<Item = &[u8]> {
        line.split(move |byte| match self {
            Self::Spaces => matches!(byte, b' ' | b'\t'),
            Self::Commas => *byte == b',',
        })
        .map(<[u8]>::trim_ascii)
    }

    fn admits(self, tag: &[u8]) -> bool {
        tag.iter().all(|byte| byte.is_ascii_graphic() && *byte != self.separator())
    }
}

/// Why an answer cannot bear its tags, and so is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TagError {
    TooMany,
    TooLong,
    Empty,
}

impl TagError {
    /// For `Cache-Status` and events: a token of RFC 9110, and nothing of the tag.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::TooMany => "too-many-tags",
            Self::TooLong => "tag-too-long",
            Self::Empty => "empty-tag",
        }
    }
}

#[derive(Default)]
struct Collected<'a> {
    tags: Vec<&'a [u8]>,
    bytes: usize,
}

impl<'a> Collected<'a> {
    fn add(&mut self, tag: &'a [u8]) -> Result<(), TagError> {
        if tag.is_empty() {
            return Err(TagError::Empty);
        }
        if tag.len() > LONGEST_TAG {
            return Err(TagError::TooLong);
        }
        if self.tags.contains(&tag) {
            return Ok(());
        }
        self.bytes += tag.len();
        if self.tags.len() == MOST_TAGS || self.bytes > MOST_BYTES {
            return Err(TagError::TooMany);
        }
        self.tags.push(tag);
        Ok(())
    }

    fn finish(self) -> TagList {
        let mut encoded = BytesMut::with_capacity(self.bytes + 2 * self.tags.len());
        for tag in self.tags {
            encoded.put_u16(tag.len() as u16); // at most LONGEST_TAG
            encoded.put_slice(tag);
        }
        TagList { encoded: encoded.freeze() }
    }
}

/// The tags of one answer in the form in which its entry holds them: each after its length.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct TagList {
    encoded: Bytes,
}

impl TagList {
    /// The list that [`encoded`](Self::encoded) has given.
    pub(crate) fn decode(encoded: Bytes) -> Option<Self> {
        let mut rest = &encoded[..];
        while !rest.is_empty() {
            (_, rest) = split_tag(rest)?;
        }
        Some(Self { encoded })
    }

    pub(crate) fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.encoded.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.encoded[..];
        std::iter::from_fn(move || {
            let (tag, after) = split_tag(rest)?;
            rest = after;
            Some(tag)
        })
    }
}

impl fmt::Debug for TagList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TagList({})", self.iter().count())
    }
}

fn split_tag(encoded: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = encoded.split_first_chunk()?;
    rest.split_at_checked(u16::from_be_bytes(*length).into())
}

/// The tags that the storage sees. What the service's own tags, groups, resources, hosts and routes
/// are called can never be the same, for each kind begins with a byte of its own.
pub(crate) mod stored {
    use crate::storage::Tag;

    /// A tag that the service chose.
    pub(crate) fn own(tag: &[u8]) -> Tag {
        tagged(b't', &[tag])
    }

    /// A cache group (RFC 9875), which belongs to one origin.
    pub(crate) fn group(authority: &[u8], name: &[u8]) -> Tag {
        tagged(b'g', &[&(authority.len() as u64).to_be_bytes(), authority, name])
    }

    /// A resource, by its path and query as the key has them.
    pub(crate) fn uri(path_and_query: &[u8]) -> Tag {
        tagged(b'u', &[path_and_query])
    }

    /// A host, in lower case.
    pub(crate) fn host(authority: &[u8]) -> Tag {
        tagged(b'h', &[authority])
    }

    /// A route, by the name or pattern that the service has for it.
    pub(crate) fn route(pattern: &[u8]) -> Tag {
        tagged(b'r', &[pattern])
    }

    /// A value, by its key.
    pub(crate) fn value(key: &[u8]) -> Tag {
        tagged(b'v', &[key])
    }

    fn tagged(kind: u8, parts: &[&[u8]]) -> Tag {
        let mut bytes = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
        bytes.push(kind);
        for part in parts {
            bytes.extend_from_slice(part);
        }
        Tag::new(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ODD: [&[u8]; 12] = [
        b"product:42",
        b"*",
        b"{x}",
        b"with space",
        b"a\0b",
        b"a\r\nX-Evil: 1",
        b"a,b",
        b"a",
        "\u{430}".as_bytes(),
        b"\xff",
        b"a\tb",
        b"\"a\"",
    ];

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn collect(tags: &[&[u8]]) -> Result<TagList, TagError> {
        TagRule::default().collect(Some(&CacheTags::new(tags)), &HeaderMap::new(), [])
    }

    fn names(tags: &TagList) -> Vec<&[u8]> {
        tags.iter().collect()
    }

    #[test]
    fn tags_are_gathered_from_everywhere_and_each_is_there_once() {
        let own = CacheTags::new(["a", "b", "a"]).and(b"c");
        let fields = headers(&[
            ("surrogate-key", " d  b\te "),
            ("surrogate-key", "f"),
            ("cache-tag", "g, ,h i,,a"),
            ("edge-cache-tag", "j"),
            ("xkey", "k d"),
            ("x-other", "l"),
        ]);
        let route: [&[u8]; 2] = [b"route", b"a"];
        let tags = TagRule::default().collect(Some(&own), &fields, route).unwrap();
        let expected: [&[u8]; 12] =
            [b"a", b"b", b"c", b"route", b"d", b"e", b"f", b"g", b"h i", b"j", b"k", b"l"];
        assert_eq!(names(&tags), expected[..11]);
        let deaf = TagRule { read_headers: false, ..TagRule::default() };
        let tags = deaf.collect(None, &fields, []).unwrap();
        assert!(tags.is_empty());
    }

    #[test]
    fn any_bytes_are_a_tag() {
        assert_eq!(names(&collect(&ODD).unwrap()), ODD);
        assert_ne!(collect(&[b"a:b", b"c"]), collect(&[b"a", b"b:c"]));
        assert_ne!(collect(&[b"ab"]), collect(&[b"a", b"b"]));
    }

    #[test]
    fn a_tag_too_many_is_an_outcome_and_not_a_tag_less() {
        let many: Vec<_> = (0..129).map(|n: u32| n.to_be_bytes()).collect();
        let many: Vec<_> = many.iter().map(|tag| &tag[..]).collect();
        assert_eq!(names(&collect(&many[..128]).unwrap()).len(), 128);
        assert_eq!(collect(&many), Err(TagError::TooMany));
        assert_eq!(collect(&[&b"a"[..]; 1_000]), collect(&[b"a"]));

        let long = [b'x'; 10_000];
        assert!(collect(&[&long[..1_024]]).is_ok());
        assert_eq!(collect(&[&long[..1_025]]), Err(TagError::TooLong));
        assert_eq!(collect(&[&long]), Err(TagError::TooLong));
        assert_eq!(collect(&[b"a", b""]), Err(TagError::Empty));

        let heavy: Vec<_> = (0..17_u8).map(|n| [n; 1_024]).collect();
        let heavy: Vec<_> = heavy.iter().map(|tag| &tag[..]).collect();
        assert!(collect(&heavy[..16]).is_ok());
        assert_eq!(collect(&heavy), Err(TagError::TooMany));
    }

    #[test]
    fn limits_are_of_header_fields_too() {
        let line = (0..129).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let mut fields = HeaderMap::new();
        fields.insert(SURROGATE_KEY, line.try_into().unwrap());
        let tags = TagRule::default().collect(None, &fields, []);
        assert_eq!(tags, Err(TagError::TooMany));
    }

    #[test]
    fn a_list_is_read_as_it_was_written_and_nothing_else_is() {
        let list = collect(&ODD).unwrap();
        assert_eq!(TagList::decode(list.encoded().clone()), Some(list.clone()));
        for length in 1..list.encoded().len() {
            if let Some(shorter) = TagList::decode(list.encoded().slice(..length)) {
                assert!(names(&list).starts_with(&names(&shorter)));
            }
        }
        assert_eq!(TagList::decode(Bytes::from_static(b"\0")), None);
        assert_eq!(TagList::decode(Bytes::from_static(b"\xff\xff\0")), None);
    }

    fn forwarded(forwarding: TagForwarding, tags: &[&[u8]]) -> HeaderMap {
        let mut fields = headers(&[
            ("surrogate-key", "old"),
            ("cache-tag", "old"),
            ("cache-tag", "older"),
            ("edge-cache-tag", "old"),
            ("xkey", "old"),
            ("etag", "\"x\""),
        ]);
        let rule = TagRule { forwarding, ..TagRule::default() };
        rule.forward(&mut fields, &collect(tags).unwrap());
        fields
    }

    #[test]
    fn tags_do_not_leave_unless_they_are_forwarded() {
        let stripped = forwarded(TagForwarding::default(), &[b"a"]);
        assert_eq!(stripped, headers(&[("etag", "\"x\"")]));
        assert_eq!(forwarded(TagForwarding::AsReceived, &[b"a"]).len(), 6);
    }

    #[test]
    fn tags_that_do_not_fit_a_field_are_left_out_of_it() {
        let etag = ("etag", "\"x\"");
        let line = "product:42 * {x} a,b a \"a\"";
        let fastly = forwarded(TagForwarding::SurrogateKey, &ODD);
        assert_eq!(fastly, headers(&[etag, ("surrogate-key", line)]));
        let line = "product:42,*,{x},a,\"a\"";
        let cloudflare = forwarded(TagForwarding::CacheTag, &ODD);
        assert_eq!(cloudflare, headers(&[etag, ("cache-tag", line)]));
        assert_eq!(forwarded(TagForwarding::CacheTag, &[b"a b"]), headers(&[etag]));
        assert_eq!(forwarded(TagForwarding::CacheTag, &[]), headers(&[etag]));
    }

    #[test]
    fn tags_of_different_kinds_never_meet() {
        use stored::{group, host, own, route, uri};
        let all = [
            own(b"a"),
            own(b"ua"),
            group(b"", b"a"),
            group(b"a", b""),
            group(b"h", b"a"),
            uri(b"a"),
            host(b"a"),
            route(b"a"),
            own(b"gh"),
            group(b"ha", b""),
        ];
        for (i, a) in all.iter().enumerate() {
            assert_eq!(all.iter().position(|b| a == b), Some(i));
        }
        for tag in ODD {
            assert_eq!(&own(tag).as_bytes()[1..], tag);
        }
    }

    #[test]
    fn debug_shows_no_tag() {
        let tags = CacheTags::new(["secret"]);
        assert_eq!(format!("{tags:?} {:?}", collect(&[b"secret"])), "CacheTags(1) Ok(TagList(1))");
    }

    #[cfg(feature = "axum")]
    #[test]
    fn a_handler_returns_tags_before_the_body() {
        use axum_core::response::IntoResponse;
        let response = (CacheTags::new(["a"]), CacheTags::new(["b"]), "a teapot").into_response();
        let tags = response.extensions().get::<CacheTags>();
        let both: CacheTags = ["a", "b"].into_iter().collect();
        assert_eq!(tags, Some(&both));
    }
}
