//! How long a stored response lives, and whether it may answer (RFC 9111, section 4).

use std::time::Duration;

use super::{Rules, Wishes};

/// What is kept about a stored response's life. There is no wall clock in it: how long it has been
/// stored, `resident`, comes from the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Freshness {
    pub(crate) lifetime: Duration,
    /// The corrected initial age (RFC 9111, section 4.2.3), when it was stored.
    pub(crate) initial_age: Duration,
    /// Zero if the response must not be used stale.
    pub(crate) stale_while_revalidate: Duration,
    /// Zero if the response must not be used stale.
    pub(crate) stale_if_error: Duration,
    /// `no-cache`.
    pub(crate) always_revalidate: bool,
    /// `must-revalidate`, `proxy-revalidate` or `s-maxage`: never stale.
    pub(crate) must_revalidate: bool,
    /// It may answer requests with `Authorization`.
    pub(crate) authorized: bool,
    /// Nothing said how long; a tenth of its age at birth was taken.
    pub(crate) heuristic: bool,
}

/// How a stored response may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// As it is. The time to live is negative if the request itself asked for something stale.
    Fresh { ttl_seconds: i64 },
    /// As it is, while something newer is fetched.
    StaleWhileRevalidate { ttl_seconds: i64 },
    /// After the handler has confirmed it.
    Revalidate,
    /// Not for this request.
    Unusable,
}

impl Freshness {
    pub(crate) fn age(&self, resident: Duration) -> Duration {
        self.initial_age.saturating_add(resident)
    }

    /// Whole seconds that are left, negative once they are over.
    pub(crate) fn ttl_seconds(&self, resident: Duration) -> i64 {
        let (lifetime, age) = (self.lifetime.as_secs(), self.age(resident).as_secs());
        i64::try_from(lifetime).unwrap_or(i64::MAX) - i64::try_from(age).unwrap_or(i64::MAX)
    }

    pub(crate) fn reuse(
        &self,
        resident: Duration,
        softly_invalidated: bool,
        wishes: &Wishes,
    ) -> Reuse {
        let asked = &wishes.directives;
        if (wishes.authorization && !self.authorized) || asked.no_store {
            return Reuse::Unusable;
        }
        let age = self.age(resident);
        if self.always_revalidate || asked.no_cache || asked.max_age.is_some_and(|most| age > most)
        {
            return Reuse::Revalidate;
        }
        let ttl_seconds = self.ttl_seconds(resident);
        if !softly_invalidated && age < self.lifetime {
            let left = self.lifetime - age;
            return match asked.min_fresh {
                Some(wanted) if left < wanted => Reuse::Revalidate,
                _ => Reuse::Fresh { ttl_seconds },
            };
        }
        if self.must_revalidate || asked.min_fresh.is_some() {
            return Reuse::Revalidate;
        }
        let staleness = age.saturating_sub(self.lifetime);
        if !softly_invalidated && asked.max_stale.is_some_and(|most| staleness <= most) {
            return Reuse::Fresh { ttl_seconds };
        }
        if staleness < self.stale_while_revalidate {
            return Reuse::StaleWhileRevalidate { ttl_seconds: ttl_seconds.min(0) };
        }
        Reuse::Revalidate
    }

    /// Whether it may stand in for a response with 500, 502, 503 or 504, or for none (RFC 5861,
    /// section 4).
    pub(crate) fn may_serve_on_error(&self, resident: Duration) -> bool {
        self.within(resident, self.stale_if_error)
    }

    /// Whether it may stand in where the service gave no response at all.
    pub(crate) fn may_serve_unreachable(&self, resident: Duration, rules: &Rules) -> bool {
        self.within(resident, self.stale_if_error.max(rules.stale_if_unreachable))
    }

    fn within(&self, resident: Duration, window: Duration) -> bool {
        let forbidden = self.must_revalidate || self.always_revalidate;
        !forbidden && self.age(resident).saturating_sub(self.lifetime) < window
    }
}
