//! What an answer says to the caches between us and the client, when it depends on a session.

use http::{HeaderMap, HeaderValue, header};

const PRIVATE: HeaderValue = HeaderValue::from_static("private");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const PRIVATE_NO_STORE: HeaderValue = HeaderValue::from_static("private, no-store");

/// What lets a shared cache keep an answer, which would contradict `private`. The qualified form of
/// `private` (RFC 9111, section 5.2.2.7) is among them, as it restricts less than the plain one.
const SHARED: [&[u8]; 4] = [b"public", b"s-maxage", b"proxy-revalidate", b"private"];

/// Names in `Vary` what the answer was chosen by, unless it is there.
pub(crate) fn vary_by(headers: &mut HeaderMap, by_cookie: bool, by_authorization: bool) {
    let (mut cookie, mut authorization) = (by_cookie, by_authorization);
    for line in headers.get_all(header::VARY) {
        for name in line.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            if name == b"*" {
                return;
            }
            cookie &= !name.eq_ignore_ascii_case(b"cookie");
            authorization &= !name.eq_ignore_ascii_case(b"authorization");
        }
    }
    let missing = match (cookie, authorization) {
        (false, false) => return,
        (true, false) => "Cookie",
        (false, true) => "Authorization",
        (true, true) => "Cookie, Authorization",
    };
    headers.append(header::VARY, HeaderValue::from_static(missing));
}

/// Keeps shared caches from storing the answer, and all caches if it sets a cookie.
///
/// What the handler said stays if it keeps the shared ones from that, and is otherwise changed as
/// little as possible. An answer without `Cache-Control` and without `Expires`, which are what a shared cache
/// may go by, is left alone: `Vary` keeps it from other clients.
pub(crate) fn keep_private(headers: &mut HeaderMap, sets_cookie: bool) {
    for (name, value) in headers.iter_mut() {
        // RFC 9213, which overrules `Cache-Control`, and what preceded it.
        let name = name.as_str();
        if name.ends_with("-cache-control") || name == "surrogate-control" {
            *value = NO_STORE;
        }
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        if sets_cookie {
            headers.insert(header::CACHE_CONTROL, PRIVATE_NO_STORE);
        } else if headers.contains_key(header::EXPIRES) {
            headers.insert(header::CACHE_CONTROL, PRIVATE);
        }
        return;
    }
    let said = match Said::by(headers) {
        Some(said) if said.is_private || said.is_not_stored && !said.may_be_overruled => return,
        // Said so that it holds for all caches.
        Some(said) if said.may_be_overruled && (said.is_not_stored || sets_cookie) => {
            headers.insert(header::CACHE_CONTROL, PRIVATE_NO_STORE);
            return;
        }
        Some(said) => said,
        None => {
            // Caches read a broken field in different ways.
            headers.insert(header::CACHE_CONTROL, PRIVATE_NO_STORE);
            return;
        }
    };
    let first = if sets_cookie { PRIVATE_NO_STORE } else { PRIVATE };
    let value = if said.others.is_empty() {
        first
    } else {
        let line = [&[first.as_bytes()], &said.others[..]].concat().join(&b", "[..]);
        HeaderValue::from_maybe_shared(bytes::Bytes::from(line)).unwrap_or(PRIVATE_NO_STORE)
    };
    headers.insert(header::CACHE_CONTROL, value);
}

struct Said<'h> {
    /// Plainly `private`.
    is_private: bool,
    /// Plainly `no-store`.
    is_not_stored: bool,
    /// `must-understand`, by which caches may ignore `no-store` (RFC 9111, section 5.2.2.3).
    may_be_overruled: bool,
    /// The directives that may stay beside `private`, as they were written.
    others: Vec<&'h [u8]>,
}

impl<'h> Said<'h> {
    /// `None` if a line is not what RFC 9111, section 5.2 allows.
    fn by(headers: &'h HeaderMap) -> Option<Self> {
        let mut said = Self {
            is_private: false,
            is_not_stored: false,
            may_be_overruled: false,
            others: Vec::new(),
        };
        for line in headers.get_all(header::CACHE_CONTROL) {
            let mut rest = line.as_bytes();
            while let Some(start) = rest.iter().position(|byte| !b", \t".contains(byte)) {
                let directive = Directive::at_start_of(&rest[start..])?;
                rest = directive.rest;
                said.add(&directive);
            }
        }
        Some(said)
    }

    fn add(&mut self, directive: &Directive<'h>) {
        let is = |name: &[u8]| directive.name.eq_ignore_ascii_case(name);
        self.may_be_overruled |= is(b"must-understand");
        if !directive.has_argument && is(b"private") {
            self.is_private = true;
        } else if !directive.has_argument && is(b"no-store") {
            self.is_not_stored = true;
        } else if !SHARED.iter().any(|name| is(name)) {
            self.others.push(directive.whole);
        }
    }
}

struct Directive<'h> {
    name: &'h [u8],
    has_argument: bool,
    /// Name and argument.
    whole: &'h [u8],
    /// What follows its comma.
    rest: &'h [u8],
}

impl<'h> Directive<'h> {
    fn at_start_of(text: &'h [u8]) -> Option<Self> {
        let name = token(text);
        let mut end = name.len();
        let has_argument = text.get(end) == Some(&b'=');
        if has_argument {
            let argument = &text[end + 1..];
            let length = match argument.strip_prefix(b"\"") {
                Some(quoted) => quoted_length(quoted)? + 1,
                None => token(argument).len(),
            };
            if length == 0 {
                return None;
            }
            end += 1 + length;
        }
        let after = text[end..].trim_ascii_start();
        let rest = match after {
            [] => after,
            [b',', rest @ ..] => rest,
            _ => return None,
        };
        (!name.is_empty()).then_some(Self { name, has_argument, whole: &text[..end], rest })
    }
}

/// RFC 9110, section 5.6.2.
fn token(text: &[u8]) -> &[u8] {
    let belongs = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    &text[..text.iter().take_while(|byte| belongs(byte)).count()]
}

/// How long a quoted string is behind its first quote, with its last one; `None` if there is none, or
/// if it is not ASCII.
fn quoted_length(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            _ if !byte.is_ascii() => return None,
            b'"' if !escaped => return Some(at + 1),
            _ => escaped = byte == b'\\' && !escaped,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn with(name: &HeaderName, lines: &[&str]) -> HeaderMap {
        let value = |line: &&str| HeaderValue::from_bytes(line.as_bytes()).unwrap();
        lines.iter().map(|line| (name.clone(), value(line))).collect()
    }

    fn lines<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Vec<&'h str> {
        headers.get_all(name).iter().map(|line| line.to_str().unwrap()).collect()
    }

    fn vary(said: &[&str], by_cookie: bool, by_authorization: bool) -> Vec<String> {
        let mut headers = with(&header::VARY, said);
        vary_by(&mut headers, by_cookie, by_authorization);
        lines(&headers, &header::VARY).into_iter().map(str::to_owned).collect()
    }

    fn kept_private(said: &[&str], sets_cookie: bool) -> Vec<String> {
        let mut headers = with(&header::CACHE_CONTROL, said);
        keep_private(&mut headers, sets_cookie);
        lines(&headers, &header::CACHE_CONTROL).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn vary_names_what_chose_the_answer() {
        assert_eq!(vary(&[], true, false), ["Cookie"]);
        assert_eq!(vary(&[], false, true), ["Authorization"]);
        assert_eq!(vary(&[], true, true), ["Cookie, Authorization"]);
        assert_eq!(vary(&["Accept"], true, false), ["Accept", "Cookie"]);
        assert_eq!(vary(&["Cookies", "X-Cookie"], true, false), ["Cookies", "X-Cookie", "Cookie"]);
        assert!(vary(&[], false, false).is_empty());
    }

    #[test]
    fn vary_is_left_alone_if_it_says_enough() {
        for said in
            [&["Accept, cookie"][..], &["Accept", "COOKIE\t,Origin"], &["*"], &["a", "b, *"]]
        {
            assert_eq!(vary(said, true, false), said);
        }
        assert_eq!(vary(&["*"], true, true), ["*"]);
        assert_eq!(vary(&["cookie"], true, true), ["cookie", "Authorization"]);
        assert_eq!(vary(&["authorization"], true, true), ["authorization", "Cookie"]);
    }

    #[test]
    fn without_cache_control_only_a_cookie_or_an_expiry_needs_one() {
        assert!(kept_private(&[], false).is_empty());
        assert_eq!(kept_private(&[], true), ["private, no-store"]);

        let mut headers = with(&header::EXPIRES, &["Thu, 01 Jan 2099 00:00:00 GMT"]);
        keep_private(&mut headers, false);
        assert_eq!(lines(&headers, &header::CACHE_CONTROL), ["private"]);
    }

    #[test]
    fn private_takes_the_place_of_what_shared_caches_may_go_by() {
        for (said, left) in [
            ("max-age=60", "private, max-age=60"),
            ("public, max-age=60", "private, max-age=60"),
            ("Public", "private"),
            ("s-maxage=60, proxy-revalidate", "private"),
            ("S-MaxAge=\"60\",max-age=5", "private, max-age=5"),
            ("no-cache, must-revalidate", "private, no-cache, must-revalidate"),
            ("", "private"),
            (", ,", "private"),
            (" ,immutable ,, max-age=1\t,", "private, immutable, max-age=1"),
            ("x=\"public, \\\", s-maxage=1\"", "private, x=\"public, \\\", s-maxage=1\""),
            ("x=\"\", public", "private, x=\"\""),
        ] {
            assert_eq!(kept_private(&[said], false), [left], "{said}");
            let with_cookie = left.replacen("private", "private, no-store", 1);
            assert_eq!(kept_private(&[said], true), [with_cookie], "{said}");
        }
    }

    #[test]
    fn several_lines_become_one() {
        let said = ["public, max-age=60", "stale-if-error=9, s-maxage=1"];
        assert_eq!(kept_private(&said, false), ["private, max-age=60, stale-if-error=9"]);
    }

    #[test]
    fn the_qualified_private_and_no_cache_forbid_nothing() {
        for (said, left) in [
            ("private=\"x\", max-age=1", "private, max-age=1"),
            ("private=\"a, private\"", "private"),
            ("Private=set-cookie, no-store=1", "private, no-store=1"),
            ("no-cache=\"set-cookie, no-store\"", "private, no-cache=\"set-cookie, no-store\""),
        ] {
            assert_eq!(kept_private(&[said], false), [left], "{said}");
        }
    }

    #[test]
    fn what_is_private_already_is_left_alone() {
        for said in [
            &["private"][..],
            &["no-store"],
            &["max-age=60, Private"],
            &["public", "NO-STORE"],
            &["max-age=0,no-store , x=\"private\""],
            &["private=\"x\"", "private, s-maxage=1"],
        ] {
            assert_eq!(kept_private(said, false), said);
            assert_eq!(kept_private(said, true), said);
        }
    }

    #[test]
    fn a_no_store_that_caches_are_to_ignore_forbids_nothing() {
        for said in [
            &["must-understand, no-store, max-age=60"][..],
            &["no-store", "public, Must-Understand"],
        ] {
            for sets_cookie in [false, true] {
                assert_eq!(kept_private(said, sets_cookie), ["private, no-store"], "{said:?}");
            }
        }
        let said = ["must-understand, private, no-store"];
        assert_eq!(kept_private(&said, false), said);
        let said = ["must-understand, max-age=60"];
        assert_eq!(kept_private(&said, false), ["private, must-understand, max-age=60"]);
        assert_eq!(kept_private(&said, true), ["private, no-store"]);
    }

    #[test]
    fn what_cannot_be_read_is_replaced_as_a_whole() {
        for said in [
            "é",
            "private, é",
            "private, x=\"é\"",
            "max-age=60, x=\"private",
            "x=\"a\"b, private",
            "private=, max-age=60",
            "=private",
            "public; max-age=60",
            "max age=60",
            "max-age = 60",
            "x=\"\\\"",
        ] {
            for sets_cookie in [false, true] {
                assert_eq!(kept_private(&[said], sets_cookie), ["private, no-store"], "{said}");
                let after = ["private", said];
                assert_eq!(kept_private(&after, sets_cookie), ["private, no-store"], "{said}");
            }
        }
    }

    #[test]
    fn a_field_for_one_kind_of_cache_says_no_store() {
        let fields = ["cdn-cache-control", "surrogate-control", "cloudflare-cdn-cache-control"];
        for name in fields.map(HeaderName::from_static) {
            let mut headers = with(&name, &["max-age=600"]);
            headers.insert(header::CACHE_CONTROL, PRIVATE);
            keep_private(&mut headers, false);
            assert_eq!(lines(&headers, &name), ["no-store"]);
            assert_eq!(headers.len(), 2);
        }
        let mut headers = HeaderMap::new();
        keep_private(&mut headers, true);
        assert_eq!(headers.len(), 1, "none is made");
    }

    proptest! {
        #[test]
        fn after_any_bytes_shared_caches_may_store_nothing(
            said in vec("(public|private|no-store|must-understand|x|,| |=|\"|\\\\|é|s-maxage=1){0,9}", 1..3),
            sets_cookie: bool,
        ) {
            let said: Vec<_> = said.iter().map(String::as_str).collect();
            let mut headers = with(&header::CACHE_CONTROL, &said);
            keep_private(&mut headers, sets_cookie);
            let said = Said::by(&headers).expect("what is written can be read");
            prop_assert!(said.is_private || said.is_not_stored && !said.may_be_overruled);
            let once = headers.clone();
            keep_private(&mut headers, sets_cookie);
            prop_assert_eq!(once, headers);
        }

        #[test]
        fn no_bytes_panic(line in vec(any::<u8>(), 0..40)) {
            let Ok(line) = HeaderValue::try_from(line) else { return Ok(()) };
            let mut headers = HeaderMap::from_iter([
                (header::CACHE_CONTROL, line.clone()),
                (header::VARY, line),
            ]);
            vary_by(&mut headers, true, true);
            keep_private(&mut headers, false);
            prop_assert!(headers[header::CACHE_CONTROL].as_bytes().is_ascii());
        }
    }
}
