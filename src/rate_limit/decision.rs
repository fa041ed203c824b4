//! What was decided about one request.

use std::{fmt, ops::Deref, sync::Arc, time::Duration};

use http::HeaderMap;

use super::{
    Rejection, RejectionKind, headers,
    limiter::InForce,
    policy::{QuotaItem, QuotaSet},
    tier::Choice,
};
use crate::{
    Quota,
    storage::{Identity, Verdict},
};

/// What was decided about one request or check, quota by quota.
///
/// The layer puts it into the request's extensions; in axum, take it as an extractor argument. A
/// cheap handle.
///
/// # Examples
///
/// ```
/// use tower_keep::{Limiter, MemoryStorage, rate_limit::Policy};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limiter = Limiter::new(MemoryStorage::new(), Policy::new("otp", "3/min strict".parse()?));
/// let decision = limiter.check("+49 30 1234567").await?;
/// assert!(decision.is_allowed());
/// assert_eq!(decision.remaining(), Some(2));
/// # Ok(())
/// # }
/// ```
#[must_use = "a refusal is no error: ask `is_allowed`, or turn it into one with `into_result`"]
#[derive(Clone)]
pub struct Decision(Arc<Inner>);

pub(super) struct Inner {
    pub(super) rules: Arc<InForce>,
    pub(super) choice: Choice,
    pub(super) identity: Identity,
    /// Empty if the storage gave no answer and everything passes.
    pub(super) verdicts: Verdicts,
    pub(super) enforced: bool,
    /// Decided by the process itself, because the storage gave no answer.
    pub(super) degraded: bool,
    /// The limiter that decided, by address.
    pub(super) limiter: usize,
    /// What an outer layer decided about the same request.
    pub(super) outer: Option<Decision>,
}

/// The verdicts of a decision; a single one, the usual case, without an allocation of its own.
pub(super) enum Verdicts {
    One([Verdict; 1]),
    Several(Vec<Verdict>),
}

impl Deref for Verdicts {
    type Target = [Verdict];

    fn deref(&self) -> &[Verdict] {
        match self {
            Self::One(verdict) => verdict,
            Self::Several(verdicts) => verdicts,
        }
    }
}

/// One quota's part of a [`Decision`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct QuotaVerdict<'a> {
    /// The name in header fields and problem details.
    pub name: &'a str,
    /// The quota.
    pub quota: Quota,
    /// What became of it.
    pub verdict: &'a Verdict,
}

impl Inner {
    pub(super) fn set(&self) -> &QuotaSet {
        let set = self.rules.policy.quotas_of(self.choice);
        set.expect("without quotas there is nothing to decide")
    }
}

impl Decision {
    pub(super) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.0
    }

    /// The same decision after its units have changed.
    pub(super) fn with_verdicts(&self, verdicts: Vec<Verdict>) -> Self {
        let Inner { rules, choice, identity, enforced, degraded, limiter, outer, .. } = &*self.0;
        Self::new(Inner {
            rules: Arc::clone(rules),
            choice: *choice,
            identity: identity.clone(),
            verdicts: Verdicts::Several(verdicts),
            enforced: *enforced,
            degraded: *degraded,
            limiter: *limiter,
            outer: outer.clone(),
        })
    }

    /// Whether it may go on.
    pub fn is_allowed(&self) -> bool {
        !self.0.enforced || !self.would_refuse()
    }

    /// Whether a quota had no room; in shadow it may go on all the same.
    pub fn would_refuse(&self) -> bool {
        self.0.verdicts.iter().any(|verdict| !verdict.allowed)
    }

    /// Whether the storage gave no answer, so that this process decided by the policy's
    /// [`Outage`](super::Outage).
    pub fn is_degraded(&self) -> bool {
        self.0.degraded
    }

    /// The name of the policy.
    pub fn policy(&self) -> &str {
        self.0.rules.policy.name()
    }

    /// Each quota's verdict. None if the storage gave no answer and everything passes.
    pub fn quotas(&self) -> impl ExactSizeIterator<Item = QuotaVerdict<'_>> {
        self.0.set().items.iter().zip(&*self.0.verdicts).map(|(item, verdict)| QuotaVerdict {
            name: item.shown.name(),
            quota: item.shown.quota(),
            verdict,
        })
    }

    /// The least that any quota has left.
    pub fn remaining(&self) -> Option<u32> {
        self.0.verdicts.iter().map(|verdict| verdict.remaining).min()
    }

    /// Until the same would be allowed if nobody else spends: zero if it was, `None` if it costs
    /// more than a quota can ever hold.
    ///
    /// For a `Retry-After` field use [`write_headers`](Self::write_headers), which rounds up.
    pub fn retry_after(&self) -> Option<Duration> {
        let wait = |longest: Duration, verdict: &Verdict| {
            verdict.retry_after.map(|wait| longest.max(wait))
        };
        self.0.verdicts.iter().try_fold(Duration::ZERO, wait)
    }

    /// The decision if it may go on, otherwise the rejection to answer with.
    ///
    /// # Errors
    ///
    /// The [`Rejection`], if a quota had no room. In axum it is a response.
    pub fn into_result(self) -> Result<Self, Rejection> {
        if self.is_allowed() {
            Ok(self)
        } else {
            Err(Rejection::new(RejectionKind::QuotaExceeded(self)))
        }
    }

    /// What the next layer outside decided about the same request.
    pub fn outer(&self) -> Option<&Self> {
        self.0.outer.as_ref()
    }

    /// The quota that refuses, if it is the only one.
    pub(super) fn only_used_up(&self) -> Option<&QuotaItem> {
        let mut outcomes = self.0.set().items.iter().zip(&*self.0.verdicts);
        let (item, _) = outcomes.find(|(_, verdict)| !verdict.allowed)?;
        outcomes.all(|(_, verdict)| verdict.allowed).then_some(item)
    }

    /// Tells the client about its quotas, as far as the policy shows them: what the layer does to
    /// every response, for decisions of a [`Limiter`](super::Limiter). A refusal gets `Retry-After`.
    ///
    /// [`Rejection::to_response`] has them already.
    ///
    /// # Examples
    ///
    /// ```
    /// use http::HeaderMap;
    /// use tower_keep::{Limiter, MemoryStorage, rate_limit::Policy};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let limiter = Limiter::new(MemoryStorage::new(), Policy::new("otp", "1/min fixed".parse()?));
    /// let mut headers = HeaderMap::new();
    /// limiter.check("+49 30 1234567").await?.write_headers(&mut headers);
    /// assert_eq!(headers["x-ratelimit-remaining"], "0");
    /// assert!(!headers.contains_key("retry-after"));
    ///
    /// limiter.check("+49 30 1234567").await?.write_headers(&mut headers);
    /// assert_eq!(headers["retry-after"], "60");
    /// # Ok(())
    /// # }
    /// ```
    pub fn write_headers(&self, headers: &mut HeaderMap) {
        let Inner { rules, verdicts, enforced, .. } = &*self.0;
        let (policy, set) = (&rules.policy, self.0.set());
        let outcomes = set.items.iter().map(|item| &item.shown).zip(&**verdicts);
        // A client that is not held to a limit is not told of it.
        if *enforced && !verdicts.is_empty() {
            policy.headers.write(headers, set.policy_header.as_ref(), outcomes);
        }
        if !self.is_allowed()
            && let Some(seconds) = headers::retry_after(&**verdicts)
        {
            policy.headers.write_retry_after(headers, seconds);
        }
    }

    /// Whether it is taken back when the response repeats a stored one.
    pub(super) fn is_free_for_replays(&self) -> bool {
        !self.0.rules.policy.counts_replays
    }

    /// This decision and those of the layers outside.
    pub(super) fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |decision| decision.outer())
    }
}

impl fmt::Debug for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decision")
            .field("policy", &self.policy())
            .field("allowed", &self.is_allowed())
            .field("degraded", &self.is_degraded())
            .field("verdicts", &&*self.0.verdicts)
            .finish_non_exhaustive()
    }
}
