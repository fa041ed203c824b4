//! Which header fields are stored, and how a 304 changes them (RFC 9111, sections 3.1 and 3.2).

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{Rules, date};
use crate::envelope::is_named_by_connection;

/// What concerns one connection, or is made anew for every answer.
fn is_stored(name: &HeaderName, rules: &Rules) -> bool {
    let dropped = matches!(
        name.as_str(),
        "age"
            | "connection"
            | "content-length"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    );
    !dropped && *name != header::SET_COOKIE && rules.target.as_ref() != Some(name)
}

/// What a 304 must not change: what describes the stored content, which stays, and the entity tag,
/// which was the question.
fn describes_content(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "content-digest"
            | "content-encoding"
            | "content-md5"
            | "content-range"
            | "digest"
            | "etag"
            | "repr-digest"
    )
}

fn shareable<'a>(
    headers: &'a HeaderMap,
    rules: &'a Rules,
) -> impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)> {
    headers
        .iter()
        .filter(|(name, _)| is_stored(name, rules) && !is_named_by_connection(name, headers))
}

/// What is stored of the fields of a response that came at `now`. A `Date` that is missing or no date
/// is made good (RFC 9110, section 6.6.1).
pub(crate) fn stored_headers(headers: &HeaderMap, rules: &Rules, now: Duration) -> HeaderMap {
    let mut stored = HeaderMap::with_capacity(headers.keys_len() + 1);
    for (name, value) in shareable(headers, rules) {
        stored.append(name.clone(), value.clone());
    }
    date_if_missing(&mut stored, now);
    stored
}

/// The stored fields after a 304 that came at `now` (RFC 9111, sections 3.2 and 4.3.4).
pub(crate) fn freshen(
    stored: &HeaderMap,
    not_modified: &HeaderMap,
    rules: &Rules,
    now: Duration,
) -> HeaderMap {
    let mut merged = stored.clone();
    // The age begins anew, even where the 304 does not say when it was made.
    merged.remove(header::DATE);
    let updates = || shareable(not_modified, rules).filter(|(name, _)| !describes_content(name));
    for (name, _) in updates() {
        merged.remove(name);
    }
    for (name, value) in updates() {
        merged.append(name.clone(), value.clone());
    }
    date_if_missing(&mut merged, now);
    merged
}

fn date_if_missing(headers: &mut HeaderMap, now: Duration) {
    let valid =
        headers.get(header::DATE).is_some_and(|value| date::parse_value(value, now).is_some());
    if !valid {
        headers.insert(header::DATE, date::value(now));
    }
}

/// The only line of a field that must not be said twice.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    let only = lines.next()?;
    lines.next().is_none().then_some(only)
}

#[cfg(test)]
mod tests {
    use super::{super::header_map, *};

    const NOW: Duration = Duration::from_secs(784_111_777);
    const DATE: (&str, &str) = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");

    /// Whether each is what the other is, line by line.
    #[track_caller]
    fn assert_are(headers: &HeaderMap, expected: &[(&str, &str)]) {
        assert_eq!(*headers, header_map(expected));
    }

    /// RFC 9111, section 3.1.
    #[test]
    fn all_fields_are_stored_but_those_of_one_connection() {
        let kept = [
            DATE,
            ("test-header", "a"),
            ("content-foo", "a"),
            ("cache-control", "max-age=1"),
            ("cdn-cache-control", "max-age=2"),
            ("content-encoding", "br"),
            ("content-range", "rows 1"),
            ("clear-site-data", "cache"),
            ("etag", "\"a\""),
            ("public-key-pins", "a"),
            ("set-cookie2", "a=b"),
            ("vary", "a"),
            ("vary", "b"),
        ];
        let mut lines = kept.to_vec();
        for name in [
            "connection",
            "keep-alive",
            "proxy-authenticate",
            "proxy-authentication-info",
            "proxy-authorization",
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "age",
            "content-length",
            "set-cookie",
        ] {
            lines.push((name, "1"));
        }
        assert_are(&stored_headers(&header_map(&lines), &Rules::default(), NOW), &kept);
    }

    #[test]
    fn what_connection_names_is_not_stored() {
        let lines = [
            DATE,
            ("connection", "a, B"),
            ("connection", "d"),
            ("a", "1"),
            ("b", "2"),
            ("c", "3"),
            ("d", "4"),
        ];
        let stored = stored_headers(&header_map(&lines), &Rules::default(), NOW);
        assert_are(&stored, &[DATE, ("c", "3")]);
    }

    #[test]
    fn our_own_target_is_between_the_service_and_us() {
        let own = HeaderName::from_static("keep-cache-control");
        let rules = Rules { target: Some(own.clone()), ..Rules::default() };
        let lines = header_map(&[DATE, (own.as_str(), "max-age=1")]);
        assert_are(&stored_headers(&lines, &rules, NOW), &[DATE]);
        assert!(stored_headers(&lines, &Rules::default(), NOW).contains_key(&own));
    }

    /// RFC 9110, section 6.6.1.
    #[test]
    fn a_date_is_made_good() {
        for lines in [&[][..], &[("date", "foo")], &[("date", "")]] {
            assert_are(&stored_headers(&header_map(lines), &Rules::default(), NOW), &[DATE]);
        }
        let other = [("date", "Sun, 06 Nov 1994 08:00:00 GMT")];
        assert_are(&stored_headers(&header_map(&other), &Rules::default(), NOW), &other);
    }

    /// RFC 9111, section 3.2.
    #[test]
    fn a_304_replaces_what_it_mentions_and_leaves_the_rest() {
        let stored = [
            ("date", "Sun, 06 Nov 1994 08:00:00 GMT"),
            ("a", "1"),
            ("b", "1"),
            ("b", "2"),
            ("etag", "\"a\""),
            ("content-encoding", "br"),
            ("content-type", "text/plain"),
        ];
        let not_modified = [
            ("b", "3"),
            ("c", "4"),
            ("c", "5"),
            ("content-type", "text/html"),
            ("etag", "W/\"b\""),
            ("content-encoding", "gzip"),
            ("content-length", "7"),
            ("content-md5", "a"),
            ("content-range", "bytes 0-1/2"),
            ("content-digest", "a"),
            ("repr-digest", "a"),
            ("age", "3"),
            ("set-cookie", "a=b"),
            ("connection", "d"),
            ("d", "6"),
        ];
        let (stored, update) = (header_map(&stored), header_map(&not_modified));
        let expected = [
            DATE,
            ("a", "1"),
            ("b", "3"),
            ("c", "4"),
            ("c", "5"),
            ("etag", "\"a\""),
            ("content-encoding", "br"),
            ("content-type", "text/html"),
        ];
        assert_are(&freshen(&stored, &update, &Rules::default(), NOW), &expected);
    }

    #[test]
    fn a_304_says_when_it_was_made() {
        let stored = header_map(&[("date", "Sun, 06 Nov 1994 08:00:00 GMT")]);
        let later = [("date", "Sun, 06 Nov 1994 08:49:00 GMT")];
        assert_are(&freshen(&stored, &header_map(&later), &Rules::default(), NOW), &later);
        assert_are(&freshen(&stored, &HeaderMap::new(), &Rules::default(), NOW), &[DATE]);
    }

    #[test]
    fn a_field_that_is_said_twice_has_no_single_line() {
        let headers = header_map(&[("a", "1"), ("b", "1"), ("b", "1")]);
        assert_eq!(single(&headers, &HeaderName::from_static("a")).unwrap(), "1");
        assert_eq!(single(&headers, &HeaderName::from_static("b")), None);
        assert_eq!(single(&headers, &HeaderName::from_static("c")), None);
    }
}
