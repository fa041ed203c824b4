//! Which header fields are stored, and how a 304 changes them (RFC 9111, sections 3.1 and 3.2).

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{Rules, date};

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

/// Whether `Connection` declares the field to concern one connection only (RFC 9110, section 7.6.1).
fn is_named_by_connection(name: &HeaderName, headers: &HeaderMap) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|line| {
        let mut options = line.as_bytes().split(|&byte| byte == b',');
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
    })
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
