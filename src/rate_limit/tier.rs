//! Named sets of quotas, and who gets which.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use super::policy::{PolicyError, QuotaSet};
use crate::{Quota, RequestHead, storage::Name};

/// Named sets of quotas, of which a resolver picks one for each request.
///
/// A tier is not part of the key: who changes from one to the other keeps what was used, as far as
/// the tiers have quotas of one algorithm and period.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_keep::{Quota, rate_limit::{Policy, Tiers}};
///
/// let second = Duration::from_secs(1);
/// let hour = Duration::from_secs(3_600);
/// let tiers = Tiers::new()
///     .tier("free", [Quota::sliding_window(5, second), Quota::sliding_window(500, hour)])
///     .tier("pro", [Quota::sliding_window(50, second)])
///     .unlimited("internal");
///
/// #[derive(Clone)]
/// struct Plan(&'static str);
///
/// // Whoever has no plan has the quota of the policy itself.
/// let policy = Policy::new("api", Quota::sliding_window(1, second))
///     .with_tiers(tiers, |head| head.extensions().get::<Plan>().map(|plan| plan.0));
/// # let _ = policy;
/// ```
#[derive(Debug, Clone, Default)]
pub struct Tiers {
    tiers: Vec<(Name, Vec<Quota>)>,
}

impl Tiers {
    /// No tiers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tier whose quotas are decided together. A tier of that name is replaced.
    ///
    /// # Panics
    ///
    /// If the name is not of 1 to 64 characters from `a-z`, `A-Z`, `0-9`, `-`, `_`, `.`, or if
    /// there is no quota; see [`unlimited`](Self::unlimited).
    #[must_use]
    #[track_caller]
    pub fn tier(self, name: &str, quotas: impl IntoIterator<Item = Quota>) -> Self {
        let quotas: Vec<_> = quotas.into_iter().collect();
        assert!(!quotas.is_empty(), "tier {name:?} has no quota; say `unlimited` if that is meant");
        self.set(name, quotas)
    }

    /// Adds a tier without limits.
    ///
    /// # Panics
    ///
    /// If the name is not valid, as [`tier`](Self::tier).
    #[must_use]
    #[track_caller]
    pub fn unlimited(self, name: &str) -> Self {
        self.set(name, Vec::new())
    }

    #[track_caller]
    fn set(mut self, name: &str, quotas: Vec<Quota>) -> Self {
        let name = Name::new(name);
        self.tiers.retain(|(other, _)| *other != name);
        self.tiers.push((name, quotas));
        self
    }

    pub(super) fn compile(&self, policy: &Name) -> Result<CompiledTiers, PolicyError> {
        self.tiers
            .iter()
            .map(|(name, quotas)| {
                let set = if quotas.is_empty() {
                    None
                } else {
                    Some(Arc::new(QuotaSet::new(policy, quotas)?))
                };
                Ok((name.clone(), set))
            })
            .collect()
    }
}

/// Tiers with what their quotas need for keys and headers; `None` is unlimited.
pub(super) type CompiledTiers = Vec<(Name, Option<Arc<QuotaSet>>)>;

type TierFuture = Pin<Box<dyn Future<Output = Option<String>> + Send>>;
type Choose = dyn Fn(RequestHead<'_>, &CompiledTiers) -> Choice + Send + Sync;

/// Picks a tier by name.
#[derive(Clone)]
pub(super) enum Resolver {
    Sync(Arc<Choose>),
    Async(Arc<dyn Fn(RequestHead<'_>) -> TierFuture + Send + Sync>),
}

/// Which tier a request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// The resolver named none: the quotas of the policy itself.
    Base,
    /// The resolver named one that there is not.
    Unknown,
    /// The index of a tier.
    Tier(usize),
}

impl Choice {
    pub(super) fn of(name: Option<&str>, tiers: &CompiledTiers) -> Self {
        match name {
            None => Self::Base,
            Some(name) => tiers
                .iter()
                .position(|(tier, _)| tier.as_str() == name)
                .map_or(Self::Unknown, Self::Tier),
        }
    }
}

impl Resolver {
    pub(super) fn from_fn<F, T>(resolve: F) -> Self
    where
        F: Fn(RequestHead<'_>) -> Option<T> + Send + Sync + 'static,
        T: AsRef<str>,
    {
        Self::Sync(Arc::new(move |head, tiers| {
            Choice::of(resolve(head).as_ref().map(AsRef::as_ref), tiers)
        }))
    }

    pub(super) fn from_async_fn<F, R, T>(resolve: F) -> Self
    where
        F: Fn(RequestHead<'_>) -> R + Send + Sync + 'static,
        R: Future<Output = Option<T>> + Send + 'static,
        T: Into<String>,
    {
        Self::Async(Arc::new(move |head| {
            let tier = resolve(head);
            Box::pin(async move { tier.await.map(Into::into) })
        }))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sync(_) => "Sync",
            Self::Async(_) => "Async",
        })
    }
}
