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

#[cfg(test)]
mod tests {
    use super::{super::RequestDirectives, *};

    const PLAIN: Freshness = Freshness {
        lifetime: Duration::from_secs(100),
        initial_age: Duration::from_secs(10),
        stale_while_revalidate: Duration::ZERO,
        stale_if_error: Duration::ZERO,
        always_revalidate: false,
        must_revalidate: false,
        authorized: false,
        heuristic: false,
    };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn asking(directives: RequestDirectives) -> Wishes {
        Wishes { directives, ..Wishes::default() }
    }

    fn plain(freshness: Freshness, resident: u64) -> Reuse {
        freshness.reuse(seconds(resident), false, &Wishes::default())
    }

    #[test]
    fn what_is_younger_than_its_lifetime_is_fresh() {
        assert_eq!(plain(PLAIN, 0), Reuse::Fresh { ttl_seconds: 90 });
        assert_eq!(plain(PLAIN, 89), Reuse::Fresh { ttl_seconds: 1 });
        assert_eq!(plain(PLAIN, 90), Reuse::Revalidate, "as old as its lifetime is stale");
        assert_eq!(plain(PLAIN, 1000), Reuse::Revalidate);
        assert_eq!(PLAIN.age(seconds(5)), seconds(15));
        assert_eq!(PLAIN.age(Duration::MAX), Duration::MAX);
        assert_eq!(PLAIN.ttl_seconds(seconds(100)), -10);
        assert_eq!(PLAIN.ttl_seconds(Duration::MAX), 100 - i64::MAX);
    }

    /// RFC 9111, section 3.5.
    #[test]
    fn what_is_not_for_all_answers_no_authorization() {
        let authorized = Wishes { authorization: true, ..Wishes::default() };
        assert_eq!(PLAIN.reuse(seconds(0), false, &authorized), Reuse::Unusable);
        let public = Freshness { authorized: true, ..PLAIN };
        assert_eq!(public.reuse(seconds(0), false, &authorized), Reuse::Fresh { ttl_seconds: 90 });
    }

    #[test]
    fn no_cache_is_revalidated_however_fresh() {
        let always = Freshness {
            always_revalidate: true,
            stale_while_revalidate: seconds(50),
            stale_if_error: seconds(50),
            ..PLAIN
        };
        assert_eq!(plain(always, 0), Reuse::Revalidate);
        assert_eq!(plain(always, 95), Reuse::Revalidate);
        assert!(!always.may_serve_on_error(seconds(0)));
    }

    /// RFC 9111, section 5.2.1.
    #[test]
    fn a_request_may_want_it_fresher() {
        let reuse =
            |directives, resident| PLAIN.reuse(seconds(resident), false, &asking(directives));
        let none = RequestDirectives::default();
        let no_cache = RequestDirectives { no_cache: true, ..none };
        assert_eq!(reuse(no_cache, 0), Reuse::Revalidate);
        assert_eq!(reuse(RequestDirectives { no_store: true, ..none }, 0), Reuse::Unusable);
        let max_age = RequestDirectives { max_age: Some(seconds(20)), ..none };
        assert_eq!(reuse(max_age, 10), Reuse::Fresh { ttl_seconds: 80 });
        assert_eq!(reuse(max_age, 11), Reuse::Revalidate);
        let min_fresh = RequestDirectives { min_fresh: Some(seconds(20)), ..none };
        assert_eq!(reuse(min_fresh, 70), Reuse::Fresh { ttl_seconds: 20 });
        assert_eq!(reuse(min_fresh, 71), Reuse::Revalidate);
    }

    #[test]
    fn a_request_may_take_it_stale_unless_that_is_forbidden() {
        let none = RequestDirectives::default();
        let max_stale = RequestDirectives { max_stale: Some(seconds(20)), ..none };
        let reuse = |freshness: Freshness, resident, soft| {
            freshness.reuse(seconds(resident), soft, &asking(max_stale))
        };
        assert_eq!(reuse(PLAIN, 110, false), Reuse::Fresh { ttl_seconds: -20 });
        assert_eq!(reuse(PLAIN, 111, false), Reuse::Revalidate);
        assert_eq!(reuse(PLAIN, 0, true), Reuse::Revalidate, "invalidated is more than stale");
        let must = Freshness { must_revalidate: true, ..PLAIN };
        assert_eq!(reuse(must, 89, false), Reuse::Fresh { ttl_seconds: 1 });
        assert_eq!(reuse(must, 90, false), Reuse::Revalidate);
        let both = RequestDirectives { min_fresh: Some(seconds(0)), ..max_stale };
        assert_eq!(PLAIN.reuse(seconds(95), false, &asking(both)), Reuse::Revalidate);
    }

    /// RFC 5861, section 3.
    #[test]
    fn within_its_window_it_answers_while_it_is_renewed() {
        let window = Freshness { stale_while_revalidate: seconds(5), ..PLAIN };
        assert_eq!(plain(window, 90), Reuse::StaleWhileRevalidate { ttl_seconds: 0 });
        assert_eq!(plain(window, 94), Reuse::StaleWhileRevalidate { ttl_seconds: -4 });
        assert_eq!(plain(window, 95), Reuse::Revalidate);
        let must = Freshness { must_revalidate: true, ..window };
        assert_eq!(plain(must, 90), Reuse::Revalidate);
    }

    #[test]
    fn softly_invalidated_is_stale() {
        let soft = |freshness: Freshness| freshness.reuse(seconds(0), true, &Wishes::default());
        assert_eq!(soft(PLAIN), Reuse::Revalidate);
        let window = Freshness { stale_while_revalidate: seconds(5), ..PLAIN };
        assert_eq!(soft(window), Reuse::StaleWhileRevalidate { ttl_seconds: 0 });
        assert_eq!(soft(Freshness { must_revalidate: true, ..window }), Reuse::Revalidate);
    }

    /// RFC 5861, section 4; RFC 9111, section 4.2.4.
    #[test]
    fn an_error_is_covered_within_its_window() {
        let window = Freshness { stale_if_error: seconds(5), ..PLAIN };
        assert!(window.may_serve_on_error(seconds(94)));
        assert!(!window.may_serve_on_error(seconds(95)));
        assert!(!PLAIN.may_serve_on_error(seconds(90)));
        let rules = Rules { stale_if_unreachable: seconds(8), ..Rules::default() };
        assert!(window.may_serve_unreachable(seconds(97), &rules));
        assert!(!window.may_serve_unreachable(seconds(98), &rules));
        assert!(window.may_serve_unreachable(seconds(94), &Rules::default()));
        let must = Freshness { must_revalidate: true, ..window };
        assert!(!must.may_serve_on_error(seconds(90)));
        assert!(!must.may_serve_unreachable(seconds(90), &rules));
    }
}
