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
