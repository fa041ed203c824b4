//! What responses say about limits: from verdicts to exact header bytes.

use std::time::Duration;

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, Entry},
};

pub(crate) use self::shown::Shown;
use self::text::{LARGEST_INTEGER, number_in, separate, whole_seconds};
use crate::{
    clock,
    number::{digits, number, push_number, value},
    quota::Algorithm,
    storage::Verdict,
};

mod shown;
mod text;

/// The most units that can be there at once, of the quota nearest to its end.
pub const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
/// The units left of that quota.
pub const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
/// When all of that quota is there again, as [`ResetFormat`] has it.
pub const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
/// What is left of each quota (draft-ietf-httpapi-ratelimit-headers).
pub const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// Which quotas there are (draft-ietf-httpapi-ratelimit-headers).
pub const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// All header fields that limits add, for `Access-Control-Expose-Headers`: scripts from other
/// origins see no others than those that are exposed.
///
/// # Examples
///
/// ```
/// // tower_http::cors::CorsLayer::new().expose_headers(EXPOSED_HEADERS)
/// use tower_keep::rate_limit::{EXPOSED_HEADERS, X_RATELIMIT_REMAINING};
///
/// assert!(EXPOSED_HEADERS.contains(&X_RATELIMIT_REMAINING));
/// assert!(EXPOSED_HEADERS.contains(&http::header::RETRY_AFTER));
/// ```
pub const EXPOSED_HEADERS: [HeaderName; 6] = [
    X_RATELIMIT_LIMIT,
    X_RATELIMIT_REMAINING,
    X_RATELIMIT_RESET,
    RATELIMIT,
    RATELIMIT_POLICY,
    header::RETRY_AFTER,
];

/// How `X-RateLimit-Reset` states a time; nothing standardises it and clients expect either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ResetFormat {
    /// Seconds from now: right whatever the client's clock says.
    #[default]
    DeltaSeconds,
    /// Seconds since the Unix epoch, as GitHub has it.
    UnixTime,
}

/// A revision of draft-ietf-httpapi-ratelimit-headers; the revisions differ in meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Draft {
    /// Revision 11, of May 2026.
    #[default]
    V11,
}

/// Which header fields a limit adds to responses; all of them unless told otherwise.
///
/// `X-RateLimit-Limit`, `-Remaining` and `-Reset` tell of one quota, the one that is nearest to its
/// end or, in a refusal, the one that refuses for longest. `RateLimit` and `RateLimit-Policy` list
/// every quota. `Retry-After` is on refusals only: whole seconds, rounded up, after
/// which a client that is alone is admitted.
///
/// Several limits may be stacked, and handlers may set such fields themselves. Of `X-RateLimit-*`
/// the three of the tighter limit stay (those of a refusal always), the lists are appended to, and
/// of `Retry-After` the longer one stays.
///
/// # Examples
///
/// ```
/// use tower_keep::rate_limit::{Headers, ResetFormat};
///
/// let like_github = Headers::none().with_x_rate_limit(ResetFormat::UnixTime).with_retry_after();
/// let without_the_draft = Headers::new().without_draft();
/// assert_ne!(like_github, without_the_draft);
/// assert_eq!(Headers::new(), Headers::default());
/// ```
///
/// # Security
///
/// What is left of a quota is a hint to whoever attacks what it guards: for a limit on logins,
/// [`none`](Self::none) is better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headers {
    x_rate_limit: Option<ResetFormat>,
    draft: Option<Draft>,
    retry_after: bool,
}

impl Default for Headers {
    fn default() -> Self {
        Self::new()
    }
}

impl Headers {
    /// All of them, in their default forms.
    pub const fn new() -> Self {
        Self {
            x_rate_limit: Some(ResetFormat::DeltaSeconds),
            draft: Some(Draft::V11),
            retry_after: true,
        }
    }

    /// None of them.
    pub const fn none() -> Self {
        Self { x_rate_limit: None, draft: None, retry_after: false }
    }

    /// Adds `X-RateLimit-*`, with this form of `-Reset`.
    #[must_use]
    pub const fn with_x_rate_limit(mut self, reset: ResetFormat) -> Self {
        self.x_rate_limit = Some(reset);
        self
    }

    /// Leaves `X-RateLimit-*` out.
    #[must_use]
    pub const fn without_x_rate_limit(mut self) -> Self {
        self.x_rate_limit = None;
        self
    }

    /// Adds `RateLimit` and `RateLimit-Policy`, of this revision of the draft.
    #[must_use]
    pub const fn with_draft(mut self, draft: Draft) -> Self {
        self.draft = Some(draft);
        self
    }

    /// Leaves `RateLimit` and `RateLimit-Policy` out.
    #[must_use]
    pub const fn without_draft(mut self) -> Self {
        self.draft = None;
        self
    }

    /// Adds `Retry-After` to refusals.
    #[must_use]
    pub const fn with_retry_after(mut self) -> Self {
        self.retry_after = true;
        self
    }

    /// Leaves `Retry-After` out.
    #[must_use]
    pub const fn without_retry_after(mut self) -> Self {
        self.retry_after = false;
        self
    }

    /// The `RateLimit-Policy` of these quotas, if it is wanted: it is the same on all responses.
    pub(crate) fn policy_value(&self, quotas: &[Shown]) -> Option<HeaderValue> {
        let Draft::V11 = self.draft?;
        let mut text = Vec::new();
        for shown in quotas {
            separate(&mut text);
            text.extend_from_slice(&shown.name);
            text.extend_from_slice(b";q=");
            push_number(&mut text, shown.quota.limit().into());
            text.extend_from_slice(b";w=");
            push_number(&mut text, whole_seconds(shown.quota.period()).max(1));
        }
        (!text.is_empty()).then(|| value(text))
    }

    /// Tells of these quotas. `policy` is their [`policy_value`](Self::policy_value).
    pub(crate) fn write<'a>(
        &self,
        headers: &mut HeaderMap,
        policy: Option<&HeaderValue>,
        outcomes: impl Iterator<Item = (&'a Shown, &'a Verdict)> + Clone,
    ) {
        // The map grows once, not at each field; axum adds the content's length later.
        let (xs, drafts) = (self.x_rate_limit.map_or(0, |_| 3), self.draft.map_or(0, |_| 2));
        headers.reserve(xs + drafts + 1);
        if let Some(format) = self.x_rate_limit
            && let Some((shown, verdict)) = outcomes.clone().reduce(nearer_to_its_end)
        {
            write_x_rate_limit(headers, shown, verdict, format);
        }
        if let Some(Draft::V11) = self.draft
            && let Some(policy) = policy
        {
            headers.append(RATELIMIT, rate_limit_value(outcomes));
            headers.append(RATELIMIT_POLICY, policy.clone());
        }
    }

    /// Tells when to come back, unless the response already asks for more patience.
    pub(crate) fn write_retry_after(&self, headers: &mut HeaderMap, seconds: u64) {
        if self.retry_after
            && number_in(headers, &header::RETRY_AFTER).is_none_or(|already| already < seconds)
        {
            headers.insert(header::RETRY_AFTER, number(seconds));
        }
    }
}

/// The seconds for `Retry-After`: until every quota that refuses has room. `None` if none refuses,
/// or if one will never have room, so that trying again is no use.
///
/// Not below any `t` of a quota that refuses (draft-11: a client that sees both must not be sent
/// back early).
pub(crate) fn retry_after<'a>(verdicts: impl IntoIterator<Item = &'a Verdict>) -> Option<u64> {
    let mut longest = None;
    for verdict in verdicts.into_iter().filter(|verdict| !verdict.allowed) {
        let wait = verdict.retry_after?.max(verdict.replenish_after);
        longest = longest.max(Some(wait));
    }
    Some(whole_seconds(longest?).max(1))
}

type Outcome<'a> = (&'a Shown, &'a Verdict);

/// Of two quotas the one that a client meets first; the earlier one if they are equal.
fn nearer_to_its_end<'a>(a: Outcome<'a>, b: Outcome<'a>) -> Outcome<'a> {
    let key = |verdict: &Verdict| verdict.retry_after.unwrap_or(Duration::MAX);
    let b_first = match (a.1.allowed, b.1.allowed) {
        (true, false) => true,
        (false, true) => false,
        (false, false) => key(b.1) > key(a.1),
        (true, true) => {
            let of = |share: &Verdict, other: &Verdict| {
                u64::from(share.remaining) * u64::from(other.limit)
            };
            of(b.1, a.1) < of(a.1, b.1)
        }
    };
    if b_first { b } else { a }
}

fn write_x_rate_limit(
    headers: &mut HeaderMap,
    shown: &Shown,
    verdict: &Verdict,
    format: ResetFormat,
) {
    let limit = if verdict.limit == shown.quota.capacity() {
        shown.limit.clone()
    } else {
        // A share of the quota, while the storage is out of reach.
        number(verdict.limit.into())
    };
    let reset = match format {
        ResetFormat::DeltaSeconds => whole_seconds(verdict.reset_after),
        ResetFormat::UnixTime => {
            unix_reset(clock::since_epoch(), verdict.reset_after, shown.quota.algorithm())
        }
    };
    // The entry is taken first because looking costs as much as inserting, a hash of the name.
    if let Entry::Vacant(entry) = headers.entry(X_RATELIMIT_LIMIT) {
        entry.insert(limit);
    } else if is_tighter(verdict, headers) {
        headers.insert(X_RATELIMIT_LIMIT, limit);
    } else {
        return;
    }
    headers.insert(X_RATELIMIT_REMAINING, number(verdict.remaining.into()));
    headers.insert(X_RATELIMIT_RESET, number(reset));
}

/// Whether the verdict leaves less than what the response says already.
fn is_tighter(verdict: &Verdict, headers: &HeaderMap) -> bool {
    if !verdict.allowed {
        return true;
    }
    if headers.contains_key(header::RETRY_AFTER) {
        // An inner layer refused; its numbers explain why.
        return false;
    }
    match (number_in(headers, &X_RATELIMIT_REMAINING), number_in(headers, &X_RATELIMIT_LIMIT)) {
        (Some(remaining), Some(limit)) => {
            u128::from(verdict.remaining) * u128::from(limit)
                < u128::from(remaining) * u128::from(verdict.limit)
        }
        _ => true,
    }
}

/// The second in which the quota is whole again, rounded up.
///
/// The storage's clock is read before ours, so the sum comes out a little late. Calendar periods
/// end on a whole second: without rounding to it they would always seem to end a second later.
fn unix_reset(now: Duration, reset_after: Duration, algorithm: Algorithm) -> u64 {
    let at = now.saturating_add(reset_after);
    match algorithm {
        Algorithm::CalendarDay | Algorithm::CalendarMonth => {
            at.saturating_add(Duration::from_millis(500)).as_secs()
        }
        _ => whole_seconds(at),
    }
}

fn rate_limit_value<'a>(outcomes: impl Iterator<Item = Outcome<'a>> + Clone) -> HeaderValue {
    let parameters = |(shown, verdict): Outcome<'a>| {
        // With a burst above the limit more may be there than `q`; what `r` announces a client may
        // spend at once, so it is not more than a window's worth.
        let available = u64::from(verdict.remaining.min(shown.quota.limit()));
        // A whole quota has nothing to wait for, and `t` is optional.
        let wait = (!verdict.replenish_after.is_zero())
            .then(|| whole_seconds(verdict.replenish_after).min(LARGEST_INTEGER));
        (&shown.name, available, wait)
    };
    // The exact length first: a Vec that is full becomes a header value without being copied.
    let length: usize = outcomes
        .clone()
        .map(parameters)
        .map(|(name, available, wait)| {
            1 + name.len() + 3 + digits(available) + wait.map_or(0, |wait| 3 + digits(wait))
        })
        .sum();
    let mut text = Vec::with_capacity(length.saturating_sub(1));
    for (name, available, wait) in outcomes.map(parameters) {
        separate(&mut text);
        text.extend_from_slice(name);
        text.extend_from_slice(b";r=");
        push_number(&mut text, available);
        if let Some(wait) = wait {
            text.extend_from_slice(b";t=");
            push_number(&mut text, wait);
        }
    }
    value(text)
}

#[cfg(test)]
mod tests;
