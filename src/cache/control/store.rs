//! Whether a response may be stored (RFC 9111, section 3), and for how long.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::{
    Freshness, Output, RequestDirectives, Rules, date,
    directives::{CDN_CACHE_CONTROL, Directives, delta_seconds},
    fields::single,
    vary,
};
use crate::head::RequestHead;

/// What no rule of thumb exceeds.
const LONGEST_HEURISTIC: Duration = Duration::from_secs(24 * 60 * 60);

/// What storing must know of the request, which the handler has consumed by then.
#[derive(Debug, Clone)]
pub(crate) struct RequestFacts {
    pub(crate) method: Method,
    pub(crate) authorization: bool,
    /// To see it reflected in `Access-Control-Allow-Origin`.
    pub(crate) origin: Option<HeaderValue>,
    pub(crate) directives: RequestDirectives,
    /// It says who asks, so that what comes of it says little about what comes to others.
    pub(crate) is_credentialed: bool,
}

impl RequestFacts {
    pub(crate) fn new(head: RequestHead<'_>, rules: &Rules) -> Self {
        let headers = head.headers();
        let honoured = rules.honour_request && rules.output.is_none();
        Self {
            method: head.method().clone(),
            authorization: headers.contains_key(header::AUTHORIZATION),
            is_credentialed: headers.contains_key(header::AUTHORIZATION)
                || headers.contains_key(header::COOKIE),
            origin: headers.get(header::ORIGIN).cloned(),
            directives: if honoured {
                RequestDirectives::of(headers)
            } else {
                RequestDirectives::default()
            },
        }
    }
}

/// When a response came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    /// The wall clock, since the Unix epoch.
    pub(crate) now: Duration,
    /// The time since the request.
    pub(crate) delay: Duration,
}

/// That a response may be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Storable {
    pub(crate) freshness: Freshness,
    /// The request fields that select it; sorted, each once.
    pub(crate) vary: Vec<HeaderName>,
    /// Its life in the storage; never zero.
    pub(crate) keep: Duration,
}

/// Why a response is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Method,
    RequestNoStore,
    Authorization,
    Status,
    Partial,
    Upgrade,
    EventStream,
    Challenge,
    SetCookie,
    NoStore,
    Private,
    /// `no-cache` where nothing could be revalidated: in output mode, or without a validator.
    NoCache,
    VaryAll,
    VaryCookie,
    /// Nothing says for how long, or it is over already.
    NoFreshness,
}

impl Refusal {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::RequestNoStore => "request-no-store",
            Self::Authorization => "authorization",
            Self::Status => "status",
            Self::Partial => "partial",
            Self::Upgrade => "upgrade",
            Self::EventStream => "event-stream",
            Self::Challenge => "challenge",
            Self::SetCookie => "set-cookie",
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::NoCache => "no-cache",
            Self::VaryAll => "vary-all",
            Self::VaryCookie => "vary-cookie",
            Self::NoFreshness => "no-freshness",
        }
    }

    /// Whether the next answer to this target will hardly be stored either, so that nobody need wait
    /// for it. What this one request has caused says nothing about the next.
    pub(crate) fn is_remembered(self) -> bool {
        match self {
            Self::EventStream
            | Self::SetCookie
            | Self::NoStore
            | Self::Private
            | Self::NoCache
            | Self::VaryAll
            | Self::VaryCookie
            | Self::NoFreshness => true,
            Self::Method
            | Self::RequestNoStore
            | Self::Authorization
            | Self::Status
            | Self::Partial
            | Self::Upgrade
            | Self::Challenge => false,
        }
    }
}

/// Whether a response may be stored, decided at its head.
pub(crate) fn store(
    request: &RequestFacts,
    status: StatusCode,
    headers: &HeaderMap,
    rules: &Rules,
    arrival: Arrival,
) -> Result<Storable, Refusal> {
    judge(request, status, headers, rules, arrival).map_err(|refusal| {
        // What an error says about itself holds for the error, not for the target.
        if blames_the_moment(status) { Refusal::Status } else { refusal }
    })
}

/// Errors of the server, and of the client but for those that belong to the target itself.
fn blames_the_moment(status: StatusCode) -> bool {
    let of_the_target =
        matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::GONE);
    status.as_u16() >= 400 && !of_the_target
}

fn judge(
    request: &RequestFacts,
    status: StatusCode,
    headers: &HeaderMap,
    rules: &Rules,
    arrival: Arrival,
) -> Result<Storable, Refusal> {
    // A stored HEAD must never answer a GET, so only GET is stored.
    if request.method != Method::GET {
        return Err(Refusal::Method);
    }
    if request.directives.no_store {
        return Err(Refusal::RequestNoStore);
    }
    refuse_by_kind(status, headers, rules)?;
    let directives = Directives::of(headers, rules);
    let overlooked =
        rules.output.is_none() && directives.understood_suffices() && is_understood(status);
    if directives.must_understand && !is_understood(status) {
        return Err(Refusal::Status);
    }
    if directives.no_store && !overlooked {
        return Err(Refusal::NoStore);
    }
    if directives.private {
        return Err(Refusal::Private);
    }
    let authorise = directives.authorise() && rules.output.is_none();
    let authorized = rules.keyed_principal || authorise;
    if request.authorization && !authorized {
        return Err(Refusal::Authorization);
    }
    let vary = selecting_fields(request, headers)?;
    let mut freshness = match &rules.output {
        Some(output) => by_route(status, &directives, output)?,
        None => by_http(status, headers, &directives, rules, arrival)?,
    };
    freshness.authorized = authorized;
    let can_be_revalidated = status.is_success() && has_validator(headers, arrival.now);
    let keep = life(&freshness, can_be_revalidated, rules);
    if keep.is_zero() {
        return Err(if freshness.always_revalidate {
            Refusal::NoCache
        } else {
            Refusal::NoFreshness
        });
    }
    Ok(Storable { freshness, vary, keep })
}

/// What is never stored, whatever it says about itself.
fn refuse_by_kind(status: StatusCode, headers: &HeaderMap, rules: &Rules) -> Result<(), Refusal> {
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::Upgrade);
    }
    if status == StatusCode::PARTIAL_CONTENT || claims_a_range(headers) {
        return Err(Refusal::Partial);
    }
    // Interim responses, 304 which has no content of its own, and what is no status at all.
    if !(200..600).contains(&status.as_u16()) || status == StatusCode::NOT_MODIFIED {
        return Err(Refusal::Status);
    }
    if never_ends(headers) {
        return Err(Refusal::EventStream);
    }
    if headers.contains_key(header::WWW_AUTHENTICATE) {
        return Err(Refusal::Challenge);
    }
    if headers.contains_key(header::SET_COOKIE) && !rules.strip_set_cookie {
        return Err(Refusal::SetCookie);
    }
    Ok(())
}

/// `Content-Range` means nothing but in a 206 or 416 (RFC 9110, section 14.4). Yet who says `bytes`
/// has most likely sent a part.
fn claims_a_range(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_RANGE).iter().any(|value| {
        let unit = value.as_bytes().trim_ascii_start().get(..5);
        unit.is_some_and(|unit| unit.eq_ignore_ascii_case(b"bytes"))
    })
}

fn never_ends(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_TYPE).iter().any(|value| {
        let kind = value.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default();
        let kind = kind.trim_ascii();
        kind.eq_ignore_ascii_case(b"text/event-stream")
            || kind.eq_ignore_ascii_case(b"multipart/x-mixed-replace")
    })
}

/// What `Vary` says, and what it forgot.
fn selecting_fields(
    request: &RequestFacts,
    headers: &HeaderMap,
) -> Result<Vec<HeaderName>, Refusal> {
    let mut fields = vary(headers).ok_or(Refusal::VaryAll)?;
    if fields.contains(&header::COOKIE) {
        return Err(Refusal::VaryCookie);
    }
    if headers.contains_key(header::CONTENT_ENCODING) {
        fields.push(header::ACCEPT_ENCODING);
    }
    let mut allowed = headers.get_all(header::ACCESS_CONTROL_ALLOW_ORIGIN).iter();
    if request.origin.as_ref().is_some_and(|origin| allowed.any(|value| value == origin)) {
        fields.push(header::ORIGIN);
    }
    fields.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
    fields.dedup();
    Ok(fields)
}

fn by_route(
    status: StatusCode,
    directives: &Directives,
    output: &Output,
) -> Result<Freshness, Refusal> {
    if directives.no_cache {
        return Err(Refusal::NoCache);
    }
    let lifetime = match output.negative.iter().find(|(negative, _)| *negative == status) {
        Some((_, ttl)) => *ttl,
        None if matches!(status.as_u16(), 200 | 203 | 204 | 301 | 308) => output.ttl,
        None => return Err(Refusal::Status),
    };
    Ok(Freshness {
        lifetime,
        initial_age: Duration::ZERO,
        stale_while_revalidate: output.stale_while_revalidate,
        stale_if_error: output.stale_if_error,
        always_revalidate: false,
        must_revalidate: false,
        authorized: false,
        heuristic: false,
    })
}

fn by_http(
    status: StatusCode,
    headers: &HeaderMap,
    directives: &Directives,
    rules: &Rules,
    arrival: Arrival,
) -> Result<Freshness, Refusal> {
    let now = arrival.now;
    let date = born(headers, now);
    let cacheable_by_default = is_heuristically_cacheable(status) || directives.explicitly_public();
    let (lifetime, heuristic) = match explicit(headers, directives, date, now) {
        Some(lifetime) => (lifetime, false),
        // Nothing says that this status may be stored (RFC 9111, section 3).
        None if !cacheable_by_default && directives.no_cache => return Err(Refusal::NoCache),
        None if !cacheable_by_default => return Err(Refusal::Status),
        None => (heuristic(headers, date, now), true),
    };
    let has_window = [directives.stale_while_revalidate, directives.stale_if_error]
        .into_iter()
        .flatten()
        .any(|window| !window.is_zero());
    let implied = directives.s_maxage.is_some() && !(rules.stale_despite_s_maxage && has_window);
    let must_revalidate = directives.must_revalidate || directives.proxy_revalidate || implied;
    let never_stale = must_revalidate || directives.no_cache;
    let allowed = |window: Option<Duration>| match window {
        Some(window) if !never_stale => window,
        _ => Duration::ZERO,
    };
    Ok(Freshness {
        lifetime,
        initial_age: initial_age(headers, date, arrival),
        stale_while_revalidate: allowed(directives.stale_while_revalidate),
        stale_if_error: allowed(directives.stale_if_error),
        always_revalidate: directives.no_cache,
        must_revalidate,
        authorized: false,
        heuristic,
    })
}

/// What bears no `Date`, or none that can be read, was made when it came.
fn born(headers: &HeaderMap, now: Duration) -> u64 {
    single(headers, &header::DATE)
        .and_then(|value| date::parse_value(value, now))
        .unwrap_or(now.as_secs())
}

/// RFC 9111, section 4.2.1.
fn explicit(
    headers: &HeaderMap,
    directives: &Directives,
    date: u64,
    now: Duration,
) -> Option<Duration> {
    if let Some(lifetime) = directives.s_maxage.or(directives.max_age) {
        return Some(lifetime);
    }
    if directives.targeted || !headers.contains_key(header::EXPIRES) {
        return None;
    }
    // What cannot be read, and what is said twice, is in the past (RFC 9111, section 5.3).
    let expires = single(headers, &header::EXPIRES).and_then(|value| date::parse_value(value, now));
    Some(Duration::from_secs(expires.unwrap_or(0).saturating_sub(date)))
}

/// RFC 9111, section 4.2.2.
fn heuristic(headers: &HeaderMap, date: u64, now: Duration) -> Duration {
    let modified = single(headers, &header::LAST_MODIFIED)
        .and_then(|value| date::parse_value(value, now))
        .unwrap_or(date);
    (Duration::from_secs(date.saturating_sub(modified)) / 10).min(LONGEST_HEURISTIC)
}

/// RFC 9111, section 4.2.3. Of several values of `Age` the first counts, and one that is no number is
/// ignored (section 5.1).
fn initial_age(headers: &HeaderMap, date: u64, arrival: Arrival) -> Duration {
    let said = headers.get(header::AGE).and_then(|value| {
        let first = value.as_bytes().split(|&byte| byte == b',').next().unwrap_or_default();
        delta_seconds(first.trim_ascii())
    });
    let apparent = Duration::from_secs(arrival.now.as_secs().saturating_sub(date));
    apparent.max(said.unwrap_or_default().saturating_add(arrival.delay))
}

fn has_validator(headers: &HeaderMap, now: Duration) -> bool {
    headers.contains_key(header::ETAG)
        || single(headers, &header::LAST_MODIFIED)
            .is_some_and(|value| date::parse_value(value, now).is_some())
}

/// How long it can be of use.
fn life(freshness: &Freshness, can_be_revalidated: bool, rules: &Rules) -> Duration {
    let left = freshness.lifetime.saturating_sub(freshness.initial_age);
    let as_it_is = if freshness.always_revalidate {
        Duration::ZERO
    } else {
        let unreachable = match freshness.must_revalidate {
            true => Duration::ZERO,
            false => rules.stale_if_unreachable,
        };
        let window =
            freshness.stale_while_revalidate.max(freshness.stale_if_error).max(unreachable);
        freshness.lifetime.saturating_add(window).saturating_sub(freshness.initial_age)
    };
    let to_be_revalidated = match can_be_revalidated {
        true => left.saturating_add(rules.keep_stale),
        false => Duration::ZERO,
    };
    as_it_is.max(to_be_revalidated).min(rules.longest_life)
}

/// RFC 9110, section 15.1.
fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// The statuses of RFC 9110 and those beside it that ask nothing of a cache.
fn is_understood(status: StatusCode) -> bool {
    status.canonical_reason().is_some()
}

/// What [`store`] says after a 304: `merged` are the fields that [`super::freshen`] made of the
/// stored ones and those of the 304.
///
/// A 304 that says nothing about its life leaves things as they were. Only so does a life that came
/// from our own targeted field, which is not among the stored ones, outlast the revalidation.
pub(crate) fn revalidated(
    request: &RequestFacts,
    status: StatusCode,
    merged: &HeaderMap,
    not_modified: &HeaderMap,
    previous: &Freshness,
    rules: &Rules,
    arrival: Arrival,
) -> Result<Storable, Refusal> {
    let mut fields = merged.clone();
    if let Some(target) = &rules.target {
        for value in not_modified.get_all(target) {
            fields.append(target.clone(), value.clone());
        }
    }
    let speaks = [&CDN_CACHE_CONTROL, &header::CACHE_CONTROL, &header::EXPIRES]
        .into_iter()
        .chain(&rules.target)
        .any(|name| not_modified.contains_key(name));
    if speaks || rules.output.is_some() || previous.heuristic {
        return store(request, status, &fields, rules, arrival);
    }
    if request.directives.no_store {
        return Err(Refusal::RequestNoStore);
    }
    let date = born(merged, arrival.now);
    let freshness =
        Freshness { initial_age: initial_age(not_modified, date, arrival), ..*previous };
    let vary = selecting_fields(request, merged)?;
    let keep = life(&freshness, has_validator(merged, arrival.now), rules);
    if keep.is_zero() {
        return Err(Refusal::NoFreshness);
    }
    Ok(Storable { freshness, vary, keep })
}

#[cfg(test)]
mod tests;
