//! Conditions and ranges: those that clients send, and those by which the cache revalidates
//! (RFC 9110, sections 13 and 14; RFC 9111, section 4.3).

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{date, fields::single};

/// The fields that make a request conditional or partial.
const CONDITIONS: [HeaderName; 6] = [
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
    header::RANGE,
];

/// Removes conditions and range from a request whose answer is to be stored and shared.
pub(crate) fn unconditional(headers: &mut HeaderMap) {
    for name in &CONDITIONS {
        headers.remove(name);
    }
}

/// By what a stored response is revalidated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    etag: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
}

/// The condition with which a stored response is revalidated; `None` without a validator.
pub(crate) fn revalidation(stored: &HeaderMap) -> Option<Condition> {
    let etag = stored.get(header::ETAG).cloned();
    let last_modified = stored
        .get(header::LAST_MODIFIED)
        .filter(|value| date::parse_value(value, Duration::ZERO).is_some())
        .cloned();
    let any = etag.is_some() || last_modified.is_some();
    any.then_some(Condition { etag, last_modified })
}

impl Condition {
    /// Puts the condition in place of those of the client.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        unconditional(headers);
        if let Some(etag) = &self.etag {
            headers.insert(header::IF_NONE_MATCH, etag.clone());
        }
        if let Some(last_modified) = &self.last_modified {
            headers.insert(header::IF_MODIFIED_SINCE, last_modified.clone());
        }
    }
}

/// What of a stored response answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Selection {
    Full,
    /// All but the body.
    Head,
    NotModified,
    /// The bytes from `start` up to but without `end`; never empty.
    Range {
        start: u64,
        end: u64,
    },
    Unsatisfiable,
}

/// How a stored response answers this request. `length` is that of the stored body.
pub(crate) fn select(
    request: &HeaderMap,
    head: bool,
    status: StatusCode,
    stored: &HeaderMap,
    length: u64,
) -> Selection {
    // Conditions count only where the answer would otherwise be a success (RFC 9110, section 13.2.1).
    if status.is_success() && not_modified(request, stored) {
        return Selection::NotModified;
    }
    if head {
        return Selection::Head;
    }
    if status != StatusCode::OK {
        return Selection::Full;
    }
    let Some(range) = single(request, &header::RANGE) else { return Selection::Full };
    if !if_range_holds(request, stored) || stored_refuses_ranges(stored) {
        return Selection::Full;
    }
    byte_range(range.as_bytes(), length)
}

/// RFC 9111, section 4.3.2.
fn not_modified(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(header::IF_NONE_MATCH) {
        return if_none_match_fails(request, stored);
    }
    // Said twice, it is ignored (RFC 9110, section 13.1.3).
    let Some(since) = single(request, &header::IF_MODIFIED_SINCE) else { return false };
    let dates = stored.get(header::LAST_MODIFIED).or_else(|| stored.get(header::DATE));
    let modified = dates.and_then(|value| date::parse_value(value, now_of(stored)));
    let since = date::parse_value(since, now_of(stored));
    matches!((modified, since), (Some(modified), Some(since)) if modified <= since)
}

/// The century of years of two digits follows the stored response: there is no clock here.
fn now_of(stored: &HeaderMap) -> Duration {
    let date = stored.get(header::DATE).and_then(|value| date::parse_value(value, Duration::ZERO));
    Duration::from_secs(date.unwrap_or_default())
}

/// Weak comparison (RFC 9110, section 8.8.3.2).
fn if_none_match_fails(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let current = stored.get(header::ETAG).map(HeaderValue::as_bytes);
    request.get_all(header::IF_NONE_MATCH).iter().any(|line| {
        let line = line.as_bytes();
        if line.trim_ascii() == b"*" {
            return true;
        }
        let Some(current) = current else { return false };
        entity_tags(line).any(|tag| without_weakness(tag) == without_weakness(current))
    })
}

/// The members of a list of entity tags, which may contain commas.
fn entity_tags(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = line;
    std::iter::from_fn(move || {
        while let [b',' | b' ' | b'\t', after @ ..] = rest {
            rest = after;
        }
        if rest.is_empty() {
            return None;
        }
        let mut quoted = false;
        let end = rest.iter().position(|&byte| {
            quoted ^= byte == b'"';
            byte == b',' && !quoted
        });
        let (tag, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        Some(tag.trim_ascii())
    })
}

fn without_weakness(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Strong comparison (RFC 9110, section 13.1.5). A date is strong if it lies at least a second before
/// the response (section 8.8.2.2).
fn if_range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if !request.contains_key(header::IF_RANGE) {
        return true;
    }
    let Some(condition) = single(request, &header::IF_RANGE) else { return false };
    let condition = condition.as_bytes().trim_ascii();
    if condition.starts_with(b"\"") {
        return stored.get(header::ETAG).is_some_and(|etag| etag.as_bytes() == condition);
    }
    if condition.starts_with(b"W/") {
        return false;
    }
    let now = now_of(stored);
    let parsed = |name| stored.get(name).and_then(|value| date::parse_value(value, now));
    let modified = parsed(header::LAST_MODIFIED);
    let born = parsed(header::DATE);
    let asked = date::parse(condition, now);
    matches!(
        (modified, born, asked),
        (Some(modified), Some(born), Some(asked)) if modified == asked && born > modified
    )
}

fn stored_refuses_ranges(stored: &HeaderMap) -> bool {
    stored.get(header::ACCEPT_RANGES).is_some_and(|value| value.as_bytes().trim_ascii() == b"none")
}

/// One range of bytes. Several, or what is none, are ignored, as is allowed (RFC 9110, section 14.2).
fn byte_range(value: &[u8], length: u64) -> Selection {
    let Some((unit, set)) = value.split_at_checked(6) else { return Selection::Full };
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return Selection::Full;
    }
    let set = set.trim_ascii();
    let Some(dash) = set.iter().position(|&byte| byte == b'-') else { return Selection::Full };
    let (first, last) = (&set[..dash], &set[dash + 1..]);
    match (first, last) {
        (b"", suffix) => match position(suffix) {
            None => Selection::Full,
            Some(0) => Selection::Unsatisfiable,
            // No range of bytes can be named in what is empty.
            Some(_) if length == 0 => Selection::Full,
            Some(suffix) => Selection::Range { start: length.saturating_sub(suffix), end: length },
        },
        (first, last) => {
            let Some(start) = position(first) else { return Selection::Full };
            let end = match last {
                b"" => length,
                last => match position(last) {
                    Some(last) if last >= start => last.saturating_add(1).min(length),
                    _ => return Selection::Full,
                },
            };
            if start >= length { Selection::Unsatisfiable } else { Selection::Range { start, end } }
        }
    }
}

/// What is too large for the type is beyond the end of any body.
fn position(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |position, digit| {
        digit
            .is_ascii_digit()
            .then(|| position.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
    })
}

#[cfg(test)]
mod tests {
    use super::{super::header_map, *};

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const EARLIER: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const LATER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
    const LENGTH: u64 = 10;

    type Lines<'a> = &'a [(&'a str, &'a str)];

    fn selected(request: Lines<'_>, stored: Lines<'_>) -> Selection {
        let (request, stored) = (header_map(request), header_map(stored));
        select(&request, false, StatusCode::OK, &stored, LENGTH)
    }

    fn matches(if_none_match: &str, etag: &str) -> bool {
        let selection = selected(&[("if-none-match", if_none_match)], &[("etag", etag)]);
        assert!(matches!(selection, Selection::Full | Selection::NotModified));
        selection == Selection::NotModified
    }

    fn since(date: &str, stored: Lines<'_>) -> bool {
        selected(&[("if-modified-since", date)], stored) == Selection::NotModified
    }

    fn range(value: &str, length: u64) -> Selection {
        let request = header_map(&[("range", value)]);
        select(&request, false, StatusCode::OK, &HeaderMap::new(), length)
    }

    /// RFC 9110, sections 8.8.3.2 and 13.1.2.
    #[test]
    fn entity_tags_are_compared_weakly() {
        for (condition, etag) in [
            ("\"a\"", "\"a\""),
            ("W/\"a\"", "W/\"a\""),
            ("W/\"a\"", "\"a\""),
            ("\"a\"", "W/\"a\""),
            ("\"a\", \"b\", \"c\"", "\"a\""),
            ("\"a\",W/\"b\" ,\"c\"", "\"b\""),
            ("\"a\", \"b\", \"c\"", "\"c\""),
            (",, \"a\"", "\"a\""),
            ("\"a,b\", \"c\"", "\"c\""),
            ("\"a,b\", \"c\"", "\"a,b\""),
            ("*", "\"a\""),
            (" * ", "\"a\""),
            ("a", "a"),
        ] {
            assert!(matches(condition, etag), "{condition} {etag}");
        }
        for (condition, etag) in [
            ("\"a\"", "\"b\""),
            ("\"a\"", "\"A\""),
            ("\"a,b\"", "\"b\""),
            ("\"a\"", "a"),
            ("a", "\"a\""),
            ("w/\"a\"", "\"a\""),
            ("\"*\"", "\"a\""),
            ("", "\"a\""),
        ] {
            assert!(!matches(condition, etag), "{condition} {etag}");
        }
        let two = [("if-none-match", "\"a\""), ("if-none-match", "\"b\"")];
        assert_eq!(selected(&two, &[("etag", "\"b\"")]), Selection::NotModified);
        assert_eq!(selected(&[("if-none-match", "\"a\"")], &[]), Selection::Full);
        assert_eq!(selected(&[("if-none-match", "*")], &[]), Selection::NotModified);
    }

    /// RFC 9110, section 13.2.2.
    #[test]
    fn entity_tags_come_before_dates() {
        let stored = [("etag", "\"a\""), ("last-modified", DATE)];
        let both = |etag| [("if-none-match", etag), ("if-modified-since", DATE)];
        assert_eq!(selected(&both("\"a\""), &stored), Selection::NotModified);
        assert_eq!(selected(&both("\"b\""), &stored), Selection::Full);
        let early = [("if-none-match", "\"a\""), ("if-modified-since", EARLIER)];
        assert_eq!(selected(&early, &stored), Selection::NotModified);
    }

    /// RFC 9111, section 4.3.2.
    #[test]
    fn what_was_not_modified_since_is_not_sent() {
        let stored = [("last-modified", DATE), ("date", LATER)];
        assert!(since(DATE, &stored));
        assert!(since(LATER, &stored));
        assert!(!since(EARLIER, &stored));
        assert!(since("Sunday, 06-Nov-94 08:49:37 GMT", &stored));
        assert!(since("Sun Nov  6 08:49:37 1994", &stored));
        for nonsense in ["", "0", "yesterday", "Sun, 06 Nov 1994 08:49:37 UTC"] {
            assert!(!since(nonsense, &stored), "{nonsense}");
        }
        let twice = [("if-modified-since", DATE), ("if-modified-since", DATE)];
        assert_eq!(selected(&twice, &stored), Selection::Full);
    }

    #[test]
    fn the_date_stands_in_for_a_last_modified_that_is_not_there() {
        assert!(since(DATE, &[("date", DATE)]));
        assert!(since(LATER, &[("date", DATE)]));
        assert!(!since(EARLIER, &[("date", DATE)]));
        assert!(!since(DATE, &[("date", DATE), ("last-modified", "yesterday")]));
        assert!(!since(DATE, &[]));
    }

    /// RFC 9110, section 13.2.1.
    #[test]
    fn conditions_count_for_a_success_alone() {
        let request = header_map(&[("if-none-match", "\"a\""), ("range", "bytes=0-1")]);
        let stored = header_map(&[("etag", "\"a\"")]);
        let at = |status| {
            select(&request, false, StatusCode::from_u16(status).unwrap(), &stored, LENGTH)
        };
        assert_eq!(at(200), Selection::NotModified);
        assert_eq!(at(203), Selection::NotModified);
        assert_eq!(at(301), Selection::Full);
        assert_eq!(at(404), Selection::Full);
    }

    #[test]
    fn a_head_gets_no_body_and_no_range() {
        let stored = header_map(&[("etag", "\"a\"")]);
        let head = |request| select(&header_map(request), true, StatusCode::OK, &stored, LENGTH);
        assert_eq!(head(&[]), Selection::Head);
        assert_eq!(head(&[("range", "bytes=0-1")]), Selection::Head);
        assert_eq!(head(&[("if-none-match", "\"a\"")]), Selection::NotModified);
    }

    /// RFC 9110, section 14.1.2.
    #[test]
    fn one_range_of_bytes_is_cut_out() {
        let cut = |start, end| Selection::Range { start, end };
        for (value, selection) in [
            ("bytes=0-1", cut(0, 2)),
            ("Bytes=0-0", cut(0, 1)),
            ("bytes=1-", cut(1, 10)),
            ("bytes=9-", cut(9, 10)),
            ("bytes=-1", cut(9, 10)),
            ("bytes=-10", cut(0, 10)),
            ("bytes=-99", cut(0, 10)),
            ("bytes=8-99", cut(8, 10)),
            ("bytes=0-18446744073709551615", cut(0, 10)),
            ("bytes=0-99999999999999999999999999", cut(0, 10)),
            ("bytes=10-", Selection::Unsatisfiable),
            ("bytes=10-12", Selection::Unsatisfiable),
            ("bytes=99999999999999999999999999-", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
            ("bytes=2-1", Selection::Full),
            ("bytes=0-1,3-4", Selection::Full),
            ("bytes=0-1,", Selection::Full),
            ("bytes=-", Selection::Full),
            ("bytes=", Selection::Full),
            ("bytes=a-b", Selection::Full),
            ("bytes=1", Selection::Full),
            ("bytes=--1", Selection::Full),
            ("bytes=+1-2", Selection::Full),
            ("bytes =0-1", Selection::Full),
            ("rows=0-1", Selection::Full),
            ("", Selection::Full),
        ] {
            assert_eq!(range(value, LENGTH), selection, "{value}");
        }
        assert_eq!(range("bytes=0-", 0), Selection::Unsatisfiable);
        assert_eq!(range("bytes=-5", 0), Selection::Full);
    }

    #[test]
    fn only_a_200_that_allows_it_is_cut() {
        let request = header_map(&[("range", "bytes=0-1")]);
        let status = StatusCode::NOT_FOUND;
        let full = select(&request, false, status, &HeaderMap::new(), LENGTH);
        assert_eq!(full, Selection::Full);
        let range = [("range", "bytes=0-1")];
        assert_eq!(selected(&range, &[("accept-ranges", "none")]), Selection::Full);
        let bytes = selected(&range, &[("accept-ranges", "bytes")]);
        assert_eq!(bytes, Selection::Range { start: 0, end: 2 });
        let twice = [("range", "bytes=0-1"), ("range", "bytes=2-3")];
        assert_eq!(selected(&twice, &[]), Selection::Full);
    }

    /// RFC 9110, section 13.1.5.
    #[test]
    fn a_range_depends_on_a_strong_validator() {
        let holds = |condition, stored: Lines<'_>| {
            let request = [("range", "bytes=0-1"), ("if-range", condition)];
            matches!(selected(&request, stored), Selection::Range { .. })
        };
        assert!(holds("\"a\"", &[("etag", "\"a\"")]));
        assert!(!holds("\"a\"", &[("etag", "\"b\"")]));
        assert!(!holds("\"a\"", &[("etag", "W/\"a\"")]));
        assert!(!holds("W/\"a\"", &[("etag", "W/\"a\"")]));
        assert!(!holds("\"a\"", &[]));
        assert!(holds(DATE, &[("last-modified", DATE), ("date", LATER)]));
        assert!(!holds(DATE, &[("last-modified", DATE), ("date", DATE)]), "a weak date");
        assert!(!holds(DATE, &[("last-modified", DATE)]));
        assert!(!holds(LATER, &[("last-modified", DATE), ("date", LATER)]), "not the same");
        assert!(!holds("yesterday", &[("last-modified", DATE), ("date", LATER)]));
        let twice = [("range", "bytes=0-1"), ("if-range", "\"a\""), ("if-range", "\"a\"")];
        assert_eq!(selected(&twice, &[("etag", "\"a\"")]), Selection::Full);
    }

    /// RFC 9111, section 4.3.1.
    #[test]
    fn what_is_stored_is_revalidated_by_all_its_validators() {
        let stored = header_map(&[("etag", "W/\"a\""), ("last-modified", DATE)]);
        let mut request = header_map(&[
            ("accept", "a"),
            ("if-match", "\"b\""),
            ("if-none-match", "\"b\""),
            ("if-none-match", "\"c\""),
            ("if-modified-since", LATER),
            ("if-unmodified-since", LATER),
            ("if-range", "\"b\""),
            ("range", "bytes=0-1"),
        ]);
        revalidation(&stored).unwrap().apply(&mut request);
        let expected = [("accept", "a"), ("if-none-match", "W/\"a\""), ("if-modified-since", DATE)];
        assert_eq!(request, header_map(&expected));
        unconditional(&mut request);
        assert_eq!(request, header_map(&[("accept", "a")]));
    }

    #[test]
    fn without_a_validator_there_is_nothing_to_ask() {
        assert_eq!(revalidation(&HeaderMap::new()), None);
        assert_eq!(revalidation(&header_map(&[("last-modified", "yesterday")])), None);
        let mut request = HeaderMap::new();
        let dated = header_map(&[("last-modified", DATE)]);
        revalidation(&dated).unwrap().apply(&mut request);
        assert_eq!(request, header_map(&[("if-modified-since", DATE)]));
    }
}
